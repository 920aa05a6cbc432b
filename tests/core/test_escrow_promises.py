"""With escrow every limit promises what it promises without: the same operations against the same lists."""

from __future__ import annotations

import os

import pytest

from tests.core.desk import AGENTS
from tests.core.test_limit_promises import STEPS, Run, played
from tests.core.till import Till
from token_actor.core.limits import KINDS

RUNS = 6 * int(os.environ.get("MORE_EXAMPLES", "1"))  # of each kind


class EscrowRun(Run):
    """Tell a till and the oracle the same."""

    def __init__(self, kind, seed):
        super().__init__(kind, seed)
        self.desk = Till(self.limit, self.started_ms, self.rng)


@pytest.fixture(scope="module", params=KINDS)
def runs(request):
    return played(request.param, EscrowRun, RUNS)


def test_every_decision_is_that_of_the_lists_whoever_took_it(runs):
    steps = RUNS * STEPS
    assert sum(run.desk.drawn for run in runs) > steps / 100
    assert sum(run.desk.exhausted for run in runs) > steps / 1_000
    assert sum(run.desk.recalled for run in runs) > steps / 200
    assert sum(run.refusals for run in runs) > steps / 100


def test_what_is_granted_is_what_was_promised(runs):
    for run in runs:
        run.oracle.check_all(run.most)


def test_nothing_is_reserved_or_set_aside_at_rest(runs):
    for run in runs:
        run.come(run.desk.now_ms + 3 * run.span_ms)
        run.desk.recall(list(run.desk.escrows.by_number))
        (meter,) = run.desk.limits.meters.values()
        assert meter.aside == {}
        assert run.desk.reservations.promised == 0
        for agent in AGENTS:
            assert meter.counters.sums(meter.index(agent), run.desk.now_ms)[1] == 0
