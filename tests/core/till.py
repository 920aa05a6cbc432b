"""A desk whose calls are granted from escrow where there is any: the counters on the server, and a leader at hand."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.core.desk import AGENTS, Desk
from token_actor.core.escrow import Terms, covers, measures_of
from token_actor.core.limits import Estimate, Limit
from token_actor.core.waiting import Wish

if TYPE_CHECKING:
    import random

CALLS = (1, 2, 5)


class Till(Desk):
    """Decide as a desk does, but take calls like clients, and set aside and recall at random like no leader would.

    ``counters`` are what the server has: they only change as a client or a leader changes them, so that whether a call
    is taken is known before the fold knows it.
    """

    def __init__(self, limit: Limit, now_ms: int, rng: random.Random) -> None:
        super().__init__(limit, now_ms)
        self.rng = rng
        self.escrows = self.admission.escrows
        self.counters: Counter[str] = Counter()
        self.pending: dict[str, int] = {}
        self.of_agent: dict[int, tuple[str, Terms]] = {}
        self.made = self.drawn = self.exhausted = self.recalled = 0

    # --- what a leader does ----------------------------------------------------------------------

    def set_aside(self, agent: int, cost: int, calls: int) -> bool:
        """Ask for room for calls of an agent: more of them, where it has some already."""
        if agent not in self.of_agent:
            self.made += 1
            estimate = Estimate(self.series.keys[agent], cost)
            self.of_agent[agent] = (f"e{self.made}", Terms(estimate.series, measures_of(estimate)))
        number, terms = self.of_agent[agent]
        done = self.escrows.set_aside(number, terms, self.series.names[agent], calls, self.now_ms)
        if done:
            self.pending[number] = self.pending.get(number, 0) + calls
        elif number not in self.escrows.by_number:
            del self.of_agent[agent]
        return done

    def open(self, number: str) -> None:
        """Put into the counter what was set aside."""
        calls = self.pending.pop(number, 0)
        if calls:
            self.counters[number] += calls
            assert self.escrows.open(number, calls)

    def recall(self, numbers: list[str]) -> None:
        for number in numbers:
            del self.counters[number]
            self.pending.pop(number, None)
            self.recalled += 1
        self.of_agent = {agent: each for agent, each in self.of_agent.items() if each[0] not in numbers}
        self.escrows.recall(numbers)
        self.admission.serve(self.now_ms)

    def lead(self) -> None:
        """Recall what has no room any more, and what is in somebody's way; sometimes do something else."""
        crowded = [
            number
            for agent, (number, terms) in self.of_agent.items()
            if any(
                standing.left < standing.aside
                for standing in self.reservations.standings(self.series.names[agent], terms.estimate, self.now_ms)
            )
        ]
        self.recall(sorted({*crowded, *self.escrows.in_the_way()}))
        agent = self.rng.randrange(len(AGENTS))
        match self.rng.randrange(8):
            case 0 | 1 | 2:
                self.set_aside(agent, self.rng.choice([1, 5, 10, 20]), self.rng.choice(CALLS))
            case 3 | 4 | 5 | 6 if agent in self.of_agent:
                self.open(self.of_agent[agent][0])
            case 7 if self.rng.random() < 0.2:
                self.recall(list(self.escrows.by_number))

    # --- what clients do -------------------------------------------------------------------------

    def reserve(self, name: str, agent: int, cost: int, ttl_ms: int) -> dict[str, Any]:
        self.lead()
        estimate = Estimate(self.series.keys[agent], cost)
        now_ms, names = self.now_ms, tuple(self.series.names[agent])
        wish = Wish(name, "c", name, names, estimate, ttl_ms, now_ms, now_ms)
        number, terms = self.of_agent.get(agent, ("", None))
        if terms is not None and covers(terms.most, measures_of(estimate)):
            self.counters[number] -= 1
            left = self.counters[number]
            taken = self.escrows.take(number, estimate, is_given=True)
            assert (taken is not None) is (left >= 0), "the fold knows what the client knows"
            if left >= 0:
                self.drawn += 1
                return self.admission.take(wish, now_ms)
            self.exhausted += 1
        answer = self.admission.ask(wish, now_ms)
        while answer is None:
            self.recall(self.escrows.in_the_way())
            told = self.admission.take_told()
            assert len(told) <= 1
            answer = told[0][2] if told else None
        return answer

    def use(self, agent: int, amount: int) -> None:
        super().use(agent, amount)
        self.lead()

    def put(self, limit: Limit) -> None:
        super().put(limit)
        if hasattr(self, "escrows"):
            self.recall(list(self.escrows.by_number))
