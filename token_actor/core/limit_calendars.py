"""Counters of ``calendar`` limits: what is taken in this day, week or month."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from token_actor.core.calendars import period_of
from token_actor.core.columns import grown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from token_actor.core.columns import Int64s
    from token_actor.core.limits import Limit, Refund

_FIRST_CAPACITY: Final = 64
_SURE_MS: Final = 3_600_000  # into a period; a wrong clock is noticed long before, and the one before it may go
_NOWHERE: Final = -(2**63)  # where holds lie that are forgotten: no period begins there


class _Period:
    """Hold what is taken in one period, by scope."""

    def __init__(self, start_ms: int, end_ms: int, capacity: int) -> None:
        self.start_ms = start_ms
        self.end_ms = end_ms
        self.used: Int64s = np.zeros(capacity, dtype=np.int64)
        self.held: Int64s = np.zeros(capacity, dtype=np.int64)


class CalendarCounters:
    """Know what is taken in the present period. The place of a hold is the ms at which its period begins.

    What was taken before it counts no more, but the period before is kept as it ended: where log
    time moves back into it, a budget must not begin anew.
    """

    def __init__(self, limit: Limit) -> None:
        """Start with nothing taken."""
        self._limit = limit
        self._capacity = _FIRST_CAPACITY
        self._kept: list[_Period] = []  # the one before, and the last one that anything happened in
        self._places_now: dict[int, int] = {}  # what ``set_back`` made of the periods that were kept

    def change(self, limit: Limit, now_ms: int) -> None:
        """Count for a limit of the same shape from now on; what is taken stays taken."""
        del now_ms
        self._limit = limit

    def make_room(self, scopes: int) -> None:
        """Have counters for so many scopes."""
        if scopes > self._capacity:
            self._capacity = max(scopes, 2 * self._capacity)
            for period in self._kept:
                period.used, period.held = grown(period.used, self._capacity), grown(period.held, self._capacity)

    def _moved_to(self, now_ms: int) -> _Period:
        """Return the present period, a new one if the last has ended."""
        if not self._kept or now_ms >= self._kept[-1].end_ms:
            self._kept = [*self._kept[-1:], _Period(*period_of(self._limit, now_ms), self._capacity)]
        return self._kept[-1]

    def _present(self, now_ms: int) -> _Period | None:
        """Return the present period; ``None`` when nothing has happened in it. Changes nothing."""
        return self._kept[-1] if self._kept and now_ms < self._kept[-1].end_ms else None

    def _at(self, place: int) -> _Period | None:
        """Return the period that begins at ``place``; ``None`` when it is forgotten."""
        return next((period for period in self._kept if period.start_ms == place), None)

    def add(self, scopes: Int64s, amounts: Int64s, log_ms: Int64s) -> None:
        """Count usage in log order."""
        start = 0
        while start < len(log_ms):
            present = self._moved_to(int(log_ms[start]))
            stop = int(np.searchsorted(log_ms, present.end_ms))
            np.add.at(present.used, scopes[start:stop], amounts[start:stop])
            start = stop

    def sums(self, scope: int, now_ms: int) -> tuple[int, int]:
        """Return what is used and what is reserved in the present period."""
        present = self._present(now_ms)
        return (0, 0) if present is None else (int(present.used[scope]), int(present.held[scope]))

    def period_of(self, now_ms: int) -> tuple[int, int]:
        """Return when the period begins that a time lies in, and when the next one does; changes nothing."""
        present = self._present(now_ms)
        return period_of(self._limit, now_ms) if present is None else (present.start_ms, present.end_ms)

    def used_of(self, scopes: Int64s, now_ms: int) -> Int64s:
        """Return what is used by each of these scopes in the present period; changes nothing."""
        present = self._present(now_ms)
        return np.zeros(len(scopes), dtype=np.int64) if present is None else present.used[scopes]

    def retry_after_ms(self, scope: int, cost: int, now_ms: int, refunds: Iterable[Refund]) -> int:
        """Return when the period ends, or enough will have been given back before."""
        present = self._present(now_ms)
        assert present is not None, "where nothing was taken there is room"
        excess = sum(self.sums(scope, now_ms)) + cost - self._limit.amount
        for expires_ms, place, amount in refunds:
            if place == present.start_ms and expires_ms < present.end_ms:
                excess -= amount
                if excess <= 0:
                    return expires_ms - now_ms
        return present.end_ms - now_ms

    def hold(self, scope: int, amount: int, now_ms: int) -> int:
        """Reserve in the present period; return when it began."""
        present = self._moved_to(now_ms)
        present.held[scope] += amount
        return present.start_ms

    def unhold(self, scope: int, place: int, amount: int, now_ms: int, *, charge: bool) -> None:
        """End a hold; it is used in the period in which it was reserved, or not at all."""
        del now_ms
        period = self._at(place)
        if period is not None:
            period.held[scope] -= amount
            period.used[scope] += amount if charge else 0

    def _charge(self, scope: int, place: int, amount: int) -> None:
        period = self._at(place)
        if period is not None:
            period.used[scope] += amount

    def move(self, scope: int, place: int, amount: int) -> None:
        """Count in the period of ``place`` what was used in the present one."""
        self._charge(scope, self._kept[-1].start_ms, -amount)
        self._charge(scope, place, amount)

    def uncharge(self, scope: int, place: int, amount: int, now_ms: int) -> None:
        """Give back what an expiry charged, where it did."""
        del now_ms
        self._charge(scope, place, -amount)

    def set_back(self, now_ms: int) -> None:
        """Count what lies after the period of ``now_ms`` as taken in it: log time moves back to it."""
        self._places_now = {period.start_ms: period.start_ms for period in self._kept}
        if not self._kept or now_ms >= self._kept[-1].start_ms:
            return
        present = _Period(*period_of(self._limit, now_ms), self._capacity)
        for period in self._kept:
            if period.start_ms >= present.start_ms:
                present.used += period.used
                present.held += period.held
                self._places_now[period.start_ms] = present.start_ms
        self._kept = [*(period for period in self._kept if period.start_ms < present.start_ms), present]

    def place_now(self, place: int) -> int:
        """Return where a hold lies now, right after ``set_back``."""
        return self._places_now.get(place, _NOWHERE)

    def largest(self, count: int, now_ms: int) -> list[int]:
        """Return so many scopes with most taken, the fullest first."""
        present = self._present(now_ms)
        if present is None:
            return list(range(count))
        largest: list[int] = np.argsort(-(present.used + present.held), kind="stable")[:count].tolist()
        return largest

    def idle(self, now_ms: int) -> list[int]:
        """Return the scopes with nothing taken, in order."""
        present = self._moved_to(now_ms)
        if now_ms - present.start_ms >= _SURE_MS:
            self._kept = [present]
        idle: list[int] = np.flatnonzero(~np.any([(each.used, each.held) for each in self._kept], axis=(0, 1))).tolist()
        return idle

    def keep(self, scopes: Sequence[int]) -> None:
        """Keep these scopes, in this order, and forget the others."""
        self._capacity = max(_FIRST_CAPACITY, len(scopes))
        for period in self._kept:
            period.used = grown(period.used[list(scopes)], self._capacity)
            period.held = grown(period.held[list(scopes)], self._capacity)

    def dump(self, scopes: int) -> dict[str, Any]:
        """Return the state; a period has both its ends, so that it stays what it was under newer rules of its zone."""
        return {
            "periods": [
                [each.start_ms, each.end_ms, each.used[:scopes].copy(), each.held[:scopes].copy()]
                for each in self._kept
            ]
        }

    def restore(self, dumped: Mapping[str, Any], scopes: int) -> None:
        """Take over what ``dump`` returned."""
        self.make_room(scopes)
        for start_ms, end_ms, used, held in dumped["periods"]:
            period = _Period(start_ms, end_ms, self._capacity)
            period.used[:scopes], period.held[:scopes] = used, held
            self._kept.append(period)
