"""Predict properties of materials and of files, and find materials of a like density."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chgdb.derived import DENSITY, Derived
from chgdb.errors import (
    ChgdbError,
    InputError,
    MissingExtraError,
    ModelError,
    StoreError,
    UnknownIdError,
)
from chgdb.files import brief, one_line, reason, shown
from chgdb.parquet import any_of
from chgdb.places import Place
from chgdb.resources import find_property_model
from chgdb.schema import PREDICTED, ColumnType
from chgdb.table import Selection, Table

if TYPE_CHECKING:
    import pandas as pd

    from chgdb.cluster import Cluster
    from chgdb.density import ChargeDensity
    from chgdb.properties import PropertyModel

__all__ = ["PredictReport", "Predictor", "computed_features", "load_model"]

_T = TypeVar("_T")
_S = TypeVar("_S")

_FILE = "file"
"""What an answer calls the origin of the features of a file."""

_FEATURE_BATCH = 16
"""Materials whose features are committed together."""

_CHUNK = 1024
"""Materials whose predictions are committed together."""

_NEIGHBOUR_COLUMNS: dict[str, ColumnType] = {
    "id": "text",
    "formula": "text",
    "distance": "real",
    "spacegroup": "integer",
    "volume_per_atom": "real",
    "density": "boolean",
}
"""What `Predictor.nearest` tells of each material."""

_Progress = Callable[[int, int], None]


@dataclass
class PredictReport:
    """What `Database.predict_all` did.

    Attributes:
        features: materials whose features were computed from their densities.
        predicted: materials that were predicted.
        current: materials whose stored predictions were up to date.
        failed: (id, why) of the records whose features could not be computed.
    """

    features: int = 0
    predicted: int = 0
    current: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


def load_model(model: str | Path | None = None) -> PropertyModel:
    """A model that predicts properties, by its id or its folder; None for the default one.

    Raises:
        ModelError: it is not found, or damaged.
        MissingExtraError: a package that it needs is not installed.
    """
    from chgdb.properties import PropertyModel

    return PropertyModel.load(find_property_model(model))


class Predictor:
    """Predictions and neighbours for the materials of one store.

    Args:
        store: folder of the store.
        table: its records.
        derived: its features and predictions.
        decode: gives the density of a record, by its row of the table.
        decode_at: the same in another process, by the folder of the store and the row.
        writing: holds the lock of the store's one writer, or raises a StoreError; the argument says
            whether to wait for another writer.
    """

    def __init__(
        self,
        store: Place,
        table: Table,
        derived: Derived,
        decode: Callable[[Mapping[str, Any]], ChargeDensity],
        decode_at: Callable[[Place, Mapping[str, Any]], ChargeDensity],
        writing: Callable[[bool], AbstractContextManager[object]],
    ) -> None:
        self._store = store
        self._table = table
        self._derived = derived
        self._decode = decode
        self._decode_at = decode_at
        self._writing = writing

    def predict(
        self,
        targets: Sequence[str | Path],
        model: str | Path | None = None,
        progress: _Progress | None = None,
        species: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Predictions for materials and files, as `Database.predict` says."""
        import numpy as np
        import pandas as pd

        if not targets:
            raise InputError("nothing to predict: name a material, or the file of a density")
        loaded = load_model(model)
        table = self._features_of(map(self._resolve, targets), progress, species)
        made = loaded.predict(_model_input(table))
        ids = [
            id_ for id_, origin in zip(table["id"], table["origin"], strict=True) if origin != _FILE
        ]
        records = self._table.select(any_of("id", ids), ids, columns=["id", *PREDICTED])
        known = {row["id"]: row for row in records}
        references = [
            known.get(id_, {}) if origin != _FILE else {}
            for id_, origin in zip(table["id"], table["origin"], strict=True)
        ]
        answer: dict[str, Any] = {"id": table["id"].tolist(), "formula": table["formula"].tolist()}
        for name in PREDICTED:
            for end in ("", "_low", "_high"):
                answer[name + end] = made[name + end].to_numpy(np.float64)
            values = (row.get(name) for row in references)
            answer[f"{name}_reference"] = [np.nan if value is None else value for value in values]
        for name in ("in_training", "outside_domain", "foreign", "neighbours"):
            answer[name] = made[name].tolist()
        answer["features_from"] = table["origin"].tolist()
        answer["model"] = loaded.id
        answer["model_version"] = loaded.version
        return pd.DataFrame(answer)

    def predict_all(
        self,
        model: str | Path | None = None,
        progress: _Progress | None = None,
        *,
        force: bool = False,
        cluster: Cluster | None = None,
    ) -> PredictReport:
        """Features and predictions of all materials, as `Database.predict_all` says."""
        loaded = load_model(model)
        distribute = cluster.map if cluster else _here
        with self._writing(True):
            pass  # a store that cannot be written is told from before anything is computed
        report = PredictReport()
        missing = self._derived.without_features()
        done, total = 0, len(missing)

        def tell(step: int) -> None:
            nonlocal done
            done += step
            if progress:
                progress(done, total)

        def records() -> Iterator[Mapping[str, Any]]:
            for start in range(0, len(missing), _FEATURE_BATCH):
                for record in self._table.get(missing[start : start + _FEATURE_BATCH]):
                    tell(0)
                    yield record

        fresh: list[dict[str, Any]] = []
        compute = partial(computed_features, self._decode)
        if cluster:
            compute = partial(computed_features, partial(self._decode_at, self._store))
        for i, (record, row) in enumerate(distribute(compute, records()), 1):
            if isinstance(row, MissingExtraError):
                raise row
            if isinstance(row, ChgdbError):
                report.failed.append((record["id"], one_line(str(row)) or reason(row)))
            else:
                fresh.append(row)
            tell(1)
            if i % _FEATURE_BATCH == 0 or i == len(missing):
                with self._writing(True):
                    self._derived.add_computed(fresh)
                report.features += len(fresh)
                fresh.clear()
        due = self._derived.all_features() if force else self._derived.due(loaded)
        report.current = self._derived.count()["features"] - len(due)
        total += len(due)

        def chunks() -> Iterator[pd.DataFrame]:
            for start in range(0, len(due), _CHUNK):
                tell(0)
                yield due.iloc[start : start + _CHUNK]

        predict: Callable[[pd.DataFrame], pd.DataFrame] = partial(_predicted, loaded)
        if cluster:
            predict = partial(_predicted_at, _portable(model), loaded.sha256)
        for chunk, made in distribute(predict, chunks()):
            if isinstance(made, ChgdbError):
                raise made
            with self._writing(True):
                self._derived.add_predictions(loaded, chunk, made)
            report.predicted += len(chunk)
            tell(len(chunk))
        return report

    def all_features(self) -> pd.DataFrame:
        """The feature table of all materials, as `Database.features` gives it."""
        return _model_input(self._derived.all_features())

    def nearest(
        self,
        target: str | Path,
        n: int = 10,
        species: Sequence[str] | None = None,
        *,
        stored: bool = False,
    ) -> Selection:
        """The materials whose densities are most like that of a target, the nearest first.

        Args:
            target: a material or a file, as of `predict`.
            n: how many, at most; the target itself is not among them.
            species: element symbols for a CHGCAR that does not name them.
            stored: the target is the id of a record, whatever files are called so.

        Raises:
            InputError: `n` is not positive, or the file cannot be used.
            UnknownIdError: there is no such material.
            StoreError: the store holds no features, or is damaged.
        """
        import numpy as np

        from chgdb.similarity import DENSITY_COLUMNS, density_coordinates, distances

        if n < 1:
            raise InputError(f"n {n}: give a positive number of materials")
        told = [name for name in _NEIGHBOUR_COLUMNS if name != "distance"]
        found = self._derived.arrays(list(dict.fromkeys([*told, *DENSITY_COLUMNS])))
        ids = found["id"]
        material_id, path = (str(target), None) if stored else self._resolve(target)
        if not len(ids):
            raise StoreError(
                f"{shown(self._store)}: holds no features of densities to compare with; make them "
                "with: chgdb predict --all"
            )
        points = density_coordinates({name: _numbers(found[name]) for name in DENSITY_COLUMNS})
        itself = (ids == material_id) & (path is None)
        if itself.any():
            (point,) = points[itself]
        else:
            table = self._features_of([(material_id, path)], species=species)
            (point,) = density_coordinates({name: table[name] for name in DENSITY_COLUMNS})
        found["distance"] = np.where(itself, np.nan, distances(points, point))
        order = np.argsort(found["distance"], kind="stable")
        order = order[: min(n, np.count_nonzero(np.isfinite(found["distance"])))]
        chosen = [found[name][order].tolist() for name in _NEIGHBOUR_COLUMNS]
        values = list(zip(*chosen, strict=True))
        return Selection(tuple(_NEIGHBOUR_COLUMNS), values, _NEIGHBOUR_COLUMNS)

    # ------------------------------------------------------------------ inside

    def _resolve(self, target: str | Path) -> tuple[str, Path | None]:
        """The id of a material, or a file and its name; a file comes before a material."""
        path = Path(target)
        if isinstance(target, Path) or path.is_file():
            return str(target), path
        if self._table.select("id = ?", [target], columns=["id"], limit=1):
            return target, None
        if self._derived.knows(target):
            return target, None
        if path.is_dir():
            raise InputError(f"{shown(path)}: a folder; name the file of a density")
        near = get_close_matches(
            target, {*self._derived.near(target, 64), *self._table.near(target, 64)}, n=3
        )
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise UnknownIdError(
            f"no file and no material {brief(str(target))} in {shown(self._store)}{hint}"
        )

    def _features_of(
        self,
        targets: Iterable[tuple[str, Path | None]],
        progress: _Progress | None = None,
        species: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """The features of materials and files, as `_resolve` gives them, with their `origin`.

        Each comes once. Features of a record that had to be computed are stored, if the store can
        be written.
        """
        import pandas as pd

        resolved = list(dict.fromkeys(targets))
        stored = self._derived.features([name for name, path in resolved if path is None])
        rows: dict[str, dict[Any, Any]] = {row["id"]: row for row in stored.to_dict("records")}
        answer: list[dict[Any, Any]] = []
        fresh = []
        for done, (name, path) in enumerate(resolved):
            if path is not None:
                state = path.stat() if path.exists() else None
                known = state and (state.st_size, state.st_mtime_ns, state.st_ino)
                row = _features_of_file(path, known, tuple(species) if species else None)
                answer.append({"id": name, **row, "origin": _FILE})
            elif name in rows:
                answer.append(rows[name])
            else:
                (record,) = self._table.get([name])
                fresh.append(self._computed(record))
                answer.append({**fresh[-1], "origin": DENSITY})
            if progress:
                progress(done + 1, len(resolved))
        with suppress(StoreError):  # a store that cannot be written is used as it is
            if fresh:
                with self._writing(False):
                    self._derived.add_computed(fresh)
        return pd.DataFrame(answer)

    def _computed(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The features of the density of a record.

        Raises:
            StoreError: it has no payload, or a damaged one.
            InputError: the density is none of which features can be computed.
        """
        return computed_features(self._decode, record)


@lru_cache(maxsize=4)
def _features_of_file(
    path: Path, _state: tuple[int, ...] | None, species: tuple[str, ...] | None
) -> dict[str, Any]:
    """A row of features of the density in a file, as the file is now.

    Raises:
        InputError: it cannot be read, or has none.
    """
    from chgdb.features import features_of
    from chgdb.formats import read_density

    density, _ = read_density(path, species=species)
    try:
        return features_of(density).row()
    except InputError as error:
        raise InputError(f"{shown(path)}: {error}") from error


def computed_features(
    decode: Callable[[Mapping[str, Any]], ChargeDensity], record: Mapping[str, Any]
) -> dict[str, Any]:
    """A row of features of the density of a record, as `Derived.add_computed` stores it.

    Args:
        decode: gives the density of a record.
        record: its row of the table.

    Raises:
        StoreError: it has no payload, or a damaged one.
        InputError: the density is none of which features can be computed.
    """
    from chgdb.features import features_of

    material_id = record["id"]
    if record["payload_bytes"] is None:
        raise StoreError(
            f"{material_id}: has neither features nor a payload to compute them from; make one "
            "with: chgdb add FILE --on-conflict replace"
        )
    features = features_of(decode(record))
    return {"id": material_id, **features.row(), "record_row": record["row"]}


def _here(
    function: Callable[[_T], _S], items: Iterable[_T]
) -> Iterator[tuple[_T, _S | ChgdbError]]:
    """What `Cluster.map` gives, made in this process."""
    for item in items:
        try:
            yield item, function(item)
        except ChgdbError as error:
            yield item, error
        except MemoryError as error:
            yield item, InputError(reason(error))


def _predicted(model: PropertyModel, table: pd.DataFrame) -> pd.DataFrame:
    return model.predict(_model_input(table))


def _portable(model: str | Path | None) -> str | None:
    """A model by a name that another process understands, which may work in another folder."""
    if model is None:
        return None
    return str(Path(model).absolute() if Path(model).exists() else model)


def _predicted_at(model: str | None, sha256: str, table: pd.DataFrame) -> pd.DataFrame:
    """Predictions in a process of a cluster, by the same model as here."""
    loaded = _loaded(model)
    if loaded.sha256 != sha256:
        raise ModelError(f"{model or loaded.id}: a worker of the scheduler has another one")
    return _predicted(loaded, table)


@lru_cache(maxsize=1)
def _loaded(model: str | None) -> PropertyModel:
    return load_model(model)


def _model_input(table: pd.DataFrame) -> pd.DataFrame:
    """What a model sees of a table: the columns of a feature table and no others."""
    from chgdb.features import FEATURE_COLUMNS

    rows = table[["id", *FEATURE_COLUMNS]].reset_index(drop=True)
    return rows.assign(spacegroup=rows["spacegroup"].astype("Int64"))


def _numbers(values: Any) -> Any:
    """An array of numbers with NaN where it is masked."""
    import numpy as np

    return np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)
