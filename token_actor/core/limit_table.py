"""The table of limits: which are in force, who counts under which, and the counters of each.

A series finds the counter it charges once per limit; after that a whole read is counted by index.

Bounds: at most ``LIMITS_MAX`` limits, and ``SCOPES_MAX`` values of ``by`` in each; besides ``KILLS_MAX``
kill switches, which count nothing. Where the log enters
a new hour, counters with nothing in them make room for others; values beyond the bound share one
counter, ``__other__``, which refuses too early rather than too late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from token_actor.core.columns import Int64s, grown
from token_actor.core.killing import is_killed
from token_actor.core.limit_calendars import CalendarCounters
from token_actor.core.limit_counters import counters_of
from token_actor.core.limits import MONEY, limit_of
from token_actor.core.pauses import Pause
from token_actor.core.series import OTHER
from token_actor.core.thresholds import Told, Watch
from token_actor.core.usage import DIMENSIONS, SEPARATOR
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from token_actor.core.columns import Columns
    from token_actor.core.limits import Limit
    from token_actor.core.series import SeriesTable

LIMITS_MAX: Final = 100  # each costs about 20 µs per read of the log
KILLS_MAX: Final = 1_000  # 32 KB each; they are found by what they select, however many there are
SCOPES_MAX: Final = 100_000  # per limit, 0.5 KB each: 50 MB for a limit that fills it
HOUR_MS: Final = 3_600_000
_UNKNOWN: Final = -1
_NOT_COVERED: Final = -2


class Meter:
    """Hold one limit and its counters.

    ``number`` is never given twice, so a hold on counters that are gone cannot hit others. ``scopes``
    maps values of ``by`` to their counters. ``holders`` are the open reservations of each value,
    as (expiry, id) in that order.
    ``refused`` counts decisions, ``debt`` what was used beyond what was reserved. During its ``pause`` it
    grants nothing. ``aside`` is what is set aside of each value (see ``escrow``). ``told`` are the thresholds that
    were told; ``None`` for a limit without periods.
    """

    def __init__(self, number: int, limit: Limit) -> None:
        """Start with nothing taken."""
        self.number = number
        self.limit = limit
        self.counters = counters_of(limit)
        self.told = Told(self.counters, limit) if isinstance(self.counters, CalendarCounters) else None
        self.scopes: dict[str, int] = {}
        self.holders: dict[str, list[tuple[int, str]]] = {}
        self.refused = 0
        self.debt = 0
        self.pause = Pause()
        self.aside: dict[str, int] = {}
        self._scope_of_row: Int64s = np.zeros(0, dtype=np.int64)

    def find(self, scope: str) -> int | None:
        """Return the counter of a value of ``by``; ``None`` when it would be a new one."""
        return self.scopes.get(self.name_of(scope))

    def index(self, scope: str) -> int:
        """Return the counter of a value of ``by``, a new one if there is room."""
        name = self.name_of(scope)
        if name not in self.scopes:
            self.scopes[name] = len(self.scopes)
            self.counters.make_room(len(self.scopes))
            if self.told is not None:
                self.told.make_room(len(self.scopes))
        return self.scopes[name]

    def name_of(self, scope: str) -> str:
        """Return the name of the counter that a value of ``by`` counts in: its own, or that of all others."""
        return scope if scope in self.scopes or len(self.scopes) < SCOPES_MAX else self._other

    @property
    def _other(self) -> str:
        return SEPARATOR.join([OTHER] * max(1, len(self.limit.by)))

    def count(
        self, series: SeriesTable, rows: Int64s, values: tuple[Int64s, Int64s], log_ms: Int64s, watch: Watch
    ) -> None:
        """Count usage in log order; ``values`` are the counts, of shape (5, n), and the cost."""
        if len(series) > len(self._scope_of_row):
            known = len(self._scope_of_row)
            self._scope_of_row = grown(self._scope_of_row, max(len(series), 2 * known))
            self._scope_of_row[known:] = _UNKNOWN
        scopes = self._scope_of_row[rows]
        if (scopes == _UNKNOWN).any():
            new, first = np.unique(rows[scopes == _UNKNOWN], return_index=True)
            for row in new[np.argsort(first)].tolist():  # in log order, whatever the read
                scope = self.limit.scope_of(series.keys[row].split(SEPARATOR))
                self._scope_of_row[row] = _NOT_COVERED if scope is None else self.index(scope)
            scopes = self._scope_of_row[rows]
        charges = self.limit.charges_of(*values)
        covered = scopes != _NOT_COVERED
        if covered.all():
            watch.count(self, scopes, charges, log_ms, None)
        elif covered.any():
            watch.count(self, scopes[covered], charges[covered], log_ms[covered], covered)

    def largest(self, count: int, now_ms: int) -> list[str]:
        """Return so many values of ``by`` with most taken, the fullest first."""
        names = list(self.scopes)
        wanted = min(count, len(names))
        return [names[index] for index in self.counters.largest(wanted, now_ms) if index < len(names)]

    def forget_rows(self) -> None:
        """Forget which series counts where: rows were numbered anew."""
        self._scope_of_row = np.zeros(0, dtype=np.int64)

    def make_room(self, now_ms: int) -> None:
        """Let go of the counters with nothing in them, if there are many."""
        if len(self.scopes) <= SCOPES_MAX // 2:
            return
        idle = set(self.counters.idle(now_ms))
        if self.told is not None:
            idle -= self.told.of_now(now_ms)
        kept = {scope: index for scope, index in self.scopes.items() if index not in idle or scope in self.aside}
        self.counters.keep(list(kept.values()))
        if self.told is not None:
            self.told.keep(list(kept.values()))
        self.scopes = dict(zip(kept, range(len(kept)), strict=True))
        self.forget_rows()

    def dump(self) -> dict[str, Any]:
        """Return the state as plain values and arrays."""
        return {
            "number": self.number,
            "limit": self.limit.as_map(),
            "scopes": list(self.scopes),
            "counters": self.counters.dump(len(self.scopes)),
            "told": None if self.told is None else self.told.dump(),
            "refused": self.refused,
            "debt": self.debt,
            "pause": list(self.pause),
        }

    @classmethod
    def restored(cls, dumped: Mapping[str, Any]) -> Meter:
        """Return the meter that ``dump`` described, without its holders."""
        meter = cls(dumped["number"], limit_of(dumped["limit"]))
        meter.scopes = {scope: index for index, scope in enumerate(dumped["scopes"])}
        meter.counters.restore(dumped["counters"], len(meter.scopes))
        if meter.told is not None:
            meter.told.restore(dumped["told"], len(meter.scopes))
        meter.refused, meter.debt, meter.pause = dumped["refused"], dumped["debt"], Pause(*dumped["pause"])
        return meter


class LimitTable:
    """Hold the limits in force by name, in the order in which they were first put.

    ``version`` grows with every change, so that who has a copy knows when it is old. ``changes`` counts those of
    this process, and pauses too. ``watch`` collects what is to be told of budgets.
    """

    def __init__(self) -> None:
        """Start with none."""
        self.meters: dict[str, Meter] = {}
        self._by_number: dict[int, Meter] = {}
        self._counting: dict[str, Meter] = {}  # all but kill switches
        self._kills: dict[tuple[int, ...], dict[tuple[str, ...], Meter]] = {}  # by dimensions selected, and their names
        self._next_number = 1
        self._hour = 0
        self.version = 0
        self.changes = 0
        self.watch = Watch()

    def __len__(self) -> int:
        """Return how many limits are in force."""
        return len(self.meters)

    @property
    def counts_money(self) -> bool:
        """Tell whether any limit counts money."""
        return any(meter.limit.unit == MONEY for meter in self.meters.values())

    def put(self, limit: Limit, now_ms: int) -> bool:
        """Put a limit in force at once; tell whether what was used so far still counts.

        It does when a limit of that name counted the same things before. A new one knows nothing of
        what was used before it. Raises ``InvalidValue`` when there are too many.
        """
        known = self.meters.get(limit.name)
        if known is not None and known.limit.shape == limit.shape:
            known.counters.change(limit, now_ms)
            known.limit = limit
            self._sort_out()
            if known.told is not None:
                known.told.change(limit)
                self.watch.touch(known, known.scopes.values())
            self._note_change()
            return True
        most, there = LIMITS_MAX, len(self._counting)
        if is_killed(limit.name, limit.amount):
            most, there = KILLS_MAX, len(self.meters) - len(self._counting)
        if known is None and there >= most:
            raise InvalidValue("limit", f"is one too many: there are {most}; delete one first")
        meter = Meter(self._next_number, limit)
        if known is not None:
            del self._by_number[known.number]
            meter.pause = known.pause  # whatever it counts, its provider still wants to hear nothing
        self._take(meter)
        self._sort_out()
        self._next_number += 1
        self._note_change()
        return False

    def _note_change(self) -> None:
        self.version += 1
        self.changes += 1

    def _take(self, meter: Meter) -> None:
        self.meters[meter.limit.name] = meter
        self._by_number[meter.number] = meter

    def _sort_out(self) -> None:
        """Tell kill switches and other limits apart anew, in the order in which they were first put."""
        self._counting, self._kills = {}, {}
        for name, meter in self.meters.items():
            if is_killed(name, meter.limit.amount):
                places, names = _selected(meter.limit)
                self._kills.setdefault(places, {})[names] = meter
            else:
                self._counting[name] = meter

    def delete(self, name: str) -> bool:
        """Let go of a limit; tell whether there was one."""
        meter = self.meters.pop(name, None)
        if meter is not None:
            del self._by_number[meter.number]
            self._sort_out()
            self._note_change()
        return meter is not None

    def with_number(self, number: int) -> Meter | None:
        """Return the meter with a number; ``None`` when it is gone."""
        return self._by_number.get(number)

    def covering(self, names: Sequence[str]) -> list[tuple[Meter, str]]:
        """Return the limits that cover a tuple of seven names, with the value of ``by`` it counts under."""
        found = [(meter, meter.limit.scope_of(names)) for meter in self._counting.values()]
        covering = [(meter, scope) for meter, scope in found if scope is not None]
        if len(self.meters) > len(self._counting):
            covering += [(meter, "") for meter in self._killing(names)]
        return covering

    def _killing(self, names: Sequence[str]) -> list[Meter]:
        """Return the kill switches that cover seven names, the oldest first."""
        found = [of.get(tuple(names[place] for place in places)) for places, of in self._kills.items()]
        return sorted((meter for meter in found if meter is not None), key=lambda meter: meter.number)

    def count(
        self, series: SeriesTable, columns: Columns, rows: Int64s, log_ms: Int64s, picked: Int64s | slice
    ) -> None:
        """Count the events ``picked`` of a read; ``rows`` and ``log_ms`` are those of all its events."""
        values = (columns.counts[:, picked], columns.cost[picked])
        rows, log_ms = rows[picked], log_ms[picked]
        for meter in self._counting.values():
            meter.count(series, rows, values, log_ms, self.watch)
        self.watch.tell(columns.entry[picked])

    def advance(self, log_ms: int) -> None:
        """Make room where the log enters a new hour."""
        if log_ms // HOUR_MS > self._hour:
            self._hour = log_ms // HOUR_MS
            for meter in self.meters.values():
                meter.make_room(log_ms)

    @property
    def next_hour_ms(self) -> int:
        """Return when the next hour of the log begins."""
        return (self._hour + 1) * HOUR_MS

    def forget_rows(self) -> None:
        """Forget which series counts where: rows were numbered anew."""
        for meter in self.meters.values():
            meter.forget_rows()

    def set_back(self, now_ms: int) -> None:
        """Count what was taken after ``now_ms`` as taken now: log time moves back to it."""
        self._hour = min(self._hour, now_ms // HOUR_MS)
        for meter in self.meters.values():
            meter.counters.set_back(now_ms)
            meter.pause = meter.pause.set_back(now_ms)
            self.watch.touch(meter, meter.scopes.values())
        self.watch.look(now_ms)

    def dump(self) -> dict[str, Any]:
        """Return the state as plain values and arrays."""
        meters = [meter.dump() for meter in self.meters.values()]
        return {
            "meters": meters,
            "next_number": self._next_number,
            "hour": self._hour,
            "version": self.version,
        }

    def restore(self, dumped: Mapping[str, Any]) -> None:
        """Take over what ``dump`` returned."""
        for state in dumped["meters"]:
            self._take(Meter.restored(state))
        self._sort_out()
        self._next_number, self._hour, self.version = dumped["next_number"], dumped["hour"], dumped["version"]


def _selected(limit: Limit) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the places of the dimensions that a limit selects among the seven, and the names it selects."""
    selected = sorted((DIMENSIONS.index(dimension), name) for dimension, name in limit.selector.items())
    return tuple(place for place, _ in selected), tuple(name for _, name in selected)
