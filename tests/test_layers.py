"""docs/architecture.md holds: levels of modules, `__all__`, and what stays unloaded."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "chgdb"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "units", "elements", "nets", "property_nets", "perceptron", "places"),
    (
        "files",
        "density",
        "query",
        "entropy",
        "library",
        "elasticity",
        "scores",
        "ranges",
        "seals",
        "guard",
    ),
    (
        "schema",
        "chgcar",
        "grid",
        "stars",
        "composition",
        "keras_weights",
        "lock",
        "cluster",
        "chunks",
        "trees",
    ),
    (
        "arrays",
        "parquet",
        "weights",
        "formats",
        "metrics",
        "symmetry",
        "export",
        "multipoles",
        "figures",
        "system_inputs",
        "filters",
        "planes",
        "optimade_filter",
    ),
    (
        "codec",
        "intake",
        "decoded",
        "resources",
        "output",
        "plot",
        "groups",
        "expansion",
        "table",
        "collection",
        "system_models",
        "descriptors",
        "rows",
        "release",
        "structure_files",
    ),
    ("crystal", "similarity", "systems", "features", "inputs", "charge3net"),
    ("archive", "derived", "evaluation", "properties", "structure_intake"),
    ("predicting", "train_properties", "adding", "verification", "compaction"),
    ("database", "train", "property_evaluation"),
    ("assessment", "release_import", "repair", "distributions", "subjects", "uploads", "optimade"),
    ("answers",),
    ("api",),
    ("web",),
    ("cli", "xarray_backend"),
)
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")

HEAVY = ("torch", "ase", "zarr", "xarray", "pandas")


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements at any depth, those for type checkers left out."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
        return
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children = node.orelse
    for child in children:
        yield from imports(child)


def own_imports(module: str) -> list[tuple[str, str]]:
    """(module, name) of everything taken from the package; module "" is the package itself."""
    taken = []
    for node in imports(tree(module)):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        else:
            assert node.level == 0, f"{module}: imports are absolute"
            names = [(node.module or "", alias.name) for alias in node.names]
        for source, name in names:
            package, _, rest = source.partition(".")
            if package != "chgdb":
                continue
            if not rest and name in MODULES:
                rest, name = name, ""
            taken.append((rest, name))
    return taken


def test_every_module_has_a_level() -> None:
    assert sorted(LEVEL) == MODULES
    assert len(LEVEL) == sum(len(modules) for modules in LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_levels_below(module: str) -> None:
    for source, name in own_imports(module):
        if source:
            assert LEVEL[source] < LEVEL[module], f"{module} imports {source}"
        else:
            assert name == "__version__", f"{module} takes {name!r} from the package"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_takes_what_another_keeps_private(module: str) -> None:
    for source, name in own_imports(module):
        assert name == "__version__" or not name.startswith("_"), f"{module}: {source}.{name}"


def test_imports_are_found_at_any_depth() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import hidden
else:
    import other
def function():
    class Inner:
        from deep import thing
"""
    found = [ast.unparse(node) for node in imports(ast.parse(source))]
    assert found == ["from typing import TYPE_CHECKING", "import other", "from deep import thing"]


def test_the_documented_table_is_the_tested_one() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    assert [int(level) for level, _, _ in rows] == list(range(len(LAYERS)))
    assert [tuple(re.findall(r"`(\w+)`", names)) for _, names, _ in rows] == list(LAYERS)


@pytest.mark.parametrize("module", ["", *MODULES])
def test_all_is_there_and_true(module: str) -> None:
    """It names what exists, and every public function and class that the module defines."""
    if module == "train":
        pytest.importorskip("torch")
    loaded = importlib.import_module(f"chgdb.{module}" if module else "chgdb")
    names = loaded.__all__
    assert len(set(names)) == len(names)
    for name in names:
        assert hasattr(loaded, name), f"{module}.__all__ names {name}"
    if module == "cli":
        return  # its public functions are commands, which typer collects
    defined = {
        node.name
        for node in tree(module or "__init__").body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert defined <= set(names), f"{module}.__all__ lacks {sorted(defined - set(names))}"


RUN = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
words = json.loads(sys.argv[1])
import chgdb
text = io.StringIO()
code = 0
if words:
    from chgdb.cli import main
    with redirect_stdout(text), redirect_stderr(text):
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code or 0
loaded = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
print(json.dumps([code, loaded, text.getvalue()[-2000:]]))
"""


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["info", "--store", "STORE"],
        ["search", "--elements", "O", "--store", "STORE"],
    ],
    ids=lambda words: words[0] if words else "import",
)
def test_light_commands_load_nothing_heavy(words: list[str]) -> None:
    words = [str(ROOT / "store") if word == "STORE" else word for word in words]
    command = [sys.executable, "-c", RUN, json.dumps(words), json.dumps(HEAVY)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    code, loaded, text = json.loads(result.stdout.splitlines()[-1])
    assert code == 0, text
    assert loaded == []
    assert not words or text.strip()
