"""A density that came out of a store and knows how good it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chgdb.density import ChargeDensity
from chgdb.formats import write_density

__all__ = ["DecodedDensity"]


@dataclass(frozen=True, eq=False)
class DecodedDensity(ChargeDensity):
    """A density decoded from the record of a store.

    Attributes:
        id: the record.
        origin: what it was decoded from, such as "latent of periodic-16".
        nmae: the record's error against its source on the source's grid, %, as measured when it
            was added.
    """

    id: str = ""
    origin: str = ""
    nmae: float = 0.0

    @property
    def comment(self) -> str:
        """What a file written from this density says of itself, in one line."""
        return f"{self.id} from chgdb, {self.origin}, NMAE {self.nmae:.2f} %, no augmentation"

    def write(self, path: str | Path, format: str = "chgcar") -> None:  # noqa: A002
        """Write a CHGCAR, a Gaussian cube file or an npz archive.

        A CHGCAR has no augmentation occupancies: VASP can start from it (ICHARG = 1) but not
        continue exactly (ICHARG = 11).

        Raises:
            InputError: an unknown format, or the file cannot be written.
        """
        write_density(path, self, format, comment=self.comment)
