"""What each kind of limit promises, over 100,000 random operations per kind, against plain lists of what was taken.

The lists are added up anew for every decision. Each run is random, but the same every time; ``MORE_EXAMPLES``
multiplies the runs. A failure prints kind and seed.
"""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import replace
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from tests.core.desk import AGENTS, Desk
from tests.core.lists import ORACLES, Lot
from tests.makers import START_MS
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


def played(kind, of, many):
    """Return so many runs of a class, all of them played; a failure says which."""
    made = [of(kind, seed) for seed in range(many)]
    for seed, run in enumerate(made):
        try:
            run.play()
        except AssertionError:
            print(f"kind {run.kind}, seed {seed}, operation {run.steps}")
            raise
    return made


@pytest.fixture(scope="module", params=KINDS)
def runs(request):
    return played(request.param, Run, RUNS)


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
