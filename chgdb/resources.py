"""Where the store and the encoders are found.

The store is the first of: the path given (`--store`), the environment variable CHGDB_STORE,
`./store`, the store shipped with chgdb. An encoder is looked up by its id in the folder that
CHGDB_MODELS names, then among those shipped with chgdb.
"""

from __future__ import annotations

import os
from pathlib import Path

from chgdb.errors import ChgdbError, InputError, ModelError, StoreError
from chgdb.schema import INFO_FILE, check_id
from chgdb.weights import CONFIG_FILE, load_config

__all__ = ["DEFAULT_ENCODER", "find_model", "find_store", "is_shipped", "model_folders"]

DEFAULT_ENCODER = "periodic-16"

_PACKAGE = Path(__file__).resolve().parent
_SHIPPED = (_PACKAGE / "_data", _PACKAGE.parent)
"""Where a wheel and a checkout keep `store/` and `models/`."""


def find_store(path: str | Path | None = None) -> Path:
    """The absolute path of the store to use; one that is named need not exist.

    Raises:
        StoreError: none is named and none is in the usual places.
    """
    if path is not None:
        return Path(path).absolute()
    if named := os.environ.get("CHGDB_STORE"):
        return Path(named).absolute()
    for folder in (Path("store"), *(root / "store" for root in _SHIPPED)):
        if (folder / INFO_FILE).is_file():
            return folder.absolute()
    raise StoreError(
        "no store found: give --store, set CHGDB_STORE, or make one with: chgdb init store"
    )


def is_shipped(store: Path) -> bool:
    """Whether a store lies inside the installed package, where an upgrade would replace it."""
    return store.resolve().is_relative_to(_SHIPPED[0])


def model_folders() -> list[Path]:
    """The folders that hold encoders, first the user's."""
    named = os.environ.get("CHGDB_MODELS")
    own = [Path(named)] if named else []
    return own + [root / "models" for root in _SHIPPED]


def find_model(encoder_id: str, weights_sha256: str | None = None) -> Path:
    """The folder of an encoder.

    Args:
        encoder_id: its id, which is the name of the folder.
        weights_sha256: hash of its weights; None for whatever weights are found first.

    Raises:
        ModelError: it is in none of the folders, or only with other weights.
    """
    try:
        check_id(encoder_id)
    except InputError as error:
        raise ModelError(f"{encoder_id!r} is not the id of an encoder") from error
    folders = [folder / encoder_id for folder in model_folders()]
    found = [folder for folder in folders if (folder / CONFIG_FILE).is_file()]
    if not found:
        places = ", ".join(str(folder.parent) for folder in folders)
        raise ModelError(
            f"no encoder {encoder_id} in {places}; set CHGDB_MODELS to the folder that holds it"
        )
    if weights_sha256 is None:
        return found[0]
    for folder in found:
        if _has_weights(folder, weights_sha256):
            return folder
    places = ", ".join(map(str, found))
    raise ModelError(
        f"no encoder {encoder_id} with the weights {weights_sha256[:12]}..., only others in "
        f"{places}; set CHGDB_MODELS to the folder that holds it"
    )


def _has_weights(folder: Path, weights_sha256: str) -> bool:
    try:
        return load_config(folder).weights_sha256 == weights_sha256
    except ChgdbError:
        return False
