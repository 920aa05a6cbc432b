"""Frames: what every series used per minute, hour and day.

A frame is sparse: the rows that were active in it, sorted, and their sums. New events first wait
in a list; ``fold`` groups everything that waits with one sort and merges it into the frames, first
by minute, then the minutes into hours, then the hours into days. Every frame is a short list of
parts, each more than twice as large as the next, so that a large frame is not rewritten for a few
late events. An event costs its share of a few sorts, an answer costs the frames it covers, and a
late event is no special case.

What ages out of a resolution is added to that resolution's ``dropped`` sums, so the books of every
resolution always balance: frames + dropped = totals of the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from token_actor.core.blocks import Segment, Tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from token_actor.core.columns import Int64s

SUMS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "requests",
    "cost_nanousd",
    "unpriced",  # requests without a cost: a sum of money means little without their number
)
RESOLUTIONS_MS: Final = {"minute": 60_000, "hour": 3_600_000, "day": 86_400_000}
RETENTION_MS: Final = {"minute": 24 * 3_600_000, "hour": 60 * 86_400_000, "day": 5 * 366 * 86_400_000}
WAITING_MAX: Final = 16_384  # events; folding them takes a few milliseconds, which no caller notices
_STARTS_OF_SEGMENT: Final = {"minute": 10, "hour": 24, "day": 32}  # ten minutes, a day, a month of a snapshot
_ROWS_AT_ONCE: Final = 16_384  # rows of one frame merged in one go for a snapshot: about a mebibyte
_ROW_BITS: Final = 24  # more than rows_max, so (start, row) packs into one int64


@dataclass(frozen=True, slots=True)
class Frame:
    """Hold the sums of one span of time: ``rows`` sorted, ``sums`` of shape (SUMS, rows)."""

    rows: Int64s
    sums: Int64s


_NOTHING: Final = Frame(np.empty(0, dtype=np.int64), np.zeros((len(SUMS), 0), dtype=np.int64))


def summed_by(groups: Int64s, values: Int64s) -> tuple[Int64s, Int64s]:
    """Return the distinct ``groups``, sorted, and the sums of the last axis of ``values`` by group."""
    if len(groups) == 0:
        return groups, values
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    return ordered[starts], np.add.reduceat(np.take(values, order, axis=1), starts, axis=1)


class FrameSet:
    """Keep the frames of all resolutions."""

    def __init__(self, *, retention_ms: Mapping[str, int] = RETENTION_MS) -> None:
        """Start empty."""
        self._retention_ms = dict(retention_ms)
        self._frames: dict[str, dict[int, list[Frame]]] = {resolution: {} for resolution in RESOLUTIONS_MS}
        self._expired_ms: dict[str, int] = dict.fromkeys(RESOLUTIONS_MS, 0)
        self._dropped: dict[str, Int64s] = {r: np.zeros(len(SUMS), dtype=np.int64) for r in RESOLUTIONS_MS}
        self._waiting: list[tuple[Int64s, Int64s, Int64s]] = []
        self._waiting_events = 0
        self._log_ms = 0
        self._changes = 0
        # per resolution and segment of a snapshot the number of its last change
        self._changed: dict[str, dict[int, int]] = {resolution: {} for resolution in RESOLUTIONS_MS}

    def advance(self, log_ms: int) -> None:
        """Take note of the log time, which decides what is too old to be kept.

        Where it moves back, what was too old is dropped first, as if every event had been folded at once.
        """
        if log_ms < self._log_ms:
            self.fold()
        self._log_ms = log_ms

    def add(self, rows: Int64s, event_ms: Int64s, values: Int64s) -> None:
        """Take events: their rows, times, and ``values`` of shape (SUMS, n); not copied until folded."""
        self._waiting.append((rows, event_ms, values))
        self._waiting_events += len(rows)
        if self._waiting_events >= WAITING_MAX:
            self.fold()

    def fold(self, *, merging: bool = True) -> None:
        """Bring everything that waits into the frames, and drop the frames that are too old.

        Without ``merging``, parts that should become one wait for that until the next time.
        """
        self._changes += 1
        if self._waiting:
            rows = np.concatenate([part[0] for part in self._waiting])
            times = np.concatenate([part[1] for part in self._waiting])
            sums = np.concatenate([part[2] for part in self._waiting], axis=1)
            self._waiting.clear()
            self._waiting_events = 0
            for resolution, width_ms in RESOLUTIONS_MS.items():
                packed, sums = summed_by((times // width_ms) << _ROW_BITS | rows, sums)
                starts, rows = packed >> _ROW_BITS, packed & ((1 << _ROW_BITS) - 1)
                times = starts * width_ms
                self._take(resolution, starts, rows, sums, merging=merging)
        self._expire()

    def _take(self, resolution: str, starts: Int64s, rows: Int64s, sums: Int64s, *, merging: bool) -> None:
        frames = self._frames[resolution]
        late = int(np.searchsorted(starts, self.oldest_kept(resolution) // RESOLUTIONS_MS[resolution]))
        if late:
            self._dropped[resolution] += sums[:, :late].sum(axis=1)
            starts, rows, sums = starts[late:], rows[late:], sums[:, late:]
        changes = np.flatnonzero(starts[1:] != starts[:-1]) + 1
        edges = [0, *changes.tolist(), len(starts)] if len(starts) else []
        for begin, end in pairwise(edges):
            start = int(starts[begin])
            self._note_change(resolution, start)
            parts = frames.setdefault(start, [])
            parts.append(Frame(rows[begin:end], sums[:, begin:end]))
            if merging:
                _merge_end(parts)

    def _expire(self) -> None:
        for resolution, width_ms in RESOLUTIONS_MS.items():
            oldest = self.oldest_kept(resolution)
            if oldest == self._expired_ms[resolution]:
                continue
            self._expired_ms[resolution] = oldest
            frames = self._frames[resolution]
            for start in [start for start in frames if start * width_ms < oldest]:
                self._dropped[resolution] += merged(frames.pop(start)).sums.sum(axis=1)
                self._note_change(resolution, start)

    def oldest_kept(self, resolution: str) -> int:
        """Return the time in ms from which on a resolution is complete; it never moves back."""
        width_ms = RESOLUTIONS_MS[resolution]
        oldest_ms = (self._log_ms - self._retention_ms[resolution]) // width_ms * width_ms
        return max(oldest_ms, self._expired_ms[resolution])

    def between(self, resolution: str, since_ms: int, until_ms: int) -> Iterator[tuple[int, Frame]]:
        """Yield (start in ms, frame) of a resolution in [since, until), oldest first."""
        self.fold()
        width_ms = RESOLUTIONS_MS[resolution]
        frames = self._frames[resolution]
        for start in sorted(s for s in frames if since_ms <= s * width_ms < until_ms):
            yield start * width_ms, self._whole(frames[start])

    def _whole(self, parts: list[Frame]) -> Frame:
        """Return one frame of all ``parts``, and keep it so."""
        parts[:] = [merged(parts)]
        return parts[0]

    def total(self, since_ms: int, until_ms: int) -> Frame:
        """Return the sums per row over [since, until), both on minute boundaries.

        Days and hours are used where they fit whole, minutes at the edges.
        """
        parts: list[Frame] = []
        spans = [(since_ms, until_ms)]
        for resolution in reversed(RESOLUTIONS_MS):
            width_ms = RESOLUTIONS_MS[resolution]
            rest: list[tuple[int, int]] = []
            for since, until in spans:
                first, last = -(-since // width_ms) * width_ms, until // width_ms * width_ms
                if first < last:
                    parts.extend(frame for _, frame in self.between(resolution, first, last))
                    rest += [(since, first), (last, until)]
                else:
                    rest.append((since, until))
            spans = [span for span in rest if span[0] < span[1]]
        return merged(parts)

    def books(self) -> dict[str, Int64s]:
        """Return the sums over all time of each resolution, with what was dropped: all equal."""
        self.fold()
        return {
            resolution: sum((part.sums.sum(axis=1) for parts in frames.values() for part in parts), dropped)
            for (resolution, frames), dropped in zip(self._frames.items(), self._dropped.values(), strict=True)
        }

    def renumber(self, new_rows: Int64s) -> None:
        """Take over new row numbers, ``new_rows[old]``; rows may have become one."""
        self.fold()
        for resolution, frames in self._frames.items():
            for start, parts in frames.items():
                parts[:] = [Frame(*summed_by(new_rows[part.rows], part.sums)) for part in parts]
                self._note_change(resolution, start)

    def _note_change(self, resolution: str, start: int) -> None:
        self._changed[resolution][start // _STARTS_OF_SEGMENT[resolution]] = self._changes

    def capture(self) -> list[Segment]:
        """Return the segments of all frames, each of the frames of ten minutes, a day or a month."""
        self.fold(merging=False)  # a large frame may take longer to merge than the rest of a snapshot's first step
        segments = []
        for resolution, frames in self._frames.items():
            changed, width = self._changed[resolution], _STARTS_OF_SEGMENT[resolution]
            for group, starts in groupby(sorted(frames), partial(_whole_times, width)):
                parts = [(start, tuple(frames[start])) for start in starts]
                segments.append(Segment(f"frames/{resolution}/{group}", changed.get(group, 0), partial(_trees, parts)))
        return segments

    def rest(self) -> Tree:
        """Return what is no frame: the log time, and what was dropped of each resolution, up to when."""
        return {
            "log_ms": self._log_ms,
            "expired_ms": list(self._expired_ms.values()),
            "dropped": [self._dropped[resolution].copy() for resolution in RESOLUTIONS_MS],
        }

    def restore(self, trees: Mapping[str, Iterable[Tree]], rest: Tree) -> None:
        """Take over what ``capture`` made, by resolution, and ``rest`` returned."""
        self._log_ms = rest["log_ms"]
        self._expired_ms = dict(zip(RESOLUTIONS_MS, rest["expired_ms"], strict=True))
        for resolution, dropped in zip(RESOLUTIONS_MS, rest["dropped"], strict=True):
            self._dropped[resolution] = dropped.copy()
            frames = self._frames[resolution]
            for tree in trees.get(resolution, ()):
                edges = [0, *np.cumsum(tree["lengths"]).tolist()]
                for start, (begin, end) in zip(tree["starts"].tolist(), pairwise(edges), strict=True):
                    part = Frame(tree["rows"][begin:end], tree["sums"][:, begin:end])
                    frames[start] = [merged([*frames.get(start, ()), part])]


def _whole_times(width: int, start: int) -> int:
    return start // width


def _trees(frames: Iterable[tuple[int, Sequence[Frame]]]) -> Iterator[Tree]:
    """Yield (start, parts) as trees that depend on the sums alone, not on how they lie in parts."""
    pieces: list[tuple[int, Frame]] = []
    rows = 0
    for start, parts in frames:
        for piece in _pieces(parts):
            pieces.append((start, piece))
            rows += len(piece.rows)
            if rows >= _ROWS_AT_ONCE:
                yield _tree(pieces)
                pieces, rows = [], 0
    if pieces:
        yield _tree(pieces)


def _pieces(parts: Sequence[Frame]) -> Iterator[Frame]:
    """Yield the one frame that ``parts`` are, some of its rows after the others."""
    for low in range(0, max(int(part.rows[-1]) for part in parts) + 1, _ROWS_AT_ONCE):
        edges = [np.searchsorted(part.rows, (low, low + _ROWS_AT_ONCE)).tolist() for part in parts]
        pieces = [
            Frame(part.rows[begin:end], part.sums[:, begin:end])
            for part, (begin, end) in zip(parts, edges, strict=True)
            if begin < end
        ]
        if pieces:
            yield merged(pieces)


def _tree(pieces: Sequence[tuple[int, Frame]]) -> Tree:
    return {
        "starts": np.array([start for start, _ in pieces], dtype=np.int64),
        "lengths": np.array([len(piece.rows) for _, piece in pieces], dtype=np.int64),
        "rows": np.concatenate([piece.rows for _, piece in pieces]),
        "sums": np.concatenate([piece.sums for _, piece in pieces], axis=1),
    }


def _merge_end(parts: list[Frame]) -> None:
    """Merge so many of the last parts, at once, that each part is more than twice as large as the next."""
    rows, count = len(parts[-1].rows), 1
    while count < len(parts) and len(parts[-count - 1].rows) <= 2 * rows:
        count += 1
        rows += len(parts[-count].rows)
    parts[-count:] = [merged(parts[-count:])]


def merged(frames: Sequence[Frame]) -> Frame:
    """Return one frame with the sums of all ``frames``."""
    if len(frames) <= 1:
        return frames[0] if frames else _NOTHING
    rows = np.concatenate([frame.rows for frame in frames])
    order = np.argsort(rows, kind="stable")  # fast: the rows of each frame are sorted already
    ordered = rows[order]
    first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    place = np.empty(len(rows), dtype=np.int64)
    place[order] = np.cumsum(first) - 1
    distinct = ordered[first]
    sums = np.zeros((len(SUMS), len(distinct)), dtype=np.int64)
    begin = 0
    for frame in frames:
        places = place[begin : begin + len(frame.rows)]
        begin += len(frame.rows)
        for target, values in zip(sums, frame.sums, strict=True):
            target[places] += values  # the rows of a frame are distinct
    return Frame(distinct, sums)
