"""What each kind of limit must say and may grant, known from plain lists of what was taken, added up anew each time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

from tests.core.desk import AGENTS
from token_actor.core.calendars import WEEKDAYS


@dataclass(slots=True, eq=False)
class Lot:
    """What was taken at once: when, where it counts, and how much of it still counts."""

    at_ms: int
    place: int
    amount: int
    agent: int
    expires_ms: int = 0
    state: str = "used"
    begun: int = 0  # the operation in which it was granted
    ended: int = 2**62  # and in which it was not open any more


class Oracle:
    """Keep lists; know what counts by adding up."""

    def __init__(self, limit):
        self.limit = limit
        self.lots = [[] for _ in AGENTS]
        self.granted = [[] for _ in AGENTS]
        self.open = {}
        self.booked = {}
        self.reachable = 0  # the first operation whose reservation may still be settled

    def place(self, at_ms):
        """Return a number that grows with time: where it counts what is taken at a time."""
        raise NotImplementedError

    def oldest(self, now_ms):
        """Return the oldest place that counts now."""
        return self.place(now_ms)

    def taken(self, agent, now_ms):
        oldest = self.oldest(now_ms)
        self.lots[agent] = [lot for lot in self.lots[agent] if lot.place >= oldest]  # time only moves forward
        return sum(lot.amount for lot in self.lots[agent])

    def remaining(self, agent, now_ms):
        return max(0, self.limit.amount - self.taken(agent, now_ms))

    def put(self, limit, now_ms):
        self.limit = limit

    def advance(self, now_ms, step):
        due = [(lot.expires_ms, name) for name, lot in self.open.items() if lot.expires_ms <= now_ms]
        for _, name in sorted(due):
            lot = self.close(name, "expired", step)
            if self.limit.gives_back:
                self.give_back(lot, lot.amount, lot.expires_ms)

    def close(self, name, state, step):
        lot = self.open.pop(name)
        lot.state, lot.ended = state, step
        return lot

    def grant(self, name, lot):
        self.lots[lot.agent].append(lot)
        self.granted[lot.agent].append(lot)
        self.open[name] = self.booked[name] = lot

    def use(self, agent, amount, now_ms):
        self.lots[agent].append(Lot(now_ms, self.place(now_ms), amount, agent))

    def give_back(self, lot, amount, now_ms):
        lot.amount -= amount

    def settle(self, name, amount, now_ms, step):
        """What was used counts where it was reserved, as far as it was; the rest counts now."""
        lot = self.booked[name]
        if lot.state == "open":
            self.close(name, "open", step)
        covered = 0 if lot.state == "released" else min(lot.amount, amount)
        if lot.state != "released":
            self.give_back(lot, lot.amount - covered, now_ms)
        self.use(lot.agent, amount - covered, now_ms)

    def check_grant(self, lot):
        """The kind's promise, looked at where it could be broken: at a grant, which is among the lots by now."""

    def check_refusal(self, agent, cost, now_ms):
        """What was refused would have broken the promise."""
        assert self.taken(agent, now_ms) + cost > self.limit.amount

    def check_all(self, most):
        """The kind's promise over the whole run; ``most`` are the largest amount, burst there was."""
        raise NotImplementedError


class WindowOracle(Oracle):
    @property
    def width_ms(self):
        return -(-self.limit.window_ms // 60)

    def place(self, at_ms):
        return at_ms // self.width_ms

    def oldest(self, now_ms):
        return self.place(now_ms) - 60

    def check_grant(self, lot):
        inside = [each.amount for each in self.lots[lot.agent] if each.at_ms >= lot.at_ms - self.limit.window_ms]
        assert sum(inside) <= self.limit.amount

    def check_refusal(self, agent, cost, now_ms):
        """Refusals come a sixtieth of the window too early at most."""
        since_ms = now_ms - self.limit.window_ms - self.width_ms - 60
        inside = [each.amount for each in self.lots[agent] if each.at_ms > since_ms]
        assert sum(inside) + cost > self.limit.amount

    def check_all(self, most):
        for lots in self.granted:
            first = total = 0
            for lot in lots:
                total += lot.amount
                while lots[first].at_ms < lot.at_ms - self.limit.window_ms:
                    total -= lots[first].amount
                    first += 1
                assert total <= most[0]


class CalendarOracle(Oracle):
    def place(self, at_ms):
        today = datetime.fromtimestamp(at_ms / 1000, ZoneInfo(self.limit.tz)).date()
        if self.limit.period == "month":
            return today.replace(day=1).toordinal()
        of_week = (today.weekday() - WEEKDAYS.index(self.limit.week_start)) % 7
        return today.toordinal() - (of_week if self.limit.period == "week" else 0)

    def check_grant(self, lot):
        assert self.taken(lot.agent, lot.at_ms) <= self.limit.amount

    def check_all(self, most):
        for lots in self.granted:
            sums = Counter()
            for lot in lots:
                sums[lot.place] += lot.amount
            assert max(sums.values()) <= most[0]


class ConcurrencyOracle(Oracle):
    def place(self, at_ms):
        return 0

    def taken(self, agent, now_ms):
        return sum(lot.agent == agent for lot in self.open.values())

    def check_grant(self, lot):
        assert self.taken(lot.agent, lot.at_ms) <= self.limit.amount

    def check_all(self, most):
        for lots in self.granted:
            ends = [(lot.ended, -1) for lot in lots] + [(lot.begun, 1) for lot in lots]
            opened = 0
            for _, change in sorted(ends):
                opened += change
                assert opened <= most[0]


class BucketOracle(Oracle):
    """Let flow in, from the first lot on, between what was taken, as much of it as counts by now.

    In parts of a unit, so many that a whole number of them flows in per ms. The place of a lot is the
    rate from then on. Lots that nothing can happen to any more are added up.
    """

    def __init__(self, limit):
        super().__init__(limit)
        self.parts = limit.window_ms
        self.before = [(0, 0, limit.amount) for _ in AGENTS]

    def place(self, at_ms):
        return self.limit.amount

    def put(self, limit, now_ms):
        super().put(limit, now_ms)
        for agent in range(len(AGENTS)):
            self.use(agent, 0, now_ms)

    def missing(self, agent, now_ms):
        lots, known, adding = self.lots[agent], 0, len(self.lots[agent]) > 200
        missing, at_ms, rate = self.before[agent]
        for lot in lots:
            missing = max(0, missing - rate * (lot.at_ms - at_ms)) + lot.amount * self.parts
            at_ms, rate = lot.at_ms, lot.place
            adding = adding and lot.state != "open" and lot.begun < self.reachable
            if adding:
                known += 1
                self.before[agent] = (missing, at_ms, rate)
        del lots[:known]
        return max(0, missing - rate * (now_ms - at_ms))

    def remaining(self, agent, now_ms):
        return max(0, self.limit.capacity - -(-self.missing(agent, now_ms) // self.parts))

    def check_refusal(self, agent, cost, now_ms):
        assert self.missing(agent, now_ms) > (self.limit.capacity - cost) * self.parts

    def check_all(self, most):
        """Over every interval at most burst + rate · t: what is too much grows out of what was before."""
        for lots in self.granted:
            excess = 0
            for before, lot in pairwise([Lot(0, 0, 0, 0), *lots]):
                excess = max(0, excess - most[0] * (lot.at_ms - before.at_ms)) + lot.amount * self.parts
                assert excess <= most[1] * self.parts


ORACLES = {"window": WindowOracle, "bucket": BucketOracle, "calendar": CalendarOracle, "concurrency": ConcurrencyOracle}
