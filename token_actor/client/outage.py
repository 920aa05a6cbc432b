"""What a client decides by itself while the actor cannot be reached: for each limit, what ``on_outage`` says.

A client keeps a copy of the limits of each partition. Every decision of the actor names the version of its
table, and the copy is asked for when that is another one: one question per change, in the call that saw it.

When a ``reserve`` has no answer by its deadline:

* without a copy, or where an enforced limit that covers the call is ``closed``, it is ``ActorUnavailable``;
* under ``safe`` limits each client process grants ``safe_share`` of the capacity in any window of the limit;
* where all that covers it is ``open``, or nothing does, it is granted.

After that, calls whose limits let it are decided at once for ``SILENCE_S``; then one of them asks the actor
again, while the others go on. Any answer to a ``reserve`` ends that. Calls under ``closed`` limits always ask.

What is granted here is held in a table of the core's own, on this process's clock: what it grants counts as
estimated, whatever is used of it. The usage itself goes to the log like any other, when there is one again.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import uuid
import weakref
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, Final

from token_actor.core.limit_table import LimitTable
from token_actor.core.limits import (
    CONCURRENCY,
    LIMIT_FIELDS,
    MEASURES,
    MONEY,
    RESERVE_ARGUMENTS,
    Limit,
    estimate_of,
    limit_of,
)
from token_actor.core.reservation_states import NONE
from token_actor.core.reservations import TTL_MS, Reservations
from token_actor.core.usage import SEPARATOR
from token_actor.errors import ActorUnavailable, ClientBusy, TokenActorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from token_actor.client.engine import Engine

SILENCE_S: Final = 1.0  # a caller may wait for nothing once in so long
COPY_S: Final = 1.0  # for the copy of the limits, which comes from an actor that has just answered
PERIODS_S: Final = {"day": 86_400, "week": 7 * 86_400, "month": 31 * 86_400}  # the windows of calendar limits
_COUNTED: Final = ("requests", CONCURRENCY)  # units that need no estimate

log = logging.getLogger("token_actor.client")
_outages: weakref.WeakSet[Outage] = weakref.WeakSet()


class _Place:
    """Hold what is known of one partition: its limits, whether it is silent, and what was granted for it here."""

    def __init__(self, limits: Sequence[Limit] | None = None, version: int | None = None) -> None:
        """Start with a copy of the limits, or with none, and with nothing granted."""
        self.limits = limits
        self.version = version
        self.silent_until = 0.0  # by the monotonic clock; 0 while it answers
        self.copied_at = 0.0  # when the copy was last asked for
        self.reservations = Reservations(LimitTable())
        if limits is not None and version is not None:
            self.take_over(limits, version)

    def take_over(self, limits: Sequence[Limit], version: int) -> None:
        """Go by these limits from now on; what was granted under those that stay still counts."""
        self.limits, self.version = limits, version
        safe = {limit.name: _local(limit) for limit in limits if limit.mode == "enforce" and limit.on_outage == "safe"}
        table = self.reservations.limits
        for name in [name for name in table.meters if name not in safe]:
            table.delete(name)
        for name, limit in safe.items():
            if name not in table.meters or table.meters[name].limit != limit:
                table.put(limit, _now_ms())

    def advance(self, now_ms: int) -> None:
        """Let expire what is due."""
        while (due_ms := self.reservations.due_ms()) is not None and due_ms <= now_ms:
            self.reservations.expire_next()
        self.reservations.limits.advance(now_ms)
        self.reservations.take_freed()  # nobody waits here

    def covering(self, names: Sequence[str]) -> list[Limit]:
        """Return the limits that cover seven names and refuse, as far as the copy tells."""
        found = [limit for limit in self.limits or () if limit.scope_of(names) is not None]
        return [limit for limit in found if limit.mode == "enforce"]

    def closed(self, arguments: Mapping[str, Any]) -> str | None:
        """Return why nothing may be decided here for a call; ``None`` when it may."""
        if self.limits is None:
            return "its limits are not known here yet"
        for limit in self.covering(estimate_of(_estimated(arguments)).series.split(SEPARATOR)):
            if limit.on_outage == "closed":
                return f"limit {limit.name!r} is closed while the actor cannot be reached"
            if limit.on_outage == "safe" and not _is_estimated(arguments, limit.unit):
                return (
                    f"limit {limit.name!r} is closed, while the actor cannot be reached, "
                    f"to a call without an estimate of its {'cost' if limit.unit == MONEY else 'tokens'}"
                )
        return None

    def decide(self, reservation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Decide by the local shares, and return the decision in the shape of the actor's."""
        now_ms, ttl_ms = _now_ms(), arguments.get("ttl_ms", TTL_MS)
        estimate = estimate_of(_estimated(arguments))
        self.advance(now_ms)
        standings = self.reservations.standings(estimate.series.split(SEPARATOR), estimate, now_ms)
        answer = self.reservations.reserve(reservation, standings, now_ms, ttl_ms)
        if not answer["granted"] and answer["retry_after_ms"] is None:  # never here, but the actor may be back by then
            answer.update(retry_after_ms=round(SILENCE_S * 1000), never=False)
        if answer["granted"]:
            answer["expires_ms"] = round(time.time() * 1000) + ttl_ms
        return {**answer, "limits_version": self.version, "degraded": True}


class Outage:
    """Let the actor decide, or who stands in for it, and keep what was granted here apart. Safe to share."""

    def __init__(self, engine: Engine) -> None:
        """Start without a copy of any limits."""
        self._engine = engine
        self._places: dict[int, _Place] = {}
        self._begin()
        _outages.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()  # of the places
        self._settling = threading.Lock()  # one settlement of what was granted here at a time
        self._prefix = f"degraded-{uuid.uuid4().hex}"
        self._numbers = itertools.count(1)

    def begin_in_child(self) -> None:
        """Start anew after a fork, with the copies that there are: what was granted is the parent's."""
        self._begin()
        self._places = {number: _Place(place.limits, place.version) for number, place in self._places.items()}

    # --- deciding ----------------------------------------------------------------------------------

    def decide(self, ask: Callable[[], Mapping[str, Any]], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return what ``ask`` answers to a ``reserve`` of these arguments, or what is decided without it.

        ``degraded`` in it says which. Raises what ``ask`` does, ``ActorUnavailable`` only where the limits
        that cover the call want it.
        """
        tenant: str = arguments["tenant"]
        if self._is_silent(tenant) and (answer := self._decide_here(tenant, arguments)) is not None:
            return answer
        try:
            decision = ask()
        except ClientBusy:  # that is no outage
            raise
        except ActorUnavailable as error:
            self._note_silence(tenant, error.timeout_s)
            answer = self._decide_here(tenant, arguments)
            if answer is None:
                error.args = (f"{error}; nothing is granted without it, because {self._why_closed(tenant, arguments)}",)
                raise
            return answer
        self._note_answer(tenant, decision)
        return {**decision, "degraded": False}

    def _decide_here(self, tenant: str, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return a decision without the actor; ``None`` when the limits want it to decide, or nobody else."""
        with self._lock:
            place = self._place(tenant)
            if place is None or place.closed(arguments) is not None:
                return None
            return place.decide(f"{self._prefix}:{next(self._numbers)}", arguments)

    def _why_closed(self, tenant: str, arguments: Mapping[str, Any]) -> str:
        with self._lock:
            return (self._place(tenant) or _Place()).closed(arguments) or ""

    def _is_silent(self, tenant: str) -> bool:
        """Tell whether the actor did not answer just now; where that was a while ago, one caller is to find out."""
        with self._lock:
            place = self._place(tenant)
            if place is None or not place.silent_until:
                return False
            now = time.monotonic()
            if now < place.silent_until:
                return True
            place.silent_until = now + self._engine.settings.timeout_s + SILENCE_S
            return False

    def _note_silence(self, tenant: str, timeout_s: float) -> None:
        """Let the next calls not wait as long as this one; one that would hardly wait says nothing of the actor."""
        with self._lock:
            place = self._place(tenant)
            patient = timeout_s >= min(self._engine.settings.timeout_s, SILENCE_S)
            if place is not None and (patient or place.silent_until):
                place.silent_until = time.monotonic() + SILENCE_S

    def _note_answer(self, tenant: str, decision: Mapping[str, Any]) -> None:
        """Know that the actor is there, and ask for its limits if they are others than those known here."""
        version = decision.get("limits_version")
        with self._lock:
            number = self._engine.partition(tenant)
            if number is None or version is None:
                return
            place = self._places.get(number)
            if place is None:
                place = self._places[number] = _Place()
            place.silent_until = 0.0
            if place.version == version:
                return
            now = time.monotonic()
            if place.copied_at and now < place.copied_at + COPY_S:
                return
            place.copied_at = now  # whoever comes meanwhile need not ask as well
        limits = self._ask_for_limits(tenant) if version else []
        with self._lock:
            place.copied_at = 0.0 if limits is not None else place.copied_at
            if limits is not None:
                place.take_over(limits, version)

    def _ask_for_limits(self, tenant: str) -> list[Limit] | None:
        """Return the limits in force; ``None`` when they cannot be told, which must not spoil what was granted."""
        try:
            answer = self._engine.ask("limits", {"top": 0}, tenant=tenant, stale_ok=True, timeout_s=COPY_S)
            shown = [{name: each[name] for name in LIMIT_FIELDS if name in each} for each in answer["limits"]]
            return [limit_of(fields) for fields in shown]
        except TokenActorError as error:
            fields = {"action": "limits_unread", "problem": str(error)}
            log.warning("The limits could not be copied; they are asked for again", extra=fields)
            return None

    def covering(self, names: Mapping[str, str]) -> list[Limit]:
        """Return the limits that cover the dimensions of a call and refuse, as far as they are known here."""
        with self._lock:
            place = self._place(names["tenant"])
            return [] if place is None else place.covering(estimate_of(names).series.split(SEPARATOR))

    def _place(self, tenant: str) -> _Place | None:
        number = self._engine.partition(tenant)
        return None if number is None else self._places.get(number)

    # --- the rest of a life --------------------------------------------------------------------------

    def holds(self, reservation: str) -> bool:
        """Tell whether a reservation was granted here, and is still known."""
        if not reservation.startswith(self._prefix):
            return False
        with self._lock:
            return self._find(reservation) is not None

    def _find(self, reservation: str) -> _Place | None:
        found = (place for place in self._places.values() if place.reservations.state_of(reservation) != NONE)
        return next(found, None)

    def settle(self, reservation: str, record: Callable[[], None]) -> dict[str, Any]:
        """End a reservation that was granted here, and record what was used.

        Settling again changes nothing, records nothing, and has the same answer. Raises what ``record`` does.
        """
        with self._settling:
            with self._lock:
                known = self._held(reservation).settled_answer(reservation)
            if known is not None:
                return known
            record()  # may wait for room in a spool, while others are granted more
            return self._end(reservation, counted=True)

    def tell(self, operation: str, reservation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Extend or release a reservation that was granted here, or end it without a word of what it used."""
        if operation == "settle":
            with self._settling:
                return self._end(reservation, counted=False)
        with self._lock:
            held = self._held(reservation)
            if operation == "extend":
                return held.extend(reservation, _now_ms(), arguments["ttl_ms"])
            return held.release(reservation, _now_ms())

    def _end(self, reservation: str, *, counted: bool) -> dict[str, Any]:
        with self._lock:
            held = self._held(reservation)
            known = held.settled_answer(reservation)
            told = {"counted": counted, "reason": None, "degraded": True}
            return held.settle(reservation, (), None, _now_ms(), told) if known is None else known

    def _held(self, reservation: str) -> Reservations:
        found = self._find(reservation)
        assert found is not None, "the caller has looked"
        found.advance(_now_ms())
        return found.reservations


def _local(limit: Limit) -> Limit:
    """Return what one process may grant of a limit: its share, in any window of it."""
    amount = floor(limit.capacity * Fraction(str(limit.safe_share)))
    if limit.kind == CONCURRENCY:
        return Limit(limit.name, amount, unit=CONCURRENCY, selector=limit.selector, by=limit.by)
    seconds = PERIODS_S.get(limit.period or "", limit.window_ms / 1000)
    return Limit(
        limit.name,
        amount,
        unit=limit.unit,
        seconds=seconds,
        selector=limit.selector,
        by=limit.by,
        weights=limit.weights,
    )


def _estimated(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name in RESERVE_ARGUMENTS}


def _is_estimated(arguments: Mapping[str, Any], unit: str) -> bool:
    """Tell whether a call says what it may use of a unit."""
    if unit == MONEY:
        return arguments.get("cost_usd") is not None
    return unit in _COUNTED or any(name in arguments for name in MEASURES)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _after_fork() -> None:
    for outage in list(_outages):
        outage.begin_in_child()


os.register_at_fork(after_in_child=_after_fork)
