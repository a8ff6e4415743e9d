"""Features and predictions in a store: computed, kept, found, made anew; densities alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import MakeDensity, MakeFile
from predictions import (
    CheapModel,
    feature_table,
    of_records,
    use_cheap_features,
    use_model,
)

from chgdb import predicting
from chgdb.database import Database
from chgdb.density import ChargeDensity
from chgdb.errors import (
    InputError,
    MissingExtraError,
    ModelError,
    QueryError,
    StoreError,
    UnknownIdError,
)
from chgdb.schema import PREDICTED, PREDICTION_COLUMNS

IDS = ["mp-1", "mp-2", "mp-3", "mp-4", "mp-5"]


@pytest.fixture
def model(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheapModel:
    return use_model(monkeypatch, tmp_path, CheapModel())


@pytest.fixture(autouse=True)
def computed(monkeypatch: pytest.MonkeyPatch) -> list[ChargeDensity]:
    """The densities whose features were computed in a test."""
    return use_cheap_features(monkeypatch)


def files(store: Path) -> dict[str, bytes]:
    """The content of every file of a store but its lock, which shows any change."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# ---------------------------------------------------------------------- predict


def test_a_material_is_predicted_with_interval_and_reference(
    database: Database, model: CheapModel
) -> None:
    frame = database.predict("mp-1")
    (row,) = frame.to_dict("records")
    volume = database["mp-1"].row["volume"] / 3
    assert row["id"] == "mp-1"
    assert row["formula"] == "TiO2"
    assert row["bulk_modulus"] == pytest.approx(volume)
    assert row["shear_modulus_high"] == pytest.approx(volume + 2)
    assert row["shear_modulus_low"] == pytest.approx(volume)
    assert row["bulk_modulus_reference"] == 200.0
    assert np.isnan(row["shear_modulus_reference"])
    assert (row["in_training"], row["outside_domain"], row["foreign"]) == (True, False, False)
    assert json.loads(row["neighbours"]) == [["mp-7", 0.25]]
    assert (row["features_from"], row["model"], row["model_version"]) == (
        "density",
        "properties-1",
        1,
    )


def test_targets_keep_their_order_and_count_once(
    database: Database, model: CheapModel, make_file: MakeFile
) -> None:
    file = make_file("mp-1.npz", species=("Si",), electrons=4.0)
    frame = database.predict(["mp-3", str(file), file, "mp-2", "mp-3"])
    assert frame["id"].tolist() == ["mp-3", str(file), "mp-2"]
    assert frame["formula"].tolist() == ["NaCl", "Si", "Si"]
    assert frame["features_from"].tolist() == ["density", "file", "density"]
    assert frame["bulk_modulus_reference"].isna().tolist() == [False, True, False]
    assert len(model.asked) == 1, "one call of the model for all"


def test_features_of_a_record_are_kept_and_used_again(
    database: Database, model: CheapModel, computed: list[ChargeDensity]
) -> None:
    first = database.predict(["mp-1", "mp-2"])
    assert len(computed) == 2
    again = Database(database.path).predict(["mp-2", "mp-1", "mp-3"])
    assert len(computed) == 3
    pd.testing.assert_frame_equal(
        first, again.iloc[[1, 0]].reset_index(drop=True), check_dtype=False
    )


def test_a_store_that_cannot_be_written_predicts_and_stays(
    database: Database, model: CheapModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chgdb.resources._SHIPPED", (database.path.parent, Path("nowhere")))
    before = files(database.path)
    assert database.predict(IDS)["id"].tolist() == IDS
    with pytest.raises(StoreError, match="is read-only; make your own with"):
        database.predict_all()
    with pytest.raises(StoreError, match="holds no features of densities"):
        database.similar("mp-1")
    assert files(database.path) == before


def test_predict_does_not_wait_for_a_writer(database: Database, model: CheapModel) -> None:
    with Database(database.path)._writing():
        assert database.predict("mp-1")["id"].tolist() == ["mp-1"]
    assert not (database.path / "features").exists()


def test_a_file_comes_before_a_material_of_its_name(
    database: Database, model: CheapModel, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_file("here/mp-1", species=("Si",))
    (file.parent / "mp-2").mkdir()
    monkeypatch.chdir(file.parent)
    frame = database.predict(["mp-1", "mp-2"])
    assert frame["features_from"].tolist() == ["file", "density"], "a folder is not a file"
    (file.parent / "runs").mkdir()
    with pytest.raises(InputError, match="runs: a folder; name the file of a density"):
        database.predict("runs")


@pytest.mark.parametrize("target", ["mp-11", "../mp-1", "a/b", "CHGCAR", "x\ny", ""])
def test_an_unknown_target(database: Database, model: CheapModel, target: str) -> None:
    for method in (database.predict, database.similar):
        database.add_features(feature_table(["mp-100"]), "set")
        kind = InputError if target == "" else UnknownIdError
        with pytest.raises(kind) as caught:
            method(target)
        assert "\n" not in str(caught.value)
    if target == "mp-11":
        assert "nearest: mp-1" in str(caught.value)


def test_a_path_is_always_a_file(database: Database, model: CheapModel) -> None:
    with pytest.raises(InputError, match="mp-1"):
        database.predict(Path("mp-1"))


def test_nothing_to_predict(database: Database, model: CheapModel) -> None:
    with pytest.raises(InputError, match="nothing to predict"):
        database.predict([])


def test_a_bad_file_is_named_and_nothing_is_kept(
    database: Database, model: CheapModel, tmp_path: Path
) -> None:
    bad = tmp_path / "CHGCAR"
    bad.write_text("not a density\n")
    with pytest.raises(InputError, match="CHGCAR"):
        database.predict(["mp-1", str(bad)])
    assert not (database.path / "features").exists()


def test_a_record_without_payload_needs_features(
    database: Database, model: CheapModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {**database["mp-1"].row, "payload_bytes": None}
    with pytest.raises(StoreError, match="mp-1: has neither features nor a payload"):
        database._predictor._computed(row)
    database.add_features(of_records(feature_table(["mp-1"]), database), "set")
    assert database.predict("mp-1")["features_from"].tolist() == ["set"]


def test_the_model_is_asked_for_by_name_or_folder(
    database: Database, model: CheapModel, tmp_path: Path
) -> None:
    assert len(database.predict("mp-1", model="properties-1")) == 1
    shutil.copytree(tmp_path / "models" / "properties-1", tmp_path / "own")
    assert len(database.predict("mp-1", model=tmp_path / "own")) == 1
    for name, problem in (
        ("tiny-16", "a model of kind 'periodic'; it does not predict properties"),
        ("absent", "no property model absent in"),
        ("no/where", "there is no such folder"),
    ):
        with pytest.raises(ModelError, match=problem):
            database.predict("mp-1", model=name)


# ---------------------------------------------------------------------- predict_all


def test_all_materials_are_predicted_and_found(database: Database, model: CheapModel) -> None:
    before = database.select().values
    database.add_features(feature_table(["mp-6", "mp-7"]), "set")
    report = database.predict_all()
    assert (report.features, report.predicted, report.current, report.failed) == (5, 7, 0, [])
    assert database.select().values == before, "references are as they were"
    found = database.select(
        where="predicted_bulk_modulus > 5 AND prediction_outside_domain IS FALSE",
        columns="id,bulk_modulus,predicted_bulk_modulus,predicted_bulk_modulus_low,predicted_by",
        sort="predicted_bulk_modulus",
        descending=True,
    )
    expected = sorted(
        ((row["volume"] / row["n_atoms"], row["id"]) for row in database.select()), reverse=True
    )
    assert [row["id"] for row in found] == [id_ for _, id_ in expected if id_ != "mp-2"]
    for row in found:
        assert row["predicted_bulk_modulus_low"] == row["predicted_bulk_modulus"] - 1
        assert row["predicted_by"] == "properties-1"
    assert found.frame["predicted_bulk_modulus"].dtype == "float64"


def test_what_is_up_to_date_is_not_done_again(
    database: Database, model: CheapModel, computed: list[ChargeDensity]
) -> None:
    database.predict_all()
    state = files(database.path)
    report = database.predict_all()
    assert (report.features, report.predicted, report.current) == (0, 0, 5)
    assert len(computed) == 5
    assert len(model.asked) == 1
    assert files(database.path) == state
    report = database.predict_all(force=True)
    assert (report.features, report.predicted, report.current) == (0, 5, 0)


def test_progress_counts_features_and_predictions(database: Database, model: CheapModel) -> None:
    seen: list[tuple[int, int]] = []
    database.predict_all(progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 5)
    assert seen[-1] == (10, 10)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("stop", range(0, 24, 2))
def test_an_interrupted_run_is_resumed(
    database: Database,
    model: CheapModel,
    computed: list[ChargeDensity],
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    """Whatever the step, what was committed is not done again, and the end is the same."""
    monkeypatch.setattr(predicting, "_FEATURE_BATCH", 2)
    monkeypatch.setattr(predicting, "_CHUNK", 2)
    steps = 0

    def interrupt(done: int, total: int) -> None:
        nonlocal steps
        steps += 1
        if steps > stop:
            raise KeyboardInterrupt

    try:
        database.predict_all(progress=interrupt)
    except KeyboardInterrupt:
        pass
    else:
        assert stop >= steps
    stored = database._derived.count()
    kept, done = stored["features"], stored.get("properties-1", 0)
    assert len(computed) - kept <= 2
    model.asked.clear()
    report = Database(database.path).predict_all()
    assert (report.features, report.predicted, report.current) == (5 - kept, 5 - done, done)
    assert sum(map(len, model.asked)) == 5 - done
    assert database._derived.count() == {"features": 5, "properties-1": 5}


def test_a_changed_model_predicts_anew(
    database: Database, model: CheapModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.predict_all()
    first = database.select(columns="predicted_bulk_modulus").values
    use_model(monkeypatch, tmp_path, CheapModel(factor=2.0))
    assert database.predict_all().predicted == 5
    second = database.select(columns="predicted_bulk_modulus").values
    np.testing.assert_allclose(np.array(second), 2 * np.array(first))


def test_another_model_does_not_hide_the_default_one(
    database: Database, model: CheapModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.predict_all()
    before = database.select(columns=list(PREDICTION_COLUMNS)).values
    use_model(monkeypatch, tmp_path, CheapModel(factor=3.0, model_id="own"))
    assert database.predict_all("own").predicted == 5
    assert database.select(columns=list(PREDICTION_COLUMNS)).values == before
    counts = {"materials with features": 5, "predictions of own": 5}
    assert counts.items() <= database.summary().items()
    use_model(monkeypatch, tmp_path, CheapModel())
    assert database.predict_all().current == 5


def test_a_record_that_cannot_be_decoded_stops_no_other(
    database: Database, model: CheapModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = database._predictor._decode

    def damaged(row: Any) -> ChargeDensity:
        if row["id"] == "mp-3":
            raise StoreError("mp-3: its payload\ncannot be decoded")
        return decode(row)

    monkeypatch.setattr(database._predictor, "_decode", damaged)
    report = database.predict_all()
    assert (report.features, report.predicted) == (4, 4)
    assert report.failed == [("mp-3", "mp-3: its payload cannot be decoded")]
    (row,) = database.select(where="id = 'mp-3'", columns=list(PREDICTION_COLUMNS))
    assert set(row.values()) == {None}


def test_a_missing_package_is_told_once(
    database: Database, model: CheapModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def features_of(density: ChargeDensity) -> None:
        raise MissingExtraError("describing a density", "ml")

    monkeypatch.setattr("chgdb.features.features_of", features_of)
    with pytest.raises(MissingExtraError):
        database.predict_all()


def test_an_empty_store(empty: Database, model: CheapModel) -> None:
    report = empty.predict_all()
    assert (report.features, report.predicted, report.current) == (0, 0, 0)
    assert not (empty.path / "predictions").exists()
    with pytest.raises(StoreError, match="holds no features of densities"):
        empty.similar(Path("x"))


# ---------------------------------------------------------------------- data sets


def test_features_of_a_data_set_need_no_record(
    database: Database, model: CheapModel, computed: list[ChargeDensity]
) -> None:
    table = of_records(feature_table(["mp-2", "mp-8"]), database)
    database.add_features(table, "set")
    frame = database.predict(["mp-8", "mp-2"])
    assert frame["features_from"].tolist() == ["set", "set"]
    assert frame["bulk_modulus"].tolist() == [11.0, table["volume_per_atom"][0]]
    assert frame["bulk_modulus_reference"].tolist()[1] == 90.0
    assert computed == []
    database.add_features(feature_table(["mp-8"], seed=1).assign(volume_per_atom=1.0), "set")
    assert database.predict("mp-8")["bulk_modulus"].tolist() == [1.0]


@pytest.mark.parametrize("change", [{"formula": "Ge"}, {"volume_per_atom": 1.0}])
def test_a_record_of_another_material_is_not_described_by_a_data_set(
    database: Database, model: CheapModel, change: dict[str, Any]
) -> None:
    """An id of the data set may be taken: `add --id mp-2 --on-conflict replace`."""
    table = of_records(feature_table(["mp-2"]), database).assign(**change)
    database.add_features(table, "set")
    assert database.predict("mp-2")["features_from"].tolist() == ["density"]
    database.predict_all()
    row = database["mp-2"].row
    (values,) = database.select(where="id = 'mp-2'", columns="predicted_bulk_modulus").values
    assert values == (row["volume"] / row["n_atoms"],)


def test_a_data_set_describes_a_material_before_its_record(
    database: Database, model: CheapModel
) -> None:
    database.predict_all()
    table = of_records(feature_table(["mp-2"]), database)
    table["volume_per_atom"] *= 1.05
    database.add_features(table, "set")
    assert database.select(where="id = 'mp-2'", columns="predicted_by").values == [
        ("properties-1",)
    ], "what was predicted is still true of the density"
    assert database.predict_all().predicted == 1
    (values,) = database.select(where="id = 'mp-2'", columns="predicted_bulk_modulus").values
    assert values == (table["volume_per_atom"][0],)
    database.remove("mp-2")
    assert database.predict("mp-2")["features_from"].tolist() == ["set"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda table: table.drop(columns="formula"), "lacks the column formula"),
        (lambda table: table.drop(columns="id"), "lacks the column id"),
        (lambda table: table.assign(more=1), "no column more"),
        (lambda table: table.assign(id="a/b"), "cannot be a material id"),
        (lambda table: table.assign(f_int=np.inf), "f_int is not real"),
        (lambda table: table.assign(f_int="x"), "is not a number"),
    ],
)
def test_a_data_set_that_cannot_be_stored(
    database: Database, change: Callable[[pd.DataFrame], pd.DataFrame], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        database.add_features(change(feature_table(["mp-2"])), "set")
    for origin in ("density", " "):
        with pytest.raises(InputError, match="name the data set"):
            database.add_features(feature_table(["mp-2"]), origin)
    assert not (database.path / "features").exists()


def test_unknown_descriptors_stay_unknown(database: Database, model: CheapModel) -> None:
    database.add_features(feature_table(["mp-8", "mp-9"]).assign(zeta=[np.nan, 1.0]), "set")
    assert database._derived.features(["mp-8", "mp-9"])["zeta"].isna().tolist() == [True, False]
    assert database.predict_all().predicted == 7
    assert database.predict_all().current == 7


# ---------------------------------------------------------------------- changes of records


def test_a_replaced_record_makes_its_predictions_stale(
    database: Database, model: CheapModel, computed: list[ChargeDensity], make_file: MakeFile
) -> None:
    database.predict_all()
    file = make_file("mp-1.npz", species=("Ti", "O", "O"), scale=1.1)
    database.add(file, on_conflict="replace")
    stale = database.select(columns="id,predicted_by").rows()
    assert [row["id"] for row in stale if row["predicted_by"] is None] == ["mp-1"]
    assert database["mp-1"].predicted == {}
    assert database["mp-2"].predicted["model"] == "properties-1"
    report = database.predict_all()
    assert (report.features, report.predicted, report.current) == (1, 1, 4)
    assert len(computed) == 6
    row = database["mp-1"].row
    assert database["mp-1"].predicted["bulk_modulus"] == pytest.approx(row["volume"] / 3)


def test_features_of_a_record_that_was_replaced_meanwhile_do_not_count(
    database: Database, model: CheapModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of records say whose density it was: no transaction is needed."""
    database.predict_all()
    monkeypatch.setattr(type(database._derived), "forget", lambda self, ids: None)
    row = database["mp-1"].row
    latent = database["mp-1"].latent()
    payload = database["mp-1"].payload()
    assert payload is not None
    with database._writing():
        database._commit([row], [latent.values], [payload], replacing=True)
    assert database["mp-1"].predicted == {}
    assert database._derived.count() == {"features": 4, "properties-1": 4}
    database.remove("mp-2")
    with pytest.raises(UnknownIdError):
        database.predict("mp-2")
    assert database.predict_all().features == 1


def test_removing_records_drops_what_their_densities_gave(
    database: Database, model: CheapModel
) -> None:
    database.add_features(of_records(feature_table(["mp-2", "mp-8"]), database), "set")
    database.predict_all()
    database.remove(["mp-1", "mp-2"])
    counts = {"features": 5, "properties-1": 5}
    assert database._derived.count() == counts
    assert database._derived.knows("mp-2"), "the data set still has it"
    for folder in ("features", "predictions"):
        parts = (database.path / folder).glob("*.parquet")
        kept = {id_ for part in parts for id_ in pd.read_parquet(part)["id"]}
        assert kept == {"mp-2", "mp-3", "mp-4", "mp-5", "mp-8"}


def test_a_copy_takes_features_and_predictions_along(
    database: Database, model: CheapModel, computed: list[ChargeDensity], tmp_path: Path
) -> None:
    database.add_features(feature_table(["mp-3", "mp-8"]), "set")
    database.remove("mp-1")
    database.predict_all()
    some = database.copy(tmp_path / "some", ["mp-5", "mp-3"])
    assert some._derived.count() == {"features": 2, "properties-1": 2}
    columns = ["id", *PREDICTION_COLUMNS]
    expected = database.select(where="id IN ('mp-3', 'mp-5')", columns=columns).rows()
    assert some.select(columns=columns, sort="id").rows() == expected
    everything = database.copy(tmp_path / "all")
    assert everything._derived.count() == {"features": 5, "properties-1": 5}
    seen = len(computed)
    for copy in (some, everything):
        assert copy.predict_all().predicted == 0
    assert len(computed) == seen


def test_an_export_takes_them_along_and_writes_them_when_asked(
    database: Database, model: CheapModel, tmp_path: Path
) -> None:
    database.predict_all()
    database.export(tmp_path / "new", where="predicted_bulk_modulus IS KNOWN")
    assert Database(tmp_path / "new")._derived.count() == {"features": 5, "properties-1": 5}
    database.export(tmp_path / "table.csv", columns="id,predicted_bulk_modulus")
    database.export(tmp_path / "all.csv")
    assert list(pd.read_csv(tmp_path / "table.csv")) == ["id", "predicted_bulk_modulus"]
    assert not set(PREDICTION_COLUMNS) & set(pd.read_csv(tmp_path / "all.csv"))


# ---------------------------------------------------------------------- searching


def test_predicted_columns_are_null_where_nothing_was_predicted(database: Database) -> None:
    assert not (database.path / "predictions").exists()
    rows = database.select(columns=list(PREDICTION_COLUMNS)).rows()
    assert rows == [dict.fromkeys(PREDICTION_COLUMNS)] * 5
    assert len(database.select(where="predicted_bulk_modulus > 0")) == 0
    assert len(database.select(where="predicted_bulk_modulus IS UNKNOWN")) == 5
    assert len(database.select(ranges={"predicted-Bulk-modulus": "0:"})) == 0
    assert database["mp-1"].predicted == {}


def test_predictions_are_only_touched_when_asked_for(database: Database, model: CheapModel) -> None:
    database.predict_all()
    (part,) = database._derived._predictions.parts
    part.write_bytes(b"damaged")
    assert len(database.select(where="bulk_modulus > 1")) == 4
    assert "predicted_by" not in database.select().columns
    for filters in (
        {"where": "predicted_bulk_modulus > 1"},
        {"columns": "id,predicted_by"},
        {"sort": "predicted_bulk_modulus"},
        {"ranges": {"predicted_bulk_modulus": "1:"}},
    ):
        with pytest.raises(StoreError, match=r"predictions/000000000\.parquet: damaged") as caught:
            database.select(**filters)
        assert "\n" not in str(caught.value)


def test_damaged_features_are_told_in_one_line(database: Database, model: CheapModel) -> None:
    database.predict_all()
    (part,) = database._derived._features.parts
    part.write_bytes(part.read_bytes()[:-9])
    for action in (
        lambda: database.similar("mp-1"),
        lambda: database.predict("mp-1"),
        lambda: database.predict_all(),
        lambda: database.select(columns="predicted_by"),
    ):
        with pytest.raises(StoreError, match=r"features/000000000\.parquet: damaged") as caught:
            action()
        assert "\n" not in str(caught.value)
    database.remove("mp-1")  # which only leaves behind what belonged to the record
    assert len(database) == 4


def test_a_misspelt_predicted_column(database: Database) -> None:
    with pytest.raises(QueryError, match="predicted_bulk_modulus"):
        database.select(columns="predicted_bulk_module")


def test_an_unfinished_part_is_not_seen(database: Database, model: CheapModel) -> None:
    database.predict_all()
    (part,) = database._derived._predictions.parts
    shutil.copy(str(part), str(part.parent / ".chgdb-0.partial"))
    part.unlink()
    assert database["mp-1"].predicted == {}
    assert database.predict_all().predicted == 5


# ---------------------------------------------------------------------- similar


def test_similar_orders_by_distance(database: Database, model: CheapModel) -> None:
    table = feature_table([f"mp-{i}" for i in range(100, 130)])
    database.add_features(table, "set")
    found = database.similar("mp-100", n=40)
    assert len(found) == 29
    assert "mp-100" not in set(found["id"])
    assert found["distance"].is_monotonic_increasing
    assert (found["distance"] > 0).all()
    assert list(found) == ["id", "formula", "distance", "spacegroup", "volume_per_atom", "density"]
    assert len(database.similar("mp-100")) == 10
    there = database.similar(found["id"][0], n=40).set_index("id")["distance"]
    assert there["mp-100"] == found["distance"][0], "a distance has no direction"
    with pytest.raises(InputError, match="n 0: give a positive number"):
        database.similar("mp-100", n=0)


def test_similar_to_a_file_and_to_a_record_without_features(
    database: Database, model: CheapModel, computed: list[ChargeDensity], template: Path
) -> None:
    database.predict(["mp-1", "mp-2", "mp-3"])
    found = database.similar(template / "files" / "mp-2.npz", n=2)
    assert found["id"][0] == "mp-2"
    assert found["distance"][0] < 0.01
    assert found["density"].tolist() == [True, True]
    for _ in range(2):
        assert set(database.similar("mp-5", n=9)["id"]) == {"mp-1", "mp-2", "mp-3"}
        assert len(computed) == 5, "three, the file, and mp-5 once"


def test_a_material_whose_descriptors_are_unknown_is_like_none(
    database: Database, model: CheapModel
) -> None:
    table = feature_table(["a", "b", "c"]).assign(rho_mid_mean=[0.1, np.nan, 0.2])
    database.add_features(table, "set")
    assert database.similar("a")["id"].tolist() == ["c"]
    assert database.similar("b")["id"].tolist() == []


def test_the_properties_are_those_of_the_models() -> None:
    from chgdb.properties import TARGETS

    assert TARGETS == PREDICTED


def test_the_same_density_from_another_origin_is_the_nearest(
    make_density: MakeDensity, make_file: MakeFile, database: Database, model: CheapModel
) -> None:
    density = make_density(("Sr", "Ti", "O"), grid=(16, 16, 20))
    moved = ChargeDensity(np.roll(density.values, (3, 1, 2), (0, 1, 2)), density.structure)
    database.add([make_file("own.npz", density)])
    database.predict_all()
    found = database.similar(make_file("moved.npz", moved), n=1)
    assert found["id"].tolist() == ["own"]
    assert found["distance"][0] == pytest.approx(0, abs=0.02)
