"""Where stores and encoders are looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chgdb import resources
from chgdb.errors import ModelError, StoreError
from chgdb.resources import (
    DEFAULT_PROPERTY_MODEL,
    find_model,
    find_property_model,
    find_store,
    is_shipped,
    model_folders,
)


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, and nothing shipped."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("CHGDB_STORE", raising=False)
    monkeypatch.setattr(resources, "_SHIPPED", (tmp_path / "wheel", tmp_path / "checkout"))


def make_store(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "chgdb.json").write_text("{}")
    return path


def test_no_store(tmp_path: Path) -> None:
    (tmp_path / "here" / "store").mkdir()  # a folder of this name is not a store yet
    with pytest.raises(StoreError, match="no store found: give --store, set CHGDB_STORE"):
        find_store()


def test_each_place_comes_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_store(make_store(tmp_path / "checkout" / "store")) == find_store()
    assert find_store() == tmp_path / "checkout" / "store"
    make_store(tmp_path / "wheel" / "store")
    assert find_store() == tmp_path / "wheel" / "store"
    make_store(tmp_path / "here" / "store")
    assert find_store() == tmp_path / "here" / "store"
    monkeypatch.setenv("CHGDB_STORE", "named")
    assert find_store() == tmp_path / "here" / "named"
    assert find_store("given") == tmp_path / "here" / "given"


def test_an_empty_variable_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path / "checkout" / "store")
    monkeypatch.setenv("CHGDB_STORE", "")
    monkeypatch.setenv("CHGDB_MODELS", "")
    assert find_store() == tmp_path / "checkout" / "store"
    assert model_folders() == [tmp_path / "wheel" / "models", tmp_path / "checkout" / "models"]


def test_only_the_store_of_a_wheel_counts_as_shipped(tmp_path: Path) -> None:
    assert is_shipped(tmp_path / "wheel" / "store")
    assert not is_shipped(tmp_path / "checkout" / "store")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "wheel" / "store")
    assert is_shipped(Path("link"))


def test_models_of_the_user_come_first(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "checkout" / "models" / "tiny-16"
    shipped.mkdir(parents=True)
    (shipped / "config.json").write_text((models / "tiny-16" / "config.json").read_text())
    assert find_model("tiny-16") == models / "tiny-16"
    monkeypatch.delenv("CHGDB_MODELS")
    assert find_model("tiny-16") == shipped


def test_weights_are_found_by_their_hash(models: Path, tmp_path: Path) -> None:
    shipped = tmp_path / "checkout" / "models" / "tiny-16"
    shipped.mkdir(parents=True)
    config = json.loads((models / "tiny-16" / "config.json").read_text())
    sha256 = config["weights_sha256"]
    del config["seal"]
    (shipped / "config.json").write_text(json.dumps({**config, "weights_sha256": "0" * 64}))
    assert find_model("tiny-16", sha256) == models / "tiny-16"
    assert find_model("tiny-16", "0" * 64) == shipped
    with pytest.raises(ModelError, match=r"no encoder tiny-16 with the weights 111111111111\.\.\."):
        find_model("tiny-16", "1" * 64)


def test_a_damaged_encoder_is_passed_over(models: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "wheel" / "models" / "tiny-16"
    damaged.mkdir(parents=True)
    (damaged / "config.json").write_text("{")
    with pytest.raises(ModelError, match="only others in"):
        find_model("tiny-16", "1" * 64)


@pytest.mark.parametrize("encoder", ["../tiny-16", "", "/etc"])
def test_an_id_is_no_path(models: Path, encoder: str) -> None:
    with pytest.raises(ModelError, match="is not the id of an encoder"):
        find_model(encoder)


def test_a_missing_encoder_names_the_places(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="set CHGDB_MODELS") as caught:
        find_model("absent")
    for folder in (models, tmp_path / "wheel" / "models", tmp_path / "checkout" / "models"):
        assert str(folder) in str(caught.value)


# ---------------------------------------------------------------------- models of properties


def make_property_model(folder: Path, text: str = '{"kind": "properties"}') -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(text)
    return folder


def test_a_property_model_is_found_by_id_or_folder(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = make_property_model(tmp_path / "wheel" / "models" / DEFAULT_PROPERTY_MODEL)
    assert find_property_model() == find_property_model(DEFAULT_PROPERTY_MODEL) == shipped
    assert find_model(DEFAULT_PROPERTY_MODEL) == shipped
    own = make_property_model(tmp_path / "here" / "own")
    assert find_property_model("own") == Path("own"), "a folder comes before an id"
    assert find_property_model(own) == own
    named = make_property_model(tmp_path / "named" / DEFAULT_PROPERTY_MODEL)
    monkeypatch.setenv("CHGDB_MODELS", str(named.parent))
    assert find_property_model() == named


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("tiny-16", "kind 'periodic'; it does not predict properties"),
        ("list", "another kind; it does not predict properties"),
        ("damaged", r"config\.json: cannot be read"),
        ("absent", "no property model absent in"),
        ("no/where", "no/where: there is no such folder"),
        ("", "'' is not the id of a property model"),
    ],
)
def test_what_is_no_property_model(models: Path, tmp_path: Path, name: str, problem: str) -> None:
    for other, text in (("list", "[]"), ("damaged", "{")):
        make_property_model(tmp_path / "wheel" / "models" / other, text)
    with pytest.raises(ModelError, match=problem) as caught:
        find_property_model(name)
    assert "\n" not in str(caught.value)
