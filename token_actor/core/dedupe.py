"""Counting once: which sequence numbers have been seen of every producer.

``ProducerMarks`` knows, per (producer, epoch), every sequence number ever seen, as one contiguous
high-water mark and a few ranges above it. A duplicate is recognised however late it comes, and a
hole stays visible as ``missing``.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from token_actor.core.blocks import Oldest, Segment, Tree, numbered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PRODUCER_BYTES: Final = 16
PRODUCERS_MAX: Final = 200_000  # processes remembered; the longest idle one is forgotten first
RANGES_MAX: Final = 1024  # out-of-order ranges per producer; a client has at most a few batches under way
_MARK_BITS: Final = 13  # 8192 marks are one segment of a snapshot

Span: TypeAlias = tuple[int, int]  # sequence numbers, half-open
ProducerKey: TypeAlias = tuple[bytes, int]  # producer, epoch


class ProducerMark(NamedTuple):
    """Know which sequence numbers of one (producer, epoch) have been seen.

    Those are everything below ``next_seq``, and the ``ranges`` above it. ``closed`` counts the holes
    that were given up. It never changes: what is seen makes a new mark, so a picture of all marks is
    a copy of the dict.
    """

    next_seq: int = 0
    ranges: tuple[Span, ...] = ()
    closed: int = 0

    @property
    def missing(self) -> int:
        """Return how many numbers are holes: below the highest one seen, and not seen."""
        if not self.ranges:
            return self.closed
        seen_above = sum(stop - start for start, stop in self.ranges)
        return self.closed + self.ranges[-1][1] - self.next_seq - seen_above

    def see(self, start: int, stop: int) -> tuple[ProducerMark, list[Span]]:
        """Return the mark with ``start`` to ``stop`` seen too, and the parts of it that were new, in order.

        The mark is another object even when nothing was new.
        """
        new = self._unseen(start, stop)
        ranges = list(self.ranges)
        for span in new:
            _insert(ranges, span)
        next_seq, closed = self.next_seq, self.closed
        while ranges and (ranges[0][0] <= next_seq or len(ranges) > RANGES_MAX):
            first_start, first_stop = ranges.pop(0)
            closed += max(0, first_start - next_seq)
            next_seq = first_stop
        return ProducerMark(next_seq, tuple(ranges), closed), new

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


def _insert(ranges: list[Span], span: Span) -> None:
    place = bisect_left(ranges, span)
    ranges.insert(place, span)
    if place + 1 < len(ranges) and ranges[place][1] == ranges[place + 1][0]:
        ranges[place : place + 2] = [(ranges[place][0], ranges[place + 1][1])]
    if place > 0 and ranges[place - 1][1] == ranges[place][0]:
        ranges[place - 1 : place + 1] = [(ranges[place - 1][0], ranges[place][1])]


class ProducerMarks:
    """Know the sequence numbers of every producer, at most ``PRODUCERS_MAX`` of them.

    ``missing`` is how many events never arrived although later ones of their producer did; a late
    arrival lowers it again.
    """

    def __init__(self, *, producers_max: int = PRODUCERS_MAX) -> None:
        """Start knowing nobody."""
        self.missing = 0
        self._producers_max = producers_max
        self._changes = 0
        self._marks: dict[ProducerKey, ProducerMark] = {}  # the longest idle first
        self._oldest = Oldest(self._marks)

    def __len__(self) -> int:
        """Return how many (producer, epoch) are known."""
        return len(self._marks)

    def mark(self, producer: bytes, epoch: int) -> ProducerMark:
        """Return what has been seen of a producer; of one that is not known, nothing. Not to be changed."""
        return self._marks.get((producer, epoch)) or ProducerMark()

    def see(self, producer: bytes, epoch: int, start: int, stop: int) -> list[Span]:
        """Mark a span of sequence numbers as seen; return the parts that were new."""
        key = (producer, epoch)
        mark = self._marks.pop(key, UNKNOWN)
        self._changes += 1
        if start == mark.next_seq and not mark.ranges:  # the everyday case
            self._marks[key] = ProducerMark(stop, (), mark.closed)
            new = [(start, stop)]
        else:
            self._marks[key], new = mark.see(start, stop)
            self.missing += self._marks[key].missing - mark.missing
        if len(self._marks) > self._producers_max:
            self._oldest.drop()
        return new

    def capture(self) -> tuple[list[Segment], Mapping[ProducerKey, ProducerMark]]:
        """Return the segments of the marks, the longest idle first, and the marks as they are now."""
        marks = self._marks.copy()
        return [
            Segment(f"producers/{block}", self._changes, partial(_listed, marks, start, stop))
            for block, start, stop in numbered(0, len(marks), _MARK_BITS)
        ], marks

    def restore(self, trees: Iterable[Tree], missing: int) -> None:
        """Take over what ``capture`` made, and how many were ``missing``."""
        self.missing = missing
        for tree in trees:
            for producer, epoch, next_seq, ranges, closed in tree["marks"]:
                spans = tuple((start, stop) for start, stop in ranges)
                self._marks[(producer, epoch)] = ProducerMark(next_seq, spans, closed)


UNKNOWN: Final = ProducerMark()


def _listed(marks: Mapping[ProducerKey, ProducerMark], start: int, stop: int) -> Iterator[Tree]:
    yield {"marks": [[*key, *mark] for key, mark in islice(marks.items(), start, stop)]}
