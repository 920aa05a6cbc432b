"""The ledger: everything that can be asked, as a pure function of the log.

``apply`` takes one whole read as columns and does everything in a few passes:

    resolve the series → drop what was counted before → add to counters, frames and recent

The order matters: a sequence number is marked as seen even when its event cannot be counted, so no
false hole appears; an event that was seen before is never rejected a second time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from token_actor.core.admission import Admission
from token_actor.core.answers import Answers
from token_actor.core.columns import Bools, Columns, Int64s, Rejection, Run, grown
from token_actor.core.dedupe import PRODUCERS_MAX, ProducerMarks
from token_actor.core.estimates import RecentRequests
from token_actor.core.folding import FOLD_ABOVE, FOLD_DOWN_TO, fold_idle_sessions
from token_actor.core.frames import RETENTION_MS, SUMS, FrameSet
from token_actor.core.limit_table import LimitTable
from token_actor.core.logtime import LogTime
from token_actor.core.message_ids import MESSAGE_IDS_MAX, MessageIds
from token_actor.core.recent import EVENTS_MAX, RecentEvents
from token_actor.core.reservations import Reservations
from token_actor.core.rows import RowBlocks
from token_actor.core.series import NAMES_MAX, ROWS_MAX, SeriesTable
from token_actor.core.setback import set_back
from token_actor.core.usage import CLAMPED, COUNTS, EXACTNESS, EXACTNESS_MASK, INCONSISTENT, SEPARATOR, UNPRICED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from token_actor.errors import InvalidValue

FLAG_COUNTS: Final = ("estimated", "lower_bound", "aborted", "clamped", "inconsistent")
COUNTERS: Final = (*SUMS, *FLAG_COUNTS, "duplicates")  # one int64 per series each
ROW_ARRAYS: Final = ("counters", "first_ms", "last_ms", "peak_tokens")  # whoever changes one tells ``row_blocks``
_DUPLICATES: Final = COUNTERS.index("duplicates")

PAST_MS_MAX: Final = 35 * 86_400_000  # an event may claim to be this much older than its log entry
FUTURE_MS_MAX: Final = 5 * 60_000  # or this much younger: clocks of hosts differ
_FIRST_CAPACITY: Final = 1024
_HOUR_MS: Final = 3_600_000
_MIX: Final = np.int64(0x9E3779B97F4A7C15 - (1 << 64))  # 2^64 / golden ratio: spreads small numbers over 64 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Hold every bound of a ledger; what happens at each is said where it is enforced."""

    rows_max: int = ROWS_MAX
    names_max: Mapping[str, int] = field(default_factory=lambda: NAMES_MAX)
    producers_max: int = PRODUCERS_MAX
    message_ids_max: int = MESSAGE_IDS_MAX
    recent_events_max: int = EVENTS_MAX
    retention_ms: Mapping[str, int] = field(default_factory=lambda: RETENTION_MS)


@dataclass(frozen=True, slots=True)
class Baseline:
    """Hold what a session had counted when it was reset: the next place, its time, and its sums."""

    place: int
    log_ms: int
    sums: tuple[int, ...]


class Ledger:
    """Own the state of one partition.

    ``counters`` has shape (COUNTERS, rows). Per row, ``first_ms`` and ``last_ms`` are the log times
    of its first and last event, ``peak_tokens`` the input + output of its largest request.
    ``dead`` counts what was rejected, by reason. ``resets`` are the baselines of sessions by (tenant,
    session), ``answers`` those given to commands by (client, request id). ``log_ms`` is the log
    time, kept by ``time``. ``row_blocks`` knows which of the rows changed. Estimates come from ``requests``.
    """

    def __init__(self, bounds: Bounds | None = None) -> None:
        """Start empty."""
        bounds = bounds or Bounds()
        self._rows_max = bounds.rows_max
        self.series = SeriesTable(rows_max=bounds.rows_max, names_max=bounds.names_max)
        self.producers = ProducerMarks(producers_max=bounds.producers_max)
        self.message_ids = MessageIds(ids_max=bounds.message_ids_max)
        self.frames = FrameSet(retention_ms=bounds.retention_ms)
        self.recent = RecentEvents(events_max=bounds.recent_events_max)
        self.counters: Int64s = np.zeros((len(COUNTERS), _FIRST_CAPACITY), dtype=np.int64)
        self.first_ms: Int64s = np.zeros(_FIRST_CAPACITY, dtype=np.int64)
        self.last_ms: Int64s = np.zeros(_FIRST_CAPACITY, dtype=np.int64)
        self.peak_tokens: Int64s = np.zeros(_FIRST_CAPACITY, dtype=np.int64)
        self.row_blocks = RowBlocks()
        self.requests = RecentRequests(self.series)
        self.limits = LimitTable()
        self.reservations = Reservations(self.limits)
        self.admission = Admission(self.reservations)
        self.dead: dict[str, int] = {}
        self.resets: dict[tuple[str, str], Baseline] = {}
        self.answers = Answers()
        self.time = LogTime()
        self.log_ms = 0

    def apply(self, columns: Columns) -> list[Rejection]:
        """Count the events of one read, at least one; return what of them cannot be counted."""
        columns = self._dated(columns)
        rejections: list[Rejection] = []
        while (begins := self._new_hour(columns)) < len(columns):
            before, columns = columns.split(begins)
            if begins:
                rejections += self._apply(before)
            self.limits.watch.at(int(columns.entry[0]))
            self.advance(int(columns.log_ms[0]))
        return rejections + self._apply(columns)

    def _dated(self, columns: Columns) -> Columns:
        """Return the events with their log times, and their own times within what can be."""
        taken_ms = self.time.corrected(columns.log_ms)
        claimed_ms = columns.event_ms
        if taken_ms is not columns.log_ms:  # what names no time of its own was given that of its id
            claimed_ms = np.where(claimed_ms == columns.log_ms, taken_ms, claimed_ms)
        event_ms = np.minimum(np.maximum(claimed_ms, taken_ms - PAST_MS_MAX), taken_ms + FUTURE_MS_MAX)
        flags = columns.flags | (event_ms != claimed_ms) * np.uint8(CLAMPED)
        return replace(columns, log_ms=self.time.read(columns.log_ms), event_ms=event_ms, flags=flags)

    def _new_hour(self, columns: Columns) -> int:
        """Return the first event in a new hour of the log, if idle sessions may have to be folded before it."""
        if len(self.series) + len(columns.keys) <= self._rows_max * FOLD_ABOVE:
            return len(columns)
        hours = columns.log_ms // _HOUR_MS
        return int(np.searchsorted(hours, self.log_ms // _HOUR_MS, side="right"))

    def _apply(self, columns: Columns) -> list[Rejection]:
        rows, problems = self._resolve(columns)
        seen = self._seen_by_sequence(columns)
        rejections = [
            columns.rejection(event, problem.reason, str(problem))
            for event, problem in sorted(problems.items())
            if seen is None or not seen[event]
        ]
        countable = _all_but(len(columns), problems, seen)
        if columns.message_ids is not None:
            known, conflicts = self._seen_by_id(columns, countable)
            rejections += [columns.rejection(e, "id_conflict", _conflict(columns, e)) for e in conflicts]
            if known or conflicts:
                seen = _marked(len(columns), seen, known)
                countable = _all_but(len(columns), [*problems, *conflicts], seen)
        if seen is not None:
            seen[list(problems)] = False  # what could not be counted the first time is no duplicate now
            if seen.any():
                self.row_blocks.change(rows[seen])
                np.add.at(self.counters[_DUPLICATES], rows[seen], 1)
        self._count(columns, rows, countable)
        self.reject(rejections)
        return rejections

    def _resolve(self, columns: Columns) -> tuple[Int64s, dict[int, InvalidValue]]:
        """Return the row of each event, and everything that is wrong with events; those have the row -1.

        A key that only wrong events have gets no row: nobody can fill the table with what is not counted.
        """
        problems = dict(columns.problems)
        used = np.arange(len(columns.keys))
        if problems:
            used = np.unique(np.delete(columns.key_index, list(problems)))
        row_of_key = np.full(len(columns.keys), -1, dtype=np.int64)
        row_of_key[used], bad_keys = self.series.resolve([columns.keys[key] for key in used.tolist()])
        self._make_room(len(self.series))
        rows: Int64s = row_of_key[columns.key_index]
        rows[list(problems)] = -1
        if bad_keys:
            of_key = {int(used[place]): problem for place, problem in bad_keys.items()}
            for event in np.flatnonzero(rows < 0).tolist():
                problem = of_key.get(int(columns.key_index[event]))
                if problem is not None:
                    problems.setdefault(event, problem)
        return rows, problems

    def tick(self, id_ms: int) -> None:
        """Move on to the log time of an entry whose id says ``id_ms``."""
        self.advance(self.time.move(id_ms))

    def tell(self, id_ms: int, now_ms: int, epoch: int) -> None:
        """Take what the leader of ``epoch`` says the time is, in an entry whose id says ``id_ms``."""
        if self.time.tell(id_ms, now_ms, epoch):
            set_back(self)
        else:
            self.advance(self.time.now_ms)

    def advance(self, log_ms: int) -> None:
        """Move the log time forward to ``log_ms``; here it never moves back.

        Where it enters a new hour, idle sessions are folded if the rows might run out.
        """
        if log_ms // _HOUR_MS > self.log_ms // _HOUR_MS and len(self.series) > self._rows_max * FOLD_ABOVE:
            fold_idle_sessions(self, int(self._rows_max * FOLD_DOWN_TO))
        self.log_ms = max(self.log_ms, log_ms)
        self.admission.advance(self.log_ms)
        self.frames.advance(self.log_ms)

    def reject(self, rejections: Iterable[Rejection]) -> None:
        """Count what cannot be applied, by reason."""
        for rejection in rejections:
            self.dead[rejection.reason] = self.dead.get(rejection.reason, 0) + 1

    def refuse(self, numbers: Run, rejection: Rejection) -> list[Rejection]:
        """Mark the numbers of a batch that cannot be read as seen; return its rejection the first time."""
        stop = numbers.first_seq + numbers.stop - numbers.start
        new = self.producers.see(numbers.producer, numbers.epoch, numbers.first_seq, stop)
        rejections = [rejection] if new else []
        self.reject(rejections)
        return rejections

    def _make_room(self, rows: int) -> None:
        if rows > self.counters.shape[1]:
            capacity = max(rows, 2 * self.counters.shape[1])
            for name in ROW_ARRAYS:
                setattr(self, name, grown(getattr(self, name), capacity))

    def _seen_by_sequence(self, columns: Columns) -> Bools | None:
        """Return which events were seen before by their sequence number; ``None`` for none of them."""
        seen: Bools | None = None
        for run in columns.runs:
            count = run.stop - run.start
            new = self.producers.see(run.producer, run.epoch, run.first_seq, run.first_seq + count)
            if new == [(run.first_seq, run.first_seq + count)]:
                continue
            if seen is None:
                seen = np.zeros(len(columns), dtype=np.bool_)
            seen[run.start : run.stop] = True
            for start, stop in new:
                offset = run.start - run.first_seq
                seen[start + offset : stop + offset] = False
        return seen

    def _seen_by_id(self, columns: Columns, countable: Int64s | None) -> tuple[list[int], list[int]]:
        """Return the events whose message id is known: with the same numbers, and with others."""
        assert columns.message_ids is not None
        with_id = np.flatnonzero(columns.message_ids != None)  # noqa: E711 - element by element
        if countable is not None:
            with_id = np.intersect1d(with_id, countable, assume_unique=True)
        if len(with_id) == 0:
            return [], []
        prints = np.zeros(len(with_id), dtype=np.int64)
        for count in columns.counts[:, with_id]:
            prints = (prints + count) * _MIX
        ids = _scoped(columns, with_id)
        known, conflicts = self.message_ids.see(ids, prints, columns.log_ms[with_id])
        return with_id[known].tolist(), with_id[conflicts].tolist()

    def _count(self, columns: Columns, rows: Int64s, countable: Int64s | None) -> None:
        """Add the countable events (indices; ``None`` means all) to counters, frames and recent."""
        log_ms = columns.log_ms
        self.admission.count(self.series, columns, rows, log_ms, countable)
        self.advance(int(log_ms[-1]))
        picked: Int64s | slice = slice(None) if countable is None else countable
        rows = rows[picked]
        if len(rows) == 0:
            return
        self.row_blocks.change(rows)
        log_ms = log_ms[picked]
        counts = columns.counts[:, picked]
        event_ms = columns.event_ms[picked]
        flags = columns.flags[picked] | (counts[4] > counts[1]) * np.uint8(INCONSISTENT)
        cost = columns.cost[picked]
        ones = np.ones(len(rows), dtype=np.int64)
        values = np.concatenate((counts, [ones, cost, (flags & UNPRICED) // UNPRICED]))
        for counter in np.flatnonzero(values.any(axis=1)).tolist():
            np.add.at(self.counters[counter], rows, values[counter])
        self._count_flags(rows, flags)
        self._note_times(rows, log_ms, counts)
        self.frames.add(rows, event_ms, values)
        self.requests.add(rows, counts, cost)
        self.recent.append(
            rows,
            {
                "event_ms": event_ms,
                "log_ms": log_ms,
                "cost": cost,
                "flags": flags,
                "counts": counts,
                "message_id": None if columns.message_ids is None else columns.message_ids[picked],
                "tags": None if columns.tags is None else columns.tags[picked],
            },
        )

    def _count_flags(self, rows: Int64s, flags: Any) -> None:  # noqa: ANN401 - uint8 column
        if not (flags & ~np.uint8(UNPRICED)).any():
            return
        exactness = flags & EXACTNESS_MASK
        raised = [exactness == index for index in range(1, len(EXACTNESS))]
        raised += [flags & flag != 0 for flag in (CLAMPED, INCONSISTENT)]
        for counter, mask in zip(self.counters[len(SUMS) :], raised, strict=False):
            if mask.any():
                np.add.at(counter, rows[mask], 1)

    def _note_times(self, rows: Int64s, log_ms: Int64s, counts: Int64s) -> None:
        new = self.last_ms[rows] == 0
        if new.any():
            self.first_ms[rows[new][::-1]] = log_ms[new][::-1]  # the last assignment wins: the first event's
        self.last_ms[rows] = log_ms
        np.maximum.at(self.peak_tokens, rows, counts[0] + counts[1])

    def total(self, rows: Int64s | None = None) -> dict[str, int]:
        """Return the sum of every counter over ``rows``; ``None`` means all."""
        span: Int64s | slice = slice(0, len(self.series)) if rows is None else rows
        return dict(zip(COUNTERS, self.counters[:, span].sum(axis=1).tolist(), strict=True))


def scoped_id(tenant: str, message_id: str) -> str:
    """Return an id as it is remembered: with the tenant that sent it, so no tenant can take another's."""
    return tenant + SEPARATOR + message_id


def _scoped(columns: Columns, events: Int64s) -> list[str]:
    """Return the ids of events as they are remembered; the tenant is the one that was sent."""
    assert columns.message_ids is not None
    ids = columns.message_ids[events].tolist()
    tenants = [key.partition(SEPARATOR)[0] for key in columns.keys]
    if len(set(tenants)) == 1:
        scope = scoped_id(tenants[0], "")
        return [scope + message_id for message_id in ids]
    pairs = zip(columns.key_index[events].tolist(), ids, strict=True)
    return [scoped_id(tenants[key], message_id) for key, message_id in pairs]


def _all_but(count: int, without: Iterable[int], seen: Bools | None) -> Int64s | None:
    """Return the indices below ``count`` that are neither ``without`` nor ``seen``; ``None`` for all."""
    without = list(without)
    if not without and seen is None:
        return None
    left = np.ones(count, dtype=np.bool_) if seen is None else ~seen
    left[without] = False
    return np.flatnonzero(left)


def _marked(count: int, seen: Bools | None, more: list[int]) -> Bools:
    seen = np.zeros(count, dtype=np.bool_) if seen is None else seen
    seen[more] = True
    return seen


def _conflict(columns: Columns, event: int) -> str:
    assert columns.message_ids is not None
    numbers = ", ".join(f"{name}={count}" for name, count in zip(COUNTS, columns.counts[:, event], strict=True))
    return f"message_id {columns.message_ids[event]!r} was counted before with other numbers than {numbers}"
