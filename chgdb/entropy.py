"""Whole numbers as few bytes: a range coder over a fixed set of distributions.

A number is coded under the distribution of the scale that its context predicts; what both sides
know beforehand are the scales. constriction does the range coding, in words of 32 bits; the
probabilities given to it are whole multiples of 2^-16 from a table, so every machine codes alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from chgdb.errors import StoreError

__all__ = ["Reader", "Writer", "bits", "tables"]

_LARGEST = 15
_ESCAPE = 2 * _LARGEST + 1
"""Symbols 0...30 are the numbers -15...15; 31 says that a larger one follows."""

_N_TABLES = 22
_FIRST_SCALE = 2.0**-4.4
"""Such that round scales are well inside a table, not between two, where rounding would choose."""

_SCALES_PER_OCTAVE = 3

_PIECE = 16


@lru_cache(maxsize=1)
def tables() -> NDArray[np.float64]:
    """Shape (22, 32): probabilities of the symbols, in steps of 2^-16.

    Of the logistic distribution of standard deviation 2^(t/3 - 4.4), rounded to whole numbers, with
    1/1024 for what is larger than that allows.
    """
    weights = np.zeros((_N_TABLES, _ESCAPE + 1))
    for t in range(_N_TABLES):
        width = _FIRST_SCALE * 2.0 ** (t / _SCALES_PER_OCTAVE) * math.sqrt(3.0) / math.pi
        for k in range(-_LARGEST, _LARGEST + 1):
            upper, lower = (1 / (1 + math.exp(min(-(k + s) / width, 700))) for s in (0.5, -0.5))
            weights[t, k + _LARGEST] = math.floor((upper - lower) * 65000) + 2
        weights[t, _ESCAPE] = 64
        weights[t, _LARGEST] += 65536 - weights[t].sum()
    return weights / 65536


def _contexts(scales: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The table of each scale, and how many low bits are coded apart where it is large."""
    if not np.isfinite(scales).all():
        raise StoreError("a payload is damaged: a scale that is no number")
    mantissa, exponent = np.frexp(scales.astype(np.float64))  # mantissa from 0.5, below 1
    halvings = exponent - 2 - (mantissa == 0.5)  # that leave at most 4
    shift = np.where(scales > 4.0, halvings, 0)
    scaled = np.ldexp(mantissa, exponent - shift)
    return np.searchsorted(_thresholds(), scaled).astype(np.int64), shift.astype(np.int64)


@lru_cache(maxsize=1)
def _thresholds() -> NDArray[np.float64]:
    """The scales at which one table gives way to the next."""
    return _FIRST_SCALE * 2.0 ** ((np.arange(1, _N_TABLES) - 0.5) / _SCALES_PER_OCTAVE)


@lru_cache(maxsize=1)
def _costs() -> NDArray[np.float64]:
    """Shape (22, 32): bits of each symbol in each table."""
    return -np.log2(tables())


def _pieces(shift: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.bool_], int, int]]:
    """For each shift, least first, which numbers have it, and its bits in pieces of at most 16."""
    for width in np.unique(shift[shift > 0]).tolist():
        for place in range(0, width, _PIECE):
            yield shift == width, place, min(_PIECE, width - place)


def bits(numbers: NDArray[np.int64], scales: NDArray[np.float64]) -> float:
    """What `Writer.numbers` would take, without escapes counted exactly."""
    table, shift = _contexts(scales)
    high = numbers >> shift
    symbol = np.where(np.abs(high) <= _LARGEST, high + _LARGEST, _ESCAPE)
    cost = _costs()[table, symbol].sum() + shift.sum()
    escaped = np.abs(high[symbol == _ESCAPE]).astype(np.float64)
    return float(cost + (2 * np.log2(escaped + 1) + 2).sum())


class Writer:
    """Collects numbers into bytes."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()
        self._written: list[tuple[NDArray[np.int32], Any]] = []

    def _encode(self, symbols: NDArray[np.int32], model: Any) -> None:
        self._coder.encode(symbols, model)
        self._written.append((symbols, model))

    def uniform(self, number: int, size: int) -> None:
        """A number from 0 to size - 1, all alike probable; size is at most 2^24."""
        if not 0 <= number < size:
            raise ValueError(f"{number} is not below {size}")
        if size > 1:
            symbols = np.array([number], dtype=np.int32)
            self._encode(symbols, constriction.stream.model.Uniform(size))

    def natural(self, number: int) -> None:
        """Any whole number from 0: groups of 4 bits, the lowest first, and whether more follow."""
        while True:
            number, low = divmod(number, 16)
            self.uniform(low + (16 if number else 0), 32)
            if not number:
                return

    def integer(self, number: int) -> None:
        """Any whole number, by `natural`: 0, -1, 1, -2 ... are 0, 1, 2, 3 ..."""
        self.natural(2 * number if number >= 0 else -2 * number - 1)

    def numbers(self, numbers: NDArray[np.int64], scales: NDArray[np.float64]) -> None:
        """Numbers whose sizes are about `scales`, grouped by the distribution."""
        table, shift = _contexts(scales)
        high = numbers >> shift
        symbol = np.where(np.abs(high) <= _LARGEST, high + _LARGEST, _ESCAPE).astype(np.int32)
        for t in np.unique(table):
            model = constriction.stream.model.Categorical(tables()[t], perfect=False)
            self._encode(symbol[table == t], model)
        for chosen, place, width in _pieces(shift):
            piece = (numbers[chosen] >> place) & ((1 << width) - 1)
            self._encode(piece.astype(np.int32), constriction.stream.model.Uniform(1 << width))
        for number in high[symbol == _ESCAPE].tolist():
            self.integer(number)

    def getvalue(self) -> bytes:
        """Everything written: big-endian words of 32 bits, less the zero bytes at the end.

        The end may be any number of a range; the one with most zero bytes at its end is taken.
        """
        data: bytes = self._coder.get_compressed().astype(">u4").tobytes()
        head, end = data[:-8], data[-8:]
        for zeros in range(len(end), 0, -1):
            low = int.from_bytes(end) >> (8 * zeros)
            for last in (low, low + 1):
                with suppress(OverflowError):  # no bytes are left to carry into
                    shorter = head + last.to_bytes(len(end) - zeros)
                    if self._is_read_from(shorter):
                        return shorter.rstrip(b"\0")
        return data.rstrip(b"\0")

    def _is_read_from(self, data: bytes) -> bool:
        coder = constriction.stream.queue.RangeDecoder(_words(data))
        try:
            return all(
                np.array_equal(coder.decode(model, len(symbols)), symbols)
                for symbols, model in self._written
            )
        except AssertionError:  # what constriction raises for words that mean nothing
            return False


def _words(data: bytes) -> NDArray[np.uint32]:
    return np.frombuffer(data + bytes(-len(data) % 4), ">u4").astype(np.uint32)


class Reader:
    """Gives the numbers back in the order and with the scales they were written.

    Args:
        data: what `Writer.getvalue` gave.
    """

    def __init__(self, data: bytes) -> None:
        self._coder = constriction.stream.queue.RangeDecoder(_words(data))

    def uniform(self, size: int) -> int:
        if size <= 1:
            return 0
        return int(self._coder.decode(constriction.stream.model.Uniform(size)))

    def natural(self) -> int:
        number, place = 0, 0
        while True:
            group = self.uniform(32)
            number += (group % 16) << place
            place += 4
            if group < 16:
                return number
            if place > 80:
                raise StoreError("a payload is damaged: a number has no end")

    def integer(self) -> int:
        number = self.natural()
        return number // 2 if number % 2 == 0 else -(number + 1) // 2

    def numbers(self, scales: NDArray[np.float64]) -> NDArray[np.int64]:
        table, shift = _contexts(scales)
        symbol = np.zeros(len(scales), dtype=np.int64)
        for t in np.unique(table):
            model = constriction.stream.model.Categorical(tables()[t], perfect=False)
            chosen = table == t
            symbol[chosen] = self._coder.decode(model, int(chosen.sum()))
        low = np.zeros(len(scales), dtype=np.int64)
        for chosen, place, width in _pieces(shift):
            model = constriction.stream.model.Uniform(1 << width)
            piece = self._coder.decode(model, int(chosen.sum()))
            low[chosen] += piece.astype(np.int64) << place
        high = symbol - _LARGEST
        for index in np.flatnonzero(symbol == _ESCAPE):
            high[index] = self.integer()
        return (high << shift) + low
