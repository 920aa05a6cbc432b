from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_actor.core.window import SAMPLES_MAX, SteadyTime, TrailingWindow


@pytest.fixture
def window():
    return TrailingWindow()


@pytest.fixture(scope="module")
def worn():
    """Return a window after a million events, one a second: event ``n`` came at ``n`` and counts ``n``."""
    window = TrailingWindow()
    for number in range(1_000_000):
        window.add(number, float(number))
    return window


def sum_of_last(events):
    """Return what the last ``events`` of the million count."""
    return sum(range(1_000_000 - events, 1_000_000))


def test_an_empty_window_holds_nothing(window):
    assert window.sum(60, 1000) == 0


def test_events_inside_the_window_add_up(window):
    window.add(5, 10.0)
    window.add(7, 20.0)
    assert window.sum(60, 30.0) == 12


def test_an_event_exactly_as_old_as_the_window_counts(window):
    window.add(5, 10.0)
    assert window.sum(60, 70.0) == 5


def test_an_event_older_than_the_window_does_not_count(window):
    window.add(5, 10.0)
    assert window.sum(60, 70.25) == 0


def test_an_event_of_this_very_instant_counts(window):
    window.add(5, 10.0)
    assert window.sum(0, 10.0) == 5


def test_events_of_one_instant_share_a_sample(window):
    for _ in range(1000):
        window.add(1, 10.0)
    assert len(window) == 1
    assert window.sum(1, 10.0) == 1000


def test_an_event_of_nothing_changes_no_sum(window):
    window.add(5, 10.0)
    window.add(0, 20.0)
    assert window.sum(60, 20.0) == 5


def test_an_event_from_before_the_last_one_is_taken_as_of_then(window):
    window.add(5, 100.0)
    window.add(7, 50.0)
    assert window.sum(10, 105.0) == 12


def test_a_question_from_before_the_last_event_is_taken_as_of_then(window):
    window.add(5, 80.0)
    window.add(7, 100.0)
    assert window.sum(10, 85.0) == 7


def test_an_infinite_window_holds_everything(window):
    window.add(5, 10.0)
    assert window.sum(float("inf"), 1e9) == 5


def test_a_cleared_window_holds_nothing(window):
    window.add(5, 10.0)
    window.clear()
    assert (len(window), window.sum(60, 10.0)) == (0, 0)


def test_a_cleared_window_may_start_at_an_earlier_time(window):
    window.add(5, 100.0)
    window.clear()
    window.add(7, 10.0)
    assert window.sum(5, 10.0) == 7
    assert window.sum(5, 16.0) == 0


def test_windows_stay_exact_when_the_total_outgrows_64_bits(window):
    for second in range(30):
        window.add(2**60, float(second))
    assert window.sum(9, 29.0) == 10 * 2**60
    assert window.sum(1000, 29.0) == 30 * 2**60


def test_the_samples_are_bounded(worn):
    assert len(worn) <= SAMPLES_MAX == 131_072


def test_the_bytes_are_bounded(worn):
    held = sum(array.buffer_info()[1] * array.itemsize for array in (worn._times_s, worn._totals))
    assert held <= 2 * 2**20


@pytest.mark.parametrize("events", [1, 2, 1000, 32_768, 65_535, 65_536])
def test_the_last_65_536_events_are_exact_after_a_million(worn, events):
    assert worn.sum(events - 1, 999_999.0) == sum_of_last(events)


@pytest.mark.parametrize("events", [150_000, 300_000, 777_777])
def test_beyond_that_a_sum_is_never_too_small(worn, events):
    assert sum_of_last(events) <= worn.sum(events - 1, 999_999.0) <= sum_of_last(min(2 * events, 1_000_000))


def test_a_window_over_everything_is_exact_after_a_million(worn):
    assert worn.sum(1e9, 999_999.0) == sum_of_last(1_000_000)


@pytest.mark.parametrize(("since_s", "expected"), [(0, 45), (1, 45), (2, 42), (3, 42), (4, 35), (5, 30), (8, 9)])
def test_a_merged_pair_counts_whole_or_not_at_all(since_s, expected):
    window = TrailingWindow(samples_max=8)
    for second in range(9):  # the ninth merges 0 with 1, and 2 with 3
        window.add(second + 1, float(second))
    assert len(window) == 7
    assert window.sum(8 - since_s, 8.0) == expected


def test_each_merge_keeps_the_newer_half_exact():
    window = TrailingWindow(samples_max=64)
    for number in range(1000):
        window.add(number, float(number))
        events = min(32, number + 1)
        exact = sum(range(number + 1 - events, number + 1))
        assert window.sum(events - 1, float(number)) == exact


EVENTS = st.lists(st.tuples(st.integers(0, 10**12), st.integers(-3, 20)), max_size=200)


def brute_force(events, window_s, now_s):
    """Return the amounts in the window, of (amount, time) pairs whose time is at least the one before."""
    times_s = list(accumulate((at_s for _, at_s in events), max))
    now_s = max([now_s, *times_s])
    return [amount for (amount, _), at_s in zip(events, times_s, strict=True) if at_s >= now_s - window_s]


def timed(steps):
    """Turn (amount, step of the clock) into (amount, time)."""
    times_s = accumulate(step for _, step in steps)
    return [(amount, float(at_s)) for (amount, _), at_s in zip(steps, times_s, strict=True)]


@given(EVENTS, st.integers(0, 4000), st.integers(-10, 100))
def test_a_window_that_is_not_full_agrees_with_brute_force(steps, window_s, after_s):
    window, events = TrailingWindow(), timed(steps)
    for amount, at_s in events:
        window.add(amount, at_s)
    now_s = (events[-1][1] if events else 0) + after_s
    assert window.sum(window_s, now_s) == sum(brute_force(events, window_s, now_s))


@given(EVENTS, st.integers(0, 4000))
def test_a_full_window_is_never_too_small_and_exact_for_its_newer_half(steps, window_s):
    window, events = TrailingWindow(samples_max=16), timed(steps)
    for amount, at_s in events:
        window.add(amount, at_s)
    now_s = events[-1][1] if events else 0.0
    inside = brute_force(events, window_s, now_s)
    assert window.sum(window_s, now_s) >= sum(inside)
    if len(inside) <= 8:
        assert window.sum(window_s, now_s) == sum(inside)


@pytest.mark.parametrize("samples_max", [0, 2, 63, -4])
def test_halves_that_do_not_thin_evenly_are_a_bug(samples_max):
    with pytest.raises(AssertionError):
        TrailingWindow(samples_max=samples_max)


def test_steady_time_follows_the_clock():
    assert SteadyTime(10.0).at(12.5) == 12.5


def test_steady_time_stands_still_when_the_clock_is_set_back():
    steady = SteadyTime(10.0)
    steady.at(20.0)
    assert steady.at(5.0) == 20.0


def test_steady_time_goes_on_from_where_it_stood():
    steady = SteadyTime(10.0)
    steady.at(5.0)
    assert steady.at(7.0) == 12.0


def test_steady_time_survives_a_clock_that_is_set_back_twice():
    steady = SteadyTime(100.0)
    steady.at(50.0)
    steady.at(60.0)
    assert steady.at(0.0) == 110.0
    assert steady.at(1.0) == 111.0


def test_steady_time_believes_a_step_forward():
    assert SteadyTime(10.0).at(3610.0) == 3610.0


@given(st.lists(st.integers(-(10**6), 10**6), min_size=1))
def test_steady_time_never_runs_backwards(readings):
    steady = SteadyTime(float(readings[0]))
    times_s = [steady.at(float(reading)) for reading in readings]
    assert times_s == sorted(times_s)
