"""The authors' release as a store: latents, properties, and the decoder that brings densities back.

A record of the release has a latent and no density of its own: neither the grid nor the electrons
are in the files, so that its latent decodes to the box of 128^3 points that the network knows
(`Database.decode_box`), in e/A^3.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chgdb import __version__
from chgdb.database import Database
from chgdb.errors import InputError, ModelError, StoreError
from chgdb.files import replacing, shown
from chgdb.formats import file_sha256
from chgdb.keras_weights import net_arguments, read_keras_weights
from chgdb.places import SCHEME
from chgdb.query import canonical_formula
from chgdb.release import (
    LATENT_SHAPE,
    Finding,
    Material,
    find_latents,
    read_latent,
    read_table,
)
from chgdb.schema import INFO_FILE, LATENT_BOX, EncoderInfo, LatentStorage, StoreInfo
from chgdb.structure_files import structures_by_id
from chgdb.symmetry import find_symmetry
from chgdb.weights import EncoderConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from chgdb.density import Structure

__all__ = ["ENCODER", "STORAGE", "ReleaseReport", "import_release"]

ENCODER = "release"
"""Id of the authors' encoder in a store; its weights are known by their hash."""

STORAGE = LatentStorage("float32", None, LATENT_SHAPE)
"""As in the files: rounded to float16, a latent would not decode to the same density."""

_ATTRIBUTION = "latents, table and weights of the authors of arXiv 2605.07227"
_BATCH = 128
"""Latents that are committed together."""

_BAD_FILES = ("unreadable file", "wrong dtype", "wrong shape", "not finite", "all zero")


@dataclass
class ReleaseReport:
    """What `import_release` did.

    Attributes:
        rows: of the table.
        files: latents of a row of the table.
        imported: ids of the records that got their latent.
        present: how many had one already.
        findings: what was not taken as it is, files first.
    """

    rows: int = 0
    files: int = 0
    imported: list[str] = field(default_factory=list)
    present: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind, in the order of the findings."""
        return dict(Counter(finding.kind for finding in self.findings))

    @property
    def failed(self) -> int:
        """How many latents could not be taken."""
        counts = self.counts
        return sum(counts.get(kind, 0) for kind in (*_BAD_FILES, "refused"))

    def details(self, limit: int) -> Iterator[str]:
        """A line of each finding, of each kind the first `limit` and how many more there are."""
        for kind, count in self.counts.items():
            of_kind = (finding for finding in self.findings if finding.kind == kind)
            for finding in islice(of_kind, limit):
                yield f"{kind}: {finding.subject}: {finding.detail}"
            if count > limit > 0:
                yield f"{kind}: and {count - limit} more"

    def save(self, path: str | Path) -> None:
        """Write all of it as JSON.

        Raises:
            InputError: the file cannot be written.
        """
        content = {**asdict(self), "counts": self.counts}
        with replacing(path) as partial:
            partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def import_release(
    folder: str | Path,
    table: str | Path,
    store: str | Path | None = None,
    *,
    decoder: str | Path | None = None,
    encoder: str | Path | None = None,
    structures: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ReleaseReport:
    """Import the authors' release; what is wrong with a part of it stops no other part.

    Records that have a latent are left alone, so that an interrupted import, or one whose weights
    came later, is completed by repeating it.

    Args:
        folder: of the `{formula}_{spacegroup}_latent.npy`.
        table: the authors' CSV file.
        store: a store of this release, or a folder that is not there yet; None for the one that
            CHGDB_STORE names, or ./store.
        decoder: Keras weights of the decoder, or of the whole autoencoder.
        encoder: Keras weights of the encoder, where they are a file of their own.
        structures: a file of crystal structures, as of `chgdb.structure_files`.
        progress: called with the number of files done and the number of all.

    Raises:
        InputError: the folder or the table cannot be read, or the store is in a bucket.
        ModelError: the weights cannot be read, or are not those of the store.
        StoreError: the store holds latents of another encoder, or cannot be written.
        MissingExtraError: h5py or torch is not installed, which weights need.
    """
    weights = [Path(path) for path in (decoder, encoder) if path is not None]
    others = [Path(path) for path in (table, structures) if path is not None]
    tensors = _tensors(weights)
    content = read_table(table)
    known, bad = structures_by_id(structures) if structures else ({}, [])
    latents, findings = find_latents(folder, content.materials, [*others, *weights])
    database = _open(_folder(store), tensors, weights)
    report = ReleaseReport(rows=content.n_rows, files=len(latents))
    materials = [material for material in content.materials if material.id in latents]
    for start in range(0, len(materials), _BATCH):
        part = materials[start : start + _BATCH]
        there = database.with_latent([material.id for material in part])
        report.present += len(there)
        _complete(database, [m for m in part if m.id in there], known)
        _import(database, [(m, latents[m.id]) for m in part if m.id not in there], known, report)
        if progress:
            progress(start + len(part), len(latents))
    report.findings += findings
    if structures:
        name = Path(structures).name
        report.findings += [Finding("bad structure", name, str(why)) for why in bad]
    report.findings += content.findings
    return report


# --- the encoder ------------------------------------------------------------------------------


def _tensors(paths: list[Path]) -> dict[str, NDArray[np.float32]]:
    """The weights in one or two files.

    Raises:
        ModelError: one cannot be read, or they contradict each other.
    """
    import numpy as np

    tensors: dict[str, NDArray[np.float32]] = {}
    for path in paths:
        more = read_keras_weights(path)
        for name in sorted(tensors.keys() & more.keys()):
            if not np.array_equal(tensors[name], more[name]):
                raise ModelError(f"{shown(path)}: {name} is not that of {shown(paths[0])}")
        tensors |= more
    return tensors


def _config(tensors: Mapping[str, NDArray[np.float32]], weights: list[Path]) -> EncoderConfig:
    """What the weights are of.

    Raises:
        ModelError: they are not of a network with latents of the release.
    """
    training = {"made_from": [path.name for path in weights], "format": "Keras HDF5"}
    try:
        return EncoderConfig(
            ENCODER, "paper", LATENT_SHAPE, net_arguments(tensors), training=training
        )
    except InputError as error:
        raise ModelError(f"{shown(weights[0])}: a layer is missing or too many: {error}") from error


# --- the store --------------------------------------------------------------------------------


def _folder(store: str | Path | None) -> Path:
    """Where the store is.

    Raises:
        InputError: it is in a bucket.
    """
    path = str(store or os.environ.get("CHGDB_STORE") or "store")
    if path.startswith(SCHEME):
        raise InputError(
            f"{path}: a release is imported into a folder; put it there with: "
            f"chgdb export {path} --store FOLDER"
        )
    return Path(path)


def _open(path: Path, tensors: Mapping[str, NDArray[np.float32]], weights: list[Path]) -> Database:
    """The store of the release with its encoder, or what is known of it; made if there is none.

    Raises:
        ModelError: the weights are of another network, or of another encoder than the store's.
        StoreError: the store holds latents of another encoder.
    """
    database = Database(path) if (path / INFO_FILE).exists() else None
    if database:
        _check_encoder(database)
    if tensors:
        import torch

        known = database.encoder_tensors() if database else {}
        united = {**known, **{name: torch.from_numpy(array) for name, array in tensors.items()}}
        config = _config({name: tensor.numpy() for name, tensor in united.items()}, weights)
    if database is None:
        encoder = EncoderInfo(ENCODER, "paper", "")
        info = StoreInfo(encoder, STORAGE, _ATTRIBUTION, f"chgdb {__version__}")
        database = Database.create_for(path, info)
    if tensors:
        database.keep_encoder(config, united)
    return database


def _check_encoder(database: Database) -> None:
    info = database.info
    if (info.encoder.id, info.encoder.kind, info.latent) != (ENCODER, "paper", STORAGE):
        raise StoreError(
            f"{shown(database.place)}: a store of latents of {info.encoder.id}, and these are of "
            f"{ENCODER}; give them one of their own with --store DIR"
        )


def _complete(
    database: Database, materials: list[Material], structures: Mapping[str, Structure]
) -> None:
    """Give records that have their latent the structures that fit, if they have none."""
    later = {
        material.id: structures[material.id]
        for material in materials
        if material.id in structures and not _foreign(structures[material.id], material)
    }
    database.import_materials({id_: {} for id_ in sorted(later)}, later)


def _import(
    database: Database,
    part: list[tuple[Material, Path]],
    structures: Mapping[str, Structure],
    report: ReleaseReport,
) -> None:
    """Read and store the latents of some materials, with the structures that are theirs."""
    materials: dict[str, dict[str, Any]] = {}
    sources: dict[str, dict[str, Any]] = {}
    values: dict[str, NDArray[np.float32]] = {}
    theirs: dict[str, Structure] = {}
    for material, path in part:
        latent = read_latent(path)
        if isinstance(latent, Finding):
            report.findings.append(latent)
            continue
        values[material.id] = latent
        if material.id in structures and (why := _foreign(structures[material.id], material)):
            report.findings.append(Finding("other structure", material.id, why))
        elif material.id in structures:
            theirs[material.id] = structures[material.id]
        materials[material.id] = {"formula": material.formula, **material.properties}
        sources[material.id] = {
            "spacegroup": material.symmetry.number,
            "spacegroup_symbol": material.symmetry.symbol,
            "crystal_system": material.symmetry.crystal_system,
            "source": "dft",
            "source_format": "latent",
            "source_file": path.name,
            "source_sha256": file_sha256(path),
            **{f"work_grid_{axis}": LATENT_BOX for axis in "abc"},
        }
    done = database.import_latents(materials, values, sources, theirs)
    report.imported += [*done.added, *done.updated]
    report.findings += [Finding("refused", name, why) for name, why in done.failed]


def _foreign(structure: Structure, material: Material) -> str:
    """Why a structure cannot be that of a material; empty if it can."""
    if canonical_formula(structure.formula) != canonical_formula(material.formula):
        return f"of {structure.formula}, not of {material.formula}; not taken"
    found, number = find_symmetry(structure), material.symmetry.number
    if found is None or found.number != number:
        return f"space group {found.number if found else 'unknown'}, not {number}; not taken"
    return ""
