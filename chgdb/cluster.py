"""Other processes and machines, by way of dask: tasks whose results come back, or stay there.

dask.distributed moves the tasks, and does again what a worker that died had done. What the tasks do
is the business of `adding` and `predicting`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chgdb import __version__
from chgdb.errors import ChgdbError, InputError, MissingExtraError, StoreError
from chgdb.files import reason, shown

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Cluster", "connected"]

_T = TypeVar("_T")
_S = TypeVar("_S")

_TIMEOUT = 20.0
"""Seconds to wait for the scheduler, and for its first worker."""

_AHEAD = 3
"""Tasks of every thread that are submitted before they are asked for."""

_LOCAL = re.compile(r"local(?::([1-9]\d*))?")


class Cluster:
    """The workers of a dask scheduler.

    Args:
        client: connected to the scheduler.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def threads(self) -> int:
        """Tasks that run at the same time."""
        counts: dict[str, int] = self._client.nthreads()
        return max(1, sum(counts.values()))

    def map(
        self, function: Callable[[_T], _S], items: Iterable[_T]
    ) -> Iterator[tuple[_T, _S | ChgdbError]]:
        """Each item with the result for it, in any order; an error of chgdb is one too."""
        submit = self._client.submit
        for item, future in self._streamed(items, lambda item: submit(function, item, pure=False)):
            yield item, _result(future)

    def kept(
        self, function: Callable[[_T], Any], tell: Callable[[Any], _S], items: Iterable[_T]
    ) -> Iterator[tuple[_T, Future, _S | ChgdbError]]:
        """Each item, the result that a worker keeps, and what it tells of it; in any order.

        Args:
            function: makes the result, which stays where it is made as long as its future is held.
            tell: what is wanted here of a result.
            items: the arguments of `function`.
        """
        made: dict[str, Future] = {}

        def submit(item: _T) -> Future:
            future = self._client.submit(function, item, pure=False)
            told = self._client.submit(tell, future, pure=False)
            made[told.key] = future
            return told

        for item, told in self._streamed(items, submit):
            yield item, made.pop(told.key), _result(told)

    def run(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> None:
        """Call a function with each of these arguments, before all else; futures give their values.

        Raises:
            ChgdbError: a call failed.
        """
        futures = [self._client.submit(function, *call, pure=False, priority=1) for call in calls]
        try:
            # all of them: what still runs when this returns would write beside the next writer
            results = [_result(future) for future in futures]
        except BaseException:
            self._client.cancel(futures)
            raise
        for result in results:
            if isinstance(result, ChgdbError):
                raise result

    def check(self, folder: Path) -> None:
        """Refuse workers that do not see this folder, or are of another version.

        Raises:
            StoreError: they do not see it, or it cannot be written.
            InputError: they run another version of chgdb, or none, or there are no workers.
        """
        token = folder / f".{uuid.uuid4().hex}.seen"
        try:
            token.touch()
        except OSError as error:
            raise StoreError(f"{shown(folder)}: cannot be written ({reason(error)})") from error
        try:
            found = self._client.run(_look, str(token))
        except Exception as error:
            raise InputError(
                f"--scheduler: its workers cannot run chgdb ({reason(error)}); install chgdb "
                f"{__version__} there"
            ) from error
        finally:
            token.unlink(missing_ok=True)
        for worker, (seen, version) in found.items():
            if version != _versions():
                raise InputError(
                    f"--scheduler: worker {worker} runs {version}, and this is {_versions()}; "
                    "install the same"
                )
            if not seen:
                raise StoreError(
                    f"{shown(folder)}: worker {worker} does not see this folder; a store to which "
                    "workers write must be on a file system that they share, under the same path"
                )

    def _streamed(
        self, items: Iterable[_T], submit: Callable[[_T], Future]
    ) -> Iterator[tuple[_T, Future]]:
        """Items with their futures as these are done; a few are submitted ahead."""
        from distributed import as_completed

        waiting = iter(items)
        done = as_completed(loop=self._client.loop)
        of: dict[str, _T] = {}
        while True:
            while len(of) < _AHEAD * self.threads:
                try:
                    item = next(waiting)
                except StopIteration:
                    break
                future = submit(item)
                of[future.key] = item
                done.add(future)
            if not of:
                return
            future = next(done)
            yield of.pop(future.key), future


@contextmanager
def connected(address: str, folder: Path) -> Iterator[Cluster]:
    """The workers of a scheduler, which have been seen to see a folder.

    Args:
        address: of the scheduler, such as "tcp://host:8786"; "local:N" starts one with N workers on
            this machine, "local" one per core.
        folder: that the workers must see.

    Raises:
        MissingExtraError: dask.distributed is not installed.
        InputError: the scheduler cannot be reached, or runs other versions.
        StoreError: the workers do not see the folder.
    """
    try:
        import distributed
        from distributed.versions import VersionMismatchWarning
    except ModuleNotFoundError as error:
        raise MissingExtraError("--scheduler", "cluster") from error
    local = _LOCAL.fullmatch(address)
    if not local and "://" not in address:
        raise InputError(f"--scheduler {address}: give tcp://HOST:PORT, local or local:N")
    with ExitStack() as stack:
        _quiet(stack)
        try:
            if local:
                cluster = distributed.LocalCluster(
                    n_workers=int(local[1] or os.cpu_count() or 1),
                    threads_per_worker=1,
                    dashboard_address=None,
                    silence_logs=logging.CRITICAL,
                )
                client = distributed.Client(stack.enter_context(cluster))
            else:
                client = distributed.Client(address, timeout=_TIMEOUT)
            stack.callback(client.close)
            client.wait_for_workers(1, timeout=_TIMEOUT)
        except VersionMismatchWarning as error:
            raise InputError(
                f"--scheduler {address}: runs other versions ({reason(error)})"
            ) from error
        except TimeoutError as error:
            raise InputError(
                f"--scheduler {address}: no scheduler with workers answers within {_TIMEOUT:g} s"
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(
                f"--scheduler {address}: cannot be reached ({reason(error)})"
            ) from error
        with _clear(address):
            found = Cluster(client)
            found.check(folder)
            yield found


def _quiet(stack: ExitStack) -> None:
    """What dask says beside its errors is not for those who add densities."""
    logger = logging.getLogger("distributed")
    stack.callback(logger.setLevel, logger.level)
    logger.setLevel(logging.CRITICAL)
    stack.enter_context(warnings.catch_warnings())
    from distributed.versions import VersionMismatchWarning

    warnings.simplefilter("ignore")
    warnings.simplefilter("error", VersionMismatchWarning)


@contextmanager
def _clear(address: str) -> Iterator[None]:
    """A scheduler that goes away, in one line."""
    from concurrent.futures import CancelledError

    from distributed.comm import CommClosedError

    try:
        yield
    except (CommClosedError, CancelledError) as error:
        raise InputError(
            f"--scheduler {address}: the connection was lost; what is committed stays, repeat the "
            "command for the rest"
        ) from error


def _result(future: Future) -> Any:
    """What a task gave, or the error of chgdb that it ended with."""
    from distributed import KilledWorker

    try:
        return future.result()
    except ChgdbError as error:
        return error
    except MemoryError:
        return InputError("a worker has not enough memory for it")
    except KilledWorker:
        return InputError("its workers were killed, several times; perhaps for lack of memory")


def _look(token: str) -> tuple[bool, str]:
    """Whether a worker sees a file, and what it runs."""
    return Path(token).exists(), _versions()


def _versions() -> str:
    return f"chgdb {__version__}, Python {'.'.join(map(str, sys.version_info[:2]))}"
