"""How the command line prints: one helper for every listing."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import typer

from chgdb.export import STRUCTURE_COLUMNS, json_ready
from chgdb.schema import COLUMNS

__all__ = [
    "Listing",
    "Report",
    "progress_bar",
    "show",
    "show_json",
    "show_mapping",
    "show_record",
]

_PIPED_WIDTH = 10_000
"""Columns for a table that no terminal shows: nothing is cut."""

_UNSHOWN = ("row", *STRUCTURE_COLUMNS)
"""Columns of a record that tell people nothing."""


class Report(StrEnum):
    """How a table is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class Listing(StrEnum):
    """How records are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    IDS = "ids"


def show(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    format: Report | Listing,  # noqa: A002
) -> None:
    """Print rows to the standard output; each has all the columns."""
    if format == "json":
        show_json([json_ready(row) for row in rows])
    elif format == "csv":
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif format == "ids":
        for row in rows:
            typer.echo(row["id"])
    else:
        _show_table([[row[name] for name in columns] for row in rows], columns)


def show_mapping(mapping: Mapping[str, Any], format: Report) -> None:  # noqa: A002
    """Print names and values: in JSON as one object, else as two columns."""
    if format is Report.JSON:
        show_json(dict(mapping))
    else:
        rows = [{"what": name, "value": value} for name, value in mapping.items()]
        show(rows, ("what", "value"), format)


def show_record(row: Mapping[str, Any]) -> None:
    """Print what is known of one record, one line a column, the structure left out."""
    known = [
        (_heading(name), value)
        for name, value in row.items()
        if name not in _UNSHOWN and value is not None
    ]
    _show_table(known, ("column", "value"))


def show_json(content: Any) -> None:
    """Print anything as JSON."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def _show_table(rows: Sequence[Sequence[Any]], columns: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        numeric = {type(row[i]) for row in rows} - {type(None)} <= {int, float}
        table.add_column(
            _heading(name), justify="right" if numeric and rows else "left", no_wrap=True
        )
    for row in rows:
        table.add_row(*map(_cell, row))
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """A function of (done, all) that draws a bar on the terminal; None where there is none."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _heading(name: str) -> str:
    unit = COLUMNS[name].unit if name in COLUMNS else ""
    return f"{name} ({unit})" if unit not in ("", "1") else name


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"
    text = str(value)
    return text if text.isprintable() else ascii(text)
