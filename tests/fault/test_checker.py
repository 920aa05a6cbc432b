"""The checker, on an in-memory fleet whose faults are known: it names what is lost, double and invented."""

from __future__ import annotations

import pytest

from tests.fault.checker import Verdict, check_counts
from tests.fault.truth import Journal, Truth, names, numbers
from token_actor import TokenClient

AT_MS = 1_700_000_000_000
EVENTS = 1_100  # three blocks


@pytest.fixture
def client():
    with TokenClient("memory://") as each:
        yield each


def record(client, ks, *, producer=1, more=0, at_ms=None):
    for k in ks:
        tokens = numbers(producer, k)
        timestamp = None if at_ms is None else at_ms / 1000
        dimensions = names(producer, k)
        client.record(
            tokens[0], tokens[1] + more, tokens[2], reasoning_tokens=tokens[3], timestamp=timestamp, **dimensions
        )


def verdict_of(client, tmp_path, *, attempted, accepted, at_ms):
    journal = Journal(tmp_path / "truth")
    journal.attempts(1, attempted, at_ms)
    journal.accepted(1, accepted)
    verdict = Verdict()
    check_counts(client, [Truth.read(1, tmp_path / "truth")], verdict)
    return verdict


@pytest.fixture
def now_ms(client):
    client.record(agent="probe")
    (event,) = client.history()
    return int(event["timestamp"] * 1000)


@pytest.fixture
def check(tmp_path, now_ms):
    def checked(*ks, attempted=EVENTS, accepted=EVENTS, more=0, at_ms=now_ms):
        with TokenClient("memory://") as fleet:
            for part in ks:
                record(fleet, part, more=more, at_ms=at_ms)
            return verdict_of(fleet, tmp_path, attempted=attempted, accepted=accepted, at_ms=now_ms)

    return checked


def test_what_was_counted_once_is_right(check):
    verdict = check(range(1, EVENTS + 1))
    assert verdict.violations == []
    assert (verdict.events, verdict.lost, verdict.twice) == (EVENTS, 0, 0)


def test_an_attempt_that_was_never_accepted_may_be_counted_or_not(check):
    verdict = check(range(1, 1_051), accepted=1_000)
    assert verdict.violations == []
    assert verdict.events == 1_050


def test_a_lost_event_is_named(check):
    verdict = check(range(1, 700), range(701, EVENTS + 1))
    assert verdict.lost == 1
    assert verdict.violations == ["I1: 1 accepted events of agent-1 are lost: 700"]


def test_a_lost_block_is_named(check):
    assert check(range(1, 1_000)).lost == EVENTS - 999


def test_an_event_that_counts_twice_is_named(check):
    verdict = check(range(1, EVENTS + 1), [3, 4, 4])
    assert verdict.twice == 3
    assert verdict.violations == ["I2: 2 events of agent-1 count twice: 3, 4"]


def test_one_lost_and_another_one_twice_do_not_hide_each_other(check):
    verdict = check(range(1, 500), [499], range(501, EVENTS + 1))
    assert (verdict.lost, verdict.twice) == (1, 1)


def test_an_event_with_other_numbers_is_invented(check):
    verdict = check([1], attempted=1, accepted=1, more=1)
    assert verdict.violations[0].startswith("I3: event 1 of agent-1 is not as it was recorded")


def test_an_event_that_nobody_tried_is_invented(check):
    verdict = check(range(1, 12), attempted=10, accepted=10)
    assert verdict.violations[0].startswith("I3: event 11 of agent-1")
    assert check(range(1, 502), attempted=10, accepted=10).violations[-1].startswith("I")


def test_an_event_in_another_minute_is_noticed(check, now_ms):
    verdict = check(range(1, 11), attempted=10, accepted=10, at_ms=now_ms - 120_000)
    assert [violation[:40] for violation in verdict.violations] == ["I4: the sums of 1 of 1 by minute differ;"]
