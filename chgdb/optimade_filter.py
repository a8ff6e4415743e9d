"""The fields of a structure in OPTIMADE, and filters over them as SQL for duckdb.

The grammar is that of the package `optimade`; as in `chgdb.query`, SQL is *written* from the tree
that it recognises: every literal becomes a `?` parameter, every identifier stands for the SQL that
`FIELDS` has for it, and functions and operators are those spelled out here.

What is unknown (NULL) fits no comparison, nor its negation: `IS UNKNOWN` finds it. A property of
another provider is unknown for every structure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from chgdb.errors import MissingExtraError, QueryError
from chgdb.query import Condition, known, quoted, shown_text
from chgdb.schema import SEARCHABLE, Column

if TYPE_CHECKING:
    from lark import Lark, Token, Tree

__all__ = [
    "FIELDS",
    "PREFIX",
    "SYMBOL_PART",
    "Field",
    "FieldType",
    "OptimadeFilter",
    "UnsupportedFilterError",
    "is_foreign",
    "known_field",
    "parse_filter",
]

PREFIX = "_chgdb_"
"""What the names of properties begin with that no standard defines."""

FieldType = Literal["string", "integer", "float", "boolean", "timestamp", "list"]

_MAX_LENGTH = 20_000
_MAX_DEPTH = 32
"""Of parentheses: keeps the walk below Python's recursion limit."""


class UnsupportedFilterError(QueryError):
    """A filter in the OPTIMADE language that chgdb cannot run.

    It has an optional feature that chgdb lacks, or values of different types, which the language
    can write but not compare.
    """


@dataclass(frozen=True)
class Field:
    """A property of a structure.

    Attributes:
        type: of OPTIMADE.
        description: one line for people.
        columns: of the table that its value is made from; none for a constant.
        sql: its value for a filter, over these columns.
        unit: in UCUM; None where that has none.
        items: type of the items of a list that HAS may ask for.
        length: SQL of the length of a list.
        served: whether it can have a value at all; a standard field without is always null.
    """

    type: FieldType
    description: str
    columns: tuple[str, ...]
    sql: str
    unit: str | None = None
    items: Literal["string", "float"] | None = None
    length: str = "NULL"
    served: bool = True

    @property
    def sort_column(self) -> str | None:
        """The column that has the order of the field, if there is one."""
        plain = len(self.columns) == 1 and self.sql in (quoted(self.columns[0]), _TIME)
        return self.columns[0] if plain and self.type != "list" else None


class OptimadeFilter(NamedTuple):
    """What a filter asks, and what its author should be told."""

    condition: Condition
    warnings: tuple[str, ...]


# --- fields ---------------------------------------------------------------------------------


_TIME = 'try_cast("added" AS TIMESTAMP)'
_COUNTS = (
    "[coalesce(try_cast(n AS BIGINT), 1) "
    """for n in regexp_extract_all("reduced_formula", '[A-Z][a-z]?([0-9]*)', 1)]"""
)
_ANONYMOUS = (
    "array_to_string([chr((65 + (p[2] - 1) % 26)::INTEGER)"
    " || CASE WHEN p[2] > 26 THEN chr((96 + (p[2] - 1) // 26)::INTEGER) ELSE '' END"
    " || CASE WHEN p[1] = 1 THEN '' ELSE p[1]::VARCHAR END"
    f" for p in list_zip(list_reverse_sort({_COUNTS}), range(1, len({_COUNTS}) + 1))], '')"
)

SYMBOL_PART = r"(-?[0-9](_[0-9])?(/[a-z])?|[a-z])"
"""A generator in the symbol of a space group as spglib writes it: 2_1/c in P2_1/c."""

_HERMANN_MAUGUIN = (
    rf"""replace(regexp_replace("spacegroup_symbol", '{SYMBOL_PART}', ' \1', 'g'), '_', '')"""
)

_STANDARD = {
    "id": Field("string", "id of the material", ("id",), '"id"'),
    "type": Field("string", "type of the entry: structures", (), "'structures'"),
    "last_modified": Field("timestamp", "when the record was added", ("added",), _TIME),
    "elements": Field(
        "list",
        "elements in alphabetical order",
        ("elements",),
        "string_split(\"elements\", ',')",
        items="string",
        length='"n_elements"',
    ),
    "nelements": Field("integer", "number of elements", ("n_elements",), '"n_elements"'),
    "elements_ratios": Field(
        "list",
        "fractions of the atoms that are of the elements",
        ("reduced_formula",),
        f"[n / list_sum({_COUNTS}) for n in {_COUNTS}]",
        items="float",
        length='"n_elements"',
    ),
    "chemical_formula_descriptive": Field(
        "string", "reduced formula, metals first", ("formula",), '"formula"'
    ),
    "chemical_formula_reduced": Field(
        "string",
        "reduced formula, elements in alphabetical order",
        ("reduced_formula",),
        '"reduced_formula"',
    ),
    "chemical_formula_anonymous": Field(
        "string", "reduced formula with A for the most frequent", ("reduced_formula",), _ANONYMOUS
    ),
    "dimension_types": Field(
        "list",
        "periodic along a, b and c",
        (),
        "[1, 1, 1]::DOUBLE[]",
        items="float",
        length="3",
    ),
    "nperiodic_dimensions": Field("integer", "number of periodic dimensions: 3", (), "3"),
    "lattice_vectors": Field("list", "a, b and c", ("lattice",), '"lattice"', "Ao", length="3"),
    "space_group_symbol_hermann_mauguin": Field(
        "string", "Hermann-Mauguin symbol", ("spacegroup_symbol",), _HERMANN_MAUGUIN
    ),
    "space_group_it_number": Field(
        "integer", "space group number, 1 to 230", ("spacegroup",), '"spacegroup"'
    ),
    "cartesian_site_positions": Field(
        "list",
        "positions of the atoms",
        ("lattice", "frac_coords"),
        '"frac_coords"',
        "Ao",
        length='"n_atoms"',
    ),
    "nsites": Field("integer", "atoms in the cell", ("n_atoms",), '"n_atoms"'),
    "species": Field(
        "list", "one species per element", ("species",), '"species"', length='"n_elements"'
    ),
    "species_at_sites": Field(
        "list",
        "element of every atom",
        ("species",),
        "regexp_extract_all(\"species\", '[A-Z][a-z]?')",
        items="string",
        length='"n_atoms"',
    ),
    "structure_features": Field(
        "list",
        "always empty: no site is disordered or unknown",
        (),
        "[]::VARCHAR[]",
        items="string",
        length="0",
    ),
}


def _never(type_: FieldType) -> Field:
    return Field(type_, "always null", (), "NULL::VARCHAR", served=False)


_NEVER = {
    "immutable_id": _never("string"),
    "chemical_formula_hill": _never("string"),
    "space_group_symmetry_operations_xyz": _never("list"),
    "space_group_symbol_hall": _never("string"),
    "space_group_symbol_hermann_mauguin_extended": _never("string"),
    "assemblies": _never("list"),
}

_UCUM = {
    "%": "%",
    "1": "1",
    "A^3": "Ao3",
    "GPa": "GPa",
    "K": "K",
    "W/(m K)": "W/(m.K)",
    "e": "{electron}",
    "e/A^3": "{electron}/Ao3",
    "eV": "eV",
    "eV/atom": "eV/{atom}",
    "g/cm^3": "g/cm3",
    "m/s": "m/s",
}
"""Our units in the Unified Code for Units of Measure, which has no Bohr magneton."""

_IN_STANDARD = {
    "row",  # where the latent is: nobody else's business
    *(column for field in _STANDARD.values() for column in field.columns),
    "n_elements",
    "n_atoms",
} - {"spacegroup_symbol"}
"""Columns that are not served with the prefix of chgdb as well."""


def _provided(column: Column) -> Field:
    types: dict[str, FieldType] = {"text": "string", "integer": "integer", "real": "float"}
    unit = f", in {column.unit}" if column.unit not in ("", "1") else ""
    return Field(
        types.get(column.type, "boolean"),
        column.description + unit,
        (column.name,),
        quoted(column.name),
        _UCUM.get(column.unit),
    )


FIELDS = {
    **_STANDARD,
    **_NEVER,
    **{
        f"{PREFIX}{name.lower()}": _provided(column)
        for name, column in SEARCHABLE.items()
        if name not in _IN_STANDARD
    },
}
"""Every field by its name: those of OPTIMADE 1.2, then those of chgdb."""


def known_field(name: str) -> Field:
    """A field by its name.

    Raises:
        QueryError: there is none.
    """
    if name not in FIELDS:
        raise QueryError(f"no field {shown_text(name)}; /v1/info/structures lists what there is")
    return FIELDS[name]


def is_foreign(name: str) -> bool:
    """Whether a name is of a property of another provider, which are unknown here."""
    return name.startswith("_") and not name.startswith(PREFIX)


# --- filters --------------------------------------------------------------------------------


def parse_filter(text: str) -> OptimadeFilter:
    """A filter of OPTIMADE 1.2 as a checked condition; blank asks for nothing.

    Raises:
        QueryError: it cannot be read, names an unknown field, or is too long or too deeply nested.
        UnsupportedFilterError: an optional feature that chgdb lacks, or values of different types.
        MissingExtraError: the package `optimade` is not installed.
    """
    if not text.strip():
        return OptimadeFilter(Condition(), ())
    _check_text(text)
    grammar = _grammar()
    from lark.exceptions import LarkError, UnexpectedInput

    try:
        tree = grammar.parse(text)
    except UnexpectedInput as error:
        column = getattr(error, "pos_in_stream", None)
        where = f"at character {column + 1}" if column is not None else "at its end"
        raise QueryError(f"the filter cannot be read {where}") from error
    except LarkError as error:
        raise QueryError("the filter cannot be read") from error
    if len(tree.children) != 1:
        raise QueryError("a filter is one expression: join its parts with AND or OR")
    walk = _Walk()
    condition = walk.expression(_tree(tree.children[0]))
    return OptimadeFilter(condition, tuple(dict.fromkeys(walk.warnings)))


_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def _check_text(text: str) -> None:
    """What the grammar must not see.

    Its pattern of a text takes exponential time over tabs that no quote ends.
    """
    if len(text) > _MAX_LENGTH:
        raise QueryError(f"the filter has more than {_MAX_LENGTH} characters; shorten it")
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise QueryError("the filter is not valid Unicode text")
    bare = _STRING.sub("", text)
    if '"' in bare:
        raise QueryError("a quote in the filter is never closed")
    if bare.count("(") > _MAX_DEPTH:
        depth = deepest = 0
        for character in bare:
            depth += (character == "(") - (character == ")")
            deepest = max(deepest, depth)
        if deepest > _MAX_DEPTH:
            raise QueryError(f"the filter is nested more than {_MAX_DEPTH} deep; simplify it")


@cache
def _grammar() -> Lark:
    try:
        from lark import Lark

        folder = resources.files("optimade")
    except ModuleNotFoundError as error:
        raise MissingExtraError("OPTIMADE", "web") from error
    text = (folder / "grammar" / "v1.2.0.lark").read_text(encoding="utf-8")
    text = text.replace("\nbool:", "\n!bool:")  # else the tree does not say which it was
    # LALR: lark's usual parser takes thirty times as long for a long filter
    return Lark(text, parser="lalr", maybe_placeholders=False)


_Kind = Literal["text", "number", "boolean", "timestamp", "list", "unknown"]

_KINDS: dict[FieldType, _Kind] = {
    "string": "text",
    "integer": "number",
    "float": "number",
    "boolean": "boolean",
    "timestamp": "timestamp",
    "list": "list",
}
_NAMES = {
    "text": "text",
    "number": "a number",
    "boolean": "true or false",
    "timestamp": "a time",
    "list": "a list",
}

_REVERSED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}
_OPERATORS = {"<": "<", "<=": "<=", ">": ">", ">=": ">=", "=": "=", "!=": "<>"}
_TEXT_TESTS = {"CONTAINS": "contains", "STARTS": "starts_with", "ENDS": "ends_with"}
_QUANTIFIERS = {
    "ALL": "list_has_all({list}, {asked})",
    "ANY": "list_has_any({list}, {asked})",
    "ONLY": "list_has_all({asked}, {list})",
}
_UNKNOWN = Condition("NULL::BOOLEAN")

_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(frozen=True)
class _Value:
    """One side of a comparison."""

    sql: str
    parameters: tuple[Any, ...]
    kind: _Kind
    name: str
    field: Field | None = None


class _Walk:
    """One method for each rule of the grammar that means something."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def expression(self, tree: Tree[Token]) -> Condition:
        """expression: clause { OR clause }."""
        return _joined([self._clause(_tree(child)) for child in tree.children], "OR")

    def _clause(self, tree: Tree[Token]) -> Condition:
        """expression_clause: phrase { AND phrase }."""
        return _joined([self._phrase(_tree(child)) for child in tree.children], "AND")

    def _phrase(self, tree: Tree[Token]) -> Condition:
        """expression_phrase: [ NOT ] ( comparison | "(" expression ")" )."""
        inner = _tree(tree.children[-1])
        if inner.data == "expression":
            condition = self.expression(inner)
        else:
            condition = self._comparison(_tree(inner.children[0]))
        if len(tree.children) == 1:
            return condition
        return Condition(f"(NOT {condition.sql})", condition.parameters)

    def _comparison(self, tree: Tree[Token]) -> Condition:
        if tree.data == "constant_first_comparison":
            constant, operator, other = tree.children
            value = self._value(_tree(other))
            if value.field is None and value.kind != "unknown":
                raise UnsupportedFilterError("comparing two constants is not supported")
            return _compared(value, _REVERSED[str(operator)], self._value(_tree(constant)))
        value = self._property(_tree(tree.children[0]))
        right = _tree(tree.children[1])
        rules: dict[str, Callable[[_Value, Tree[Token]], Condition]] = {
            "value_op_rhs": self._operator,
            "known_op_rhs": self._known,
            "fuzzy_string_op_rhs": self._text_test,
            "set_op_rhs": self._has,
            "length_op_rhs": self._length,
        }
        if right.data not in rules:
            raise UnsupportedFilterError(
                "lists asked together, as in a:b HAS 1:2, are not supported"
            )
        return rules[right.data](value, right)

    def _operator(self, value: _Value, tree: Tree[Token]) -> Condition:
        operator, other = tree.children
        return _compared(value, str(operator), self._value(_tree(other)))

    def _known(self, value: _Value, tree: Tree[Token]) -> Condition:
        known = "NOT " if str(tree.children[1]) == "KNOWN" else ""
        return Condition(f"({value.sql} IS {known}NULL)", value.parameters)

    def _text_test(self, value: _Value, tree: Tree[Token]) -> Condition:
        word, part = str(tree.children[0]), self._value(_tree(tree.children[-1]))
        for side in (value, part):
            if side.kind not in ("text", "unknown"):
                raise UnsupportedFilterError(
                    f"{word} needs text, and {side.name} is {_NAMES[side.kind]}"
                )
        if "unknown" in (value.kind, part.kind):
            return _UNKNOWN
        return Condition(
            f"{_TEXT_TESTS[word]}({value.sql}, {part.sql})", value.parameters + part.parameters
        )

    def _has(self, value: _Value, tree: Tree[Token]) -> Condition:
        """set_op_rhs: HAS ( [ OPERATOR ] value | (ALL | ANY | ONLY) value_list )."""
        last = _tree(tree.children[-1])
        words = [child for child in tree.children[1:-1] if _is_token(child)]
        items = [last]
        if last.data == "value_list":
            words += [child for child in last.children if _is_token(child)]
            items = [_tree(child) for child in last.children if not _is_token(child)]
        quantifiers = [str(word) for word in words if str(word) in _QUANTIFIERS]
        if len(quantifiers) < len(words):
            raise UnsupportedFilterError("operators after HAS are not supported")
        wanted = [self._value(item) for item in items]
        if value.kind == "unknown":
            return _UNKNOWN
        if value.field is None or value.kind != "list":
            raise UnsupportedFilterError(
                f"HAS needs a list, and {value.name} is {_NAMES[value.kind]}"
            )
        if not value.field.served:
            return _UNKNOWN
        if value.field.items is None:
            raise UnsupportedFilterError(f"HAS is not supported for {value.name}")
        kind = _KINDS[value.field.items]
        for item in wanted:
            if item.sql != "?":
                raise UnsupportedFilterError("properties after HAS are not supported")
            if item.kind != kind:
                raise UnsupportedFilterError(
                    f"{value.name} has no {item.name}: its items are {kind}s"
                )
        asked = f"[{', '.join('?' * len(wanted))}]::{'VARCHAR' if kind == 'text' else 'DOUBLE'}[]"
        test = _QUANTIFIERS[quantifiers[0] if quantifiers else "ALL"]
        sql = test.format(list=value.sql, asked=asked)
        return Condition(sql, tuple(item.parameters[0] for item in wanted))

    def _length(self, value: _Value, tree: Tree[Token]) -> Condition:
        """length_op_rhs: LENGTH [ OPERATOR ] signed_int."""
        if value.kind == "unknown":
            return _UNKNOWN
        if value.field is None or value.kind != "list":
            raise UnsupportedFilterError(
                f"LENGTH needs a list, and {value.name} is {_NAMES[value.kind]}"
            )
        operator = str(tree.children[1]) if len(tree.children) == 3 else "="
        number = _number(_tree(tree.children[-1]).children[0])
        length = _Value(f"{value.field.length}::DOUBLE", (), "number", "LENGTH", value.field)
        return _compared(length, operator, number)

    def _value(self, tree: Tree[Token]) -> _Value:
        """A property or a literal, within the rules that only wrap one."""
        while tree.data in ("value", "constant", "non_string_value", "not_implemented_string"):
            tree = _tree(tree.children[0])
        if tree.data == "property":
            return self._property(tree)
        token = tree.children[0] if tree.children else None
        if tree.data == "string":
            text = re.sub(r"\\(.)", r"\1", str(token)[1:-1], flags=re.DOTALL)
            return _Value("?", (text,), "text", f"the text {shown_text(text)}")
        if tree.data == "bool":
            return _Value("?", (str(token) == "TRUE",), "boolean", str(token))
        return _number(token)

    def _property(self, tree: Tree[Token]) -> _Value:
        name, *inner = map(str, tree.children)
        if is_foreign(name):
            self.warnings.append(
                f"no field {shown_text(name)} here: it is unknown for every structure"
            )
            return _Value("NULL", (), "unknown", shown_text(name))
        if inner:
            raise UnsupportedFilterError(
                f"{shown_text('.'.join([name, *inner]))}: no nested fields"
            )
        field = known_field(name)
        kind = _KINDS[field.type]
        sql = known(f"{field.sql}::DOUBLE") if kind == "number" else field.sql
        return _Value(sql, (), kind, name, field)


def _compared(left: _Value, operator: str, right: _Value) -> Condition:
    if "unknown" in (left.kind, right.kind):
        return _UNKNOWN
    left, right = _timed(left, right), _timed(right, left)
    if left.kind != right.kind:
        raise UnsupportedFilterError(
            f"cannot compare {left.name}, {_NAMES[left.kind]}, "
            f"with {right.name}, {_NAMES[right.kind]}"
        )
    if left.kind == "list":
        raise UnsupportedFilterError("comparing two lists is not supported; use HAS")
    if left.kind == "boolean" and operator not in ("=", "!="):
        raise UnsupportedFilterError(f"{left.name} is true or false: compare it with = or !=")
    return Condition(
        f"({left.sql} {_OPERATORS[operator]} {right.sql})", left.parameters + right.parameters
    )


def _timed(value: _Value, other: _Value) -> _Value:
    """A text that is compared with a time, as a time in UTC."""
    if other.kind != "timestamp" or value.kind != "text" or value.field is not None:
        return value
    text = str(value.parameters[0])
    try:
        if not _TIMESTAMP.fullmatch(text):
            raise ValueError("not as in RFC 3339")
        time = datetime.fromisoformat(text.upper()).astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError) as error:
        raise QueryError(
            f"{value.name} is not a time; write it as in 2026-11-22T13:58:19Z"
        ) from error
    return _Value("?", (time,), "timestamp", value.name)


def _number(token: Any) -> _Value:
    number = float(str(token))
    if not math.isfinite(number):
        raise QueryError(f"{shown_text(str(token))} is too large a number")
    return _Value("?", (number,), "number", f"the number {number:g}")


def _joined(conditions: Sequence[Condition], word: str) -> Condition:
    if len(conditions) == 1:
        return conditions[0]
    sql = f"({f' {word} '.join(condition.sql for condition in conditions)})"
    return Condition(sql, tuple(value for c in conditions for value in c.parameters))


def _is_token(child: object) -> bool:
    return hasattr(child, "type")


def _tree(child: Tree[Token] | Token) -> Tree[Token]:
    """A child that the grammar says is a rule."""
    return child  # type: ignore[return-value]
