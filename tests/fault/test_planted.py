"""The checker checks itself: with each planted bug, the scenario that is there for it must fail.

``test_scenarios`` shows that the same scenario passes without the bug.
"""

from __future__ import annotations

import pytest

from tests.fault.planted import BUGS
from tests.fault.scenario import Scale
from tests.fault.scenarios.all import SCENARIOS

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

MINUTES = 0.2  # of faults: a bug that is caught at all is caught soon
# An actor refuses to start on a log with a gap, which alone would give these away: here it is told to go on.
ACCEPTING_LOSS = {"trim too early", "destructive read"}
CAUGHT_BY = {  # the scenario, and the promise that it finds broken
    "dedupe off": ("lost replies", "I2"),
    "trim too early": ("snapshot steps", "I1"),
    "offset saved before state": ("snapshot steps", "I1"),
    "TTL-only lease": ("leader paused", "I7"),
    "unfenced manifest": ("leader paused in a snapshot", "I7"),
    "retry with a new id": ("lost replies", "I2"),
    "snapshot without dedupe state": ("snapshot steps", "I"),
    "seq reset at restart": ("producer killed", "I1"),
    "float tokens": ("producer killed", "I4"),
    "destructive read": ("snapshot steps", "I1"),
    "fsync removed": ("synced", "I1"),
    "reservation never expires": ("reserve storm", "I6"),
    "counter outlives recall": ("escrow storm", "I8"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug, forks):
    scenario, promise = CAUGHT_BY[bug]
    settings = {"accept_data_loss": bug in ACCEPTING_LOSS}
    outcome = SCENARIOS[scenario].run(forks, scale=Scale(minutes=MINUTES), planted=bug, settings=settings)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert any(violation.startswith(promise) for violation in outcome.violations), outcome.violations
