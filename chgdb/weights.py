"""An encoder on disk: a folder with `config.json`, `weights.safetensors` and a model card.

The configuration names the network and carries the SHA-256 of the weights; nothing here runs code
that comes from the folder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chgdb.errors import FormatVersionError, MissingExtraError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CONFIG_FILE",
    "MODEL_FORMAT_VERSION",
    "WEIGHTS_FILE",
    "EncoderConfig",
    "load_config",
    "load_tensors",
    "save_encoder",
]

MODEL_FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that turns weights into an encoder.

    Attributes:
        id: name of the encoder, as stores record it.
        kind: "periodic" or "paper".
        latent_shape: (channel, a, b, c) of the stored latent.
        net: keyword arguments of the network class.
        weights_sha256: hash of the safetensors file.
        training: what made the weights (data, epochs, seed), for the record.
    """

    id: str
    kind: str
    latent_shape: tuple[int, int, int, int]
    net: dict[str, Any]
    weights_sha256: str = ""
    training: dict[str, Any] = field(default_factory=dict)


def load_config(folder: str | Path) -> EncoderConfig:
    """The configuration of an encoder folder.

    Raises:
        ModelError: it is missing or damaged.
        FormatVersionError: a newer chgdb wrote it.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format_version")
    except OSError as error:
        raise ModelError(f"{path}: cannot read the encoder ({error.strerror})") from error
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: not an encoder configuration ({error})") from error
    if version != MODEL_FORMAT_VERSION:
        raise FormatVersionError(
            f"{path}: encoder format {version}; this chgdb reads {MODEL_FORMAT_VERSION}: upgrade it"
        )
    try:
        config = EncoderConfig(**content)
    except TypeError as error:
        raise ModelError(f"{path}: not an encoder configuration ({error})") from error
    if config.kind not in ("periodic", "paper") or len(config.latent_shape) != 4:
        raise ModelError(f"{path}: unknown encoder kind {config.kind!r}")
    channel, a, b, c = config.latent_shape
    return EncoderConfig(**{**asdict(config), "latent_shape": (channel, a, b, c)})


def load_tensors(folder: str | Path, config: EncoderConfig) -> dict[str, Tensor]:
    """The weights of an encoder, after their hash has been checked.

    Raises:
        ModelError: they are missing or are not those the configuration names.
        MissingExtraError: torch is not installed.
    """
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise MissingExtraError("running an encoder", "ml") from error
    path = Path(folder) / WEIGHTS_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot read the weights ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != config.weights_sha256:
        raise ModelError(f"{path}: the weights are not those that {CONFIG_FILE} names (sha256)")
    return load(content)


def save_encoder(
    folder: str | Path, config: EncoderConfig, tensors: dict[str, Tensor]
) -> EncoderConfig:
    """Write weights and configuration; returns the configuration with the hash filled in."""
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    fields = {**asdict(config), "weights_sha256": hashlib.sha256(content).hexdigest()}
    (folder / WEIGHTS_FILE).write_bytes(content)
    text = json.dumps({"format_version": MODEL_FORMAT_VERSION, **fields}, indent=2)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    return EncoderConfig(**fields)
