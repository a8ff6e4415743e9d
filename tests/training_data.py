"""The authors' materials as pydemi 0.2.0 ships them; tests that ask are skipped without it."""

from __future__ import annotations

import json
import lzma
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest


@lru_cache(maxsize=1)
def pydemi_bundle() -> dict[str, Any]:
    """The content of pydemi's properties_v1.json.xz, without its models.

    Keys that the tests use: "features", names of the descriptors; "dataset", with material_id,
    formula and X (one row of descriptors each); "composition", the table of elements.
    """
    pydemi = pytest.importorskip("pydemi")
    path = Path(pydemi.__file__).parent / "properties_v1.json.xz"
    with lzma.open(path, "rt", encoding="utf-8") as file:
        bundle: dict[str, Any] = json.load(file)
    return {key: bundle[key] for key in ("features", "dataset", "composition")}
