"""Boosted trees from the text that LightGBM writes, whoever wrote it.

LightGBM's reader trusts its text: of 400 models with one to three characters changed, 93 ended the
process. So the text is read here first, and what LightGBM gets is written anew from the parts that
predicting needs, each of them checked: numbers that are numbers, as many as there are nodes, and
nodes that make a tree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from chgdb.errors import MissingExtraError
from chgdb.files import one_line

if TYPE_CHECKING:
    import lightgbm

__all__ = ["load_trees"]

_MOST_FEATURES = 100_000
_MOST_TREES = 100_000
_MOST_LEAVES = 65_536
_DEEPEST = 1000
"""LightGBM calls itself once a level; SHAP values need the square of it."""

_LARGEST_COUNT = 2**31 - 1

_HEADER = {
    "version": "v4",
    "num_class": "1",
    "num_tree_per_iteration": "1",
    "label_index": "0",
    "objective": "regression",
}
"""What the trees of chgdb's models are."""

_OF_NODES = ("split_gain", "threshold", "internal_value", "internal_weight")
_OF_LEAVES = ("leaf_value", "leaf_weight")
_NUMERICAL = frozenset(("0", "2", "4", "6", "8", "10"))
"""`decision_type` of a split at a threshold: bits 1 to 3 say what becomes of nan."""

_LINE = re.compile(r"[0-9eE.+ -]*")


def load_trees(text: str) -> lightgbm.Booster:
    """The model that a text describes.

    Args:
        text: as LightGBM 4 writes it, of trees without categories or linear leaves for one number.

    Raises:
        ValueError: it does not describe one.
        MissingExtraError: LightGBM is not installed.
    """
    try:
        from lightgbm import Booster
        from lightgbm.basic import LightGBMError
    except ImportError as error:
        raise MissingExtraError("boosted trees", "ml") from error
    try:
        return Booster(model_str=_checked(text))
    except LightGBMError as error:
        raise ValueError(one_line(str(error))) from error


def _checked(text: str) -> str:
    """The model again, written by us."""
    body, end, _ = text.partition("\nend of trees")
    head, *trees = body.split("\nTree=")
    first, _, rest = head.partition("\n")
    if not end or first != "tree":
        raise ValueError("not the text of boosted trees")
    header = _fields(rest)
    for name, value in _HEADER.items():
        if header.get(name, "").split(" ")[0] != value:
            raise ValueError(f"trees whose {name} is not {value}")
    if "average_output" in header or len(trees) > _MOST_TREES:
        raise ValueError("trees of another kind")
    n_features = _count(header, "max_feature_idx", _MOST_FEATURES - 1) + 1
    names = " ".join(f"x{i}" for i in range(n_features))
    known = "\n".join(f"{name}={value}" for name, value in _HEADER.items())
    parts = [f"tree\n{known}\nmax_feature_idx={n_features - 1}\nfeature_names={names}\n"]
    infos = " ".join(["none"] * n_features)
    parts.append(f"feature_infos={infos}\n")
    for number, tree in enumerate(trees):
        parts.append(f"\nTree={number}\n" + "\n".join(_tree(tree, n_features)) + "\n\n")
    return "".join([*parts, "\nend of trees\n"])


def _fields(text: str) -> dict[str, str]:
    """Names and values of lines `name=value`; a name alone has the value ""."""
    pairs = (line.partition("=") for line in text.split("\n") if line)
    return {name: value for name, _, value in pairs}


def _count(fields: Mapping[str, str], name: str, largest: int) -> int:
    text = fields.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= largest):
        raise ValueError(f"{name} is no number up to {largest}")
    return int(text)


def _tree(text: str, n_features: int) -> Iterator[str]:
    """The lines of a tree."""
    fields = _fields(text)
    leaves = _count(fields, "num_leaves", _MOST_LEAVES)
    if leaves < 1 or fields.get("num_cat") != "0" or fields.get("is_linear", "0") != "0":
        raise ValueError("a tree without leaves, with categories or with linear leaves")
    nodes = leaves - 1
    yield f"num_leaves={leaves}"
    yield "num_cat=0"
    if nodes:
        features = _integers(fields, "split_feature", nodes)
        if not all(0 <= feature < n_features for feature in features):
            raise ValueError("a split at a feature that is not there")
        if not _NUMERICAL.issuperset(fields.get("decision_type", "").split(" ")):
            raise ValueError("a split that is not at a threshold")
        _check_shape(
            _integers(fields, "left_child", nodes), _integers(fields, "right_child", nodes)
        )
        for name in _OF_NODES:
            _numbers(fields, name, nodes)
        counts = _integers(fields, "internal_count", nodes)
        _integers(fields, "decision_type", nodes)
        counts += _integers(fields, "leaf_count", leaves)
        if not all(0 < count <= _LARGEST_COUNT for count in counts):
            raise ValueError("a node without materials")
        for name in _OF_LEAVES:
            _numbers(fields, name, leaves)
        for name in (
            *("split_feature", "split_gain", "threshold", "decision_type"),
            *("left_child", "right_child", "leaf_value", "leaf_weight", "leaf_count"),
            *("internal_value", "internal_weight", "internal_count"),
        ):
            yield f"{name}={fields[name]}"
    else:
        _numbers(fields, "leaf_value", 1)
        yield f"leaf_value={fields['leaf_value']}"
    _numbers(fields, "shrinkage", 1)
    yield "is_linear=0"
    yield f"shrinkage={fields['shrinkage']}"


def _numbers(fields: Mapping[str, str], name: str, n: int) -> list[float]:
    text = fields.get(name, "")
    if not _LINE.fullmatch(text):
        raise ValueError(f"{name} holds what is no number")
    values = [float(word) for word in text.split(" ")]
    if len(values) != n or not all(map(math.isfinite, values)):
        raise ValueError(f"{name} are not {n} finite numbers")
    return values


def _integers(fields: Mapping[str, str], name: str, n: int) -> list[int]:
    text = fields.get(name, "")
    if not _LINE.fullmatch(text):
        raise ValueError(f"{name} holds what is no number")
    values = [int(word) for word in text.split(" ")]
    if len(values) != n or not all(abs(value) <= _LARGEST_COUNT for value in values):
        raise ValueError(f"{name} are not {n} whole numbers")
    return values


def _check_shape(left: list[int], right: list[int]) -> None:
    """Whether nodes, of which a leaf k is ~k, make a tree whose parents come before their children.

    Raises:
        ValueError: they do not.
    """
    n = len(left)
    depth = [0] * n
    met: set[int] = set()
    for node, children in enumerate(zip(left, right, strict=True)):
        for child in children:
            if not -n - 1 <= child < n or child in met or 0 <= child <= node:
                raise ValueError("nodes that make no tree")
            met.add(child)
            if child > 0:
                depth[child] = depth[node] + 1
    # 2n children, no two alike, none the root: every node and leaf is there once
    if max(depth) > _DEEPEST:
        raise ValueError(f"a tree of more than {_DEEPEST} levels")
