"""Admission: who is granted what, and when; reservations, those who wait for them, and time.

Everything happens at a place in the log, in the order of log time: an expiry, somebody who waits and
whose time has come, then the next entry. What gives quota back lets those who wait for it be looked
at, in the same step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from token_actor.core.escrow import Escrows
from token_actor.core.estimates import GIVEN
from token_actor.core.reservations import OPEN_MAX
from token_actor.core.standings import shown
from token_actor.core.waiting import WAIT_MS_MAX, WAITING_MAX, Waiter, WaitingRoom, Wish, key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from token_actor.core.columns import Columns, Int64s
    from token_actor.core.reservations import Reservations
    from token_actor.core.series import SeriesTable
    from token_actor.core.standings import Standing
    from token_actor.core.waiting import Key, Turn

RECALL_MS_MAX: Final = 10_000  # until what is set aside is recalled: a turn of the leader, or until there is a new one
EXPIRY_LATE_MS: Final = 250  # where nobody waits for it: so a silent log grows by four entries a second at most
_NO_TIME: Final = 2**62  # when there will be room for what a limit never has room for, as it is now
_NOWHERE: Final[frozenset[Key]] = frozenset({(0, "")})  # of no limit: who waits for one to be raised is in nobody's way
Told = tuple[str, str, dict[str, Any]]  # client, request id, answer


class Admission:
    """Decide over requests, at once or later. ``room`` holds those who wait."""

    def __init__(self, reservations: Reservations) -> None:
        """Start with nobody waiting."""
        self.room = WaitingRoom()
        self.escrows = Escrows(reservations, self.room)
        self._reservations = reservations
        self._brief: dict[str, None] = {}  # those who wait for a recall alone
        self._told: list[Told] = []
        self._version = 0

    # --- time and direct usage -------------------------------------------------------------------

    def count(self, series: SeriesTable, columns: Columns, rows: Int64s, log_ms: Int64s, events: Int64s | None) -> None:
        """Count the ``events`` (indices; ``None`` means all) of a read against the limits.

        ``rows`` and ``log_ms`` are those of all its events. Whatever happens by itself in between does so at its place.
        """
        limits = self._reservations.limits
        if not limits and not self._reservations.open:
            return
        start = 0
        while start < len(log_ms):
            limits.watch.at(int(columns.entry[start]))
            self.advance(int(log_ms[start]))
            stop = _first_from(log_ms, min(self._next_ms(), limits.next_hour_ms))
            if events is None:
                limits.count(series, columns, rows, log_ms, slice(start, stop))
            elif len(picked := events[slice(*np.searchsorted(events, (start, stop)))]):
                limits.count(series, columns, rows, log_ms, picked)
            start = stop

    def _next_ms(self) -> int:
        """Return when something happens by itself; later than the last ``advance``."""
        times = [time for time in (self._reservations.due_ms(), self.room.next_ms) if time is not None]
        return min(times, default=_NO_TIME)

    def advance(self, log_ms: int) -> None:
        """Let happen what is due by a log time."""
        while (due_ms := self._next_ms()) <= log_ms:
            if due_ms == self._reservations.due_ms():
                self._reservations.expire_next()
            else:
                self._look(due_ms)
            self.serve(due_ms)
        self._reservations.limits.advance(log_ms)

    @property
    def waking_ms(self) -> int | None:
        """Return the log time that the log must come to: for somebody who waits, or for expiries; ``None`` for neither.

        Expiries that nobody waits for are gathered: they may be late by ``EXPIRY_LATE_MS``.
        """
        if self.room:
            return self._next_ms()
        due_ms = self._reservations.due_ms()
        return None if due_ms is None else due_ms + EXPIRY_LATE_MS

    def set_back(self, now_ms: int) -> None:
        """Go on from an earlier time: log time moves back to it. Nobody waits longer than one may at all."""
        self._reservations.set_back(now_ms)
        latest_ms = now_ms + WAIT_MS_MAX
        self.room.begin_anew(
            waiter._replace(
                wish=waiter.wish._replace(
                    asked_ms=min(waiter.wish.asked_ms, now_ms), deadline_ms=min(waiter.wish.deadline_ms, latest_ms)
                ),
                due_ms=now_ms,
            )
            for waiter in list(self.room.waiters.values())
        )

    # --- decisions -------------------------------------------------------------------------------

    def ask(self, wish: Wish, now_ms: int) -> dict[str, Any] | None:
        """Return the decision on a request, as a map; ``None`` when it waits, and will be told later.

        It may wait until its ``deadline_ms``; that is not later than now when it does not want to.
        """
        standings = self._standings(wish, now_ms)
        wants_to_wait = wish.deadline_ms > now_ms
        if not self.room and not wants_to_wait and not _is_set_aside(standings):  # the everyday case
            return self._grant(wish, standings, now_ms)
        turn = self.room.next_turn(standings, wish.names)
        blocked = self._blocked(standings, turn)
        if not blocked:
            if self.room:
                self.room.pass_by(turn)
            return self._grant(wish, standings, now_ms)
        if not wants_to_wait and self._may_be_recalled(blocked) and all(map(_fits, standings)):
            self._brief[wish.reservation] = None
            wish = wish._replace(deadline_ms=now_ms + RECALL_MS_MAX)
        elif not wants_to_wait or blocked == _NOWHERE:
            return self._refusal(wish, standings, blocked, now_ms)
        if len(self.room) >= WAITING_MAX:
            self._brief.pop(wish.reservation, None)
            return self._refusal(wish, standings, blocked, now_ms)
        due_ms = self._look_ms(standings, blocked, turn, now_ms)
        self.room.add(Waiter(wish, turn, _keys_of(standings), blocked, due_ms))
        return None

    def take(self, wish: Wish, now_ms: int) -> dict[str, Any]:
        """Return the decision on a call that was taken from what is set aside: it is granted."""
        standings = self._standings(wish, now_ms)
        if self.room:
            self.room.pass_by(self.room.next_turn(standings, wish.names))
        answer = self._reservations.hold(wish.reservation, standings, now_ms, wish.ttl_ms)
        answer.update(wish.notes(now_ms))
        return answer

    def _may_be_recalled(self, blocked: Iterable[Key]) -> bool:
        """Tell whether anything is set aside of any of these limits."""
        meters = [(self._reservations.limits.with_number(number), scope) for number, scope in blocked]
        return any(meter is not None and scope in meter.aside for meter, scope in meters)

    def _grant(self, wish: Wish, standings: Sequence[Standing], now_ms: int) -> dict[str, Any]:
        answer = self._reservations.reserve(wish.reservation, standings, now_ms, wish.ttl_ms)
        answer.update(wish.notes(now_ms))
        return answer

    def _blocked(self, standings: Sequence[Standing], turn: Turn) -> frozenset[Key]:
        """Return the limits that lack room, or where others come first; ``_NOWHERE`` where there never is room."""
        if any(standing.enforced and standing.never for standing in standings):
            return _NOWHERE
        return frozenset(
            key_of(standing)
            for standing in standings
            if standing.enforced
            and (not standing.fits_now or (standing.cost and self.room.has_before(key_of(standing), turn)))
        )

    def _look_ms(self, standings: Sequence[Standing], blocked: frozenset[Key], turn: Turn, now_ms: int) -> int:
        """Return when to look again at somebody who waits: when there may be room where nobody comes first.

        Where others do, that is when they have gone. So few have a time, however many wait.
        """
        keys = {key for key in blocked if not self.room.has_before(key, turn)}
        return self._fits_ms([standing for standing in standings if key_of(standing) in keys], now_ms)

    def _fits_ms(self, standings: Sequence[Standing], now_ms: int) -> int:
        """Return when those of some limits that lack room may have it, if nothing is recalled."""
        waits = [self._reservations.retry_after_ms(standing, now_ms) for standing in standings if not standing.fits]
        return _NO_TIME if None in waits or not waits else now_ms + max([1, *filter(None, waits)])

    def _refusal(
        self, wish: Wish, standings: Sequence[Standing], blocked: frozenset[Key], now_ms: int
    ) -> dict[str, Any]:
        """Return what somebody is told who is refused, also if only because others come first."""
        for standing in standings:
            standing.meter.refused += not standing.fits
        answer = self._reservations.decide(standings, now_ms)
        if answer["granted"]:
            binding = next((standing for standing in standings if key_of(standing) in blocked), standings[0])
            binding.meter.refused += 1
            due_ms = max(map(self.room.due_ms, blocked), default=now_ms)
            wait_ms = max(1, due_ms - now_ms) if due_ms < _NO_TIME else wish.ttl_ms
            answer = {**answer, **shown(binding), "granted": False, "retry_after_ms": wait_ms}
        return {**answer, "reservation": None, "expires_ms": None, **wish.notes(now_ms)}

    # --- those who wait --------------------------------------------------------------------------

    def serve(self, now_ms: int) -> None:
        """Look at those who wait for what has become free, or for limits that were changed."""
        freed = self._reservations.take_freed()
        version, self._version = self._version, self._reservations.limits.version
        if not self.room:
            return
        if version != self._version:
            self._reconsider(now_ms)
        self.room.note_change(freed)
        for key, reservations in self.room.changed():
            for reservation in reservations:
                waiter = self.room.waiters.get(reservation)
                if waiter is None or self._try(waiter, now_ms):
                    continue
                if key in self.room.waiters[reservation].blocked:
                    break  # nobody passes here
        if self.escrows.was_emptied:  # nothing else decides about those who wait for that alone
            self.escrows.was_emptied = False
            self._end_brief(now_ms)

    def _end_brief(self, now_ms: int) -> None:
        """Refuse those who wait for a recall alone, and lack room although nothing of it is set aside any more."""
        for reservation in list(self._brief):
            waiter = self.room.waiters.get(reservation)
            if waiter is None or self._try(waiter, now_ms):
                continue
            waiter = self.room.waiters[reservation]
            if not self._may_be_recalled(waiter.blocked):
                self._dismiss(waiter, now_ms)

    def _reconsider(self, now_ms: int) -> None:
        """Look at everybody: what they need may be held against other limits."""
        self.room.begin_anew(
            waiter._replace(keys=_keys_of(self._standings(waiter.wish, now_ms)))
            for waiter in self.room.waiters.values()
        )
        for waiter in sorted(self.room.waiters.values(), key=lambda waiter: waiter.turn.number):
            self._try(waiter, now_ms)

    def _look(self, now_ms: int) -> None:
        """Look at those whose time has come; refuse who has no more."""
        for known in self.room.at(now_ms):
            waiter = self.room.waiters.get(known.wish.reservation)
            if waiter is not None and not self._try(waiter, now_ms) and waiter.wish.deadline_ms <= now_ms:
                self._dismiss(self.room.waiters[waiter.wish.reservation], now_ms)

    def _standings(self, wish: Wish, now_ms: int) -> list[Standing]:
        given = wish.source == GIVEN
        return self._reservations.standings(wish.names, wish.estimate, now_ms, given=given)

    def _try(self, waiter: Waiter, now_ms: int) -> bool:
        """Grant what somebody waits for, if there is room; tell whether there was."""
        wish = waiter.wish
        standings = self._standings(wish, now_ms)
        blocked = self._blocked(standings, waiter.turn)
        due_ms = self._look_ms(standings, blocked, waiter.turn, now_ms)
        if len(self._reservations.open) >= OPEN_MAX:
            blocked, due_ms = frozenset(waiter.keys), self._reservations.due_ms() or now_ms
        if blocked:
            self.room.block(waiter, blocked, max(due_ms, now_ms + 1))
            return False
        self._leave(wish.reservation, granted=True)
        self._told.append((wish.client, wish.request_id, self._grant(wish, standings, now_ms)))
        return True

    def _dismiss(self, waiter: Waiter, now_ms: int) -> None:
        """Refuse somebody who waits."""
        wish = waiter.wish
        standings = self._standings(wish, now_ms)
        answer = self._refusal(wish, standings, self._blocked(standings, waiter.turn), now_ms)
        self._leave(wish.reservation)
        self._told.append((wish.client, wish.request_id, answer))

    def _leave(self, reservation: str, *, granted: bool = False) -> None:
        self.room.remove(reservation, granted=granted)
        self._brief.pop(reservation, None)

    def give_up(self, reservation: str, now_ms: int) -> bool:
        """Refuse somebody who does not want to wait any longer; tell whether it waited."""
        waiter = self.room.waiters.get(reservation)
        if waiter is not None:
            self._dismiss(waiter, now_ms)
        return waiter is not None

    def take_told(self) -> list[Told]:
        """Return what is to be told to those who waited, and forget it."""
        told, self._told = self._told, []
        return told

    def dump(self) -> dict[str, Any]:
        """Return the state as plain values; what is to be told is taken before."""
        return {**self.room.dump(), "brief": list(self._brief), "escrows": self.escrows.dump()}

    def restore(self, dumped: Mapping[str, Any]) -> None:
        """Take over what ``dump`` returned; the limits must be restored before."""
        self.room.restore(dumped)
        self._brief = dict.fromkeys(dumped["brief"])
        self.escrows.restore(dumped["escrows"])
        self._version = self._reservations.limits.version


def _first_from(log_ms: Int64s, time_ms: int) -> int:
    """Return the first of some events in log order that is not before a time; their number if all are."""
    return len(log_ms) if log_ms[-1] < time_ms else int(np.searchsorted(log_ms, time_ms))


def _is_set_aside(standings: Sequence[Standing]) -> bool:
    """Tell whether only what is set aside refuses a call."""
    return any(each.enforced and not each.fits_now for each in standings) and all(map(_fits, standings))


def _fits(standing: Standing) -> bool:
    """Tell whether a limit would not refuse, were nothing set aside."""
    return standing.fits or not standing.enforced


def _keys_of(standings: Sequence[Standing]) -> tuple[Key, ...]:
    return tuple(sorted(key_of(standing) for standing in standings if standing.enforced and standing.cost))
