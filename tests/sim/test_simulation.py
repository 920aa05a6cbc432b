"""Many stories with every fault: no event is lost, none counted twice, none invented, and both actors agree."""

from __future__ import annotations

import logging

import pytest

from tests.sim.story import Story

SEEDS = 300
PER_TEST = 10


@pytest.mark.fault
@pytest.mark.parametrize("first", range(1, SEEDS + 1, PER_TEST))
def test_no_fault_changes_a_number(first: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="token_actor")
    for seed in range(first, first + PER_TEST):
        verdict = Story(seed).tell()
        assert verdict.clean, str(verdict)


@pytest.mark.fault
def test_the_same_seed_tells_the_same_story(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="token_actor")
    first, again = Story(7).tell(), Story(7).tell()
    assert str(first) == str(again)
    assert first.events > 0
