"""What the command line prints."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

import pytest

from chgdb.output import (
    Listing,
    Report,
    progress_bar,
    show,
    show_mapping,
    show_prediction,
    show_record,
)
from chgdb.schema import PREDICTED

ROWS: list[dict[str, Any]] = [
    {"id": "mp-1", "bulk_modulus": 200.123456, "is_metal": False, "lattice": "[[1, 0, 0]]"},
    {"id": "mp-[b]2", "bulk_modulus": None, "is_metal": None, "lattice": "[[2, 0, 0]]"},
]
COLUMNS = tuple(ROWS[0])


def test_a_table_is_aligned_with_units_and_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    show(ROWS, COLUMNS[:3], Listing.TABLE)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "id       bulk_modulus (GPa)  is_metal",
        "mp-1                  200.1  False",
        "mp-[b]2                   -  -",
    ]


def test_no_rows_make_a_heading_alone(capsys: pytest.CaptureFixture[str]) -> None:
    show([], ("id", "volume"), Listing.TABLE)
    assert capsys.readouterr().out.split() == ["id", "volume", "(A^3)"]
    show([], ("id",), Listing.JSON)
    assert json.loads(capsys.readouterr().out) == []


def test_a_pipe_gets_every_character(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 500
    show([{"id": long, "formula": long}], ("id", "formula"), Listing.TABLE)
    assert capsys.readouterr().out.splitlines()[1].split() == [long, long]


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"id": "a\x1b[31m\nb"}], ("id",), Listing.TABLE)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2


def test_csv_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    show(ROWS, COLUMNS, Listing.CSV)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert float(rows[0]["bulk_modulus"]) == 200.123456
    assert rows[1]["bulk_modulus"] == ""
    assert rows[1]["lattice"] == "[[2, 0, 0]]"


def test_json_unpacks_the_structure(capsys: pytest.CaptureFixture[str]) -> None:
    show(ROWS, COLUMNS, Listing.JSON)
    rows = json.loads(capsys.readouterr().out)
    assert rows[0] == {**ROWS[0], "lattice": [[1, 0, 0]]}
    assert rows[1]["bulk_modulus"] is None


def test_ids_stand_alone(capsys: pytest.CaptureFixture[str]) -> None:
    show(ROWS, COLUMNS, Listing.IDS)
    assert capsys.readouterr().out == "mp-1\nmp-[b]2\n"


def test_a_mapping(capsys: pytest.CaptureFixture[str]) -> None:
    mapping = {"records": 3, "size (MB)": 1.5, "note": None}
    show_mapping(mapping, Report.JSON)
    assert json.loads(capsys.readouterr().out) == mapping
    show_mapping(mapping, Report.CSV)
    assert capsys.readouterr().out.splitlines() == [
        "what,value",
        "records,3",
        "size (MB),1.5",
        "note,",
    ]
    show_mapping(mapping, Report.TABLE)
    assert capsys.readouterr().out.split() == [
        *("what", "value", "records", "3", "size", "(MB)", "1.5", "note", "-"),
    ]


def test_a_record_shows_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    show_record({**ROWS[1], "row": 3, "source": "dft", "formula": "Si", "volume": 12345.678})
    out = capsys.readouterr().out
    assert "volume (A^3)  12345.7" in out
    assert "formula" in out
    for hidden in ("row", "lattice", "bulk_modulus"):
        assert hidden not in out


def test_no_bar_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("adding") as progress:
        assert progress is None
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal_ends_when_the_work_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")

    def work() -> None:
        with progress_bar("adding") as progress:
            assert progress is not None
            progress(1, 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    err = capsys.readouterr().err
    assert "1/4" in err
    assert err.rindex("\x1b[?25h") > err.rindex("\x1b[?25l"), "the cursor is back"


def test_a_prediction_is_told_without_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row: dict[str, Any] = {"id": "a\x1b[31m\nb", "formula": "Si", "neighbours": []}
    for name in PREDICTED:
        row |= {name: 1.0, f"{name}_low": 0.5, f"{name}_high": None, f"{name}_reference": None}
    row |= {"in_training": False, "outside_domain": False, "foreign": True}
    row |= {"features_from": "file", "model": "own", "model_version": 2}
    show_prediction(row)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "0.5 to -" in out
    assert "other pseudopotential" in out
    assert "nearest in training" not in out
    assert out.endswith("features from: file; model: own, version 2\n")
