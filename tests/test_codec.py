"""Density <-> latent: one contract for both kinds of encoder, then what is special to each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analytic import SKEW, crystal
from numpy.typing import NDArray
from torch import nn

from chgdb.arrays import pack, unpack
from chgdb.codec import (
    BOX,
    Codec,
    PaperCodec,
    PeriodicCodec,
    build_codec,
    build_net,
    load_codec,
    select_device,
    signed_sqrt,
    signed_square,
)
from chgdb.density import ChargeDensity, Grid, Latent, Structure
from chgdb.errors import InputError, ModelError
from chgdb.grid import fourier_resample, vasp_grid
from chgdb.metrics import compare
from chgdb.weights import EncoderConfig, save_encoder

ELECTRONS = 1e-9
"""Relative error of the electron count that decoding may make."""
BATCH = 1e-5
"""Relative error that the order of sums in a batch may make, float32."""

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_config(kind: str, edge: int = 16) -> EncoderConfig:
    stages = {8: 4, 16: 3, 32: 2}[edge]
    net: dict[str, object] = {"latent_channels": edge, "widths": [2, 4, 4, 6][:stages]}
    if kind == "periodic":
        net |= {"encoder_blocks": [1] * stages, "decoder_blocks": [1] * stages}
    return EncoderConfig(f"{kind}-{edge}", kind, (edge, edge, edge, edge), net)


def tiny_codec(kind: str, edge: int = 16) -> Codec:
    """Random weights in every layer."""
    torch.manual_seed(3)
    config = tiny_config(kind, edge)
    net = build_net(config)
    with torch.no_grad():
        for parameter in net.parameters():
            if kind == "periodic":
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
        *_, output_bias = net.parameters()
        output_bias.fill_(0.2)  # so that there are electrons
    return build_codec(config, net)


def relative(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float(np.abs(first - second).max() / np.abs(second).max())


def other_crystal() -> ChargeDensity:
    lattice = np.array([[0.0, 2.7, 2.7], [2.7, 0.0, 2.7], [2.7, 2.7, 0.0]])
    return crystal((18, 18, 18), lattice=lattice, coords=((0, 0, 0), (0.25, 0.25, 0.25)))


def noisy(density: ChargeDensity) -> ChargeDensity:
    """Slightly negative somewhere, as files are."""
    values = density.values - 1.2 * density.values.min()
    assert values.min() < 0
    return ChargeDensity(values, density.structure)


def check_contract(codec: Codec, densities: list[ChargeDensity], grids: list[Grid | None]) -> None:
    """What every encoder must do, on cells of which at least two share a grid."""
    before = [density.values.copy() for density in densities]
    latents = codec.encode(densities)
    codes = [latent.values.copy() for latent in latents]
    structures = [density.structure for density in densities]
    decoded = codec.decode(latents, structures, grids)
    assert len(latents) == len(decoded) == len(densities)
    for i, (density, latent, result) in enumerate(zip(densities, latents, decoded, strict=True)):
        np.testing.assert_array_equal(density.values, before[i])
        np.testing.assert_array_equal(latent.values, codes[i])
        assert latent.values.shape == codec.config.latent_shape == codec.latent_storage.shape
        assert latent.values.dtype == np.float32
        assert latent.work_grid == codec.work_grid(density.structure.lattice)
        assert latent.n_electrons == density.n_electrons
        assert result.grid == (grids[i] or latent.work_grid)
        assert result.structure is density.structure
        assert result.n_electrons == pytest.approx(density.n_electrons, rel=ELECTRONS)
        (alone,) = codec.encode([density])
        assert relative(alone.values, latent.values) < BATCH
        (single,) = codec.decode([latent], [density.structure], [grids[i]])
        assert relative(single.values, result.values) < BATCH
        packed = pack(latent.values, *codec.storage)
        assert np.isfinite(unpack(packed, *codec.storage)).all()
    assert not np.allclose(latents[0].values, latents[1].values), "the order is kept"


@pytest.mark.parametrize("edge", [8, 16, 32])
def test_contract_of_periodic(edge: int) -> None:
    same_cell = ChargeDensity(crystal().values[::-1, :, :] + 0.1, crystal().structure)
    densities = [crystal(), other_crystal(), noisy(same_cell), crystal((9, 10, 11))]
    check_contract(tiny_codec("periodic", edge), densities, [None, (11, 30, 8), (40, 40, 41), None])


@pytest.mark.parametrize("edge", [8, 16, 32])
def test_contract_of_paper(edge: int) -> None:
    densities = [crystal(), noisy(other_crystal())] if edge == 16 else [crystal(), other_crystal()]
    check_contract(tiny_codec("paper", edge), densities, [(11, 30, 8), None])


def test_decoding_on_another_grid_is_resampling() -> None:
    codec = tiny_codec("periodic")
    density = crystal()
    (latent,) = codec.encode([density])
    (coarse,) = codec.decode([latent], [density.structure])
    (fine,) = codec.decode([latent], [density.structure], [(45, 50, 54)])
    np.testing.assert_allclose(fine.values, fourier_resample(coarse.values, fine.grid), atol=1e-12)


def test_the_density_comes_back() -> None:
    """Untrained, linear and with as many channels as points: only the resampling is left."""
    torch.manual_seed(0)
    config = EncoderConfig(
        "wide",
        "periodic",
        (64, 32, 32, 32),
        {
            "latent_channels": 64,
            "widths": [8, 64],
            "encoder_blocks": [0, 0],
            "decoder_blocks": [0, 0],
        },
    )
    codec = build_codec(config, build_net(config))
    linear = codec.net.encoder
    codec.net.encode = lambda x: linear(x)  # type: ignore[method-assign,operator]
    density = crystal()
    (decoded,) = codec.decode(codec.encode([density]), [density.structure], [density.grid])
    assert compare(decoded, density).nmae < 0.05


# --- periodic -------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", [8, 16, 32])
def test_moving_the_density_by_whole_blocks_rolls_the_latent(edge: int) -> None:
    codec = tiny_codec("periodic", edge)
    grid = codec.work_grid(SKEW)
    density = crystal(grid)
    factor = BOX // edge
    steps = (1, -1, 2)
    moved = np.roll(density.values, [factor * s for s in steps], (0, 1, 2))
    first, second = codec.encode([density, ChargeDensity(moved, density.structure)])
    extent = codec.latent_storage.extent(grid)
    corner = (slice(None), *(slice(n) for n in extent))
    rolled = np.roll(first.values[corner], steps, (1, 2, 3))
    np.testing.assert_allclose(second.values[corner], rolled, atol=2e-6)
    assert not np.allclose(rolled, first.values[corner], atol=1e-3)


@pytest.mark.parametrize("edge", [8, 16, 32])
def test_the_cell_fills_its_extent_and_no_more(edge: int) -> None:
    codec = tiny_codec("periodic", edge)
    (latent,) = codec.encode([crystal()])
    extent = codec.latent_storage.extent(latent.work_grid)
    factor = codec.net.factor
    assert factor == BOX // edge
    assert extent == tuple(n // factor for n in latent.work_grid)
    filled = np.argwhere(np.abs(latent.values).max(axis=0) > 0)
    np.testing.assert_array_equal(filled.max(axis=0) + 1, extent)
    assert np.abs(latent.values).max() < 1
    inside = latent.values[(slice(None), *(slice(n) for n in extent))]
    assert (inside != 0).mean() > 0.99


def refining(steps: int) -> Codec:
    codec = tiny_codec("periodic")
    codec.config = replace(codec.config, refine_steps=steps)
    return codec


def stored_nmae(codec: Codec, density: ChargeDensity) -> float:
    """Error of the network's own output for a latent that was stored, before electrons are set."""
    (latent,) = codec.encode([density])
    values = unpack(pack(latent.values, *codec.storage), *codec.storage)
    (output,) = codec.decode_box([replace(latent, values=values)])
    target = signed_square(codec.to_field(density).astype(np.float64))
    return float(
        np.abs(signed_square(output.astype(np.float64)) - target).sum() / np.abs(target).sum()
    )


def test_refining_lowers_the_error_of_the_stored_latent() -> None:
    for density in (crystal((20, 24, 18)), other_crystal()):
        assert stored_nmae(refining(12), density) < stored_nmae(refining(0), density) - 1e-4


def test_refining_keeps_the_best_latent_it_came_by() -> None:
    density = other_crystal()
    errors = [stored_nmae(refining(steps), density) for steps in (0, 1)]
    assert errors[1] <= errors[0] + 1e-7


def test_refined_latents_keep_the_contract() -> None:
    densities = [other_crystal(), noisy(other_crystal()), crystal((20, 24, 18))]
    check_contract(refining(3), densities, [None, (9, 10, 11), None])


def test_refining_commutes_with_a_shift_of_whole_latent_points() -> None:
    codec = refining(3)
    density = crystal(codec.work_grid(SKEW), lattice=SKEW)
    moved = ChargeDensity(np.roll(density.values, 8, axis=1), density.structure)
    first, second = codec.encode([density, moved])
    extent = (slice(None), *(slice(n // 8) for n in first.work_grid))
    rolled = np.roll(first.values[extent], 1, axis=2)
    assert relative(second.values[extent], rolled) < 1e-3


def test_what_lies_beyond_the_extent_is_ignored() -> None:
    codec = tiny_codec("periodic")
    density = crystal()
    (latent,) = codec.encode([density])
    values = latent.values.copy()
    values[:, codec.latent_storage.extent(latent.work_grid)[0] :] = 0.7
    first, second = codec.decode([latent, replace(latent, values=values)], [density.structure] * 2)
    assert relative(first.values, second.values) < BATCH


def test_the_periodic_input_is_scaled_by_its_mean() -> None:
    codec = tiny_codec("periodic")
    density = noisy(crystal())
    tenfold = ChargeDensity(10 * density.values, density.structure)
    first, second = codec.encode([density, tenfold])
    np.testing.assert_allclose(first.values, second.values, atol=1e-6)
    assert second.n_electrons == pytest.approx(10 * first.n_electrons)
    field = codec.to_field(density)
    assert field.dtype == np.float32
    assert np.mean(signed_square(field.astype(np.float64))) == pytest.approx(1.0, rel=1e-6)
    assert field.min() < 0


@pytest.mark.parametrize(
    ("edge", "points", "coarse"),
    [(2.0, 16, False), (17.5, 128, False), (17.6, 128, True), (400.0, 128, True)],
)
def test_long_cells_are_coarse_in_periodic(edge: float, points: int, coarse: bool) -> None:
    codec = tiny_codec("periodic")
    lattice = np.diag([edge, 3.0, 3.0])
    assert codec.work_grid(lattice) == (points, 24, 24)
    assert codec.is_coarse(lattice) is coarse


def test_a_cell_longer_than_the_box_is_encoded_on_128_points() -> None:
    codec = tiny_codec("periodic")
    density = crystal((150, 12, 12), lattice=np.diag([20.0, 2.0, 2.0]))
    (latent,) = codec.encode([density])
    assert latent.work_grid == (128, 16, 16)
    assert codec.latent_storage.extent(latent.work_grid) == (16, 2, 2)
    (decoded,) = codec.decode([latent], [density.structure], [density.grid])
    assert decoded.n_electrons == pytest.approx(density.n_electrons, rel=ELECTRONS)


def test_signed_powers_are_inverse() -> None:
    values = np.array([-4.0, -0.25, 0.0, 0.25, 9.0])
    np.testing.assert_allclose(signed_sqrt(values), [-2, -0.5, 0, 0.5, 3])
    np.testing.assert_allclose(signed_square(signed_sqrt(values)), values)


# --- paper ----------------------------------------------------------------------------------


def test_the_paper_pads_vasp_s_grid_with_zeros_to_128() -> None:
    codec = tiny_codec("paper")
    density = crystal()
    seen: list[torch.Tensor] = []

    def encode(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.zeros(1, 16, 16, 16, 16)

    codec.net.encode = encode  # type: ignore[method-assign]
    (latent,) = codec.encode([density])
    (x,) = seen
    assert x.shape == (1, 1, 128, 128, 128)
    assert latent.work_grid == vasp_grid(SKEW)
    corner = tuple(slice(n) for n in latent.work_grid)
    expected = fourier_resample(density.values, latent.work_grid)
    np.testing.assert_allclose(x[0, 0][corner].numpy(), expected, rtol=1e-6)
    assert float(x.sum(dtype=torch.float64)) == pytest.approx(expected.sum(), rel=1e-6)
    assert int((x != 0).sum()) == expected.size


def test_long_cells_are_coarse_in_paper() -> None:
    codec = tiny_codec("paper")
    assert isinstance(codec, PaperCodec)
    assert not codec.is_coarse(np.eye(3) * 8.0)
    long = np.diag([8.0, 8.0, 30.0])
    assert codec.is_coarse(long)
    assert max(codec.work_grid(long)) == 128


# --- what does not fit ------------------------------------------------------------------------


def test_a_density_without_electrons_is_refused() -> None:
    density = crystal()
    codec = tiny_codec("periodic")
    for values in (density.values * 0, -density.values):
        with pytest.raises(InputError, match="positive number"):
            codec.encode([ChargeDensity(values, density.structure)])


@pytest.mark.parametrize("grid", [(0, 24, 24), (12, 24, 24), (136, 24, 24)])
def test_a_latent_on_an_impossible_grid_is_refused(grid: Grid) -> None:
    codec = tiny_codec("periodic")
    latent = Latent(np.zeros((16, 16, 16, 16), np.float32), grid, 8.0)
    with pytest.raises(InputError, match="does not encode on a grid"):
        codec.decode([latent], [crystal().structure])


def test_a_latent_of_another_shape_is_refused() -> None:
    latent = Latent(np.zeros((8, 8, 8, 8), np.float32), (32, 32, 32), 8.0)
    codec = tiny_codec("periodic")
    with pytest.raises(InputError, match="has shape"):
        codec.decode([latent], [crystal().structure])
    with pytest.raises(InputError, match="as many of each"):
        codec.decode([latent], [])


def test_a_latent_that_decodes_to_nothing() -> None:
    codec = tiny_codec("paper")
    nn.init.zeros_(codec.net.to_density.weight)  # type: ignore[union-attr,arg-type]
    nn.init.constant_(codec.net.to_density.bias, -1.0)  # type: ignore[union-attr,arg-type]
    latent = Latent(np.zeros((16, 16, 16, 16), np.float32), (20, 20, 20), 8.0)
    with pytest.raises(ModelError, match="to no electrons"):
        codec.decode([latent], [crystal().structure])


def test_batches_are_split_so_that_they_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = tiny_codec("periodic")
    sizes: list[int] = []
    encode = codec.net.encode

    def counted(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return encode(x)

    codec.net.encode = counted  # type: ignore[method-assign]
    monkeypatch.setattr("chgdb.codec._POINTS_PER_PASS", 3 * 32 * 40 * 40)
    densities = [crystal(codec.work_grid(SKEW))] * 8
    latents = codec.encode(densities)
    assert len(latents) == 8
    assert sum(sizes) == 8
    assert 1 < max(sizes) <= 4


@pytest.mark.parametrize("name", ["", "tpu", "cuda:", "cuda:x", "cuda:9", "cpu:3", "meta"])
def test_impossible_devices(name: str) -> None:
    with pytest.raises(InputError, match="--device"):
        select_device(name)


def test_devices() -> None:
    assert select_device("cpu") == "cpu"
    assert select_device("auto") in ("cpu", "cuda")


# --- on disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["periodic", "paper"])
def test_a_saved_encoder_is_the_same_encoder(tmp_path: Path, kind: str) -> None:
    codec = tiny_codec(kind)
    save_encoder(tmp_path, codec.config, codec.net.state_dict())
    loaded = load_codec(tmp_path, "cpu")
    assert type(loaded) is type(codec)
    for name, tensor in codec.net.state_dict().items():
        torch.testing.assert_close(loaded.net.state_dict()[name], tensor, rtol=0, atol=0)
    assert not loaded.net.training
    if isinstance(codec, PeriodicCodec):
        (first,), (second,) = codec.encode([crystal()]), loaded.encode([crystal()])
        np.testing.assert_array_equal(first.values, second.values)


def test_a_decoder_alone_decodes_and_says_why_it_does_not_encode(tmp_path: Path) -> None:
    whole = tiny_codec("paper")
    net = {**whole.config.net, "decoder_only": True}
    config = EncoderConfig("half", "paper", whole.config.latent_shape, net)
    assert config.decoder_only
    weights = whole.net.state_dict()
    decoder = {name: w for name, w in weights.items() if name.startswith(("up.", "to_density."))}
    save_encoder(tmp_path / "half", config, decoder)
    half = load_codec(tmp_path / "half", "cpu")
    latents = whole.encode([crystal()])
    for one, other in zip(half.decode_box(latents), whole.decode_box(latents), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ModelError, match=r"half: the weights of the encoder are not known") as said:
        half.encode([crystal()])
    assert "\n" not in str(said.value)
    # what the configuration says must be there is there, and nothing else
    save_encoder(tmp_path / "more", config, weights)
    save_encoder(tmp_path / "less", whole.config, decoder)
    for name in ("more", "less"):
        with pytest.raises(ModelError, match="do not fit"):
            load_codec(tmp_path / name, "cpu")


def test_a_large_configuration_costs_nothing_without_its_weights(tmp_path: Path) -> None:
    """Within the limits of a configuration: some 10^11 weights."""
    net = {
        "latent_channels": 16,
        "widths": [1024] * 3,
        "encoder_blocks": [16] * 3,
        "decoder_blocks": [16] * 3,
    }
    config = EncoderConfig("huge", "periodic", (16, 16, 16, 16), net)
    save_encoder(tmp_path, config, {"encoder.0.weight": torch.zeros(3)})
    with pytest.raises(ModelError, match="do not fit"):
        load_codec(tmp_path, "cpu")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_encoder(tmp_path, tiny_config("periodic"), tiny_codec("paper").net.state_dict())
    with pytest.raises(ModelError, match="do not fit") as caught:
        load_codec(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


# --- the shipped encoder ------------------------------------------------------------------------

SHIPPED_NMAE = 6.0
"""%, the bound that docs/benchmarks.md states for one material."""


def test_the_shipped_encoder_encodes_what_it_decoded() -> None:
    """A density that came out of the shipped store goes in and out again."""
    from chgdb.database import Database

    codec = load_codec(ROOT / "models/periodic-16", "cpu")
    database = Database(ROOT / "store")
    record = next(iter(database.get(database.search(limit=1)["id"].tolist())))
    structure: Structure = record.structure
    (density,) = codec.decode([record.latent()], [structure], [record.grid])
    (latent,) = codec.encode([density])
    values = unpack(pack(latent.values, *codec.storage), *codec.storage)
    (again,) = codec.decode([replace(latent, values=values)], [structure], [density.grid])
    error = compare(again, density)
    assert error.nmae < SHIPPED_NMAE
    assert abs(error.electron_error) < ELECTRONS * density.n_electrons
