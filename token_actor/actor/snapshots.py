"""Snapshots on the server: written in small steps, committed by one manifest, read with suspicion.

The state is cut into segments, the segments into chunks. A manifest names every chunk with its
digest and is appended last, under the id ``<epoch>-<n>``, which the server refuses once a newer
epoch has written: until then there is no snapshot, and after it there is a whole one.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from token_actor.core import snapshot
from token_actor.errors import BadEntry, ServerRefused, SnapshotError
from token_actor.transport.ports import Append, Connection, Delete, DeleteEntries, Outcome, Put, TrimBelow
from token_actor.wire.codec import pack, pack_state, unpack, unpack_state
from token_actor.wire.entries import id_pair, is_entry_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from token_actor.core.ledger import Bounds, Ledger
    from token_actor.wire.keys import Keys

CHUNK_BYTES: Final = 1 << 20  # one write of this takes about a millisecond
SNAPSHOTS_KEPT: Final = 3  # a damaged one is no disaster
MANIFEST_VERSION: Final = 1
_MANIFEST_BYTES_MAX: Final = 16 << 20
_DIGEST_BYTES: Final = 16
_ABSENT_MAX: Final = 3  # numbers without a chunk before a leader is believed to have begun no further snapshot

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Say up to where the log has been folded: the last id, and how many entries that were."""

    offset: bytes
    entries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Hold what a snapshot consists of: per segment its name and the digests of its chunks."""

    snapshot_id: bytes
    position: Position
    taken_ms: int
    segments: Sequence[tuple[str, Sequence[bytes]]]

    @property
    def chunk_count(self) -> int:
        """Return the number of chunks of all segments."""
        return sum(len(digests) for _, digests in self.segments)

    def fields(self) -> list[bytes]:
        """Return the fields of its entry: the manifest, and its digest."""
        body = pack(
            {
                "v": MANIFEST_VERSION,
                "offset": self.position.offset,
                "entries": self.position.entries,
                "taken_ms": self.taken_ms,
                "segments": [list(segment) for segment in self.segments],
            }
        )
        return [b"manifest", body, b"digest", _digest(body)]

    @classmethod
    def read(cls, entry_id: bytes, fields: Sequence[bytes]) -> Manifest:
        """Return the manifest of an entry. Raises ``SnapshotError`` when it is damaged."""
        named = dict(zip(fields[::2], fields[1::2], strict=False))
        body = named.get(b"manifest", b"")
        if _digest(body) != named.get(b"digest"):
            raise SnapshotError(f"the manifest {entry_id.decode()} is damaged")
        try:
            manifest = unpack(body, bytes_max=_MANIFEST_BYTES_MAX)
            if manifest["v"] != MANIFEST_VERSION:
                raise SnapshotError(f"the manifest {entry_id.decode()} has version {manifest['v']!r}")
            return cls(
                snapshot_id=entry_id,
                position=Position(offset=_entry_id(manifest["offset"]), entries=_whole(manifest["entries"])),
                taken_ms=_whole(manifest["taken_ms"]),
                segments=[(_name(name), list(digests)) for name, digests in manifest["segments"]],
            )
        except (BadEntry, KeyError, TypeError, ValueError) as bad:
            raise SnapshotError(f"the manifest {entry_id.decode()} cannot be read: {bad!r}") from bad


def write_snapshot(
    connection: Connection, keys: Keys, ledger: Ledger, *, snapshot_id: bytes, position: Position, now_ms: int
) -> Iterator[None]:
    """Write a snapshot step by step; the state is the one at the first step, which copies it.

    Yields between pieces of work, so that the loop can go on, and ends with the manifest. With much
    state, the first step and the packing of a large segment take up to seconds. Raises
    ``ServerRefused`` when a newer epoch has written a snapshot.
    """
    state = snapshot.dump(ledger)
    drop_unfinished(connection, keys, before=snapshot_id)
    segments: list[tuple[str, list[bytes]]] = []
    index = 0
    yield
    for name, part in state.items():
        data = pack_state({"value": part})
        digests: list[bytes] = []
        for start in range(0, len(data), CHUNK_BYTES):
            chunk = data[start : start + CHUNK_BYTES]
            _must(connection.write([Put(key=keys.chunk(snapshot_id, index), value=chunk)]))
            digests.append(_digest(chunk))
            index += 1
            yield
        segments.append((name, digests))
    manifest = Manifest(snapshot_id=snapshot_id, position=position, taken_ms=now_ms, segments=segments)
    _must(connection.write([Append(key=keys.snapshots, fields=manifest.fields(), entry_id=snapshot_id)]))
    drop_old(connection, keys)


def drop_old(connection: Connection, keys: Keys) -> None:
    """Delete all but the newest snapshots, and the log below the oldest one that is kept."""
    manifests = list_manifests(connection, keys)
    for old in manifests[SNAPSHOTS_KEPT:]:
        chunks = [keys.chunk(old.snapshot_id, index) for index in range(old.chunk_count)]
        _must(connection.write([DeleteEntries(key=keys.snapshots, entry_ids=[old.snapshot_id]), Delete(keys=chunks)]))
    if len(manifests) >= SNAPSHOTS_KEPT:
        oldest = manifests[SNAPSHOTS_KEPT - 1]
        _must(connection.write([TrimBelow(key=keys.log, entry_id=oldest.position.offset)]))


def drop_unfinished(connection: Connection, keys: Keys, *, before: bytes) -> None:
    """Delete the chunks of snapshots after the newest manifest and before ``before``: they came to nothing."""
    manifests = list_manifests(connection, keys)
    last_epoch, last_number = id_pair(manifests[0].snapshot_id) if manifests else (0, 0)
    epoch_now, number_now = id_pair(before)
    for epoch in range(last_epoch, epoch_now + 1):
        number = last_number + 1 if epoch == last_epoch else 1
        absent = 0
        while absent < _ABSENT_MAX and (epoch, number) < (epoch_now, number_now):
            absent = 0 if _drop_chunks(connection, keys, f"{epoch}-{number}".encode()) else absent + 1
            number += 1


def _drop_chunks(connection: Connection, keys: Keys, snapshot_id: bytes) -> bool:
    """Delete the chunks of one snapshot, however many there are; tell whether there were any."""
    index = 0
    while _must(connection.write([Delete(keys=[keys.chunk(snapshot_id, index)])])) != [0]:
        index += 1
    return index > 0


def list_manifests(connection: Connection, keys: Keys) -> list[Manifest]:
    """Return the manifests that can be read, newest first; a damaged one is logged and left out."""
    manifests = []
    for entry_id, fields in connection.range(keys.snapshots, count=100, newest_first=True):
        try:
            manifests.append(Manifest.read(entry_id, fields))
        except SnapshotError as error:
            log.warning("A snapshot cannot be used", extra={"action": "snapshot_damaged", "problem": str(error)})
    return manifests


def load_snapshot(connection: Connection, keys: Keys, manifest: Manifest, bounds: Bounds | None) -> Ledger:
    """Return the ledger of a snapshot. Raises ``SnapshotError`` when a part is missing or damaged."""
    state: dict[str, bytes] = {}
    index = 0
    for name, digests in manifest.segments:
        chunks = []
        for digest in digests:
            chunk = connection.get(keys.chunk(manifest.snapshot_id, index))
            if chunk is None or _digest(chunk) != digest:
                what = "is missing" if chunk is None else "is damaged"
                raise SnapshotError(f"chunk {index} of snapshot {manifest.snapshot_id.decode()} {what}")
            chunks.append(chunk)
            index += 1
        state[name] = b"".join(chunks)
    try:
        return snapshot.restore({name: unpack_state(part)["value"] for name, part in state.items()}, bounds)
    except SnapshotError:
        raise
    except Exception as error:  # whatever a program before this one wrote: an older snapshot may do
        raise SnapshotError(f"the snapshot {manifest.snapshot_id.decode()} cannot be read: {error!r}") from error


def _entry_id(value: object) -> bytes:
    if not isinstance(value, bytes) or not is_entry_id(value):
        raise ValueError("the offset is no id of an entry")
    return value


def _name(value: object) -> str:
    if type(value) is not str:
        raise ValueError("a segment has no name")
    return value


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} counts nothing")
    return value


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _must(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    for outcome in outcomes:
        if isinstance(outcome, ServerRefused):
            raise outcome
    return outcomes
