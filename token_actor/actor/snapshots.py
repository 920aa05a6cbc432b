"""Snapshots on the server: written in small steps, committed by one manifest, read with suspicion.

The state is cut into segments, the segments into chunks. A manifest names every chunk with its
digest and is appended last, under the id ``<epoch>-<n>``, which the server refuses once a newer
epoch has written: until then there is no snapshot, and after it there is a whole one.

A segment that did not change is not written again: the manifest names the chunks that an earlier
snapshot wrote. That is never the snapshot just before, but the one before it. So there are always two
whole copies of the state that share no chunk, and one damaged chunk leaves a snapshot to recover from.
"""

from __future__ import annotations

import logging
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from token_actor.actor.manifests import Chunk, Manifest, Position, digest_of, list_manifests
from token_actor.core.snapshot import Capture, restore
from token_actor.errors import ServerRefused, SnapshotError
from token_actor.transport.ports import Append, Delete, DeleteEntries, Put, TrimBelow
from token_actor.wire.codec import pack_tree, unpack_trees
from token_actor.wire.entries import id_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence

    from token_actor.core.blocks import Segment
    from token_actor.core.dedupe import ProducerKey, ProducerMark
    from token_actor.core.ledger import Bounds, Ledger
    from token_actor.transport.ports import Connection, Operation, Outcome
    from token_actor.wire.keys import Keys

CHUNK_BYTES: Final = 1 << 20  # one write of this takes about a millisecond
SNAPSHOTS_KEPT: Final = 3  # a damaged one is no disaster
_ABSENT_MAX: Final = 16  # numbers without a chunk before a leader is believed to have begun no further snapshot
_DELETED_AT_ONCE: Final = 16  # chunks; the server frees them in about a millisecond

log = logging.getLogger(__name__)

Fenced: TypeAlias = "Callable[[Sequence[Operation]], Sequence[Outcome]]"  # writes only what a leader may write


def digests_now(ledger: Ledger) -> dict[str, list[bytes]]:
    """Return the digests that a snapshot of ``ledger`` would have now."""
    segments = Capture(ledger).segments()
    return {segment.name: [digest_of(data) for data in _data_of(segment)] for segment in segments}


class _Written(NamedTuple):
    """Hold what became of a segment: its token, and the chunks that hold it."""

    token: Hashable
    chunks: Sequence[Chunk]


class SnapshotWriter:
    """Write snapshots of one ledger in memory, and know what need not be written again.

    ``durable`` maps (producer, epoch) to what the snapshot that was committed last has seen of it.
    """

    def __init__(self, connection: Connection, keys: Keys, *, fenced: Fenced) -> None:
        """Prepare to write; ``fenced`` writes what only a leader may write, and raises when it no longer leads."""
        self.durable: Mapping[ProducerKey, ProducerMark] = {}
        self._connection = connection
        self._keys = keys
        self._fenced = fenced
        self._committed: deque[tuple[bytes, dict[str, _Written]]] = deque(maxlen=2)  # the last two, by their id

    def forget(self) -> None:
        """Forget what was written: for another ledger, another log, or after another leader."""
        self.durable = {}
        self._committed.clear()

    def write(self, ledger: Ledger, *, snapshot_id: bytes, position: Position, now_ms: int) -> Iterator[None]:
        """Write a snapshot step by step; the state is the one at the first step.

        Yields between pieces of work of a few milliseconds each, so that the loop can go on; the
        manifest comes near the end, and then what is no longer needed is deleted. Raises
        ``ServerRefused`` when a newer epoch has written a snapshot, and what ``fenced`` raises.
        """
        capture = Capture(ledger)
        yield
        former = self._former()
        yield from drop_unfinished(self._connection, self._keys, before=snapshot_id, fenced=self._fenced)
        written: dict[str, _Written] = {}
        numbers = count()
        for segment in capture.segments():
            before = former.get(segment.name, _Written(None, ()))
            chunks = before.chunks
            if segment.token is None or segment.token != before.token:
                chunks = yield from self._write_segment(segment, before.chunks, snapshot_id, numbers)
            written[segment.name] = _Written(segment.token, chunks)
        segments = [(name, chunks) for name, (_, chunks) in written.items()]
        manifest = Manifest(snapshot_id=snapshot_id, position=position, taken_ms=now_ms, segments=segments)
        _must(self._fenced([Append(key=self._keys.snapshots, fields=manifest.fields(), entry_id=snapshot_id)]))
        self._committed.append((snapshot_id, written))
        self.durable = capture.marks
        yield
        yield from drop_old(self._connection, self._keys, fenced=self._fenced)

    def _former(self) -> Mapping[str, _Written]:
        """Return the segments of the last snapshot but one, if this writer wrote it and the server still has it."""
        ids = [manifest.snapshot_id for manifest in list_manifests(self._connection, self._keys)[:2]]
        if ids != [snapshot_id for snapshot_id, _ in reversed(self._committed)]:
            self._committed.clear()
        return self._committed[0][1] if len(self._committed) > 1 else {}

    def _write_segment(
        self, segment: Segment, former: Sequence[Chunk], snapshot_id: bytes, numbers: Iterator[int]
    ) -> Generator[None, None, Sequence[Chunk]]:
        """Write the chunks of a segment that are not among its ``former`` ones, one in each step."""
        known = {chunk.digest: chunk for chunk in former}
        chunks: list[Chunk] = []
        for data in _data_of(segment):
            digest = digest_of(data)
            chunk = known.get(digest)
            if chunk is None:
                chunk = Chunk(snapshot_id, next(numbers), digest)
                _must(self._connection.write([Put(key=self._keys.chunk(snapshot_id, chunk.number), value=data)]))
            chunks.append(chunk)
            yield
        return chunks


def _data_of(segment: Segment) -> Iterator[bytes]:
    """Yield the chunks of a segment."""
    data = bytearray()
    for tree in segment.make():
        data += pack_tree(tree)
        while len(data) >= CHUNK_BYTES:
            yield bytes(data[:CHUNK_BYTES])
            del data[:CHUNK_BYTES]
    if data:
        yield bytes(data)


def drop_old(connection: Connection, keys: Keys, *, fenced: Fenced) -> Iterator[None]:
    """Delete, in steps, all but the newest snapshots, and the log below the oldest one that is kept.

    Of an old snapshot go the chunks that no kept one refers to, and then its manifest: who is
    stopped in between finds what is left the next time.
    """
    manifests = list_manifests(connection, keys)
    kept = {(chunk.snapshot_id, chunk.number) for manifest in manifests[:SNAPSHOTS_KEPT] for chunk in manifest.chunks}
    for old in reversed(manifests[SNAPSHOTS_KEPT:]):
        gone = [keys.chunk(c.snapshot_id, c.number) for c in old.chunks if (c.snapshot_id, c.number) not in kept]
        for start in range(0, len(gone), _DELETED_AT_ONCE):
            _must(fenced([Delete(keys=gone[start : start + _DELETED_AT_ONCE])]))
            yield
        _must(fenced([DeleteEntries(key=keys.snapshots, entry_ids=[old.snapshot_id])]))
    if len(manifests) >= SNAPSHOTS_KEPT:
        oldest = manifests[SNAPSHOTS_KEPT - 1]
        if oldest.position.generation == manifests[0].position.generation:  # else it is an offset of another log
            _must(fenced([TrimBelow(key=keys.log, entry_id=oldest.position.offset)]))
    yield


def drop_unfinished(connection: Connection, keys: Keys, *, before: bytes, fenced: Fenced) -> Iterator[None]:
    """Delete, in steps, the chunks of snapshots after the newest manifest and before ``before``.

    They came to nothing, and no manifest refers to them: one only refers to chunks of its own and of
    older snapshots.
    """
    manifests = list_manifests(connection, keys)
    last_epoch, last_number = id_pair(manifests[0].snapshot_id) if manifests else (1, 0)
    epoch_now, number_now = id_pair(before)
    for epoch in range(last_epoch, epoch_now + 1):
        number = last_number + 1 if epoch == last_epoch else 1
        absent = 0
        while absent < _ABSENT_MAX and (epoch, number) < (epoch_now, number_now):
            snapshot_id = f"{epoch}-{number}".encode()
            chunks = yield from _count_chunks(connection, keys, snapshot_id)
            for stop in range(chunks, 0, -_DELETED_AT_ONCE):  # from the end: what is left has no gap either
                first = max(0, stop - _DELETED_AT_ONCE)
                _must(fenced([Delete(keys=[keys.chunk(snapshot_id, each) for each in range(first, stop)])]))
                yield
            absent = 0 if chunks else absent + 1
            number += 1
        if absent:
            yield


def _count_chunks(connection: Connection, keys: Keys, snapshot_id: bytes) -> Generator[None, None, int]:
    """Return how many chunks of a snapshot there are. They are written one after the other, so without a gap."""
    least, above = 0, 1
    while connection.get(keys.chunk(snapshot_id, above - 1)) is not None:
        least, above = above, 2 * above
        yield
    while above - least > 1:
        middle = (least + above) // 2
        if connection.get(keys.chunk(snapshot_id, middle - 1)) is None:
            above = middle
        else:
            least = middle
        yield
    return least


def load_snapshot(connection: Connection, keys: Keys, manifest: Manifest, bounds: Bounds | None) -> Ledger:
    """Return the ledger of a snapshot. Raises ``SnapshotError`` when a part is missing or damaged."""
    segments: dict[str, bytes] = {}
    for name, chunks in manifest.segments:
        parts = []
        for chunk in chunks:
            part = connection.get(keys.chunk(chunk.snapshot_id, chunk.number))
            if part is None or digest_of(part) != chunk.digest:
                what = "is missing" if part is None else "is damaged"
                raise SnapshotError(f"chunk {chunk.number} of snapshot {chunk.snapshot_id.decode()} {what}")
            parts.append(part)
        segments[name] = b"".join(parts)
    try:
        return restore({name: unpack_trees(data) for name, data in segments.items()}, bounds)
    except SnapshotError:
        raise
    except Exception as error:  # whatever a program before this one wrote: an older snapshot may do
        raise SnapshotError(f"the snapshot {manifest.snapshot_id.decode()} cannot be read: {error!r}") from error


def _must(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    for outcome in outcomes:
        if isinstance(outcome, ServerRefused):
            raise outcome
    return outcomes
