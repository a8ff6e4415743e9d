"""The densities that the web page draws: of stored materials and of files that it was given."""

from __future__ import annotations

import base64
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chgdb.errors import InputError
from chgdb.files import brief
from chgdb.formats import read_density
from chgdb.grid import fourier_resample
from chgdb.planes import LatticePlane, Miller

if TYPE_CHECKING:
    from chgdb.database import Record
    from chgdb.density import Grid

__all__ = ["Field", "Subject", "Subjects"]

_IN_PLANE = 0.5
"""Angstrom between a plane and the atoms that are told with it."""

_MOST_POINTS = 128
"""Along the longest axis of a field to draw in three dimensions."""

_MOST_IN_PLANE = 512
"""Along the longer side of a plane."""

_CACHED_BYTES = 2**28
"""Of decoded densities that are kept; those of the last subject are, however large."""

_AT_ONCE = 2
"""Densities that are decoded, resampled or cut at once; more requests wait."""


@dataclass(frozen=True, eq=False)
class Field:
    """A density as it is drawn.

    Attributes:
        values: shape (n1, n2, n3), float32, e/A^3.
        nmae: of the whole density against its source, %, as stored; None for the source itself.
        origin: what it was decoded from.
    """

    values: NDArray[np.float32]
    nmae: float | None
    origin: str


@dataclass(frozen=True, eq=False)
class Subject:
    """A record, and the file that its density came from, if that is at hand.

    Attributes:
        record: of any store.
        original: the file.
        given_name: how to call the record, if not by its id.
        species: element symbols for an original that does not name them.
    """

    record: Record
    original: Path | None
    given_name: str | None = None
    species: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """What files that are made of it are called."""
        return self.given_name or self.record.id

    @property
    def sources(self) -> list[str]:
        """What its density can be had from, the best first."""
        row = self.record.row
        there = {
            "original": self.original is not None,
            "payload": row["payload_bytes"] is not None,
            "latent": row["work_grid_a"] is not None and row["n_electrons"] is not None,
        }
        return [source for source, is_there in there.items() if is_there]

    @property
    def errors(self) -> dict[str, dict[str, Any]]:
        """Of what is stored: `nmae` (%), `max_error` (e/A^3), `electron_error` (e), `bytes`."""
        row = self.record.row
        return {
            source: {
                "nmae": row[f"{source}_nmae"],
                "max_error": row[f"{source}_max_error"],
                "electron_error": row[f"{source}_electron_error"],
                "bytes": row.get(f"{source}_bytes"),
            }
            for source in self.sources
            if source != "original"
        }


class Subjects:
    """Densities of subjects, the last ones kept: a slider asks for the same again and again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], Field] = OrderedDict()
        self._making: dict[tuple[object, ...], threading.Lock] = {}
        self._lock = threading.Lock()
        self._working = threading.BoundedSemaphore(_AT_ONCE)

    def field(self, subject: Subject, source: str, points: int) -> Field:
        """A density resampled for drawing: `points` along the longest axis, others in proportion.

        Args:
            subject: whose density.
            source: "original", "payload" or "latent".
            points: at most 128.

        Raises:
            InputError: the source is not one of the subject's, or `points` is out of range.
            StoreError: the store is damaged.
            MissingExtraError: a latent is to be decoded and torch is not installed.
        """
        if not 4 <= points <= _MOST_POINTS:
            raise InputError(f"points {points}: give 4 to {_MOST_POINTS}")
        with self._working:
            whole = self._whole(subject, source)
            grid = _drawn_grid(subject.record.structure.lattice, points)
            values = fourier_resample(whole.values.astype(np.float64), grid)
        return Field(values.astype(np.float32), whole.nmae, whole.origin)

    def plane(
        self, subject: Subject, sources: Sequence[str], miller: Miller, at: float, points: int
    ) -> dict[str, Any]:
        """Densities in a lattice plane, as the page gets them (`chgdb.answers.PlaneAnswer`).

        Args:
            subject: whose densities.
            sources: "original", "payload", "latent".
            miller: indices of the plane.
            at: where it is, as of `LatticePlane`.
            points: along its longer side, at most 512.

        Raises:
            InputError: a source is not one of the subject's, or there is no such plane.
            StoreError: the store is damaged.
            MissingExtraError: a latent is to be decoded and torch is not installed.
        """
        if not 8 <= points <= _MOST_IN_PLANE:
            raise InputError(f"points {points}: give 8 to {_MOST_IN_PLANE}")
        plane = LatticePlane(subject.record.structure, miller, at)
        shape = plane.shape(points)
        fields = []
        for source in dict.fromkeys(sources):
            with self._working:
                whole = self._whole(subject, source)
                values = plane.values(whole.values, shape).astype("<f4")
            fields.append(
                {
                    "source": source,
                    "label": whole.origin,
                    "nmae": whole.nmae,
                    "values": base64.b64encode(values.tobytes()).decode(),
                }
            )
        return {
            "miller": plane.miller,
            "at": plane.at,
            "spacing": plane.spacing,
            "basis": plane.basis.tolist(),
            "u": plane.vectors[0].tolist(),
            "v": plane.vectors[1].tolist(),
            "shape": shape,
            "atoms": [vars(atom) for atom in plane.atoms(_IN_PLANE)],
            "fields": fields,
        }

    def _whole(self, subject: Subject, source: str) -> Field:
        """A density on its own grid."""
        record, there = subject.record, subject.sources
        if not there:
            _ = record.grid  # says that there is none, and what to do
        if source not in there:
            told = ", ".join(there) or "nothing"
            raise InputError(f"{record.id}: no density from {brief(source)}; there is {told}")
        row = record.row
        subject_key = row["source_sha256"], record.id, row["row"], row["added"]
        key = (*subject_key, source)
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:  # who asks for the same meanwhile waits for it
            with self._lock:
                found = self._kept.get(key)
            if found is None:
                found = _decoded(subject, source)
            with self._lock:
                self._kept[key] = found
                self._kept.move_to_end(key)
                self._forget_but(subject_key)
        return found

    def _forget_but(self, subject_key: tuple[object, ...]) -> None:
        """Give up what was asked for longest ago, but for one subject, until the rest fits."""
        size = sum(field.values.nbytes for field in self._kept.values())
        for key in list(self._kept):
            if size > _CACHED_BYTES and key[:-1] != subject_key:
                size -= self._kept.pop(key).values.nbytes
                self._making.pop(key, None)


def _decoded(subject: Subject, source: str) -> Field:
    if source == "original":
        assert subject.original is not None  # noqa: S101 (it is among the sources)
        density, _ = read_density(subject.original, species=subject.species)
        return Field(density.values.astype(np.float32), None, "original")
    decoded = subject.record.density(source="latent" if source == "latent" else "payload")
    return Field(decoded.values.astype(np.float32), decoded.nmae, decoded.origin)


def _drawn_grid(lattice: NDArray[np.float64], points: int) -> Grid:
    lengths = np.linalg.norm(lattice, axis=1)
    n1, n2, n3 = np.maximum(np.rint(points * lengths / lengths.max()), 4).astype(int)
    return int(n1), int(n2), int(n3)
