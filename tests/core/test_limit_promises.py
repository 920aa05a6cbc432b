"""What each kind of limit promises, over 100,000 random operations per kind, against plain lists of what was taken.

The lists are added up anew for every decision. Each run is random, but the same every time; ``MORE_EXAMPLES``
multiplies the runs. A failure prints kind and seed.
"""

from __future__ import annotations

import os
import random
from collections import Counter, deque
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from tests.core.desk import AGENTS, Desk
from tests.makers import START_MS
from token_actor.core.calendars import WEEKDAYS
from token_actor.core.limits import KINDS, Limit

OPERATIONS = 100_000  # per kind, at least
STEPS = 2_000  # of each run
RUNS = OPERATIONS // STEPS * int(os.environ.get("MORE_EXAMPLES", "1"))
DAY_MS = 86_400_000
CLOCKS_CHANGE = [
    ("America/New_York", "2026-03-08"), ("America/New_York", "2026-11-01"),
    ("Europe/Berlin", "2026-03-29"), ("Europe/Berlin", "2026-10-25"),
    ("Australia/Lord_Howe", "2026-04-05"), ("Australia/Lord_Howe", "2026-10-04"),
    ("Asia/Kolkata", "2026-03-29"), ("Asia/Kolkata", "2026-10-25"),  # theirs do not
    ("UTC", "2026-03-29"), ("UTC", "2026-10-25"),
]  # fmt: skip
PERIODS = [
    ("day", "monday", 1),
    ("week", "monday", 7),
    ("week", "saturday", 7),
    ("week", "sunday", 7),
    ("month", "monday", 31),
]


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


class Run:
    """Tell desk and oracle the same, and compare what they say."""

    def __init__(self, kind, seed):
        self.rng = random.Random(f"{kind} {seed}")
        self.kind = kind
        self.changes = self.rng.random() < 1 / 3  # of the limit while it is in force
        on_expire = self.rng.choice(["charge", "refund"])
        more, start_ms, self.span_ms = self.of_kind(kind, seed)
        self.limit = Limit(
            "l", 3 if kind == "concurrency" else 100, kind=kind, by=["agent"], on_expire=on_expire, **more
        )
        self.most = (self.limit.amount, self.limit.capacity)
        self.started_ms = start_ms
        self.desk = Desk(self.limit, start_ms)
        self.oracle = ORACLES[kind](self.limit)
        self.latest = deque(maxlen=30)
        self.steps = self.grants = self.refusals = self.waits = 0

    def of_kind(self, kind, seed):
        """Return more fields of the limit, when the run starts, and about how long a fill of the limit lasts."""
        if kind == "calendar":
            tz, day = CLOCKS_CHANGE[seed % len(CLOCKS_CHANGE)]
            period, week_start, days = PERIODS[seed // len(CLOCKS_CHANGE) % len(PERIODS)]
            self.change_ms = (
                int(datetime.combine(date.fromisoformat(day), datetime.min.time(), ZoneInfo(tz)).timestamp()) * 1000
            )
            fields = {"period": period, "tz": tz, "week_start": week_start}
            return fields, self.change_ms - int(timedelta(days=1.4 * days).total_seconds() * 1000), days * DAY_MS
        seconds = self.rng.choice([0.05, 0.7, 3, 60, 3_600])
        burst = {"burst": self.rng.choice([40, 100, 250])} if kind == "bucket" else {}
        return {"seconds": seconds, **burst}, START_MS, int(seconds * 1000)

    def play(self):
        while self.steps < STEPS:
            self.come(self.desk.now_ms + int(self.span_ms * self.rng.choice([0, 0, 0.001, 0.005, 0.02])))
            kind = self.rng.choice(self.MIX)
            getattr(self, kind)()

    MIX = ["reserve"] * 10 + ["settle"] * 4 + ["release", "extend", "use", "put"]

    def come(self, now_ms):
        """Begin an operation, at a time."""
        self.steps += 1
        self.desk.at(now_ms)
        self.oracle.advance(now_ms, self.steps)

    def reserve(self, agent=None, cost=None):
        """Reserve; return the decision once it is the oracle's, too."""
        rng, now_ms, first = self.rng, self.desk.now_ms, agent is None
        if first:
            agent = rng.randrange(len(AGENTS))
            cost = 1 if self.kind == "concurrency" else rng.choice([0, 1, 5, 10, 20, 40, 101])
        ttl_ms = 1 + int(self.span_ms * rng.choice([0, 0.01, 0.1, 0.5, 2]))
        name = str(self.steps)
        got = self.desk.reserve(name, agent, cost, ttl_ms)
        remaining = self.oracle.remaining(agent, now_ms)
        assert got["granted"] is (cost <= remaining)
        assert got["never"] is (cost > self.limit.capacity)
        if got["granted"]:
            self.grants += 1
            lot = Lot(now_ms, self.oracle.place(now_ms), cost, agent, now_ms + ttl_ms, "open", self.steps)
            self.oracle.grant(name, lot)
            self.latest.append(name)
            self.oracle.reachable = int(self.latest[0])
            if cost:  # nothing fits even where debt has used more than there is
                self.oracle.check_grant(lot)
        else:
            self.refusals += 1
            assert got["remaining"] == remaining
            self.oracle.check_refusal(agent, cost, now_ms)
            if first and not got["never"] and rng.random() < 0.06:
                self.wait(agent, cost, got["retry_after_ms"])
        return got

    def wait(self, agent, cost, retry_after_ms):
        """Nothing happens until it should fit: it does not one ms before, and then it does."""
        fits_ms = self.desk.now_ms + retry_after_ms
        if retry_after_ms > 1:
            self.come(fits_ms - 1)
            early = self.reserve(agent, cost)
            assert (early["granted"], early["retry_after_ms"]) == (False, 1)
        self.come(fits_ms)
        assert self.reserve(agent, cost)["granted"]
        self.waits += 1

    def pick(self, *states):
        names = [name for name in self.latest if self.oracle.booked[name].state in states]
        return self.rng.choice(names) if names else None

    def settle(self):
        name = self.pick("open", "open", "expired", "released")
        if name is not None:
            lot, amount = self.oracle.booked[name], self.rng.choice([None, 0, 1, 5, 20, 45])
            late = lot.state != "open"
            answer = self.desk.settle(name, lot.agent, amount)
            assert (answer["late"], answer["unknown"]) == (late, False)
            if amount is None:
                self.oracle.open.pop(name, None)
                lot.ended = min(lot.ended, self.steps)
            else:
                self.oracle.settle(name, 0 if self.kind == "concurrency" else amount, self.desk.now_ms, self.steps)
            lot.state = "settled"

    def release(self):
        name = self.pick("open")
        if name is not None:
            assert self.desk.release(name)["released"]
            lot = self.oracle.close(name, "released", self.steps)
            self.oracle.give_back(lot, lot.amount, self.desk.now_ms)

    def extend(self):
        name = self.pick("open", "expired")
        if name is not None:
            lot, ttl_ms = self.oracle.booked[name], 1 + int(self.span_ms * self.rng.choice([0, 0.05, 0.5]))
            assert self.desk.extend(name, ttl_ms)["extended"] is (lot.state == "open")
            if lot.state == "open":
                lot.expires_ms = self.desk.now_ms + ttl_ms

    def use(self):
        agent, amount = self.rng.randrange(len(AGENTS)), self.rng.randrange(12)
        self.desk.use(agent, amount)
        if self.kind != "concurrency":
            self.oracle.use(agent, amount, self.desk.now_ms)

    def put(self):
        """Raise or lower the limit, in some runs; in others put it as it is."""
        if self.changes:
            amount = self.rng.randrange(2, 6) if self.kind == "concurrency" else self.rng.randrange(60, 140)
            burst = None if self.limit.burst is None else self.rng.randrange(30, 200)
            self.limit = replace(self.limit, amount=amount, burst=burst)
            self.most = (max(self.most[0], amount), max(self.most[1], self.limit.capacity))
        self.desk.put(self.limit)
        self.oracle.put(self.limit, self.desk.now_ms)


@pytest.fixture(scope="module", params=KINDS)
def runs(request):
    made = [Run(request.param, seed) for seed in range(RUNS)]
    for seed, run in enumerate(made):
        try:
            run.play()
        except AssertionError:
            print(f"kind {run.kind}, seed {seed}, operation {run.steps}")
            raise
    return made


def test_every_decision_is_that_of_the_lists(runs):
    assert sum(run.steps for run in runs) >= OPERATIONS
    assert sum(run.grants for run in runs) > OPERATIONS / 10
    assert sum(run.refusals for run in runs) > OPERATIONS / 20
    assert sum(run.waits for run in runs) > OPERATIONS / 500


def test_what_is_granted_is_what_was_promised(runs):
    for run in runs:
        run.oracle.check_all(run.most)


def test_nothing_is_reserved_at_rest(runs):
    for run in runs:
        run.come(run.desk.now_ms + 3 * run.span_ms)
        for agent in AGENTS:
            (meter,) = run.desk.limits.meters.values()
            assert meter.counters.sums(meter.index(agent), run.desk.now_ms)[1] == 0
        assert run.desk.reservations.open == {}


def test_calendars_were_looked_at_over_the_days_on_which_clocks_change():
    run = Run("calendar", 0)
    run.play()
    assert run.started_ms + DAY_MS < run.change_ms < run.desk.now_ms - DAY_MS
