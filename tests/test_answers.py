"""The shapes of answers: each says what it is, and refuses what it is not."""

from __future__ import annotations

import pytest

pytest.importorskip("pydantic")
from pydantic import BaseModel, ValidationError

from chgdb import answers
from chgdb.answers import AddRequest, DensityErrors, ErrorAnswer, PageAnswer

MODELS = [
    model
    for name in answers.__all__
    if isinstance(model := getattr(answers, name), type) and issubclass(model, BaseModel)
]


@pytest.mark.parametrize("model", MODELS)
def test_every_shape_is_described(model: type[BaseModel]) -> None:
    assert model.__doc__
    assert model.__doc__ != BaseModel.__doc__
    assert model.model_json_schema()["properties"]


def test_what_is_asked_of_adding() -> None:
    assert AddRequest.model_validate({"id": "a"}).on_conflict == "error"
    for wrong in ({}, {"id": 3}, {"id": "a", "on_conflict": "explode"}):
        with pytest.raises(ValidationError):
            AddRequest.model_validate(wrong)


def test_what_is_not_known_is_null() -> None:
    told = DensityErrors(nmae=None, max_error=None, electron_error=None).model_dump()
    assert told == {"nmae": None, "max_error": None, "electron_error": None, "bytes": None}
    page = PageAnswer(total=1, offset=0, columns=["id", "band_gap"], rows=[["a", None]])
    assert page.model_dump_json().endswith('"rows":[["a",null]]}')
    assert ErrorAnswer(error="x").model_dump() == {"error": "x"}
