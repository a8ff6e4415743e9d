"""Encoders on disk: round trip, and nothing a stranger writes runs code or fills the memory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from chgdb.errors import FormatVersionError, InputError, ModelError
from chgdb.weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    EncoderConfig,
    load_config,
    load_tensors,
    save_encoder,
)

NET: dict[str, Any] = {"latent_channels": 4, "widths": [2, 3, 4], "encoder_blocks": [0, 1, 1]}
NET["decoder_blocks"] = [1, 1, 0]
CONFIG = EncoderConfig("tiny", "periodic", (4, 16, 16, 16), NET, training={"epochs": 3})
TENSORS = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.zeros(())}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_encoder(tmp_path / "tiny", CONFIG, TENSORS)
    return tmp_path / "tiny"


def rewrite(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / CONFIG_FILE).read_text())
    del content["seal"]
    (folder / CONFIG_FILE).write_text(json.dumps({**content, **changes}))


def test_a_changed_byte_of_the_configuration_is_told(folder: Path) -> None:
    text = (folder / CONFIG_FILE).read_bytes()
    (folder / CONFIG_FILE).write_bytes(text.replace(b'"refine_steps": 0', b'"refine_steps": 8'))
    with pytest.raises(ModelError, match="damaged, it has changed"):
        load_config(folder)


def test_round_trip(folder: Path) -> None:
    config = load_config(folder)
    assert config.weights_sha256 == hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert config == EncoderConfig(
        CONFIG.id,
        CONFIG.kind,
        CONFIG.latent_shape,
        NET,
        config.weights_sha256,
        CONFIG.training,
    )
    tensors = load_tensors(folder, config)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)
    assert sorted([path.name for path in folder.iterdir()]) == [CONFIG_FILE, WEIGHTS_FILE]


def test_saving_into_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        save_encoder(tmp_path / "file", CONFIG, TENSORS)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "3", "null", '{"format_version": 1}', "[" * 100_000, "\udcff"],
)
def test_what_is_no_configuration(folder: Path, content: str) -> None:
    (folder / CONFIG_FILE).write_text(content, errors="surrogateescape")
    with pytest.raises(ModelError, match=r"config\.json: not an encoder configuration") as caught:
        load_config(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: cannot read the encoder"):
        load_config(tmp_path)


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_an_unknown_version_fails_by_name(folder: Path, version: object) -> None:
    rewrite(folder, format_version=version)
    with pytest.raises(FormatVersionError, match=r"encoder format .*--upgrade chgdb"):
        load_config(folder)


BEYOND_REASON: list[dict[str, Any]] = [
    {"id": "../elsewhere"},
    {"id": 3},
    {"kind": "os.system"},
    {"kind": ["periodic"]},
    {"surprise": 1},
    {"net": None},
    {"net": {}},
    {"net": {**NET, "hook": "x"}},
    {"net": {**NET, "widths": [10**9, 3, 4]}},
    {"net": {**NET, "widths": [2.0, 3, 4]}},
    {"net": {**NET, "widths": [True, 3, 4]}},
    {"net": {**NET, "widths": "234"}},
    {"net": {**NET, "widths": [0, 3, 4]}},
    {"net": {**NET, "widths": []}},
    {"net": {**NET, "widths": [1] * 1000}},
    {"net": {**NET, "encoder_blocks": [1, 1]}},
    {"net": {**NET, "decoder_blocks": [10**6, 1, 1]}},
    {"net": {**NET, "decoder_blocks": [-1, 1, 1]}},
    {"net": {**NET, "latent_channels": 10**9}, "latent_shape": [10**9, 16, 16, 16]},
    {"latent_shape": None},
    {"latent_shape": [4, 16, 16]},
    {"latent_shape": [4, 32, 32, 32]},
    {"latent_shape": [5, 16, 16, 16]},
    {"weights_sha256": 5},
    {"training": []},
]


@pytest.mark.parametrize("changes", BEYOND_REASON)
def test_a_configuration_beyond_reason(folder: Path, changes: dict[str, Any]) -> None:
    rewrite(folder, **changes)
    with pytest.raises(ModelError, match=r"config\.json: not an encoder configuration") as caught:
        load_config(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("stages", "edge"), [(4, 8), (3, 16), (2, 32)])
def test_the_latent_follows_from_the_stages(stages: int, edge: int) -> None:
    net = {"latent_channels": edge, "widths": [2] * stages}
    EncoderConfig("x", "paper", (edge, edge, edge, edge), net)
    with pytest.raises(InputError, match="latents of"):
        EncoderConfig("x", "paper", (edge, edge, edge, 2 * edge), net)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_decoder_only_is_true_or_false_of_a_paper_network(value: object) -> None:
    net = {"latent_channels": 4, "widths": [2, 2, 2]}
    assert not EncoderConfig("x", "paper", (4, 16, 16, 16), net).decoder_only
    assert EncoderConfig("x", "paper", (4, 16, 16, 16), {**net, "decoder_only": True}).decoder_only
    with pytest.raises(InputError, match="arguments"):
        EncoderConfig("x", "paper", (4, 16, 16, 16), {**net, "decoder_only": value})
    with pytest.raises(InputError, match="arguments"):
        EncoderConfig("x", "periodic", (4, 16, 16, 16), {**NET, "decoder_only": True})


def test_weights_must_be_those_of_the_configuration(folder: Path) -> None:
    config = load_config(folder)
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(ModelError, match=r"not those that config\.json names"):
        load_tensors(folder, config)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(ModelError, match="cannot read the weights"):
        load_tensors(folder, config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"\xff" * 64, "damaged"),
        (b"\x80\x04cos\nsystem\n.", "damaged"),
        (save({"a": torch.zeros(3)})[:-3], "damaged"),
        (save({"a": torch.zeros(3, dtype=torch.int64)}), "float32"),
        (save({"a": torch.tensor([1.0, float("nan")])}), "finite"),
    ],
)
def test_damaged_weights_with_a_matching_hash(folder: Path, content: bytes, message: str) -> None:
    (folder / WEIGHTS_FILE).write_bytes(content)
    rewrite(folder, weights_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(ModelError, match=message):
        load_tensors(folder, load_config(folder))
