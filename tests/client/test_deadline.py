"""A deadline is a moment, and remembers how long it was meant to be."""

from __future__ import annotations

import math
import threading
import time

import pytest

from token_actor.client.deadline import Deadline, made_at
from token_actor.errors import InvalidValue


def test_it_says_how_much_is_left():
    assert 9.9 < Deadline.after(10).left_s <= 10


def test_it_remembers_the_seconds_that_were_given():
    assert Deadline.after(2.5).timeout_s == 2.5


def test_nothing_is_left_after_it():
    assert Deadline.after(0).left_s <= 0


@pytest.mark.parametrize("timeout_s", [-1, -0.001, math.nan, math.inf, 1e300, "5", None, True])
def test_what_nobody_can_wait_for_is_refused(timeout_s):
    with pytest.raises(InvalidValue) as wrong:
        Deadline.after(timeout_s)
    assert wrong.value.field == "timeout_s"


def test_the_longest_wait_of_the_system_is_fine():
    assert Deadline.after(threading.TIMEOUT_MAX).left_s > 0


def test_the_first_deadline_of_a_call_counts_from_when_it_was_made():
    made_s = time.monotonic() - 7
    deadlines = made_at(made_s, lambda: [Deadline.after(10), Deadline.after(10)])
    assert deadlines[0].at == made_s + 10
    assert 9.9 < deadlines[1].left_s <= 10


def test_a_call_without_a_deadline_leaves_nothing_behind():
    made_at(time.monotonic() - 7, lambda: None)
    assert 9.9 < Deadline.after(10).left_s <= 10
