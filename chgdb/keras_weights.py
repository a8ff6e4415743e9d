"""Weights of the published network in Keras `.h5` files.

Two layouts exist: the legacy one of `model.save("x.h5")` and of Keras 2's `save_weights`, which
lists its layers and their weights in attributes, and that of Keras 3's `x.weights.h5`, where the
n-th weight of a layer is `layers/NAME/vars/n`. Only arrays are read: the configuration of a model,
which could hold code, is not looked at, and no link that leads out of the file is followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chgdb.errors import MissingExtraError, ModelError
from chgdb.files import reason, shown

if TYPE_CHECKING:
    import h5py

__all__ = ["net_arguments", "read_keras_weights"]

_LARGEST = 27 * 1024 * 1024
"""Numbers in one weight; nothing larger is read."""

_NOT_LAYERS = ("optimizer", "vars", "seed_generator")
"""Groups of the Keras 3 layout in which there are no layers."""


@dataclass(frozen=True, eq=False)
class _Conv:
    """A convolution: its name in the file, weight (out, in, 3, 3, 3) and bias (out,)."""

    name: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @property
    def channels(self) -> tuple[int, int]:
        """Of its input and its output."""
        return self.weight.shape[1], self.weight.shape[0]


def read_keras_weights(path: str | Path) -> dict[str, NDArray[np.float32]]:
    """The tensors of `chgdb.nets.PaperNet`, by name, that a Keras file holds.

    Keras has kernels (a, b, c, in, out), torch (out, in, a, b, c). An encoder is a chain of
    convolutions that begins with 1 channel, a decoder one that ends with 1; a file holds either or
    both. The weights of an optimizer are left out.

    Args:
        path: an HDF5 file of either layout.

    Raises:
        ModelError: the file cannot be read, or its layers are not those of the network; the text
            names the layer.
        MissingExtraError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("reading Keras weights", "release") from error
    if not Path(path).exists():
        raise ModelError(f"{shown(path)}: no such file")
    try:
        with h5py.File(path, "r") as file:
            convolutions = _in_order(list(_convolutions(_weights(file))))
        return _named(convolutions)
    except ModelError as error:
        raise ModelError(f"{shown(path)}: {error}") from error
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{shown(path)}: not a readable HDF5 file ({reason(error)})") from error


def net_arguments(tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    """The arguments of `PaperNet` for tensors of `read_keras_weights`, read off their shapes.

    Raises:
        ModelError: there is no decoder, or the encoder is not that of the decoder.
    """
    decoder = _outputs(tensors, "up")
    if not decoder:
        raise ModelError("the weights of the decoder are missing; give them with --decoder")
    widths = decoder[::-1]
    latent_channels = tensors["up.0.weight"].shape[1]
    channels = [*widths, latent_channels]
    arguments = {"latent_channels": latent_channels, "widths": widths}
    if "to_latent.weight" not in tensors:
        return {**arguments, "decoder_only": True}
    encoder = [*_outputs(tensors, "down"), len(tensors["to_latent.bias"])]
    if encoder != channels:
        raise ModelError(f"the encoder has {encoder} channels, its decoder is one of {channels}")
    return arguments


def _outputs(tensors: Mapping[str, NDArray[np.float32]], part: str) -> list[int]:
    """Output channels of the convolutions `part`.0, `part`.1, ..."""
    count = sum(name.startswith(f"{part}.") for name in tensors) // 2
    return [len(tensors[f"{part}.{i}.bias"]) for i in range(count)]


# --- the file ---------------------------------------------------------------------------------


def _weights(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every weight of every layer with its name, in the order of the layers."""
    root = _child(file, "model_weights") if "model_weights" in file else file
    if "layer_names" in root.attrs:
        for layer in _texts(root.attrs["layer_names"]):
            group = _child(root, layer)
            for weight in _texts(group.attrs["weight_names"]):
                item: Any = group
                for part in weight.split("/"):
                    item = _child(item, part)
                yield f"{layer}/{weight}", item
    else:
        yield from _variables(file, "")


def _variables(group: h5py.Group, path: str) -> Iterator[tuple[str, h5py.Dataset]]:
    """The weights of a group of the Keras 3 layout: conv3d, conv3d_1, ..., conv3d_10."""
    for name in sorted(group, key=_natural):
        if name == "vars":
            variables = _child(group, name)
            for number in sorted(variables, key=_natural):
                yield f"{path}/vars/{number}", _child(variables, number)
    for name in sorted(set(group) - set(_NOT_LAYERS), key=_natural):
        child = _child(group, name)
        if hasattr(child, "keys"):
            yield from _variables(child, f"{path}/{name}".removeprefix("/"))


def _child(group: h5py.Group, name: str) -> Any:
    """A member of a group that lies in the file itself."""
    import h5py

    if not isinstance(group, h5py.Group) or name not in group:
        raise ModelError(f"{name} is missing")
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ModelError(f"{name} is a link, which is not followed")
    return group[name]


def _natural(name: str) -> tuple[str, int]:
    """Sorts conv3d before conv3d_1 and conv3d_2 before conv3d_10."""
    match = re.fullmatch(r"(.*?)_?(\d{1,9})", name, re.DOTALL)
    return (match[1], int(match[2])) if match else (name, -1)


def _texts(values: Any) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in np.asarray(values).tolist()]


def _numbers(name: str, dataset: Any) -> NDArray[np.float32]:
    """The content of a weight."""
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise ModelError(f"{name} is no array in this file")
    if dataset.dtype.kind != "f" or dataset.shape is None or dataset.size > _LARGEST:
        raise ModelError(f"{name} is {dataset.dtype} of {dataset.shape}, no weight of the network")
    values = np.asarray(dataset, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ModelError(f"{name} holds numbers that are not finite")
    return values


# --- the network ------------------------------------------------------------------------------


def _convolutions(weights: Iterator[tuple[str, h5py.Dataset]]) -> Iterator[_Conv]:
    """The convolutions of a file: each a kernel and the bias that follows it.

    Raises:
        ModelError: a weight is something else.
    """
    for name, dataset in weights:
        kernel = _numbers(name, dataset)
        if kernel.ndim != 5 or kernel.shape[:3] != (3, 3, 3) or not kernel.size:
            raise ModelError(
                f"{name} has shape {kernel.shape}; the network has only kernels "
                "(3, 3, 3, in, out), each followed by its bias"
            )
        bias_name, bias_dataset = next(weights, ("", None))
        if bias_dataset is None:
            raise ModelError(f"{name} has no bias")
        bias = _numbers(bias_name, bias_dataset)
        if bias.shape != kernel.shape[4:]:
            raise ModelError(
                f"{bias_name} has shape {bias.shape}; the bias of {name} has {kernel.shape[4:]}"
            )
        weight = np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2))
        yield _Conv(name, weight, bias)


def _in_order(convolutions: list[_Conv]) -> list[_Conv]:
    """From the density to the density: a file may hold the decoder before the encoder."""
    starts = [i for i, conv in enumerate(convolutions) if conv.channels[0] == 1]
    first = starts[0] if starts else 0
    return convolutions[first:] + convolutions[:first]


def _named(convolutions: list[_Conv]) -> dict[str, NDArray[np.float32]]:
    """The tensors by their names in `PaperNet`.

    Raises:
        ModelError: the layers do not make up an encoder, a decoder or both.
    """
    if not convolutions:
        raise ModelError("no layers of a Keras model")
    for one, other in pairwise(convolutions):
        if one.channels[1] != other.channels[0]:
            raise ModelError(
                f"{other.name} takes {other.channels[0]} channels, but {one.name} before it gives "
                f"{one.channels[1]}: a layer is missing, or they are in another order"
            )
    encodes = convolutions[0].channels[0] == 1
    decodes = convolutions[-1].channels[1] == 1
    if not (encodes or decodes):
        raise ModelError(
            f"neither begins nor ends with 1 channel ({convolutions[0].name} takes "
            f"{convolutions[0].channels[0]}, {convolutions[-1].name} gives "
            f"{convolutions[-1].channels[1]}): a layer is missing"
        )
    count = len(convolutions) // 2 if encodes and decodes else len(convolutions)
    if (encodes and decodes and len(convolutions) % 2) or count < 2:
        raise ModelError(
            f"{len(convolutions)} convolutions; an encoder has as many as its decoder, 2 or more"
        )
    tensors: dict[str, NDArray[np.float32]] = {}
    halves = [convolutions[:count], convolutions[count:]]
    ends = [("down", "to_latent"), ("up", "to_density")]
    for half, (inner, last) in zip(halves if encodes else halves[::-1], ends, strict=True):
        for i, conv in enumerate(half):
            name = last if i == count - 1 else f"{inner}.{i}"
            tensors |= {f"{name}.weight": conv.weight, f"{name}.bias": conv.bias}
    if encodes and decodes:
        net_arguments(tensors)
    return tensors
