"""The index of saved pictures: SQLite beside the files, so that newest-first pages cost the same at ten and at 20,000.

The files are the truth and the index follows them: whenever it is opened it is reconciled with what lies in the output
folder, and a damaged one is put aside and made anew from the settings inside the files.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from zimage_ui.errors import OutputFolderError, PictureNotFoundError, StorageError
from zimage_ui.request import ImageFormat
from zimage_ui.storage.encoders import looks_whole, read_metadata
from zimage_ui.storage.files import OutputFolder
from zimage_ui.storage.metadata import PictureMetadata

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
FILE_NAME = "library.sqlite3"
BUSY_TIMEOUT_S = 30.0
_BATCH_ROWS = 500
_AFTER_ALL_IDS = "~"
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_TABLE = """
CREATE TABLE IF NOT EXISTS pictures (
    picture_id TEXT PRIMARY KEY,
    path TEXT NOT NULL,
    created_at TEXT NOT NULL,
    prompt TEXT NOT NULL,
    seed INTEGER NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    image_format TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    metadata_json TEXT NOT NULL
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryRow:
    """One saved picture.

    Attributes:
        picture_id: its id; sorts by time of making.
        path: of the file, relative to the output folder.
        created_at: with its time zone.
        prompt, seed, width, height, image_format: as in its settings.
        size_bytes: of the file.
        metadata_json: its full settings (`PictureMetadata.from_json`), with the time of its saving where that is known.
    """

    picture_id: str
    path: str
    created_at: datetime
    prompt: str
    seed: int
    width: int
    height: int
    image_format: ImageFormat
    size_bytes: int
    metadata_json: str

    @classmethod
    def of(cls, metadata: PictureMetadata, *, path: str, size_bytes: int) -> LibraryRow:
        """The row of a picture that lies at `path` (relative)."""
        request = metadata.request
        if request.seed is None:
            raise ValueError("a saved picture has a seed")
        return cls(
            picture_id=metadata.picture_id,
            path=path,
            created_at=metadata.created_at,
            prompt=request.prompt,
            seed=request.seed,
            width=request.width,
            height=request.height,
            image_format=request.image_format,
            size_bytes=size_bytes,
            metadata_json=metadata.to_json(),
        )


_COLUMNS = ", ".join(column.name for column in fields(LibraryRow))
_PLACES = ", ".join("?" for _ in fields(LibraryRow))


class Library:
    """The index of one output folder. Thread-safe: one connection writes, another reads.

    Raises:
        OutputFolderError: the index was made by a newer version, or cannot be opened at all.
    """

    def __init__(self, folder: OutputFolder) -> None:
        self._folder = folder
        self._writing = threading.RLock()
        self._reading = threading.Lock()
        self._open()

    def add(self, rows: Sequence[LibraryRow]) -> None:
        """Add rows (or put them in place of those with the same id) in one transaction.

        Raises:
            StorageError: the index could not be written.
        """
        with self._writing, self._mapped("written"):
            if not self._is_in_place():
                logger.warning(
                    "the library's file is gone from %s: making it anew from the pictures", self._folder.root
                )
                self._close()
                self._open()
            self._insert(rows, "REPLACE")

    def newest(self, limit: int, before_id: str | None = None) -> list[LibraryRow]:
        """Up to `limit` pictures made before `before_id` (or ever), newest first; those without a file are left out.

        Raises:
            StorageError: the index cannot be read.
        """
        found: list[LibraryRow] = []
        while len(found) < limit:
            wanted = limit - len(found)
            page = self._select(
                "WHERE picture_id < ? ORDER BY picture_id DESC LIMIT ?", before_id or _AFTER_ALL_IDS, wanted
            )
            found += [row for row in page if self._folder.has(row.path)]
            if len(page) < wanted:
                break
            before_id = page[-1].picture_id
        return found

    def get(self, picture_id: str) -> LibraryRow:
        """The row of this picture.

        Raises:
            PictureNotFoundError: there is none.
            StorageError: the index cannot be read.
        """
        rows = self._select("WHERE picture_id = ?", picture_id)
        if not rows:
            raise PictureNotFoundError(f"No picture has the id {picture_id[:64]!r}.", "It may have been deleted.")
        return rows[0]

    def count(self) -> int:
        """How many pictures are listed.

        Raises:
            StorageError: the index cannot be read.
        """
        with self._reading, self._mapped("read"):
            return int(self._reader.execute("SELECT COUNT(*) FROM pictures").fetchone()[0])

    def rebuild(self) -> int:
        """Forget all rows and read every picture's settings anew; the number of pictures listed then.

        Raises:
            StorageError: the files cannot be listed or the index cannot be written.
        """
        with self._writing, self._mapped("written"):
            self._writer.execute("DELETE FROM pictures")
            return self._reconcile()

    def close(self) -> None:
        """Release the file."""
        with self._writing:
            self._close()

    def _open(self) -> None:
        path = self._path = self._folder.internal() / FILE_NAME
        try:
            if _is_damaged(path):
                _put_aside(path)
            with contextlib.ExitStack() as on_error:
                self._writer = on_error.enter_context(contextlib.closing(_connect(path)))
                self._reader = on_error.enter_context(contextlib.closing(_connect(path)))
                self._opened_as = _identity(path)
                self._reconcile()
                on_error.pop_all()
        except (sqlite3.Error, OSError) as error:
            raise OutputFolderError(
                f"The library {path} cannot be opened: {error}.", "Look at the disk and at who else has it open."
            ) from error

    def _close(self) -> None:
        with self._reading:
            self._reader.close()
        self._writer.close()

    def _is_in_place(self) -> bool:
        try:
            return _identity(self._path) == self._opened_as
        except FileNotFoundError:
            return False

    def _reconcile(self) -> int:
        """Drop the rows whose file is gone, add those of files that have none; the number of pictures listed then."""
        listed = {path for (path,) in self._writer.execute("SELECT path FROM pictures")}
        present = set(self._folder.pictures())
        gone, new = listed - present, sorted(present - listed)
        with _transaction(self._writer):
            self._writer.executemany("DELETE FROM pictures WHERE path = ?", ((path,) for path in gone))
        rows = (row for path in new if (row := self._row_of_file(path)) is not None)
        added = 0
        while batch := list(islice(rows, _BATCH_ROWS)):
            self._insert(batch, "IGNORE")  # a row that another process has just added knows more than the file
            added += len(batch)
        if gone or new:
            logger.info(
                "library: %d pictures found without a row (%d of them ours, and whole), %d rows without a picture",
                *(len(new), added, len(gone)),
            )
        return len(listed) - len(gone) + added

    def _row_of_file(self, relative: str) -> LibraryRow | None:
        path = self._folder.root / relative
        try:
            metadata = read_metadata(path) if looks_whole(path) else None
            if metadata is None or metadata.picture_id != path.stem:
                return None
            return LibraryRow.of(metadata, path=relative, size_bytes=path.stat().st_size)
        except OSError as error:
            logger.warning("%s is not listed: %s", path, error)
            return None

    def _insert(self, rows: Iterable[LibraryRow], on_conflict: str) -> None:
        with _transaction(self._writer):
            statement = f"INSERT OR {on_conflict} INTO pictures ({_COLUMNS}) VALUES ({_PLACES})"
            self._writer.executemany(statement, (_values(row) for row in rows))

    def _select(self, condition: str, *parameters: Any) -> list[LibraryRow]:
        with self._reading, self._mapped("read"):
            found = self._reader.execute(f"SELECT {_COLUMNS} FROM pictures {condition}", parameters).fetchall()
        return [_row(values) for values in found]

    @contextlib.contextmanager
    def _mapped(self, done: str) -> Iterator[None]:
        """The one place where the errors of SQLite become ours."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"The library {self._path} could not be {done}: {error}.",
                "Look at the disk; the index is mended from the files at the next start.",
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    with contextlib.ExitStack() as unless_ready:
        unless_ready.callback(connection.close)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise OutputFolderError(
                f"The library {path} was made by a newer zimage-ui: it has version {version}, this one knows "
                f"{SCHEMA_VERSION}.",
                "Start the newer zimage-ui, or choose another output folder.",
            )
        connection.execute("PRAGMA journal_mode = WAL")
        # A power cut may take back the last rows, never more; they are found again from the files.
        connection.execute("PRAGMA synchronous = NORMAL")
        if version < SCHEMA_VERSION:
            with _transaction(connection):
                connection.execute(_TABLE)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        unless_ready.pop_all()
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:  # it failed; when the disk is full, SQLite has rolled back by itself
            connection.execute("ROLLBACK")


def _is_damaged(path: Path) -> bool:
    """Whether there is a file that is no sound library of a version we know."""
    if not path.exists():
        return False
    if path.stat().st_size == 0:
        return True
    with contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as connection:
        try:
            if connection.execute("PRAGMA user_version").fetchone()[0] > SCHEMA_VERSION:
                return False  # not ours to judge
            sound = connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
            connection.execute(f"SELECT {_COLUMNS} FROM pictures LIMIT 0")
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _DAMAGED or code == sqlite3.SQLITE_ERROR:  # SQLITE_ERROR: a table or a column is missing
                return True
            raise
    return not sound


def _put_aside(path: Path) -> None:
    """Rename the damaged library and its write-ahead log: nothing is thrown away, and a new one can be made."""
    stamp = datetime.now().astimezone().strftime("%Y%m%dT%H%M%S%f")
    logger.warning("%s is damaged: put aside as %s.damaged-%s, and made anew from the pictures", path, path.name, stamp)
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{path}.damaged-{stamp}{suffix}")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _values(row: LibraryRow) -> tuple[Any, ...]:
    return tuple(value.isoformat() if isinstance(value, datetime) else value for value in astuple(row))


def _row(values: tuple[Any, ...]) -> LibraryRow:
    taken = dict(zip((column.name for column in fields(LibraryRow)), values, strict=True))
    taken["created_at"] = datetime.fromisoformat(taken["created_at"])
    taken["image_format"] = ImageFormat(taken["image_format"])
    return LibraryRow(**taken)
