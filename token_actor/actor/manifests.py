"""Manifests: what snapshots there are, what each consists of, and up to where it covers the log.

A manifest is one entry of a stream, with the id ``<epoch>-<n>`` and a digest over itself.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from token_actor.errors import BadEntry, SnapshotError
from token_actor.wire.codec import pack, unpack
from token_actor.wire.entries import is_entry_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from token_actor.transport.ports import Connection
    from token_actor.wire.keys import Keys

MANIFEST_VERSION: Final = 2
_MANIFEST_BYTES_MAX: Final = 16 << 20
_DIGEST_BYTES: Final = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Say up to where the log has been folded: the last id, and how many entries that were.

    ``generation`` grows when the server has replaced the log; 0 means that nobody has led it yet.
    ``lost`` counts the entries that were removed before anybody could read them. ``unbroken`` says that
    the state is what this log comes to from its first entry on.
    """

    offset: bytes
    entries: int
    generation: int = 0
    lost: int = 0
    unbroken: bool = True


class Chunk(NamedTuple):
    """Name a chunk: the snapshot that wrote it, its number there, and its digest."""

    snapshot_id: bytes
    number: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Hold what a snapshot consists of: per segment its name and its chunks."""

    snapshot_id: bytes
    position: Position
    taken_ms: int
    segments: Sequence[tuple[str, Sequence[Chunk]]]

    @property
    def chunks(self) -> list[Chunk]:
        """Return the chunks of all segments."""
        return [chunk for _, chunks in self.segments for chunk in chunks]

    def fields(self) -> list[bytes]:
        """Return the fields of its entry: the manifest, and its digest."""
        writers = list(dict.fromkeys(chunk.snapshot_id for chunk in self.chunks))
        place = {writer: at for at, writer in enumerate(writers)}
        body = pack(
            {
                "v": MANIFEST_VERSION,
                "offset": self.position.offset,
                "entries": self.position.entries,
                "generation": self.position.generation,
                "lost": self.position.lost,
                "unbroken": self.position.unbroken,
                "taken_ms": self.taken_ms,
                "writers": writers,
                "segments": [
                    [name, [[place[chunk.snapshot_id], chunk.number, chunk.digest] for chunk in chunks]]
                    for name, chunks in self.segments
                ],
            }
        )
        return [b"manifest", body, b"digest", digest_of(body)]

    @classmethod
    def read(cls, entry_id: bytes, fields: Sequence[bytes]) -> Manifest:
        """Return the manifest of an entry. Raises ``SnapshotError`` when it is damaged, or of another version."""
        named = dict(zip(fields[::2], fields[1::2], strict=False))
        body = named.get(b"manifest", b"")
        if digest_of(body) != named.get(b"digest"):
            raise SnapshotError(f"the manifest {entry_id.decode()} is damaged")
        try:
            manifest = unpack(body, bytes_max=_MANIFEST_BYTES_MAX)
            version = manifest["v"]
            if version != MANIFEST_VERSION:
                raise SnapshotError(
                    f"the manifest {entry_id.decode()} has version {version!r}, this program reads {MANIFEST_VERSION}"
                )
            writers = [_entry_id(writer) for writer in manifest["writers"]]
            return cls(
                snapshot_id=entry_id,
                position=Position(
                    offset=_entry_id(manifest["offset"]),
                    entries=_whole(manifest["entries"]),
                    generation=_whole(manifest["generation"]),
                    lost=_whole(manifest["lost"]),
                    unbroken=manifest["unbroken"] is True,
                ),
                taken_ms=_whole(manifest["taken_ms"]),
                segments=[
                    (_text(name), [Chunk(writers[writer], _whole(number), digest) for writer, number, digest in chunks])
                    for name, chunks in manifest["segments"]
                ],
            )
        except (BadEntry, KeyError, IndexError, TypeError, ValueError) as bad:
            raise SnapshotError(f"the manifest {entry_id.decode()} cannot be read: {bad!r}") from bad


def state_digest(segments: Mapping[str, Sequence[bytes]]) -> str:
    """Return the state hash, in hex: a digest over the digests of the chunks of each segment."""
    return digest_of(pack([[name, list(digests)] for name, digests in sorted(segments.items())])).hex()


def digests_of(manifest: Manifest) -> dict[str, list[bytes]]:
    """Return the digests of the chunks of each segment of a snapshot."""
    return {name: [chunk.digest for chunk in chunks] for name, chunks in manifest.segments}


def list_manifests(connection: Connection, keys: Keys) -> list[Manifest]:
    """Return the manifests that can be read, newest first; a damaged one is logged and left out."""
    manifests = []
    for entry_id, fields in connection.range(keys.snapshots, count=100, newest_first=True):
        try:
            manifests.append(Manifest.read(entry_id, fields))
        except SnapshotError as error:
            log.warning("A snapshot cannot be used", extra={"action": "snapshot_damaged", "problem": str(error)})
    return manifests


def newest_manifest(connection: Connection, keys: Keys) -> Manifest | None:
    """Return the newest manifest; ``None`` when there is none, or it is damaged."""
    for entry_id, fields in connection.range(keys.snapshots, count=1, newest_first=True):
        try:
            return Manifest.read(entry_id, fields)
        except SnapshotError as error:
            log.warning("A snapshot cannot be used", extra={"action": "snapshot_damaged", "problem": str(error)})
    return None


def digest_of(data: bytes) -> bytes:
    """Return the digest of a chunk or a manifest."""
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _entry_id(value: object) -> bytes:
    if not isinstance(value, bytes) or not is_entry_id(value):
        raise ValueError(f"{value!r} is no id of an entry")
    return value


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} counts nothing")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value
