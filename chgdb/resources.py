"""Where the store and the models are found.

The store is the first of: the path given (`--store`), the environment variable CHGDB_STORE,
`./store`, the store shipped with chgdb. A model, which is an encoder or predicts properties, is
looked up by its id in the folder that CHGDB_MODELS names, then among those shipped with chgdb.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from chgdb.errors import ChgdbError, InputError, ModelError, StoreError
from chgdb.files import place, reason
from chgdb.places import Place
from chgdb.schema import INFO_FILE, check_id
from chgdb.weights import CONFIG_FILE, load_config

__all__ = [
    "DEFAULT_ENCODER",
    "DEFAULT_PROPERTY_MODEL",
    "find_model",
    "find_property_model",
    "find_store",
    "is_shipped",
    "model_folders",
]

DEFAULT_ENCODER = "periodic-16"
DEFAULT_PROPERTY_MODEL = "properties-1"

_PROPERTIES_KIND = "properties"
"""The `kind` in the configuration of a model that predicts properties."""

_PACKAGE = Path(__file__).resolve().parent
_SHIPPED = (_PACKAGE / "_data", _PACKAGE.parent)
"""Where a wheel and a checkout keep `store/` and `models/`."""


def find_store(path: str | Place | None = None) -> Place:
    """Where the store to use is, an absolute path; one that is named need not exist.

    Raises:
        StoreError: none is named and none is in the usual places.
        MissingExtraError: it is in a bucket, and obstore is not installed.
    """
    if path is not None:
        return place(path)
    if named := os.environ.get("CHGDB_STORE"):
        return place(named)
    for folder in (Path("store"), *(root / "store" for root in _SHIPPED)):
        if (folder / INFO_FILE).is_file():
            return folder.absolute()
    raise StoreError(
        "no store found: give --store, set CHGDB_STORE, or make one with: chgdb init store"
    )


def is_shipped(store: Place) -> bool:
    """Whether a store lies inside the installed package, where an upgrade would replace it."""
    return isinstance(store, Path) and store.resolve().is_relative_to(_SHIPPED[0])


def model_folders() -> list[Path]:
    """The folders that hold models, first the user's."""
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
    found = _folders(encoder_id, "encoder")
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


def find_property_model(name: str | Path | None = None) -> Path:
    """The folder of a model that predicts properties.

    Args:
        name: the folder itself, or the id of the model; None for the default one.

    Raises:
        ModelError: it is not found, or is a model of another kind.
    """
    name = DEFAULT_PROPERTY_MODEL if name is None else name
    folder = Path(name)
    if not (folder / CONFIG_FILE).is_file():
        if folder.name != str(name):
            problem = f"holds no {CONFIG_FILE}" if folder.is_dir() else "there is no such folder"
            raise ModelError(f"{folder}: {problem}")
        folder = _folders(str(name), "property model")[0]
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({reason(error)})") from error
    kind = config.get("kind") if isinstance(config, dict) else None
    if kind != _PROPERTIES_KIND:
        what = f"a model of kind {kind!r}" if kind else "a model of another kind"
        raise ModelError(f"{folder}: {what}; it does not predict properties")
    return folder


def _folders(model_id: str, what: str) -> list[Path]:
    """The folders of the models of this id, of which there is one at least."""
    try:
        check_id(model_id)
    except InputError as error:
        article = "an" if what[0] in "aeiou" else "a"
        raise ModelError(f"{model_id!r} is not the id of {article} {what}") from error
    folders = [folder / model_id for folder in model_folders()]
    found = [folder for folder in folders if (folder / CONFIG_FILE).is_file()]
    if not found:
        places = ", ".join(str(folder.parent) for folder in folders)
        raise ModelError(
            f"no {what} {model_id} in {places}; set CHGDB_MODELS to the folder that holds it"
        )
    return found


def _has_weights(folder: Path, weights_sha256: str) -> bool:
    try:
        return load_config(folder).weights_sha256 == weights_sha256
    except ChgdbError:
        return False
