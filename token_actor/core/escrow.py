"""Escrow: quota that is set aside before anybody asks, so that a call can be granted without asking the actor.

What is set aside is a number of calls, each of at most so many tokens, for one combination of names. A counter on
the server says how many are left. A client takes one in the same transaction in which it appends its ``reserve``,
so the log has all that was taken in the order of the counter: the fold counts along, and both know the same of every
call: taken, if one was left, else decided like any other. (Quantities set aside for transactions that do not see each
other: O'Neil, The Escrow Transactional Method, 1986.)

Rules:

* Only the leader sets aside and recalls, by entries of the log. It puts calls into the counter when the log holds
  them already, and takes the counter away together with the entry that recalls.
* What is set aside is room that nobody else is granted; it is neither used nor reserved, and not shown as either. So
  whoever lacks room that is set aside waits a moment for the leader to recall it.
* A call that was taken holds what it may use from then on, under every limit that covers it then.

Bounds: ``ESCROWS_MAX`` escrows of ``CALLS_MAX`` calls each. None are set aside where half of ``OPEN_MAX`` calls are
open or set aside, so no more than half as many again can be open.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import le
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from token_actor.core.estimates import GIVEN, Estimated, is_unmeasured
from token_actor.core.limits import Estimate
from token_actor.core.reservations import OPEN_MAX
from token_actor.core.usage import TOKEN_KINDS
from token_actor.core.waiting import key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from token_actor.core.reservations import Reservations
    from token_actor.core.standings import Standing
    from token_actor.core.waiting import Key, WaitingRoom

ESCROWS_MAX: Final = 1_000  # about 1 KB each
MEASURED: Final = 2 + len(TOKEN_KINDS)  # tokens of no kind yet, of each kind, and nano-USD
CALLS_MAX: Final = 4_096  # of one escrow: what a core takes in half a second
Most: TypeAlias = "tuple[int, ...]"  # the most that one call may use, in that order


class Terms(NamedTuple):
    """Say what one call of an escrow may be: of which names, and the most it may use; who made that estimate."""

    series: str
    most: Most
    source: str = GIVEN

    @property
    def kind(self) -> tuple[str, bool]:
        """Return of which calls these are the terms: the series, and whether they say what they may use."""
        return self.series, self.source == GIVEN

    @property
    def estimate(self) -> Estimate:
        """Return what the largest call may use."""
        tokens, *kinds, cost_nanousd = self.most
        return Estimate(self.series, tokens, tuple(kinds), cost_nanousd)

    def completed(self, asked: Estimate, given: Mapping[str, Any]) -> Estimated:
        """Return what a call is taken to use: what it says, and what its largest one may use where it says nothing."""
        if is_unmeasured(given):
            return Estimated(self.estimate, self.source)
        if given.get("cost_usd") is None:
            asked = asked._replace(cost_nanousd=self.most[-1])
        return Estimated(asked, GIVEN)


@dataclass(slots=True)
class Escrow:
    """Hold one escrow: its terms, what a call holds of each limit, how many the counter has, and will have.

    ``left`` is below 0 when more was asked for than there was. ``pending`` calls are set aside, and not in the
    counter yet.
    """

    terms: Terms
    amounts: tuple[tuple[Key, int], ...]
    left: int = 0
    pending: int = 0

    @property
    def calls(self) -> int:
        """Return how many calls room is set aside for."""
        return max(0, self.left) + self.pending


def covers(most: Most, measures: Most) -> bool:
    """Tell whether a call that may use ``measures`` is one of those set aside."""
    return all(map(le, measures, most))


class Escrows:
    """Set aside, let take, and recall."""

    def __init__(self, reservations: Reservations, room: WaitingRoom) -> None:
        """Start with nothing set aside."""
        self._reservations = reservations
        self._room = room
        self.by_number: dict[str, Escrow] = {}
        self.changes = 0  # for whoever looks for what is new; no state, and neither are the next three
        self.was_emptied = False  # recalled, or all taken, since somebody looked
        self._decided: list[Terms] = []
        self._taken: set[str] = set()
        self._of_kind: dict[tuple[str, bool], str] = {}  # the number from which such calls take

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.by_number)

    def set_aside(self, number: str, terms: Terms, names: Sequence[str], calls: int, now_ms: int) -> bool:
        """Set room aside for so many calls more of these terms, counted as seven ``names``; tell whether there was.

        Nothing is set aside where somebody waits.
        """
        escrow = self.by_number.get(number)
        if escrow is None and (len(self) >= ESCROWS_MAX or terms.kind in self._of_kind):
            return False
        if 2 * (calls + self._reservations.promised + len(self._reservations.open)) > OPEN_MAX:
            return False
        standings = self._reservations.standings(names, terms.estimate, now_ms)
        enforced = [standing for standing in standings if standing.enforced and standing.cost]
        if not all(standing.has_room_for(calls) and not self._room.needs(key_of(standing)) for standing in enforced):
            return False
        amounts = tuple((key_of(standing), standing.cost) for standing in enforced)
        if escrow is None:
            escrow = self.by_number[number] = Escrow(terms, amounts)
            self._of_kind[terms.kind] = number
            for standing in enforced:
                standing.meter.index(standing.scope)
        elif (escrow.terms, escrow.amounts) != (terms, amounts):
            return False
        escrow.pending += calls
        self._hold(escrow, calls)
        self.changes += 1
        return True

    def open(self, number: str, calls: int) -> bool:
        """Count calls that were put into the counter; tell whether they had been set aside."""
        escrow = self.by_number.get(number)
        if escrow is None or calls > escrow.pending:
            return False
        before = escrow.calls
        escrow.pending -= calls
        escrow.left += calls
        self._hold(escrow, escrow.calls - before)  # what was asked for beyond what there was is lost
        return True

    def take(self, number: str, asked: Estimate, *, is_given: bool) -> Terms | None:
        """Take a call as the counter did; return what it may be, or ``None`` when it must be decided like any other.

        ``is_given`` says that its caller said what it may use.
        """
        escrow = self.by_number.get(number)
        if not self.skip(number) or escrow is None:
            return None
        terms = escrow.terms
        if (asked.series, is_given) != terms.kind or asked.requests != 1:
            return None
        if is_given and not covers(terms.most, measures_of(asked)):
            return None
        self._taken.add(number)
        return terms

    def skip(self, number: str) -> bool:
        """Take a call as the counter did, for nobody; tell whether there was one."""
        escrow = self.by_number.get(number)
        if escrow is None:
            return False
        escrow.left -= 1
        if escrow.left >= 0:
            self._hold(escrow, -1)
        return escrow.left >= 0

    def note(self, terms: Terms) -> None:
        """Note a call that was granted by a decision: calls like it may be worth something set aside."""
        self._decided.append(terms)

    def noted(self) -> tuple[list[Terms], set[str]]:
        """Return what was decided, and the numbers from which calls were taken, since the last time; forget it."""
        found = self._decided, self._taken
        self._decided, self._taken = [], set()
        return found

    def recall(self, numbers: Iterable[str]) -> int:
        """Give back what is set aside under these numbers; return how many calls that was."""
        calls = 0
        for number in numbers:
            escrow = self.by_number.pop(number, None)
            if escrow is not None:
                del self._of_kind[escrow.terms.kind]
                calls += escrow.calls
                self._hold(escrow, -escrow.calls)
                self.changes += 1
                self.was_emptied = True
        return calls

    def in_the_way(self) -> list[str]:
        """Return the numbers of those that hold room of a limit that somebody waits for."""
        return [
            number
            for number, escrow in self.by_number.items()
            if any(self._room.needs(key) for key, _ in escrow.amounts)
        ]

    def _hold(self, escrow: Escrow, calls: int) -> None:
        """Set aside what so many calls hold, or give it back when they are below 0."""
        self._reservations.promised += calls
        if calls < 0 and not escrow.calls:
            self.was_emptied = True
        for (meter, scope), amount in escrow.amounts:
            self._reservations.set_aside(meter, scope, calls * amount)

    def hint(self, series: str, *, is_given: bool) -> dict[str, Any] | None:
        """Return what a client has to know that wants to take such calls; ``None`` when there are none."""
        number = self._of_kind.get((series, is_given))
        if number is None or self.by_number[number].left <= 0:
            return None
        terms = self.by_number[number].terms
        return {"number": number, "most": list(terms.most), "source": terms.source}

    def is_current(self, number: str, standings: Iterable[Standing]) -> bool:
        """Tell whether an escrow holds what ``standings`` of its calls say, and there is room for it."""
        enforced = [each for each in standings if each.enforced and each.cost]
        holds = tuple((key_of(each), each.cost) for each in enforced)
        return holds == self.by_number[number].amounts and all(each.has_room_for(0) for each in enforced)

    def dump(self) -> list[list[Any]]:
        """Return the state as plain values."""
        return [
            [number, *_listed(each.terms), each.left, each.pending, [[*key, amount] for key, amount in each.amounts]]
            for number, each in self.by_number.items()
        ]

    def restore(self, dumped: Sequence[Sequence[Any]]) -> None:
        """Take over what ``dump`` returned; the limits must be restored before."""
        for number, series, most, source, left, pending, amounts in dumped:
            held = tuple(((meter, scope), amount) for meter, scope, amount in amounts)
            escrow = self.by_number[number] = Escrow(Terms(series, tuple(most), source), held, left, pending)
            self._of_kind[escrow.terms.kind] = number
            self._hold(escrow, escrow.calls)
        self.changes += 1


def measures_of(estimate: Estimate) -> Most:
    """Return what an estimate says of one call, as the terms of an escrow have it."""
    return (estimate.tokens, *estimate.kinds, estimate.cost_nanousd)


def _listed(terms: Terms) -> list[Any]:
    return [terms.series, list(terms.most), terms.source]
