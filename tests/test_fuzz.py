"""benchmarks/fuzz.py: what it counts as a failure, and a few cases of every target."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import Run, state

from chgdb.errors import InputError

SCRIPTS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(SCRIPTS))
try:
    TARGETS = sorted(import_module("fuzz").known().items())
finally:
    sys.path.remove(str(SCRIPTS))

CASES = 25
"""Of every target."""

TOYS = """
import os
import time
import numpy as np
from fuzz import Target, outcome
from chgdb.errors import InputError

def prepare(folder):
    assert folder.is_dir() and not any(folder.iterdir())
    return folder

def refuse():
    raise InputError("no")

def good(rng, folder):
    return outcome(refuse) if rng.random() < 0.5 else outcome(lambda: None)

def bad(rng, folder):
    raise KeyError("what was looked for")

def loud(rng, folder):
    np.float64(1.0) / np.float64(0.0)

def hang(rng, folder):
    time.sleep(60)

def big(rng, folder):
    return outcome(lambda: np.ones(2**28))

def hidden(rng, folder):
    def call():
        try:
            np.ones(2**28)
        except MemoryError as error:
            raise InputError("something") from error
    return outcome(call)

def die(rng, folder):
    os._exit(3)

def unready(folder):
    raise ValueError

TARGETS = tuple(Target(case.__name__, prepare, case)
                for case in (good, bad, loud, hang, big, hidden, die)) + (
    Target("unready", unready, good),)
"""


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("fuzz")


@pytest.fixture
def toys(fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "fuzz_toys.py").write_text(TOYS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return fuzz


@pytest.mark.parametrize(("module", "name"), [(module, name) for name, module in TARGETS])
def test_every_target_bears_a_few_cases(fuzz: ModuleType, module: str, name: str) -> None:
    (result,) = fuzz.run([(module, name)], cases=CASES, seed=2026, processes=1, limit=60.0)
    assert result.failures == []
    assert result.cases == result.refused + result.read == CASES


def test_cases_are_counted_and_repeat(toys: ModuleType) -> None:
    first, second = (
        toys.run([("fuzz_toys", "good")], cases=20, seed=5, processes=p)[0] for p in (1, 2)
    )
    assert first.refused + first.read == 20
    assert first.refused == second.refused > 0 < first.read
    rng = toys.generator(5, "good")
    assert rng.random() == toys.generator(5, "good").random() != toys.generator(6, "good").random()


@pytest.mark.parametrize(
    ("name", "problem", "failures"),
    [
        ("bad", "KeyError: .*what was looked for", 3),
        ("loud", "RuntimeWarning: .*divide by zero", 3),
        ("hang", "no end after 1 s", 3),
        ("big", "MemoryError", 3),
        ("hidden", "AssertionError: .*memory ran out", 3),
        ("die", "the process ended with code 3", 3),
        ("unready", "code 1, before the first case", 1),
    ],
)
def test_what_a_failure_is(
    toys: ModuleType, name: str, problem: str, failures: int, capfd: pytest.CaptureFixture[str]
) -> None:
    (result,) = toys.run(
        [("fuzz_toys", name)], cases=3, seed=7, processes=1, limit=1.0, memory=2**28
    )
    assert (result.refused, result.read) == (0, 0)
    assert [seed for seed, _ in result.failures] == [7, 8, 9][:failures]
    for _, failure in result.failures:
        with pytest.raises(AssertionError, match=problem):
            raise AssertionError(failure)
    assert f"| {name} | {failures} | 0 | 0 |" in toys.table([result])


@pytest.mark.parametrize("message", ["", "two\nlines", "\x1b[31mred", "\udc80", "x" * 2000])
def test_a_refusal_is_one_printable_line(fuzz: ModuleType, message: str) -> None:
    def refuse() -> None:
        raise InputError(message)

    with pytest.raises(AssertionError, match="refusal"):
        fuzz.outcome(refuse)


def test_other_errors_pass_through(fuzz: ModuleType) -> None:
    with pytest.raises(ZeroDivisionError):
        fuzz.outcome(lambda: 1 // 0)


def test_the_command_fails_when_a_case_does(
    toys: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(toys, "MODULES", ("fuzz_toys", "not_there"))
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--cases", "2", "--only", "good"])
    with pytest.raises(SystemExit) as stopped:
        toys.main()
    assert stopped.value.code == 0
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--cases", "1", "--seed", "4", "--only", "bad"])
    with pytest.raises(SystemExit) as stopped:
        toys.main()
    assert stopped.value.code == 1
    assert "FAILED --only bad --seed 4 --cases 1" in capsys.readouterr().out


def bad_files(folder: Path) -> list[Path]:
    """Files of every kind that hold nothing to be read."""
    files = import_module("fuzz_files")
    text = files.chgcar_texts(folder)[0]
    archive = io.BytesIO()
    np.savez(archive, density=np.zeros((2, 2, 2)))
    contents = {
        "CHGCAR.empty": b"",
        "CHGCAR.cut": text[:-200],
        "CHGCAR.stars": text.replace(b" 0.", b" *.", 40),
        "CHGCAR.nan": text[:-60] + b" NaN",
        "CHGCAR.huge": text.replace(b"Direct", b"Direct\n 99999 99999 99999"),
        "CHGCAR.text": b"It was a dark\nand stormy night\n" * 9,
        "CHGCAR.bomb.gz": gzip.compress(text + b" " * 2**24),
        "CHGCAR.zeros.xz": lzma.compress(bytes(2**25)),
        "CHGCAR.damaged.bz2": bz2.compress(text)[:-9],
        "CHGCAR.twice.gz": gzip.compress(gzip.compress(text)),
        "a.npz": b"PK\x03\x04",
        "b.npz": archive.getvalue(),
        "a.json": b"[{" + b"[" * 10**6,
        "b.json": b'[{"id": "x"}]',
        "a.cif": b"data_x\n_cell_length_a \x1b[31m\n",
        "POSCAR": b"a\n1.0\n" + b"9" * 10**6,
        "POSCAR.flat": b"a\n1.0\n" + b"1 0 0\n" * 3 + b"Li\n1\nDirect\n0 0 0\n",
        "CHGCAR\x1b[31m\n.odd": b"x",
    }
    paths = []
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        paths.append(folder / name)
    os.mkfifo(folder / "CHGCAR.pipe")
    (folder / "CHGCAR.loop").symlink_to("CHGCAR.loop")
    (folder / "CHGCAR.zero").symlink_to("/dev/zero")
    others = ["CHGCAR.pipe", "CHGCAR.loop", "CHGCAR.zero", "CHGCAR.missing"]
    return paths + [folder / name for name in others]


def test_commands_refuse_bad_files_in_one_line(
    fuzz: ModuleType, run: Run, store: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    before = state(store)
    for path in bad_files(folder):
        for words in (
            ("add", path, "--store", store, "--id", "x"),
            ("predict", path, "--store", store),
            ("compare", "mp-1", path, "--store", store),
            ("info", "--store", path),
        ):
            code, out, err = run(*words)
            said = f"{words}: {code} {out!r} {err!r}"
            assert code, said
            assert err.strip(), said
            assert out.count("\n") + err.count("\n") == 1, said
            assert (out + err).rstrip("\n").isprintable(), said
            assert "Traceback" not in err, said
            assert len(err) < 600, said
    assert state(store) == before
