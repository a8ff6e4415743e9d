"""How the command line prints: one helper for every listing."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import typer

from chgdb.export import STRUCTURE_COLUMNS, json_ready
from chgdb.files import printable
from chgdb.schema import FEATURES, PREDICTED, SEARCHABLE

__all__ = [
    "Listing",
    "Report",
    "progress_bar",
    "show",
    "show_json",
    "show_mapping",
    "show_prediction",
    "show_record",
    "show_scores",
    "show_text",
]

_PIPED_WIDTH = 10_000
"""Columns for a table that no terminal shows: nothing is cut."""

_UNSHOWN = ("row", *STRUCTURE_COLUMNS)
"""Columns of a record that tell people nothing."""

_UNPRINTED = re.compile(
    r"[\x7f-\xa0\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
"""Control characters and those that change the direction or the place of others."""

_COLUMNS = {**FEATURES, **SEARCHABLE}

_FLAGS = {
    "in_training": "in the training set: the model has seen the reference values of this material",
    "outside_domain": "outside the training domain: unlike the materials that the model learned "
    "from, so the interval may be too narrow",
    "foreign": "other pseudopotential: predicted without what sees the cores of the atoms",
}
"""What the flags of a prediction mean."""


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
        writer.writerows(rows if not sys.stdout.isatty() else map(_harmless, rows))
    elif format == "ids":
        for row in rows:
            typer.echo(printable(row["id"]))
    else:
        _show_table([[row[name] for name in columns] for row in rows], columns)


def show_mapping(mapping: Mapping[str, Any], format: Report) -> None:  # noqa: A002
    """Print names and values: in JSON as one object, else as two columns."""
    if format is Report.JSON:
        show_json(dict(mapping))
    else:
        rows = [{"what": name, "value": value} for name, value in mapping.items()]
        show(rows, ("what", "value"), format)


def show_record(row: Mapping[str, Any], predicted: Mapping[str, Any] | None = None) -> None:
    """Print what is known of one record, one line a column, the structure left out.

    Args:
        row: of the table.
        predicted: what `Record.predicted` says.
    """
    told = {**row, "source": row["source"] or "none: the store holds no density of it"}
    known = [
        (_heading(name), value)
        for name, value in told.items()
        if name not in _UNSHOWN and value is not None
    ]
    if predicted:
        known += [
            (
                _heading(f"predicted_{name}"),
                f"{_cell(predicted[name])} ({_interval(predicted, name)})",
            )
            for name in PREDICTED
            if predicted[name] is not None
        ]
        known.append(("predicted_by", predicted["model"]))
        known += [
            (f"prediction_{flag}", True)
            for flag in ("in_training", "outside_domain")
            if predicted[flag]
        ]
    _show_table(known, ("column", "value"))


def show_scores(rows: Sequence[Mapping[str, Any]], format: Report) -> None:  # noqa: A002
    """Print scores of predictions; a table has one column per score with its interval.

    Args:
        rows: `system`, `target`, `n`, `coverage`, and `r2`, `mae` and `rmse` with `_low` and
            `_high`.
        format: how.
    """
    if format is not Report.TABLE:
        show(rows, tuple(rows[0]), format)
        return
    cells = [
        (
            row["system"],
            row["target"],
            row["n"],
            *(
                f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"
                if name == "r2"
                else f"{row[name]:.3g} ({row[f'{name}_low']:.3g} to {row[f'{name}_high']:.3g})"
                for name in ("r2", "mae", "rmse")
            ),
            row["coverage"] if row["coverage"] == row["coverage"] else "",
        )
        for row in rows
    ]
    _show_table(cells, ("system", "target", "n", "R2", "MAE", "RMSE", "coverage"))


def show_prediction(row: Mapping[str, Any]) -> None:
    """Print the predictions for one target, for people.

    Args:
        row: of what `Database.predict` returns, with None for NaN and the neighbours as a list.
    """
    show_text(f"{row['id']}: {row['formula']}")
    values = [
        (_heading(name), row[name], _interval(row, name), row[f"{name}_reference"])
        for name in PREDICTED
    ]
    _show_table(values, ("property", "value", "90 % interval", "reference"))
    for flag, meaning in _FLAGS.items():
        if row[flag]:
            show_text(meaning)
    near = ", ".join(
        f"{id_} ({_cell(distance)})" for id_, distance in row["neighbours"] if id_ != row["id"]
    )
    if near:
        show_text(f"nearest in training: {near}")
    model = f"{row['model']}, version {row['model_version']}"
    show_text(f"features from: {row['features_from']}; model: {model}")


def show_text(text: str) -> None:
    """Print a line, whatever is in it."""
    typer.echo(printable(text))


def _interval(row: Mapping[str, Any], name: str) -> str:
    return f"{_cell(row[f'{name}_low'])} to {_cell(row[f'{name}_high'])}"


def show_json(content: Any) -> None:
    """Print anything as JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    # In JSON any character may be escaped: what a terminal would obey is.
    typer.echo(_UNPRINTED.sub(lambda found: json.dumps(found[0])[1:-1], text))


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


def _harmless(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose texts a terminal may get."""
    return {k: printable(v) if isinstance(v, str) else v for k, v in row.items()}


def _heading(name: str) -> str:
    unit = _COLUMNS[name].unit if name in _COLUMNS else ""
    return f"{name} ({unit})" if unit not in ("", "1") else name


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"
    text = str(value)
    return printable(text)
