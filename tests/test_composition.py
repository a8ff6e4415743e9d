"""Composition features: by hand, against pydemi, and the table they are made of."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_data import pydemi_bundle

from chgdb.composition import (
    COMPOSITION_FEATURES,
    ELEMENT_TABLE,
    FRACTIONS,
    composition_features,
    element_fractions,
    mass_per_atom,
    parse_formula,
    reference_valence,
)
from chgdb.elements import SYMBOLS
from chgdb.errors import InputError
from chgdb.query import canonical_formula

LIBRARIES = Path(str(files("chgdb") / "libraries"))
SCRIPT = Path(__file__).parent.parent / "scripts" / "make_elements.py"
COUNTS = st.dictionaries(
    st.sampled_from(SYMBOLS[:103]), st.integers(1, 20).map(float), min_size=1, max_size=5
)
FUNCTIONS = (composition_features, element_fractions, mass_per_atom, reference_valence)


# --- formulas -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("Y(SiNi)2", {"Y": 1, "Si": 2, "Ni": 2}),
        ("Al2(Si(O2)2)3", {"Al": 2, "Si": 3, "O": 12}),
        ("O2Ti", {"O": 2, "Ti": 1}),
        ("Co", {"Co": 1}),
        ("CO", {"C": 1, "O": 1}),
        (" Fe0.5Ni1.50 ", {"Fe": 0.5, "Ni": 1.5}),
        ("(La0.25Sr)2O", {"La": 0.5, "Sr": 2, "O": 1}),
        ("OTiO", {"O": 2, "Ti": 1}),
    ],
)
def test_formula(text: str, counts: dict[str, float]) -> None:
    parsed = parse_formula(text)
    assert parsed == counts
    assert all(type(count) is float for count in parsed.values())


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "tio2",
            "X",
            "Xx2",
            "D2O",
            "Ti0",
            "Ti0.0",
            "TiO0O",
            "TiO0.0O",
            "Ti02",
            "Ti9999999",
            "2Ti",
            "Ti-2",
        ),
        *(
            "Ti)",
            "(Ti",
            "()",
            "()2",
            "Ti1.2.3",
            "Ti1.",
            "Ti.5",
            "Ti1e3",
            "Ti\n\nO",
            "(" * 99 + "Ti",
        ),
        *("mp-149", "Ti²", "Ti\uff11", "\ud800", "TiO2\x1b[31m", "nan", "A" * 30_000),
        *("(" * 25 + "Ti" + "0.000000000000001)" * 25 + "0.1",),
    ],
)
def test_rubbish_is_told_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"chemical formula|not an element") as caught:
        parse_formula(text)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 200


@settings(deadline=None)
@given(st.text(max_size=20) | st.text("TiONa().0123", max_size=20))
def test_any_text_is_a_formula_or_an_error(text: str) -> None:
    try:
        counts = parse_formula(text)
    except InputError:
        return
    assert counts
    assert set(counts) <= set(SYMBOLS)
    assert all(0 < count < math.inf for count in counts.values())


@settings(deadline=None)
@given(COUNTS)
def test_a_formula_is_read_as_the_search_reads_it(counts: dict[str, float]) -> None:
    text = "".join(f"{symbol}{count:.0f}" for symbol, count in counts.items())
    assert parse_formula(text) == counts
    reduced = parse_formula(canonical_formula(text))
    np.testing.assert_allclose(element_fractions(reduced), element_fractions(counts))


# --- features -------------------------------------------------------------------------------


def test_titania_by_hand() -> None:
    features = dict(zip(COMPOSITION_FEATURES, composition_features({"Ti": 2, "O": 4}), strict=True))
    assert features["0-norm"] == 2
    assert features["2-norm"] == pytest.approx(math.sqrt(5) / 3)
    assert features["10-norm"] == pytest.approx((1 + 2**10) ** 0.1 / 3)
    expected = {"minimum": 8, "maximum": 22, "range": 14, "mean": 38 / 3, "mode": 8}
    for name, value in expected.items():
        assert features[f"MagpieData {name} Number"] == pytest.approx(value)
    assert features["MagpieData avg_dev Number"] == pytest.approx(
        ((22 - 38 / 3) + 2 * (38 / 3 - 8)) / 3
    )
    assert mass_per_atom({"Ti": 2, "O": 4}) == pytest.approx((47.867 + 2 * 15.9994) / 3)
    assert reference_valence({"Ti": 2, "O": 4}) == pytest.approx((4 + 2 * 6) / 3)


def test_the_lesser_of_two_equally_frequent_elements() -> None:
    position = COMPOSITION_FEATURES.index("MagpieData mode Number")
    assert composition_features({"Cl": 3, "Na": 3})[position] == 11
    assert composition_features({"Cl": 0.3333334, "Na": 0.3333333})[position] == 11
    assert composition_features({"Cl": 3, "Na": 2})[position] == 17


def test_names() -> None:
    assert len(COMPOSITION_FEATURES) == len(set(COMPOSITION_FEATURES)) == 138
    assert sum(name.startswith("MagpieData ") for name in COMPOSITION_FEATURES[:132]) == 132
    assert len(FRACTIONS) == len(set(FRACTIONS)) == 103
    assert (FRACTIONS[0], FRACTIONS[-1]) == ("fraction H", "fraction Lr")


@settings(deadline=None)
@given(counts=COUNTS, factor=st.floats(1e-6, 1e6), order=st.randoms())
def test_only_the_ratios_count(counts: dict[str, float], factor: float, order: object) -> None:
    symbols = list(counts)
    order.shuffle(symbols)  # type: ignore[attr-defined]
    scaled = {symbol: factor * counts[symbol] for symbol in symbols} | {"Og": 0.0}
    before = dict(counts)
    for function in FUNCTIONS:
        np.testing.assert_allclose(function(scaled), function(counts), rtol=1e-10, atol=1e-12)
    assert counts == before


@settings(deadline=None)
@given(COUNTS)
def test_fractions(counts: dict[str, float]) -> None:
    fractions = dict(zip(FRACTIONS, element_fractions(counts), strict=True))
    assert sum(fractions.values()) == pytest.approx(1)
    total = sum(counts.values())
    for symbol in SYMBOLS[:103]:
        assert fractions[f"fraction {symbol}"] == pytest.approx(counts.get(symbol, 0) / total)


def test_a_pure_element_has_no_spread() -> None:
    for name, value in zip(COMPOSITION_FEATURES, composition_features({"W": 7}), strict=True):
        if " range " in name or " avg_dev " in name:
            assert value == 0
        if name.endswith("-norm"):
            assert value == pytest.approx(1)


def test_an_element_without_values_gives_nan() -> None:
    """Rutherfordium is not in the table; no PAW set of krypton or curium was used."""
    features = composition_features({"Rf": 1, "O": 2})
    statistics = dict(zip(COMPOSITION_FEATURES, features, strict=True))
    assert math.isnan(statistics["MagpieData mean Number"])
    assert statistics["MagpieData mode Number"] == 8
    assert statistics["0-norm"] == 2
    assert math.isnan(mass_per_atom({"Rf": 1, "O": 2}))
    assert sum(element_fractions({"Rf": 1, "O": 3})) == pytest.approx(3 / 4)
    for symbol in ("Rf", "Kr", "Cm"):
        assert math.isnan(reference_valence({symbol: 1, "O": 9}))
        assert reference_valence({symbol: 0, "O": 9}) == 6
    assert np.isfinite(composition_features({"Kr": 1, "O": 2})).all()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "counts",
    [
        *({}, {"Si": 0.0}, {"Si": -1.0}, {"Si": math.nan}, {"Si": math.inf}, {"Xx": 1.0}),
        *({"X": 0.0, "Si": 1.0}, {"si": 1.0}),
    ],
    ids=str,
)
def test_what_is_no_composition(function: object, counts: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"atoms|counts|not an element"):
        function(counts)  # type: ignore[operator]


def test_pydemi_agrees_on_all_its_materials() -> None:
    props = pytest.importorskip("pydemi.props")
    bundle = pydemi_bundle()
    formulas = bundle["dataset"]["formula"]
    assert len(formulas) == 6059
    ours, theirs = [], []
    for formula in formulas:
        counts = parse_formula(formula)
        expected = props.composition_features(counts, bundle["composition"])
        ours.append(composition_features(counts))
        theirs.append([expected[name] for name in COMPOSITION_FEATURES])
        assert len(expected) == len(COMPOSITION_FEATURES)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


# --- the table ------------------------------------------------------------------------------


def test_the_card_tells_the_table() -> None:
    content = (LIBRARIES / ELEMENT_TABLE).read_bytes()
    card = json.loads((LIBRARIES / ELEMENT_TABLE).with_suffix(".card.json").read_text())
    assert card["sha256"] == hashlib.sha256(content).hexdigest()
    table = json.loads(content)
    assert list(table["elements"]) == list(SYMBOLS[:103])
    assert card["elements"] == 103
    valences = [entry["valence"] for entry in table["elements"].values()]
    assert card["with_valence"] == sum(valence is not None for valence in valences)
    assert {"matminer", "BSD"} <= set(card["sources"]["magpie"].split())
    licences = (LIBRARIES / card["licences"]).read_text()
    assert "Regents of the University of\nCalifornia" in licences
    assert "MIT License" in licences


def test_the_script_makes_the_table(tmp_path: Path) -> None:
    pytest.importorskip("pydemi")
    path = tmp_path / ELEMENT_TABLE
    subprocess.run([sys.executable, str(SCRIPT), str(path)], check=True, capture_output=True)
    assert path.read_bytes() == (LIBRARIES / ELEMENT_TABLE).read_bytes()
    cards = [folder / path.with_suffix(".card.json").name for folder in (tmp_path, LIBRARIES)]
    made, kept = (json.loads(card.read_text()) for card in cards)
    assert {**made, "command": "", "chgdb": ""} == {**kept, "command": "", "chgdb": ""}
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [path.name, path.with_suffix(".card.json").name]
    )
