"""The networks on tensors: shapes, attention, and what the paper's widths amount to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from chgdb.property_nets import PAPER_WIDTHS, ChannelAttention, PropertyNet, SpatialAttention

TINY: dict[str, Any] = {"channels": 4, "widths": (4, 8), "dense": (6, 5), "head": (7,)}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def latents(rows: int = 3, edge: int = 8) -> torch.Tensor:
    return torch.randn(rows, 4, edge, edge, edge)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("composition", [0, 9])
@pytest.mark.parametrize("head", [(), (7,), (7, 5, 4)])
def test_shapes(attention: bool, composition: int, head: tuple[int, ...]) -> None:
    arguments = {**TINY, "head": head}
    net = PropertyNet(**arguments, attention=attention, composition=composition, targets=2)
    inputs = [latents(), torch.randn(3, 9)] if composition else [latents()]
    output = net(*inputs)
    assert output.shape == (3, 2)
    output.sum().backward()
    for name, value in net.named_parameters():
        assert value.grad is not None, name
        assert bool(value.grad.isfinite().all()), name


def test_the_paper_has_eight_million_numbers_and_the_default_a_sixteenth() -> None:
    def count(widths: tuple[int, ...]) -> int:
        net = PropertyNet(widths=widths, composition=138)
        return sum(value.numel() for value in net.parameters())

    assert 8.0e6 < count(PAPER_WIDTHS) < 8.6e6
    assert 0.5e6 < count((16, 32, 64)) < 0.7e6


def test_a_row_depends_on_no_other_when_predicting() -> None:
    net = PropertyNet(**TINY, composition=9).eval()
    x, y = latents(5), torch.randn(5, 9)
    with torch.inference_mode():
        whole = net(x, y)
        parts = torch.cat([net(x[i : i + 1], y[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(whole, parts)


def test_the_input_is_not_changed() -> None:
    x, y = latents(), torch.randn(3, 9)
    before = x.clone(), y.clone()
    PropertyNet(**TINY, composition=9)(x, y)
    torch.testing.assert_close((x, y), before, rtol=0, atol=0)


def test_channel_attention_weighs_channels() -> None:
    attention = ChannelAttention(32, ratio=16)
    x = torch.randn(2, 32, 3, 4, 5)
    weights = attention(x)
    assert weights.shape == (2, 32, 1, 1, 1)
    assert bool(((weights > 0) & (weights < 1)).all())
    # where a point lies has no influence
    torch.testing.assert_close(attention(x.flip(2).roll(1, 4)), weights)


def test_channel_attention_of_few_channels() -> None:
    assert ChannelAttention(3).first.out_features == 1


def test_spatial_attention_weighs_points() -> None:
    attention = SpatialAttention()
    x = torch.randn(2, 6, 5, 5, 5)
    weights = attention(x)
    assert weights.shape == (2, 1, 5, 5, 5)
    assert bool(((weights > 0) & (weights < 1)).all())
    # which channel holds what has no influence
    torch.testing.assert_close(attention(x.flip(1)), weights)


def test_attention_of_open_gates_is_the_plain_network() -> None:
    plain = PropertyNet(**TINY, attention=False).eval()
    gated = PropertyNet(**TINY, attention=True).eval()
    missing, unexpected = gated.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(".channel." in name or ".spatial." in name for name in missing)
    for name, value in gated.named_parameters():
        if ".channel." in name or ".spatial." in name:
            with torch.no_grad():
                value.fill_(30.0 if name.endswith("second.bias") else 0.0)
    x = latents()
    with torch.inference_mode():
        torch.testing.assert_close(gated(x), plain(x))


@pytest.mark.parametrize(
    "arguments",
    [{"widths": ()}, {"widths": (4, 0)}, {"channels": 0}, {"head": (0,)}, {"composition": -1}],
)
def test_impossible_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        PropertyNet(**{**TINY, **arguments})


def test_the_composition_goes_with_its_branch() -> None:
    with pytest.raises(ValueError, match="branch"):
        PropertyNet(**TINY, composition=9)(latents())
    with pytest.raises(ValueError, match="branch"):
        PropertyNet(**TINY)(latents(), torch.randn(3, 9))
