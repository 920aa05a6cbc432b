from __future__ import annotations

import math

import numpy as np
import pytest

from token_actor.errors import InvalidValue


def test_nothing_used_is_within_any_limit(manager):
    assert manager.check_rate_limit(60, 1) is True


def test_exactly_the_limit_is_within_it(manager):
    manager.update_tokens(1000)
    assert manager.check_rate_limit(60, 1000) is True


def test_one_token_more_is_not(manager):
    manager.update_tokens(1001)
    assert manager.check_rate_limit(60, 1000) is False


def test_all_four_kinds_are_limited(manager):
    manager.update_tokens(1, 2, 3, 4)
    assert manager.check_rate_limit(60, 10) is True
    assert manager.check_rate_limit(60, 9) is False


def test_the_arguments_may_be_keywords(manager):
    assert manager.check_rate_limit(window_seconds=60, max_tokens=1) is True


def test_a_request_exactly_as_old_as_the_window_still_counts(manager, clock):
    manager.update_tokens(100)
    clock.advance(60)
    assert manager.check_rate_limit(60, 99) is False


def test_a_request_older_than_the_window_does_not_count(manager, clock):
    manager.update_tokens(100)
    clock.advance(60.25)
    assert manager.check_rate_limit(60, 99) is True


def test_the_window_slides(manager, clock):
    for _ in range(4):
        manager.update_tokens(100)
        clock.advance(20)
    assert manager.check_rate_limit(60, 300) is True
    assert manager.check_rate_limit(60, 299) is False


def test_each_question_may_ask_for_another_window(manager, clock):
    manager.update_tokens(1000)
    clock.advance(10)
    manager.update_tokens(1)
    assert manager.check_rate_limit(5, 1) is True
    assert manager.check_rate_limit(15, 1000) is False


def test_a_window_may_be_a_fraction_of_a_second(manager, clock):
    manager.update_tokens(1000)
    clock.advance(0.5)
    assert manager.check_rate_limit(0.25, 1) is True


def test_a_window_may_reach_back_before_the_first_request(manager):
    manager.update_tokens(1000)
    assert manager.check_rate_limit(10**9, 999) is False


def test_a_window_may_be_infinite(manager, clock):
    manager.update_tokens(1000)
    clock.advance(10**6)
    assert manager.check_rate_limit(math.inf, 999) is False


def test_a_limit_may_be_infinite(manager):
    manager.update_tokens(1000)
    assert manager.check_rate_limit(60, math.inf) is True


def test_arguments_may_be_integers_of_another_library(manager):
    manager.update_tokens(1000)
    assert manager.check_rate_limit(np.int64(60), np.int64(1000)) is True


def test_more_requests_than_the_history_holds_are_all_in_the_window(make):
    manager = make(history_size=10)
    for _ in range(1000):
        manager.update_tokens(1)
    assert manager.check_rate_limit(60, 1000) is True
    assert manager.check_rate_limit(60, 999) is False


def test_the_limit_works_without_a_history(make):
    manager = make(history_size=0)
    manager.update_tokens(100)
    assert manager.check_rate_limit(60, 99) is False


def test_a_question_changes_nothing(manager):
    manager.update_tokens(100)
    before = manager.export_metrics()
    manager.check_rate_limit(60, 1)
    assert manager.export_metrics() == before


@pytest.mark.parametrize("window", [0, -1, -0.5, math.nan, True, "60", None])
def test_a_window_that_is_no_positive_number_is_refused(manager, window):
    with pytest.raises(InvalidValue, match="^window_seconds must be"):
        manager.check_rate_limit(window, 100)


@pytest.mark.parametrize("tokens", [0, -1, math.nan, True, "100", None])
def test_a_limit_that_is_no_positive_number_is_refused(manager, tokens):
    with pytest.raises(InvalidValue, match="^max_tokens must be"):
        manager.check_rate_limit(60, tokens)
