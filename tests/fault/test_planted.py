"""The checker checks itself: with each planted bug, the scenario that is there for it must fail.

``test_scenarios`` shows that the same scenario passes without the bug.
"""

from __future__ import annotations

import pytest

from tests.fault.planted import BUGS
from tests.fault.scenarios.all import SCENARIOS

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

CAUGHT_BY = {  # the scenario, and the promise that it finds broken first
    "dedupe off": ("lost replies", "I2"),
    "trim too early": ("snapshot steps", "I9"),  # an actor refuses to start on a log with a gap
    "offset saved before state": ("snapshot steps", "I1"),
    "TTL-only lease": ("leader paused", "I7"),
    "unfenced manifest": ("leader paused in a snapshot", "I7"),
    "retry with a new id": ("lost replies", "I2"),
    "snapshot without dedupe state": ("snapshot steps", "I"),
    "seq reset at restart": ("producer killed", "I1"),
    "float tokens": ("producer killed", "I4"),
    "destructive read": ("snapshot steps", "I9"),  # the same gap
    "reservation never expires": ("reserve storm", "I6"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug, forks):
    scenario, promise = CAUGHT_BY[bug]
    outcome = SCENARIOS[scenario].run(forks, planted=bug)
    assert any(violation.startswith(promise) for violation in outcome.violations), outcome.violations
