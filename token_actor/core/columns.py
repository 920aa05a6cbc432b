"""The events of one read of the log, as columns.

One read may hold thousands of entries and a hundred thousand events. They travel through the core
as arrays of the same length, in log order, so that the cost of an event is a share of a few numpy
calls and never a Python loop of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from token_actor.core.usage import Event
    from token_actor.errors import InvalidValue

Int64s: TypeAlias = NDArray[np.int64]
Int32s: TypeAlias = NDArray[np.int32]
Bytes8: TypeAlias = NDArray[np.uint8]
Bools: TypeAlias = NDArray[np.bool_]
Objects: TypeAlias = NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Run:
    """Say that the events ``start`` to ``stop`` of the columns carry a producer's sequence numbers.

    The event at ``start`` has the number ``first_seq``, and so on without a hole.
    """

    producer: bytes
    epoch: int
    first_seq: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Rejection:
    """Say that something of a log entry cannot be counted, and why.

    ``entry`` is the place of the entry in the read; ``position`` the place of the event in the
    entry, ``None`` when it is the entry as a whole.
    """

    entry: int
    position: int | None
    reason: str
    detail: str


@dataclass(slots=True, kw_only=True)
class Columns:
    """Hold ``n`` events of one read, in log order.

    ``keys[key_index[i]]`` is the series key of event ``i``; a key may occur more than once in
    ``keys``. ``counts`` has shape (5, n), in the order of ``usage.COUNTS``. ``cost`` is 0 where
    the flag ``UNPRICED`` is set. ``event_ms`` is what the sender says, ``log_ms`` the time of the
    entry. ``entry`` is the place of the source entry in the read. ``message_ids`` and ``tags`` are
    ``None`` when no event has one. ``problems`` maps events that cannot be counted to what is wrong;
    they keep their place, so that their sequence numbers are seen.
    """

    keys: list[str]
    key_index: Int64s
    counts: Int64s
    cost: Int64s
    flags: Bytes8
    event_ms: Int64s
    log_ms: Int64s
    entry: Int64s
    runs: list[Run] = field(default_factory=list)
    message_ids: Objects | None = None
    tags: Objects | None = None
    problems: dict[int, InvalidValue] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.key_index)

    def split(self, event: int) -> tuple[Columns, Columns]:
        """Return the events before ``event``, which begins an entry, and those from it on."""
        key = int(self.key_index[event:].min())
        return self._part(slice(0, event), slice(0, key)), self._part(slice(event, None), slice(key, None))

    def _part(self, events: slice, keys: slice) -> Columns:
        start = events.start
        return Columns(
            keys=self.keys[keys],
            key_index=self.key_index[events] - keys.start,
            counts=self.counts[:, events],
            cost=self.cost[events],
            flags=self.flags[events],
            event_ms=self.event_ms[events],
            log_ms=self.log_ms[events],
            entry=self.entry[events],
            runs=[
                replace(run, start=run.start - start, stop=run.stop - start)
                for run in self.runs
                if start <= run.start < (len(self) if events.stop is None else events.stop)
            ],
            message_ids=None if self.message_ids is None else self.message_ids[events],
            tags=None if self.tags is None else self.tags[events],
            problems={
                event - start: problem
                for event, problem in self.problems.items()
                if start <= event < (len(self) if events.stop is None else events.stop)
            },
        )

    def rejection(self, event: int, reason: str, detail: str) -> Rejection:
        """Return the rejection of one event."""
        position = event - int(np.searchsorted(self.entry, self.entry[event], side="left"))
        return Rejection(int(self.entry[event]), position, reason, detail)


def columns_of(events: Sequence[Event], *, log_ms: Sequence[int], entries: Sequence[int]) -> Columns:
    """Return checked events as columns; ``log_ms`` and ``entries`` say when and where each came."""
    series, *counts, cost, flags, times, message_ids, tags = zip(*events, strict=True)
    claimed = [log if time is None else time for time, log in zip(times, log_ms, strict=True)]
    return Columns(
        keys=list(series),
        key_index=np.arange(len(events)),
        counts=np.array(counts, dtype=np.int64),
        cost=np.array(cost, dtype=np.int64),
        flags=np.array(flags, dtype=np.uint8),
        event_ms=np.array(claimed, dtype=np.int64),
        log_ms=np.array(log_ms, dtype=np.int64),
        entry=np.array(entries, dtype=np.int64),
        message_ids=objects(message_ids),
        tags=objects(tags),
    )


def joined(parts: Sequence[Columns]) -> Columns:
    """Return the events of all ``parts``, in order."""
    if len(parts) == 1:
        return parts[0]
    keys_before = np.cumsum([0, *(len(part.keys) for part in parts)]).tolist()
    events_before = np.cumsum([0, *map(len, parts)]).tolist()
    columns = Columns(
        keys=list(chain.from_iterable(part.keys for part in parts)),
        key_index=np.concatenate([part.key_index + before for part, before in zip(parts, keys_before, strict=False)]),
        counts=np.concatenate([part.counts for part in parts], axis=1),
        cost=np.concatenate([part.cost for part in parts]),
        flags=np.concatenate([part.flags for part in parts]),
        event_ms=np.concatenate([part.event_ms for part in parts]),
        log_ms=np.concatenate([part.log_ms for part in parts]),
        entry=np.concatenate([part.entry for part in parts]),
        message_ids=_joined_objects([part.message_ids for part in parts], parts),
        tags=_joined_objects([part.tags for part in parts], parts),
    )
    for part, before in zip(parts, events_before, strict=False):
        columns.runs += [replace(run, start=run.start + before, stop=run.stop + before) for run in part.runs]
        columns.problems.update({event + before: problem for event, problem in part.problems.items()})
    return columns


def _joined_objects(columns: Sequence[Objects | None], parts: Sequence[Columns]) -> Objects | None:
    if all(column is None for column in columns):
        return None
    return np.concatenate(
        [
            np.full(len(part), None, dtype=np.object_) if column is None else column
            for column, part in zip(columns, parts, strict=True)
        ]
    )


def objects(values: Sequence[Any]) -> Objects | None:
    """Return strings, maps and ``None`` as an object column; ``None`` when all of them are ``None``."""
    return None if values.count(None) == len(values) else np.array(values, dtype=np.object_)


def grown(array: NDArray[Any], capacity: int) -> NDArray[Any]:
    """Return a copy of ``array`` with room for ``capacity`` items on its last axis, zeros behind."""
    larger = np.zeros((*array.shape[:-1], capacity), dtype=array.dtype)
    larger[..., : array.shape[-1]] = array
    return larger
