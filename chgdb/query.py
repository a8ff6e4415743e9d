"""Search options as SQL for duckdb: one condition on one table of materials.

`parse_where` reads a WHERE expression in SQL or in the OPTIMADE filter language with a small
recursive-descent parser that *writes* SQL from what it recognised: every literal becomes a `?`
parameter, every identifier is a known column, and the only functions and operators in the result
are those spelled out here. There is no path from the text of a user to the text of the query, so
nothing has to be forbidden: functions, sub-queries, comments and the like are just not in the
grammar (a general SQL parser would have to be followed by a list of what to allow, and knows
neither HAS nor IS KNOWN).

A missing value (NULL, or NaN in a number column) is unknown: it fits no comparison, nor its
negation. `IS UNKNOWN` finds it. Division by zero is unknown too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, TypeVar

from chgdb.elements import SYMBOLS
from chgdb.errors import QueryError

__all__ = [
    "Condition",
    "canonical_formula",
    "chemsys_condition",
    "count_atoms",
    "elements_condition",
    "formula_condition",
    "known",
    "parse_range",
    "parse_where",
    "quoted",
    "shown_text",
]

_ALIASES = {
    "nelements": "n_elements",
    "nsites": "n_atoms",
    "natoms": "n_atoms",
    "chemical_formula_reduced": "reduced_formula",
}
"""Names that OPTIMADE and habit give to our columns."""

_ELEMENT_LIST = "elements"
"""The text column that is a comma-separated list."""

_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"

_LISTED = 800
"""Characters of the names of columns that a message lists."""

_MAX_LENGTH = 20_000
_MAX_ARITHMETIC = 200
"""Of + - * /, which nest in SQL: keeps below duckdb's limit of 1000 levels."""
_MAX_DEPTH = 32
"""Of parentheses, NOT and signs: keeps the parser within Python's recursion limit."""


@dataclass(frozen=True)
class Condition:
    """A piece of a WHERE clause with `?` for its parameters.

    Attributes:
        sql: an expression that AND can follow; "" when nothing is asked.
        parameters: one value for each `?`, in their order.
    """

    sql: str = ""
    parameters: tuple[Any, ...] = ()

    def __and__(self, other: Condition) -> Condition:
        """What both ask."""
        sql = " AND ".join(part for part in (self.sql, other.sql) if part)
        return Condition(sql, self.parameters + other.parameters)

    def asks(self, columns: Iterable[str]) -> bool:
        """Whether it asks for any of some columns."""
        return any(quoted(column) in self.sql for column in columns)


def parse_where(expression: str, columns: Mapping[str, str]) -> Condition:
    """An expression in SQL or OPTIMADE spelling as a checked condition.

    Known are AND, OR, NOT, parentheses, = == != <> < <= > >=, + - * /, BETWEEN, IN, LIKE, ILIKE,
    IS [NOT] NULL, TRUE or FALSE, IS KNOWN, IS UNKNOWN, CONTAINS, STARTS [WITH], ENDS [WITH], and
    for the elements HAS, HAS ALL, HAS ANY, HAS ONLY and LENGTH. Text stands in single quotes, or
    in double quotes when it is not the name of a column.

    Args:
        expression: what the user wrote; blank asks for nothing.
        columns: the kind, "text", "number" or "boolean", of every column that may be asked.

    Raises:
        QueryError: the expression is not understood, names an unknown column, mixes kinds, or is
            too long or too deeply nested.
    """
    if not expression.strip():
        return Condition()
    term = _Parser(_tokens(expression), columns).whole()
    return Condition(term.sql, term.parameters)


def parse_range(column: str, text: str) -> Condition:
    """A range of a number column, bounds included.

    Args:
        column: name of the column.
        text: "100:200", "100:", ":200", or "227" for that number alone.

    Raises:
        QueryError: the text is no range, or its lower bound is above the upper one.
    """
    low, colon, high = (part.strip() for part in text.partition(":"))
    value = known(_as_double(column))
    if not colon:
        return Condition(f"({value} = ?)", (_bound(column, text, low),))
    if not (low or high):
        raise _no_range(column, text)
    if not high:
        return Condition(f"({value} >= ?)", (_bound(column, text, low),))
    if not low:
        return Condition(f"({value} <= ?)", (_bound(column, text, high),))
    bounds = _bound(column, text, low), _bound(column, text, high)
    if bounds[0] > bounds[1]:
        low, high = low[:30], high[:30]
        raise QueryError(f"{column}: the range {low}:{high} is empty; did you mean {high}:{low}?")
    return Condition(f"({value} BETWEEN ? AND ?)", bounds)


def elements_condition(include: Sequence[str], exclude: Sequence[str] = ()) -> Condition:
    """Materials with all the elements of `include` and none of `exclude`.

    Raises:
        QueryError: a symbol is no element, or is both included and excluded.
    """
    wanted, unwanted = sorted(set(include)), sorted(set(exclude))
    for symbol in (*wanted, *unwanted):
        _check_element(symbol)
    if both := set(wanted) & set(unwanted):
        raise QueryError(f"{', '.join(sorted(both))} cannot be both included and excluded")
    condition = Condition()
    if wanted:
        condition &= _has("ALL", wanted)
    if unwanted:
        none = _has("ANY", unwanted)
        condition &= Condition(f"(NOT {none.sql})", none.parameters)
    return condition


def chemsys_condition(text: str) -> Condition:
    """Materials of exactly the elements in "Ti-O", in any order.

    Raises:
        QueryError: a part is no element.
    """
    symbols = {symbol.strip() for symbol in text.split("-")}
    for symbol in sorted(symbols):
        _check_element(symbol, f" in the chemical system {shown_text(text)}, written as in Ti-O")
    return Condition('("chemsys" = ?)', ("-".join(sorted(symbols)),))


def formula_condition(text: str) -> Condition:
    """Materials of this composition, however the formula is written: "TiO2", "O2Ti", "Ti2O4".

    Raises:
        QueryError: the text is no chemical formula.
    """
    return Condition('("reduced_formula" = ?)', (canonical_formula(text),))


def canonical_formula(text: str) -> str:
    """The reduced formula with its elements in alphabetical order: "O2Ti" for "Ti2O4".

    Groups in parentheses are multiplied out: "Ca(OH)2" is "CaH2O2".

    Raises:
        QueryError: the text is no chemical formula or names an unknown element.
    """
    counts = count_atoms(text, int)
    divisor = math.gcd(*counts.values())
    return "".join(
        symbol + (str(count // divisor) if count > divisor else "")
        for symbol, count in sorted(counts.items())
    )


# --- formulas and elements ------------------------------------------------------------------

_N = TypeVar("_N", int, float)

_FORMULA_PART = re.compile(r"(?P<symbol>[A-Z][a-z]?)|(?P<open>\()|(?P<close>\))")
_WHOLE = re.compile(r"[1-9][0-9]{0,5}|(?![0-9])")
_DECIMAL = re.compile(r"(?:[1-9][0-9]{0,5}|0)(?:\.[0-9]{1,15})?|(?![0-9.])")


def count_atoms(text: str, number: type[_N]) -> dict[str, _N]:
    """Atoms per element of a formula as written, groups in parentheses multiplied out.

    Args:
        text: "Y(SiNi)2".
        number: `int` for whole counts only; `float` takes "Fe0.5" too.

    Raises:
        QueryError: the text is no chemical formula or names an unknown element.
    """
    formula = text.strip()
    problem = f"{shown_text(formula)} is not a chemical formula; write it as in TiO2 or Ca(OH)2"
    count_pattern = _WHOLE if number is int else _DECIMAL
    groups: list[dict[str, _N]] = [{}]
    position = 0
    while position < len(formula):
        part = _FORMULA_PART.match(formula, position)
        if not part or len(groups) > _MAX_DEPTH or len(formula) > _MAX_LENGTH:
            raise QueryError(problem)
        position = part.end()
        if part["open"]:
            groups.append({})
            continue
        count = count_pattern.match(formula, position)
        times = number(count[0] or 1) if count else 0
        if not count or not times or (part["close"] and len(groups) < 2):
            raise QueryError(problem)
        position = count.end()
        if part["symbol"]:
            _check_element(part["symbol"], f" in the formula {shown_text(formula)}")
        inner = {part["symbol"]: number(1)} if part["symbol"] else groups.pop()
        for symbol, inner_count in inner.items():
            total = groups[-1].get(symbol, number(0)) + inner_count * times
            groups[-1][symbol] = total
    if len(groups) != 1 or not groups[0] or not all(groups[0].values()):
        raise QueryError(problem)
    return groups[0]


def _check_element(symbol: str, where: str = "") -> None:
    if symbol not in SYMBOLS:
        capital = symbol.strip().capitalize()
        hint = f"; did you mean {capital}?" if capital in SYMBOLS else ""
        raise QueryError(f"{shown_text(symbol)} is not an element{where}{hint}")


def _has(quantifier: str, symbols: Sequence[str]) -> Condition:
    """Whether the list of elements has ALL or ANY of the symbols, or ONLY symbols of them."""
    column = f"string_split({quoted(_ELEMENT_LIST)}, ',')"
    asked = f"[{', '.join('?' * len(symbols))}]"
    sql = {
        "ALL": f"list_has_all({column}, {asked})",
        "ANY": f"list_has_any({column}, {asked})",
        "ONLY": f"list_has_all({asked}, {column})",
    }[quantifier]
    return Condition(sql, tuple(symbols))


# --- pieces of SQL and of messages ----------------------------------------------------------


def quoted(column: str) -> str:
    """A column in SQL."""
    escaped = column.replace('"', '""')
    return f'"{escaped}"'


def _as_double(column: str) -> str:
    """A number column as DOUBLE: integer arithmetic could overflow, which duckdb refuses."""
    return f"{quoted(column)}::DOUBLE"


def known(number: str) -> str:
    """A number, NULL for NaN: duckdb takes NaN for larger than everything."""
    return f"NULLIF({number}, 'NaN')"


def shown_text(text: str) -> str:
    """A text of the user's in a message: quoted, printable and short."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return f'"{short}"' if short.isprintable() else ascii(short)


def _finite(text: str) -> float | None:
    """The finite number a text spells, or None."""
    if not re.fullmatch(rf"[+-]?{_NUMBER}", text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _bound(column: str, text: str, part: str) -> float:
    value = _finite(part)
    if value is None:
        raise _no_range(column, text)
    return value


def _no_range(column: str, text: str) -> QueryError:
    return QueryError(
        f"{column}: {shown_text(text)} is not a range; write 100:200, 100:, :200 or 100"
    )


# --- tokens ---------------------------------------------------------------------------------

_TOKEN = re.compile(
    rf"""(?P<space>\s+)
      | (?P<number>{_NUMBER})
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<single>'(?:[^']|'')*')
      | (?P<double>"(?:[^"\\]|\\.|"")*")
      | (?P<comment>--|/\*)
      | (?P<symbol><=|>=|<>|!=|==|[=<>+\-*/(),])""",
    re.VERBOSE | re.DOTALL,
)

_ARITHMETIC_SIGNS = ("+", "-", "*", "/")
_END = ""
_Kind = Literal["text", "number", "boolean"]


class _Token(NamedTuple):
    kind: str
    """The group of `_TOKEN` that matched; "end" after the last one."""
    text: str
    position: int
    """Of the first character, counted from one."""


def _tokens(expression: str) -> list[_Token]:
    """The words of an expression, with an end mark."""
    if len(expression) > _MAX_LENGTH:
        raise QueryError(f"the expression has more than {_MAX_LENGTH} characters; shorten it")
    if any(0xD800 <= ord(character) < 0xE000 for character in expression):
        raise QueryError("the expression is not valid Unicode text")
    tokens = []
    position = 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if not match:
            raise _unreadable(expression[position], position + 1)
        kind = str(match.lastgroup)
        if kind == "comment":
            raise QueryError(f"a comment, at character {position + 1}, has no place in a search")
        if kind != "space":
            tokens.append(_Token(kind, match[0], position + 1))
        position = match.end()
    if sum(token.text in _ARITHMETIC_SIGNS for token in tokens) > _MAX_ARITHMETIC:
        raise QueryError(f"the expression has more than {_MAX_ARITHMETIC} of + - * /; simplify it")
    return [*tokens, _Token("end", _END, len(expression) + 1)]


def _unreadable(character: str, position: int) -> QueryError:
    if character in "'\"":
        return QueryError(f"the quote at character {position} is never closed")
    return QueryError(f"unexpected {shown_text(character)} at character {position}")


# --- parser ---------------------------------------------------------------------------------

_SQL_OPERATORS = {
    "=": "=",
    "==": "=",
    "!=": "<>",
    "<>": "<>",
    "<": "<",
    "<=": "<=",
    ">": ">",
    ">=": ">=",
}
_TEXT_TESTS = {"CONTAINS": "contains", "STARTS": "starts_with", "ENDS": "ends_with"}
_CONDITION_WORD = re.compile(
    "AND|OR|NOT|BETWEEN|IN|I?LIKE|IS|NULL|(UN)?KNOWN|HAS|CONTAINS|STARTS|ENDS|WITH|LENGTH"
)
_STATEMENT_WORD = re.compile(
    "SELECT|FROM|WHERE|JOIN|UNION|EXISTS|CASE|CAST|ORDER|GROUP|LIMIT|INSERT|UPDATE|DELETE|DROP|"
    "CREATE|ALTER|COPY|ATTACH|PRAGMA|INSTALL|LOAD|SET|CALL|EXPORT|IMPORT"
)


@dataclass(frozen=True)
class _Term:
    """A recognised part of an expression, as SQL that can stand beside any operator."""

    sql: str
    parameters: tuple[Any, ...]
    kind: _Kind
    name: str
    """How messages call it."""
    column: str | None = None

    @property
    def comparable(self) -> str:
        """The SQL with NaN, which only columns and arithmetic can give, turned into NULL."""
        return known(self.sql) if self.kind == "number" and self.sql != "?" else self.sql


class _Parser:
    """One method for each rule of the grammar, from the loosest binding to the tightest."""

    def __init__(self, tokens: list[_Token], columns: Mapping[str, str]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0
        self._columns = columns

    def whole(self) -> _Term:
        term = self._any()
        if self._token.kind != "end":
            raise self._unexpected()
        return _checked(term, "boolean", "the expression")

    def _any(self) -> _Term:
        """All { OR All }."""
        terms = [self._all()]
        while self._accept("OR"):
            terms.append(self._all())
        return _joined(terms, "OR")

    def _all(self) -> _Term:
        """Negation { AND Negation }."""
        terms = [self._negation()]
        while self._accept("AND"):
            terms.append(self._negation())
        return _joined(terms, "AND")

    def _negation(self) -> _Term:
        """NOT Negation | Test."""
        if not self._accept("NOT"):
            return self._test()
        with self._deeper():
            return _negated(_checked(self._negation(), "boolean", "NOT"))

    def _test(self) -> _Term:
        """Sum [ one comparison ]."""
        left = self._sum()
        operator = self._token.text
        if operator in _SQL_OPERATORS:
            self._advance()
            term = self._compared(left, operator, self._sum())
            if self._token.text in _SQL_OPERATORS:
                raise self._error(
                    "comparisons cannot be chained; write 1 < x AND x < 2, or BETWEEN"
                )
            return term
        if self._accept("IS"):
            return self._is(left)
        if self._accept("HAS"):
            return self._has(left)
        if self._accept("LENGTH"):
            return self._length(left)
        for word, function in _TEXT_TESTS.items():
            if self._accept(word):
                return self._text_test(left, word, function)
        return self._negatable_test(left)

    def _negatable_test(self, left: _Term) -> _Term:
        """Sum [NOT] BETWEEN, IN, LIKE or ILIKE."""
        negative = self._accept("NOT")
        if self._accept("BETWEEN"):
            term = self._between(left)
        elif self._accept("IN"):
            term = self._in(left)
        elif self._accept("LIKE"):
            term = self._like(left, "LIKE")
        elif self._accept("ILIKE"):
            term = self._like(left, "ILIKE")
        elif negative:
            raise self._unexpected()
        else:
            return left
        return _negated(term) if negative else term

    def _compared(self, left: _Term, operator: str, right: _Term) -> _Term:
        _check_same(left, right)
        if left.kind == "boolean" and _SQL_OPERATORS[operator] not in ("=", "<>"):
            raise self._error(f"{left.name} is true or false: compare it with = or !=")
        sql = f"({left.comparable} {_SQL_OPERATORS[operator]} {right.comparable})"
        return _boolean(sql, left, right)

    def _between(self, value: _Term) -> _Term:
        low = self._sum()
        self._expect("AND")
        high = self._sum()
        _check_same(value, low)
        _check_same(value, high)
        if value.kind == "boolean":
            raise self._error(f"{value.name} is true or false: BETWEEN needs numbers or text")
        sql = f"({value.comparable} BETWEEN {low.comparable} AND {high.comparable})"
        return _boolean(sql, value, low, high)

    def _in(self, value: _Term) -> _Term:
        self._expect("(")
        options = self._list()
        self._expect(")")
        for option in options:
            _check_same(value, option)
        sql = f"({value.comparable} IN ({', '.join(option.comparable for option in options)}))"
        return _boolean(sql, value, *options)

    def _like(self, value: _Term, word: str) -> _Term:
        pattern = _checked(self._sum(), "text", word)
        return _boolean(
            f"({_checked(value, 'text', word).sql} {word} {pattern.sql})", value, pattern
        )

    def _text_test(self, value: _Term, word: str, function: str) -> _Term:
        if word != "CONTAINS":
            self._accept("WITH")
        part = _checked(self._sum(), "text", word)
        return _boolean(f"{function}({_checked(value, 'text', word).sql}, {part.sql})", value, part)

    def _is(self, value: _Term) -> _Term:
        """IS [NOT] NULL, UNKNOWN, KNOWN, TRUE or FALSE."""
        negative = self._accept("NOT")
        if self._accept("NULL") or self._accept("UNKNOWN"):
            return _boolean(f"({value.comparable} IS {'NOT ' * negative}NULL)", value)
        if self._accept("KNOWN"):
            return _boolean(f"({value.comparable} IS {'NOT ' * (not negative)}NULL)", value)
        for word in ("TRUE", "FALSE"):
            if self._accept(word):
                sql = (
                    f"({_checked(value, 'boolean', f'IS {word}').sql} IS {'NOT ' * negative}{word})"
                )
                return _boolean(sql, value)
        raise self._error("after IS comes NULL, KNOWN, UNKNOWN, TRUE or FALSE")

    def _has(self, value: _Term) -> _Term:
        """HAS [ALL | ANY | ONLY] text {, text}."""
        if value.column != _ELEMENT_LIST:
            raise self._error(f"HAS asks about elements, not about {value.name}")
        for quantifier in ("ALL", "ANY", "ONLY"):
            if self._accept(quantifier):
                symbols = [self._element()]
                while self._accept(","):
                    symbols.append(self._element())
                break
        else:
            quantifier, symbols = "ALL", [self._element()]
            if self._token.text == ",":
                raise self._error(
                    "HAS takes one element; write HAS ALL, HAS ANY or HAS ONLY for more"
                )
        condition = _has(quantifier, symbols)
        return _Term(condition.sql, condition.parameters, "boolean", "HAS")

    def _element(self) -> str:
        token = self._token
        term = self._atom() if token.kind in ("single", "double") else None
        if term is None or term.sql != "?":
            raise self._error('HAS takes elements in quotes, as in elements HAS "Ti"', token)
        symbol = str(term.parameters[0])
        _check_element(symbol)
        return symbol

    def _length(self, value: _Term) -> _Term:
        """LENGTH [operator] Sum."""
        if value.column != _ELEMENT_LIST:
            raise self._error(f"LENGTH asks about elements, not about {value.name}")
        operator = self._token.text if self._token.text in _SQL_OPERATORS else ""
        if operator:
            self._advance()
        return self._compared(self._column("n_elements"), operator or "=", self._sum())

    def _list(self) -> list[_Term]:
        terms = [self._sum()]
        while self._accept(","):
            terms.append(self._sum())
        return terms

    def _sum(self) -> _Term:
        """Product { (+ | -) Product }."""
        left = self._product()
        while (operator := self._token.text) in ("+", "-"):
            self._advance()
            left = _arithmetic(left, operator, self._product())
        return left

    def _product(self) -> _Term:
        """Signed { (* | /) Signed }."""
        left = self._signed()
        while (operator := self._token.text) in ("*", "/"):
            self._advance()
            left = _arithmetic(left, operator, self._signed())
        return left

    def _signed(self) -> _Term:
        """(+ | -) Signed | Atom."""
        sign = self._token.text
        if sign not in ("+", "-"):
            return self._atom()
        self._advance()
        with self._deeper():
            term = _checked(self._signed(), "number", f'"{sign}"')
        if sign == "+":
            return term
        if term.sql == "?":
            return _literal(-term.parameters[0])
        return _Term(f"(- {term.sql})", term.parameters, "number", f"-{term.name}")

    def _atom(self) -> _Term:
        """Number, text, TRUE, FALSE, column or ( Any )."""
        token = self._token
        if token.text == "(":
            return self._parenthesis()
        if token.kind == "number":
            return self._number(self._advance())
        if token.kind in ("single", "double"):
            return self._text(self._advance())
        if token.kind == "name":
            return self._name(self._advance())
        raise self._unexpected()

    def _parenthesis(self) -> _Term:
        self._expect("(")
        with self._deeper():
            term = self._any()
        self._expect(")")
        return term

    def _number(self, token: _Token) -> _Term:
        value = _finite(token.text)
        if value is None:
            raise self._error(f"{shown_text(token.text)} is too large a number", token)
        return _literal(value)

    def _text(self, token: _Token) -> _Term:
        if token.kind == "single":
            text = token.text[1:-1].replace("''", "'")
        else:
            text = re.sub(r'\\(.)|"(")', r"\1\2", token.text[1:-1], flags=re.DOTALL)
            if text in self._columns:
                return self._column(text)
        return _Term("?", (text,), "text", f"the text {shown_text(text)}")

    def _name(self, token: _Token) -> _Term:
        if self._token.text == "(" and not _CONDITION_WORD.fullmatch(token.text.upper()):
            raise self._error(
                f"functions, such as {shown_text(token.text)}, have no place in a search", token
            )
        column = self._find_column(token.text)
        if column is not None:
            return self._column(column)
        word = token.text.upper()
        if word in ("TRUE", "FALSE"):
            return _Term("?", (word == "TRUE",), "boolean", word.lower())
        if word == "NULL":
            raise self._error("nothing equals NULL; write IS NULL or IS NOT NULL", token)
        if _CONDITION_WORD.fullmatch(word):
            raise self._unexpected(token)
        if _STATEMENT_WORD.fullmatch(word):
            raise self._error(f"{word} has no place in a search: write only the condition", token)
        raise QueryError(_unknown_column(token.text, self._columns))

    def _find_column(self, name: str) -> str | None:
        """The column of this name, of this alias, or of this name in another case."""
        if name in self._columns:
            return name
        lower = name.lower()
        by_lower = {column.lower(): column for column in self._columns}
        return by_lower.get(lower) or by_lower.get(_ALIASES.get(lower, ""))

    def _column(self, name: str) -> _Term:
        kind = self._columns.get(name)
        if kind == "number":
            return _Term(_as_double(name), (), "number", name, name)
        if kind == "text":
            return _Term(quoted(name), (), "text", name, name)
        if kind == "boolean":
            return _Term(quoted(name), (), "boolean", name, name)
        raise QueryError(_unknown_column(name, self._columns))

    # --- moving through the tokens ---

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _advance(self) -> _Token:
        token = self._token
        self._next += token.kind != "end"
        return token

    def _accept(self, text: str) -> bool:
        """Step over the next token if it is this keyword or sign."""
        token = self._token
        found = token.kind in ("name", "symbol") and token.text.upper() == text
        self._next += found
        return found

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            token = self._token
            instead = "the end" if token.kind == "end" else shown_text(token.text)
            raise self._error(f'expected "{text}" before {instead}')

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise QueryError(f"the expression is nested more than {_MAX_DEPTH} deep; simplify it")
        yield
        self._depth -= 1

    def _unexpected(self, token: _Token | None = None) -> QueryError:
        token = token or self._token
        if token.kind == "end":
            return QueryError("the expression ends too early")
        return self._error(f"unexpected {shown_text(token.text)}", token)

    def _error(self, problem: str, token: _Token | None = None) -> QueryError:
        return QueryError(f"{problem}, at character {(token or self._token).position}")


def _literal(value: float) -> _Term:
    return _Term("?", (value,), "number", f"the number {value:g}")


def _boolean(sql: str, *parts: _Term) -> _Term:
    parameters = tuple(value for part in parts for value in part.parameters)
    return _Term(sql, parameters, "boolean", "a condition")


def _joined(terms: Sequence[_Term], word: str) -> _Term:
    if len(terms) == 1:
        return terms[0]
    conditions = [_checked(term, "boolean", word) for term in terms]
    return _boolean(f"({f' {word} '.join(term.sql for term in conditions)})", *conditions)


def _negated(term: _Term) -> _Term:
    return _boolean(f"(NOT {term.sql})", term)


def _arithmetic(left: _Term, operator: str, right: _Term) -> _Term:
    for term in (left, right):
        _checked(term, "number", f'"{operator}"')
    divisor = f"NULLIF({right.sql}, 0)" if operator == "/" else right.sql
    return _Term(
        f"({left.sql} {operator} {divisor})",
        left.parameters + right.parameters,
        "number",
        f'the result of "{operator}"',
    )


_KINDS = {"text": "text", "number": "a number", "boolean": "a condition"}


def _checked(term: _Term, kind: _Kind, where: str) -> _Term:
    if term.kind != kind:
        raise QueryError(f"{where} needs {_KINDS[kind]}, and {term.name} is {_KINDS[term.kind]}")
    return term


def _check_same(left: _Term, right: _Term) -> None:
    if left.kind != right.kind:
        raise QueryError(
            f"cannot compare {left.name} ({left.kind}) with {right.name} ({right.kind})"
        )


def _unknown_column(name: str, columns: Mapping[str, str]) -> str:
    near = get_close_matches(name.lower(), columns, n=3, cutoff=0.6)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"text goes in quotes; columns: {', '.join(columns)[:_LISTED]} ..."
    )
    return f"no column {shown_text(name)}; {hint}"
