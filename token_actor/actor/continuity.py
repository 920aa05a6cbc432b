"""Continuity: whether the log on the server is still the one that was folded so far.

A server may lose the tail of the log (a failover to a replica that lagged), all of it (FLUSHALL, an
older backup), or entries nobody has read (a trim by hand). What it says of the stream is compared
with what was read; a log that is not the continuation of what was read is a new *generation* of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from token_actor.transport.ports import FIRST
from token_actor.wire.entries import id_pair

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from token_actor.actor.manifests import Position
    from token_actor.transport.ports import Connection, Entry, StreamState

TRAIL_ENTRIES_MAX: Final = 65_536  # ids remembered: many seconds of a log, and a replica lags by less
COMPARED: Final = 64  # entries whose content is looked at again: of at most 64 KiB each, at every renewal of the lease
ENTRIES_PER_READ: Final = 512  # of at most 64 KiB each


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """Say how the log does not continue what was read.

    ``replaced`` means that the end of what was read is not in it any more; ``lost`` is how many
    entries were removed from it before they could be read, and ``offset`` the last of them when nothing is left of it.
    """

    replaced: bool
    lost: int = 0
    offset: bytes = FIRST


class Trail:
    """Remember the ids of the last entries read, read by read, to find the way back into a log that was replaced."""

    def __init__(self) -> None:
        """Start with nothing read."""
        self._reads: deque[tuple[bytes, list[bytes]]] = deque()  # where each read began, and the ids it brought
        self._entries = 0
        self._unsure = 0  # reads since the log was last seen to go on: they may be of the one that replaced it

    def add(self, after: bytes, entries: Sequence[Entry]) -> None:
        """Note a read that began ``after`` an id."""
        self._reads.append((after, [entry_id for entry_id, _ in entries]))
        self._entries += len(entries)
        self._unsure += 1
        while self._entries - len(self._reads[0][1]) > TRAIL_ENTRIES_MAX:
            self._entries -= len(self._reads.popleft()[1])

    def confirm(self) -> None:
        """Note that the log goes on from everything read so far."""
        self._unsure = 0

    def common(self, connection: Connection, key: bytes) -> tuple[bytes | None, set[bytes]]:
        """Return where the last read began that the log still has, and the ids read since.

        The first is ``None`` when it has none, and the ids are those that may be of the new log then. A log
        loses its end and, trimmed, its beginning, never its middle: up to that id it is the one that was read.
        """
        sure = len(self._reads) - min(self._unsure, len(self._reads))
        unsure = {entry_id for _, entry_ids in islice(self._reads, sure, None) for entry_id in entry_ids}
        stream = connection.stream_state(key)
        if stream is None or stream.first_id is None:
            return None, unsure
        first = id_pair(stream.first_id)
        reads = [read for read in islice(self._reads, sure) if id_pair(_anchor(read)) >= first]

        def is_gone(read: tuple[bytes, list[bytes]]) -> bool:
            return not connection.range(key, start=_anchor(read), end=_anchor(read), count=1)

        kept = bisect_left(reads, True, key=is_gone)  # noqa: FBT003 - those that are there come before those that are gone
        if kept == 0:
            return None, unsure
        return reads[kept - 1][0], unsure.union(*(entry_ids for _, entry_ids in reads[kept - 1 :]))


def _anchor(read: tuple[bytes, list[bytes]]) -> bytes:
    """Return the entry that a read began after; for the very first read, the first one it brought."""
    began, entry_ids = read
    return entry_ids[0] if began == FIRST else began


def find_break(
    connection: Connection, key: bytes, position: Position, last: Sequence[Entry] = (), before: Sequence[Entry] = ()
) -> Break | None:
    """Compare the log with what was read of it; ``None`` when it goes on from there.

    ``last`` are the entries read last, if they are known, and ``before`` those that were the last when it was
    looked at before: a server whose clock is behind gives the ids that were lost once more.
    """
    stream = connection.stream_state(key)
    if stream is None or id_pair(stream.last_id) < id_pair(position.offset):
        return Break(replaced=True) if position.entries else None
    if before and before[-1] != last[-1]:
        there = connection.range(key, start=before[0][0], end=before[-1][0], count=len(before))
        if _differs(there, before):
            return Break(replaced=True)
    if (stream.last_id, stream.entries_added) == (position.offset, position.entries):
        return Break(replaced=True) if _differs(_newest_up_to(connection, key, position, last), last) else None
    removed = stream.entries_added - stream.length
    first = stream.first_id
    if position.offset != FIRST and first is not None and id_pair(first) <= id_pair(position.offset):
        there = _newest_up_to(connection, key, position, last)
        replaced = not there or there[0][0] != position.offset or _differs(there, last)
    elif removed > position.entries:
        lost = removed - position.entries
        return Break(replaced=False, lost=lost, offset=FIRST if first is not None else stream.last_id)
    else:
        replaced = removed < position.entries
    if replaced or stream.entries_added < position.entries:
        return Break(replaced=True)
    return _deleted_ahead(connection, key, position, stream)


def counted_up_to(connection: Connection, key: bytes, position: Position) -> bytes:
    """Return the id up to which every entry was folded or counted as lost: later than the last one folded, maybe."""
    stream = connection.stream_state(key)
    return stream.last_id if stream is not None and stream.entries_added == position.entries else position.offset


def _newest_up_to(connection: Connection, key: bytes, position: Position, last: Sequence[Entry]) -> list[Entry]:
    """Return as many entries as are known of those up to the position, the newest first; one at least."""
    return connection.range(key, end=position.offset, count=max(1, len(last)), newest_first=True)


def _differs(there: Sequence[Entry], last: Sequence[Entry]) -> bool:
    """Tell whether one of the entries is another than was read there; those that were deleted since are not."""
    known = {entry_id: list(fields) for entry_id, fields in last}
    return any(
        id_pair(entry_id) >= id_pair(last[0][0]) and known.get(entry_id) != list(fields)
        for entry_id, fields in (there if last else ())
    )


def _deleted_ahead(connection: Connection, key: bytes, position: Position, stream: StreamState) -> Break | None:
    """Look for entries that were appended and deleted before anybody read them; only the end of the log can tell."""
    unread = stream.entries_added - position.entries
    if not unread or connection.range(key, start=b"(" + position.offset, end=b"+", count=1):
        return None
    return Break(replaced=False, lost=unread, offset=stream.last_id)


def entries_from(connection: Connection, key: bytes, after: bytes, until: bytes) -> Iterator[list[Entry]]:
    """Yield the entries above ``after``, up to ``until``, read by read."""
    while True:
        entries = connection.range(key, start=b"(" + after, end=until, count=ENTRIES_PER_READ)
        if not entries:
            return
        yield entries
        after = entries[-1][0]
