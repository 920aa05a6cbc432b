"""Counters of limits: for each kind a class that knows, by the number of a scope, what is taken.

Rules of this file: every number is an integer. What is taken is *used* (by events, or settled) or
*reserved* (held by an open reservation). Direct usage is counted for a whole read at once; holds come
one at a time. Times are log times in ms, and a time before the last one counts as the last one.

All classes have the same methods:

* ``add`` counts direct usage, ``sums`` tells used and reserved at a time, ``retry_after_ms`` how long a
  refused cost has to wait if nothing else happens.
* ``hold`` takes for a reservation and returns the place; ``unhold`` ends that, as used (``charge``) or
  given back; ``move`` says that what was used just now belongs to the place of a hold; ``uncharge``
  gives back what an expiry charged.
* ``largest`` lists the scopes with most taken, the fullest first; ``change`` takes over another amount.
* ``set_back`` moves what was taken after a time to that time, ``place_now`` a place of a hold with it.
* ``idle`` lists the scopes with nothing taken, ``keep`` numbers anew; ``dump`` and ``restore``.
"""

from __future__ import annotations

from heapq import nlargest
from typing import TYPE_CHECKING, Any, Final, Protocol

from token_actor.core.limit_buckets import BucketCounters
from token_actor.core.limit_calendars import CalendarCounters
from token_actor.core.limit_windows import WindowCounters, freed_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from token_actor.core.columns import Int64s
    from token_actor.core.limits import Limit, Refund


class Counters(Protocol):
    """Be what every kind of counters can do; see the head of this file."""

    def change(self, limit: Limit, now_ms: int) -> None:
        """Count for a limit of the same shape from now on; what is taken stays taken."""

    def make_room(self, scopes: int) -> None:
        """Have counters for so many scopes."""

    def add(self, scopes: Int64s, amounts: Int64s, log_ms: Int64s) -> None:
        """Count usage in log order."""

    def sums(self, scope: int, now_ms: int) -> tuple[int, int]:
        """Return what is used and what is reserved; changes nothing."""

    def retry_after_ms(self, scope: int, cost: int, now_ms: int, refunds: Iterable[Refund]) -> int:
        """Return when a refused cost, which can fit, will fit if nothing else happens.

        ``refunds`` are in the order in which they are given back; no more of them are taken than it takes.
        """

    def hold(self, scope: int, amount: int, now_ms: int) -> int:
        """Reserve; return the place."""

    def unhold(self, scope: int, place: int, amount: int, now_ms: int, *, charge: bool) -> None:
        """End a hold."""

    def move(self, scope: int, place: int, amount: int) -> None:
        """Count at ``place`` what was used last."""

    def uncharge(self, scope: int, place: int, amount: int, now_ms: int) -> None:
        """Give back what an expiry charged."""

    def set_back(self, now_ms: int) -> None:
        """Count what was taken after ``now_ms`` as taken now: log time moves back to it."""

    def place_now(self, place: int) -> int:
        """Return where a hold lies now, right after ``set_back``."""

    def largest(self, count: int, now_ms: int) -> list[int]:
        """Return so many scopes with most taken, the fullest first; changes nothing."""

    def idle(self, now_ms: int) -> list[int]:
        """Return the scopes with nothing taken, in order."""

    def keep(self, scopes: Sequence[int]) -> None:
        """Keep these scopes, in this order, and forget the others."""

    def dump(self, scopes: int) -> dict[str, Any]:
        """Return the state of the first ``scopes`` scopes as plain values and arrays."""

    def restore(self, dumped: Mapping[str, Any], scopes: int) -> None:
        """Take over what ``dump`` returned."""


class ConcurrencyCounters:
    """Know how many reservations are open. An expiry gives the place back, whatever the limit says."""

    def __init__(self, limit: Limit) -> None:
        """Start with none."""
        self._limit = limit
        self._held: list[int] = []

    def change(self, limit: Limit, now_ms: int) -> None:
        """Count for another limit from now on."""
        del now_ms
        self._limit = limit

    def make_room(self, scopes: int) -> None:
        """Have counters for so many scopes."""
        self._held += [0] * (scopes - len(self._held))

    def add(self, scopes: Int64s, amounts: Int64s, log_ms: Int64s) -> None:
        """Count nothing: usage holds nothing open."""

    def sums(self, scope: int, now_ms: int) -> tuple[int, int]:
        """Return 0 used, and how many are open."""
        del now_ms
        return 0, self._held[scope]

    def retry_after_ms(self, scope: int, cost: int, now_ms: int, refunds: Iterable[Refund]) -> int:
        """Return when enough will have expired, if nobody settles or releases before."""
        excess = self._held[scope] + cost - self._limit.amount
        return freed_ms(((expires_ms, amount) for expires_ms, _, amount in refunds), excess) - now_ms

    def hold(self, scope: int, amount: int, now_ms: int) -> int:
        """Take; there are no places."""
        del now_ms
        self._held[scope] += amount
        return 0

    def unhold(self, scope: int, place: int, amount: int, now_ms: int, *, charge: bool) -> None:
        """Give back."""
        del place, now_ms, charge
        self._held[scope] -= amount

    def move(self, scope: int, place: int, amount: int) -> None:
        """Do nothing: nothing is used."""

    def uncharge(self, scope: int, place: int, amount: int, now_ms: int) -> None:
        """Do nothing: an expiry charges nothing."""

    def set_back(self, now_ms: int) -> None:
        """Do nothing: what is open has no time."""

    def place_now(self, place: int) -> int:
        """Return where a hold lies now: there are no places."""
        return place

    def largest(self, count: int, now_ms: int) -> list[int]:
        """Return so many scopes with most open, the fullest first."""
        del now_ms
        return nlargest(count, range(len(self._held)), key=self._held.__getitem__)

    def idle(self, now_ms: int) -> list[int]:
        """Return the scopes with nothing open, in order."""
        del now_ms
        return [scope for scope, held in enumerate(self._held) if not held]

    def keep(self, scopes: Sequence[int]) -> None:
        """Keep these scopes, in this order, and forget the others."""
        self._held = [self._held[scope] for scope in scopes]

    def dump(self, scopes: int) -> dict[str, Any]:
        """Return the state."""
        return {"held": self._held[:scopes]}

    def restore(self, dumped: Mapping[str, Any], scopes: int) -> None:
        """Take over what ``dump`` returned."""
        del scopes
        self._held = list(dumped["held"])


_CLASSES: Final[Mapping[str, Callable[[Limit], Counters]]] = {
    "window": WindowCounters,
    "bucket": BucketCounters,
    "calendar": CalendarCounters,
    "concurrency": ConcurrencyCounters,
}


def counters_of(limit: Limit) -> Counters:
    """Return new counters for a limit."""
    return _CLASSES[limit.kind](limit)
