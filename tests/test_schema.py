"""The store's own file, ids, and the specification that must say what the schema says."""

from __future__ import annotations

import csv
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chgdb import schema
from chgdb.arrays import LatentArrays
from chgdb.descriptors import DESCRIPTORS
from chgdb.errors import FormatVersionError, InputError, StoreError
from chgdb.features import FEATURES_VERSION
from chgdb.schema import (
    COLUMNS,
    FEATURES,
    PREDICTED,
    PREDICTION_COLUMNS,
    PREDICTIONS,
    PROPERTIES,
    SEARCHABLE,
    EncoderInfo,
    LatentStorage,
    StoreInfo,
    check_id,
)
from chgdb.table import Table

ROOT = Path(__file__).parent.parent
LATENT = LatentStorage("int8", 1 / 127, (2, 2, 2, 2))
INFO = StoreInfo(
    encoder=EncoderInfo("periodic-1", "periodic", "ab" * 32),
    latent=LatentStorage("int8", 1 / 127, (16, 16, 16, 16)),
    attribution="Materials Project, CC BY 4.0, d'après",
    created_by="chgdb 0.1.0",
)


def test_specification_lists_the_columns() -> None:
    """docs/format.md and the schema change together."""
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    for mark, columns in (
        ("columns", COLUMNS),
        ("features", FEATURES),
        ("predictions", PREDICTIONS),
    ):
        table = text.split(f"<!-- {mark} -->")[1].split(f"<!-- /{mark} -->")[0]
        documented = [
            tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
            for line in table.strip().splitlines()[2:]
        ]
        expected = [
            (
                f"`{column.name}`",
                column.type,
                column.unit,
                "may" if column.nullable else "",
                column.description,
            )
            for column in columns.values()
        ]
        assert documented == expected
    assert f"format_version {schema.FORMAT_VERSION}" in text
    names = text.split("<!-- descriptors -->")[1].split("<!-- /descriptors -->")[0]
    assert tuple(re.findall(r"`(\w+)`", names)) == DESCRIPTORS
    assert f"`features_version` is {FEATURES_VERSION}." in text


def test_specification_names_the_files() -> None:
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    for name in (
        schema.INFO_FILE,
        schema.ARRAYS_FOLDER,
        schema.TABLE_FOLDER,
        schema.FEATURES_FOLDER,
        schema.PREDICTIONS_FOLDER,
        schema.FORMAT,
    ):
        assert name in text


def test_examples_of_the_specification_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code blocks, as they stand, on a store from which a record was removed."""
    ids = ["mp-1", "mp-2", "mp-149"]
    values = np.linspace(0, 1, 3 * 16).reshape(3, 2, 2, 2, 2)
    group = LatentArrays.create(tmp_path / "store/latents.zarr", LATENT, {"encoder": "x"})
    ones = np.ones((3, 3), int)
    group.write(0, ids, values, ones, ones, np.ones(3), [b"first", b"second", b"third"])
    samples = {"text": "[]", "integer": 1, "real": 1.0, "boolean": True}
    row = {c.name: samples[c.type] for c in COLUMNS.values() if c.name != "row"}
    table = Table.create(tmp_path / "store/materials")
    table.append([{**row, "id": id_, "elements": "O,Ti"} for id_ in ids], 0)
    table.remove(["mp-1"])
    group.erase([0])
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, names)
    np.testing.assert_array_equal(names["silicon"].values, group.read(2, "mp-149").values)
    assert names["payload"] == b"third"
    assert names["everything"].material_id.values.tolist() == ["mp-2", "mp-149"]
    names["latents"].close()
    (query,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    with duckdb.connect() as connection:
        assert len(connection.execute(query).fetchall()) == 2


def test_properties_are_those_of_the_data_set() -> None:
    path = Path("/work/shared/data/properties_6059.csv.gz")
    if not path.exists():
        pytest.skip("needs the project's data folder")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        header = next(csv.reader(file))
    assert [column.name for column in PROPERTIES] == header[2:]


def test_column_names_are_unique_for_sql() -> None:
    names = [name.lower() for name in (*COLUMNS, *PREDICTION_COLUMNS)]
    assert len(set(names)) == len(names) == len(SEARCHABLE)
    assert all(name.isidentifier() for name in names)


def test_predictions_have_the_units_of_the_properties() -> None:
    for name in PREDICTED:
        for end in ("", "_low", "_high"):
            assert PREDICTIONS[name + end].unit == COLUMNS[name].unit
            assert PREDICTION_COLUMNS[f"predicted_{name}{end}"].unit == COLUMNS[name].unit


def test_schema_imports_nothing_heavy() -> None:
    code = (
        "import sys; import chgdb.schema; "
        "sys.exit(any(m in sys.modules for m in ('numpy', 'pandas', 'zarr', 'duckdb', 'torch')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", fullmatch=True))
def test_good_ids(material_id: str) -> None:
    assert check_id(material_id) == material_id


@pytest.mark.parametrize(
    "material_id",
    ["", ".", "..", "../x", "a/b", "a\\b", "a" * 65, "-a", "_a", "a b", "a\n", "é", "٣", "a\x00"],
)
def test_bad_ids(material_id: str) -> None:
    with pytest.raises(InputError, match="cannot be a material id"):
        check_id(material_id)


def test_info_round_trip(tmp_path: Path) -> None:
    INFO.save(tmp_path)
    assert StoreInfo.load(tmp_path) == INFO
    assert [path.name for path in tmp_path.iterdir()] == ["chgdb.json"]
    content = json.loads((tmp_path / "chgdb.json").read_text(encoding="utf-8"))
    assert list(content) == [
        "format", "format_version", "encoder", "latent", "attribution", "created_by", "seal",
    ]  # fmt: skip


def test_info_of_another_kind_of_latent(tmp_path: Path) -> None:
    info = StoreInfo(INFO.encoder, LatentStorage("float16", None, (8, 8, 8, 8)), "", "x")
    info.save(tmp_path)
    assert StoreInfo.load(tmp_path) == info


def edit(folder: Path, **changes: object) -> None:
    path = folder / "chgdb.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    content.pop("seal", None)  # as who changes a file by hand does
    path.write_text(json.dumps(content), encoding="utf-8")


def test_info_ignores_what_it_does_not_know(tmp_path: Path) -> None:
    INFO.save(tmp_path)
    edit(tmp_path, future="x", encoder={"id": "p", "kind": "k", "weights_sha256": "", "more": 1})
    assert StoreInfo.load(tmp_path).encoder == EncoderInfo("p", "k", "")


@pytest.mark.parametrize("version", [0, 4, 1.0, True, "1", None])
def test_unknown_version_says_what_to_upgrade(tmp_path: Path, version: object) -> None:
    INFO.save(tmp_path)
    edit(tmp_path, format_version=version)
    with pytest.raises(FormatVersionError, match="pip install --upgrade chgdb"):
        StoreInfo.load(tmp_path)


def test_version_1_is_read_and_kept_in_mind(tmp_path: Path) -> None:
    INFO.save(tmp_path)
    assert StoreInfo.load(tmp_path).format_version == schema.FORMAT_VERSION == 3
    edit(tmp_path, format_version=1)
    old = StoreInfo.load(tmp_path)
    assert old.format_version == 1
    old.save(tmp_path)
    assert StoreInfo.load(tmp_path) == old


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a chgdb store"):
        StoreInfo.load(tmp_path)
    with pytest.raises(StoreError, match="not a chgdb store"):
        StoreInfo.load(tmp_path / "missing")
    (tmp_path / "chgdb.json").write_text('{"format": "other"}')
    with pytest.raises(StoreError, match=r"not the chgdb\.json"):
        StoreInfo.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": None},
        {"encoder": {}},
        {"latent": {"dtype": "int8", "scale_factor": 0.1, "shape": [16, 16]}},
        {"latent": {"dtype": "int4", "scale_factor": 0.1, "shape": [1, 1, 1, 1]}},
        {"latent": {"dtype": "int8", "scale_factor": "x", "shape": [1, 1, 1, 1]}},
    ],
)
def test_damaged_info(tmp_path: Path, changes: dict[str, object]) -> None:
    INFO.save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(StoreError, match=r"chgdb\.json: damaged") as caught:
        StoreInfo.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_truncated_info(tmp_path: Path) -> None:
    (tmp_path / "chgdb.json").write_bytes(b'{"format": \xff')
    with pytest.raises(StoreError, match="damaged"):
        StoreInfo.load(tmp_path)


def test_saving_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    INFO.save(tmp_path)

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    other = StoreInfo(INFO.encoder, INFO.latent, "other", "other")
    with pytest.raises(StoreError, match="No space left on device"):
        other.save(tmp_path)
    assert StoreInfo.load(tmp_path) == INFO
    assert [path.name for path in tmp_path.iterdir()] == ["chgdb.json"]


@pytest.mark.parametrize(
    ("dtype", "scale_factor", "shape"),
    [
        ("int8", None, (1, 1, 1, 1)),
        ("int8", 0.0, (1, 1, 1, 1)),
        ("int8", float("nan"), (1, 1, 1, 1)),
        ("float16", 1.0, (1, 1, 1, 1)),
        ("float32", 1.0, (1, 1, 1, 1)),
        ("float64", None, (1, 1, 1, 1)),
        ("float16", None, (1, 0, 1, 1)),
    ],
)
def test_storage_that_makes_no_sense(
    dtype: str, scale_factor: float | None, shape: tuple[int, int, int, int]
) -> None:
    with pytest.raises(InputError):
        LatentStorage(dtype, scale_factor, shape)


def test_a_bad_id_is_told_in_a_short_line() -> None:
    with pytest.raises(InputError, match="cannot be a material id") as caught:
        check_id("[" * 10**6)
    assert len(str(caught.value)) < 250
