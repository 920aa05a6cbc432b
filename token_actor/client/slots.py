"""Slots: the files of a spool. Each is one SQLite database that belongs to whoever holds its lock.

::

    <namespace>.<server>.<slot>.spool   the database (and its -wal, -shm): the batches
    <namespace>.<server>.<slot>.lock    locked (flock) by its owner; holds the number of commits
    *.damaged-<n>                       a database that was not what its owner had written, put aside

``<server>`` is a digest of the address, so that a spool is never sent to another server.

The number of commits in the lock file is written after a commit and without waiting for the disk. It
is there because SQLite takes a write-ahead log that is torn for one that ends there: a database with
fewer commits than its owner counted has lost some.

A database must not be used, nor even closed, by the child of a fork: SQLite would undo the locks and
the log of the parent. So a child forgets all slots, and leaks them on purpose.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import sqlite3
import time
import zlib
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from token_actor.client.store import Batch, BatchKey
from token_actor.core.dedupe import PRODUCER_BYTES
from token_actor.errors import SpoolError
from token_actor.wire.entries import is_entry_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SPOOL, LOCK, DAMAGED = ".spool", ".lock", ".damaged-"
FORMAT: Final = 1
_HEADER_BYTES: Final = 100
_DAMAGE: Final = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_MISMATCH}
_BUSY_S: Final = 1.0  # somebody else reads the file: `doctor`, for milliseconds
_COMMITS_WIDTH: Final = 20
_SCHEMA: Final = """
CREATE TABLE about (format INTEGER NOT NULL, commits INTEGER NOT NULL);
CREATE TABLE batches (
    id INTEGER PRIMARY KEY, part INTEGER NOT NULL, producer BLOB NOT NULL, epoch INTEGER NOT NULL,
    first_seq INTEGER NOT NULL, events INTEGER NOT NULL, stored_ms INTEGER NOT NULL, entry_id BLOB, generation INTEGER,
    checksum INTEGER NOT NULL, data BLOB NOT NULL, UNIQUE (part, producer, epoch, first_seq));
"""
_COLUMNS: Final = "part, producer, epoch, first_seq, events, entry_id, generation, checksum, data"
_THIS: Final = "part = ? AND producer = ? AND epoch = ? AND first_seq = ?"

_open: set[Slot] = set()


class Contents(NamedTuple):
    """Hold what could be read of a slot, and what is wrong with it, ``None`` if nothing is."""

    batches: list[Batch]
    problem: str | None
    commits: int = 0
    oldest_ms: int | None = None


class Slot:
    """Own one file of batches, for as long as its lock is held."""

    def __init__(self, path: Path, lock: int) -> None:
        """Take over a slot whose lock is held; see ``claim``."""
        self.path = path
        self.keys: set[BatchKey] = set()
        self._lock = lock
        self._database: sqlite3.Connection | None = None
        self._commits = 0
        _open.add(self)

    @classmethod
    def claim(cls, path: Path) -> Slot | None:
        """Lock a slot, new or left behind; ``None`` when it is somebody's, or has just gone."""
        lock_path = path.with_suffix(LOCK)
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(lock_path).st_ino == os.fstat(lock).st_ino:  # noqa: PTH116 - beside fstat
                return cls(path, lock)
        except OSError:
            os.close(lock)  # locked by its owner, or removed by the one before
        else:
            os.close(lock)
        return None

    def create(self) -> None:
        """Make the database. Raises ``SpoolError``; then it is not there."""
        try:
            with _mapped(self.path):
                self._database = _connect(self.path)
                self._database.executescript(f"BEGIN; {_SCHEMA} INSERT INTO about VALUES ({FORMAT}, 0); COMMIT;")
                _sync_folder(self.path.parent)
        except SpoolError:
            self.drop(keep_lock=True)
            raise

    def load(self) -> Contents:
        """Open the database, and return what its owner left, in the order it was recorded.

        Whatever the file is, nothing is changed in it. It stays closed when ``problem`` is set. Raises ``SpoolError``.
        """
        expected = self._expected_commits()
        found = examine(self.path, expected)
        if found.problem is None:
            with _mapped(self.path):
                self._database = _connect(self.path)
            self.keys = {batch.key for batch in found.batches}
            self._commits = found.commits
            for batch in found.batches:
                batch.data = None  # it stays where it is
        return found

    def commit(self, *, added: Sequence[Batch], acknowledged: Sequence[Batch], removed: Sequence[Batch]) -> None:
        """Change the file durably, or not at all. Raises ``SpoolError``."""
        now_ms = time.time_ns() // 1_000_000
        with _mapped(self.path):
            assert self._database is not None
            with self._database as database:
                database.execute("BEGIN IMMEDIATE")
                database.executemany(
                    f"INSERT OR IGNORE INTO batches ({_COLUMNS}, stored_ms) VALUES (?,?,?,?,?,?,?,?,?,?)",
                    [(*_row(batch), now_ms) for batch in added],
                )
                database.executemany(
                    f"UPDATE batches SET entry_id = ?, generation = ? WHERE {_THIS}",
                    [(batch.entry_id, batch.generation, *batch.key) for batch in acknowledged],
                )
                database.executemany(f"DELETE FROM batches WHERE {_THIS}", [batch.key for batch in removed])
                database.execute("UPDATE about SET commits = ?", (self._commits + 1,))
        self._commits += 1
        self.keys.update(batch.key for batch in added)
        self.keys.difference_update(batch.key for batch in removed)
        with suppress(OSError):  # a hint for the next owner; the commit itself is done
            os.pwrite(self._lock, str(self._commits).ljust(_COMMITS_WIDTH).encode(), 0)

    def read(self, batch: Batch) -> bytes | None:
        """Return the data of a batch; ``None`` when it is not there as it was written. Raises ``SpoolError``."""
        with _mapped(self.path):
            assert self._database is not None
            row = self._database.execute(f"SELECT {_COLUMNS} FROM batches WHERE {_THIS}", batch.key).fetchone()
        found = None if row is None else _batch(row)
        return None if found is None else found.data

    @property
    def file_bytes(self) -> int:
        """Return what its database takes on the disk."""
        paths = (self.path, Path(f"{self.path}-wal"))
        return sum(path.stat().st_size for path in paths if path.exists())

    def put_aside(self) -> Path:
        """Rename the database, closed or never opened, to where nobody will use it again; return the new name."""
        self._close_database()
        numbers = range(1, 2 + len(list(self.path.parent.iterdir())))
        aside = next(name for name in (Path(f"{self.path}{DAMAGED}{n}") for n in numbers) if not name.exists())
        for ending in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{self.path}{ending}").rename(f"{aside}{ending}")
        with suppress(FileNotFoundError):
            self.path.rename(aside)
        return aside

    def drop(self, *, keep_lock: bool = False) -> None:
        """Delete a slot in which nothing is kept; also where the disk has no room to note that."""
        self.keys.clear()
        self._close_database()
        for ending in ("", "-wal", "-shm"):
            Path(f"{self.path}{ending}").unlink(missing_ok=True)
        if not keep_lock:
            self.path.with_suffix(LOCK).unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Let go of the slot; what is in it waits for whoever claims it next."""
        self._close_database()
        if self in _open:
            _open.discard(self)
            with suppress(OSError):  # closing alone would not do: a child forked just now may still hold the lock too
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)

    def leak(self) -> None:
        """Be no slot of this process: it is the child of a fork."""
        os.close(self._lock)  # the parent's own descriptor still holds the lock
        if self._database is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database))  # nothing may ever close it here
            self._database = None

    def _close_database(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _expected_commits(self) -> int:
        return commits_of(os.pread(self._lock, _COMMITS_WIDTH, 0))


def commits_of(counted: bytes) -> int:
    """Return the number of commits that a lock file tells; 0 when it tells none."""
    text = counted.strip()
    return int(text) if text.isdigit() else 0


def examine(path: Path, expected: int) -> Contents:
    """Return what is in a database whose owner counted ``expected`` commits; changes nothing in it.

    Raises ``SpoolError`` when it cannot be read for the moment, which says nothing about what is in it.
    """
    batches: list[Batch] = []
    try:
        if path.stat().st_size < _HEADER_BYTES:  # SQLite would take it for a new one, and delete its log
            return Contents(batches, "it has no beginning" if expected else None)
        with closing(_connect(path, read_only=True)) as database:
            ((checked,),) = database.execute("PRAGMA integrity_check(1)")
            damaged = _read_batches(database, batches)
            ((form, commits),) = database.execute("SELECT format, commits FROM about")
            ((oldest_ms,),) = database.execute("SELECT min(stored_ms) FROM batches")
    except sqlite3.Error as error:
        if not _is_damage(error):
            raise SpoolError(f"the spool {path}: {error}") from error
        return Contents(batches, str(error))
    except OSError as error:
        raise SpoolError(f"the spool {path}: {error}") from error
    except ValueError as error:  # a number of rows that the file cannot have
        return Contents(batches, str(error))
    problem = None
    if checked != "ok":
        problem = str(checked)
    elif form != FORMAT:
        problem = f"it has format {form!r}; this program reads {FORMAT}"
    elif damaged:
        problem = f"{damaged} of its batches are not as they were written"
    elif commits < expected:
        problem = f"{expected - commits} of {expected} commits are gone"
    return Contents(batches, problem, commits, oldest_ms)


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a database. Raises ``sqlite3.Error`` when the file is none."""
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    database = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        if not read_only:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        database.close()
        raise
    return database


def _read_batches(database: sqlite3.Connection, batches: list[Batch]) -> int:
    """Add every intact batch to ``batches``, as far as the file can be read; return how many are not intact."""
    damaged = 0
    for row in database.execute(f"SELECT {_COLUMNS} FROM batches ORDER BY id"):
        batch = _batch(row)
        if batch is None:
            damaged += 1
        else:
            batches.append(batch)
    return damaged


def _row(batch: Batch) -> tuple[object, ...]:
    assert batch.data is not None, "a batch is stored with its data"
    checksum = _checksum(batch.key, batch.events, batch.data)
    return (*batch.key, batch.events, batch.entry_id, batch.generation, checksum, batch.data)


def _batch(row: tuple[object, ...]) -> Batch | None:
    """Return the batch of a row, ``None`` when it is not as it was written."""
    *key, events, entry_id, generation, checksum, data = row
    if list(map(type, (*key, events, data))) != [int, bytes, int, int, int, bytes]:
        return None
    name = BatchKey(*key)  # type: ignore[arg-type] # just looked at
    assert isinstance(events, int)
    assert isinstance(data, bytes)
    if len(name.producer) != PRODUCER_BYTES or _checksum(name, events, data) != checksum:
        return None
    acknowledged = is_entry_id(entry_id)
    return Batch(
        key=name,
        events=events,
        data_bytes=len(data),
        data=data,
        own=False,
        waiting=not acknowledged,
        entry_id=entry_id if isinstance(entry_id, bytes) and acknowledged else None,
        generation=generation if isinstance(generation, int) else None,
    )


def _checksum(key: BatchKey, events: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(repr((tuple(key), events)).encode()))


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    """Raise what SQLite and the system say as ``SpoolError``."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise SpoolError(f"the spool {path}: {error}") from error


def _is_damage(error: sqlite3.Error) -> bool:
    """Tell whether an error speaks of the file, and not of a disk that is full or a folder that is closed."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF in _DAMAGE


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(address: str) -> str:
    """Return what stands for the address of a server in the names of its slots."""
    return hashlib.sha256(address.encode()).hexdigest()[:12]


def _leak_all() -> None:
    for slot in _open:
        slot.leak()
    _open.clear()


os.register_at_fork(after_in_child=_leak_all)
