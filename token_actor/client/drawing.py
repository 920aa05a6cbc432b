"""Drawing: a call that is granted without asking the actor, from what it has set aside (see ``core.escrow``).

The answer to a call that the actor decided says from which counter the next ones may take. A line takes only from
what it heard of on its own connection, and forgets all of it when that breaks: on the other side there may be
another server then, with other counters.
"""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from token_actor.core.escrow import Most, covers
from token_actor.core.escrow_commands import DRAWN, HINT
from token_actor.core.estimates import GIVEN, Estimated
from token_actor.errors import ServerRefused
from token_actor.transport.ports import AddToField
from token_actor.wire.entries import log_ms_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from token_actor.core.limits import Estimate
    from token_actor.transport.ports import Append, Connection
    from token_actor.wire.keys import Keys

REST_S: Final = 60.0  # after a refusal
DRAWN_S: Final = 60.0  # as long as a question waits for the log to be folded
HINT_S: Final = 10.0  # then the actor is asked once more: the figures that a decision shows are never older
HINTS_MAX: Final = 1_024  # per line, about 2 KB each


class Call(NamedTuple):
    """Say what a call is taken to use, what it says of that itself (``None``: nothing), and how long it may be held."""

    estimate: Estimate
    measures: Most | None
    ttl_ms: int


class _Hint(NamedTuple):
    """Hold from which escrow calls may be taken until when, and the actor's last decision: on which measures.

    ``ahead_ms`` is how much log time was ahead of the ids of entries then.
    """

    number: str
    take: AddToField
    most: Most
    measures: Most | None
    decision: Mapping[str, Any]
    ahead_ms: int
    until: float


class Hints:
    """Know what one line may take from."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._known: OrderedDict[tuple[int, str, bool], _Hint] = OrderedDict()
        self._breaks = 0  # of the connection, when something was last learned
        self._rests_until = 0.0  # after the server has refused
        self._drawn: dict[int, tuple[bytes, float]] = {}  # by partition, the last call taken, and when

    def forget(self) -> None:
        """Forget from where calls may be taken."""
        self._known.clear()

    def rest(self) -> None:
        """Take nothing for a while: the server does not let this client."""
        self._known.clear()
        self._rests_until = monotonic() + REST_S

    def learn(self, connection: Connection, keys: Keys, call: Call, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return an answer of the actor without what it says of an escrow, which is remembered."""
        if HINT not in answer:
            return answer
        decision = dict(answer)
        hint = decision.pop(HINT)
        now = monotonic()
        if decision["granted"] and now >= self._rests_until:
            shown = decision
            if call.measures is None:  # the next ones are taken to use the most
                tokens, *kinds, cost_nanousd = hint["most"]
                most = call.estimate._replace(tokens=tokens, kinds=tuple(kinds), cost_nanousd=cost_nanousd)
                shown = {**decision, "estimate": Estimated(most, hint["source"]).as_map()}
            take = AddToField(key=keys.escrow, field=hint["number"].encode(), amount=-1)
            known = (hint["number"], take, tuple(hint["most"]), call.measures, shown, hint["ahead_ms"], now + HINT_S)
            self._look_at(connection)
            self._known[_kind(keys, call)] = _Hint(*known)
            if len(self._known) > HINTS_MAX:
                self._known.popitem(last=False)
        return decision

    def _look_at(self, connection: Connection) -> None:
        """Forget everything if the connection broke: on the other side there may be another server now."""
        if connection.breaks != self._breaks:
            self._known.clear()
            self._breaks = connection.breaks

    def last_drawn(self, partition: int) -> bytes | None:
        """Return the entry of the last call that was taken, unless whoever answers now must have folded it."""
        entry_id, at = self._drawn.get(partition, (None, 0.0))
        return entry_id if monotonic() - at < DRAWN_S else None

    def find(self, connection: Connection, keys: Keys, call: Call) -> _Hint | None:
        """Return from what a call may be taken; ``None`` when the actor has to be asked."""
        self._look_at(connection)
        hint = self._known.get(_kind(keys, call))
        if hint is None or hint.until < monotonic():
            return None
        return hint if call.measures is None or covers(hint.most, call.measures) else None

    def draw(
        self, connection: Connection, keys: Keys, call: Call, hint: _Hint, append: Append, reservation: str
    ) -> Mapping[str, Any] | None:
        """Take a call, and append it as ``append`` says; return the decision, or ``None`` when the actor will answer.

        Raises ``ServerRefused``, and ``ServerUnavailable`` when nobody knows whether it was appended.
        """
        left, entry_id = connection.write_together((hint.take, append))
        if isinstance(entry_id, ServerRefused):
            raise left if isinstance(left, ServerRefused) else entry_id  # the first says why all were refused
        assert isinstance(entry_id, bytes), "an append comes to an id"
        if not isinstance(left, int) or left < 0:
            self._known.pop(_kind(keys, call), None)
            return None
        self._drawn[keys.partition] = entry_id, monotonic()
        decision = dict(hint.decision)
        if call.measures != hint.measures:  # what it costs is known to whoever decides
            decision["cost"] = None
            held = call.estimate._replace(cost_nanousd=call.estimate.cost_nanousd or hint.most[-1])
            decision["estimate"] = Estimated(held, GIVEN).as_map()
        decision["reservation"] = reservation
        decision["expires_ms"] = log_ms_of(entry_id) + hint.ahead_ms + call.ttl_ms
        decision[DRAWN] = hint.number
        return decision


def _kind(keys: Keys, call: Call) -> tuple[int, str, bool]:
    return keys.partition, call.estimate.series, call.measures is None
