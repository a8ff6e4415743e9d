"""Where the store and the encoders are found.

The store is the first of: the path given (`--store`), the environment variable CHGDB_STORE,
`./store`, the store shipped with chgdb. An encoder is looked up by its id in the folder that
CHGDB_MODELS names, then among those shipped with chgdb.
"""

from __future__ import annotations

import os
from pathlib import Path

from chgdb.errors import ModelError, StoreError
from chgdb.schema import INFO_FILE

__all__ = ["find_model", "find_store", "is_shipped", "model_folders"]

_PACKAGE = Path(__file__).resolve().parent
_SHIPPED = (_PACKAGE / "_data", _PACKAGE.parent)
"""Where a wheel and a checkout keep `store/` and `models/`."""


def find_store(path: str | Path | None = None) -> Path:
    """The folder of the store to use.

    Raises:
        StoreError: there is none.
    """
    if path is not None:
        return Path(path)
    if named := os.environ.get("CHGDB_STORE"):
        return Path(named)
    for folder in (Path("store"), *(root / "store" for root in _SHIPPED)):
        if (folder / INFO_FILE).is_file():
            return folder
    raise StoreError(
        "no store found: give --store, set CHGDB_STORE, or make one with: chgdb init store"
    )


def is_shipped(store: Path) -> bool:
    """Whether a store lies inside the installed package, where an upgrade would replace it."""
    return store.resolve() == (_PACKAGE / "_data" / "store").resolve()


def model_folders() -> list[Path]:
    """The folders that hold encoders, first the user's."""
    named = os.environ.get("CHGDB_MODELS")
    own = [Path(named)] if named else []
    return own + [root / "models" for root in _SHIPPED]


def find_model(encoder_id: str) -> Path:
    """The folder of an encoder.

    Raises:
        ModelError: it is in none of the folders.
    """
    folders = model_folders()
    for folder in folders:
        if (folder / encoder_id / "config.json").is_file():
            return folder / encoder_id
    places = ", ".join(str(folder) for folder in folders)
    raise ModelError(f"no encoder {encoder_id} in {places}; set CHGDB_MODELS to the folder with it")
