"""chgdb: a database of electronic charge densities that fits on a laptop.

>>> import chgdb
>>> db = chgdb.open()
>>> len(db.search(elements=["Si"], ranges={"bulk_modulus": "80:100"})) > 0
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chgdb.errors import ChgdbError

if TYPE_CHECKING:
    from pathlib import Path

    from chgdb.database import Database

__all__ = ["ChgdbError", "__version__", "open"]

__version__ = "0.1.0"


def open(path: str | Path | None = None) -> Database:  # noqa: A001
    """Open a store; None looks for one as `chgdb.resources` says.

    Raises:
        ChgdbError: there is no store, or it cannot be read.
    """
    from chgdb.database import Database

    return Database(path)
