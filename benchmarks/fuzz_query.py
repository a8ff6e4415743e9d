"""Targets of fuzz.py: searches, held against a slow evaluation in plain Python.

`where` makes syntax trees and writes them in one of their spellings; `where-mutated` changes some
characters, and holds what is still understood against its own negation: every record fits an
expression, its negation, or neither, which is `IS UNKNOWN` (ternary logic partitioning, M. Rigger
and Z. Su, OOPSLA 2020). `filters` asks by formula, elements, ranges and the like, sorted and cut.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fuzz import Outcome, Target, check_refusal

from chgdb.database import Database
from chgdb.errors import ChgdbError, QueryError
from chgdb.schema import SEARCHABLE, EncoderInfo, LatentStorage, StoreInfo

__all__ = ["TARGETS"]

Rng = np.random.Generator
Row = dict[str, Any]
Truth = bool | None
"""What an expression says of a record; None for unknown."""

_TEXTS = (
    "train",
    "val",
    "Te%st_",
    "it's",
    'a"b',
    "back\\slash",
    "é Ωmega",
    "",
    "\U0001f600x",
    "NULL",
)
_VALUES = (None, 0.0, 1.5, -3.25, 88.0, 1e300, 1e-300, 436.0, -1e300)
_NUMBERS = ("bulk_modulus", "band_gap", "n_atoms", "n_elements", "volume", "C11", "row")
_WORDS = ("split", "id", "formula", "reduced_formula", "elements", "source", "chemsys")
_FLAGS = ("is_metal", "is_gap_direct", "latent_coarse")
_FORMULAS = ("TiO2", "Si", "NaCl", "Fe", "SrTiO3", "H2O", "O2", "C60", "MgO", "Ti", "CaTiO3", "UO2")


class Shared(NamedTuple):
    """A small store and everything that is in it."""

    database: Database
    rows: list[Row]


def _prepare(folder: Path) -> Shared:
    info = StoreInfo(
        EncoderInfo("none", "paper", ""), LatentStorage("float16", None, (16, 16, 16, 16)), "", ""
    )
    database = Database.create_for(folder / "store", info)
    rng = np.random.default_rng(0)
    materials = {}
    for number, formula in enumerate(_FORMULAS):
        given: Row = {"formula": formula}
        for name in ("bulk_modulus", "band_gap", "C11"):
            given[name] = _VALUES[rng.integers(len(_VALUES))]
        given["split"] = (*_TEXTS, None)[number % (len(_TEXTS) + 1)]
        for name in ("is_metal", "is_gap_direct"):
            given[name] = (True, False, None)[rng.integers(3)]
        materials[f"mp-{number}"] = {k: v for k, v in given.items() if v is not None}
    database.import_materials(materials)
    return Shared(database, database.select(columns=list(SEARCHABLE)).rows())


# --- syntax trees ---------------------------------------------------------------------------


class Tree(NamedTuple):
    """A part of an expression.

    Attributes:
        value: of a record; of a number or text, None stands for a missing one.
        spell: one of its spellings.
        level: how tightly it binds: 0 OR, 1 AND, 2 NOT, 3 a test, 4 a sum, 5 a product, 6 a sign,
            7 an atom.
    """

    value: Callable[[Row], Any]
    spell: Callable[[Rng], str]
    level: int


def _at(tree: Tree, level: int, rng: Rng) -> str:
    """A spelling that binds at least so tightly."""
    text = tree.spell(rng)
    return f"({text})" if tree.level < level or rng.random() < 0.1 else text


def _pick(rng: Rng, values: Sequence[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


def _word(rng: Rng, word: str) -> str:
    """A keyword in some case between some spaces."""
    cased = _pick(rng, (word, word.lower(), word.title()))
    return f"{_pick(rng, (' ', '  ', chr(10)))}{cased}{_pick(rng, (' ', chr(9)))}"


def _in_quotes(rng: Rng, text: str) -> str:
    if rng.random() < 0.7 or text in SEARCHABLE:
        return "'" + text.replace("'", "''") + "'"
    escaped = text.replace("\\", "\\\\").replace('"', _pick(rng, ('""', '\\"')))
    return f'"{escaped}"'


def _column(rng: Rng, names: Sequence[str]) -> Tree:
    name = _pick(rng, names)
    aliases = {"n_elements": ("nelements",), "n_atoms": ("nsites", "natoms")}
    known = (name, name.upper(), f'"{name}"', *aliases.get(name, ()))
    return Tree(lambda row: row[name], lambda rng: str(_pick(rng, known)), 7)


def _number(rng: Rng, depth: int) -> Tree:
    kind = rng.integers(6) if depth > 0 else rng.integers(2)
    if kind == 0:
        return _column(rng, _NUMBERS)
    if kind == 1:
        value = abs(_pick(rng, (0.0, 1.0, 2.0, 0.5, 88.0, 436.0, 1e300, 1e-300, 1e15, 3.25)))
        texts = {0.0: ("0", "0.0", ".0", "0e5"), 1e15: ("1e15", "1000000000000000")}
        known = texts.get(value, (repr(value), f"{value:.17g}"))
        return Tree(lambda _: value, lambda rng: str(_pick(rng, known)), 7)
    if kind == 2:
        inner, sign = _number(rng, depth - 1), _pick(rng, "+-")
        return Tree(
            lambda row: (
                _calculated(0.0, sign, inner.value(row)) if sign == "-" else inner.value(row)
            ),
            lambda rng: f"{sign} {_at(inner, 6, rng)}",
            6,
        )
    sign = _pick(rng, "+-*/")
    left, right = _number(rng, depth - 1), _number(rng, depth - 1)
    level = 4 if sign in "+-" else 5
    return Tree(
        lambda row: _calculated(left.value(row), sign, right.value(row)),
        lambda rng: f"{_at(left, level, rng)} {sign} {_at(right, level + 1, rng)}",
        level,
    )


def _calculated(left: float | None, sign: str, right: float | None) -> float | None:
    if left is None or right is None:
        return None
    left, right = float(left), float(right)
    if sign == "/":
        return None if right == 0 else _quotient(left, right)
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def _quotient(left: float, right: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.float64(left) / np.float64(right))


def _text(rng: Rng) -> Tree:
    if rng.random() < 0.5:
        return _column(rng, _WORDS)
    value = _pick(
        rng, (*_TEXTS, "mp-3", "TiO2", "O,Ti", "id", "%", "_", "x' OR '1'='1", "--", "z" * 99)
    )
    return Tree(lambda _: value, lambda rng: _in_quotes(rng, value), 7)


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<>": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _known(value: Any) -> Any:
    """What a comparison sees: NaN is unknown, text is ordered by its bytes."""
    if isinstance(value, str):
        return value.encode()
    return None if isinstance(value, float) and math.isnan(value) else value


def _compared(a: Any, sign: str, b: Any) -> Truth:
    a, b = _known(a), _known(b)
    return None if a is None or b is None else _COMPARISONS[sign](a, b)


def _not(truth: Truth) -> Truth:
    return None if truth is None else not truth


def _and(truths: Sequence[Truth]) -> Truth:
    return False if False in truths else None if None in truths else True


def _or(truths: Sequence[Truth]) -> Truth:
    return _not(_and([_not(truth) for truth in truths]))


def _operand(rng: Rng, depth: int) -> tuple[str, Tree]:
    kind = _pick(rng, ("number", "number", "text"))
    return kind, _number(rng, min(depth, 2)) if kind == "number" else _text(rng)


def _same(rng: Rng, kind: str, depth: int) -> Tree:
    return _number(rng, min(depth, 2)) if kind == "number" else _text(rng)


def _truth(rng: Rng, depth: int) -> Tree:
    """A condition."""
    if depth > 0 and rng.random() < 0.5:
        return _joined(rng, depth)
    make = _pick(rng, (_compare, _compare, _between, _in, _like, _is, _part, _has, _length, _flag))
    tree: Tree = make(rng, depth)
    return tree


def _joined(rng: Rng, depth: int) -> Tree:
    kind = rng.integers(3)
    if kind == 0:
        inner = _truth(rng, depth - 1)
        return Tree(
            lambda row: _not(inner.value(row)), lambda r: f"{_word(r, 'NOT')}{_at(inner, 2, r)}", 2
        )
    word, level, join = (("AND", 1, _and), ("OR", 0, _or))[kind - 1]
    parts = [_truth(rng, depth - 1) for _ in range(rng.integers(2, 5))]
    return Tree(
        lambda row: join([part.value(row) for part in parts]),
        lambda r: _word(r, word).join(_at(part, level + 1, r) for part in parts),
        level,
    )


def _compare(rng: Rng, depth: int) -> Tree:
    sign = _pick(rng, list(_COMPARISONS))
    if rng.random() < 0.15:
        left, right = _truth(rng, min(depth - 1, 1)), _flag(rng, 0)
        sign = _pick(rng, ("=", "==", "!=", "<>"))
    else:
        kind, left = _operand(rng, depth)
        right = _same(rng, kind, depth)
    return Tree(
        lambda row: _compared(left.value(row), sign, right.value(row)),
        lambda r: f"{_at(left, 4, r)} {sign} {_at(right, 4, r)}",
        3,
    )


def _between(rng: Rng, depth: int) -> Tree:
    kind, value = _operand(rng, depth)
    low, high = _same(rng, kind, depth), _same(rng, kind, depth)
    negative = rng.random() < 0.4

    def of(row: Row) -> Truth:
        v, a, b = (tree.value(row) for tree in (value, low, high))
        truth = _and([_compared(v, ">=", a), _compared(v, "<=", b)])
        return _not(truth) if negative else truth

    def spell(r: Rng) -> str:
        word = _word(r, "NOT") * negative + _word(r, "BETWEEN")
        return f"{_at(value, 4, r)}{word}{_at(low, 4, r)}{_word(r, 'AND')}{_at(high, 4, r)}"

    return Tree(of, spell, 3)


def _in(rng: Rng, depth: int) -> Tree:
    kind, value = _operand(rng, depth)
    options = [_same(rng, kind, depth) for _ in range(rng.integers(1, 5))]
    negative = rng.random() < 0.4

    def of(row: Row) -> Truth:
        truth = _or([_compared(value.value(row), "=", o.value(row)) for o in options])
        return _not(truth) if negative else truth

    def spell(r: Rng) -> str:
        listed = ", ".join(_at(option, 4, r) for option in options)
        return f"{_at(value, 4, r)}{_word(r, 'NOT') * negative}{_word(r, 'IN')}({listed})"

    return Tree(of, spell, 3)


def _like(rng: Rng, depth: int) -> Tree:  # noqa: ARG001
    value, pattern = _text(rng), _text(rng)
    if rng.random() < 0.7:
        made = "".join(
            _pick(rng, ("%", "_", "t", "r", "E", "é", "\\", "'", "mp-")) for _ in range(5)
        )
        pattern = Tree(lambda _: made, lambda r: _in_quotes(r, made), 7)
    word, negative = _pick(rng, ("LIKE", "ILIKE")), rng.random() < 0.4

    def of(row: Row) -> Truth:
        text, like = value.value(row), pattern.value(row)
        if text is None or like is None:
            return None
        if word == "ILIKE":
            text, like = text.lower(), like.lower()
        parts = {"%": ".*", "_": "."}
        regex = "".join(parts.get(c, re.escape(c)) for c in like)
        truth = re.fullmatch(regex, text, re.DOTALL) is not None
        return truth != negative

    def spell(r: Rng) -> str:
        return f"{_at(value, 4, r)}{_word(r, 'NOT') * negative}{_word(r, word)}{_at(pattern, 4, r)}"

    return Tree(of, spell, 3)


def _is(rng: Rng, depth: int) -> Tree:
    word = _pick(rng, ("NULL", "UNKNOWN", "KNOWN", "TRUE", "FALSE"))
    negative = rng.random() < 0.4
    if word in ("TRUE", "FALSE") or rng.random() < 0.2:
        value = _truth(rng, min(depth - 1, 1))
    else:
        value = _operand(rng, depth)[1]

    def of(row: Row) -> Truth:
        found = _known(value.value(row))
        truth = {
            "NULL": found is None,
            "UNKNOWN": found is None,
            "KNOWN": found is not None,
            "TRUE": found is True,
            "FALSE": found is False,
        }[word]
        return truth != negative

    def spell(r: Rng) -> str:
        return f"{_at(value, 4, r)}{_word(r, 'IS')}{_word(r, 'NOT') * negative}{_word(r, word)}"

    return Tree(of, spell, 3)


def _part(rng: Rng, depth: int) -> Tree:  # noqa: ARG001
    value, part = _text(rng), _text(rng)
    word = _pick(rng, ("CONTAINS", "STARTS", "STARTS WITH", "ENDS", "ENDS WITH"))

    def of(row: Row) -> Truth:
        text, inner = value.value(row), part.value(row)
        if text is None or inner is None:
            return None
        if word == "CONTAINS":
            return inner in text
        return bool(text.startswith(inner) if word.startswith("ST") else text.endswith(inner))

    return Tree(of, lambda r: f"{_at(value, 4, r)}{_word(r, word)}{_at(part, 4, r)}", 3)


def _has(rng: Rng, depth: int) -> Tree:  # noqa: ARG001
    word = _pick(rng, ("HAS", "HAS ALL", "HAS ANY", "HAS ONLY"))
    count = 1 if word == "HAS" else int(rng.integers(1, 4))
    symbols = [str(_pick(rng, ("Ti", "O", "Si", "Na", "Fe", "C", "H"))) for _ in range(count)]

    def of(row: Row) -> Truth:
        there = set(row["elements"].split(","))
        if word == "HAS ANY":
            return bool(there & set(symbols))
        return there <= set(symbols) if word == "HAS ONLY" else set(symbols) <= there

    def spell(r: Rng) -> str:
        return f"elements{_word(r, word)}{', '.join(_in_quotes(r, s) for s in symbols)}"

    return Tree(of, spell, 3)


def _length(rng: Rng, depth: int) -> Tree:
    sign, number = _pick(rng, ("", "=", "!=", "<", ">=")), _number(rng, min(depth, 1))
    return Tree(
        lambda row: _compared(row["n_elements"], sign or "=", number.value(row)),
        lambda r: f"elements{_word(r, 'LENGTH')}{sign} {_at(number, 4, r)}",
        3,
    )


def _flag(rng: Rng, depth: int) -> Tree:  # noqa: ARG001
    if rng.random() < 0.7:
        return _column(rng, _FLAGS)
    value = bool(rng.integers(2))
    return Tree(lambda _: value, lambda r: _word(r, str(value).upper()).strip(), 7)


# --- cases ----------------------------------------------------------------------------------

_LIMITS = ("nested more than", "of + - * /", "characters; shorten")


def _ids(shared: Shared, **filters: Any) -> list[str]:
    found = shared.database.select(columns=["id"], **filters)
    return [id_ for (id_,) in found.values]


def _check_limit(error: QueryError, text: str) -> None:
    """Hold that what is right is refused for its size alone."""
    check_refusal(error)
    assert any(limit in str(error) for limit in _LIMITS), f"{error}: {text!r}"


def _where(rng: Rng, shared: Shared) -> Outcome:
    tree = _truth(rng, int(rng.integers(0, 5)))
    text = tree.spell(rng)
    expected = [row["id"] for row in shared.rows if tree.value(row) is True]
    try:
        found = _ids(shared, where=text)
        assert shared.database.count(where=text) == len(expected)
    except QueryError as error:
        _check_limit(error, text)
        return "refused"
    assert found == expected, f"{text!r} gave {found}, not {expected}"
    return "read"


_SCRAPS = (
    *(
        "'",
        '"',
        "(",
        ")",
        "--",
        "/*",
        "*/",
        ";",
        "NULL",
        "NOT ",
        "\\",
        "%",
        "\0",
        "\u202e",
        "\ud800",
    ),
    *(
        " OR 1=1",
        "SELECT ",
        "read_text('/etc/passwd')",
        "1e999",
        "NaN",
        "inf",
        "0x10",
        "1_000",
        "'NaN'",
    ),
    *(
        "id",
        "9" * 400,
        "$1",
        "?",
        ":x",
        "::INT",
        "[1]",
        "{}",
        "=",
        "<",
        "IS ",
        "IN (",
        "é",
        "²",
        "\uff11",
    ),
)


def _mutated(rng: Rng, text: str) -> str:
    for _ in range(rng.integers(1, 3)):
        place = int(rng.integers(len(text) + 1))
        kind = rng.integers(6)
        if kind == 0:
            text = text[:place] + text[place + int(rng.integers(1, 6)) :]
        elif kind == 1:
            text = text[:place] + _pick(rng, _SCRAPS) + text[place:]
        elif kind == 2:
            text = text[:place] + chr(int(rng.integers(1, 0x250))) + text[place + 1 :]
        elif kind == 3:
            other = int(rng.integers(len(text) + 1))
            text = text[:place] + text[min(place, other) : max(place, other)] + text[place:]
        elif kind == 4:
            text = text[place:] + text[:place]
        else:
            times = int(_pick(rng, (2, 3, 50, 10_000))) if rng.random() < 0.1 else 2
            piece = str(_pick(rng, ("(", "NOT ", "- ", "id = 'x' OR ", "1 + ", '"', "((((")))
            text = text[:place] + piece * times + text[place:]
    if rng.random() < 0.002:
        text *= 1_000_000 // max(len(text), 1)
    return text


def _where_mutated(rng: Rng, shared: Shared) -> Outcome:
    text = _mutated(rng, _truth(rng, int(rng.integers(0, 4))).spell(rng))
    try:
        fits = _ids(shared, where=text)
        if not text.strip():
            assert len(fits) == len(shared.rows)
            return "read"
    except ChgdbError as error:
        check_refusal(error)
        return "refused"
    try:
        fails = _ids(shared, where=f"NOT ({text})")
        neither = _ids(shared, where=f"({text}) IS UNKNOWN")
    except QueryError as error:
        _check_limit(error, text)
        return "read"
    expected = sorted(row["id"] for row in shared.rows)
    assert sorted([*fits, *fails, *neither]) == expected, f"{text!r}: no partition"
    return "read"


Test = Callable[[Row], Truth]


def _formula(rng: Rng) -> tuple[Row, Test]:
    asked = _pick(rng, _FORMULAS)
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", asked)
    times = int(rng.integers(1, 4))
    parts = [parts[i] for i in rng.permutation(len(parts))]
    text = "".join(f"{symbol}{int(n or 1) * times}" for symbol, n in parts)

    def counts(formula: str) -> dict[str, int]:
        found = {s: int(n or 1) for s, n in re.findall(r"([A-Z][a-z]?)(\d*)", formula)}
        divisor = math.gcd(*found.values())
        return {symbol: n // divisor for symbol, n in found.items()}

    return {"formula": text}, lambda row: counts(row["formula"]) == counts(asked)


def _elements(rng: Rng) -> tuple[Row, Test]:
    known = ("Ti", "O", "Si", "Na", "H", "U")
    some = [str(_pick(rng, known)) for _ in range(rng.integers(1, 3))]
    name = _pick(rng, ("elements", "exclude", "chemsys"))
    if name == "chemsys":
        text = "-".join(some)
        return {name: text}, lambda row: set(row["elements"].split(",")) == set(some)
    value = _pick(rng, (some, ",".join(some), " , ".join(some)))
    if name == "elements":
        return {name: value}, lambda row: set(some) <= set(row["elements"].split(","))
    return {name: value}, lambda row: not set(some) & set(row["elements"].split(","))


def _range(rng: Rng) -> tuple[Row, Test]:
    name = _pick(rng, ("bulk_modulus", "band_gap", "C11", "n_elements"))
    low, high = sorted(float(_pick(rng, _VALUES[1:])) for _ in range(2))
    kinds: list[tuple[str, Callable[[float], bool]]] = [
        (f"{low!r}:{high!r}", lambda v: low <= v <= high),
        (f"{low!r}:", lambda v: v >= low),
        (f":{high!r}", lambda v: v <= high),
        (f"{low!r}", lambda v: v == low),
    ]
    text, test = _pick(rng, kinds)
    asked: Row = {"nelements": text} if name == "n_elements" else {"ranges": {name: text}}
    return asked, lambda row: None if row[name] is None else test(row[name])


def _junk(rng: Rng) -> Row:
    """A filter with a value that has no meaning, or hardly one."""
    text = _mutated(
        rng, str(_pick(rng, ("TiO2", "Ti,O", "Ti-O", "1:2", "227", "cubic", "dft", "id")))
    )
    if rng.random() < 0.02:
        text = text * (1_000_000 // max(len(text), 1))
    name = _pick(
        rng,
        (
            *("formula", "elements", "exclude", "chemsys", "nelements", "spacegroup"),
            *("crystal_system", "source", "columns", "sort", "ranges", "bounds", "limit"),
        ),
    )
    if name == "ranges":
        return {"ranges": {text: "1:2"}}
    if name == "bounds":
        return {"ranges": {"volume": text}}
    if name == "limit":
        return {"limit": int(_pick(rng, (-1, 0, 2**31, 2**63, 2**200)))}
    return {name: text}


def _filters(rng: Rng, shared: Shared) -> Outcome:
    if rng.random() < 0.5:
        junk = _junk(rng)
        try:
            found = shared.database.select(**junk)
        except ChgdbError as error:
            check_refusal(error)
            return "refused"
        if "columns" not in junk:
            expected = {row["id"] for row in shared.rows}
            ids = [row["id"] for row in found]
            assert len(set(ids)) == len(ids)
            assert set(ids) <= expected
        return "read"
    asked: Row = {}
    tests: list[Test] = []
    for make in (_formula, _elements, _range):
        if rng.random() < 0.5:
            filters, test = make(rng)
            asked |= filters
            tests.append(test)
    rows = [row for row in shared.rows if _and([test(row) for test in tests]) is True]
    if rng.random() < 0.7:
        name = _pick(rng, (*_NUMBERS, *_WORDS, *_FLAGS))
        asked["sort"], asked["descending"] = name, bool(rng.integers(2))
        there = [row for row in rows if row[name] is not None]
        there.sort(key=lambda row: _known(row[name]), reverse=asked["descending"])
        rows = [*there, *(row for row in rows if row[name] is None)]
    if rng.random() < 0.5:
        asked["limit"] = int(rng.integers(0, 8))
        rows = rows[: asked["limit"]]
    answer = _ids(shared, **asked)
    assert answer == [row["id"] for row in rows], f"{asked} gave {answer}"
    return "read"


TARGETS = (
    Target("where", _prepare, _where),
    Target("where-mutated", _prepare, _where_mutated),
    Target("filters", _prepare, _filters),
)
