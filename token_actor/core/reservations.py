"""Reservations: quota taken before a call, and made right after it.

The life cycle is the table in ``reservation_states``. Rules:

* A decision is made over all limits at once, all or nothing; a refused one takes nothing.
* Settling is never refused. What was used counts at the place where it was reserved; what is beyond
  that is *debt*, and counts now.
* Everything happens at a place in the log: an expiry before the first entry that is not earlier than it.

Bounds: ``OPEN_MAX`` reservations are open; beyond that they are refused under ``TABLE_FULL``. The last
``CLOSED_MAX`` are remembered, so that settling twice is one settlement; one that was forgotten is
settled as unknown: its usage counts directly.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, Final

from token_actor.core.reservation_states import (
    EXPIRED,
    NONE,
    OPEN,
    RELEASED,
    SETTLED,
    TRANSITIONS,
    Closed,
    Hold,
    Open,
    holds_of,
)
from token_actor.core.retries import retry_after_ms
from token_actor.core.standings import Standing, cost_to, hold_of, shown, standing_of, tightest_after

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from token_actor.core.limit_table import LimitTable, Meter
    from token_actor.core.limits import Estimate
    from token_actor.core.usage import Event

OPEN_MAX: Final = 100_000  # about 1 KB each; ten thousand calls a second of ten seconds each
CLOSED_MAX: Final = 100_000  # as many as there are answers to requests
DUPLICATE: Final = "duplicate"  # why an event was not counted that counted before
TTL_MS: Final = 60_000  # for callers that do not say: longer than nearly every call to a model
TTL_MS_MAX: Final = 86_400_000
TABLE_FULL: Final = "__reservations__"  # named as the limit that refuses when too many are open
_STALE_MAX: Final = 1_024  # due times of what is closed, before they are cleared away; more if more are open


class Reservations:
    """Decide, hold, settle and expire, against a table of limits."""

    def __init__(self, limits: LimitTable) -> None:
        """Start with none open."""
        self.limits = limits
        self.open: dict[str, Open] = {}
        self.closed: OrderedDict[str, Closed] = OrderedDict()
        self.expired = 0
        self.unknown_settled = 0
        self.promised = 0  # calls that are set aside, each of which may be open at any moment
        self._due: list[tuple[int, str]] = []
        self._freed: list[tuple[int, str]] = []

    # --- time ----------------------------------------------------------------------------------

    def due_ms(self) -> int | None:
        """Return when the next reservation expires; ``None`` when none is open."""
        while self._due:
            expires_ms, reservation = self._due[0]
            found = self.open.get(reservation)
            if found is not None and found.expires_ms == expires_ms:
                return expires_ms
            heappop(self._due)
        return None

    def set_back(self, now_ms: int) -> None:
        """Count what was taken after ``now_ms`` as taken now: log time moves back to it.

        Expiries stay where they are: rather a little late than twice.
        """
        self.limits.set_back(now_ms)
        for name, opened in self.open.items():
            self.open[name] = opened._replace(holds=self._placed_now(opened.holds))
        for name, closed in self.closed.items():
            self.closed[name] = closed._replace(charged=self._placed_now(closed.charged))

    def _placed_now(self, holds: Sequence[Hold]) -> tuple[Hold, ...]:
        meters = [self.limits.with_number(hold.meter) for hold in holds]
        return tuple(
            hold if meter is None else hold._replace(place=meter.counters.place_now(hold.place))
            for hold, meter in zip(holds, meters, strict=True)
        )

    def expire_next(self) -> None:
        """Let the reservation expire that is due next; ``due_ms`` has said that there is one."""
        reservation = self._due[0][1]
        charged = []
        found = self._close(reservation)
        for hold, meter, counter in self._meters(found.holds):
            charge = not meter.limit.gives_back
            meter.counters.unhold(counter, hold.place, hold.amount, found.expires_ms, charge=charge)
            if charge:
                charged.append(hold)
        self.limits.watch.look(found.expires_ms)
        self.expired += 1
        self._remember(reservation, Closed(TRANSITIONS[OPEN, "expire"][0], tuple(charged)))

    # --- decisions -------------------------------------------------------------------------------

    def standings(self, names: Sequence[str], estimate: Estimate, now_ms: int, *, given: bool = True) -> list[Standing]:
        """Return how every limit that covers seven names stands towards an estimate; changes nothing."""
        return [
            standing_of(meter, scope, cost_to(meter.limit, estimate, given=given), now_ms)
            for meter, scope in self.limits.covering(names)
        ]

    def retry_after_ms(self, standing: Standing, now_ms: int) -> int | None:
        """Return when the cost will fit if nothing else happens; ``None`` when it never can."""
        return retry_after_ms(standing, self.open, now_ms)

    def decide(self, standings: Sequence[Standing], now_ms: int) -> dict[str, Any]:
        """Return what a decision over all these limits comes to, as a map; changes nothing.

        ``limit`` is the binding one: of those that refuse, the one to wait for longest; else the one
        with the smallest share left afterwards. ``shadow`` are those that would have refused.
        """
        unfit = [standing for standing in standings if not standing.fits]
        if any(standing.enforced for standing in unfit):
            return self._refusal(unfit, now_ms)
        return self._grant(tightest_after(standings), unfit)

    def _grant(self, tightest: Standing | None, unfit: Sequence[Standing]) -> dict[str, Any]:
        """Return the decision that nothing refuses, shown by the limit with the smallest share left."""
        return {
            "granted": True,
            **shown(tightest),
            "retry_after_ms": 0,
            "never": False,
            "shadow": [each.meter.limit.name for each in unfit],
            "limits_version": self.limits.version,
        }

    def _refusal(self, unfit: Sequence[Standing], now_ms: int) -> dict[str, Any]:
        """Return the decision of the limits that refuse, shown by the one to wait for longest."""
        refusing = [standing for standing in unfit if standing.enforced]
        waits = [self.retry_after_ms(standing, now_ms) for standing in refusing]
        longest_ms = None if None in waits else max(filter(None, waits), default=0)
        return {
            "granted": False,
            **shown(refusing[waits.index(longest_ms)]),
            "retry_after_ms": longest_ms,
            "never": longest_ms is None,
            "shadow": [each.meter.limit.name for each in unfit if not each.enforced],
            "limits_version": self.limits.version,
        }

    def reserve(
        self, reservation: str, standings: Sequence[Standing], now_ms: int, ttl_ms: int = TTL_MS
    ) -> dict[str, Any]:
        """Grant what ``standings`` say it costs, all or nothing; return the decision, as a map.

        It expires ``ttl_ms`` from now.
        """
        unfit = [standing for standing in standings if not standing.fits]
        for standing in unfit:
            standing.meter.refused += 1
        if any(standing.enforced for standing in unfit):
            return {**self._refusal(unfit, now_ms), "reservation": None, "expires_ms": None}
        if len(self.open) >= OPEN_MAX:
            due_ms = self.due_ms()
            assert due_ms is not None, "what is open expires"
            full = {"granted": False, "limit": TABLE_FULL, "retry_after_ms": due_ms - now_ms}
            return {**self._grant(tightest_after(standings), unfit), **full, "reservation": None, "expires_ms": None}
        return self.hold(reservation, standings, now_ms, ttl_ms)

    def hold(self, reservation: str, standings: Sequence[Standing], now_ms: int, ttl_ms: int) -> dict[str, Any]:
        """Take what ``standings`` say it costs, whether or not there is room; return that it was granted, as a map."""
        unfit = [standing for standing in standings if not standing.fits]
        holds = tuple(hold_of(standing, now_ms) for standing in standings if standing.cost)
        self._open(reservation, Open(holds, now_ms + ttl_ms))
        held = [standing.held() for standing in standings]
        answer = self._grant(min(held, key=Standing.tightness, default=None), unfit)
        answer["reservation"], answer["expires_ms"] = reservation, now_ms + ttl_ms
        return answer

    def _open(self, reservation: str, opened: Open) -> None:
        """Keep an open reservation where those are looked for that hold something."""
        self.open[reservation] = opened
        for hold in opened.holds:
            meter = self.limits.with_number(hold.meter)
            if meter is not None:
                insort(meter.holders.setdefault(hold.scope, []), (opened.expires_ms, reservation))
        heappush(self._due, (opened.expires_ms, reservation))
        if len(self._due) > 2 * len(self.open) + _STALE_MAX:
            self._due = [(each.expires_ms, name) for name, each in self.open.items()]
            heapify(self._due)

    def _unopen(self, reservation: str) -> Open:
        found = self.open.pop(reservation)
        for hold in found.holds:
            meter = self.limits.with_number(hold.meter)
            if meter is not None:
                holders = meter.holders[hold.scope]
                del holders[bisect_left(holders, (found.expires_ms, reservation))]
                if not holders:
                    del meter.holders[hold.scope]
        return found

    def set_aside(self, number: int, scope: str, amount: int) -> None:
        """Set an amount aside of the limit with a number, or give it back when it is below 0."""
        meter = self.limits.with_number(number)
        if meter is not None and amount:
            aside = meter.aside.get(scope, 0) + amount
            if aside:
                meter.aside[scope] = aside
            else:
                del meter.aside[scope]
        if amount < 0:
            self._freed.append((number, scope))

    # --- the rest of a life ------------------------------------------------------------------------

    def state_of(self, reservation: str) -> str:
        """Return the state of a reservation, as far as it is remembered."""
        if reservation in self.open:
            return OPEN
        closed = self.closed.get(reservation)
        return NONE if closed is None else closed.state

    def settled_answer(self, reservation: str) -> dict[str, Any] | None:
        """Return what settling a reservation came to; ``None`` when it has not been settled."""
        closed = self.closed.get(reservation)
        return None if closed is None else closed.answer

    def settle(
        self, reservation: str, names: Sequence[str], event: Event | None, now_ms: int, counted: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Make right what a reservation held, and return the answer to remember.

        ``event`` is what was used just now, by ``names``; ``None`` when nothing was counted. ``counted`` is
        what the answer says of it: unless it was counted, now or before, the reservation counts as used.
        """
        state = self.state_of(reservation)
        told = event is not None or counted["reason"] == DUPLICATE
        holds: tuple[Hold, ...] = ()
        if state == OPEN:
            holds = self._close(reservation).holds
            for hold, meter, counter in self._meters(holds):
                meter.counters.unhold(counter, hold.place, hold.amount, now_ms, charge=not told)
        elif state == EXPIRED and told:
            holds = self.closed[reservation].charged
            for hold, meter, counter in self._meters(holds):
                self._freed.append((hold.meter, hold.scope))
                meter.counters.uncharge(counter, hold.place, hold.amount, now_ms)
        correct = TRANSITIONS[state, "settle"][1] == "correct"
        self.unknown_settled += state == NONE
        answer = {
            **counted,
            "state": SETTLED,
            "unknown": state == NONE,
            "late": state in {EXPIRED, RELEASED},
            "debt": self._place(holds, names, event) if event is not None and correct else {},
        }
        self._remember(reservation, Closed(SETTLED, (), answer))
        return answer

    def _place(self, holds: Sequence[Hold], names: Sequence[str], event: Event) -> dict[str, int]:
        """Say where what was used just now belongs; return by limit what was used beyond what was held."""
        held = {(hold.meter, hold.scope): hold for hold in holds}
        debt = {}
        for meter, scope in self.limits.covering(names):
            used, hold = meter.limit.charge_of(event), held.get((meter.number, meter.name_of(scope)))
            reserved = 0 if hold is None else hold.amount
            if hold is not None and used:
                meter.counters.move(meter.index(scope), hold.place, min(used, reserved))
            if used > reserved:
                debt[meter.limit.name] = used - reserved
                meter.debt += used - reserved
        return debt

    def extend(self, reservation: str, now_ms: int, ttl_ms: int) -> dict[str, Any]:
        """Let an open reservation expire ``ttl_ms`` from now; return whether it is open, as a map."""
        state = self.state_of(reservation)
        if TRANSITIONS[state, "extend"][1] != "prolong":
            return {"extended": False, "state": state, "expires_ms": None}
        self._open(reservation, self._unopen(reservation)._replace(expires_ms=now_ms + ttl_ms))
        return {"extended": True, "state": state, "expires_ms": now_ms + ttl_ms}

    def release(self, reservation: str, now_ms: int) -> dict[str, Any]:
        """Give back all of an open reservation; return whether it was open, as a map."""
        state = self.state_of(reservation)
        after, to_do = TRANSITIONS[state, "release"]
        if to_do == "give back":
            for hold, meter, counter in self._meters(self._close(reservation).holds):
                meter.counters.unhold(counter, hold.place, hold.amount, now_ms, charge=False)
            self._remember(reservation, Closed(after))
        return {"released": to_do == "give back", "state": after}

    def _close(self, reservation: str) -> Open:
        found = self._unopen(reservation)
        self._freed += [(hold.meter, hold.scope) for hold in found.holds]
        return found

    def _meters(self, holds: Sequence[Hold]) -> Iterator[tuple[Hold, Meter, int]]:
        """Yield each hold with its meter and counter; what is gone holds nothing."""
        for hold in holds:
            meter = self.limits.with_number(hold.meter)
            counter = None if meter is None else meter.scopes.get(hold.scope)
            if meter is not None and counter is not None:
                self.limits.watch.touch(meter, [counter])
                yield hold, meter, counter

    def take_freed(self) -> list[tuple[int, str]]:
        """Return where something was given back since the last call: numbers of meters, and values of ``by``."""
        freed, self._freed = self._freed, []
        return freed

    def _remember(self, reservation: str, closed: Closed) -> None:
        self.closed[reservation] = closed
        self.closed.move_to_end(reservation)
        if len(self.closed) > CLOSED_MAX:
            self.closed.popitem(last=False)

    def dump(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {
            "open": [[name, each.expires_ms, [list(hold) for hold in each.holds]] for name, each in self.open.items()],
            "closed": [
                [name, each.state, [list(hold) for hold in each.charged], each.answer]
                for name, each in self.closed.items()
            ],
            "expired": self.expired,
            "unknown_settled": self.unknown_settled,
        }

    def restore(self, dumped: Mapping[str, Any]) -> None:
        """Take over what ``dump`` returned; the limits must be restored before."""
        for name, expires_ms, holds in dumped["open"]:
            self._open(name, Open(holds_of(holds), expires_ms))
        for name, state, charged, answer in dumped["closed"]:
            self.closed[name] = Closed(state, holds_of(charged), answer)
        self.expired, self.unknown_settled = dumped["expired"], dumped["unknown_settled"]
