"""What a store looks like on disk: names, columns, identity and the store's own file.

`docs/format.md` is the specification; a test compares its tables with this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from chgdb.errors import FormatVersionError, InputError, StoreError
from chgdb.files import place, reason, replace_file
from chgdb.places import Place
from chgdb.seals import UNSEALED, seal_holds, sealed

__all__ = [
    "ARRAYS_FOLDER",
    "COLUMNS",
    "CRYSTAL_SYSTEMS",
    "ENCODER_FOLDER",
    "FEATURES",
    "FEATURES_FOLDER",
    "FORMAT",
    "FORMAT_VERSION",
    "INFO_FILE",
    "LARGEST_GRID",
    "LATENT_BOX",
    "PREDICTED",
    "PREDICTED_VALUES",
    "PREDICTIONS",
    "PREDICTIONS_FOLDER",
    "PREDICTION_COLUMNS",
    "PROPERTIES",
    "SEARCHABLE",
    "SOURCES",
    "TABLE_FOLDER",
    "Column",
    "ColumnType",
    "EncoderInfo",
    "LatentStorage",
    "StoreInfo",
    "check_id",
    "check_packing",
]

FORMAT = "chgdb-store"
FORMAT_VERSION = 3
"""The version that is written; `StoreInfo.load` reads all from 1 on."""

INFO_FILE = "chgdb.json"
ARRAYS_FOLDER = "latents.zarr"
TABLE_FOLDER = "materials"
ENCODER_FOLDER = "encoder"
FEATURES_FOLDER = "features"
PREDICTIONS_FOLDER = "predictions"

LATENT_BOX = 128
"""Grid points along an axis that a latent array stands for, however many points it has itself."""

LARGEST_GRID = 2**27
"""Points of a grid to keep or to decode on: 512^3, 1 GB as an array and 3 GB while it is made."""

SOURCES = ("dft", "charge3net")
"""Where a density may come from: a calculation, or a network that predicts densities."""

ColumnType = Literal["text", "integer", "real", "boolean"]


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        name: as in Parquet and in queries.
        type: text (UTF-8), integer (64 bits), real (64 bits, finite) or boolean.
        unit: "1" for a pure number, "" where a unit makes no sense.
        description: one line for people.
        nullable: whether a record may lack it.
    """

    name: str
    type: ColumnType
    unit: str
    description: str
    nullable: bool = False


def _optional(name: str, type_: ColumnType, unit: str, description: str) -> Column:
    return Column(name, type_, unit, description, nullable=True)


_RECORD = (
    Column("id", "text", "", "material id, unique in the store"),
    Column("row", "integer", "1", "row in the arrays of latents.zarr"),
    Column("formula", "text", "", "reduced formula, metals first: TiO2"),
    Column("reduced_formula", "text", "", "reduced formula, elements in alphabetical order: O2Ti"),
    Column("chemsys", "text", "", "elements in alphabetical order: O-Ti"),
    Column("elements", "text", "", "elements in alphabetical order: O,Ti"),
    Column("n_elements", "integer", "1", "number of different elements"),
    _optional("n_atoms", "integer", "1", "atoms in the cell"),
    _optional("volume", "real", "A^3", "cell volume"),
    _optional("mass_density", "real", "g/cm^3", "mass of the cell over its volume"),
    _optional("lattice", "text", "A", "JSON, 3 rows of 3: the lattice vectors a, b, c"),
    _optional("species", "text", "", "JSON, one element symbol per atom"),
    _optional("frac_coords", "text", "1", "JSON, one row of 3 per atom: fractional coordinates"),
    _optional("spacegroup", "integer", "", "space group number, 1 to 230"),
    _optional("spacegroup_symbol", "text", "", "Hermann-Mauguin symbol"),
    _optional("crystal_system", "text", "", "triclinic ... cubic"),
    _optional("source", "text", "", "where the density comes from: dft, charge3net"),
    _optional("source_format", "text", "", "of the file: chgcar, npz, ...; null if it was none"),
    _optional("source_file", "text", "", "name of the file, without its folder"),
    _optional("source_sha256", "text", "", "SHA-256 of the file"),
    _optional("source_nmae", "real", "%", "NMAE expected of a predicted density against DFT"),
    _optional("n_electrons", "real", "e", "integral of the density over the cell"),
    _optional(
        "magnetization", "real", "mu_B", "total moment of the cell; null if not spin-polarised"
    ),
    _optional("grid_a", "integer", "1", "points of the source density along a"),
    _optional("grid_b", "integer", "1", "points of the source density along b"),
    _optional("grid_c", "integer", "1", "points of the source density along c"),
    _optional("work_grid_a", "integer", "1", "points along a that the encoder saw"),
    _optional("work_grid_b", "integer", "1", "points along b that the encoder saw"),
    _optional("work_grid_c", "integer", "1", "points along c that the encoder saw"),
    _optional("latent_nmae", "real", "%", "NMAE of the decoded latent on the source grid"),
    _optional("latent_max_error", "real", "e/A^3", "largest error of the decoded latent there"),
    _optional(
        "latent_electron_error", "real", "e", "electrons of the decoded latent minus n_electrons"
    ),
    _optional(
        "latent_coarse", "boolean", "", "whether the cell is longer than the box of the encoder"
    ),
    _optional("payload_bytes", "integer", "1", "size of the payload; null if there is none"),
    _optional("payload_method", "text", "", "how the payload was encoded"),
    _optional("payload_nmae", "real", "%", "NMAE of the decoded payload on the source grid"),
    _optional(
        "payload_max_error",
        "real",
        "e/A^3",
        "largest error of the decoded payload, magnetization too",
    ),
    _optional(
        "payload_electron_error", "real", "e", "electrons of the decoded payload minus n_electrons"
    ),
    _optional(
        "payload_magnetization_nmae",
        "real",
        "%",
        "NMAE of the decoded magnetization; null if not spin-polarised",
    ),
    Column("added", "text", "", "UTC time of adding, ISO 8601"),
    Column("chgdb_version", "text", "", "chgdb that added the record"),
)


def _property(name: str, unit: str, description: str, type_: ColumnType = "real") -> Column:
    return _optional(name, type_, unit, description)


PROPERTIES = (
    _property("split", "", "train, val or test in the source paper", "text"),
    _property("bulk_modulus", "GPa", "K, Voigt-Reuss-Hill average"),
    _property("shear_modulus", "GPa", "G, Voigt-Reuss-Hill average"),
    _property("youngs_modulus", "GPa", "E = 9KG / (3K + G)"),
    _property("poisson_ratio", "1", "Poisson's ratio, isotropic"),
    _property("anisotropy_index", "1", "universal elastic anisotropy"),
    _property("C11", "GPa", "elastic constant, IEEE setting"),
    _property("C12", "GPa", "elastic constant, IEEE setting"),
    _property("C44", "GPa", "elastic constant, IEEE setting"),
    _property("debye_temperature", "K", "Debye temperature from the elastic constants"),
    _property("sound_velocity_transverse", "m/s", "transverse sound velocity"),
    _property("sound_velocity_longitudinal", "m/s", "longitudinal sound velocity"),
    _property("thermal_conductivity_clarke", "W/(m K)", "Clarke's minimum thermal conductivity"),
    _property("thermal_conductivity_cahill", "W/(m K)", "Cahill's minimum thermal conductivity"),
    _property("formation_energy", "eV/atom", "relative to the elemental solids"),
    _property("cohesive_energy", "eV/atom", "relative to free atoms, negative = bound"),
    _property("band_gap", "eV", "Kohn-Sham band gap"),
    _property("is_metal", "", "whether the band gap is closed", "boolean"),
    _property("is_gap_direct", "", "whether the band gap is direct", "boolean"),
    _property("dielectric_total", "1", "static dielectric constant"),
    _property("dielectric_electronic", "1", "electronic part of the dielectric constant"),
    _property("dielectric_ionic", "1", "ionic part of the dielectric constant"),
    _property("refractive_index", "1", "refractive index"),
)
"""Columns that come from a table of properties, not from the density; all may be null."""

COLUMNS = {column.name: column for column in (*_RECORD, *PROPERTIES)}
"""Every column of the table by name, in order."""

PREDICTED = (
    "bulk_modulus",
    "shear_modulus",
    "youngs_modulus",
    "formation_energy",
    "cohesive_energy",
    "debye_temperature",
)
"""The properties that are predicted."""

PREDICTED_VALUES = tuple(f"{name}{end}" for name in PREDICTED for end in ("", "_low", "_high"))
"""Value and ends of the 90 % interval of each."""

_FEATURES = (
    Column("id", "text", "", "material id; that of a record where there is one"),
    Column("formula", "text", "", "the composition"),
    Column("volume_per_atom", "real", "A^3", "cell volume over the number of atoms"),
    Column("electrons_per_atom", "real", "e", "electrons of the density over the number of atoms"),
    Column("spacegroup", "integer", "", "space group number, 1 to 230", nullable=True),
    Column("features_version", "integer", "1", "how the features were computed"),
    Column("origin", "text", "", "density: that of the record; else the name of a data set"),
    Column(
        "record_row",
        "integer",
        "1",
        "row of the record whose density it was; null for a data set",
        nullable=True,
    ),
    Column("sha256", "text", "", "hash of the features and their version"),
    Column("added", "text", "", "UTC time of adding, ISO 8601"),
)
FEATURES = {column.name: column for column in _FEATURES}
"""The columns of the table of features that are no descriptors of a density."""


def _predicted(prefix: str) -> tuple[Column, ...]:
    """Value and interval of every predicted property."""
    units = {column.name: column.unit for column in PROPERTIES}
    return tuple(
        Column(f"{prefix}{name}{end}", "real", units[name], f"{name}, {what}", nullable=True)
        for name in PREDICTED
        for end, what in (
            ("", "predicted"),
            ("_low", "lower end of the 90 % interval"),
            ("_high", "upper end of the 90 % interval"),
        )
    )


_PREDICTIONS = (
    Column("id", "text", "", "material id, as in the table of features"),
    Column("model", "text", "", "id of the model"),
    Column("model_version", "integer", "1", "its version"),
    Column("model_sha256", "text", "", "hash of its files"),
    Column("features_sha256", "text", "", "`sha256` of the features that it saw"),
    *_predicted(""),
    Column("in_training", "boolean", "", "whether the model was trained on the material"),
    Column("outside_domain", "boolean", "", "whether it is unlike what the model was trained on"),
    Column("foreign", "boolean", "", "whether the density is of other pseudopotentials"),
    Column("neighbours", "text", "", "JSON: [id, distance] of the nearest training materials"),
    Column("added", "text", "", "UTC time of the prediction, ISO 8601"),
)
PREDICTIONS = {column.name: column for column in _PREDICTIONS}
"""Every column of the table of predictions by name, in order."""

PREDICTION_COLUMNS = {
    column.name: column
    for column in (
        *_predicted("predicted_"),
        Column("predicted_by", "text", "", "the model that predicted", nullable=True),
        Column(
            "prediction_in_training",
            "boolean",
            "",
            "whether the model was trained on the material",
            nullable=True,
        ),
        Column(
            "prediction_outside_domain",
            "boolean",
            "",
            "whether the material is unlike what the model was trained on",
            nullable=True,
        ),
    )
}
"""What a search finds of the predictions of the default model; no columns of the table."""

SEARCHABLE = {**COLUMNS, **PREDICTION_COLUMNS}
"""Every column that a search can name."""

CRYSTAL_SYSTEMS = {
    "triclinic": 2,
    "monoclinic": 15,
    "orthorhombic": 74,
    "tetragonal": 142,
    "trigonal": 167,
    "hexagonal": 194,
    "cubic": 230,
}
"""Crystal system -> number of its last space group, in the order of their numbers."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", re.ASCII)


def check_id(material_id: str) -> str:
    """The id itself, if it can name a record (and a file).

    Raises:
        InputError: it is not 1 to 64 of the characters A-Z a-z 0-9 . _ - +, the first of them a
            letter or a digit.
    """
    if not isinstance(material_id, str) or not _ID.fullmatch(material_id):
        told = repr(material_id)
        told = told if len(told) <= 80 else f"{told[:80]}..."
        raise InputError(
            f"{told} cannot be a material id: use 1 to 64 letters, digits, '.', '_', '-' or '+', "
            "beginning with a letter or a digit"
        )
    return material_id


@dataclass(frozen=True)
class EncoderInfo:
    """The encoder whose latents a store holds.

    Attributes:
        id: name of the encoder.
        kind: "periodic" or "paper".
        weights_sha256: hash of its weights file; empty as long as the weights are not known.
    """

    id: str
    kind: str
    weights_sha256: str


@dataclass(frozen=True)
class LatentStorage:
    """How latents are stored: value = stored * scale_factor.

    Attributes:
        dtype: "int8", "float16" or "float32".
        scale_factor: positive for int8; None for the others, which are stored as they are.
        shape: (channel, a, b, c).

    Raises:
        InputError: the three do not make sense together.
    """

    dtype: str
    scale_factor: float | None
    shape: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        check_packing(self.dtype, self.scale_factor)
        if len(self.shape) != 4 or min(self.shape) < 1:
            raise InputError(f"a latent has 4 positive dimensions, not {self.shape}")

    def extent(self, work_grid: Sequence[int]) -> tuple[int, int, int]:
        """Points of the latent along a, b, c that a cell encoded on `work_grid` fills.

        A latent point stands for 128 / edge grid points: 16 in a latent of (8, 8, 8, 8), 8 in one
        of (16, 16, 16, 16) and 4 in one of (32, 32, 32, 32).
        """
        a, b, c = (
            -(-int(n) * edge // LATENT_BOX)
            for n, edge in zip(work_grid, self.shape[1:], strict=True)
        )
        return a, b, c


def check_packing(dtype: str, scale_factor: float | None) -> None:
    """Whether latents can be stored so.

    Raises:
        InputError: neither int8 with a positive scale factor nor floats without one.
    """
    if dtype in ("float16", "float32") and scale_factor is None:
        return
    if dtype == "int8" and scale_factor is not None and 0 < scale_factor < float("inf"):
        return
    raise InputError(
        "latents are stored as int8 with a positive scale_factor or as float16 or float32 without "
        f"one, not as {dtype} with {scale_factor}"
    )


@dataclass(frozen=True)
class StoreInfo:
    """The content of `chgdb.json`: what a store is, before anything else in it is read.

    Attributes:
        encoder: whose latents the store holds.
        latent: how they are stored.
        attribution: who made the data, under which licence.
        created_by: "chgdb x.y.z".
        format_version: of the store; one older than FORMAT_VERSION is only read.
    """

    encoder: EncoderInfo
    latent: LatentStorage
    attribution: str
    created_by: str
    format_version: int = FORMAT_VERSION

    def save(self, store: str | Place) -> None:
        """Write `chgdb.json` into the folder of a store; all of it or nothing.

        Raises:
            StoreError: it cannot be written.
        """
        content = {"format": FORMAT, "format_version": self.format_version, **asdict(self)}
        text = json.dumps({**content, "seal": UNSEALED}, indent=2, ensure_ascii=False) + "\n"
        replace_file(place(store) / INFO_FILE, sealed(text.encode()))

    @classmethod
    def load(cls, store: str | Place) -> StoreInfo:
        """Read `chgdb.json`.

        Raises:
            StoreError: the folder is not a store, or the file is damaged.
            FormatVersionError: the store has a format version this chgdb does not know.
        """
        path = place(store) / INFO_FILE
        content = _load_json(path)
        version = content.get("format_version")
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            raise FormatVersionError(
                f"{path}: store format {version!r}; this chgdb reads 1 to {FORMAT_VERSION}: "
                "pip install --upgrade chgdb"
            )
        try:
            encoder, latent = content["encoder"], content["latent"]
            channel, a, b, c = latent["shape"]
            known = [encoder[name] for name in ("id", "kind", "weights_sha256")]
            texts = [*known, content["attribution"], content["created_by"]]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("what names the encoder or the data is not text")
            return cls(
                encoder=EncoderInfo(encoder["id"], encoder["kind"], encoder["weights_sha256"]),
                latent=LatentStorage(latent["dtype"], latent["scale_factor"], (channel, a, b, c)),
                attribution=content["attribution"],
                created_by=content["created_by"],
                format_version=version,
            )
        except KeyError as error:
            raise StoreError(f"{path}: damaged, it lacks {error}") from error
        except (TypeError, ValueError, InputError) as error:
            raise StoreError(f"{path}: damaged ({reason(error)})") from error


def _load_json(path: Place) -> dict[str, Any]:
    """The content of a `chgdb.json` of any version."""
    try:
        text = path.read_bytes()
        if seal_holds(text) is False:
            raise StoreError(
                f"{path}: damaged, it has changed since it was written (seal); "
                "chgdb verify --repair restores it; who changes it by hand removes the seal"
            )
        content = json.loads(text.decode())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{path.parent}: not a chgdb store, it holds no {path.name}") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: damaged ({reason(error)})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StoreError(f"{path}: not the {path.name} of a chgdb store")
    return content
