"""An encoder on disk: a folder with `config.json`, `weights.safetensors` and a model card.

The configuration names the network and carries the SHA-256 of the weights; nothing here runs code
that comes from the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chgdb.errors import FormatVersionError, InputError, MissingExtraError, ModelError
from chgdb.files import reason, write_files
from chgdb.schema import LATENT_BOX, check_id
from chgdb.seals import UNSEALED, seal_holds, sealed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CONFIG_FILE",
    "MODEL_FORMAT_VERSION",
    "WEIGHTS_FILE",
    "EncoderConfig",
    "check_encodes",
    "load_config",
    "load_tensors",
    "packed",
    "save_encoder",
    "unpacked",
]

MODEL_FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"

_NET_ARGUMENTS = {
    "periodic": {"latent_channels", "widths", "encoder_blocks", "decoder_blocks"},
    "paper": {"latent_channels", "widths"},
}
"""Arguments of the network of each kind of encoder."""

_DECODER_ONLY = "decoder_only"
"""One more that a `paper` network may have."""

_MAX_STAGES = 6
_MAX_CHANNELS = 1024
_MAX_BLOCKS = 16
_MAX_REFINE_STEPS = 1000


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that turns weights into an encoder.

    Attributes:
        id: name of the encoder, as stores record it.
        kind: "periodic" or "paper".
        latent_shape: (channel, a, b, c) of the stored latent; a cube whose edge is 128 divided by
            2 for every stage of the network.
        net: keyword arguments of the network class.
        weights_sha256: hash of the safetensors file.
        training: what made the weights (data, epochs, seed), for the record.
        refine_steps: gradient steps through the decoder that improve each latent; 0 for none.

    Raises:
        InputError: the values have other types, contradict each other or describe a network
            beyond all reason.
    """

    id: str
    kind: str
    latent_shape: tuple[int, int, int, int]
    net: dict[str, Any]
    weights_sha256: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    refine_steps: int = 0

    def __post_init__(self) -> None:
        check_id(self.id)
        if self.kind not in _NET_ARGUMENTS:
            raise InputError(f"unknown encoder kind {self.kind!r}")
        optional = {_DECODER_ONLY} if self.kind == "paper" else set()
        if (
            not isinstance(self.net, dict)
            or set(self.net) - optional != _NET_ARGUMENTS[self.kind]
            or type(self.decoder_only) is not bool
        ):
            names = ", ".join(sorted(_NET_ARGUMENTS[self.kind]))
            raise InputError(f"a {self.kind} network has the arguments {names}")
        if not isinstance(self.weights_sha256, str) or not isinstance(self.training, dict):
            raise InputError("weights_sha256 is text and training an object")
        if not _whole_numbers([self.refine_steps], 1, 1, 0, _MAX_REFINE_STEPS):
            raise InputError(f"refine_steps is a number up to {_MAX_REFINE_STEPS}")
        widths = self.net["widths"]
        if not _whole_numbers(widths, 1, _MAX_STAGES, 1, _MAX_CHANNELS):
            raise InputError(f"widths are 1 to 6 numbers up to {_MAX_CHANNELS}, not {widths!r}")
        for name in _NET_ARGUMENTS[self.kind] & {"encoder_blocks", "decoder_blocks"}:
            if not _whole_numbers(self.net[name], len(widths), len(widths), 0, _MAX_BLOCKS):
                raise InputError(
                    f"{name} are {len(widths)} numbers up to {_MAX_BLOCKS}, not {self.net[name]!r}"
                )
        channels = self.net["latent_channels"]
        edge = LATENT_BOX // 2 ** len(widths)
        if not _whole_numbers([channels], 1, 1, 1, _MAX_CHANNELS):
            raise InputError(f"latent_channels is a number up to {_MAX_CHANNELS}")
        if not isinstance(self.latent_shape, list | tuple):
            raise InputError("latent_shape is a list of 4 numbers")
        object.__setattr__(self, "latent_shape", tuple(self.latent_shape))
        if self.latent_shape != (channels, edge, edge, edge):
            raise InputError(
                f"this network has latents of {(channels, edge, edge, edge)}, "
                f"not {self.latent_shape}"
            )

    @property
    def decoder_only(self) -> bool:
        """Whether the weights of the encoder proper are not known, only those of its decoder."""
        known: bool = self.net.get(_DECODER_ONLY, False)
        return known


def _whole_numbers(values: object, shortest: int, longest: int, low: int, high: int) -> bool:
    """Whether these are so many whole numbers from `low` to `high`."""
    return (
        isinstance(values, list | tuple)
        and shortest <= len(values) <= longest
        and all(type(value) is int and low <= value <= high for value in values)
    )


def check_encodes(config: EncoderConfig) -> None:
    """Whether there is more than a decoder.

    Raises:
        ModelError: only the weights of the decoder are known.
    """
    if config.decoder_only:
        raise ModelError(
            f"{config.id}: the weights of the encoder are not known, only those of its decoder: "
            "chgdb import-release DIR --table CSV --encoder WEIGHTS.h5 brings them"
        )


def load_config(folder: str | Path) -> EncoderConfig:
    """The configuration of an encoder folder.

    Raises:
        ModelError: it is missing or damaged.
        FormatVersionError: a newer chgdb wrote it.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        text = path.read_bytes()
        content = json.loads(text)
    except OSError as error:
        raise ModelError(f"{path}: cannot read the encoder ({reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not an encoder configuration ({reason(error)})") from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise ModelError(f"{path}: not an encoder configuration (it has no format_version)")
    if seal_holds(text) is False:
        raise ModelError(
            f"{path}: damaged, it has changed since it was written (seal); who changes it by hand "
            "removes the seal"
        )
    content.pop("seal", None)
    version = content.pop("format_version")
    if version != MODEL_FORMAT_VERSION:
        raise FormatVersionError(
            f"{path}: encoder format {version!r}; this chgdb reads "
            f"{MODEL_FORMAT_VERSION}: pip install --upgrade chgdb"
        )
    try:
        return EncoderConfig(**content)
    except (TypeError, InputError) as error:
        raise ModelError(f"{path}: not an encoder configuration ({error})") from error


def load_tensors(folder: str | Path, config: EncoderConfig) -> dict[str, Tensor]:
    """The weights of an encoder, after their hash has been checked, in float32.

    On disk they may be in half precision.

    Raises:
        ModelError: they are missing, damaged or not those the configuration names.
        MissingExtraError: torch is not installed.
    """
    try:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise MissingExtraError("running an encoder", "ml") from error
    path = Path(folder) / WEIGHTS_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot read the weights ({reason(error)})") from error
    if hashlib.sha256(content).hexdigest() != config.weights_sha256:
        raise ModelError(f"{path}: the weights are not those that {CONFIG_FILE} names (sha256)")
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: damaged ({reason(error)})") from error
    for name, tensor in tensors.items():
        known = tensor.dtype in (torch.float32, torch.float16)
        if not known or not bool(tensor.isfinite().all()):
            raise ModelError(f"{path}: {name} does not hold finite numbers in float32 or float16")
    return {name: tensor.float() for name, tensor in tensors.items()}


def save_encoder(
    folder: str | Path, config: EncoderConfig, tensors: dict[str, Tensor]
) -> EncoderConfig:
    """Write weights and configuration; returns the configuration with the hash filled in.

    Raises:
        ModelError: they cannot be written.
    """
    from safetensors.torch import save

    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    fields = {**asdict(config), "weights_sha256": hashlib.sha256(content).hexdigest()}
    described = {"format_version": MODEL_FORMAT_VERSION, **fields, "seal": UNSEALED}
    text = sealed((json.dumps(described, indent=2) + "\n").encode())
    write_files(folder, {WEIGHTS_FILE: content, CONFIG_FILE: text}, ModelError)
    return EncoderConfig(**fields)


def packed(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Tensors as the content of a safetensors file.

    Raises:
        MissingExtraError: safetensors is not installed.
    """
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise MissingExtraError("a trained model", "ml") from error
    content: bytes = save({name: np.asarray(array, order="C") for name, array in tensors.items()})
    return content


def unpacked(content: bytes) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file; those in half precision become float32.

    Raises:
        ValueError: it is damaged or holds numbers that are not finite.
        MissingExtraError: safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load
    except ImportError as error:
        raise MissingExtraError("a trained model", "ml") from error
    try:
        tensors: dict[str, NDArray[Any]] = load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    half = {name: t.astype(np.float32) for name, t in tensors.items() if t.dtype == np.float16}
    return tensors | half
