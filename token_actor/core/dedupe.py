"""Counting once: what has been seen of every producer, and which message ids are known.

Two independent memories, both part of every snapshot:

* ``ProducerMarks`` knows, per (producer, epoch), every sequence number ever seen, as one contiguous
  high-water mark and a few ranges above it. A duplicate is recognised however late it comes, and a
  hole stays visible as ``missing``.
* ``MessageIds`` knows the ids that callers gave, exactly (no hash may stand for an id), bounded by
  count and by age.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PRODUCER_BYTES: Final = 16
PRODUCERS_MAX: Final = 200_000  # processes remembered; the longest idle one is forgotten first
RANGES_MAX: Final = 1024  # out-of-order ranges per producer; a client has at most a few batches under way
MESSAGE_IDS_MAX: Final = 1_000_000
MESSAGE_ID_AGE_MS_MAX: Final = 35 * 86_400_000  # no event may claim to be older, so no honest resend is

Span = tuple[int, int]  # sequence numbers, half-open


class ProducerMark:
    """Know which sequence numbers of one (producer, epoch) have been seen."""

    __slots__ = ("closed", "next_seq", "ranges")

    def __init__(self, next_seq: int = 0, ranges: Iterable[Span] = (), closed: int = 0) -> None:
        """Start with everything below ``next_seq``, and the ``ranges`` above it, as seen."""
        self.next_seq = next_seq
        self.ranges = list(ranges)
        self.closed = closed

    @property
    def missing(self) -> int:
        """Return how many numbers are holes: below the highest one seen, and not seen."""
        if not self.ranges:
            return self.closed
        seen_above = sum(stop - start for start, stop in self.ranges)
        return self.closed + self.ranges[-1][1] - self.next_seq - seen_above

    def see(self, start: int, stop: int) -> list[Span]:
        """Mark ``start`` to ``stop`` as seen; return the parts that were new, in order."""
        if start == self.next_seq and not self.ranges:  # the everyday case
            self.next_seq = stop
            return [(start, stop)]
        new = self._unseen(start, stop)
        for span in new:
            self._insert(span)
        while self.ranges and (self.ranges[0][0] <= self.next_seq or len(self.ranges) > RANGES_MAX):
            first_start, first_stop = self.ranges.pop(0)
            self.closed += max(0, first_start - self.next_seq)
            self.next_seq = first_stop
        return new

    def _unseen(self, start: int, stop: int) -> list[Span]:
        at = max(start, self.next_seq)
        new: list[Span] = []
        for known_start, known_stop in self.ranges:
            if at >= stop:
                break
            if at < known_start:
                new.append((at, min(stop, known_start)))
            at = max(at, known_stop)
        if at < stop:
            new.append((at, stop))
        return new

    def _insert(self, span: Span) -> None:
        place = bisect_left(self.ranges, span)
        self.ranges.insert(place, span)
        if place + 1 < len(self.ranges) and self.ranges[place][1] == self.ranges[place + 1][0]:
            self.ranges[place : place + 2] = [(self.ranges[place][0], self.ranges[place + 1][1])]
        if place > 0 and self.ranges[place - 1][1] == self.ranges[place][0]:
            self.ranges[place - 1 : place + 1] = [(self.ranges[place - 1][0], self.ranges[place][1])]


class ProducerMarks:
    """Know the sequence numbers of every producer, at most ``PRODUCERS_MAX`` of them.

    ``missing`` is how many events never arrived although later ones of their producer did; a late
    arrival lowers it again.
    """

    def __init__(self, *, producers_max: int = PRODUCERS_MAX) -> None:
        """Start knowing nobody."""
        self.missing = 0
        self._producers_max = producers_max
        self._marks: OrderedDict[tuple[bytes, int], ProducerMark] = OrderedDict()

    def __len__(self) -> int:
        """Return how many (producer, epoch) are known."""
        return len(self._marks)

    def mark(self, producer: bytes, epoch: int) -> ProducerMark:
        """Return what has been seen of a producer; of one that is not known, nothing. Not to be changed."""
        return self._marks.get((producer, epoch)) or ProducerMark()

    def see(self, producer: bytes, epoch: int, start: int, stop: int) -> list[Span]:
        """Mark a span of sequence numbers as seen; return the parts that were new."""
        key = (producer, epoch)
        mark = self._marks.get(key)
        if mark is None:
            mark = self._marks[key] = ProducerMark()
            if len(self._marks) > self._producers_max:
                self._marks.popitem(last=False)
        else:
            self._marks.move_to_end(key)
        missing_before = mark.missing
        new = mark.see(start, stop)
        self.missing += mark.missing - missing_before
        return new

    def dump(self) -> list[Any]:
        """Return the state as plain lists, the longest idle producer first."""
        marks = [[*key, mark.next_seq, list(mark.ranges), mark.closed] for key, mark in self._marks.items()]
        return [self.missing, marks]

    def restore(self, dumped: Sequence[Any]) -> None:
        """Take over what ``dump`` returned."""
        self.missing, marks = dumped
        for producer, epoch, next_seq, ranges, closed in marks:
            spans = [(start, stop) for start, stop in ranges]
            self._marks[(producer, epoch)] = ProducerMark(next_seq, spans, closed)


class MessageIds:
    """Know message ids, with a fingerprint of the numbers that came with each.

    The fingerprint only tells a repetition from a conflict; whether an id is known is decided by
    the id itself.
    """

    def __init__(self, *, ids_max: int = MESSAGE_IDS_MAX, age_ms_max: int = MESSAGE_ID_AGE_MS_MAX) -> None:
        """Start knowing none."""
        self._ids_max = ids_max
        self._age_ms_max = age_ms_max
        self._fingerprint_of: dict[str, int] = {}
        self._order: deque[str | None] = deque()  # oldest first: a big dict cannot give its oldest key cheaply
        self._arrivals: deque[tuple[int, int]] = deque()  # (log_ms, how many of _order came then), oldest first

    def __len__(self) -> int:
        """Return how many ids are known."""
        return len(self._fingerprint_of)

    def __contains__(self, message_id: str) -> bool:
        """Tell whether an id is known."""
        return message_id in self._fingerprint_of

    def see(self, ids: Sequence[str], fingerprints: list[int], log_ms: list[int]) -> tuple[list[int], list[int]]:
        """Mark ``ids`` as known; return the places of the duplicates and of the conflicts among them.

        A place is an index into ``ids``; ``log_ms`` are their log times. The first one of an id wins,
        also within one call. The result never depends on how the log was cut into reads.
        """
        known = self._fingerprint_of
        fresh = dict(zip(ids, fingerprints, strict=True))
        if len(fresh) == len(ids) and known.keys().isdisjoint(fresh):  # the everyday case, all of it in C
            known.update(fresh)
            self._order.extend(ids)
            self._arrivals.extend((ms, len(list(same))) for ms, same in groupby(log_ms))
            self._drop(len(self._order) - self._ids_max)
            self._forget_older_than(log_ms[-1] - self._age_ms_max)
            return [], []
        duplicates: list[int] = []
        conflicts: list[int] = []
        for place, (message_id, fingerprint, ms) in enumerate(zip(ids, fingerprints, log_ms, strict=True)):
            self._forget_older_than(ms - self._age_ms_max)
            first = known.get(message_id)
            if first is None:
                known[message_id] = fingerprint
                self._order.append(message_id)
                self._arrivals.append((ms, 1))
                self._drop(len(self._order) - self._ids_max)
            else:
                (duplicates if first == fingerprint else conflicts).append(place)
        return duplicates, conflicts

    def forget(self, ids: Iterable[str]) -> None:
        """Forget ids, whatever their age. The cost follows the number of ids known."""
        gone = {message_id for message_id in ids if self._fingerprint_of.pop(message_id, None) is not None}
        self._order = deque(None if message_id in gone else message_id for message_id in self._order)

    def _forget_older_than(self, log_ms: int) -> None:
        while self._arrivals and self._arrivals[0][0] < log_ms:
            self._drop(self._arrivals[0][1])

    def _drop(self, count: int) -> None:
        while count > 0:
            arrived_ms, arrived = self._arrivals.popleft()
            dropped = min(arrived, count)
            for _ in range(dropped):
                self._fingerprint_of.pop(self._order.popleft(), None)  # type: ignore[arg-type]
            if dropped < arrived:
                self._arrivals.appendleft((arrived_ms, arrived - dropped))
            count -= dropped

    def dump(self) -> list[Any]:
        """Return the state as plain lists, the oldest id first."""
        order = list(self._order)
        fingerprints = [self._fingerprint_of.get(message_id, 0) for message_id in order]  # type: ignore[arg-type]
        arrivals = [[ms, sum(count for _, count in same)] for ms, same in groupby(self._arrivals, itemgetter(0))]
        return [order, fingerprints, arrivals]

    def restore(self, dumped: Sequence[Any]) -> None:
        """Take over what ``dump`` returned."""
        order, fingerprints, arrivals = dumped
        self._order = deque(order)
        self._fingerprint_of = dict(zip(order, fingerprints, strict=True))
        self._fingerprint_of.pop(None, None)  # type: ignore[call-overload]
        self._arrivals = deque((log_ms, count) for log_ms, count in arrivals)
