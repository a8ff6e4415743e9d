"""What a store holds beside its records: features of the materials, and predictions from them.

The features of a material are those of the density of its record, or came with a data set, which
may be of materials without a record. What was made from other data than those that are there now is
told by a hash, or by the row of the record in the arrays, and counts as absent. So nothing has to
be changed together, and a crash leaves nothing that misleads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from chgdb.collection import Collection
from chgdb.errors import InputError, StoreError
from chgdb.files import reason
from chgdb.parquet import Relation, all_rows, any_of, literal, near_query, quoted, read
from chgdb.places import Place
from chgdb.resources import DEFAULT_PROPERTY_MODEL
from chgdb.schema import (
    FEATURES,
    FEATURES_FOLDER,
    PREDICTION_COLUMNS,
    PREDICTIONS,
    PREDICTIONS_FOLDER,
    Column,
    check_id,
)
from chgdb.table import Joined, Table

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

    from chgdb.properties import PropertyModel

__all__ = ["DENSITY", "Derived", "feature_columns", "features_sha256"]

T = TypeVar("T")

DENSITY = "density"
"""The origin of features that were computed from the density of the record."""

_FITS = (
    f"(stored.origin = '{DENSITY}' OR materials.id IS NULL OR (materials.formula = stored.formula "
    "AND (materials.source IS NULL OR "
    "abs(stored.volume_per_atom * materials.n_atoms / materials.volume - 1) < 0.15)))"
)
"""Whether the features of a data set are of the material that has their id in the store."""


_OUTDATED = (
    f"rows.origin = '{DENSITY}' AND NOT EXISTS (SELECT * FROM materials "  # noqa: S608 (constants)
    "WHERE materials.id = rows.id AND materials.row = rows.record_row)"
)
"""Whether features are of a density that is not there any more."""

_UNFOUNDED = (
    "NOT EXISTS (SELECT * FROM features "
    "WHERE features.id = rows.id AND features.sha256 = rows.features_sha256)"
)
"""Whether a prediction is from other features than those that are there."""


class Derived:
    """The tables of features and of predictions in one store; either may be missing.

    Args:
        store: folder of the store.
        table: its records.
    """

    def __init__(self, store: Place, table: Table) -> None:
        self._store = store
        self._table = table
        self._features = Collection(store / FEATURES_FOLDER, ("id", "origin"), feature_columns)
        self._predictions = Collection(
            store / PREDICTIONS_FOLDER, ("id", "model"), lambda: PREDICTIONS
        )

    # ------------------------------------------------------------------ reading

    @property
    def exists(self) -> bool:
        """Whether there are features or predictions."""
        return bool(self._features.parts or self._predictions.parts)

    @property
    def joined(self) -> Joined:
        """The newest predictions of the default model, for a search."""
        return Joined(PREDICTION_COLUMNS, self._searched)

    def joined_of(self, ids: Sequence[str]) -> Joined:
        """`joined`, of some materials: nothing is read of the others."""
        these = ", ".join(map(literal, ids)) or "NULL"
        only = " ".join(f"AND {name}.id IN ({these})" for name in ("made", "stored"))
        return Joined(
            PREDICTION_COLUMNS, lambda: self._searched(only, f"AND materials.id IN ({these}) ")
        )

    @property
    def parts(self) -> dict[str, list[Place]]:
        """The files of each of the two tables, by the name of its folder."""
        return {
            FEATURES_FOLDER: self._features.parts,
            PREDICTIONS_FOLDER: self._predictions.parts,
        }

    def stale(self) -> dict[str, list[str]]:
        """By the name of the folder, the materials of the rows that `compact` would drop."""
        queries = {
            FEATURES_FOLDER: f"SELECT id FROM stored AS rows WHERE {_OUTDATED} ORDER BY id",  # noqa: S608 (constants)
            PREDICTIONS_FOLDER: f"SELECT id FROM made AS rows WHERE {_UNFOUNDED} ORDER BY id",  # noqa: S608 (constants)
        }
        return {
            name: [id_ for (id_,) in read(self._true, query, (), all_rows, self._store)]
            for name, query in queries.items()
        }

    def knows(self, material_id: str) -> bool:
        """Whether a material has features."""
        return bool(
            self._run(["id"], "SELECT id FROM features WHERE id = ?", all_rows, [material_id])
        )

    def near(self, material_id: str, n: int) -> list[str]:
        """The ids of materials with features that are most like a text, the nearest first."""
        query = near_query("features", "id")
        return [id_ for (id_,) in self._run(["id"], query, all_rows, [material_id, material_id, n])]

    def count(self) -> dict[str, int]:
        """Materials with features, and with predictions of each model, by its id."""
        ((features,),) = self._run(["id"], "SELECT count(*) FROM features", all_rows)
        query = (
            "SELECT made.model, count(*) FROM made JOIN features ON features.id = made.id "
            "AND features.sha256 = made.features_sha256 GROUP BY made.model ORDER BY made.model"
        )
        models = self._run(["id", "sha256"], query, all_rows)
        return {"features": int(features), **{str(name): int(count) for name, count in models}}

    def features(self, ids: Sequence[str]) -> pd.DataFrame:
        """Every column of the features of some materials, as far as there are any."""
        query = f"SELECT * FROM features WHERE {any_of('id', ids)} ORDER BY id"  # noqa: S608 (quoted)
        return self._run(None, query, _frame, ids)

    def arrays(self, names: Sequence[str]) -> dict[str, Any]:
        """Columns of all features as arrays, masked where there are nulls, in the order of ids.

        Args:
            names: of the columns; `density` says whether the store holds the density.
        """
        columns = ", ".join(
            "materials.source IS NOT NULL AS density"
            if name == "density"
            else f"features.{quoted(name)}"
            for name in names
        )
        query = (
            f"SELECT {columns} FROM features "  # noqa: S608 (constants)
            "LEFT JOIN materials ON materials.id = features.id ORDER BY features.id"
        )
        return self._run([name for name in names if name != "density"], query, _arrays)

    def without_features(self) -> list[str]:
        """The records whose features can be computed and are not there, in the order of adding."""
        query = (
            "SELECT materials.id FROM materials LEFT JOIN features ON features.id = materials.id "
            "WHERE features.id IS NULL AND payload_bytes IS NOT NULL ORDER BY materials.row"
        )
        return [id_ for (id_,) in self._run(["id"], query, all_rows)]

    def due(self, model: PropertyModel) -> pd.DataFrame:
        """The features of the materials that a model has not predicted from these very features."""
        query = (
            "SELECT features.* FROM features LEFT JOIN made ON made.id = features.id "
            "AND made.features_sha256 = features.sha256 "
            "AND made.model = ? AND made.model_version = ? AND made.model_sha256 = ? "
            "WHERE made.id IS NULL ORDER BY features.id"
        )
        return self._run(None, query, _frame, [model.id, model.version, model.sha256])

    def all_features(self) -> pd.DataFrame:
        """Every column of all features, in the order of ids."""
        return self._run(None, "SELECT * FROM features ORDER BY id", _frame)

    # ------------------------------------------------------------------ writing
    # The caller holds the lock of the store's one writer.

    def add_computed(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store the features of densities of records.

        Args:
            rows: `id`, `record_row` and the columns of a feature table.

        Raises:
            InputError: a value cannot be stored.
            StoreError: the store cannot be written.
        """
        if rows:
            import pandas as pd

            self._features.append(_hashed(pd.DataFrame(rows).assign(origin=DENSITY)))

    def add_features(self, table: pd.DataFrame, origin: str) -> None:
        """Store the features of a data set, whose materials need no records.

        Args:
            table: a feature table.
            origin: the name of the data set.

        Raises:
            InputError: a column is missing or unknown, or a value cannot be stored.
            StoreError: the store cannot be written.
        """
        if origin == DENSITY or not origin.strip():
            raise InputError(f"origin {origin!r}: name the data set that the features are from")
        if "id" not in table:
            raise InputError("the table lacks the column id")
        for material_id in table["id"]:
            check_id(material_id)
        self._features.append(_hashed(table.assign(origin=origin, record_row=None)))

    def add_predictions(
        self, model: PropertyModel, features: pd.DataFrame, made: pd.DataFrame
    ) -> None:
        """Store predictions; they replace those of the same materials by a model of this id.

        Args:
            model: which predicted.
            features: what it saw, with the hashes.
            made: what it predicted, in the same order.

        Raises:
            InputError: a value cannot be stored.
            StoreError: the store cannot be written.
        """
        rows = made.assign(
            model=model.id,
            model_version=model.version,
            model_sha256=model.sha256,
            features_sha256=features["sha256"].to_numpy(),
            added=_now(),
        )
        self._predictions.append(rows[list(PREDICTIONS)])

    def forget(self, ids: Sequence[str]) -> None:
        """Drop what was computed from the densities of some records.

        Raises:
            StoreError: a part cannot be read or written.
        """
        if not self.exists:
            return
        these = any_of("id", ids)
        self._features.drop(f"origin = ? AND {these}", [DENSITY, *ids])
        query = f"SELECT sha256 FROM features WHERE {these}"  # noqa: S608 (quoted)
        kept = self._run(["id", "sha256"], query, all_rows, ids)
        self._predictions.drop(
            f"{these} AND NOT list_contains(?, features_sha256)",
            [*ids, [sha256 for (sha256,) in kept]],
        )

    def compact(self) -> None:
        """Join the parts of each table, and drop what is no longer true of the store.

        Raises:
            StoreError: a part cannot be read or written.
        """
        self._features.compact(_OUTDATED, self._true())
        self._predictions.compact(_UNFOUNDED, self._true())

    def copy_to(self, other: Derived, ids: Sequence[str] | None) -> None:
        """Store features and predictions of some materials (None: all) in another store.

        The records are there already.
        """
        if not self._features.parts:
            return
        features = self.all_features() if ids is None else self.features(ids)
        query = (
            "SELECT made.* FROM made JOIN features ON features.id = made.id "
            "AND features.sha256 = made.features_sha256 "
            "WHERE list_contains(?, made.id) ORDER BY made.id, made.model"
        )
        made = self._run(["id", "sha256"], query, _frame, [features["id"].tolist()])
        rows = {row["id"]: row["row"] for row in other._table.select(columns=["id", "row"])}
        own = features["origin"] == DENSITY
        features["record_row"] = features["id"].map(rows).where(own).astype("Int64")
        other._features.append(features)
        other._predictions.append(made)

    # ------------------------------------------------------------------ inside

    def _true(self) -> dict[str, Relation]:
        """What `_OUTDATED` and `_UNFOUNDED` name, and `made`."""
        return {
            "materials": self._table.relation(),
            "stored": self._features.relation(FEATURES.values()),
            "features": _current(FEATURES),
            "made": self._predictions.relation(PREDICTIONS.values()),
        }

    def _run(
        self,
        names: Sequence[str] | None,
        query: str,
        fetch: Callable[[duckdb.DuckDBPyConnection], T],
        parameters: Sequence[Any] = (),
    ) -> T:
        """Query `features`, `made` (the newest predictions of each model) and `materials`.

        Args:
            names: columns of the features that are needed; None for all.
            query: a SELECT.
            fetch: takes the answer.
            parameters: one value for each `?`.
        """
        columns = feature_columns() if names is None else {**FEATURES, **_descriptors(names)}
        current = _current(columns)
        return read(
            lambda: {
                "materials": self._table.relation(),
                "stored": self._features.relation(columns.values()),
                "features": current,
                "made": self._predictions.relation(PREDICTIONS.values()),
            },
            query,
            parameters,
            fetch,
            self._store,
        )

    def _searched(self, only: str = "", of: str = "") -> dict[str, Relation]:
        """Makes `joined`, as `Joined` says; `only` and `of` are SQL that leaves out materials."""
        names = {f"predicted_{name}": name for name in PREDICTIONS}
        names |= {f"prediction_{name}": name for name in PREDICTIONS}
        names["predicted_by"] = "model"
        columns = ", ".join(
            f"made.{quoted(names[name])} AS {quoted(name)}" for name in PREDICTION_COLUMNS
        )
        sql = (
            f"SELECT made.id, stored.record_row AS row, {columns} FROM made "  # noqa: S608 (constants)
            "JOIN stored ON stored.id = made.id AND stored.sha256 = made.features_sha256 "
            f"LEFT JOIN materials ON materials.id = made.id {of}"
            f"WHERE made.model = '{DEFAULT_PROPERTY_MODEL}' AND {_FITS} {only} "
            "QUALIFY row_number() OVER (PARTITION BY made.id ORDER BY record_row NULLS FIRST) = 1"
        )
        return {
            "materials": self._table.relation(),
            "stored": self._features.relation(FEATURES.values()),
            "made": self._predictions.relation(PREDICTIONS.values()),
            "joined": Relation(sql),
        }


# ---------------------------------------------------------------------- columns


def feature_columns() -> dict[str, Column]:
    """Every column of the table of features."""
    from chgdb.features import FEATURE_COLUMNS

    return {**FEATURES, **_descriptors(FEATURE_COLUMNS)}


def _descriptors(names: Iterable[str]) -> dict[str, Column]:
    """The columns that describe a density."""
    return {
        name: Column(name, "real", "", "descriptor", nullable=True)
        for name in names
        if name not in FEATURES
    }


def _current(columns: Iterable[str]) -> Relation:
    """One row per material, of those in `stored` that are true of what is there now.

    A material that came with a data set is described by that, also where its record has features
    too, unless the record is another material: of another formula, or of a volume per atom that
    differs by more than 15 %. Of two data sets the one that was added later counts.
    """
    from chgdb.features import FEATURES_VERSION

    names = ", ".join(f"stored.{quoted(name)}" for name in columns)
    return Relation(
        f"SELECT {names} FROM stored "  # noqa: S608 (constants)
        "LEFT JOIN materials ON materials.id = stored.id "
        f"WHERE stored.features_version = {FEATURES_VERSION} "
        f"AND (stored.origin <> '{DENSITY}' OR materials.row = stored.record_row) AND {_FITS} "
        "QUALIFY row_number() OVER (PARTITION BY stored.id ORDER BY "
        f"stored.origin = '{DENSITY}', stored.added DESC, stored.origin) = 1"
    )


def _hashed(table: pd.DataFrame) -> pd.DataFrame:
    """Features with their version, their hash and the date, as rows of their table."""
    from chgdb.features import FEATURE_COLUMNS, FEATURES_VERSION

    missing = [name for name in ("id", *FEATURE_COLUMNS) if name not in table]
    if missing:
        raise InputError(f"the table lacks the column {missing[0]}")
    return table.assign(
        features_version=FEATURES_VERSION,
        record_row=table["record_row"].astype("Int64"),
        sha256=features_sha256(table),
        added=_now(),
    )


def features_sha256(table: pd.DataFrame) -> list[str]:
    """The hash of each row of a feature table, with the version of the features.

    Raises:
        InputError: a feature is not a number.
    """
    import numpy as np

    from chgdb.features import FEATURE_COLUMNS, FEATURES_VERSION

    names = [name for name in FEATURE_COLUMNS if name != "formula"]
    try:
        numbers = table[names].astype("Float64").to_numpy("<f8", na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise InputError(f"a feature is not a number ({reason(error)})") from error
    numbers = numbers + 0.0  # no -0.0
    numbers[np.isnan(numbers)] = np.nan  # and one kind of NaN
    version = f"{FEATURES_VERSION}\0".encode()
    return [
        hashlib.sha256(version + f"{formula}\0".encode() + row.tobytes()).hexdigest()
        for formula, row in zip(table["formula"], numbers, strict=True)
    ]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# ---------------------------------------------------------------------- answers


def _arrays(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """The answer as an array per column, masked where there are nulls."""
    return dict(connection.fetchnumpy())


def _frame(connection: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """The answer as a DataFrame."""
    import numpy as np

    frame: pd.DataFrame = connection.df()
    for name in ("spacegroup", "record_row"):
        if name in frame:
            try:
                with np.errstate(invalid="raise"):
                    frame[name] = frame[name].astype("Int64")
            except (TypeError, ValueError, FloatingPointError) as error:
                what = f"{FEATURES_FOLDER}: damaged, {name} is not integer ({reason(error)})"
                raise StoreError(what) from error
    return frame
