"""Everything chgdb raises on purpose.

ChgdbError                 root: one clear line, what, where and what to do
├── InputError             a file or an argument that cannot be used
│   ├── ChgcarError        a malformed CHGCAR; names the file, the block and the line
│   └── QueryError         a search expression that cannot be run
├── StoreError             a store that cannot be opened, read or written
│   ├── UnknownIdError     no record with this id
│   ├── NotKnownError      a record lacks what was asked for: its density, its structure
│   ├── DuplicateIdError   a record with this id exists already
│   └── FormatVersionError the store or model is of a version this chgdb does not know
├── ModelError             weights missing, damaged or of another encoder
└── MissingExtraError      an optional package is not installed
"""

__all__ = [
    "ChgcarError",
    "ChgdbError",
    "DuplicateIdError",
    "FormatVersionError",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "NotKnownError",
    "QueryError",
    "StoreError",
    "UnknownIdError",
]


class ChgdbError(Exception):
    """Root of every error chgdb raises on purpose; its text is one line for people."""


class InputError(ChgdbError):
    """A file or an argument that cannot be used."""


class ChgcarError(InputError):
    """A malformed CHGCAR; the text names the file, the block and the line."""


class QueryError(InputError):
    """A search expression that cannot be run."""


class StoreError(ChgdbError):
    """A store that cannot be opened, read or written."""


class UnknownIdError(StoreError):
    """No record with this id."""


class NotKnownError(StoreError):
    """A record lacks what was asked for, such as its density or its structure."""


class DuplicateIdError(StoreError):
    """A record with this id exists already."""


class FormatVersionError(StoreError):
    """The store or model has a format version this chgdb does not know."""


class ModelError(ChgdbError):
    """Weights are missing, damaged or belong to another encoder."""


class MissingExtraError(ChgdbError):
    """An optional package is not installed; the text says which extra brings it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional package: pip install 'chgdb[{extra}]'")
