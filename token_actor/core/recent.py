"""Recent: the last events of the whole fleet, for history, exact trailing windows and export.

A ring of columns. A *place* is the number of an event since the beginning, never reused; the ring
holds the last ones. Every event knows the place of the event before it in the same series, so the
history of one session is a walk along a few chains and does not depend on the size of the fleet.
Those chains follow from the rows of the events, so a snapshot does without them.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from token_actor.core.blocks import Pictures, Segment, Tree, numbered
from token_actor.core.columns import grown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from token_actor.core.columns import Int64s

EVENTS_MAX: Final = 1_000_000  # about 100 bytes each
_FIRST_CAPACITY: Final = 4096
_NOWHERE: Final = -1
_CHAINS_MAX: Final = 64  # series walked one event at a time; for more, passes over the columns are cheaper
_STEPS_MAX: Final = 4096  # events walked before a pass over the columns is cheaper
_BLOCK: Final = 65_536  # places looked at in one pass
_PLACE_BITS: Final = 13  # 8192 places, below a mebibyte, are one segment of a snapshot

_COLUMNS: Final[dict[str, tuple[tuple[int, ...], type]]] = {  # name: leading shape, type
    "row": ((), np.int32),
    "event_ms": ((), np.int64),
    "log_ms": ((), np.int64),
    "previous": ((), np.int64),
    "cost": ((), np.int64),
    "flags": ((), np.uint8),
    "counts": ((5,), np.int64),
    "message_id": ((), np.object_),  # str or None
    "tags": ((), np.object_),  # dict or None
}
_KEPT: Final = tuple(name for name in _COLUMNS if name != "previous")  # in a snapshot


class RecentEvents:
    """Keep the last ``events_max`` events."""

    def __init__(self, *, events_max: int = EVENTS_MAX) -> None:
        """Start empty."""
        self.next_place = 0
        self._begin = 0  # the first place ever kept here; above 0 after a restore
        self._events_max = events_max
        self._capacity = min(_FIRST_CAPACITY, events_max)
        self._columns: dict[str, NDArray[Any]] = {
            name: np.zeros((*shape, self._capacity), dtype=dtype) for name, (shape, dtype) in _COLUMNS.items()
        }
        self._last_of_row: Int64s = np.full(0, _NOWHERE, dtype=np.int64)
        self._rewritten = 0
        self._pictures = Pictures()

    def __len__(self) -> int:
        """Return how many events are kept."""
        return min(self.next_place - self._begin, self._events_max)

    @property
    def first_place(self) -> int:
        """Return the place of the oldest event kept."""
        return self.next_place - len(self)

    def append(self, rows: Int64s, values: Mapping[str, NDArray[Any] | None]) -> None:
        """Take events in log order.

        ``values`` maps ``event_ms``, ``log_ms``, ``cost``, ``flags``, ``counts``, ``message_id`` and
        ``tags`` to arrays; the last two may be ``None``, when no event has one.
        """
        previous = self._link(rows, self.next_place)
        self._keep_until(self.next_place + len(rows) - self._events_max)
        self.next_place += len(rows)
        self._make_room(len(self))
        kept = min(len(rows), self._events_max)
        at = self._span(self.next_place - kept, kept)
        for name, value in (("row", rows), ("previous", previous), *values.items()):
            self._columns[name][..., at] = None if value is None else value[..., len(rows) - kept :]

    def _keep_until(self, end: int) -> None:
        """Let pictures copy what lies below the place ``end``: it is about to be overwritten."""
        if self._pictures:
            self._pictures.keep(block for block, _, _ in numbered(self.first_place, end, _PLACE_BITS))

    def _link(self, rows: Int64s, first_place: int) -> Int64s:
        """Return the place of the event before each event in its series, and note the last ones.

        The events have the places from ``first_place`` on.
        """
        self._know_row(int(rows.max()))
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        places = order + first_place
        first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
        before = np.concatenate(([_NOWHERE], places[:-1]))
        previous = np.empty(len(rows), dtype=np.int64)
        previous[order] = np.where(first, self._last_of_row[ordered], before)
        last = np.concatenate((first[1:], [True]))
        self._last_of_row[ordered[last]] = places[last]
        return previous

    def _know_row(self, row: int) -> None:
        known = len(self._last_of_row)
        if row >= known:
            self._last_of_row = grown(self._last_of_row, max(2 * known, row + 1, _FIRST_CAPACITY))
            self._last_of_row[known:] = _NOWHERE

    def _make_room(self, count: int) -> None:
        """Grow until ``count`` events fit; before the ring is full, a place is its own index."""
        if count > self._capacity:
            self._capacity = min(self._events_max, max(count, 2 * self._capacity))
            self._columns = {name: grown(column, self._capacity) for name, column in self._columns.items()}

    def _span(self, place: int, count: int) -> Int64s | slice:
        """Return where ``count`` places from ``place`` on are: a slice, unless the ring ends among them."""
        start = place % self._capacity
        end = start + count
        return slice(start, end) if end <= self._capacity else self._index(np.arange(place, place + count))

    def _index(self, places: Int64s) -> Int64s:
        return places % self._capacity

    def column(self, name: str, places: Int64s) -> NDArray[Any]:
        """Return one column at ``places``; ``counts`` has shape (5, places)."""
        column: NDArray[Any] = self._columns[name][..., self._index(places)]
        return column

    def newest(self, rows: Int64s | None, limit: int, *, before: int | None = None) -> Int64s:
        """Return the places of the last ``limit`` events of ``rows``, newest first.

        ``rows`` ``None`` means every series, ``before`` only looks at places below it.
        """
        end = self.next_place if before is None else min(before, self.next_place)
        if rows is None:
            return np.arange(end - 1, max(self.first_place, end - limit) - 1, -1)
        if before is None and len(rows) <= _CHAINS_MAX and limit <= _STEPS_MAX:
            return np.array(list(islice(self._walk(rows), limit)), dtype=np.int64)
        return self._scan(rows, limit, end)

    def _walk(self, rows: Int64s) -> Iterator[int]:
        """Yield the places of ``rows``, newest first, along their chains."""
        previous, capacity, first = self._columns["previous"], self._capacity, self.first_place
        known = rows[rows < len(self._last_of_row)]
        heads = [-place for place in self._last_of_row[known].tolist() if place >= first]
        heapq.heapify(heads)
        while heads:
            place = -heads[0]
            yield place
            before = int(previous[place % capacity])
            if before >= first:
                heapq.heapreplace(heads, -before)
            else:
                heapq.heappop(heads)

    def _scan(self, rows: Int64s, limit: int, end: int) -> Int64s:
        """Return the newest places of ``rows`` below ``end``, looking at blocks from the end."""
        found: list[Int64s] = []
        missing = limit
        member = self._member(rows)
        while end > self.first_place and missing > 0:
            begin = max(self.first_place, end - _BLOCK)
            places = np.arange(begin, end)
            hits = places[member[self.column("row", places)]][-missing:]
            found.append(hits[::-1])
            missing -= len(hits)
            end = begin
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def _member(self, rows: Int64s) -> NDArray[np.bool_]:
        member = np.zeros(max(len(self._last_of_row), int(rows.max(initial=0)) + 1), dtype=np.bool_)
        member[rows] = True
        return member

    def covers(self, since_ms: int) -> bool:
        """Tell whether every event with a log time of at least ``since_ms`` is still kept."""
        if self.first_place == 0:
            return True
        return int(self._columns["log_ms"][self.first_place % self._capacity]) < since_ms

    def tokens_since(self, rows: Int64s | None, since_ms: int) -> int:
        """Return the tokens of all four kinds of ``rows`` with a log time of at least ``since_ms``."""
        if rows is not None and len(rows) <= _CHAINS_MAX:
            places = self._walked_since(rows, since_ms)
            if places is not None:
                return self._tokens(places)
        log_ms, capacity = self._columns["log_ms"], self._capacity
        kept = range(self.first_place, self.next_place)
        begin = self.first_place + bisect_left(kept, since_ms, key=lambda place: int(log_ms[place % capacity]))
        member = None if rows is None else self._member(rows)
        total = 0
        for start in range(begin, self.next_place, _BLOCK):
            places = np.arange(start, min(start + _BLOCK, self.next_place))
            total += self._tokens(places if member is None else places[member[self.column("row", places)]])
        return total

    def _walked_since(self, rows: Int64s, since_ms: int) -> Int64s | None:
        """Return the places of ``rows`` since a log time; ``None`` when there are too many to walk."""
        log_ms, capacity = self._columns["log_ms"], self._capacity
        places: list[int] = []
        for place in islice(self._walk(rows), _STEPS_MAX + 1):
            if log_ms[place % capacity] < since_ms:
                return np.array(places, dtype=np.int64)
            places.append(place)
        return np.array(places, dtype=np.int64) if len(places) <= _STEPS_MAX else None

    def _tokens(self, places: Int64s) -> int:
        return int(self._columns["counts"][:4, self._index(places)].sum())

    def renumber(self, new_rows: Int64s) -> None:
        """Take over new row numbers, ``new_rows[old]``, and chain the kept events anew."""
        places = np.arange(self.first_place, self.next_place)
        rows = new_rows[self.column("row", places)]
        self._last_of_row = np.full(0, _NOWHERE, dtype=np.int64)
        self._rewritten += 1
        fresh = {name: np.zeros_like(self._columns[name]) for name in ("row", "previous")}
        self._columns = {**self._columns, **fresh}  # a picture refers to the old ones
        self._chain(places, rows)

    def not_after(self, log_ms: int) -> None:
        """Let no event have come later than ``log_ms``: log time moves back to it."""
        self._rewritten += 1
        self._columns = {**self._columns, "log_ms": np.minimum(self._columns["log_ms"], log_ms)}

    def _chain(self, places: Int64s, rows: Int64s) -> None:
        """Set the rows of the kept events at ``places``, and link them."""
        at = self._index(places)
        self._columns["row"][at] = rows
        if len(places):
            self._columns["previous"][at] = self._link(rows, int(places[0]))

    def capture(self) -> list[Segment]:
        """Return the segments of the kept events, in order."""
        columns, capacity = self._columns, self._capacity
        spans = {block: span for block, *span in numbered(self.first_place, self.next_place, _PLACE_BITS)}

        def copy(block: int) -> Tree:
            at = np.arange(*spans[block]) % capacity
            return {"first": spans[block][0], **{name: columns[name][..., at] for name in _KEPT}}

        picture = self._pictures.take(spans, copy)
        return [
            Segment(
                f"recent/{block}",
                (self._rewritten, *span),
                partial(picture.make, block),
                partial(picture.release, block),
            )
            for block, span in spans.items()
        ]

    def restore(self, trees: Iterable[Tree], next_place: int) -> None:
        """Take over what ``capture`` made, as much of it as is kept here, and the place of the next event."""
        parts = list(trees)
        kept = next_place - parts[0]["first"] if parts else 0
        count = min(kept, self._events_max)
        self.next_place = next_place
        self._begin = next_place - count
        self._make_room(self._events_max if self._begin else count)  # growing would move a place that is not its index
        for part in parts:
            places = np.arange(part["first"], part["first"] + len(part["row"]))
            wanted = places >= self._begin
            at = self._index(places[wanted])
            for name in _KEPT:
                self._columns[name][..., at] = part[name][..., wanted]
        places = np.arange(self._begin, next_place)
        self._chain(places, self.column("row", places))
