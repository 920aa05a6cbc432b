"""Every scenario, with the seed of this suite: whatever is done to the processes, the numbers stay right."""

from __future__ import annotations

import pytest

from tests.fault.scenarios.all import SCENARIOS

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]


def _parameter(scenario):
    known = [pytest.mark.xfail(reason=scenario.known, strict=True)] if scenario.known else []
    return pytest.param(scenario, id=scenario.name, marks=known)


@pytest.mark.parametrize("scenario", [_parameter(s) for s in SCENARIOS.values() if not s.long_only])
def test_every_promise_is_kept_through(scenario, forks, outcomes):
    outcome = scenario.run(forks)
    outcomes.append(outcome)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert outcome.held, "\n".join(outcome.violations)
