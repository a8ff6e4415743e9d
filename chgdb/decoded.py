"""A density that came out of a store and knows how good it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chgdb.density import ChargeDensity
from chgdb.formats import write_density

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DecodedDensity", "format_of"]

_FORMATS = {".cube": "cube", ".npz": "npz"}


def format_of(path: str | Path) -> str:
    """The format that the name of a file to write asks for: "cube", "npz", else "chgcar"."""
    return _FORMATS.get(Path(path).suffix.lower(), "chgcar")


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodedDensity(ChargeDensity):
    """A density decoded from the record of a store; from a latent it has no magnetization.

    Attributes:
        id: the record.
        origin: what it was decoded from: "payload", or such as "latent of periodic-16".
        nmae: the record's error against its source on the source's grid, %, as measured when it
            was added.
    """

    id: str
    origin: str
    nmae: float

    @property
    def comment(self) -> str:
        """What a file written from this density says of itself, in one line."""
        return f"{self.id} from chgdb, {self.origin}, NMAE {self.nmae:.3g} %, no augmentation"

    def to_xarray(self) -> xr.DataArray:
        """As of any density, with `material_id`, `origin` and `nmae_percent` in the attributes."""
        array = super().to_xarray()
        array.attrs |= {
            "material_id": self.id,
            "origin": self.origin,
            "nmae_percent": self.nmae,
        }
        return array

    def write(self, path: str | Path, format: str | None = None) -> None:  # noqa: A002
        """Write a CHGCAR, a Gaussian cube file or an npz archive.

        A CHGCAR has no augmentation occupancies: VASP can start from it (ICHARG = 1) but not
        continue exactly (ICHARG = 11).

        Args:
            path: the file; one that is there is replaced.
            format: "chgcar", "cube" or "npz"; None for what `format_of` the path says.

        Raises:
            InputError: an unknown format, or the file cannot be written.
        """
        write_density(path, self, format or format_of(path), comment=self.comment)
