"""How the command line prints: one helper for every listing."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer

from chgdb.schema import COLUMNS

if TYPE_CHECKING:
    from chgdb.database import Record

__all__ = ["Listing", "progress_bar", "show", "show_record"]

_PIPED_WIDTH = 1000
"""Columns for a table that no terminal shows: nothing is cut."""


class Listing(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    IDS = "ids"


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], format: Listing) -> None:  # noqa: A002
    """Print rows to the standard output."""
    if format is Listing.JSON:
        typer.echo(json.dumps([dict(row) for row in rows], indent=2, default=str))
    elif format is Listing.CSV:
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif format is Listing.IDS:
        for row in rows:
            typer.echo(str(row.get("id", next(iter(row.values())))))
    else:
        _show_table(rows, columns)


def _show_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        numeric = any(isinstance(row[name], int | float) for row in rows)
        table.add_column(_heading(name), justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in columns))
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    Console(width=width, highlight=False, markup=False).print(table)


def show_record(record: Record) -> None:
    """Print what is known of one record, one line a column, the structure left out."""
    hidden = {"row", "lattice", "species", "frac_coords"}
    rows = [
        {"column": _heading(name), "value": value}
        for name, value in record.row.items()
        if name not in hidden and value is not None
    ]
    _show_table(rows, ("column", "value"))


def progress_bar(label: str) -> Callable[[int, int], None]:
    """A function of (done, all) that draws a bar on the standard error."""
    from rich.console import Console
    from rich.progress import Progress, TimeRemainingColumn

    bar = Progress(
        *Progress.get_default_columns()[:3],
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(label, total=None)

    def advance(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)
        if done >= total:
            bar.stop()

    return advance


def _heading(name: str) -> str:
    unit = COLUMNS[name].unit if name in COLUMNS else ""
    return f"{name} ({unit})" if unit not in ("", "1") else name


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"
    return str(value)
