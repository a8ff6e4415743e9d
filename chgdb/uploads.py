"""Files that the web page was given: read, encoded and examined, one after the other.

Each becomes the record of a store of its own, which lives as long as the server, so whatever is
told and drawn of a stored material is told of it in the same way. Nothing of it enters the user's
store before `add`.
"""

from __future__ import annotations

import re
import secrets
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from chgdb.errors import ChgdbError, InputError, UnknownIdError
from chgdb.files import explained, one_line, printable
from chgdb.formats import default_id, file_sha256, read_density
from chgdb.schema import PREDICTED_VALUES

if TYPE_CHECKING:
    from chgdb.adding import OnConflict
    from chgdb.database import Database, Record

__all__ = ["STEPS", "Examined", "Upload", "Uploads"]

STEPS = (
    "waiting",
    "reading the file",
    "encoding: payload and latent",
    "predicting properties",
    "finding the nearest materials",
)
"""What becomes of a file, in this order."""

_KEPT = 8
"""Files that are kept; for one more the oldest that is done with goes."""

_NAME = re.compile(r"[^A-Za-z0-9._+-]")
_NEIGHBOURS = 8

State = Literal["waiting", "working", "done", "failed"]


@dataclass(frozen=True)
class Examined:
    """What was found out about a file.

    Attributes:
        record: of the store of its own.
        suggested_id: what `chgdb add` would call it.
        predicted: as of `Record.predicted`, and whether the density is `foreign`, of other
            pseudopotentials than the model learned from; None if nothing could be predicted...
        predicted_error: ...and why.
        similar: the nearest materials of the user's store, as of `Database.nearest`; None if...
        similar_error: ...and why.
        stored_as: id of the record of the user's store that was made from this very file.
    """

    record: Record
    suggested_id: str
    predicted: dict[str, Any] | None
    predicted_error: str | None
    similar: list[dict[str, Any]] | None
    similar_error: str | None
    stored_as: str | None


@dataclass
class Upload:
    """A file that the page was given, and how far it is.

    Attributes:
        id: a random text, which only who sent the file knows.
        name: as the user calls the file.
        path: where it is, in a folder of its own.
        species: element symbols for a CHGCAR that does not name them, as the user gave them.
        size: bytes of the file.
        state: "waiting", "working", "done" or "failed".
        done: index in `STEPS` of what is being done.
        error: why it failed, in the words of the command line.
        examined: once it is done.
        added: id of the record in the user's store, once it was added.
        adding: whether it is being added.
        add_error: why it could not be added.
        in_use: tasks that are to read the file.
        stopped: set when it is forgotten.
    """

    id: str
    name: str
    path: Path
    species: tuple[str, ...] | None = None
    size: int = 0
    state: State = "waiting"
    done: int = 0
    error: str | None = None
    examined: Examined | None = None
    added: str | None = None
    adding: bool = False
    add_error: str | None = None
    in_use: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def told(self, text: str) -> str:
        """A message with the name of the file as the user knows it, not where it is kept."""
        return one_line(text.replace(str(self.path), printable(self.name)))

    @property
    def is_busy(self) -> bool:
        """Whether it is coming, waiting or being worked on."""
        return self.state in ("waiting", "working") or self.adding


class _StoppedError(Exception):
    pass


class Uploads:
    """The files that the page was given since the server started.

    Args:
        database: the user's store.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._folder = TemporaryDirectory(prefix="chgdb-ui-", ignore_cleanup_errors=True)
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._worker = threading.Thread(target=self._run, name="chgdb-uploads", daemon=True)
        self._worker.start()
        self._uploads: dict[str, Upload] = {}
        self._lock = threading.Lock()
        self._own: Database | None = None

    def close(self) -> None:
        """Forget all files. What is being added to the store is finished, all else is left."""
        adding = any(upload.adding for upload in self._uploads.values())
        for upload in self._uploads.values():
            upload.stopped.set()
        self._tasks.put(None)
        if adding:
            self._worker.join()
        self._folder.cleanup()

    def expect(self, name: str, species: Sequence[str] | None = None) -> Upload:
        """A place for a file that is about to come; `examine` goes on once it is there.

        Args:
            name: as the user calls it; of it only plain characters reach the disk.
            species: element symbols for a CHGCAR that does not name them.

        Raises:
            InputError: as many as are kept are being worked on.
        """
        with self._lock:
            for other in list(self._uploads.values()):
                if len(self._uploads) >= _KEPT and not other.is_busy:
                    self._forget(other)
            if len(self._uploads) >= _KEPT:
                raise InputError(f"{_KEPT} files are being read; wait until one of them is done")
            id_ = secrets.token_urlsafe(16)
            base = re.split(r"[/\\]", name)[-1]
            plain = _NAME.sub("-", base).lstrip("._+-")[-100:] or "density"
            folder = Path(self._folder.name) / id_
            folder.mkdir()
            upload = Upload(id_, base[-200:] or plain, folder / plain)
            upload.species = tuple(species) if species else None
            self._uploads[id_] = upload
        return upload

    def examine(self, upload: Upload) -> None:
        """Begin to read a file that has come, as soon as those before it are done."""
        upload.size = upload.path.stat().st_size
        self._submit(self._work, upload)

    def get(self, upload_id: str) -> Upload:
        """A file by its id.

        Raises:
            UnknownIdError: there is none, or it was forgotten.
        """
        try:
            return self._uploads[upload_id]
        except KeyError:
            raise UnknownIdError(
                "no such file; it may have been forgotten: drop it again"
            ) from None

    def forget(self, upload: Upload) -> None:
        """Stop working on a file and remove it."""
        with self._lock:
            self._forget(upload)

    def add(self, upload: Upload, material_id: str, on_conflict: OnConflict) -> None:
        """Begin to add a file to the user's store, as `Database.add` does.

        Raises:
            InputError: it is not examined yet, or is being added.
        """
        with self._lock:
            if upload.examined is None or upload.adding:
                raise InputError(f"{printable(upload.name)}: not ready to be added; wait")
            upload.adding, upload.added, upload.add_error = True, None, None
        self._submit(partial(self._add, material_id, on_conflict), upload)

    # ------------------------------------------------------------------ inside

    def _forget(self, upload: Upload) -> None:
        upload.stopped.set()
        self._uploads.pop(upload.id, None)
        self._clean(upload)

    def _clean(self, upload: Upload) -> None:
        """Remove a file that was forgotten, unless it is being worked on: then that does it."""
        if upload.stopped.is_set() and not upload.in_use:
            shutil.rmtree(upload.path.parent, ignore_errors=True)

    def _submit(self, task: Callable[[Upload], None], upload: Upload) -> None:
        def run() -> None:
            try:
                task(upload)
            finally:
                with self._lock:
                    upload.in_use -= 1
                    self._clean(upload)

        with self._lock:
            upload.in_use += 1
        self._tasks.put(run)

    def _run(self) -> None:
        """What the worker does: one task after the other."""
        while (task := self._tasks.get()) is not None:
            task()

    def _work(self, upload: Upload) -> None:
        upload.state = "working"
        try:
            upload.examined = self._examined(upload)
            upload.state = "done"
        except _StoppedError:
            upload.state, upload.error = "failed", "stopped"
        except Exception as error:  # told on the page, whatever it is  # noqa: BLE001
            upload.state, upload.error = "failed", upload.told(explained(error))

    def _examined(self, upload: Upload) -> Examined:
        path = upload.path

        def begin(step: int) -> None:
            if upload.stopped.is_set():
                raise _StoppedError
            upload.done = step

        begin(1)
        density, _ = read_density(path, species=upload.species)
        suggested = default_id(path, density.structure)
        digest = file_sha256(path)
        begin(2)
        own = self._own_store()
        record_id = f"upload-{digest[:16]}"
        report = own.add(path, ids=[record_id], on_conflict="replace", species=upload.species)
        for _, why in report.failed:
            raise InputError(why)
        (record,) = own.get([record_id])
        begin(3)
        predicted, predicted_error = _tried(upload, lambda: self._predicted(upload))
        begin(4)
        similar, similar_error = _tried(
            upload, lambda: self._database.nearest(path, _NEIGHBOURS, species=upload.species).rows()
        )
        begin(5)
        stored = self._database.select(where=f"source_sha256 = '{digest}'", columns="id", limit=1)
        return Examined(
            record,
            suggested,
            predicted,
            predicted_error,
            similar,
            similar_error,
            stored.values[0][0] if stored.values else None,
        )

    def _predicted(self, upload: Upload) -> dict[str, Any]:
        found = self._database.predict(upload.path, species=upload.species)
        (row,) = found.to_dict("records")
        return {
            name: None if row[name] != row[name] else row[name]
            for name in (*PREDICTED_VALUES, "model", "in_training", "outside_domain", "foreign")
        }

    def _own_store(self) -> Database:
        """The store of the files themselves, made when the first comes."""
        if self._own is None:
            self._own = self._database.sibling(Path(self._folder.name) / "store")
        return self._own

    def _add(self, material_id: str, on_conflict: OnConflict, upload: Upload) -> None:
        try:
            report = self._database.add(
                upload.path,
                ids=[material_id],
                on_conflict=on_conflict,
                species=upload.species,
            )
            _raise_why([*report.failed, *report.skipped])
            upload.added = str(report.added[0]["id"])
        except Exception as error:  # told on the page, whatever it is  # noqa: BLE001
            upload.add_error = upload.told(explained(error))
        upload.adding = False


def _raise_why(reports: Sequence[tuple[Path, str]]) -> None:
    for path, why in reports:
        raise InputError(why if why.startswith(str(path)) else f"{path}: {why}")


def _tried(upload: Upload, what: Callable[[], Any]) -> tuple[Any, str | None]:
    """What comes out, or why nothing does."""
    try:
        return what(), None
    except ChgdbError as error:
        return None, upload.told(str(error))
