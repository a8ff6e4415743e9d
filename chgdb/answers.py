"""What the HTTP interface answers with: the shapes that /openapi.json documents."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from chgdb.distributions import Distributions

__all__ = [
    "AddRequest",
    "AtomInPlane",
    "ColumnAnswer",
    "DensityErrors",
    "Distributions",
    "ErrorAnswer",
    "FieldInPlane",
    "MaterialAnswer",
    "PageAnswer",
    "PlaneAnswer",
    "ReportAnswer",
    "SimilarAnswer",
    "StoreAnswer",
    "UploadAnswer",
]


class ErrorAnswer(BaseModel):
    """Every failure: one line, in the words of the command line."""

    error: str


class ColumnAnswer(BaseModel):
    """A column that a search can name."""

    name: str
    type: Literal["text", "integer", "real", "boolean"]
    unit: str
    description: str


class StoreAnswer(BaseModel):
    """The store, and what can be asked of it."""

    version: str = Field(description="of chgdb")
    records: int
    materials_with_density: int
    place: str = Field(description="where it is")
    attribution: str
    encoder: str
    sources: list[str]
    crystal_systems: list[str]
    columns: list[ColumnAnswer]
    ranges: list[str] = Field(description="columns with a range option in the command line")
    max_upload_bytes: int
    writable: bool
    originals: bool = Field(description="whether the files of densities are at hand (--sources)")


class PageAnswer(BaseModel):
    """Some of the records that fit."""

    total: int = Field(description="of all records that fit")
    offset: int
    columns: list[str]
    rows: list[list[Any]] = Field(description="one value per column; null where it is not known")


class SimilarAnswer(BaseModel):
    """The materials whose densities are most alike, the nearest first."""

    rows: list[dict[str, Any]]


class DensityErrors(BaseModel):
    """The error of a stored density against its source, as measured when it was added."""

    nmae: float | None = Field(description="%")
    max_error: float | None = Field(description="e/A^3")
    electron_error: float | None = Field(description="e")
    bytes: int | None = None


class MaterialAnswer(BaseModel):
    """One material."""

    id: str
    record: dict[str, Any] = Field(description="every column of the table (docs/format.md)")
    properties: dict[str, Any] = Field(description="the reference values that are known")
    predicted: dict[str, Any] = Field(description="values, _low and _high of 90 % intervals")
    sources: list[str] = Field(description="what a density can be had from, the best first")
    errors: dict[str, DensityErrors]


class AtomInPlane(BaseModel):
    """An atom near a lattice plane."""

    symbol: str
    s: float = Field(description="fractional, along u")
    t: float = Field(description="fractional, along v")
    distance: float = Field(description="A, from the plane")


class FieldInPlane(BaseModel):
    """A density in the plane."""

    source: str
    label: str
    nmae: float | None = Field(description="%, of the whole density, as stored")
    values: str = Field(
        description="base64 of float32, little-endian, e/A^3: value (i, j) at s = i/m1, t = j/m2"
    )


class PlaneAnswer(BaseModel):
    """Densities in one lattice plane."""

    miller: tuple[int, int, int]
    at: float
    spacing: float = Field(description="A")
    basis: list[tuple[int, int, int]] = Field(
        description="rows u, v and w in units of a, b, c; a point of the plane is s u + t v + at w"
    )
    u: tuple[float, float] = Field(description="A, the first lattice vector in the plane, along x")
    v: tuple[float, float] = Field(description="A, the second")
    shape: tuple[int, int]
    atoms: list[AtomInPlane]
    fields: list[FieldInPlane]


class ReportAnswer(BaseModel):
    """What was found out about a file."""

    formula: str
    record: dict[str, Any] = Field(description="what the table would say; its id is a proposal")
    sources: list[str]
    errors: dict[str, DensityErrors]
    predicted: dict[str, Any] | None
    predicted_error: str | None
    similar: list[dict[str, Any]] | None
    similar_error: str | None
    stored_as: str | None = Field(description="id of the record made from this very file")


class UploadAnswer(BaseModel):
    """A file that was sent, and how far it is."""

    id: str
    name: str
    bytes: int
    state: Literal["waiting", "working", "done", "failed"]
    step: str
    done: int
    steps: int
    error: str | None
    report: ReportAnswer | None
    adding: bool
    added: str | None
    add_error: str | None


class AddRequest(BaseModel):
    """Under which id a file is to be added, and what to do if that is taken."""

    id: str
    on_conflict: Literal["error", "skip", "replace"] = "error"
