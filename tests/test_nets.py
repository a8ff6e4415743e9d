"""The networks: shapes, symmetry on the torus, and the published layer list."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chgdb.nets import Autoencoder, PaperNet, PeriodicNet, TabularNet


def tiny_periodic(**changes: object) -> PeriodicNet:
    """With weights that are not those of the start, so that every layer counts."""
    torch.manual_seed(0)
    arguments = {
        "latent_channels": 3,
        "widths": (4, 5),
        "encoder_blocks": (1, 1),
        "decoder_blocks": (1, 2),
        **changes,
    }
    net = PeriodicNet(**arguments)  # type: ignore[arg-type]
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def test_half_of_the_published_network_decodes_as_the_whole() -> None:
    whole, half = PaperNet(5, (2, 3, 2)), PaperNet(5, (2, 3, 2), decoder_only=True)
    weights = whole.state_dict()
    half.load_state_dict({name: weights[name] for name in half.state_dict()})
    assert set(weights) - set(half.state_dict()) == {
        name for name in weights if name.startswith(("down.", "to_latent."))
    }
    z = torch.rand(1, 5, 2, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(half.decode(z), whole.decode(z), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("net", "channels", "factor"),
    [
        (tiny_periodic(), 3, 4),
        (PaperNet(5, (2, 3, 2)), 5, 8),
        (PaperNet(2, (2,)), 2, 2),
    ],
)
def test_shapes(net: Autoencoder, channels: int, factor: int) -> None:
    assert net.factor == factor
    x = torch.rand(2, 1, 2 * factor, factor, 3 * factor)
    before = x.clone()
    with torch.no_grad():
        z = net.encode(x)
        y = net.decode(z)
        torch.testing.assert_close(net(x), y)
    assert z.shape == (2, channels, 2, 1, 3)
    assert y.shape == x.shape
    assert z.dtype == y.dtype == torch.float32
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("steps", [(1, 0, 0), (0, -1, 0), (2, 1, 3)])
def test_the_periodic_net_commutes_with_shifts(steps: tuple[int, int, int]) -> None:
    net = tiny_periodic().double()
    x = torch.rand(1, 1, 12, 8, 16, dtype=torch.float64)
    moved = torch.roll(x, tuple(net.factor * s for s in steps), (2, 3, 4))
    with torch.no_grad():
        z, z_moved = net.encode(x), net.encode(moved)
        torch.testing.assert_close(z_moved, torch.roll(z, steps, (2, 3, 4)))
        assert not torch.allclose(z_moved, z)
        torch.testing.assert_close(
            net.decode(z_moved),
            torch.roll(net.decode(z), tuple(net.factor * s for s in steps), (2, 3, 4)),
        )


def test_the_periodic_latent_lies_between_minus_one_and_one() -> None:
    with torch.no_grad():
        z = tiny_periodic().encode(1e4 * torch.randn(1, 1, 8, 8, 8))
    assert z.abs().max() < 1
    assert z.abs().max() > 0.9


def test_the_periodic_net_starts_as_an_orthogonal_block_transform() -> None:
    torch.manual_seed(1)
    net = PeriodicNet(16, (8, 16), (1, 1), (1, 1))
    x = torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        linear = net.encoder(x)
        once = net.decoder(linear)
        twice = net.decoder(net.encoder(once))
    torch.testing.assert_close(twice, once)  # a projection
    assert float(once.norm()) <= float(x.norm())


def test_numbers_of_blocks_must_fit_the_widths() -> None:
    with pytest.raises(ValueError, match="shorter"):
        PeriodicNet(4, (4, 4, 4), (1, 1), (1, 1, 1))


PUBLISHED = [
    # encoder, arXiv 2605.07227: 128^3 -> 64^3 -> 32^3 -> 16^3
    (1, 16),
    (16, 32),
    (32, 32),
    (32, 16),  # the latent
    # decoder
    (16, 32),
    (32, 32),
    (32, 16),
    (16, 1),
]


def test_the_paper_net_has_the_published_layers() -> None:
    convolutions = [m for m in PaperNet().modules() if isinstance(m, nn.Conv3d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == PUBLISHED
    assert all(m.kernel_size == (3, 3, 3) for m in convolutions)
    assert all(m.padding == (1, 1, 1) for m in convolutions)
    parameters = sum(27 * c_in * c_out + c_out for c_in, c_out in PUBLISHED)
    assert sum(p.numel() for p in PaperNet().parameters()) == parameters == 111_633


def test_the_paper_net_does_what_its_layers_say() -> None:
    """The forward pass written once more, layer by layer."""
    torch.manual_seed(2)
    net = PaperNet()
    weights = dict(net.named_parameters())

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv3d(
            x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding="same"
        )

    x = torch.rand(1, 1, 16, 8, 8)
    with torch.no_grad():
        z = x
        for i in range(3):
            z = nn.MaxPool3d(2)(conv(f"down.{i}", z).clamp(min=0))
        z = conv("to_latent", z).clamp(min=0)
        y = z
        for i in range(3):
            y = conv(f"up.{i}", y).clamp(min=0)
            for axis in (2, 3, 4):
                y = y.repeat_interleave(2, dim=axis)
        y = conv("to_density", y)
        torch.testing.assert_close(net.encode(x), z)
        torch.testing.assert_close(net.decode(z), y)


def test_the_latent_of_the_paper_is_16_cubed() -> None:
    with torch.device("meta"):
        net = PaperNet()
        box = torch.empty(1, 1, 128, 128, 128)
        assert net.encode(box).shape == (1, 16, 16, 16, 16)
        assert net(box).shape == box.shape


def test_elements_that_are_not_there_have_no_say() -> None:
    torch.manual_seed(0)
    net = TabularNet(3, 5, 2, width=8, embedding=4).eval()
    with torch.no_grad():
        for layer in (net.shares, net.roots, net.direct):
            layer.weight[:, 4] = 0.0
    x = torch.zeros(1, 3)
    fractions = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0]])
    other = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.7]])
    with torch.no_grad():
        assert net(x, fractions).shape == (1, 2)
        torch.testing.assert_close(net(x, fractions), net(x, other))
        assert not torch.allclose(net(x, fractions), net(x, fractions.flip(1)))
