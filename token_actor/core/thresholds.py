"""Thresholds: who is told, once per period, that so many per cent of a budget are used.

Only what is *used* counts, not what is reserved. A threshold is told at the event, settlement or expiry
that reached it, with the figures of that moment, so it does not matter how the log was cut into reads.

It is told once per period and value of ``by``, whatever happens: also when usage is given back, or the
limit is raised and reached again. A limit that is lowered, or given other thresholds, tells at once what
is reached of those above the highest one told. A new limit knows nothing of what was used before it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from token_actor.core.columns import grown
from token_actor.core.usage import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from token_actor.core.columns import Bools, Int64s
    from token_actor.core.limit_calendars import CalendarCounters
    from token_actor.core.limit_table import Meter
    from token_actor.core.limits import Limit

_SURE_MS: Final = 3_600_000  # into a period: as long as its counters may move back into the one before
_NEVER: Final = (1 << 63) - 1  # an amount that nothing reaches


class Notice(NamedTuple):
    """Say that a threshold was reached: ``used`` at that moment is at least ``per_cent`` of ``amount``.

    ``entry`` is the place of the log entry in the read, ``scope`` maps the dimensions of ``by`` to names.
    Times are in ms; the period ends before ``end_ms``.
    """

    entry: int
    limit: str
    scope: Mapping[str, str | None]
    unit: str
    mode: str
    per_cent: int
    amount: int
    used: int
    start_ms: int
    end_ms: int
    log_ms: int


class Crossing(NamedTuple):
    """Say that a counter reached a threshold: at which event, with how much used."""

    event: int
    scope: int
    per_cent: int
    used: int
    start_ms: int
    end_ms: int
    log_ms: int


class Told:
    """Know by scope which thresholds of one limit were told in this period: the highest, in per cent.

    What was told in the period before is kept, too: where log time moves back into it, so does what was used.
    """

    def __init__(self, counters: CalendarCounters, limit: Limit) -> None:
        """Start with nothing told."""
        self._counters = counters
        self._thresholds, self._levels = _levels_of(limit)
        self._start_ms = self._end_ms = self._before_ms = 0
        self._told: Int64s = np.zeros(0, dtype=np.int64)
        self._before: Int64s = np.zeros(0, dtype=np.int64)
        self._next: Int64s = np.zeros(0, dtype=np.int64)  # what has to be used for the next one

    def change(self, limit: Limit) -> None:
        """Go by another amount and other thresholds from now on; what was told stays told."""
        self._thresholds, self._levels = _levels_of(limit)
        self._find_next()

    def _find_next(self) -> None:
        """Find for every scope what has to be used for the next threshold."""
        self._next = self._levels[np.searchsorted(self._thresholds, self._told, side="right")]

    def make_room(self, scopes: int) -> None:
        """Know so many scopes."""
        known = len(self._told)
        if scopes > known:
            capacity = max(scopes, 2 * known)
            self._told, self._before = grown(self._told, capacity), grown(self._before, capacity)
            self._next = grown(self._next, capacity)
            self._next[known:] = self._levels[0]

    def _move_to(self, now_ms: int) -> None:
        """Begin with nothing told where a new period begins."""
        if self._start_ms <= now_ms < self._end_ms:
            return
        start_ms, self._end_ms = self._counters.period_of(now_ms)
        if start_ms > self._start_ms:
            self._before_ms, self._before = self._start_ms, self._told
            self._told = np.zeros_like(self._told)
        elif start_ms <= self._before_ms:  # log time has moved back
            self._told = np.maximum(self._told, self._before)
            self._before_ms, self._before = 0, np.zeros_like(self._told)
        self._start_ms = start_ms
        self._find_next()

    def add(self, scopes: Int64s, amounts: Int64s, log_ms: Int64s) -> list[Crossing]:
        """Count usage in log order; return what it reached, by scope."""
        crossings: list[Crossing] = []
        first = 0
        while first < len(log_ms):
            self._move_to(int(log_ms[first]))
            last = int(np.searchsorted(log_ms, self._end_ms))
            part = slice(first, last)
            self._counters.add(scopes[part], amounts[part], log_ms[part])
            used = self._counters.used_of(scopes[part], int(log_ms[last - 1]))
            reached = used >= self._next[scopes[part]]
            if reached.any():
                for scope in np.unique(scopes[part][reached]).tolist():
                    events = first + np.flatnonzero(scopes[part] == scope)
                    left = int(used[events[-1] - first]) - int(amounts[events].sum())
                    sums = left + np.cumsum(amounts[events])
                    crossings += self._crossed(scope, events, sums, log_ms)
            first = last
        return crossings

    def _crossed(self, scope: int, events: Int64s, sums: Int64s, log_ms: Int64s) -> Iterator[Crossing]:
        """Yield what a scope reached whose ``events`` brought its usage to ``sums``."""
        for per_cent, level in self._untold(scope, int(sums[-1])):
            place = int(np.searchsorted(sums, level))
            event = int(events[place])
            yield self._crossing(event, scope, per_cent, int(sums[place]), int(log_ms[event]))

    def _untold(self, scope: int, used: int) -> list[tuple[int, int]]:
        """Return the thresholds that are reached and were not told, of which there are some; they are told now."""
        told = int(self._told[scope])
        levels = zip(self._thresholds.tolist(), self._levels.tolist(), strict=False)
        reached = [(per_cent, level) for per_cent, level in levels if per_cent > told and level <= used]
        self._told[scope] = reached[-1][0]
        self._next[scope] = self._levels[np.searchsorted(self._thresholds, reached[-1][0], side="right")]
        return reached

    def _crossing(self, event: int, scope: int, per_cent: int, used: int, log_ms: int) -> Crossing:
        return Crossing(event, scope, per_cent, used, self._start_ms, self._end_ms, log_ms)

    def reached(self, scopes: Sequence[int], now_ms: int) -> list[Crossing]:
        """Return what these scopes have reached by now, all at one event."""
        self._move_to(now_ms)
        asked: Int64s = np.array(scopes, dtype=np.int64)
        used = self._counters.used_of(asked, now_ms)
        above = np.flatnonzero(used >= self._next[asked])
        return [
            self._crossing(0, scope, per_cent, taken, now_ms)
            for scope, taken in zip(asked[above].tolist(), used[above].tolist(), strict=True)
            for per_cent, _ in self._untold(scope, taken)
        ]

    def of_now(self, now_ms: int) -> set[int]:
        """Return the scopes of which something was told in the period of a time, or the one before."""
        self._move_to(now_ms)
        if now_ms - self._start_ms >= _SURE_MS:
            self._before_ms, self._before = 0, np.zeros_like(self._told)
        return set(np.flatnonzero(self._told | self._before).tolist())

    def keep(self, scopes: Sequence[int]) -> None:
        """Keep these scopes, in this order, and forget the others."""
        self._told, self._before = self._told[list(scopes)], self._before[list(scopes)]
        self._find_next()

    def dump(self) -> dict[str, Any]:
        """Return the state as plain values and arrays."""
        scopes = np.flatnonzero(self._told | self._before)
        return {
            "times": [self._start_ms, self._end_ms, self._before_ms],
            "scopes": scopes,
            "told": self._told[scopes],
            "before": self._before[scopes],
        }

    def restore(self, dumped: Mapping[str, Any], scopes: int) -> None:
        """Take over what ``dump`` returned."""
        self.make_room(scopes)
        self._start_ms, self._end_ms, self._before_ms = dumped["times"]
        self._told[dumped["scopes"]], self._before[dumped["scopes"]] = dumped["told"], dumped["before"]
        self._find_next()


def _levels_of(limit: Limit) -> tuple[Int64s, Int64s]:
    """Return the thresholds of a limit in per cent, and what has to be used for each; then what is never reached."""
    levels = [min(_NEVER, max(1, -(-limit.amount * per_cent // 100))) for per_cent in limit.told_at]
    return np.array(limit.told_at, dtype=np.int64), np.array([*levels, _NEVER], dtype=np.int64)


def notice_of(crossing: Crossing, entry: int, limit: Limit, name: str) -> Notice:
    """Return what is told of a crossing; ``name`` is the value of ``by`` that it happened to."""
    names = zip(limit.by, name.split(SEPARATOR), strict=False)
    return Notice(
        entry=entry,
        limit=limit.name,
        scope={dimension: each or None for dimension, each in names},
        unit=limit.unit,
        mode=limit.mode,
        per_cent=crossing.per_cent,
        amount=limit.amount,
        used=crossing.used,
        start_ms=crossing.start_ms,
        end_ms=crossing.end_ms,
        log_ms=crossing.log_ms,
    )


class Watch:
    """Collect what is to be told of all limits.

    A read tells at once. Within a *step* (a command) what is used may be too much for a moment, because a
    call is counted before its reservation ends; so counters that it touches are looked at when it is done.
    """

    def __init__(self) -> None:
        """Start with nothing to tell."""
        self._entry = 0
        self._in_step = False
        self._notices: list[Notice] = []
        self._crossed: list[tuple[int, Meter, Crossing]] = []
        self._touched: dict[int, tuple[Meter, dict[int, None]]] = {}

    def at(self, entry: int) -> None:
        """Say which entry of the read is folded now. What a step counts belongs to the entry of the step."""
        if not self._in_step:
            self._entry = entry

    def take(self) -> list[Notice]:
        """Return what is to be told since the last call, in log order."""
        taken, self._notices = self._notices, []
        return taken

    def count(self, meter: Meter, scopes: Int64s, charges: Int64s, log_ms: Int64s, covered: Bools | None) -> None:
        """Count usage of one limit; ``covered`` says which events of the read these are, ``None`` all of them."""
        if meter.told is None or self._in_step:
            meter.counters.add(scopes, charges, log_ms)
            self.touch(meter, scopes.tolist() if self._in_step else ())
            return
        for crossing in meter.told.add(scopes, charges, log_ms):
            event = crossing.event if covered is None else int(np.flatnonzero(covered)[crossing.event])
            self._crossed.append((event, meter, crossing))

    def tell(self, entries: Int64s) -> None:
        """Tell what was reached by a read, in its order; ``entries`` says which entry each event came from."""
        self._crossed.sort(key=lambda each: each[0])
        names = {number: list(meter.scopes) for number, meter in {m.number: m for _, m, _ in self._crossed}.items()}
        for event, meter, crossing in self._crossed:
            name = names[meter.number][crossing.scope]
            self._notices.append(notice_of(crossing, int(entries[event]), meter.limit, name))
        self._crossed.clear()

    def touch(self, meter: Meter, scopes: Iterable[int]) -> None:
        """Note that usage of these counters may have changed."""
        if meter.told is not None:
            self._touched.setdefault(meter.number, (meter, {}))[1].update(dict.fromkeys(scopes))

    def look(self, now_ms: int) -> None:
        """Tell what the counters that were touched have reached, unless a step will do that at its end."""
        if self._in_step:
            return
        for meter, scopes in self._touched.values():
            assert meter.told is not None, "no other is touched"
            crossings = meter.told.reached(list(scopes), now_ms)
            names = list(meter.scopes) if crossings else []  # there may be many, and mostly nothing is reached
            for crossing in crossings:
                self._notices.append(notice_of(crossing, self._entry, meter.limit, names[crossing.scope]))
        self._touched.clear()

    @contextmanager
    def step(self, now_ms: int) -> Iterator[None]:
        """Look when the block ends, and not before."""
        self._in_step = True
        try:
            yield
        finally:
            self._in_step = False
            self.look(now_ms)
