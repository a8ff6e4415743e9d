from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_tables import feature_table, properties

from chgdb.errors import InputError
from chgdb.properties import BASE_TARGETS, TARGETS, PropertyModel

pytest.importorskip("torch")
pytest.importorskip("lightgbm")

from chgdb.property_evaluation import (
    compare_predictions,
    cross_validate,
    evaluate_properties,
    fit_and_predict,
    peer_predictions,
    score_table,
    tree_shares,
    write_card,
)
from chgdb.train_properties import Settings, join, train_properties

SMALL = Settings(networks=1, epochs=2, width=8, trees=10, batch=32)


@pytest.fixture(scope="module")
def table() -> Any:
    features = feature_table(150)
    return join(features, properties(features))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PropertyModel:
    features = feature_table(150)
    folder = tmp_path_factory.mktemp("models") / "m"
    return train_properties(features, properties(features), folder, settings=SMALL)


def test_a_part_is_scored_against_its_references(model: PropertyModel, table: Any) -> None:
    made = evaluate_properties(model, table, "test")
    assert set(made["id"]) == set(table.loc[table["split"] == "test", "id"])
    scores: Any = score_table(made, "mine").set_index("target")
    assert list(scores.index) == list(TARGETS)
    for name in TARGETS:
        error = made[name] - made[f"{name}_reference"]
        assert scores.loc[name, "mae"] == pytest.approx(error.abs().mean())
        assert scores.loc[name, "rmse"] == pytest.approx(np.sqrt((error**2).mean()))
        row = scores.loc[name]
        assert row["mae_low"] <= row["mae"] <= row["mae_high"]
        assert 0 <= row["coverage"] <= 1
    with pytest.raises(InputError, match="'nowhere'"):
        evaluate_properties(model, table, "nowhere")


def test_perfect_predictions_beat_others(model: PropertyModel, table: Any) -> None:
    made = evaluate_properties(model, table, "test")
    right = made.copy()
    for name in TARGETS:
        right[name] = made[f"{name}_reference"]
    shuffled = right.sample(frac=1, random_state=3).reset_index(drop=True)
    gains: Any = compare_predictions(made, shuffled)  # rows are matched by id
    assert (gains["mae_change"] < 0).all()
    assert (gains["mae_change_better"] == 1).all()
    assert (score_table(right, "right")["r2"] > 0.999999).all()


@pytest.mark.parametrize("protocol", ["random", "grouped"])
def test_every_row_is_predicted_by_a_fold_that_has_not_seen_it(
    table: Any, protocol: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chgdb import property_evaluation

    seen: list[tuple[set[str], set[str]]] = []
    real = property_evaluation.fit_and_predict

    def watched(rows: Any, train: Any, test: Any, *arguments: Any) -> Any:
        column = "formula" if protocol == "grouped" else "id"
        seen.append((set(rows.loc[train, column]), set(rows.loc[test, column])))
        return real(rows, train, test, *arguments)

    monkeypatch.setattr(property_evaluation, "fit_and_predict", watched)
    made = cross_validate(table, "composition", protocol, SMALL, n_folds=3, folder=tmp_path)
    assert sorted(made["id"]) == sorted(table["id"])
    assert len(seen) == 3
    assert not any(train & test for train, test in seen)
    again = cross_validate(table, "composition", protocol, SMALL, n_folds=3, folder=tmp_path)
    assert len(seen) == 3  # taken from the folder
    np.testing.assert_allclose(again["bulk_modulus"], made["bulk_modulus"])


def test_what_the_density_adds_is_seen(table: Any) -> None:
    """The moduli of these materials follow from volume and density: composition cannot know."""
    features = feature_table(700)
    rows = join(features, properties(features))
    train, test = ((rows["split"] == part).to_numpy() for part in ("train", "test"))
    some = Settings(networks=1, epochs=40, width=32, trees=150, batch=64)
    with_it = fit_and_predict(rows, train, test, "full", some)
    without = fit_and_predict(rows, train, test, "composition", some)
    gain: Any = compare_predictions(without, with_it).set_index("target")
    assert gain.loc["bulk_modulus", "mae_change_high"] < 0


def test_shares_of_the_inputs_sum_to_one(model: PropertyModel, table: Any) -> None:
    shares = tree_shares(model.members("full"), table, "full")
    assert set(shares) == set(BASE_TARGETS)
    for parts in shares.values():
        assert set(parts) == {"density", "volume", "composition"}
        assert sum(parts.values()) == pytest.approx(1)
        assert min(parts.values()) >= 0
    assert shares["bulk_modulus"]["density"] > 0.3  # 50 of 290 inputs, what it was made from


def test_the_card_holds_the_scores(model: PropertyModel, table: Any, tmp_path: Path) -> None:
    write_card(tmp_path, model, table)
    text = (tmp_path / "README.md").read_text()
    scores = score_table(evaluate_properties(model, table, "test"), "m")
    for row in scores.to_dict("records"):
        assert f"{row['r2']:.4f}" in text
    assert model.sha256 in text
    assert "chgdb train properties" in text


def test_the_peer_is_scored_as_it_scores_itself() -> None:
    """Its predictions are put to the right materials: its own metrics come out."""
    pytest.importorskip("pydemi")
    from chgdb.features import reference_bundle, reference_features

    bundle = reference_bundle()
    data = bundle["dataset"]
    known = {
        id_: {
            "split": data["split"][i],
            **{name: data["y"][name][i] for name in TARGETS if data["y"][name][i] is not None},
        }
        for i, id_ in enumerate(data["material_id"])
    }
    peer = peer_predictions(join(reference_features(), known))
    assert peer is not None
    assert len(peer) == 606
    scores: Any = score_table(peer, "pydemi").set_index("target")
    for name in TARGETS:
        for metric in ("mae", "r2", "rmse"):
            its = bundle["targets"][name]["metrics"][metric]
            assert scores.loc[name, metric] == pytest.approx(its, rel=1e-6), (name, metric)
