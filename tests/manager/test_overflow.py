from __future__ import annotations

import math

import numpy as np
import pytest

from token_actor.errors import InvalidValue


def test_an_estimate_below_the_limit_does_not_overflow(manager):
    manager.update_tokens(300, 200)
    assert manager.predict_overflow(250) == (False, 75.0)


def test_an_estimate_above_the_limit_overflows(manager):
    manager.update_tokens(300, 200)
    assert manager.predict_overflow(750) == (True, 125.0)


def test_filling_the_window_to_the_last_token_is_no_overflow(manager):
    manager.update_tokens(900)
    assert manager.predict_overflow(100) == (False, 100.0)


def test_one_token_more_is_an_overflow(manager):
    manager.update_tokens(900)
    assert manager.predict_overflow(101) == (True, 101 / 10 + 90)


def test_an_estimate_of_nothing_is_the_usage_now(manager):
    manager.update_tokens(250)
    assert manager.predict_overflow(0) == (False, 25.0)


def test_a_full_window_overflows_only_with_something_to_add(manager):
    manager.update_tokens(1001)
    assert manager.predict_overflow(0) == (True, 1001 / 1000 * 100)


def test_cached_tokens_do_not_overflow(manager):
    manager.update_tokens(cache_read=10**6, cache_write=10**6)
    assert manager.predict_overflow(1000) == (False, 100.0)


def test_a_prediction_changes_nothing(manager):
    manager.update_tokens(1)
    before = manager.export_metrics()
    manager.predict_overflow(10**9)
    assert manager.export_metrics() == before


def test_an_estimate_may_be_a_fraction(manager):
    manager.update_tokens(999)
    assert manager.predict_overflow(1.5) == (True, 1000.5 / 1000 * 100)


def test_an_estimate_may_be_an_integer_of_another_library(manager):
    assert manager.predict_overflow(np.int64(500)) == (False, 50.0)


@pytest.mark.parametrize("estimate", [-1, -0.5, 10**12 + 1, math.inf, math.nan, True, "100", None])
def test_an_estimate_that_is_no_number_of_tokens_is_refused(manager, estimate):
    with pytest.raises(InvalidValue, match="^estimated_tokens must be"):
        manager.predict_overflow(estimate)


def test_below_the_threshold_there_is_no_warning(manager, warnings):
    manager.update_tokens(799)
    assert warnings == []


def test_the_threshold_itself_warns(manager, warnings):
    manager.update_tokens(800)
    assert warnings == [(80.0, 800, 1000)]


def test_a_warning_tells_usage_tokens_and_limit(manager, warnings):
    manager.update_tokens(400, 450)
    assert warnings == [(85.0, 850, 1000)]


def test_a_second_warning_waits_for_60_seconds(manager, clock, warnings):
    manager.update_tokens(900)
    clock.advance(59.75)
    manager.update_tokens(1)
    assert len(warnings) == 1


def test_after_60_seconds_there_is_a_second_warning(manager, clock, warnings):
    manager.update_tokens(900)
    clock.advance(60)
    manager.update_tokens(1)
    assert warnings == [(90.0, 900, 1000), (901 / 1000 * 100, 901, 1000)]


def test_a_hundred_updates_in_a_second_warn_once(manager, clock, warnings):
    for _ in range(100):
        manager.update_tokens(100)
        clock.advance(0.01)
    assert len(warnings) == 1


def test_a_minute_of_updates_below_the_threshold_does_not_use_the_warning_up(manager, clock, warnings):
    manager.update_tokens(1)
    clock.advance(1)
    manager.update_tokens(900)
    assert len(warnings) == 1


def test_a_duplicate_does_not_warn(manager, clock, warnings):
    manager.update_tokens(900, message_id="m")
    clock.advance(60)
    manager.update_tokens(900, message_id="m")
    assert len(warnings) == 1


def test_a_threshold_of_zero_warns_at_the_first_update(make, warnings):
    make(1000, overflow_warning_threshold=0).update_tokens()
    assert warnings == [(0.0, 0, 1000)]


def test_a_threshold_of_100_warns_when_the_window_is_full(make, warnings):
    manager = make(1000, overflow_warning_threshold=100)
    manager.update_tokens(999)
    assert warnings == []
    manager.update_tokens(1)
    assert warnings == [(100.0, 1000, 1000)]


def test_a_new_threshold_is_in_force_at_once(manager, warnings):
    manager.overflow_warning_threshold = 10
    manager.update_tokens(100)
    assert warnings == [(10.0, 100, 1000)]


def test_cached_tokens_do_not_warn(manager, warnings):
    manager.update_tokens(cache_read=5000)
    assert warnings == []
