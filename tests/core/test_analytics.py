from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_actor.core.analytics import (
    HISTORY_COLUMNS,
    SessionFigures,
    SessionRules,
    check_number,
    context_usage_pct,
    history_entry,
    iso_utc,
    predict_overflow,
    session_analytics,
    trend,
)
from token_actor.errors import InvalidValue


def test_the_context_holds_input_and_output():
    assert context_usage_pct(300, 200, 1000) == 50.0


def test_the_context_may_be_overfull():
    assert context_usage_pct(1500, 500, 1000) == 200.0


def test_an_overflow_is_strictly_above_the_limit():
    assert predict_overflow(900, 100, 1000) == (False, 100.0)
    assert predict_overflow(900, 101, 1000)[0] is True


def test_a_prediction_tells_the_usage_then():
    assert predict_overflow(250, 500, 1000) == (False, 75.0)


@pytest.mark.parametrize("estimate", [-1, 10**12 + 1, 10**400, math.nan, math.inf, True, "1", None])
def test_a_prediction_needs_a_number_of_tokens(estimate):
    with pytest.raises(InvalidValue) as refused:
        predict_overflow(0, estimate, 1000)
    assert refused.value.field == "estimated_tokens"


@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf, True, None])
def test_a_prediction_needs_a_window_to_fill(limit):
    with pytest.raises(InvalidValue) as refused:
        predict_overflow(0, 1, limit)
    assert refused.value.field == "context_window_limit"


@pytest.mark.parametrize("totals", [[], [1], [1, 1, 1, 100, 100]])
def test_fewer_than_six_requests_have_no_trend(totals):
    assert trend(totals) == "stable"


@pytest.mark.parametrize(
    ("later", "expected"), [(361, "increasing"), (360, "stable"), (300, "stable"), (240, "stable"), (239, "decreasing")]
)
def test_the_trend_turns_strictly_outside_a_fifth(later, expected):
    assert trend([100, 100, 100, later - 200, 100, 100]) == expected


def test_the_trend_from_nothing_to_something_is_increasing():
    assert trend([0, 0, 0, 0, 0, 1]) == "increasing"


def test_the_trend_from_something_to_nothing_is_decreasing():
    assert trend([0, 0, 1, 0, 0, 0]) == "decreasing"


def test_the_trend_of_nothing_is_stable():
    assert trend([0] * 6) == "stable"


def test_only_the_last_six_requests_make_the_trend():
    assert trend([1000, 1000, 1000, 5, 5, 5, 5, 5, 5]) == "stable"


@given(st.lists(st.integers(0, 10**13), min_size=6, max_size=6), st.integers(1, 1000))
def test_the_trend_does_not_depend_on_the_unit(totals, factor):
    assert trend(totals) == trend([total * factor for total in totals])


def test_figures_of_nothing_are_zeros_against_the_default_rules():
    assert session_analytics(SessionFigures(), SessionRules()) == {
        "total_requests": 0,
        "total_input_tokens": 0,
        "total_output_tokens": 0,
        "total_cache_read_tokens": 0,
        "total_cache_write_tokens": 0,
        "total_tokens": 0,
        "avg_input_per_request": 0.0,
        "avg_output_per_request": 0.0,
        "avg_total_per_request": 0.0,
        "context_usage_pct": 0.0,
        "context_window_limit": 200_000,
        "uptime_seconds": 0.0,
        "requests_per_minute": 0.0,
        "tokens_per_minute": 0.0,
        "peak_usage_pct": 0.0,
        "current_history_size": 0,
        "max_history_size": 100,
        "trend": "stable",
        "overflow_warning_threshold": 80.0,
        "total_tokens_with_cache": 0,
    }


def test_figures_are_answered_by_name():
    figures = SessionFigures(
        requests=7,
        input_tokens=1000,
        output_tokens=500,
        cache_read_tokens=300,
        cache_write_tokens=200,
        peak_tokens=1800,
        uptime_s=33.333,
        recent_totals=(10, 10, 10, 20, 20, 20),
        current_history_size=5,
    )
    rules = SessionRules(context_window_limit=9000, overflow_warning_threshold=12.5, history_size=5)
    assert session_analytics(figures, rules) == {
        "total_requests": 7,
        "total_input_tokens": 1000,
        "total_output_tokens": 500,
        "total_cache_read_tokens": 300,
        "total_cache_write_tokens": 200,
        "total_tokens": 1500,
        "avg_input_per_request": 142.86,
        "avg_output_per_request": 71.43,
        "avg_total_per_request": 214.29,
        "context_usage_pct": 16.67,
        "context_window_limit": 9000,
        "uptime_seconds": 33.33,
        "requests_per_minute": 12.6,
        "tokens_per_minute": 2700.03,
        "peak_usage_pct": 20.0,
        "current_history_size": 5,
        "max_history_size": 5,
        "trend": "increasing",
        "overflow_warning_threshold": 12.5,
        "total_tokens_with_cache": 2000,
    }


def test_the_newest_figure_comes_last_so_that_old_readers_see_the_order_they_know():
    assert list(session_analytics(SessionFigures(), SessionRules()))[-2:] == [
        "overflow_warning_threshold",
        "total_tokens_with_cache",
    ]


def test_a_negative_uptime_gives_no_rates():
    figures = session_analytics(SessionFigures(requests=5, uptime_s=-1.0), SessionRules())
    assert figures["requests_per_minute"] == 0.0


@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf, True, "1", None])
def test_rules_refuse_a_limit_that_is_no_positive_number(limit):
    with pytest.raises(InvalidValue) as refused:
        SessionRules(context_window_limit=limit)
    assert refused.value.field == "context_window_limit"


@pytest.mark.parametrize("threshold", [-0.001, 100.001, math.nan, math.inf, False, "80", None])
def test_rules_refuse_a_threshold_outside_0_to_100(threshold):
    with pytest.raises(InvalidValue) as refused:
        SessionRules(overflow_warning_threshold=threshold)
    assert refused.value.field == "overflow_warning_threshold"


@pytest.mark.parametrize("size", [-1, 1.0, True, "1", None])
def test_rules_refuse_a_history_size_that_counts_nothing(size):
    with pytest.raises(InvalidValue) as refused:
        SessionRules(history_size=size)
    assert refused.value.field == "history_size"


def test_rules_allow_their_extremes():
    rules = SessionRules(context_window_limit=1, overflow_warning_threshold=0, history_size=0)
    assert (rules.context_window_limit, rules.overflow_warning_threshold, rules.history_size) == (1, 0, 0)


@pytest.mark.parametrize("message", [SessionFigures(), SessionRules()])
def test_figures_and_rules_cannot_be_changed(message):
    name = dataclasses.fields(message)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(message, name, 5)


@pytest.mark.parametrize("value", [0, -1, 10**400, 0.5, math.inf])
def test_any_int_and_any_float_but_nan_is_a_number(value):
    assert check_number("field", value) == value


@pytest.mark.parametrize(
    ("value", "problem"),
    [(True, "not bool"), ("1", "not str"), (None, "not NoneType"), (math.nan, "not NaN"), (1j, "not complex")],
)
def test_anything_else_is_not(value, problem):
    with pytest.raises(InvalidValue, match=f"^field must be a number, {problem}$"):
        check_number("field", value)


def test_a_row_of_history_has_the_columns_in_order():
    row = history_entry(
        timestamp_s=1_700_000_000.25,
        input_tokens=1,
        output_tokens=2,
        cache_read_tokens=3,
        cache_write_tokens=4,
        message_id="m",
        cumulative_input=100,
        cumulative_output=150,
        context_window_limit=1000,
    )
    assert tuple(row) == HISTORY_COLUMNS
    assert tuple(row.values()) == (
        1_700_000_000.25,
        "2023-11-14T22:13:20.250000+00:00",
        1,
        2,
        3,
        4,
        10,
        "m",
        100,
        150,
        25.0,
    )


@pytest.mark.parametrize(
    ("timestamp_s", "text"),
    [
        (0, "1970-01-01T00:00:00.000000+00:00"),
        (-1.5, "1969-12-31T23:59:58.500000+00:00"),
        (1_709_210_096.789, "2024-02-29T12:34:56.789000+00:00"),
    ],
)
def test_times_are_written_in_utc_with_their_zone(timestamp_s, text):
    assert iso_utc(timestamp_s) == text


@given(st.lists(st.floats(0, 4e9), min_size=2, max_size=2))
def test_times_as_text_sort_like_times(timestamps):
    earlier, later = sorted(timestamps)
    assert iso_utc(earlier) <= iso_utc(later)
