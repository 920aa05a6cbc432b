"""Counters of ``bucket`` limits: what is left of what flows in at a rate."""

from __future__ import annotations

from bisect import bisect_right
from heapq import nlargest
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from token_actor.core.columns import Int64s
    from token_actor.core.limits import Limit, Refund

_LOWS_MAX: Final = 1_000  # per scope; beyond that the two oldest are one, and the later of them gets less back


class _Bucket:
    """Know what is missing to a full bucket, and how much of a hold has not flowed in again since.

    Amounts are units times ``window_ms``, so what flows in during one ms is whole. Where somebody gives
    back what has flowed in already, others may have taken it: it would be granted twice. So no more is
    given back than the least that was missing at any time since the hold. Those *lows* are kept by the
    places of holds, as pairs in which both numbers grow; a place has the low of the last pair not after it.
    """

    def __init__(self, missing: int = 0, at_ms: int = 0, lows: Iterable[tuple[int, int]] = ()) -> None:
        self.missing = missing
        self.at_ms = at_ms
        self.lows = list(lows)

    def copy(self) -> _Bucket:
        """Return another one that is the same by now."""
        return _Bucket(self.missing, self.at_ms, self.lows)

    def missing_at(self, now_ms: int, rate: int) -> int:
        """Return what is missing at a time; changes nothing."""
        return max(0, self.missing - rate * max(0, now_ms - self.at_ms))

    def flow(self, now_ms: int, rate: int) -> None:
        """Let flow in what has until a time."""
        self.missing = self.missing_at(now_ms, rate)
        self.at_ms = max(now_ms, self.at_ms)
        self._lower(len(self.lows), self.missing)

    def _lower(self, until: int, low: int) -> None:
        """Let no pair before the index ``until`` have a higher low than this; equal ones are one, and 0 is none."""
        first = until
        while first and self.lows[first - 1][1] >= low:
            first -= 1
        if first < until:
            self.lows[first:until] = [(self.lows[first][0], low)] if low else []

    def hold(self, place: int, amount: int) -> None:
        """Take now for a hold at a new place."""
        self.missing += amount
        self.lows.append((place, self.missing))
        if len(self.lows) > _LOWS_MAX:
            del self.lows[1]

    def give_back(self, place: int, amount: int) -> None:
        """Give back now what was held at a place, and has not flowed in since."""
        index = bisect_right(self.lows, place, key=lambda pair: pair[0]) - 1
        if index < 0:
            return
        low = self.lows[index][1]
        back = min(amount, low)
        self.missing -= back
        self.lows[index:] = [(each, low - back) for each, low in self.lows[index:]]
        self._lower(index + 1, low - back)


class BucketCounters:
    """Know what is left in a bucket that fills up at a rate; it is less than nothing when more was used.

    The place of a hold is a number that grows with every hold. Usage is counted scope by scope in Python,
    because a full bucket forgets; events of one millisecond are one step.
    """

    def __init__(self, limit: Limit) -> None:
        """Start with full buckets."""
        self._rate = limit.amount  # per ms
        self._scale = limit.window_ms
        self._full = limit.capacity * limit.window_ms
        self._buckets: list[_Bucket] = []
        self._held: list[int] = []
        self._next_place = 1
        self._ended: tuple[int, int, int, _Bucket] | None = None  # the last hold given back, and the bucket before

    def change(self, limit: Limit, now_ms: int) -> None:
        """Count for a limit of the same shape from now on; what is taken stays taken."""
        for bucket in self._buckets:
            bucket.flow(now_ms, self._rate)
        self._rate, self._full = limit.amount, limit.capacity * limit.window_ms

    def make_room(self, scopes: int) -> None:
        """Have counters for so many scopes."""
        new = max(0, scopes - len(self._buckets))
        self._buckets += [_Bucket() for _ in range(new)]
        self._held += [0] * new

    def _flowed(self, scope: int, now_ms: int) -> _Bucket:
        bucket = self._buckets[scope]
        bucket.flow(now_ms, self._rate)
        return bucket

    def add(self, scopes: Int64s, amounts: Int64s, log_ms: Int64s) -> None:
        """Count usage in log order."""
        order = np.lexsort((log_ms, scopes))
        scopes, log_ms = scopes[order], log_ms[order]
        starts = np.flatnonzero((np.diff(scopes, prepend=-1) != 0) | (np.diff(log_ms, prepend=-1) != 0))
        taken = np.add.reduceat(amounts[order], starts)
        for scope, ms, units in zip(scopes[starts].tolist(), log_ms[starts].tolist(), taken.tolist(), strict=True):
            self._flowed(scope, ms).missing += units * self._scale

    def sums(self, scope: int, now_ms: int) -> tuple[int, int]:
        """Return what is missing to a full bucket; what is held is shown as reserved until it has flowed in again."""
        taken = -(-self._buckets[scope].missing_at(now_ms, self._rate) // self._scale)
        reserved = min(taken, self._held[scope])
        return taken - reserved, reserved

    def retry_after_ms(self, scope: int, cost: int, now_ms: int, refunds: Iterable[Refund]) -> int:
        """Return when enough has flowed in, or been given back."""
        allowed = self._full - cost * self._scale
        bucket = self._buckets[scope].copy()
        bucket.flow(now_ms, self._rate)
        for expires_ms, place, amount in refunds:
            if self._fits_ms(bucket, allowed) <= expires_ms:
                break
            bucket.flow(expires_ms, self._rate)
            bucket.give_back(place, amount * self._scale)
        return self._fits_ms(bucket, allowed) - now_ms

    def _fits_ms(self, bucket: _Bucket, allowed: int) -> int:
        """Return when no more than ``allowed`` is missing, if nothing is given back."""
        return bucket.at_ms + max(0, -(-(bucket.missing - allowed) // self._rate))

    def hold(self, scope: int, amount: int, now_ms: int) -> int:
        """Reserve; return a place of its own."""
        place = self._next_place
        self._next_place += 1
        self._flowed(scope, now_ms).hold(place, amount * self._scale)
        self._held[scope] += amount
        return place

    def unhold(self, scope: int, place: int, amount: int, now_ms: int, *, charge: bool) -> None:
        """End a hold."""
        self._held[scope] -= amount
        if not charge:
            self.uncharge(scope, place, amount, now_ms)

    def move(self, scope: int, place: int, amount: int) -> None:
        """Count as taken then, not now, what was used of a hold that was given back just now."""
        assert self._ended is not None, "what is moved was given back just before"
        *ended, held, bucket = self._ended
        assert ended == [scope, place]
        bucket.missing -= amount * self._scale
        bucket.give_back(place, (held - amount) * self._scale)
        self._buckets[scope], self._ended = bucket, None

    def uncharge(self, scope: int, place: int, amount: int, now_ms: int) -> None:
        """Give back what has not flowed in again of a hold, or of what its expiry charged."""
        bucket = self._flowed(scope, now_ms)
        self._ended = (scope, place, amount, bucket.copy())
        bucket.give_back(place, amount * self._scale)

    def set_back(self, now_ms: int) -> None:
        """Let what flows in count from ``now_ms`` on: log time moves back to it."""
        for bucket in self._buckets:
            bucket.at_ms = min(bucket.at_ms, now_ms)

    def place_now(self, place: int) -> int:
        """Return where a hold lies now: places of buckets have no time."""
        return place

    def largest(self, count: int, now_ms: int) -> list[int]:
        """Return so many scopes with most taken, the fullest first."""
        numbers = range(len(self._buckets))
        return nlargest(count, numbers, key=lambda scope: self._buckets[scope].missing_at(now_ms, self._rate))

    def idle(self, now_ms: int) -> list[int]:
        """Return the scopes with a full bucket and no hold, in order."""
        numbers = range(len(self._buckets))
        return [n for n in numbers if not self._buckets[n].missing_at(now_ms, self._rate) and not self._held[n]]

    def keep(self, scopes: Sequence[int]) -> None:
        """Keep these scopes, in this order, and forget the others."""
        self._buckets = [self._buckets[scope] for scope in scopes]
        self._held = [self._held[scope] for scope in scopes]

    def dump(self, scopes: int) -> dict[str, Any]:
        """Return the state; what is missing is written out, because it may exceed 64 bits."""
        return {
            "buckets": [
                [str(each.missing), each.at_ms, [[place, str(low)] for place, low in each.lows]]
                for each in self._buckets[:scopes]
            ],
            "held": self._held[:scopes],
            "next_place": self._next_place,
        }

    def restore(self, dumped: Mapping[str, Any], scopes: int) -> None:
        """Take over what ``dump`` returned."""
        del scopes
        self._buckets = [
            _Bucket(int(missing), at_ms, [(place, int(low)) for place, low in lows])
            for missing, at_ms, lows in dumped["buckets"]
        ]
        self._held, self._next_place = list(dumped["held"]), dumped["next_place"]
