"""Keras weights: what Keras wrote decodes as Keras decodes it, and nothing else is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import KerasRelease
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chgdb.errors import MissingExtraError, ModelError
from chgdb.keras_weights import net_arguments, read_keras_weights
from chgdb.nets import PaperNet

ENCODER = [(1, 16), (16, 32), (32, 32), (32, 16)]
DECODER = [(16, 32), (32, 32), (32, 16), (16, 1)]
FLOAT32_ROUNDING = 5e-6
"""Of the largest value: a sum of 864 products in another order. 1.3e-6 was measured."""


def network(tensors: dict[str, Any]) -> PaperNet:
    net = PaperNet(**net_arguments(tensors))
    net.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    return net


def write(path: Path, convolutions: list[tuple[int, int]], *, legacy: bool = True) -> Path:
    """A file of either layout with random weights of the shapes given."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        names = [f"conv3d_{i}" if i else "conv3d" for i in range(len(convolutions))]
        for name, shape in zip(names, convolutions, strict=True):
            kernel, bias = rng.normal(size=(3, 3, 3, *shape)), rng.normal(size=shape[1:])
            if legacy:
                group = file.create_group(f"{name}")
                group.attrs["weight_names"] = np.bytes_([f"{name}/kernel:0", f"{name}/bias:0"])
                group[f"{name}/kernel:0"], group[f"{name}/bias:0"] = kernel, bias
            else:
                file[f"layers/{name}/vars/0"], file[f"layers/{name}/vars/1"] = kernel, bias
        if legacy:
            file.attrs["layer_names"] = np.array(names, dtype=np.bytes_)
    return path


# --- against Keras ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [".h5", ".weights.h5"])
@pytest.mark.parametrize("name", ["both", "nested"])
def test_every_layout_gives_the_same_tensors(
    keras_release: KerasRelease, name: str, layout: str
) -> None:
    expected = read_keras_weights(keras_release.weights / "attributes.weights.h5")
    tensors = read_keras_weights(keras_release.weights / f"{name}{layout}")
    assert tensors.keys() == expected.keys() == PaperNet().state_dict().keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, expected[key])
    encoder = read_keras_weights(keras_release.weights / f"encoder{layout}")
    decoder = read_keras_weights(keras_release.weights / f"decoder{layout}")
    assert encoder.keys() | decoder.keys() == tensors.keys()
    assert not encoder.keys() & decoder.keys()
    assert all((half[key] == tensors[key]).all() for half in (encoder, decoder) for key in half)
    assert net_arguments(tensors) == {"latent_channels": 16, "widths": [16, 32, 32]}
    assert net_arguments(decoder) == {**net_arguments(tensors), "decoder_only": True}


def test_the_network_computes_what_keras_computes(keras_release: KerasRelease) -> None:
    net = network(read_keras_weights(keras_release.weights / "both.h5"))
    for key, density in keras_release.densities.items():
        latent, decoded = keras_release.latent(key), keras_release.decoded(key)
        with torch.no_grad():
            z = net.encode(torch.from_numpy(density)[None, None])
            box = net.decode(torch.from_numpy(np.moveaxis(latent, -1, 0))[None])
        assert np.ptp(decoded) > 1e-2  # random weights, but no constant
        for found, expected in ((z[0].movedim(0, -1), latent), (box[0, 0], decoded)):
            bound = FLOAT32_ROUNDING * np.abs(expected).max()
            np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=bound)


# --- files that are made for the purpose ------------------------------------------------------


@pytest.mark.parametrize("legacy", [True, False])
def test_widths_are_read_off_the_shapes(tmp_path: Path, legacy: bool) -> None:
    # twelve layers: conv3d_10 comes after conv3d_9, not after conv3d_1
    encoder = [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7)]
    decoder = [(7, 6), (6, 5), (5, 4), (4, 3), (3, 2), (2, 1)]
    tensors = read_keras_weights(write(tmp_path / "a.h5", encoder + decoder, legacy=legacy))
    assert net_arguments(tensors) == {"latent_channels": 7, "widths": [2, 3, 4, 5, 6]}
    assert network(tensors).factor == 32
    with h5py.File(tmp_path / "a.h5") as file:
        found = file["conv3d_10/conv3d_10/kernel:0" if legacy else "layers/conv3d_10/vars/0"][...]
    kernel = np.moveaxis(tensors["up.4.weight"], (0, 1), (4, 3))
    np.testing.assert_array_equal(kernel, found.astype(np.float32))


@pytest.mark.parametrize(
    ("convolutions", "message"),
    [
        ([], "no layers of a Keras model"),
        (
            [(16, 16), *DECODER[2:]],
            "conv3d_1/.* takes 32 channels, but .*conv3d/.* before it gives 16",
        ),
        (DECODER[:-1], "neither begins nor ends with 1 channel"),
        (ENCODER + DECODER[1:], "takes 32 channels, but .*conv3d_3/.* before it gives 16"),
        ([*ENCODER, (16, 32), (32, 16), (16, 1)], "7 convolutions; an encoder has as many"),
        ([(1, 4), (4, 8), (8, 5), (5, 1)], r"encoder has \[4, 8\].* one of \[5, 8\]"),
        ([(1, 1)], "1 convolutions"),
        ([(1, 16)], "1 convolutions"),
    ],
)
def test_wrong_layers_are_named(
    tmp_path: Path, convolutions: list[tuple[int, int]], message: str
) -> None:
    for legacy in (True, False):
        path = write(tmp_path / f"{legacy}.h5", convolutions, legacy=legacy)
        with pytest.raises(ModelError, match=message) as error:
            read_keras_weights(path)
        assert str(error.value).startswith(f"{path}: ")


def test_an_encoder_without_its_decoder(tmp_path: Path) -> None:
    tensors = read_keras_weights(write(tmp_path / "a.h5", ENCODER))
    assert set(tensors) == {
        *(f"down.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")),
        "to_latent.weight",
        "to_latent.bias",
    }
    with pytest.raises(ModelError, match="decoder are missing; give them with --decoder"):
        net_arguments(tensors)
    other = read_keras_weights(write(tmp_path / "b.h5", [(16, 32), (32, 16), (16, 1)]))
    with pytest.raises(ModelError, match=r"has \[16, 32, 32, 16\] channels, .* of \[16, 32, 16\]"):
        net_arguments(tensors | other)


Change = Callable[[h5py.File], None]


def replace(name: str, values: Any) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = values

    return change


def external(file: h5py.File) -> None:
    del file["layers/conv3d/vars/1"]
    file["layers/conv3d/vars/1"] = h5py.ExternalLink("other.h5", "/secret")


def soft(file: h5py.File) -> None:
    file["layers/conv3d_4"] = h5py.SoftLink("/layers")


def elsewhere(file: h5py.File) -> None:
    del file["layers/conv3d/vars/1"]
    file["layers/conv3d/vars"].create_dataset("1", (32,), "f4", external=[("x", 0, 128)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace("layers/conv3d/vars/0", np.ones((3, 3, 16, 32))), r"shape \(3, 3, 16, 32\)"),
        (replace("layers/conv3d/vars/0", np.ones((5, 5, 5, 16, 32))), r"shape \(5, 5, 5, 16, 32\)"),
        (replace("layers/conv3d/vars/0", np.ones((3, 3, 3, 0, 32))), "shape"),
        (replace("layers/conv3d/vars/1", np.ones(31)), r"vars/1 has shape \(31,\)"),
        (replace("layers/conv3d/vars/1", np.full(32, np.nan)), "vars/1 holds .* not finite"),
        (replace("layers/conv3d/vars/1", np.ones(32, dtype=int)), "int64"),
        (replace("layers/conv3d/vars/1", h5py.Empty("f4")), "layers/conv3d/vars/1"),
        (replace("layers/conv3d/vars/1", np.array([b"x"] * 32)), "no weight of the network"),
        (
            lambda file: file.create_dataset("layers/dense/vars/0", (4,), "f4"),
            "layers/dense/vars/0",
        ),
        (lambda file: file["layers/conv3d_3/vars"].__delitem__("1"), "conv3d_3/vars/0 has no bias"),
        (external, "is a link, which is not followed"),
        (soft, "is a link, which is not followed"),
        (elsewhere, "no array in this file"),
    ],
)
def test_wrong_weights_are_named(tmp_path: Path, change: Change, message: str) -> None:
    path = write(tmp_path / "a.h5", DECODER, legacy=False)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.ones(32)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(ModelError, match=message):
        read_keras_weights(path)


def test_a_huge_weight_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", DECODER, legacy=False)
    with h5py.File(path, "r+") as file:
        del file["layers/conv3d/vars/0"]
        shape = (3, 3, 3, 10**6, 10**6)
        file.create_dataset("layers/conv3d/vars/0", shape, "f4", chunks=(3, 3, 3, 10, 10))
    with pytest.raises(ModelError, match="no weight of the network"):
        read_keras_weights(path)


def test_a_legacy_file_that_lacks_what_it_lists(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", DECODER)
    with h5py.File(path, "r+") as file:
        del file["conv3d_1/conv3d_1/bias:0"]
    with pytest.raises(ModelError, match="bias:0 is missing"):
        read_keras_weights(path)
    with h5py.File(path, "r+") as file:
        del file["conv3d_1"].attrs["weight_names"]
    with pytest.raises(ModelError, match=r"a\.h5: "):
        read_keras_weights(path)


def test_what_is_no_hdf5_file(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("weights")
    for name in ("text.h5", "."):
        with pytest.raises(ModelError, match="not a readable HDF5 file"):
            read_keras_weights(tmp_path / name)
    with pytest.raises(ModelError, match=r"missing\.h5: no such file"):
        read_keras_weights(tmp_path / "missing.h5")


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"chgdb\[release\]"):
        read_keras_weights(tmp_path / "a.h5")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), legacy=st.booleans())
def test_damage_is_one_error(tmp_path: Path, data: st.DataObject, legacy: bool) -> None:
    """Cut short or with a byte changed, a file gives tensors or one line."""
    path = write(tmp_path / "a.h5", [(2, 3), (3, 1)], legacy=legacy)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:at]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        tensors = read_keras_weights(path)
    except ModelError as error:
        said = str(error)
    else:
        said = str(path)
        assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    assert str(path) in said
    assert "\n" not in said
