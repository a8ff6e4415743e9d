"""Give back what a store no longer needs; no record changes and no row gets another number.

Every step is atomic, so a crash between two of them, or a reader meanwhile, finds a whole store.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from chgdb.arrays import LatentArrays
from chgdb.derived import Derived
from chgdb.errors import StoreError
from chgdb.files import shown
from chgdb.table import Table

__all__ = ["compact", "erase_unnamed_bytes"]

_ROWS = 16_384
"""Rows that are looked at together."""

_LATENTS = 128
_BYTES = 2**20
"""Latents and bytes of payloads that are read together."""


def compact(table: Table, derived: Derived, arrays: LatentArrays) -> None:
    """Join parts, drop what is stale, and erase what no record names.

    The caller holds the lock of the store's one writer.

    Args:
        table: the records.
        derived: features and predictions.
        arrays: open for writing.

    Raises:
        StoreError: a part of the table is missing, or a file is damaged or cannot be written.
    """
    for start, stop in table.gaps():
        raise StoreError(
            f"{shown(table.folder)}: rows {start} to {stop - 1} are of no part, so a file is "
            "missing; restore it, chgdb verify says more"
        )
    arrays.truncate(min(table.next_row, arrays.n_rows))
    table.compact()
    derived.compact()
    arrays.record(min(table.next_row, arrays.n_rows))
    for start in range(0, arrays.n_rows, _ROWS):
        stop = min(start + _ROWS, arrays.n_rows)
        if rows := _unnamed(table, arrays, start, stop):
            arrays.erase_rows(rows)
    erase_unnamed_bytes(arrays)


def erase_unnamed_bytes(arrays: LatentArrays) -> None:
    """Erase the bytes that are of no payload, in whatever order payloads lie.

    Raises:
        StoreError: the arrays are damaged or cannot be written.
    """
    offsets = arrays.block("payload_offset", 0, arrays.n_rows)
    lengths = arrays.block("payload_length", 0, arrays.n_rows)
    position = 0
    for row in np.argsort(offsets, kind="stable"):
        if lengths[row]:
            arrays.erase_bytes(_filled(arrays, position, int(offsets[row])))
            position = max(position, int(offsets[row] + lengths[row]))
    arrays.erase_bytes(_filled(arrays, position, arrays.n_bytes or 0))


def _unnamed(table: Table, arrays: LatentArrays, start: int, stop: int) -> list[int]:
    """The rows from `start` to `stop` - 1 that hold something and that no record names."""
    named = "row >= ? AND row < ? AND source IS NOT NULL"
    filled = np.zeros(stop - start, bool)
    for first in range(start, stop, _LATENTS):
        block = arrays.block("latent", first, min(first + _LATENTS, stop))
        filled[first - start : first - start + len(block)] = block.any(axis=(1, 2, 3, 4))
    for name, empty in (
        ("material_id", ""),
        ("grid", 0),
        ("work_grid", 0),
        ("n_electrons", 0),
        ("payload_length", 0),
    ):
        values = arrays.block(name, start, stop).reshape(stop - start, -1)
        filled |= (values != empty).any(axis=1)
    for (row,) in table.select(named, [start, stop], columns=["row"]).values:
        filled[row - start] = False
    return [start + int(index) for index in np.flatnonzero(filled)]


def _filled(arrays: LatentArrays, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The pieces of some bytes of payloads that are not erased."""
    for first in range(start, stop, _BYTES):
        last = min(first + _BYTES, stop)
        if arrays.block("payload", first, last).any():
            yield first, last
