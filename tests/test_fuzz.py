"""benchmarks/fuzz.py: what it counts as a failure, and a few cases of every target."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from chgdb.errors import InputError

SCRIPTS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(SCRIPTS))
try:
    TARGETS = sorted(import_module("fuzz").known().items())
finally:
    sys.path.remove(str(SCRIPTS))

CASES = 60
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
