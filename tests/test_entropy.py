"""Whole numbers through the range coder, and a decoder written from this text alone.

The code is a row of words w0 w1 ... of 32 bits, the highest byte first; zero bytes follow its end.
All arithmetic is of whole numbers, modulo 2^64 where a difference is taken.

State of the decoder: `lower` = 0, `range` = 2^64 - 1, `point` = w0 * 2^32 + w1.

A model splits 0 ... 2^24 - 1 among its symbols: s takes the numbers from C(s) to C(s + 1) - 1, with
C(0) = 0 and C(number of symbols) = 2^24. To decode a symbol:

    scale    = range >> 24
    quantile = (point - lower) mod 2^64 // scale       below 2^24, or the code is damaged
    s        = the symbol with C(s) <= quantile < C(s + 1)
    lower    = (lower + scale * C(s)) mod 2^64
    range    = scale * (C(s + 1) - C(s))
    if range < 2^32:                                   once is enough
        lower = lower * 2^32 mod 2^64
        range = range * 2^32
        point = (point * 2^32 mod 2^64) + next word

- Uniform of size n: C(s) = s * (2^24 // n) for s < n, so the last symbol has what is left over.
  n = 1 takes nothing from the code.
- Categorical of n symbols with probabilities p(s) = K(s) / 65536, K whole and of sum 65536:
  C(s) = floor((K(0) + ... + K(s - 1)) * (2^24 - n) / 65536) + s.

The 22 tables K(t, s), of 32 symbols: s = 0 ... 30 stands for k = s - 15, and 31 is the escape. With
F(z) = 1 / (1 + exp(-z)) and width(t) = 2^(t/3 - 4.4) * sqrt(3) / pi,
K(t, s) = floor(65000 * (F((k + 1/2) / width) - F((k - 1/2) / width))) + 2 and K(t, 31) = 64; what
is missing to 65536 is added to k = 0.

A natural number: Uniform(32) in turn, g0 g1 ...; the lowest four bits of each are four bits of the
number, the lowest first, and g >= 16 says that another follows. A whole number n is the natural
number 2 n, or -2 n - 1 where n is negative.

Numbers with scales: each scale is halved until it is at most 4; how often, is its `shift`. Its
table is that whose 2^(t/3 - 4.4) is nearest to what is left, on a logarithmic axis (the first for
a scale of 0). Then follow
 1. for every table that occurs, ascending: the symbols of its numbers, in their order;
 2. for every shift that occurs, ascending, without 0: the `shift` low bits of its numbers, in
    pieces of 16, the lowest first: Uniform(2^width) for the first piece of all its numbers, then
    the second ...; the last piece has the width that is left;
 3. for every symbol that is the escape, in the order of the numbers: the whole number instead of k.
A number is k * 2^shift + its low bits.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from decimal import ROUND_FLOOR, Decimal, localcontext
from functools import cache
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chgdb import entropy
from chgdb.entropy import Reader, Writer, bits
from chgdb.errors import StoreError

ROUNDING_MARGIN = 1e-6
"""Least distance of 65000 p from a whole number: 10^4 times the rounding of its computation."""
THRESHOLD_MARGIN = 1e-9
"""Least relative distance of a scale from where its table changes."""

LARGE = 2**60
sizes = st.floats(-12, 12).map(lambda exponent: 10.0**exponent)
whole = st.one_of(
    st.integers(-LARGE, LARGE),
    st.integers(-40, 40),
    st.builds(lambda e, sign: sign * 2**e, st.integers(0, 60), st.sampled_from([-1, 1])),
)
pairs = st.lists(st.tuples(whole, sizes), max_size=60)


def arrays(pairs: Sequence[tuple[int, float]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    return np.array([n for n, _ in pairs], np.int64), np.array([s for _, s in pairs], np.float64)


def laplace(rng: np.random.Generator, scales: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(rng.laplace(size=len(scales)) * scales / math.sqrt(2)).astype(np.int64)


# ---------------------------------------------------------------- the decoder of the text above


@cache
def exact_tables() -> tuple[tuple[int, ...], ...]:
    """K(t, s) in decimal arithmetic of 60 digits."""
    with localcontext() as context:
        context.prec = 60
        return tuple(
            tuple(int(x.to_integral_value(ROUND_FLOOR)) + 2 for x in exact_weights(t))
            for t in range(22)
        )


def exact_weights(t: int) -> list[Decimal]:
    """65000 p of k = -15 ... 15."""
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
    width = Decimal(2) ** (Decimal(5 * t - 66) / 15) * Decimal(3).sqrt() / pi

    def logistic(z: Decimal) -> Decimal:
        return 1 / (1 + (-z).exp())

    half = Decimal("0.5")
    return [
        65000 * (logistic((k + half) / width) - logistic((k - half) / width))
        for k in range(-15, 16)
    ]


@cache
def cumulative(t: int) -> list[int]:
    """C(0) ... C(32) of a table."""
    k = [*exact_tables()[t], 64]
    k[15] += 65536 - sum(k)
    return [(total * (2**24 - 32) >> 16) + s for s, total in enumerate(accumulate(k, initial=0))]


class TextDecoder:
    """The algorithm of this module's text."""

    def __init__(self, data: bytes) -> None:
        data += bytes(-len(data) % 4)
        self._words = [int.from_bytes(data[i : i + 4], "big") for i in range(0, len(data), 4)]
        self._words.reverse()
        self._lower, self._range = 0, 2**64 - 1
        self._point = self._word() << 32
        self._point += self._word()

    def _word(self) -> int:
        return self._words.pop() if self._words else 0

    def _quantile(self) -> int:
        quantile = (self._point - self._lower) % 2**64 // (self._range >> 24)
        assert quantile < 2**24
        return quantile

    def _take(self, start: int, stop: int) -> None:
        scale = self._range >> 24
        self._lower = (self._lower + scale * start) % 2**64
        self._range = scale * (stop - start)
        if self._range < 2**32:
            self._lower = self._lower * 2**32 % 2**64
            self._range *= 2**32
            self._point = self._point * 2**32 % 2**64 + self._word()

    def uniform(self, n: int) -> int:
        if n == 1:
            return 0
        part = 2**24 // n
        s = min(self._quantile() // part, n - 1)
        self._take(s * part, (s + 1) * part if s < n - 1 else 2**24)
        return s

    def categorical(self, limits: list[int]) -> int:
        s = bisect_right(limits, self._quantile()) - 1
        self._take(limits[s], limits[s + 1])
        return s

    def natural(self) -> int:
        number, place = 0, 0
        while True:
            group = self.uniform(32)
            number += group % 16 << place
            place += 4
            if group < 16:
                return number

    def integer(self) -> int:
        number = self.natural()
        return -(number + 1) // 2 if number % 2 else number // 2

    def numbers(self, scales: Sequence[float]) -> list[int]:
        shifts, tables = [], []
        for scale in scales:
            shift, rest = 0, scale
            while rest > 4:
                shift, rest = shift + 1, rest / 2
            shifts.append(shift)
            tables.append(min(max(round(3 * (math.log2(rest) + 4.4)), 0), 21))
        symbols = [0] * len(scales)
        for t in sorted(set(tables)):
            for i in (i for i, other in enumerate(tables) if other == t):
                symbols[i] = self.categorical(cumulative(t))
        low = [0] * len(scales)
        for shift in sorted(set(shifts) - {0}):
            for place in range(0, shift, 16):
                size = 2 ** min(16, shift - place)
                for i in (i for i, other in enumerate(shifts) if other == shift):
                    low[i] += self.uniform(size) << place
        high = [self.integer() if s == 31 else s - 15 for s in symbols]
        return [(h << shift) + b for h, shift, b in zip(high, shifts, low, strict=True)]


def between_tables(scale: float) -> bool:
    """Whether a scale is so near to where its table changes that rounding may choose."""
    place = 3 * (math.log2(scale) + 4.4) + 0.5
    return abs(place - round(place)) < THRESHOLD_MARGIN


@settings(deadline=None, max_examples=60)
@given(pairs, st.lists(st.integers(0, 2**70), max_size=5))
def test_a_decoder_written_from_the_text_reads_what_writer_wrote(
    pairs: list[tuple[int, float]], naturals: list[int]
) -> None:
    pairs = [(n, s) for n, s in pairs if not between_tables(s)]
    numbers, scales = arrays(pairs)
    writer = Writer()
    writer.uniform(6, 7)
    writer.uniform(1_953_124, 5**9)
    writer.numbers(numbers, scales)
    for natural in naturals:
        writer.natural(natural)
        writer.integer(-natural)
    decoder = TextDecoder(writer.getvalue())
    assert decoder.uniform(7) == 6
    assert decoder.uniform(5**9) == 1_953_124
    assert decoder.numbers(scales.tolist()) == numbers.tolist()
    for natural in naturals:
        assert decoder.natural() == natural
        assert decoder.integer() == -natural


def test_the_decoder_of_the_text_reads_a_long_code() -> None:
    """Many words, every table and carries: what the encoder holds back until it is certain."""
    rng = np.random.default_rng(3)
    scales = 2.0 ** rng.uniform(-5, 8, 6000)
    numbers = laplace(rng, scales)
    numbers[::97] *= 1000
    writer = Writer()
    writer.numbers(numbers, scales)
    assert TextDecoder(writer.getvalue()).numbers(scales.tolist()) == numbers.tolist()


# ---------------------------------------------------------------- tables


def test_tables_are_distributions() -> None:
    tables = entropy.tables()
    assert tables.shape == (22, 32)
    assert (tables > 0).all()
    np.testing.assert_array_equal(tables.sum(axis=1), 1.0)
    np.testing.assert_array_equal(tables * 65536, np.rint(tables * 65536))
    np.testing.assert_array_equal(tables[:, :15], tables[:, 30:15:-1])


def test_tables_are_those_of_exact_arithmetic() -> None:
    exact = np.array([[*row, 64] for row in exact_tables()])
    exact[:, 15] += 65536 - exact.sum(axis=1)
    np.testing.assert_array_equal(entropy.tables() * 65536, exact)


def test_no_entry_of_a_table_is_decided_by_rounding() -> None:
    """math.exp may differ by a unit in the last place: floor(65000 p) must bear more than that."""
    with localcontext() as context:
        context.prec = 60
        for t in range(22):
            for weight in exact_weights(t):
                # Below the margin 0 is the floor on both sides: a computed p is never negative.
                distance = abs(weight - weight.to_integral_value())
                assert weight < ROUNDING_MARGIN or distance > ROUNDING_MARGIN


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_a_round_scale_is_not_between_two_tables(scale: float) -> None:
    """Payloads use 1.0: it must not lie where rounding says which of two tables is nearer."""
    assert not between_tables(scale)


# ---------------------------------------------------------------- round trips


@settings(deadline=None, max_examples=200)
@given(pairs)
def test_any_numbers_with_any_scales(pairs: list[tuple[int, float]]) -> None:
    numbers, scales = arrays(pairs)
    given_numbers, given_scales = numbers.copy(), scales.copy()
    writer = Writer()
    writer.numbers(numbers, scales)
    reader = Reader(writer.getvalue())
    read = reader.numbers(scales)
    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, numbers)
    np.testing.assert_array_equal(numbers, given_numbers)
    np.testing.assert_array_equal(scales, given_scales)


def test_the_edges_of_symbols_and_shifts() -> None:
    numbers = np.array(
        [n * 2**shift + low for n in (-17, -16, -15, -1, 0, 15, 16) for shift in (0, 1, 17, 33)
         for low in (0, 2**shift - 1)]
    )  # fmt: skip
    for scale in (0.0, 1e-300, 4.0, np.nextafter(4.0, 5.0), 8.0, 2.0**18, 2.0**19, 2.0**35):
        writer = Writer()
        scales = np.full(len(numbers), scale)
        writer.numbers(numbers, scales)
        np.testing.assert_array_equal(Reader(writer.getvalue()).numbers(scales), numbers)


calls = st.lists(
    st.one_of(
        st.tuples(st.just("natural"), st.integers(0, 2**80 - 1)),
        st.tuples(st.just("integer"), st.integers(-(2**79), 2**79 - 1)),
        st.integers(1, 2**24 - 1).flatmap(
            lambda size: st.tuples(st.just("uniform"), st.integers(0, size - 1), st.just(size))
        ),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=100)
@given(calls)
def test_single_numbers_in_any_order(calls: list[tuple[str, int] | tuple[str, int, int]]) -> None:
    writer = Writer()
    for name, *arguments in calls:
        getattr(writer, name)(*arguments)
    reader = Reader(writer.getvalue())
    for name, number, *size in calls:
        assert getattr(reader, name)(*size) == number


def test_the_largest_alphabet() -> None:
    writer = Writer()
    for number in (0, 2**24 - 1, 12345):
        writer.uniform(number, 2**24)
    reader = Reader(writer.getvalue())
    assert [reader.uniform(2**24) for _ in range(3)] == [0, 2**24 - 1, 12345]


def test_a_number_outside_its_alphabet_is_refused() -> None:
    for number, size in ((-1, 4), (4, 4), (1, 1)):
        with pytest.raises(ValueError, match="not below"):
            Writer().uniform(number, size)


def test_nothing_takes_no_bytes() -> None:
    empty = np.zeros(0, dtype=np.int64)
    writer = Writer()
    writer.uniform(0, 1)
    writer.numbers(empty, empty.astype(float))
    assert writer.getvalue() == b""
    reader = Reader(b"")
    assert reader.uniform(1) == 0
    assert len(reader.numbers(empty.astype(float))) == 0


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(10, 2**16)), max_size=12))
def test_no_byte_at_the_end_is_wasted(uniforms: list[tuple[int, int]]) -> None:
    """A code ends in no zero byte, which a reader adds by itself, and has at most four to spare."""
    writer = Writer()
    for number, size in uniforms:
        writer.uniform(number, size)
    data = writer.getvalue()
    assert not data.endswith(b"\0")
    assert len(data) <= sum(math.log2(size) for _, size in uniforms) / 8 + 4
    assert writer.getvalue() == data
    for read in (Reader(data), Reader(data + b"\0\0\0")):
        assert [read.uniform(size) for _, size in uniforms] == [number for number, _ in uniforms]


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=64), st.lists(sizes))
def test_any_bytes_decode_to_something_or_are_refused(data: bytes, scales: list[float]) -> None:
    reader = Reader(data)
    try:
        reader.uniform(1000)
        reader.integer()
        numbers = reader.numbers(np.array(scales, dtype=np.float64))
    except (StoreError, OverflowError, AssertionError):  # what `decode_field` maps
        return
    assert len(numbers) == len(scales)


def test_a_number_without_end_is_refused() -> None:
    writer = Writer()
    for _ in range(100):
        writer.uniform(31, 32)
    with pytest.raises(StoreError, match="no end"):
        Reader(writer.getvalue()).natural()


# ---------------------------------------------------------------- size


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.5, 1.0, 3.0, 10.0, 1e3, 1e9])
def test_the_size_is_what_bits_says(scale: float) -> None:
    rng = np.random.default_rng(0)
    scales = np.full(20_000, scale)
    numbers = laplace(rng, scales)
    writer = Writer()
    writer.numbers(numbers, scales)
    assert 8 * len(writer.getvalue()) == pytest.approx(bits(numbers, scales), rel=0.02, abs=80)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-LARGE, LARGE), sizes), min_size=1, max_size=40))
def test_bits_bound_the_size_with_escapes_as_well(pairs: list[tuple[int, float]]) -> None:
    numbers, scales = arrays(pairs)
    writer = Writer()
    writer.numbers(numbers, scales)
    expected = bits(numbers, scales)
    assert math.isfinite(expected)
    assert expected / 1.6 - 64 < 8 * len(writer.getvalue()) < expected * 1.6 + 64


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 4.0, 100.0])
def test_a_number_costs_no_more_than_its_entropy_and_a_little(scale: float) -> None:
    """Under the logistic distribution that the tables have."""
    rng = np.random.default_rng(1)
    numbers = np.rint(rng.logistic(scale=scale * math.sqrt(3) / math.pi, size=50_000))
    numbers = numbers.astype(np.int64)
    counts = np.unique(numbers, return_counts=True)[1] / len(numbers)
    ideal = -float((counts * np.log2(counts)).sum())
    assert bits(numbers, np.full(len(numbers), scale)) / len(numbers) < 1.05 * ideal + 0.03


def test_a_scale_that_is_wrong_by_an_octave_costs_little() -> None:
    rng = np.random.default_rng(2)
    scales = np.full(20_000, 2.0)
    numbers = laplace(rng, scales)
    right = bits(numbers, scales)
    for factor in (0.5, 2.0):
        assert right < bits(numbers, scales * factor) < 1.25 * right
