"""Waiting for quota: who was refused and wants to wait is granted as soon as there is room, in order.

Rules:

* Nobody passes somebody who came before at a limit where that one lacks room. Past one who lacks room
  elsewhere, others may go; one that a limit can never grant, as it is now, is in nobody's way.
* The order is that of arrival. Under a limit with ``fair_by`` each of its values takes turns, by what
  share of the limit it asked for (self-clocked fair queueing: Golestani, 1994). Who is granted something
  while others wait has had its turn, and who has no turns goes behind those who came before.
* Whatever gives quota back lets those who wait for it be looked at again; so does the time at which
  there will be room if nothing else happens, of who is first somewhere. Both happen at a place in the log.
* Who still waits at its deadline is refused.

Bounds: ``WAITING_MAX`` wait; beyond that nobody may, and is refused as if it had not wanted to wait.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from token_actor.core.estimates import GIVEN, Estimated
from token_actor.core.limits import Estimate
from token_actor.core.usage import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from token_actor.core.standings import Standing

Key: TypeAlias = "tuple[int, str]"  # the number of a meter, and a value of ``by``
Order: TypeAlias = "tuple[int, int]"  # at one limit: the fair turn there, and the number of arrival

WAITING_MAX: Final = 4_096  # about 2 KB each, and a microsecond to look past
WAIT_MS_MAX: Final = 600_000
_STALE_MAX: Final = 1_024  # times at which nobody has to be looked at any more, before they are cleared away
_SHARE: Final = 1_000_000  # turns are counted in millionths of a limit


class Wish(NamedTuple):
    """Hold what somebody waits for: who asked under which request id, for what, until when; who made the estimate."""

    reservation: str
    client: str
    request_id: str
    names: tuple[str, ...]
    estimate: Estimate
    ttl_ms: int
    asked_ms: int
    deadline_ms: int
    source: str = GIVEN

    def notes(self, now_ms: int) -> dict[str, Any]:
        """Return what an answer says of the request itself: how long it waited, and what it was taken to use."""
        return {"waited_ms": now_ms - self.asked_ms, "estimate": Estimated(self.estimate, self.source).as_map()}


class Turn(NamedTuple):
    """Hold when somebody came, and where limits are shared fairly: the limit, the value of ``fair_by``, the turn there.

    Each limit has turns of its own: who waits at another one neither gains nor loses any.
    """

    number: int
    places: tuple[tuple[Key, str, int], ...] = ()

    def at(self, key: Key) -> Order:
        """Return the place in the line at one limit; without fair shares it is first come, first served."""
        return next((turn for of, _, turn in self.places if of == key), 0), self.number


class Waiter(NamedTuple):
    """Hold a wish, its turn, the limits it needs, those where it lacks room, and when there may be some."""

    wish: Wish
    turn: Turn
    keys: tuple[Key, ...]
    blocked: frozenset[Key]
    due_ms: int


class WaitingRoom:
    """Keep those who wait in order, and know whom to look at when."""

    def __init__(self) -> None:
        """Start empty."""
        self.waiters: dict[str, Waiter] = {}
        self._needing: dict[Key, int] = {}  # how many need a limit
        self._lacking: dict[Key, list[tuple[Order, str]]] = {}  # who lacks room at it, in order
        self._changed: set[Key] = set()
        self._times: list[tuple[int, int, str]] = []  # when to look at whom: lazily cleared
        self._arrived = 0
        self._clocks: dict[Key, int] = {}  # the turn of who went last, where somebody waits
        self._turns: dict[Key, dict[str, int]] = {}  # and the last turn of each value

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self.waiters)

    def needing(self, meter: int) -> int:
        """Return how many wait who need the limit with this number."""
        return sum(count for (number, _), count in self._needing.items() if number == meter)

    def needs(self, key: Key) -> bool:
        """Tell whether somebody waits who needs a limit."""
        return key in self._needing

    def next_turn(self, standings: Sequence[Standing], names: Sequence[str]) -> Turn:
        """Return the turn of somebody who comes now."""
        places = []
        for standing in standings:
            limit = standing.meter.limit
            if limit.fair_by and standing.cost and standing.enforced:
                key = key_of(standing)
                value = "\x1f".join(names[DIMENSIONS.index(dimension)] for dimension in limit.fair_by)
                share = -(-standing.cost * _SHARE // max(1, limit.capacity))
                turn = max(self._clocks.get(key, 0), self._turns.get(key, {}).get(value, 0)) + share
                places.append((key, value, turn))
        return Turn(self._arrived, tuple(places))

    def has_before(self, key: Key, turn: Turn) -> bool:
        """Tell whether somebody of an earlier turn lacks room at a limit."""
        queue = self._lacking.get(key)
        return queue is not None and queue[0][0] < turn.at(key)

    def due_ms(self, key: Key) -> int:
        """Return when the first of those who lack room at a limit may have it; 0 when nobody does."""
        queue = self._lacking.get(key)
        return self.waiters[queue[0][1]].due_ms if queue else 0

    def add(self, waiter: Waiter) -> None:
        """Let somebody wait."""
        self._arrived += 1
        for key, value, turn in waiter.turn.places:
            self._turns.setdefault(key, {})[value] = turn
        self._take(waiter)
        self._clear_turns(waiter.turn)

    def _clear_turns(self, turn: Turn) -> None:
        """Forget turns that are over, and those of people who went without theirs, where there are many."""
        for key, _, _ in turn.places:
            if len(self._turns[key]) > 2 * self._needing[key] + _STALE_MAX:
                waiting = {
                    value for waiter in self.waiters.values() for of, value, _ in waiter.turn.places if of == key
                }
                turns, clock = self._turns[key], self._clocks.get(key, 0)
                self._turns[key] = {value: turns[value] for value in sorted(waiting) if turns.get(value, 0) > clock}

    def pass_by(self, turn: Turn) -> None:
        """Note that somebody went before others who wait: that was its turn."""
        for key, _, own in turn.places:
            if key in self._needing:
                self._clocks[key] = max(self._clocks.get(key, 0), own)

    def _take(self, waiter: Waiter) -> None:
        self.waiters[waiter.wish.reservation] = waiter
        for key in waiter.keys:
            self._needing[key] = self._needing.get(key, 0) + 1
        self._queue(waiter, waiter.blocked)
        heappush(self._times, _time_of(waiter))

    def _queue(self, waiter: Waiter, keys: Iterable[Key]) -> None:
        for key in keys:
            insort(self._lacking.setdefault(key, []), (waiter.turn.at(key), waiter.wish.reservation))

    def _unqueue(self, waiter: Waiter, keys: Iterable[Key]) -> None:
        for key in keys:
            queue = self._lacking[key]
            queue.pop(bisect_left(queue, (waiter.turn.at(key), waiter.wish.reservation)))
            if not queue:
                del self._lacking[key]

    def block(self, waiter: Waiter, blocked: frozenset[Key], due_ms: int) -> None:
        """Note where somebody lacks room, and when there may be some; where it lacks none any more, others may go."""
        known = self.waiters[waiter.wish.reservation]
        self._unqueue(known, known.blocked - blocked)
        self._queue(known, blocked - known.blocked)
        self._changed.update(known.blocked - blocked)
        new = self.waiters[waiter.wish.reservation] = known._replace(blocked=blocked, due_ms=due_ms)
        if _time_of(new) != _time_of(known):
            heappush(self._times, _time_of(new))
        if len(self._times) > 2 * len(self.waiters) + _STALE_MAX:
            self._times = sorted(map(_time_of, self.waiters.values()))

    def remove(self, reservation: str, *, granted: bool = False) -> Waiter:
        """Let somebody go; those who waited behind are looked at again."""
        waiter = self.waiters.pop(reservation)
        if granted:
            self.pass_by(waiter.turn)
        for key in waiter.keys:
            self._needing[key] -= 1
            if not self._needing[key]:
                self._forget(key)
        self._unqueue(waiter, waiter.blocked)
        self._changed.update(waiter.keys)
        if not self.waiters:
            self._times.clear()
        return waiter

    def _forget(self, key: Key) -> None:
        """Let go of a limit that nobody waits for: its turns begin anew."""
        del self._needing[key]
        self._clocks.pop(key, None)
        self._turns.pop(key, None)

    def note_change(self, keys: Iterable[Key]) -> None:
        """Note limits that may have more room now."""
        if self.waiters:
            self._changed.update(keys)

    def changed(self) -> Iterator[tuple[Key, list[str]]]:
        """Yield limits with more room, and who lacked it there, in order; until no limit is left."""
        while self._changed:
            key = min(self._changed)
            self._changed.discard(key)
            yield key, [reservation for _, reservation in self._lacking.get(key, ())]

    @property
    def next_ms(self) -> int | None:
        """Return when somebody has to be looked at; ``None`` when nobody waits."""
        while self._times:
            when_ms, _, reservation = self._times[0]
            waiter = self.waiters.get(reservation)
            if waiter is not None and when_ms == _time_of(waiter)[0]:
                return when_ms
            heappop(self._times)
        return None

    def at(self, when_ms: int) -> list[Waiter]:
        """Return who has to be looked at by then, first come first."""
        found = []
        while (next_ms := self.next_ms) is not None and next_ms <= when_ms:
            found.append(self.waiters[heappop(self._times)[2]])
        return sorted(found, key=lambda waiter: waiter.turn.number)

    def begin_anew(self, waiters: Iterable[Waiter]) -> None:
        """Keep the same people with other needs: limits have changed, or log time has moved back."""
        waiters = list(waiters)
        known = list(self._needing)
        self.waiters.clear()
        self._needing.clear()
        self._lacking.clear()
        self._times.clear()
        for waiter in waiters:
            self._take(waiter)
        for key in {*known, *self._turns} - self._needing.keys():
            self._clocks.pop(key, None)
            self._turns.pop(key, None)

    def dump(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {
            "waiters": [
                [
                    *wish[:3],
                    list(wish.names),
                    _plain(wish.estimate),
                    *wish[5:],
                    turn.number,
                    [[*key, value, own] for key, value, own in turn.places],
                    _listed(keys),
                    _listed(blocked),
                    due,
                ]
                for wish, turn, keys, blocked, due in self.waiters.values()
            ],
            "arrived": self._arrived,
            "clocks": [[*key, turn] for key, turn in sorted(self._clocks.items())],
            "turns": [
                [*key, value, turn] for key, of in sorted(self._turns.items()) for value, turn in sorted(of.items())
            ],
        }

    def restore(self, dumped: Mapping[str, Any]) -> None:
        """Take over what ``dump`` returned."""
        for row in dumped["waiters"]:
            reservation, client, request_id, names, estimate, ttl_ms, asked_ms, deadline_ms, source, *rest = row
            series, tokens, kinds, cost_nanousd, requests = estimate
            wanted = Estimate(series, tokens, tuple(kinds), cost_nanousd, requests)
            wish = Wish(reservation, client, request_id, tuple(names), wanted, ttl_ms, asked_ms, deadline_ms, source)
            number, places, keys, blocked, due_ms = rest
            turn = Turn(number, tuple(((meter, scope), value, own) for meter, scope, value, own in places))
            self._take(Waiter(wish, turn, _keys(keys), frozenset(_keys(blocked)), due_ms))
        self._arrived = dumped["arrived"]
        self._clocks = {(meter, scope): clock for meter, scope, clock in dumped["clocks"]}
        for meter, scope, value, own in dumped["turns"]:
            self._turns.setdefault((meter, scope), {})[value] = own


def _time_of(waiter: Waiter) -> tuple[int, int, str]:
    return min(waiter.due_ms, waiter.wish.deadline_ms), waiter.turn.number, waiter.wish.reservation


def key_of(standing: Standing) -> Key:
    """Return which counter a standing is about."""
    return standing.meter.number, standing.meter.name_of(standing.scope)


def _plain(estimate: Estimate) -> list[Any]:
    return [estimate.series, estimate.tokens, list(estimate.kinds), *estimate[3:]]


def _listed(keys: Iterable[Key]) -> list[list[Any]]:
    return [list(key) for key in sorted(keys)]


def _keys(listed: Iterable[Sequence[Any]]) -> tuple[Key, ...]:
    return tuple((number, scope) for number, scope in listed)
