"""The command line: one call of the library per command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chgdb import __version__
from chgdb.errors import ChgdbError, InputError
from chgdb.output import Listing, show, show_record

if TYPE_CHECKING:
    from chgdb.database import Database
    from chgdb.density import ChargeDensity, Grid

__all__ = ["app", "main"]

app = typer.Typer(
    name="chgdb",
    help="A database of electronic charge densities that fits on a laptop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train_app = typer.Typer(
    help="Train encoders and measure them.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(train_app, name="train")

Store = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        help="The store; else $CHGDB_STORE, ./store, or the one shipped with chgdb.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", help="Where the encoder runs: auto, cuda or cpu.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Material ids.")]
Paths = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="Density files, folders of them, or globs."),
]
Species = Annotated[
    str | None,
    typer.Option(
        metavar="Ti,O", help="Elements of a CHGCAR whose header does not name them (VASP 4)."
    ),
]
GridOption = Annotated[
    str | None,
    typer.Option(metavar="N1,N2,N3", help="Grid of the result; by default that of the source."),
]

_RANGES = (
    "bulk_modulus",
    "shear_modulus",
    "youngs_modulus",
    "formation_energy",
    "cohesive_energy",
    "debye_temperature",
    "band_gap",
    "n_atoms",
    "volume",
)
"""Columns with a range option of their own; --where reaches all."""

_SEARCH_COLUMNS = (
    "id",
    "formula",
    "spacegroup_symbol",
    "n_atoms",
    "bulk_modulus",
    "shear_modulus",
    "formation_energy",
    "band_gap",
    "latent_nmae",
)


class RecordFormat(StrEnum):
    """What `get` writes."""

    TABLE = "table"
    JSON = "json"
    CIF = "cif"
    POSCAR = "poscar"
    CHGCAR = "chgcar"
    CUBE = "cube"
    NPZ = "npz"


_DENSITY_SUFFIX = {
    RecordFormat.CHGCAR: ".CHGCAR.vasp",
    RecordFormat.CUBE: ".cube",
    RecordFormat.NPZ: ".npz",
}
_STRUCTURE_SUFFIX = {RecordFormat.CIF: ".cif", RecordFormat.POSCAR: ".POSCAR.vasp"}


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
        bool, typer.Option("--debug", help="Show a traceback when something fails.")
    ] = False,
) -> None:
    """A database of electronic charge densities that fits on a laptop."""


def _open(store: Path | None, device: str = "auto") -> Database:
    from chgdb.database import Database

    return Database(store, device=device)


# ---------------------------------------------------------------------- reading


@app.command()
def info(store: Store = None, format: Annotated[Listing, typer.Option()] = Listing.TABLE) -> None:  # noqa: A002
    """What the store holds: records, encoder, size, errors."""
    rows = [{"what": what, "value": value} for what, value in _open(store).summary().items()]
    show(rows, ("what", "value"), format)


def _filters(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that choose records; it gets them as one dict `filters`."""
    import inspect

    text = str | None
    number_range = "LOW:HIGH, either end open."
    options: dict[str, tuple[Any, Any]] = {
        "formula": (text, typer.Option(metavar="TiO2", help="This formula.")),
        "elements": (text, typer.Option(metavar="Ti,O", help="At least these elements.")),
        "exclude": (text, typer.Option(metavar="Pb,Cd", help="None of these elements.")),
        "chemsys": (text, typer.Option(metavar="Ti-O", help="Exactly these elements.")),
        "nelements": (text, typer.Option(metavar="N", help="Number of elements, or N:M.")),
        "spacegroup": (text, typer.Option(metavar="227", help="Number or symbol (Fd-3m).")),
        "crystal_system": (text, typer.Option(metavar="cubic", help="Crystal system.")),
        **{
            name: (text, typer.Option(metavar="LOW:HIGH", help=f"Range of {name}: {number_range}"))
            for name in _RANGES
        },
        "where": (
            text,
            typer.Option(
                metavar="EXPR",
                help="Condition on any column, as in SQL or OPTIMADE: "
                "'bulk_modulus > 150 AND NOT is_metal'.",
            ),
        ),
        "sort": (text, typer.Option(metavar="COLUMN", help="Order by a column; -COLUMN reverses.")),
        "limit": (int | None, typer.Option(min=1, help="At most so many records.")),
    }
    signature = inspect.signature(function, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != "filters"]
    extra = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind, option],
        )
        for name, (kind, option) in options.items()
    ]

    def command(**arguments: Any) -> None:
        chosen = {name: arguments.pop(name) for name in options}
        function(**arguments, filters=_as_filters(chosen))

    command.__name__ = function.__name__
    command.__doc__ = function.__doc__
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    command.__signature__ = signature.replace(parameters=[*parameters, *extra])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*parameters, *extra)}
    return command


def _as_filters(chosen: dict[str, Any]) -> dict[str, Any]:
    """Options of the command line as the arguments of `Database.select`."""
    ranges = {name: chosen.pop(name) for name in _RANGES}
    sort = chosen.pop("sort") or ""
    return {
        **chosen,
        "elements": _listed(chosen["elements"]),
        "exclude": _listed(chosen["exclude"]),
        "ranges": {name: text for name, text in ranges.items() if text is not None},
        "sort": sort.removeprefix("-") or None,
        "descending": sort.startswith("-"),
    }


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


@app.command()
@_filters
def search(
    store: Store = None,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B", help="Columns to show; 'all' for every one.")
    ] = None,
    format: Annotated[Listing, typer.Option(help="How to print the records.")] = Listing.TABLE,  # noqa: A002
    *,
    filters: dict[str, Any],
) -> None:
    """Find records: chgdb search --elements Ti,O --where "bulk_modulus > 150"."""
    from chgdb.schema import COLUMNS

    asked = [*filters["ranges"], filters["sort"] or "id"]
    names = list(dict.fromkeys((*_SEARCH_COLUMNS, *asked)))
    if columns is not None:
        names = list(COLUMNS) if columns == "all" else _listed(columns)
    database = _open(store)
    limit = filters.pop("limit")
    cut = 50 if format is Listing.TABLE and limit is None else limit
    found = database.select(**filters, columns=names, limit=cut)
    show(found.rows(), found.columns, format)
    if format is Listing.TABLE:
        total = len(found)
        if limit is None and total == cut:
            total = len(database.select(**filters, columns=["id"]))
        more = f", the first {len(found)} shown: --limit" if total > len(found) else ""
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
    format: Annotated[  # noqa: A002
        RecordFormat | None,
        typer.Option(help="By default chgcar with --decode and table without.", show_default=False),
    ] = None,
    store: Store = None,
    device: Device = "auto",
) -> None:
    """Show records, or write their densities: chgdb get mp-149 --decode."""
    wanted = format or (RecordFormat.CHGCAR if decode else RecordFormat.TABLE)
    points = _parse_grid(grid)
    if decode and wanted not in _DENSITY_SUFFIX:
        raise InputError(f"--decode writes chgcar, cube or npz, not {wanted}")
    if points and wanted not in _DENSITY_SUFFIX:
        raise InputError("--grid is the grid of a decoded density: add --decode")
    database = _open(store, device)
    if wanted in _DENSITY_SUFFIX:
        _write_densities(database, ids, points, wanted, output)
    elif wanted in _STRUCTURE_SUFFIX:
        _write_structures(database, ids, wanted, output)
    else:
        records = database.get(ids)
        if output is not None:
            raise InputError("-o goes with --decode, or with --format cif or poscar")
        if wanted is RecordFormat.JSON:
            show([record.row for record in records], tuple(records[0].row), Listing.JSON)
        else:
            for record in records:
                show_record(record)


def _parse_grid(text: str | None) -> Grid | None:
    if text is None:
        return None
    try:
        n1, n2, n3 = (int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise InputError(f"--grid {text}: give three numbers such as 48,48,64") from error
    if not all(1 <= n <= 4096 for n in (n1, n2, n3)):
        raise InputError(f"--grid {text}: each number lies between 1 and 4096")
    return n1, n2, n3


def _targets(ids: Sequence[str], suffix: str, output: Path | None) -> list[Path]:
    """One file per id."""
    if output is not None and len(ids) == 1 and not output.is_dir():
        return [output]
    folder = output or Path()
    if not folder.exists():
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made ({error.strerror})") from error
    if not folder.is_dir():
        raise InputError(f"{folder}: several ids need a folder, this is a file")
    return [folder / f"{material_id}{suffix}" for material_id in ids]


def _write_densities(
    database: Database,
    ids: Sequence[str],
    grid: Grid | None,
    wanted: RecordFormat,
    output: Path | None,
) -> None:
    database.get(ids)
    targets = _targets(ids, _DENSITY_SUFFIX[wanted], output)
    for material_id, target in zip(ids, targets, strict=True):
        (density,) = database.decode([material_id], grid=grid)
        density.write(target, format=wanted.value)
        typer.echo(
            f"{material_id}: {target} ({_by(density.grid)} points, "
            f"{density.n_electrons:.4f} electrons; {density.origin}, "
            f"NMAE {density.nmae:.2f} % against its source when stored)"
        )


def _write_structures(
    database: Database, ids: Sequence[str], wanted: RecordFormat, output: Path | None
) -> None:
    from chgdb.export import write_structure

    records = database.get(ids)
    for record, target in zip(
        records, _targets(ids, _STRUCTURE_SUFFIX[wanted], output), strict=True
    ):
        write_structure(target, record.structure, wanted.value, comment=record.id)
        typer.echo(f"{record.id}: {target}")


def _by(grid: Sequence[int]) -> str:
    return " x ".join(str(n) for n in grid)


@app.command()
def compare(
    density: Annotated[str, typer.Argument(metavar="FILE|ID", help="A density.")],
    reference: Annotated[str, typer.Argument(metavar="FILE|ID", help="What it is held against.")],
    store: Store = None,
    device: Device = "auto",
) -> None:
    """The error of one density against another: chgdb compare mp-149 CHGCAR."""
    from chgdb.metrics import compare_cells

    first, second = (_load(name, store, device) for name in (density, reference))
    error = compare_cells(first, second)
    typer.echo(
        f"NMAE {error.nmae:.4f} %, largest error {error.max_error:.4g} e/A^3, "
        f"electrons {error.electron_error:+.2e} ({_by(second.grid)} points)"
    )


def _load(name: str, store: Path | None, device: str) -> ChargeDensity:
    """A density from a file, or else from the store."""
    from chgdb.formats import read_density

    if Path(name).exists():
        return read_density(name)[0]
    return _open(store, device)[name].density()


@app.command()
def plot(
    density: Annotated[str, typer.Argument(metavar="FILE|ID", help="A density.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG, SVG or PDF to write.")],
    reference: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID", help="Show it and the difference beside the density."),
    ] = None,
    normal: Annotated[str, typer.Option(help="Lattice vector the slice cuts: a, b or c.")] = "c",
    at: Annotated[float, typer.Option(help="Fractional height of the slice.")] = 0.0,
    store: Store = None,
    device: Device = "auto",
) -> None:
    """Draw a slice through a density, and how it differs from another."""
    from chgdb.plot import plot_slice

    first = _load(density, store, device)
    second = _load(reference, store, device) if reference else None
    plot_slice(first, output, reference=second, normal=normal, height=at, title=density)
    typer.echo(str(output))


# ---------------------------------------------------------------------- writing


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    encoder: Annotated[str, typer.Option(help="The encoder its latents come from.")] = (
        "periodic-16"
    ),
    attribution: Annotated[
        str, typer.Option(help="Who made the data that will be in it, under which licence.")
    ] = "",
) -> None:
    """Make an empty store."""
    from chgdb.database import Database

    database = Database.create(path, encoder=encoder, attribution=attribution)
    typer.echo(f"{path}: empty store for latents of {database.info.encoder.id}")


@app.command()
def add(
    paths: Paths,
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
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that parse files; by default one a core.")
    ] = None,
    store: Store = None,
    device: Device = "auto",
) -> None:
    """Encode densities and store them; files stored already are skipped."""
    report = _open(store, device).add(
        paths,
        ids=id or None,
        on_conflict=on_conflict.value,
        species=_listed(species) or None,
        properties=properties,
        processes=processes or os.cpu_count() or 1,
        progress=_progress_bar("adding"),
    )
    for row in report.added if len(report.added) <= 10 else ():
        grid = [row[f"grid_{axis}"] for axis in "abc"]
        typer.echo(
            f"{row['id']}: added, {row['formula']}, {_by(grid)} points, "
            f"{row['n_electrons']:.4f} electrons, latent NMAE {row['latent_nmae']:.2f} %"
        )
    for row in report.added:
        if row["latent_coarse"]:
            typer.echo(
                f"{row['id']}: longer than the encoder's box, encoded coarser than usual", err=True
            )
    for material_id in report.skipped if len(report.skipped) <= 10 else ():
        typer.echo(f"{material_id}: stored already, skipped")
    if len(report) > 1:
        typer.echo(
            f"{len(report.added)} added, {len(report.skipped)} skipped, {len(report.failed)} failed"
        )
    for _, reason in report.failed:
        typer.echo(f"chgdb: error: {reason}", err=True)
    if report.failed:
        raise typer.Exit(1)


@app.command()
def remove(ids: Ids, store: Store = None) -> None:
    """Remove records, all or none."""
    _open(store).remove(ids)
    typer.echo(f"{len(ids)} record{'s' * (len(ids) != 1)} removed")


@app.command()
@_filters
def export(
    target: Annotated[
        Path,
        typer.Argument(
            help="A table (.csv, .json, .parquet), structures (.extxyz), or a folder: a new store."
        ),
    ],
    store: Store = None,
    *,
    filters: dict[str, Any],
) -> None:
    """Write the records that fit as a table, as structures, or as a store of their own."""
    from chgdb.export import export_records

    count = export_records(_open(store), target, **filters)
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
    epochs: Annotated[int, typer.Option(min=1)] = 100,
    seed: Annotated[int, typer.Option()] = 0,
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
    format: Annotated[Listing, typer.Option()] = Listing.TABLE,  # noqa: A002
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
    nmae = sorted(values["nmae"] for values in errors.values())
    typer.echo(
        f"{len(nmae)} materials: NMAE median {nmae[len(nmae) // 2]:.3f} %, "
        f"largest {nmae[-1]:.3f} %",
        err=True,
    )


# ---------------------------------------------------------------------- running


def _progress_bar(label: str) -> Callable[[int, int], None] | None:
    """A bar on the terminal, and nothing where there is none."""
    if not sys.stderr.isatty():
        return None
    from chgdb.output import progress_bar

    return progress_bar(label)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every failure is one line and an exit code that is not 0."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        app(words, prog_name="chgdb")
    except ChgdbError as error:
        if debug:
            raise
        _fail(str(error), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        _fail(f"unexpected {type(error).__name__}: {error} (run with --debug for more)", 70)


def _fail(reason: str, code: int) -> None:
    typer.echo(f"chgdb: error: {' '.join(reason.split())}", err=True)
    sys.exit(code)
