"""The command line: one call of the library per command."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from chgdb import __version__
from chgdb.errors import ChgdbError, InputError, MissingExtraError, UnknownIdError
from chgdb.export import DENSITY_SUFFIXES, STRUCTURE_SUFFIXES, json_ready
from chgdb.files import one_line, reason, shown
from chgdb.output import (
    Listing,
    Report,
    progress_bar,
    show,
    show_json,
    show_mapping,
    show_prediction,
    show_record,
    show_scores,
    show_text,
)
from chgdb.resources import DEFAULT_ENCODER

if TYPE_CHECKING:
    from chgdb.archive import Tolerance
    from chgdb.database import Database, Filters
    from chgdb.density import ChargeDensity, Grid

__all__ = ["app", "main"]

app = typer.Typer(
    name="chgdb",
    help="A database of electronic charge densities that fits on a laptop.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train_app = typer.Typer(help="Train encoders and models of properties.", rich_markup_mode=None)
app.add_typer(train_app, name="train")

# ---------------------------------------------------------------------- options

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="DIR|s3://...",
        help="The store; else $CHGDB_STORE, ./store, or the one shipped with chgdb.",
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option(metavar="DEVICE", help="Where the encoder runs: auto, cuda, cuda:1 ... or cpu."),
]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Material ids.")]
Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH...",
        help="Densities, folders of them, globs; or POSCARs, CIFs and lists of structures.",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Work on a dask cluster: tcp://HOST:PORT, or local:N for N workers on this machine.",
        show_default=False,
    ),
]
Species = Annotated[
    str | None,
    typer.Option(
        metavar="Ti,O", help="Elements of a CHGCAR whose header does not name them (VASP 4)."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|DIR",
        help="The model, by its id or its folder; by default properties-1.",
        show_default=False,
    ),
]
GridOption = Annotated[
    str | None,
    typer.Option(metavar="N1,N2,N3", help="Grid of the result; by default that of the source."),
]


class Source(StrEnum):
    """What a density of the store is decoded from."""

    PAYLOAD = "payload"
    LATENT = "latent"


From = Annotated[
    Source | None,
    typer.Option(
        "--from",
        help="What a record is decoded from; by default its payload, or the latent without one.",
        show_default=False,
    ),
]

Formula = Annotated[
    str | None,
    typer.Option(metavar="TiO2", help="This composition: TiO2, O2Ti and Ti2O4 ask for the same."),
]
Elements = Annotated[str | None, typer.Option(metavar="Ti,O", help="At least these elements.")]
Exclude = Annotated[str | None, typer.Option(metavar="Pb,Cd", help="None of these elements.")]
Chemsys = Annotated[str | None, typer.Option(metavar="Ti-O", help="Exactly these elements.")]
NElements = Annotated[
    str | None, typer.Option("--nelements", metavar="N", help="Number of elements, or LOW:HIGH.")
]
Spacegroup = Annotated[
    str | None, typer.Option(metavar="227", help="Its number, a range, or its symbol (Fd-3m).")
]
CrystalSystem = Annotated[str | None, typer.Option(metavar="cubic", help="Crystal system.")]
SourceFilter = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="dft",
        help="Where the density comes from: dft, charge3net, or none for materials without one.",
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        metavar="EXPR",
        help="Condition on any column, in SQL or OPTIMADE: 'bulk_modulus > 150 AND NOT is_metal'.",
    ),
]
Sort = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Order by a column; -COLUMN reverses.")
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="At most so many records.")]


def _range(what: str) -> Any:
    return typer.Option(metavar="LOW:HIGH", help=f"{what}; either end may be left away.")


BulkModulus = Annotated[str | None, _range("Bulk modulus in GPa")]
ShearModulus = Annotated[str | None, _range("Shear modulus in GPa")]
YoungsModulus = Annotated[str | None, _range("Young's modulus in GPa")]
FormationEnergy = Annotated[str | None, _range("Formation energy in eV/atom")]
CohesiveEnergy = Annotated[str | None, _range("Cohesive energy in eV/atom")]
DebyeTemperature = Annotated[str | None, _range("Debye temperature in K")]
BandGap = Annotated[str | None, _range("Band gap in eV")]
NAtoms = Annotated[str | None, _range("Atoms in the cell")]
Volume = Annotated[str | None, _range("Cell volume in A^3")]

_SEARCH_COLUMNS = (
    "id",
    "formula",
    "spacegroup_symbol",
    "n_atoms",
    "bulk_modulus",
    "shear_modulus",
    "formation_energy",
    "band_gap",
    "source",
)
_TABLE_LIMIT = 50
"""Rows of a table for people, unless --limit says otherwise."""

_LISTED_RECORDS = 10
"""Up to so many files `add` says what became of each; beyond it, only how many."""

_POOR_NMAE = 10.0
"""% above which `add` warns that the encoder has not seen the like."""


class RecordFormat(StrEnum):
    """What `get` writes."""

    TABLE = "table"
    JSON = "json"
    CIF = "cif"
    POSCAR = "poscar"
    CHGCAR = "chgcar"
    CUBE = "cube"
    NPZ = "npz"
    NPY = "npy"


class Conflict(StrEnum):
    """What `add` does with an id that is taken."""

    ERROR = "error"
    SKIP = "skip"
    REPLACE = "replace"


class EncoderKind(StrEnum):
    """The two encoders."""

    PERIODIC = "periodic"
    PAPER = "paper"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chgdb {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show a traceback when something fails; may stand anywhere."),
    ] = False,
) -> None:
    """A database of electronic charge densities that fits on a laptop."""


def _open(store: str | None, device: str = "auto") -> Database:
    from chgdb.database import Database

    return Database(store, device=device)


# ---------------------------------------------------------------------- reading


@app.command()
def info(
    store: Store = None,
    format: Annotated[Report, typer.Option(help="How to print it.")] = Report.TABLE,  # noqa: A002
) -> None:
    """What the store holds: records, encoder, size, errors."""
    show_mapping(_open(store).summary(), format)


def _filters(options: dict[str, Any]) -> Filters:
    """The options of `search` and `export` as arguments of `Database.select`."""
    from chgdb.filters import RANGES

    sort = options["sort"] or ""
    return {
        "formula": options["formula"],
        "elements": options["elements"] or (),
        "exclude": options["exclude"] or (),
        "chemsys": options["chemsys"],
        "nelements": options["nelements"],
        "spacegroup": options["spacegroup"],
        "crystal_system": options["crystal_system"],
        "source": options["source"],
        "ranges": {name: options[name] for name in RANGES if options[name] is not None},
        "where": options["where"],
        "sort": sort.removeprefix("-") or None,
        "descending": sort.startswith("-"),
        "limit": options["limit"],
    }


@app.command()
def search(
    formula: Formula = None,
    elements: Elements = None,
    exclude: Exclude = None,
    chemsys: Chemsys = None,
    nelements: NElements = None,
    spacegroup: Spacegroup = None,
    crystal_system: CrystalSystem = None,
    source: SourceFilter = None,
    bulk_modulus: BulkModulus = None,
    shear_modulus: ShearModulus = None,
    youngs_modulus: YoungsModulus = None,
    formation_energy: FormationEnergy = None,
    cohesive_energy: CohesiveEnergy = None,
    debye_temperature: DebyeTemperature = None,
    band_gap: BandGap = None,
    n_atoms: NAtoms = None,
    volume: Volume = None,
    where: Where = None,
    sort: Sort = None,
    limit: Limit = None,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B", help="Columns to show; 'all' for every one.")
    ] = None,
    format: Annotated[Listing, typer.Option(help="How to print the records.")] = Listing.TABLE,  # noqa: A002
    store: Store = None,
) -> None:
    """Find records: chgdb search --elements Ti,O --where "bulk_modulus > 150".

    A table ends after 50 records unless --limit says otherwise; the other formats are complete.
    """
    filters = _filters(locals())
    database = _open(store)
    if format is Listing.IDS:
        filters["columns"] = "id"
    elif columns is None:
        asked = [*(filters["ranges"] or ()), filters["sort"] or "id"]
        filters["columns"] = [*_SEARCH_COLUMNS, *asked]
    elif columns != "all":
        filters["columns"] = columns
    if format is not Listing.TABLE:
        found = database.select(**filters)
        show(found.rows(), found.columns, format)
        return
    shown = limit or _TABLE_LIMIT
    filters["limit"] = limit or _TABLE_LIMIT + 1
    found = database.select(**filters)
    show(found.rows()[:shown], found.columns, format)
    total, more = len(found), ""
    if total > shown:
        total = database.count(**filters)
        more = f", the first {shown} shown: --limit {total} shows all"
    typer.echo(f"{total} record{'s' * (total != 1)}{more}", err=True)


@app.command()
def get(
    ids: Ids,
    decode: Annotated[bool, typer.Option("--decode", help="Write the charge density.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write, or folder when there are several ids."),
    ] = None,
    grid: GridOption = None,
    source: From = None,
    format: Annotated[  # noqa: A002
        RecordFormat | None,
        typer.Option(help="By default chgcar with --decode and table without.", show_default=False),
    ] = None,
    store: Store = None,
    device: Device = "auto",
) -> None:
    """Show records, or write their densities: chgdb get mp-149 --decode."""
    wanted = format or _wanted(output, decode)
    points = _parse_grid(grid)
    if decode and wanted not in (*DENSITY_SUFFIXES, RecordFormat.NPY):
        raise InputError(f"--decode writes chgcar, cube, npz or npy, not {wanted}")
    if wanted is RecordFormat.NPY and (points or source):
        raise InputError("npy is what the decoder makes of the latent: no --grid, no --from")
    if points and wanted not in DENSITY_SUFFIXES:
        raise InputError("--grid is the grid of a decoded density: add --decode")
    if source and wanted not in DENSITY_SUFFIXES:
        raise InputError("--from is what a density is decoded from: add --decode")
    if output and wanted not in (*DENSITY_SUFFIXES, *STRUCTURE_SUFFIXES, RecordFormat.NPY):
        raise InputError("-o goes with --decode, or with --format cif or poscar")
    database = _open(store, device)
    if wanted in DENSITY_SUFFIXES:
        _write_densities(database, ids, points, source, wanted, output)
    elif wanted in STRUCTURE_SUFFIXES:
        _write_structures(database, ids, wanted, output)
    elif wanted is RecordFormat.NPY:
        _write_boxes(database, ids, output)
    else:
        _show_records(database, ids, wanted)


def _show_records(database: Database, ids: Sequence[str], wanted: RecordFormat) -> None:
    records = database.get(ids)
    predicted = database.predicted(ids)
    if wanted is not RecordFormat.JSON:
        for record in records:
            show_record(record.row, predicted.get(record.id))
        return
    objects = [json_ready(record.row) for record in records]
    for item in objects:
        if item["id"] in predicted:
            item["predicted"] = predicted[item["id"]]
    show_json(objects)


def _wanted(output: Path | None, decode: bool) -> RecordFormat:
    """What `get` writes when --format does not say so."""
    if not decode:
        return RecordFormat.TABLE
    if output and output.suffix.lower() == ".npy":
        return RecordFormat.NPY
    from chgdb.decoded import format_of

    return RecordFormat(format_of(output or ""))


def _parse_grid(text: str | None) -> Grid | None:
    if text is None:
        return None
    try:
        n1, n2, n3 = (int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise InputError(f"--grid {text}: give three numbers such as 48,48,64") from error
    return n1, n2, n3


def _targets(ids: Sequence[str], suffix: str, output: Path | None) -> list[Path]:
    """One file per id, in the current folder, in the folder given, or the file given."""
    from chgdb.schema import check_id

    if output is not None and len(ids) == 1 and not output.is_dir():
        return [output]
    folder = output or Path()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: several ids need a folder, this is a file")
    # A store may come from anywhere: its ids must not lead out of the folder.
    return [folder / f"{check_id(material_id)}{suffix}" for material_id in ids]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({reason(error)})") from error


def _write_densities(
    database: Database,
    ids: Sequence[str],
    grid: Grid | None,
    source: Source | None,
    wanted: RecordFormat,
    output: Path | None,
) -> None:
    records = database.get(ids)
    targets = _targets(ids, DENSITY_SUFFIXES[wanted], output)
    for record, target in zip(records, targets, strict=True):
        density = record.density(grid, (source or Source.PAYLOAD).value)
        if len(targets) > 1:
            _make_folder(target.parent)
        density.write(target, format=wanted.value)
        typer.echo(
            f"{record.id}: {target} ({_by(density.grid)} points, "
            f"{density.n_electrons:.4f} electrons; {density.origin}, "
            f"NMAE {density.nmae:.3g} % on the grid of its source)"
        )
        if record.row["magnetization"] is not None and density.magnetization is None:
            _warn(f"{record.id}: the total density; a latent does not hold the magnetization")


def _write_boxes(database: Database, ids: Sequence[str], output: Path | None) -> None:
    import numpy as np

    from chgdb.files import replacing

    for material_id, target in zip(ids, _targets(ids, ".npy", output), strict=True):
        (box,) = database.decode_box([material_id])
        if len(ids) > 1:
            _make_folder(target.parent)
        with replacing(target) as partial, partial.open("wb") as file:
            np.save(file, box)
        typer.echo(
            f"{material_id}: {target} ({_by(box.shape)} points, the decoder's output as it is)"
        )


def _write_structures(
    database: Database, ids: Sequence[str], wanted: RecordFormat, output: Path | None
) -> None:
    from chgdb.export import write_structure

    records = database.get(ids)
    targets = _targets(ids, STRUCTURE_SUFFIXES[wanted], output)
    for record, target in zip(records, targets, strict=True):
        if len(targets) > 1:
            _make_folder(target.parent)
        write_structure(target, record.structure, wanted.value, comment=record.id)
        typer.echo(f"{record.id}: {target}")


def _by(grid: Sequence[int]) -> str:
    return " x ".join(str(n) for n in grid)


@app.command()
def compare(
    density: Annotated[str, typer.Argument(metavar="FILE|ID", help="A density.")],
    reference: Annotated[str, typer.Argument(metavar="FILE|ID", help="What it is held against.")],
    source: From = None,
    store: Store = None,
    device: Device = "auto",
) -> None:
    """The error of one density against another: chgdb compare mp-149 CHGCAR."""
    from chgdb.metrics import compare_cells

    first, second = (_load(name, source, store, device) for name in (density, reference))
    error = compare_cells(first, second)
    typer.echo(
        f"NMAE {error.nmae:.4f} %, largest error {error.max_error:.4g} e/A^3, "
        f"electrons {error.electron_error:+.2e} ({_by(second.grid)} points)"
    )


def _load(name: str, source: Source | None, store: str | None, device: str) -> ChargeDensity:
    """A density from a file, or else from the store."""
    from chgdb.formats import read_density

    if Path(name).exists():
        return read_density(name)[0]
    try:
        return _open(store, device)[name].density(source=(source or Source.PAYLOAD).value)
    except UnknownIdError as error:
        raise InputError(f"no file {name!r}, and {error}") from error


@app.command()
def plot(
    density: Annotated[str, typer.Argument(metavar="FILE|ID", help="A density.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG, SVG or PDF to write.")],
    reference: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID", help="Show it and the difference beside the density."),
    ] = None,
    normal: Annotated[
        str, typer.Option(metavar="H,K,L", help="The plane: Miller indices, or the axis it cuts.")
    ] = "c",
    at: Annotated[
        float, typer.Option(help="Where it is, as a fraction of the spacing of such planes.")
    ] = 0.0,
    source: From = None,
    store: Store = None,
    device: Device = "auto",
) -> None:
    """Draw a slice through a density, and how it differs from another."""
    from chgdb.plot import plot_slice

    first = _load(density, source, store, device)
    second = _load(reference, source, store, device) if reference else None
    plot_slice(first, output, reference=second, normal=normal, height=at, title=density)
    typer.echo(str(output))


# ---------------------------------------------------------------------- predicting


@app.command()
def predict(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID|FILE...", help="Material ids, and files of densities."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every material, into the store, where search finds it.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --all: predict also what is up to date.")
    ] = False,
    scheduler: Scheduler = None,
    model: Model = None,
    species: Species = None,
    store: Store = None,
    format: Annotated[Report, typer.Option(help="How to print it.")] = Report.TABLE,  # noqa: A002
) -> None:
    """Predict moduli, energies and the Debye temperature: chgdb predict mp-149 CHGCAR.

    Each value comes with its 90 % interval, and with what speaks against trusting it.

    With --all, features that are missing are computed, and the predictions are stored beside the
    reference values; an interrupted run is resumed by repeating it.
    """
    if bool(targets) == everything:
        raise InputError("name materials or files to predict, or give --all for every material")
    if force and not everything:
        raise InputError("--force goes with --all")
    if scheduler and not everything:
        raise InputError("--scheduler goes with --all")
    database = _open(store)
    if everything:
        _predict_all(database, model, force, scheduler, format)
        return
    with progress_bar("predicting") as progress:
        frame = database.predict(
            targets or [],
            model,
            species=_symbols(species),
            progress=_heeding_interrupts(progress),
        )
    rows: list[dict[str, Any]] = [
        {str(name): None if value != value else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]
    if format is Report.CSV:
        show(rows, tuple(rows[0]), format)
        return
    for row in rows:
        row["neighbours"] = json.loads(row["neighbours"])
    if format is Report.JSON:
        show_json(rows)
        return
    for number, row in enumerate(rows):
        if number:
            typer.echo()
        show_prediction(row)


def _symbols(text: str | None) -> list[str] | None:
    """The element symbols in "Ti,O"."""
    return None if text is None else text.replace(",", " ").split()


def _predict_all(
    database: Database, model: str | None, force: bool, scheduler: str | None, wanted: Report
) -> None:
    start = perf_counter()
    with progress_bar("predicting") as progress:
        report = database.predict_all(
            model, force=force, scheduler=scheduler, progress=_heeding_interrupts(progress)
        )
    seconds = perf_counter() - start
    if wanted is Report.TABLE:
        typer.echo(
            f"{report.predicted} predicted, {report.current} up to date; features of "
            f"{report.features} computed; {seconds:.1f} s"
        )
    else:
        counts = {
            "predicted": report.predicted,
            "up to date": report.current,
            "features computed": report.features,
            "failed": len(report.failed),
            "seconds": round(seconds, 1),
        }
        show_mapping(counts, wanted)
    for material_id, why in report.failed:
        _say(f"error: {material_id}: {why.removeprefix(f'{material_id}: ')}")
    if report.failed:
        raise typer.Exit(1)


@app.command()
def similar(
    target: Annotated[
        str, typer.Argument(metavar="ID|FILE", help="A material, or the file of a density.")
    ],
    number: Annotated[
        int, typer.Option("-n", "--number", min=1, metavar="N", help="How many.")
    ] = 10,
    species: Species = None,
    store: Store = None,
    format: Annotated[Report, typer.Option(help="How to print them.")] = Report.TABLE,  # noqa: A002
) -> None:
    """Find the materials whose densities are most alike: chgdb similar mp-149 -n 5."""
    found = _open(store).nearest(target, number, species=_symbols(species))
    show(found.rows(), found.columns, format)


# ---------------------------------------------------------------------- writing


@app.command()
def init(
    path: Annotated[
        str, typer.Argument(metavar="DIR|s3://...", help="A new folder, or a prefix in a bucket.")
    ],
    encoder: Annotated[
        str, typer.Option(metavar="ID", help="The encoder its latents come from.")
    ] = DEFAULT_ENCODER,
    attribution: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="Who made the data that will be in it, under which licence."
        ),
    ] = "",
) -> None:
    """Make an empty store."""
    from chgdb.database import Database

    database = Database.create(path, encoder=encoder, attribution=attribution)
    typer.echo(f"{path}: empty store for latents of {database.info.encoder.id}")


@app.command()
def add(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH...", help="Density files, folders of them, or globs."),
    ] = None,
    files_from: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE", help="More paths, one a line; - reads them here."),
    ] = None,
    id: Annotated[  # noqa: A002
        list[str] | None,
        typer.Option("--id", help="Id of the record, once per file; by default from its name."),
    ] = None,
    on_conflict: Annotated[
        Conflict, typer.Option(help="When the id is taken by another density.")
    ] = Conflict.ERROR,
    species: Species = None,
    properties: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Reference properties by material_id (docs/format.md)."),
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help="Largest NMAE of a payload; by default 0.1%, or none with --max-error.",
            show_default=False,
        ),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(metavar="E/A^3", help="Largest error of a payload at any point."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Processes that read and encode files; by default as many as pay.",
        ),
    ] = None,
    scheduler: Scheduler = None,
    refine: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="STEPS",
            help="Steps that improve each latent; fewer are faster and less exact (docs/bulk.md).",
            show_default=False,
        ),
    ] = None,
    store: Store = None,
    device: Device = "auto",
) -> None:
    """Encode densities and store them.

    The payload of each keeps the density within the tolerance (0% is lossless); the latent is for
    machine learning.

    A POSCAR, a CIF or a JSON list such as structures.json.gz gets a density that ChargE3Net
    predicts, the smallest cell first (docs/charge3net.md); it never replaces one from DFT.

    Files stored already are skipped, so an interrupted run is resumed by repeating it. A bad file
    is reported, and stops no other.
    """
    limit = _parse_tolerance(tolerance, max_error)
    if not paths and files_from is None:
        raise InputError("name files to add, or a list of them with --list")
    with progress_bar("adding") as progress:
        report = _open(store, device).add(
            [*(paths or []), *(_listed(files_from) if files_from else [])],
            ids=id or None,
            on_conflict=on_conflict.value,
            species=_symbols(species),
            properties=properties,
            tolerance=limit,
            processes=processes,
            scheduler=scheduler,
            refine_steps=refine,
            progress=_heeding_interrupts(progress),
        )
    if len(report) <= _LISTED_RECORDS:
        for row in report.added:
            grid = [row[f"grid_{axis}"] for axis in "abc"]
            if row["source"] != "dft":
                expected = f"NMAE of about {row['source_nmae']:.2g} % against DFT"
                typer.echo(f"{row['id']}: predicted by {row['source']}, {expected}")
            typer.echo(
                f"{row['id']}: added, {row['formula']}, {_by(grid)} points, "
                f"{row['n_electrons']:.4f} electrons; payload {row['payload_bytes']} bytes, "
                f"NMAE {row['payload_nmae']:.3g} %; latent NMAE {row['latent_nmae']:.3g} %"
            )
        for path, why in report.skipped:
            show_text(f"{path}: skipped, {why}")
    for row in report.added:
        if row["latent_coarse"]:
            _warn(f"{row['id']}: longer than the encoder's box, encoded coarser than usual")
        if row["latent_nmae"] > _POOR_NMAE:
            _warn(
                f"{row['id']}: the latent holds this density poorly (NMAE "
                f"{row['latent_nmae']:.0f} %); docs/vasp.md says what suits an encoder"
            )
    if len(report) > 1:
        typer.echo(
            f"{len(report.added)} added, {len(report.skipped)} skipped, {len(report.failed)} failed"
        )
    for _, why in report.failed:
        _say(f"error: {why}")
    if report.failed:
        raise typer.Exit(1)


def _listed(path: Path) -> list[Path]:
    """The paths in a list, one a line."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8", "surrogateescape")
    except (OSError, ValueError) as error:
        raise InputError(f"{shown(path)}: cannot be read ({reason(error)})") from error
    lines = (line.strip() for line in text.splitlines())
    return [Path(line) for line in lines if line]


def _parse_tolerance(text: str | None, max_error: float | None) -> Tolerance:
    """What `add` asks of payloads; the default NMAE holds where nothing is said."""
    from chgdb.archive import Tolerance

    if max_error is not None and not 0 <= max_error < math.inf:
        raise InputError(f"--max-error {max_error}: give a number of 0 or more, in e/A^3")
    if text is None:
        return Tolerance() if max_error is None else Tolerance(None, max_error)
    try:
        nmae = float(text.strip().removesuffix("%"))
    except ValueError:
        nmae = math.nan
    if not 0 <= nmae <= 100:
        raise InputError(f"--tolerance {text}: give a percentage from 0 to 100, such as 0.1%")
    return Tolerance(nmae, max_error)


@app.command("import-table")
def import_table(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="CSV", help="material_id, formula, and properties as docs/format.md says."
        ),
    ],
    structures: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="Crystal structures by id, as `add` takes them."),
    ] = None,
    store: Store = None,
) -> None:
    """Store what is known of materials whose densities are not there, or not yet.

    Each becomes a record that search and predict find, and that `add` gives a density later.
    Records that are there get the properties.
    """
    from chgdb.intake import read_materials
    from chgdb.structure_files import structures_by_id

    materials = read_materials(table)
    known, bad = structures_by_id(structures) if structures else ({}, [])
    with progress_bar("importing") as progress:
        report = _open(store).import_materials(
            materials, known, progress=_heeding_interrupts(progress)
        )
    same = len(materials) - len(report.added) - len(report.updated) - len(report.failed)
    typer.echo(
        f"{len(report.added)} added, {len(report.updated)} updated, {same} as they were, "
        f"{len(report.failed)} failed"
    )
    for why in [*bad, *(f"{material_id}: {why}" for material_id, why in report.failed)]:
        _say(f"error: {why}")
    if bad or report.failed:
        raise typer.Exit(1)


@app.command("import-release")
def import_release_(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="With the files FORMULA_SPACEGROUP_latent.npy."),
    ],
    table: Annotated[Path, typer.Option(metavar="CSV", help="The authors' table of properties.")],
    decoder: Annotated[
        Path | None,
        typer.Option(metavar="H5", help="Keras weights of the decoder, or of both halves."),
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(metavar="H5", help="Keras weights of the encoder, if it has its own file."),
    ] = None,
    structures: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="Crystal structures by id (docs/release.md)."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="JSON", help="File for the whole report.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="Show at most so many findings of each kind.")
    ] = 5,
    store: Store = None,
) -> None:
    """Import the latents, properties and weights that the authors of arXiv 2605.07227 released.

    The store is made where there is none. What is missing, wrong or implausible is listed, and the
    rest is imported; repeat the command to go on after an interruption, or to bring weights later.
    """
    from chgdb.release_import import import_release

    with progress_bar("importing") as progress:
        done = import_release(
            folder,
            table,
            store,
            decoder=decoder,
            encoder=encoder,
            structures=structures,
            progress=_heeding_interrupts(progress),
        )
    if report is not None:
        done.save(report)
    typer.echo(
        f"{done.rows} rows, {done.files} latents: {len(done.imported)} imported, "
        f"{done.present} there already, {done.failed} bad"
    )
    for kind, count in done.counts.items():
        typer.echo(f"  {count:6}  {kind}")
    for line in done.details(limit):
        show_text(line)
    if done.failed:
        raise typer.Exit(1)


@app.command()
def ui(
    host: Annotated[
        str, typer.Option(help="Address to listen at; 127.0.0.1 is reached from here alone.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for any that is free.")
    ] = 8765,
    max_upload: Annotated[
        int, typer.Option(min=1, metavar="MB", help="Largest file that the page takes.")
    ] = 1000,
    sources: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Files that densities came from: shown beside what is decoded, by their SHA-256.",
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
    store: Store = None,
    device: Device = "auto",
) -> None:
    """See and search the store in a browser, and drop CHGCARs on it.

    Serves a page until Ctrl-C. Its address holds a token, without which nothing is added to the
    store. The same paths answer notebooks in JSON (/openapi.json) and OPTIMADE clients (/v1).
    """
    # several requests work at once, and threads that wait for one another on a busy machine stall
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
    from chgdb.formats import densities_by_sha256
    from chgdb.guard import is_loopback
    from chgdb.web import serve

    database = _open(store, device)
    with progress_bar("looking for sources") as progress:
        originals = densities_by_sha256(sources, progress) if sources else {}

    def ready(url: str) -> None:
        typer.echo(f"{url}\n{len(database)} materials of {shown(database.place)}; Ctrl-C stops")
        sys.stdout.flush()
        if not is_loopback(host):
            _warn("whoever reaches this port can read the store and send files")

    serve(
        database,
        host=host,
        port=port,
        most_bytes=max_upload * 10**6,
        originals=originals,
        ready=ready,
        browser=browser,
    )


@app.command()
def remove(ids: Ids, store: Store = None) -> None:
    """Remove records, all or none."""
    _open(store).remove(ids)
    count = len(set(ids))
    typer.echo(f"{count} record{'s' * (count != 1)} removed")


@app.command()
def verify(
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Decode the latents too, and compare them with the payloads."),
    ] = False,
    sources: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Compute the errors anew from the density files in a folder."
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Restore what can be restored (with --sources also from the files), drop what is "
            "lost and list it. Damaged files are kept in the folder damaged.",
        ),
    ] = False,
    format: Annotated[Report, typer.Option(help="How to print it.")] = Report.TABLE,  # noqa: A002
    store: Store = None,
    device: Device = "auto",
) -> None:
    """Look at every byte of the store, and say what is wrong and what to do.

    Errors are what is lost or contradicts itself; notes are leftovers that harm nothing. The exit
    code is 1 if there are errors, with --repair if there are still.
    """
    from chgdb.resources import find_store
    from chgdb.verification import verify

    path, found = find_store(store), None
    if repair:
        from chgdb.repair import repair as repaired

        report = repaired(path, sources=sources, device=device)
        for line in report.done:
            _say(f"restored: {line}")
        for line in report.lost:
            _say(f"lost: {line}")
        found = None if deep or sources else report.left  # it has looked at all else already
    if found is None:
        with progress_bar("verifying") as progress:
            looked = _heeding_interrupts(progress)
            found = list(verify(path, deep=deep, sources=sources, device=device, progress=looked))
    if format is Report.TABLE:
        for finding in found:
            show_text(str(finding))
    else:
        show([asdict(finding) for finding in found], ("level", "where", "what", "advice"), format)
    errors = sum(finding.level == "error" for finding in found)
    notes = len(found) - errors
    typer.echo(f"{errors} error{'s' * (errors != 1)}, {notes} note{'s' * (notes != 1)}", err=True)
    if errors:
        raise typer.Exit(1)


@app.command()
def compact(store: Store = None) -> None:
    """Give back space: join files, drop stale features, erase what interrupted writers left."""
    before, after = _open(store).compact()
    typer.echo(f"{before / 1e6:.3f} MB before, {after / 1e6:.3f} MB after")


@app.command()
def export(
    target: Annotated[
        str,
        typer.Argument(
            help="A table (.csv, .json, .parquet), structures (.extxyz), or a new store: a folder, "
            "or s3://BUCKET/PREFIX."
        ),
    ],
    formula: Formula = None,
    elements: Elements = None,
    exclude: Exclude = None,
    chemsys: Chemsys = None,
    nelements: NElements = None,
    spacegroup: Spacegroup = None,
    crystal_system: CrystalSystem = None,
    source: SourceFilter = None,
    bulk_modulus: BulkModulus = None,
    shear_modulus: ShearModulus = None,
    youngs_modulus: YoungsModulus = None,
    formation_energy: FormationEnergy = None,
    cohesive_energy: CohesiveEnergy = None,
    debye_temperature: DebyeTemperature = None,
    band_gap: BandGap = None,
    n_atoms: NAtoms = None,
    volume: Volume = None,
    where: Where = None,
    sort: Sort = None,
    limit: Limit = None,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B", help="Columns of a table; by default every one.")
    ] = None,
    store: Store = None,
) -> None:
    """Write the records that fit as a table, as structures, or as a store of their own."""
    filters = _filters(locals())
    filters["columns"] = columns
    count = _open(store).export(target, **filters)
    typer.echo(f"{target}: {count} record{'s' * (count != 1)}")


# ---------------------------------------------------------------------- training


@train_app.command("encoder")
def train_encoder(
    paths: Paths,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")],
    kind: Annotated[EncoderKind, typer.Option(help="Which network.")] = EncoderKind.PERIODIC,
    latent_size: Annotated[int, typer.Option(help="8, 16 or 32.")] = 16,
    properties: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Its column split says who is train, val and test."),
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Passes over the training materials.")
    ] = 72,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Of the weights and of the order of the materials.")
    ] = 0,
    resume: Annotated[bool, typer.Option(help="Take up the run in the folder.")] = True,
    device: Device = "auto",
) -> None:
    """Train an encoder on density files; an interrupted run is resumed."""
    from chgdb.train import encoder_config, load_samples, settings_for, train_encoder

    parts = load_samples(paths, properties)
    typer.echo(", ".join(f"{len(samples)} {name}" for name, samples in parts.items()))
    train_encoder(
        encoder_config(kind.value, latent_size),
        parts["train"],
        parts["val"],
        output,
        settings_for(kind.value, epochs=epochs, seed=seed),
        device=device,
        resume=resume,
        report=typer.echo,
    )
    typer.echo(f"{output}: encoder written; measure it with: chgdb train evaluate {output} ...")


@train_app.command("evaluate")
def train_evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of an encoder.")],
    paths: Paths,
    properties: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Its column split says who is test.")
    ] = None,
    part: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    device: Device = "auto",
    format: Annotated[Report, typer.Option(help="How to print them.")] = Report.TABLE,  # noqa: A002
) -> None:
    """Errors of an encoder on density files, after storage, in the true cell."""
    from chgdb.codec import load_codec
    from chgdb.train import evaluate_encoder, load_samples

    samples = load_samples(paths, properties).get(part)
    if not samples:
        raise InputError(f"no materials in part {part!r}")
    errors = evaluate_encoder(load_codec(model, device), samples)
    rows = [{"id": name, **values} for name, values in errors.items()]
    show(rows, tuple(rows[0]), format)
    nmae = [values["nmae"] for values in errors.values()]
    typer.echo(
        f"{len(nmae)} materials: NMAE median {median(nmae):.3f} %, largest {max(nmae):.3f} %",
        err=True,
    )


@train_app.command("properties")
def train_properties_(
    properties: Annotated[
        Path,
        typer.Option(metavar="CSV", help="Reference values by material, and the column split."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the model.")
    ],
    networks: Annotated[int, typer.Option(min=1, metavar="N", help="Of each variant.")] = 4,
    epochs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Passes over the training materials.")
    ] = 150,
    seed: Annotated[int, typer.Option(metavar="N", help="Of networks and trees.")] = 0,
    store: Store = None,
) -> None:
    """Fit the property model to the features in the store; an interrupted run is resumed."""
    from chgdb.intake import read_properties
    from chgdb.property_evaluation import write_card
    from chgdb.train_properties import Settings, join, train_properties

    features = _open(store).features()
    known = read_properties(properties)
    settings = Settings(networks=networks, epochs=epochs, seed=seed)
    with progress_bar("training") as progress:
        model = train_properties(
            features,
            known,
            output,
            model_id=output.resolve().name,
            settings=settings,
            progress=_heeding_interrupts(progress),
        )
    write_card(output, model, join(features, known))
    typer.echo(f"{output}: {model.id} version {model.version}, {model.sha256[:12]}")


@train_app.command("system")
def train_system(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Such as latent-lightgbm or attention-cnn.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the system.")
    ],
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Of a network, at most.")] = 60,
    trials: Annotated[
        int, typer.Option(min=0, metavar="N", help="Settings that trees are tried with.")
    ] = 40,
    widths: Annotated[
        str, typer.Option(metavar="N,N,N", help="Channels of a network; 64,128,256 in the paper.")
    ] = "16,32,64",
    fill: Annotated[
        str, typer.Option(metavar="FILL", help="Beside the cell in the box: crystal or zeros.")
    ] = "crystal",
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything.")] = 0,
    store: Store = None,
) -> None:
    """Train one of the paper's systems on the materials of the store that have a density."""
    from chgdb.system_models import Fill
    from chgdb.systems import TrainOptions, system_data, train

    if not all(part.strip().isdecimal() for part in widths.split(",")):
        raise InputError(f"--widths {widths}: give whole numbers, such as 16,32,64")
    channels = tuple(int(part) for part in widths.split(","))
    if fill not in get_args(Fill):
        raise InputError(f"--fill {fill}: use {' or '.join(get_args(Fill))}")
    options = TrainOptions(epochs=epochs, trials=trials, widths=channels, fill=cast(Fill, fill))
    data = system_data(_open(store))
    train(name, data, seed=seed, out=output, options=options, progress=typer.echo)
    typer.echo(str(output))


@app.command()
def evaluate(
    properties: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Reference values and split of more materials than the store has densities of.",
        ),
    ] = None,
    part: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    systems: Annotated[
        bool, typer.Option(help="Also the trained systems of the paper, on the stored densities.")
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder for tables and figures."),
    ] = None,
    model: Model = None,
    store: Store = None,
    format: Annotated[Report, typer.Option(help="How to print it.")] = Report.TABLE,  # noqa: A002
) -> None:
    """Score the property models: R2, MAE and RMSE with 95 % bootstrap intervals.

    Beside the default model stand the predictions that pydemi ships, where it is installed, and the
    systems of the paper. With -o, parity plots, distributions and SHAP shares are drawn.
    """
    from chgdb.assessment import assess, write_assessment
    from chgdb.intake import read_properties
    from chgdb.system_models import SYSTEMS

    result = assess(
        _open(store),
        read_properties(properties) if properties else None,
        model=model,
        systems=SYSTEMS if systems else (),
        part=part,
    )
    rows = [
        {str(name): value for name, value in row.items()}
        for row in result.scores.to_dict("records")
    ]
    show_scores(rows, format)
    if output is not None:
        files = write_assessment(result, output)
        typer.echo(f"{output}: {len(files)} files", err=True)


# ---------------------------------------------------------------------- running


_EXTRAS = {
    "h5py": "release",
    "distributed": "cluster",
    "e3nn": "ml-density",
    "fastapi": "web",
    "fsspec": "s3",
    "lark": "web",
    "lightgbm": "ml",
    "matplotlib": "plot",
    "obstore": "s3",
    "optimade": "web",
    "optuna": "ml",
    "pydantic": "web",
    "pydemi": "ml",
    "safetensors": "ml",
    "starlette": "web",
    "torch": "ml",
    "uvicorn": "web",
}
"""The extra of chgdb that brings a package."""

_UsageError: Any = typer.BadParameter.__mro__[2]
"""Click's ClickException: what the parser of the command line raises. Typer does not export it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every failure is one line and an exit code that is not 0."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with _noted_interrupts() as interrupts:
        try:
            code = app(words or ["--help"], prog_name="chgdb", standalone_mode=False)
            sys.stdout.flush()
        except BrokenPipeError:
            _close_output()
            code = 1
        except (KeyboardInterrupt, typer.Abort):
            code = _INTERRUPTED
        except Exception as error:
            if debug:
                raise
            code = _INTERRUPTED if interrupts else _explain(error)
    if code == _INTERRUPTED:
        _say("interrupted")
    sys.exit(code or 0)


_interrupts: list[int] = []
"""The interrupts that came to the command that is running."""


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """The interrupts that came; DuckDB answers one with an error of its own."""
    interrupts = _interrupts
    interrupts.clear()

    def note(number: int, _: object) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.default_int_handler:  # ignored, as by nohup, or another's business
        yield interrupts
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, previous)


def _heeding_interrupts(
    progress: Callable[[int, int], None] | None,
) -> Callable[[int, int], None]:
    """Stop long work at its next step where a destructor or a library swallowed the interrupt."""

    def advance(done: int, total: int) -> None:
        if _interrupts:
            raise KeyboardInterrupt
        if progress:
            progress(done, total)

    return advance


_INTERRUPTED = 130


def _explain(error: Exception) -> int:
    """Say in one line what went wrong; the exit code."""
    if isinstance(error, ChgdbError):
        _say(f"error: {error}")
        return 1
    if isinstance(error, _UsageError):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "chgdb"
        _say(f"error: {error.format_message()} (see {command} --help)")
        return 2
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        _say(f"error: {MissingExtraError('this command', _EXTRAS[error.name])}")
        return 1
    if isinstance(error, OSError):
        _say(f"error: {error.filename or 'standard output'}: {reason(error)}")
        _close_output()
        return 1
    _say(f"error: unexpected {type(error).__name__}: {error} (--debug shows more)")
    return 70


def _close_output() -> None:
    """Give up the standard output, so that nothing complains when Python flushes it at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _warn(text: str) -> None:
    _say(f"note: {text}")


def _say(text: str) -> None:
    """One line on the standard error."""
    typer.echo(f"chgdb: {one_line(text)}", err=True)
