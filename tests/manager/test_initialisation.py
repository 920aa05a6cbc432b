from __future__ import annotations

import inspect
import math

import pytest

from token_actor import errors
from token_actor.core import manager as core
from token_actor.manager import TokenManager


def test_the_context_window_takes_200_000_tokens_by_default():
    assert TokenManager().context_window_limit == 200_000


def test_the_history_keeps_100_requests_by_default():
    assert TokenManager().history_size == 100


def test_the_warning_threshold_is_80_per_cent_by_default():
    assert TokenManager().overflow_warning_threshold == 80.0


def test_there_is_no_metrics_engine_by_default():
    assert TokenManager().metrics_engine is None


def test_the_arguments_keep_the_order_of_the_contract():
    parameters = inspect.signature(TokenManager).parameters
    assert list(parameters) == [
        "context_window_limit",
        "history_size",
        "overflow_warning_threshold",
        "metrics_engine",
    ]


def test_all_arguments_may_be_positional(engine):
    manager = TokenManager(5000, 7, 66.5, engine)
    assert (manager.context_window_limit, manager.history_size) == (5000, 7)
    assert manager.overflow_warning_threshold == 66.5
    assert manager.metrics_engine is engine


def test_a_new_manager_has_counted_nothing():
    manager = TokenManager()
    assert manager.input_tokens == 0
    assert manager.output_tokens == 0
    assert manager.cache_read_tokens == 0
    assert manager.cache_write_tokens == 0


def test_a_new_manager_knows_no_message_id():
    assert len(TokenManager().processed_message_ids) == 0


def test_a_new_manager_has_no_history():
    assert TokenManager().get_usage_history() == []


def test_two_managers_share_nothing():
    first, second = TokenManager(), TokenManager()
    first.update_tokens(1, message_id="m")
    assert second.input_tokens == 0
    assert "m" not in second.processed_message_ids


@pytest.mark.parametrize("limit", [0, -1, -0.5, math.nan, math.inf, True, "200000", None])
def test_a_limit_that_is_no_positive_number_is_refused(limit):
    with pytest.raises(ValueError, match="^context_window_limit must be"):
        TokenManager(limit)


@pytest.mark.parametrize("threshold", [-0.1, 100.1, math.nan, math.inf, -math.inf, True, "80", None])
def test_a_threshold_outside_0_to_100_is_refused(threshold):
    with pytest.raises(ValueError, match="^overflow_warning_threshold must be"):
        TokenManager(overflow_warning_threshold=threshold)


@pytest.mark.parametrize("size", [-1, 1.5, True, "100", None])
def test_a_history_size_that_counts_nothing_is_refused(size):
    with pytest.raises(ValueError, match="^history_size must be"):
        TokenManager(history_size=size)


@pytest.mark.parametrize("threshold", [0, 100])
def test_both_ends_of_the_threshold_are_allowed(threshold):
    assert TokenManager(overflow_warning_threshold=threshold).overflow_warning_threshold == threshold


def test_a_window_of_one_token_is_allowed():
    assert TokenManager(1).context_window_limit == 1


def test_a_refusal_tells_programs_which_argument_was_wrong():
    with pytest.raises(errors.InvalidValue) as refused:
        TokenManager(context_window_limit=0)
    assert refused.value.field == "context_window_limit"


def test_a_refused_number_is_out_of_range_but_a_refused_text_is_of_the_wrong_type():
    with pytest.raises(errors.InvalidValue) as out_of_range:
        TokenManager(-5)
    with pytest.raises(errors.InvalidValue) as wrong_type:
        TokenManager("5")
    assert (out_of_range.value.reason, wrong_type.value.reason) == ("range", "type")


def test_the_public_manager_is_the_core_one_with_a_clock():
    assert issubclass(TokenManager, core.TokenManager)


def test_errors_of_earlier_code_are_still_there_to_be_caught():
    assert issubclass(errors.RateLimitExceeded, errors.TokenManagerException)
