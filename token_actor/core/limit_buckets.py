"""Counters of ``bucket`` limits: what is left of what flows in at a rate."""

from __future__ import annotations

from heapq import nsmallest
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from token_actor.core.columns import Int64s
    from token_actor.core.limits import Limit, Refund


class BucketCounters:
    """Know what is left in a bucket that fills up at a rate.

    A level is in units times ``window_ms``, so what flows in during one ms, ``amount``, is whole. It is
    below 0 when more was used than there was. What a hold gives back never lifts a level above the
    burst; it can be granted anew. Usage is counted scope by scope in Python, because a full bucket
    forgets; events of one millisecond are one step.
    """

    def __init__(self, limit: Limit) -> None:
        """Start with full buckets."""
        self._rate = limit.amount  # per ms
        self._scale = limit.window_ms
        self._full = limit.capacity * limit.window_ms
        self._levels: list[int] = []
        self._at_ms: list[int] = []
        self._held: list[int] = []

    def change(self, limit: Limit, now_ms: int) -> None:
        """Count for a limit of the same shape from now on; what is taken stays taken."""
        more = limit.capacity * limit.window_ms - self._full
        self._levels = [self._level(scope, now_ms) + more for scope in range(len(self._levels))]
        self._at_ms = [now_ms] * len(self._levels)
        self._rate, self._full = limit.amount, self._full + more

    def make_room(self, scopes: int) -> None:
        """Have counters for so many scopes."""
        new = max(0, scopes - len(self._levels))
        self._levels += [self._full] * new
        self._at_ms += [0] * new
        self._held += [0] * new

    def _level(self, scope: int, now_ms: int) -> int:
        return min(self._full, self._levels[scope] + self._rate * max(0, now_ms - self._at_ms[scope]))

    def _pour(self, scope: int, units: int, now_ms: int) -> None:
        """Put in, or take out (below 0), so many units."""
        self._levels[scope] = min(self._full, self._level(scope, now_ms) + units * self._scale)
        self._at_ms[scope] = max(now_ms, self._at_ms[scope])

    def add(self, scopes: Int64s, amounts: Int64s, log_ms: Int64s) -> None:
        """Count usage in log order."""
        order = np.lexsort((log_ms, scopes))
        scopes, log_ms = scopes[order], log_ms[order]
        starts = np.flatnonzero((np.diff(scopes, prepend=-1) != 0) | (np.diff(log_ms, prepend=-1) != 0))
        taken = np.add.reduceat(amounts[order], starts)
        for scope, ms, units in zip(scopes[starts].tolist(), log_ms[starts].tolist(), taken.tolist(), strict=True):
            self._pour(scope, -units, ms)

    def sums(self, scope: int, now_ms: int) -> tuple[int, int]:
        """Return what is missing to a full bucket; what is held is shown as reserved until it has flowed in again."""
        taken = -((self._level(scope, now_ms) - self._full) // self._scale)
        reserved = min(taken, self._held[scope])
        return taken - reserved, reserved

    def retry_after_ms(self, scope: int, cost: int, now_ms: int, refunds: Iterable[Refund]) -> int:
        """Return when enough has flowed in, or been given back."""
        missing = cost * self._scale - self._level(scope, now_ms)
        for expires_ms, _, amount in sorted(refunds):
            if now_ms + -(-missing // self._rate) <= expires_ms:
                break
            at_expiry = missing - amount * self._scale
            if at_expiry <= self._rate * (expires_ms - now_ms):
                return expires_ms - now_ms
            missing = at_expiry
        return -(-missing // self._rate)

    def hold(self, scope: int, amount: int, now_ms: int) -> int:
        """Reserve; a bucket has no places."""
        self._pour(scope, -amount, now_ms)
        self._held[scope] += amount
        return 0

    def unhold(self, scope: int, place: int, amount: int, now_ms: int, *, charge: bool) -> None:
        """End a hold."""
        del place
        self._held[scope] -= amount
        if not charge:
            self._pour(scope, amount, now_ms)

    def move(self, scope: int, place: int, amount: int) -> None:
        """Leave what was used where it is: a bucket has no places."""

    def uncharge(self, scope: int, place: int, amount: int, now_ms: int) -> None:
        """Give back what an expiry charged."""
        del place
        self._pour(scope, amount, now_ms)

    def set_back(self, now_ms: int) -> None:
        """Let what flows in count from ``now_ms`` on: log time moves back to it."""
        self._at_ms = [min(at_ms, now_ms) for at_ms in self._at_ms]

    def place_now(self, place: int) -> int:
        """Return where a hold lies now: a bucket has no places."""
        return place

    def largest(self, count: int, now_ms: int) -> list[int]:
        """Return so many scopes with most taken, the fullest first."""
        return nsmallest(count, range(len(self._levels)), key=lambda scope: self._level(scope, now_ms))

    def idle(self, now_ms: int) -> list[int]:
        """Return the scopes with a full bucket and no hold, in order."""
        numbers = range(len(self._levels))
        return [n for n in numbers if self._level(n, now_ms) == self._full and not self._held[n]]

    def keep(self, scopes: Sequence[int]) -> None:
        """Keep these scopes, in this order, and forget the others."""
        for name in ("_levels", "_at_ms", "_held"):
            values = getattr(self, name)
            setattr(self, name, [values[scope] for scope in scopes])

    def dump(self, scopes: int) -> dict[str, Any]:
        """Return the state; levels are written out, because they may exceed 64 bits."""
        levels = [str(level) for level in self._levels[:scopes]]
        return {"levels": levels, "at_ms": self._at_ms[:scopes], "held": self._held[:scopes]}

    def restore(self, dumped: Mapping[str, Any], scopes: int) -> None:
        """Take over what ``dump`` returned."""
        del scopes
        self._levels = [int(level) for level in dumped["levels"]]
        self._at_ms, self._held = list(dumped["at_ms"]), list(dumped["held"])
