"""Counters of ``window`` limits: what is taken in the trailing window, never less than it is."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from token_actor.core.columns import grown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from token_actor.core.columns import Int64s
    from token_actor.core.limits import Limit, Refund

SUB_BUCKETS: Final = 60  # of a window: refusals come at most a sixtieth of it too early, never too late
_KEPT: Final = SUB_BUCKETS + 1  # the one that begins, and the one that is about to leave and counts whole
_FIRST_CAPACITY: Final = 64


def freed_ms(freed: Iterable[tuple[int, int]], amount: int) -> int:
    """Return when ``amount`` will have been freed, of times and amounts in order, which are enough."""
    sums: Iterator[tuple[int, int]] = accumulate(freed, lambda before, each: (each[0], before[1] + each[1]))
    return next(time_ms for time_ms, total in sums if total >= amount)


class WindowCounters:
    """Know what is taken in the trailing window, in sub-buckets of a sixtieth.

    A window of any length up to the limit's covers at most ``_KEPT`` of them, and those are counted
    whole: so whatever lies in any window was counted together. The place of a hold is its sub-bucket.
    """

    def __init__(self, limit: Limit) -> None:
        """Start with nothing taken."""
        self._limit = limit
        self._width_ms = -(-limit.window_ms // SUB_BUCKETS)
        self._newest = 0  # the number of the newest sub-bucket; number b is in slot b % _KEPT
        self._ring: Int64s = np.zeros((_KEPT, _FIRST_CAPACITY), dtype=np.int64)
        self._used: Int64s = np.zeros(_FIRST_CAPACITY, dtype=np.int64)  # sums of the ring
        self._held: dict[int, dict[int, int]] = {}  # by sub-bucket and scope
        self._held_sums: dict[int, int] = {}
        self._forgotten = -_KEPT  # the newest place that was not kept when time was last set back

    def change(self, limit: Limit, now_ms: int) -> None:
        """Count for a limit of the same shape from now on; what is taken stays taken."""
        del now_ms
        self._limit = limit

    def make_room(self, scopes: int) -> None:
        """Have counters for so many scopes."""
        if scopes > len(self._used):
            capacity = max(scopes, 2 * len(self._used))
            self._ring, self._used = grown(self._ring, capacity), grown(self._used, capacity)

    def _move_to(self, bucket: int) -> None:
        """Make ``bucket`` the newest; what leaves is forgotten."""
        if bucket <= self._newest:
            return
        if bucket - self._newest >= _KEPT:
            self._ring[:] = 0
            self._used[:] = 0
        else:
            for entered in range(self._newest + 1, bucket + 1):
                self._used -= self._ring[entered % _KEPT]
                self._ring[entered % _KEPT] = 0
        self._newest = bucket
        for left in [place for place in self._held if not self._is_kept(place)]:
            for scope, amount in self._held.pop(left).items():
                self._add_held(scope, -amount)

    def _add_held(self, scope: int, amount: int) -> None:
        left = self._held_sums.get(scope, 0) + amount
        if left:
            self._held_sums[scope] = left
        else:
            del self._held_sums[scope]

    def _is_kept(self, bucket: int) -> bool:
        return bucket > self._newest - _KEPT

    def add(self, scopes: Int64s, amounts: Int64s, log_ms: Int64s) -> None:
        """Count usage in log order."""
        buckets = log_ms // self._width_ms
        self._move_to(int(buckets[-1]))
        kept = buckets > self._newest - _KEPT
        if not kept.all():
            scopes, amounts, buckets = scopes[kept], amounts[kept], buckets[kept]
        np.add.at(self._ring, (buckets % _KEPT, scopes), amounts)
        np.add.at(self._used, scopes, amounts)

    def sums(self, scope: int, now_ms: int) -> tuple[int, int]:
        """Return what is used and what is reserved in the window that ends now."""
        used, reserved = int(self._used[scope]), self._held_sums.get(scope, 0)
        first = max(now_ms // self._width_ms, self._newest) - SUB_BUCKETS
        for left in range(self._newest - SUB_BUCKETS, min(first, self._newest + 1)):
            used -= int(self._ring[left % _KEPT, scope])
            reserved -= self._held.get(left, {}).get(scope, 0)
        return used, reserved

    def retry_after_ms(self, scope: int, cost: int, now_ms: int, refunds: Iterable[Refund]) -> int:
        """Return when enough has left the window, or been given back."""
        used = self._ring[:, scope].tolist()
        leaves = {
            self._leaves_ms(bucket): used[bucket % _KEPT]
            for bucket in range(self._newest - SUB_BUCKETS, self._newest + 1)
        }
        for bucket, held in self._held.items():
            leaves[self._leaves_ms(bucket)] += held.get(scope, 0)
        excess = sum(leaves.values()) + cost - self._limit.amount
        return freed_ms(self._freed(leaves, iter(refunds)), excess) - now_ms

    def _freed(self, leaves: dict[int, int], refunds: Iterator[Refund]) -> Iterator[tuple[int, int]]:
        """Yield when how much is given back or leaves the window; ``leaves`` are amounts by time, in its order."""
        refund = next(refunds, None)
        for time_ms in tuple(leaves):
            while refund is not None and refund[0] < time_ms:
                expires_ms, bucket, amount = refund
                if self._is_kept(bucket) and expires_ms < self._leaves_ms(bucket):
                    leaves[self._leaves_ms(bucket)] -= amount
                    yield expires_ms, amount
                refund = next(refunds, None)
            yield time_ms, leaves[time_ms]

    def _leaves_ms(self, bucket: int) -> int:
        return (bucket + _KEPT) * self._width_ms

    def hold(self, scope: int, amount: int, now_ms: int) -> int:
        """Reserve in the newest sub-bucket; return its number."""
        self._move_to(now_ms // self._width_ms)
        held = self._held.setdefault(self._newest, {})
        held[scope] = held.get(scope, 0) + amount
        self._add_held(scope, amount)
        return self._newest

    def unhold(self, scope: int, place: int, amount: int, now_ms: int, *, charge: bool) -> None:
        """End a hold; it is used where it was reserved, or not at all."""
        del now_ms
        if not self._is_kept(place):
            return
        self._held[place][scope] -= amount
        if not self._held[place][scope]:
            del self._held[place][scope]
        self._add_held(scope, -amount)
        if charge:
            self._charge(scope, place, amount)

    def _charge(self, scope: int, bucket: int, amount: int) -> None:
        if self._is_kept(bucket):
            self._ring[bucket % _KEPT, scope] += amount
            self._used[scope] += amount

    def move(self, scope: int, place: int, amount: int) -> None:
        """Count at ``place`` what was used in the newest sub-bucket."""
        self._charge(scope, self._newest, -amount)
        self._charge(scope, place, amount)

    def uncharge(self, scope: int, place: int, amount: int, now_ms: int) -> None:
        """Give back what an expiry charged, if it has not left the window."""
        del now_ms
        self._charge(scope, place, -amount)

    def set_back(self, now_ms: int) -> None:
        """Count what lies after ``now_ms`` as taken now: log time moves back to it."""
        bucket = now_ms // self._width_ms
        self._forgotten = self._newest - _KEPT
        slots = [later % _KEPT for later in range(max(bucket, self._newest - SUB_BUCKETS), self._newest + 1)]
        if slots:  # ``bucket`` may have the slot of one of them
            taken = self._ring[slots].sum(axis=0)
            self._ring[slots] = 0
            self._ring[bucket % _KEPT] = taken
        self._newest = min(self._newest, bucket)
        for later in [place for place in self._held if place > bucket]:
            held = self._held.setdefault(bucket, {})
            for scope, amount in self._held.pop(later).items():
                held[scope] = held.get(scope, 0) + amount

    def place_now(self, place: int) -> int:
        """Return where a hold lies now, right after ``set_back``; what was forgotten lies nowhere."""
        return min(place, self._newest) if place > self._forgotten else -_KEPT

    def largest(self, count: int, now_ms: int) -> list[int]:
        """Return so many scopes with most taken, the fullest first."""
        taken = self._used.copy()
        first = max(now_ms // self._width_ms, self._newest) - SUB_BUCKETS
        for bucket in range(self._newest - SUB_BUCKETS, min(first, self._newest + 1)):
            taken -= self._ring[bucket % _KEPT]
        for bucket, held in self._held.items():
            if bucket >= first:
                for scope, amount in held.items():
                    taken[scope] += amount
        largest: list[int] = np.argsort(-taken, kind="stable")[:count].tolist()
        return largest

    def idle(self, now_ms: int) -> list[int]:
        """Return the scopes with nothing taken, in order."""
        self._move_to(now_ms // self._width_ms)
        idle: list[int] = np.flatnonzero(self._used == 0).tolist()
        return [scope for scope in idle if scope not in self._held_sums]

    def keep(self, scopes: Sequence[int]) -> None:
        """Keep these scopes, in this order, and forget the others."""
        new = dict(zip(scopes, range(len(scopes)), strict=True))
        capacity = max(_FIRST_CAPACITY, len(scopes))
        self._ring = grown(self._ring[:, list(scopes)], capacity)
        self._used = grown(self._used[list(scopes)], capacity)
        self._held = {
            bucket: {new[scope]: amount for scope, amount in held.items()} for bucket, held in self._held.items()
        }
        self._held_sums = {new[scope]: amount for scope, amount in self._held_sums.items()}

    def dump(self, scopes: int) -> dict[str, Any]:
        """Return the state: sub-buckets with something in them, as (slot, scope) and amount."""
        slots, of = np.nonzero(self._ring[:, :scopes])
        held = [[b, scope, amount] for b in sorted(self._held) for scope, amount in sorted(self._held[b].items())]
        return {"newest": self._newest, "slots": slots, "scopes": of, "used": self._ring[slots, of], "held": held}

    def restore(self, dumped: Mapping[str, Any], scopes: int) -> None:
        """Take over what ``dump`` returned."""
        self.make_room(scopes)
        self._newest = dumped["newest"]
        self._ring[dumped["slots"], dumped["scopes"]] = dumped["used"]
        self._used = self._ring.sum(axis=0)
        for bucket, scope, amount in dumped["held"]:
            self._held.setdefault(bucket, {})[scope] = amount
            self._add_held(scope, amount)
