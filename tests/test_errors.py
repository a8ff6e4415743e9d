"""The errors: the tree in the docstring is the tree of the classes."""

from __future__ import annotations

import inspect
import re

import pytest

from chgdb import errors
from chgdb.errors import ChgdbError, MissingExtraError


def tree_of_docstring() -> dict[str, str]:
    """Class -> parent, from the indentation of the drawing."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        match = re.match(r"([│├└─ ]*)(\w+Error)\s", line)
        if match:
            depth = len(match[1]) // 4
            path = [*path[:depth], match[2]]
            parents[match[2]] = path[depth - 1] if depth else "Exception"
    return parents


def test_the_docstring_shows_the_tree() -> None:
    classes = {
        name: value.__base__.__name__
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, ChgdbError) and value.__base__
    }
    assert tree_of_docstring() == classes
    assert len(classes) > 5


def test_every_error_is_public_and_explained() -> None:
    assert sorted(errors.__all__) == sorted(tree_of_docstring())
    for name in errors.__all__:
        assert inspect.getdoc(getattr(errors, name))


@pytest.mark.parametrize("extra", ["ml", "plot", "web"])
def test_a_missing_extra_says_what_to_install(extra: str) -> None:
    assert f"pip install 'chgdb[{extra}]'" in str(MissingExtraError("it", extra))
