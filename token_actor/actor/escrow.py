"""What a leader sets aside ahead of need: for whom, how much, and when it is recalled (see ``core.escrow``).

Nothing here decides anything: the fold does, so another policy changes how fast answers are, and never what they are.
A combination of names that asks often gets about as many calls as it makes in some seconds, unless that is more than
a share of what some limit has left; more of them when half are taken; and none while somebody waits for that limit.
Everything is recalled before anybody is told that a limit was changed. What an earlier leader has set aside is
recalled as well: this one does not know what became of its counters.
"""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from token_actor.core.commands import Command
from token_actor.core.escrow import CALLS_MAX, ESCROWS_MAX, Terms, covers
from token_actor.core.escrow_commands import LEADER
from token_actor.core.reservations import OPEN_MAX
from token_actor.core.waiting import key_of
from token_actor.errors import ServerRefused, TransportError
from token_actor.transport.ports import AddToField, Append, Delete, DeleteFields
from token_actor.wire.messages import COMMAND_FIELD, encode_command

if TYPE_CHECKING:
    from collections.abc import Iterable

    from token_actor.actor.follower import Follower
    from token_actor.actor.leadership import Leadership
    from token_actor.actor.settings import ActorSettings, Clock
    from token_actor.core.ledger import Ledger
    from token_actor.core.standings import Standing
    from token_actor.transport.ports import Connection, Operation

Kind: TypeAlias = "tuple[str, bool]"  # of calls: their series, and whether they say what they may use
OFTEN: Final = 8  # decisions of one combination within a second, from which on it is worth two entries of the log
SPAN_MS: Final = 1_000
AHEAD_MS: Final = 4_000  # calls of so long are set aside: who asks in bursts finds them there
SHARE: Final = 8  # no more than this part of what a limit has left is set aside at once
CALLS_MIN: Final = 4  # for fewer it is not worth it
IDLE_MS: Final = 5_000  # without a call taken, until the rest is recalled
LOOK_MS: Final = 1_000  # between two looks at everything that is set aside
REST_MS: Final = 60_000  # after a refusal, until anything is set aside again
COMBINATIONS_MAX: Final = 10_000  # whose decisions are counted; beyond that, counting begins anew

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Demand:
    """Hold how often calls of one kind were decided lately, and the most that they may use."""

    since_ms: int
    terms: Terms
    decisions: int = 0


@dataclass(slots=True)
class _Own:
    """Hold one escrow of this leader: what was asked for last, how many calls it had then, and when it was used."""

    terms: Terms
    asked: str | None = None
    calls: int = 0
    opened: int = 0
    since_ms: int = 0
    taken_ms: int = 0


class EscrowKeeper:
    """Set aside and recall for one leader, a step per turn."""

    def __init__(
        self,
        connection: Connection,
        settings: ActorSettings,
        clock: Clock,
        follower: Follower,
        leadership: Leadership,
    ) -> None:
        """Start with nothing."""
        self._connection = connection
        self._keys = settings.keys
        self._name = f"{zlib.crc32(settings.holder.encode()):08x}"
        self._clock = clock
        self._follower = follower
        self._leadership = leadership
        self._numbers = count(1)
        self._rests_until_ms = 0  # after a refusal
        self.forget()

    def forget(self) -> None:
        """Begin anew: what is set aside now is somebody else's, or nobody knows what became of it."""
        self._own: dict[str, _Own] = {}
        self._of_kind: dict[Kind, str] = {}
        self._demand: dict[Kind, _Demand] = {}
        self._wanted: dict[Kind, _Demand] = {}
        self._taken: set[str] = set()
        self._lost: set[str] = set()  # without a counter
        self._recalled: set[str] = set()  # and not folded yet
        self._seen = -1  # of the changes of what is set aside
        self._table = -1  # of the changes of the limits
        self._look_at_ms = 0

    def note(self, decided: Iterable[Terms], taken: Iterable[str]) -> None:
        """Take what calls may use that were granted by a decision, and the numbers that others were taken from."""
        self._taken.update(taken)
        ticks_ms = self._clock.ticks_ms()
        for terms in decided:
            demand = self._demand.get(terms.kind)
            if demand is None:
                if len(self._demand) >= COMBINATIONS_MAX:
                    self._demand.clear()
                demand = self._demand[terms.kind] = _Demand(ticks_ms, terms)
            elif ticks_ms - demand.since_ms > SPAN_MS:
                demand.since_ms, demand.terms, demand.decisions = ticks_ms, terms, 0
            demand.decisions += 1
            most = tuple(map(max, demand.terms.most, terms.most))
            demand.terms = terms._replace(most=most)
            if demand.decisions >= OFTEN:
                self._wanted[terms.kind] = demand

    def step(self) -> None:
        """Write what there is to write; when it returns, nobody can take a call under limits that were changed.

        Raises what ``Leadership.write`` does, ``ServerRefused`` when nothing can be recalled.
        """
        ledger, ticks_ms = self._follower.ledger, self._clock.ticks_ms()
        if not (self._own or self._wanted or ledger.admission.escrows):
            self._taken.clear()
            return
        looks = ticks_ms >= self._look_at_ms
        changes, table = ledger.admission.escrows.changes, ledger.limits.changes
        try:
            operations = self._recall(ledger, ticks_ms, looks=looks)
            if ticks_ms >= self._rests_until_ms:
                operations += self._open(ledger, ticks_ms)
                operations += self._set_aside(ledger, ticks_ms)
            if operations and not self._write(operations):
                self._taken.clear()
                return
            if looks:
                self._sweep(ledger)
                self._look_at_ms = ticks_ms + LOOK_MS
        except (TransportError, ServerRefused):
            self.forget()  # nobody knows what was written: all of it is recalled
            raise
        self._seen, self._table = changes, table
        self._taken.clear()
        self._wanted.clear()

    def _write(self, operations: list[Operation]) -> bool:
        """Write, and tell whether all of it was taken; else nobody can take a call any more."""
        outcomes = self._leadership.write(operations)
        refused = next((outcome for outcome in outcomes if isinstance(outcome, ServerRefused)), None)
        if refused is None:
            return True
        # Without counters nobody can take anything, whatever the log still says. That is told as soon as it can be.
        (gone,) = self._leadership.write([Delete(keys=[self._keys.escrow])])
        if isinstance(gone, ServerRefused):
            raise gone
        self.forget()
        self._look_at_ms = self._clock.ticks_ms() + LOOK_MS
        if self._clock.ticks_ms() >= self._rests_until_ms:
            extra = {"action": "escrow_refused", "problem": str(refused)}
            log.warning("The server does not let quota be set aside; the actor decides every call itself", extra=extra)
        self._rests_until_ms = self._clock.ticks_ms() + REST_MS
        return False

    # --- recalling -----------------------------------------------------------------------------

    def _recall(self, ledger: Ledger, ticks_ms: int, *, looks: bool) -> list[Operation]:
        """Return what recalls what is of no use, in nobody's hands, or in somebody's way."""
        escrows = ledger.admission.escrows
        for number in self._taken & self._own.keys():
            self._own[number].taken_ms = ticks_ms
        numbers = self._lost | set(self._outgrown(ledger))
        if ledger.limits.changes != self._table:
            numbers.update(escrows.by_number)
        if escrows.changes != self._seen:
            numbers.update(number for number in escrows.by_number if number not in self._own)
        if ledger.admission.room:
            numbers.update(escrows.in_the_way())
        if looks:
            numbers.update(self._useless(ledger, ticks_ms))
        for number in numbers:
            self._drop(number)
        self._recalled &= escrows.by_number.keys()
        listed = sorted((numbers & escrows.by_number.keys()) - self._recalled)
        if not listed:
            return []
        self._recalled.update(listed)
        fields = [number.encode() for number in listed]
        return [DeleteFields(key=self._keys.escrow, fields=fields), self._command("recall_escrows", numbers=listed)]

    def _drop(self, number: str) -> None:
        own = self._own.pop(number, None)
        if own is not None:
            del self._of_kind[own.terms.kind]

    def _outgrown(self, ledger: Ledger) -> list[str]:
        """Return what is set aside for calls that have become larger, or are not those that the limits count now."""
        found = [(self._of_kind[kind], demand) for kind, demand in self._wanted.items() if kind in self._of_kind]
        return [
            number
            for number, demand in found
            if not covers(self._own[number].terms.most, demand.terms.most) or not self._is_current(ledger, number)
        ]

    def _useless(self, ledger: Ledger, ticks_ms: int) -> list[str]:
        """Return what nobody takes from, and what holds something else than its calls would now, or more than there is.

        Where most reservations are open, all of it is in the way.
        """
        if 4 * (ledger.reservations.promised + len(ledger.reservations.open)) > 3 * OPEN_MAX:
            return list(self._own)
        return [
            number
            for number, own in self._own.items()
            if ticks_ms - own.taken_ms >= IDLE_MS or not self._is_current(ledger, number)
        ]

    def _is_current(self, ledger: Ledger, number: str) -> bool:
        """Tell whether an escrow holds what it should, or is not there yet."""
        escrows = ledger.admission.escrows
        if number not in escrows.by_number:
            return True
        return escrows.is_current(number, _standings(ledger, escrows.by_number[number].terms))

    def _sweep(self, ledger: Ledger) -> None:
        """Let go of counters that nobody may take from, and note those that have fewer calls than the log knows of.

        That may be because not all of the log is folded; but those that have none are of no use either way.
        """
        counters = self._connection.get_fields(self._keys.escrow)
        known = {number.encode(): each.left for number, each in ledger.admission.escrows.by_number.items()}
        stray = [name for name in counters if name not in known]
        if stray:
            self._leadership.write([DeleteFields(key=self._keys.escrow, fields=stray)])
        empty = [name for name, left in known.items() if left > 0 and counters.get(name, b"0").startswith((b"-", b"0"))]
        self._lost = {name.decode() for name in empty}

    # --- setting aside -------------------------------------------------------------------------

    def _open(self, ledger: Ledger, ticks_ms: int) -> list[Operation]:
        """Return what puts calls that were set aside into their counters."""
        operations: list[Operation] = []
        for number, own in list(self._own.items()):
            answer = None if own.asked is None else ledger.answers.get((LEADER, own.asked))
            if answer is None:
                continue
            own.asked = None
            escrow = ledger.admission.escrows.by_number.get(number)
            if escrow is None:  # there was no room, or somebody has recalled it
                self._put_off(own.terms.kind, ticks_ms)
                self._drop(number)
            elif answer.get("set_aside") and escrow.pending >= own.calls:
                operations.append(AddToField(key=self._keys.escrow, field=number.encode(), amount=own.calls))
                operations.append(self._command("open_escrow", number=number, calls=own.calls))
                own.opened, own.since_ms = max(0, escrow.left) + own.calls, ticks_ms
            else:
                own.opened, own.since_ms = max(0, escrow.left), ticks_ms
        return operations

    def _put_off(self, kind: Kind, ticks_ms: int) -> None:
        """Count the decisions of calls anew: there was no room for more of them."""
        demand = self._demand.get(kind)
        if demand is not None:
            demand.since_ms, demand.decisions = ticks_ms, 0

    def _set_aside(self, ledger: Ledger, ticks_ms: int) -> list[Operation]:
        """Return what asks the log for calls: for who asks often, and where half of them are taken."""
        operations: list[Operation] = []
        escrows = ledger.admission.escrows
        for kind in sorted(self._wanted.keys() - self._of_kind.keys()):
            demand, number = self._wanted[kind], self._new_id()
            calls = demand.decisions * AHEAD_MS // max(1, ticks_ms - demand.since_ms)
            own = _Own(demand.terms, taken_ms=ticks_ms)
            asked = [] if len(escrows) >= ESCROWS_MAX else self._ask(ledger, number, own, _within(calls))
            if asked:
                self._own[number], self._of_kind[kind] = own, number
            else:
                self._put_off(kind, ticks_ms)
            operations += asked
        for number in sorted(self._taken & self._own.keys() & escrows.by_number.keys()):
            own, escrow = self._own[number], escrows.by_number[number]
            if own.asked is None and not escrow.pending and 2 * escrow.left < own.opened:
                target = _within((own.opened - escrow.left) * AHEAD_MS // max(1, ticks_ms - own.since_ms))
                operations += self._ask(ledger, number, own, target - max(0, escrow.left))
                own.opened = max(0, escrow.left)  # half of these are taken before it is asked for again
        return operations

    def _ask(self, ledger: Ledger, number: str, own: _Own, calls: int) -> list[Operation]:
        """Return what asks for so many calls, or for as many as there is a share of room for; for few, nothing."""
        terms = own.terms
        for each in _standings(ledger, terms):
            if each.enforced and each.cost:
                closed = each.paused_ms or ledger.admission.room.needs(key_of(each))
                calls = min(calls, 0 if closed else (each.left - each.aside) // (SHARE * each.cost))
        crowded = 2 * (calls + ledger.reservations.promised + len(ledger.reservations.open)) > OPEN_MAX
        if calls < CALLS_MIN or crowded:
            return []
        own.calls, own.asked = calls, self._new_id()
        what = {"number": number, "series": terms.series, "most": list(terms.most), "source": terms.source}
        return [self._command("set_aside", request_id=own.asked, calls=calls, **what)]

    def _new_id(self) -> str:
        return f"{self._name}.{self._leadership.epoch}.{next(self._numbers)}"

    def _command(self, operation: str, *, request_id: str | None = None, **arguments: Any) -> Append:  # noqa: ANN401
        request_id = request_id or self._new_id()
        command = Command(operation=operation, request_id=request_id, client=LEADER, arguments=arguments)
        return Append(key=self._keys.log, fields=[COMMAND_FIELD, encode_command(command)])


def _standings(ledger: Ledger, terms: Terms) -> list[Standing]:
    names = ledger.series.counted_as(terms.series)
    return ledger.reservations.standings(names, terms.estimate, ledger.log_ms)


def _within(calls: int) -> int:
    return max(2 * OFTEN, min(calls, CALLS_MAX))
