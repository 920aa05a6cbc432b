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
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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
WAITING_MAX: Final = 32_768  # events; folding them takes a few milliseconds, which no caller notices
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
    return ordered[starts], np.add.reduceat(values[:, order], starts, axis=1)


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

    def advance(self, log_ms: int) -> None:
        """Take note of the log time, which decides what is too old to be kept."""
        self._log_ms = log_ms

    def add(self, rows: Int64s, event_ms: Int64s, values: Int64s) -> None:
        """Take events: their rows, times, and ``values`` of shape (SUMS, n); not copied until folded."""
        self._waiting.append((rows, event_ms, values))
        self._waiting_events += len(rows)
        if self._waiting_events >= WAITING_MAX:
            self.fold()

    def fold(self) -> None:
        """Bring everything that waits into the frames, and drop the frames that are too old."""
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
                self._merge(resolution, starts, rows, sums)
        self._expire()

    def _merge(self, resolution: str, starts: Int64s, rows: Int64s, sums: Int64s) -> None:
        frames = self._frames[resolution]
        late = int(np.searchsorted(starts, self.oldest_kept(resolution) // RESOLUTIONS_MS[resolution]))
        if late:
            self._dropped[resolution] += sums[:, :late].sum(axis=1)
            starts, rows, sums = starts[late:], rows[late:], sums[:, late:]
        changes = np.flatnonzero(starts[1:] != starts[:-1]) + 1
        edges = [0, *changes.tolist(), len(starts)] if len(starts) else []
        for begin, end in pairwise(edges):
            parts = frames.setdefault(int(starts[begin]), [])
            parts.append(Frame(rows[begin:end], sums[:, begin:end]))
            while len(parts) > 1 and len(parts[-2].rows) <= 2 * len(parts[-1].rows):
                parts[-2:] = [merged(parts[-2:])]

    def _expire(self) -> None:
        for resolution, width_ms in RESOLUTIONS_MS.items():
            oldest = self.oldest_kept(resolution)
            if oldest == self._expired_ms[resolution]:
                continue
            self._expired_ms[resolution] = oldest
            frames = self._frames[resolution]
            for start in [start for start in frames if start * width_ms < oldest]:
                self._dropped[resolution] += merged(frames.pop(start)).sums.sum(axis=1)

    def oldest_kept(self, resolution: str) -> int:
        """Return the time in ms from which on a resolution is complete."""
        width_ms = RESOLUTIONS_MS[resolution]
        return (self._log_ms - self._retention_ms[resolution]) // width_ms * width_ms

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
        for frames in self._frames.values():
            for parts in frames.values():
                parts[:] = [Frame(*summed_by(new_rows[part.rows], part.sums)) for part in parts]

    def dump(self) -> dict[str, Any]:
        """Return the state: per resolution the starts, lengths, rows and sums of its frames, and ``dropped``."""
        self.fold()
        state: dict[str, Any] = {"log_ms": self._log_ms}
        for resolution, frames in self._frames.items():
            starts = sorted(frames)
            parts = [self._whole(frames[start]) for start in starts] or [_NOTHING]
            state[resolution] = {
                "starts": np.array(starts, dtype=np.int64),
                "lengths": np.array([len(part.rows) for part in parts[: len(starts)]], dtype=np.int64),
                "rows": np.concatenate([part.rows for part in parts]),
                "sums": np.concatenate([part.sums for part in parts], axis=1),
                "dropped": self._dropped[resolution].copy(),
            }
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what ``dump`` returned."""
        self._log_ms = state["log_ms"]
        for resolution, frames in self._frames.items():
            part = state[resolution]
            edges = np.concatenate(([0], np.cumsum(part["lengths"])))
            for place, start in enumerate(part["starts"]):
                span = slice(int(edges[place]), int(edges[place + 1]))
                frames[int(start)] = [Frame(part["rows"][span], part["sums"][:, span])]
            self._dropped[resolution] = part["dropped"].copy()


def merged(frames: Sequence[Frame]) -> Frame:
    """Return one frame with the sums of all ``frames``."""
    if len(frames) <= 1:
        return frames[0] if frames else _NOTHING
    rows = np.concatenate([frame.rows for frame in frames])
    return Frame(*summed_by(rows, np.concatenate([frame.sums for frame in frames], axis=1)))
