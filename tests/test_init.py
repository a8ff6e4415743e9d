"""The package as a whole: its doctest, the code of the README, what it exports."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import chgdb
from chgdb.database import Database
from chgdb.errors import StoreError


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkout as the current folder, with the store that is shipped."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("CHGDB_STORE", raising=False)


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def test_the_names_that_are_exported() -> None:
    assert chgdb.__all__ == ["ChgdbError", "__version__", "open"]
    assert all(hasattr(chgdb, name) for name in chgdb.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", chgdb.__version__)


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE)[0] == chgdb.__version__


def test_open(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = chgdb.open(store)
    assert isinstance(database, Database)
    assert len(database) == 5
    monkeypatch.setenv("CHGDB_STORE", str(store))
    assert chgdb.open().path == store
    with pytest.raises(StoreError, match="not a chgdb store"):
        chgdb.open(store / "materials")


def test_the_doctest(at_root: None) -> None:
    outcome = doctest.testmod(chgdb, raise_on_error=False)
    assert outcome.attempted >= 3
    assert outcome.failed == 0


def test_the_code_of_the_readme_runs(
    at_root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = python_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert blocks
    monkeypatch.setenv("CHGDB_STORE", str(ROOT / "store"))
    monkeypatch.chdir(tmp_path)  # where it may write
    (tmp_path / "store").symlink_to(ROOT / "store")
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_blocks_are_found() -> None:
    text = "a\n```python\nx = 1\n```\n```bash\nls\n```\n```python\ny = 2\n```\n"
    assert python_blocks(text) == ["x = 1\n", "y = 2\n"]


def test_importing_and_opening_load_nothing_heavy(store: Path) -> None:
    code = (
        "import sys, chgdb\n"
        f"chgdb.open({str(store)!r}).select(elements='Ti')\n"
        "print({'torch', 'pandas', 'zarr', 'ase', 'xarray', 'spglib'} & set(sys.modules))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    ).stdout
    assert out == "set()\n"
