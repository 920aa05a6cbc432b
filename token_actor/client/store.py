"""Stores: where batches wait that must outlive the process; a small port, and its twin in memory.

A commit is all or nothing, and durable when it returns. One that fails may still have been carried
out, so it can be repeated: a batch that is there already is not stored twice.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from token_actor.errors import SpoolError

if TYPE_CHECKING:
    from collections.abc import Sequence

UNPLACED: Final = -1  # the partition of batches from before the number of partitions was known; never sent as such
BATCH_OVERHEAD_BYTES: Final = 512  # a batch beside its data: a row, its place in an index, its place in memory


class BatchKey(NamedTuple):
    """Name a batch: nothing else in the world has the same numbers."""

    partition: int
    producer: bytes
    epoch: int
    first_seq: int


@dataclass(slots=True, eq=False)
class Batch:
    """Hold an encoded batch on its way; a retry sends the same bytes.

    ``data`` ``None`` means that only the store has it. ``own`` ones were recorded by this client, the
    others were left behind by one that is gone. ``entry_id`` and ``generation`` tell under which id,
    and in which log, it was acknowledged; ``None`` is never and unknown. ``partition`` is where it goes.
    """

    key: BatchKey
    events: int
    data_bytes: int
    data: bytes | None = None
    own: bool = True
    waiting: bool = True
    entry_id: bytes | None = None
    generation: int | None = None
    partition: int = field(init=False)

    def __post_init__(self) -> None:
        """Take the partition of the key; one that is not known yet can be set later."""
        self.partition = self.key.partition

    @property
    def stop_seq(self) -> int:
        """Return the number after its last event."""
        return self.key.first_seq + self.events

    @property
    def stored_bytes(self) -> int:
        """Return what it takes in a spool."""
        return self.data_bytes + BATCH_OVERHEAD_BYTES


class Store(Protocol):
    """Keep batches over the end of the process. Methods raise ``SpoolError``."""

    @property
    def producer(self) -> bytes:
        """Return the producer that new batches are numbered for: 16 bytes that were never used before."""

    def commit(self, *, added: Sequence[Batch], acknowledged: Sequence[Batch], removed: Sequence[Batch]) -> None:
        """Store new batches, note acknowledgements, forget batches: all of it, durably, or nothing."""

    def read(self, batch: Batch) -> bytes | None:
        """Return the data of a stored batch; ``None`` when the disk has not kept it intact."""

    def adopt(self) -> list[Batch]:
        """Return the batches that others left behind, and that are in this store's care from now on."""

    def close(self) -> None:
        """Let go; what is stored stays. Closing twice is fine."""


class MemoryDisk:
    """Be a disk on which one store at a time is open, for simulations: it survives the crash of a client.

    With ``full`` nothing can be added; with ``broken`` every commit fails, and has been carried out
    all the same when ``broken`` is ``"after"``.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.batches: dict[BatchKey, Batch] = {}
        self.full = False
        self.broken: bool | str = False
        self.commits = 0

    def open(self, producer: bytes | None = None) -> MemoryStore:
        """Return a new store that adopts whatever is on the disk; ``producer`` ``None`` means one at random."""
        return MemoryStore(self, producer or uuid.uuid4().bytes)


class MemoryStore:
    """Be a store on a ``MemoryDisk``."""

    def __init__(self, disk: MemoryDisk, producer: bytes) -> None:
        """Open the disk as ``producer``."""
        self.producer = producer
        self._disk = disk
        self._adopted = False

    def commit(self, *, added: Sequence[Batch], acknowledged: Sequence[Batch], removed: Sequence[Batch]) -> None:
        """Change the disk at once, unless it is full or broken."""
        if self._disk.broken is True or (self._disk.full and added):
            raise SpoolError("database or disk is full")
        self._disk.commits += 1
        for batch in added:
            self._disk.batches.setdefault(batch.key, replace(batch))
        for batch in acknowledged:
            kept = self._disk.batches.get(batch.key)
            if kept is not None:
                kept.entry_id, kept.generation = batch.entry_id, batch.generation
        for batch in removed:
            self._disk.batches.pop(batch.key, None)
        if self._disk.broken:
            raise SpoolError("disk I/O error")

    def read(self, batch: Batch) -> bytes | None:
        """Return the data of a batch; ``None`` when the disk does not have it."""
        kept = self._disk.batches.get(batch.key)
        return None if kept is None else kept.data

    def adopt(self) -> list[Batch]:
        """Return everything on the disk, the first time."""
        if self._adopted:
            return []
        self._adopted = True
        return [
            replace(kept, own=False, data=None, waiting=kept.entry_id is None)
            for kept in sorted(self._disk.batches.values(), key=lambda kept: kept.key)
        ]

    def close(self) -> None:
        """Do nothing: the disk has it all."""
