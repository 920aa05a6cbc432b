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
from typing import TYPE_CHECKING, Any, Final

from token_actor.core.commands import Command
from token_actor.core.escrow import CALLS_MAX, Most, Terms, covers
from token_actor.core.limits import MEASURES
from token_actor.core.reservations import OPEN_MAX
from token_actor.core.usage import series_of
from token_actor.core.waiting import key_of
from token_actor.errors import ServerRefused, TransportError
from token_actor.transport.ports import AddToField, Append, Delete, DeleteFields
from token_actor.wire.messages import COMMAND_FIELD, encode_command

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from token_actor.actor.follower import Follower
    from token_actor.actor.leadership import Leadership
    from token_actor.actor.settings import ActorSettings, Clock
    from token_actor.core.ledger import Ledger
    from token_actor.transport.ports import Connection, Operation

OFTEN: Final = 8  # decisions of one combination within a second, from which on it is worth two entries of the log
SPAN_MS: Final = 1_000
AHEAD_MS: Final = 4_000  # calls of so long are set aside: who asks in bursts finds them there
SHARE: Final = 8  # no more than this part of what a limit has left is set aside at once
CALLS_MIN: Final = 4  # for fewer it is not worth it
IDLE_MS: Final = 5_000  # without a call taken, until the rest is recalled
LOOK_MS: Final = 1_000  # between two looks at everything that is set aside
REST_MS: Final = 60_000  # after a refusal, until it is tried again
COMBINATIONS_MAX: Final = 10_000  # whose decisions are counted; beyond that, counting begins anew
LEADER: Final = "leader"  # the name under which a leader gives commands

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Demand:
    """Hold how often one combination was decided lately, and the most that its calls may use."""

    since_ms: int
    most: Most
    source: str
    decisions: int = 0


@dataclass(slots=True)
class _Own:
    """Hold one escrow of this leader: when more calls were last asked for, how many the counter had then, and uses."""

    terms: Terms
    asked: str | None = None
    calls: int = 0
    left: int = 0
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
        self._of_series: dict[str, str] = {}
        self._demand: dict[str, _Demand] = {}
        self._wanted: dict[str, _Demand] = {}
        self._taken: set[str] = set()
        self._seen = -1  # of the changes of what is set aside
        self._table = -1  # of the changes of the limits
        self._looked_ms = self._clock.ticks_ms()

    def note(self, decided: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], taken: Iterable[str]) -> None:
        """Take what was granted by a decision, as arguments and answer, and the numbers that calls were taken from."""
        self._taken.update(taken)
        ticks_ms = self._clock.ticks_ms()
        for arguments, answer in decided:
            if arguments.get("requests", 1) == 1:
                self._note(series_of(arguments), answer["estimate"], ticks_ms)

    def _note(self, series: str, estimate: Mapping[str, Any], ticks_ms: int) -> None:
        most = tuple(estimate.get(name, 0) for name in (*MEASURES, "cost_nanousd"))
        demand = self._demand.get(series)
        if demand is None:
            if len(self._demand) >= COMBINATIONS_MAX:
                self._demand.clear()
            demand = self._demand[series] = _Demand(ticks_ms, most, estimate["source"])
        elif ticks_ms - demand.since_ms > SPAN_MS:
            demand.since_ms, demand.most, demand.decisions = ticks_ms, most, 0
        demand.decisions += 1
        demand.most = tuple(map(max, demand.most, most))
        demand.source = estimate["source"]
        if demand.decisions >= OFTEN:
            self._wanted[series] = demand

    def step(self) -> None:
        """Write what there is to write. Raises what ``Leadership.write`` does."""
        ledger, ticks_ms = self._follower.ledger, self._clock.ticks_ms()
        if (self._own or self._wanted or ledger.admission.escrows) and ticks_ms >= self._rests_until_ms:
            operations = self._recall(ledger, ticks_ms)
            operations += self._open(ledger, ticks_ms)
            operations += self._set_aside(ledger, ticks_ms)
            if operations:
                self._write(operations)
        self._taken.clear()
        self._wanted.clear()

    def _write(self, operations: list[Operation]) -> None:
        try:
            outcomes = self._leadership.write(operations)
        except TransportError:
            self.forget()  # nobody knows whether it was written
            raise
        refused = next((outcome for outcome in outcomes if isinstance(outcome, ServerRefused)), None)
        if refused is not None:
            self._rest(refused)

    def _rest(self, refused: ServerRefused) -> None:
        """Set nothing aside for a while; recall what there is, because counters and log may not say the same now."""
        numbers = sorted({*self._own, *self._follower.ledger.admission.escrows.by_number})
        recall = self._command("recall_escrows", {"numbers": numbers})
        self._leadership.write([Delete(keys=[self._keys.escrow]), recall])
        self.forget()
        self._rests_until_ms = self._clock.ticks_ms() + REST_MS
        extra = {"action": "escrow_refused", "problem": str(refused)}
        log.warning("The server does not let quota be set aside; the actor decides every call itself", extra=extra)

    # --- recalling -----------------------------------------------------------------------------

    def _recall(self, ledger: Ledger, ticks_ms: int) -> list[Operation]:
        """Return what recalls what is of no use, in nobody's hands, or in somebody's way."""
        escrows, room = ledger.admission.escrows, ledger.admission.room
        looks = ticks_ms - self._looked_ms >= LOOK_MS
        numbers = {number for number in self._wanted_numbers() if self._is_of_no_use(ledger, number)}
        if ledger.limits.changes != self._table:
            self._table = ledger.limits.changes
            numbers.update(escrows.by_number)
        if escrows.changes != self._seen:
            self._seen = escrows.changes
            numbers.update(number for number in escrows.by_number if number not in self._own)
        if room:
            numbers.update(escrows.in_the_way())
        for number in self._taken & self._own.keys():
            self._own[number].taken_ms = ticks_ms
        if looks:
            self._looked_ms = ticks_ms
            self._sweep(escrows.by_number)
            crowded = 4 * (ledger.reservations.promised + len(ledger.reservations.open)) > 3 * OPEN_MAX
            for number, own in list(self._own.items()):
                idle = ticks_ms - own.taken_ms >= IDLE_MS
                if crowded or idle or (number in escrows.by_number and self._is_of_no_use(ledger, number)):
                    numbers.add(number)
        if not numbers:
            return []
        for number in numbers:
            self._drop(number)
        fields = [number.encode() for number in sorted(numbers)]
        recall = self._command("recall_escrows", {"numbers": sorted(numbers)})
        return [DeleteFields(key=self._keys.escrow, fields=fields), recall]

    def _drop(self, number: str) -> None:
        own = self._own.pop(number, None)
        if own is not None:
            del self._of_series[own.terms.series]

    def _wanted_numbers(self) -> list[str]:
        """Return from which escrows calls might have been taken that had to be decided."""
        found = [self._of_series[series] for series in self._wanted if series in self._of_series]
        return [number for number in found if number in self._follower.ledger.admission.escrows.by_number]

    def _is_of_no_use(self, ledger: Ledger, number: str) -> bool:
        """Tell whether calls have become larger than an escrow's, or usage has taken the room that is set aside."""
        terms = ledger.admission.escrows.by_number[number].terms
        demand = self._wanted.get(terms.series)
        if demand is not None and not covers(terms.most, demand.most):
            return True
        names = ledger.series.counted_as(terms.series)
        standings = ledger.reservations.standings(names, terms.estimate, ledger.log_ms)
        return any(each.enforced and (each.paused_ms > 0 or each.left < each.aside) for each in standings)

    def _sweep(self, known: Mapping[str, object]) -> None:
        """Let go of counters that nobody may take from: clients that came too late have left them."""
        fields = self._connection.get_fields(self._keys.escrow)
        stray = [name for name in fields if name.decode("ascii", "replace") not in known]
        if stray:
            self._leadership.write([DeleteFields(key=self._keys.escrow, fields=stray)])

    # --- setting aside -------------------------------------------------------------------------

    def _open(self, ledger: Ledger, ticks_ms: int) -> list[Operation]:
        """Return what puts calls that were set aside into their counters."""
        operations: list[Operation] = []
        for number, own in list(self._own.items()):
            answer = None if own.asked is None else ledger.answers.get((LEADER, own.asked))
            if answer is None:
                continue
            own.asked = None
            if answer.get("set_aside"):
                operations.append(AddToField(key=self._keys.escrow, field=number.encode(), amount=own.calls))
                operations.append(self._command("open_escrow", {"number": number, "calls": own.calls}))
                own.left, own.since_ms = max(0, ledger.admission.escrows.by_number[number].left) + own.calls, ticks_ms
            elif number not in ledger.admission.escrows.by_number:
                self._drop(number)
        return operations

    def _set_aside(self, ledger: Ledger, ticks_ms: int) -> list[Operation]:
        """Return what asks the log for calls: for who asks often, and where half of them are taken."""
        operations: list[Operation] = []
        for series in self._wanted.keys() - self._of_series.keys():
            demand, number = self._wanted[series], self._new_id()
            calls = demand.decisions * AHEAD_MS // max(1, ticks_ms - demand.since_ms)
            own = _Own(Terms(series, demand.most, demand.source), taken_ms=ticks_ms)
            asked = self._ask(ledger, number, own, _within(calls))
            if asked:
                self._own[number], self._of_series[series] = own, number
            else:
                demand.since_ms, demand.decisions = ticks_ms, 0
            operations += asked
        for number in self._taken & self._own.keys() & ledger.admission.escrows.by_number.keys():
            own, escrow = self._own[number], ledger.admission.escrows.by_number[number]
            if own.asked is None and not escrow.pending and 2 * escrow.left < own.left:
                target = _within((own.left - escrow.left) * AHEAD_MS // max(1, ticks_ms - own.since_ms))
                operations += self._ask(ledger, number, own, target - max(0, escrow.left))
        return operations

    def _ask(self, ledger: Ledger, number: str, own: _Own, calls: int) -> list[Operation]:
        """Return what asks for so many calls, or for as many as there is a share of room for; for few, nothing."""
        terms = own.terms
        names = ledger.series.counted_as(terms.series)
        for each in ledger.reservations.standings(names, terms.estimate, ledger.log_ms):
            if each.enforced and each.cost:
                closed = each.paused_ms or ledger.admission.room.needs(key_of(each))
                calls = min(calls, 0 if closed else (each.left - each.aside) // (SHARE * each.cost))
        if calls < CALLS_MIN:
            return []
        arguments = {"number": number, "series": terms.series, "most": list(terms.most), "source": terms.source}
        own.calls, own.asked = calls, self._new_id()
        return [self._command("set_aside", {**arguments, "calls": calls}, own.asked)]

    def _new_id(self) -> str:
        return f"{self._name}.{self._leadership.epoch}.{next(self._numbers)}"

    def _command(self, operation: str, arguments: Mapping[str, Any], request_id: str | None = None) -> Append:
        request_id = request_id or self._new_id()
        command = Command(operation=operation, request_id=request_id, client=LEADER, arguments=arguments)
        return Append(key=self._keys.log, fields=[COMMAND_FIELD, encode_command(command)])


def _within(calls: int) -> int:
    return max(2 * OFTEN, min(calls, CALLS_MAX))
