from __future__ import annotations

import pytest

from token_actor.errors import InvalidValue


@pytest.fixture
def used(manager, clock):
    """Return a manager with two requests in two minutes."""
    manager.update_tokens(100, 51, 10, 5)
    clock.advance(120)
    manager.update_tokens(200, 100, 20, 10)
    return manager


def test_the_figures_have_the_names_of_the_contract_in_order(manager):
    assert list(manager.get_analytics()) == [
        "total_requests",
        "total_input_tokens",
        "total_output_tokens",
        "total_cache_read_tokens",
        "total_cache_write_tokens",
        "total_tokens",
        "avg_input_per_request",
        "avg_output_per_request",
        "avg_total_per_request",
        "context_usage_pct",
        "context_window_limit",
        "uptime_seconds",
        "requests_per_minute",
        "tokens_per_minute",
        "peak_usage_pct",
        "current_history_size",
        "max_history_size",
        "trend",
        "overflow_warning_threshold",
        "total_tokens_with_cache",
    ]


def test_the_figures_of_two_requests(used):
    assert used.get_analytics() == {
        "total_requests": 2,
        "total_input_tokens": 300,
        "total_output_tokens": 151,
        "total_cache_read_tokens": 30,
        "total_cache_write_tokens": 15,
        "total_tokens": 451,
        "avg_input_per_request": 150.0,
        "avg_output_per_request": 75.5,
        "avg_total_per_request": 225.5,
        "context_usage_pct": 45.1,
        "context_window_limit": 1000,
        "uptime_seconds": 120.0,
        "requests_per_minute": 1.0,
        "tokens_per_minute": 225.5,
        "peak_usage_pct": 45.1,
        "current_history_size": 2,
        "max_history_size": 100,
        "trend": "stable",
        "overflow_warning_threshold": 80.0,
        "total_tokens_with_cache": 496,
    }


def test_averages_of_nothing_are_zero(manager):
    figures = manager.get_analytics()
    assert figures["avg_input_per_request"] == 0.0
    assert figures["avg_output_per_request"] == 0.0
    assert figures["avg_total_per_request"] == 0.0


def test_rates_at_the_first_instant_are_zero(manager):
    manager.update_tokens(100)
    figures = manager.get_analytics()
    assert figures["uptime_seconds"] == 0.0
    assert figures["requests_per_minute"] == 0.0
    assert figures["tokens_per_minute"] == 0.0


def test_figures_are_rounded_to_two_decimals(make, clock):
    manager = make(700)
    for tokens in (1, 1, 0):
        manager.update_tokens(tokens, 1)
    clock.advance(7.0078125)
    figures = manager.get_analytics()
    assert figures["avg_input_per_request"] == 0.67
    assert figures["context_usage_pct"] == 0.71
    assert figures["uptime_seconds"] == 7.01
    assert figures["requests_per_minute"] == 25.69
    assert figures["tokens_per_minute"] == 42.81


def test_rates_fall_while_nothing_happens(manager, clock):
    manager.update_tokens(60)
    clock.advance(60)
    assert manager.get_analytics()["tokens_per_minute"] == 60.0
    clock.advance(60)
    assert manager.get_analytics()["tokens_per_minute"] == 30.0


def test_the_history_size_counts_what_is_kept(make):
    manager = make(history_size=3)
    for _ in range(5):
        manager.update_tokens(1)
    figures = manager.get_analytics()
    assert (figures["current_history_size"], figures["max_history_size"]) == (3, 3)
    assert figures["total_requests"] == 5


def test_the_peak_is_the_highest_usage(manager):
    manager.update_tokens(400)
    manager.update_tokens(200)
    assert manager.get_analytics()["peak_usage_pct"] == 60.0


def test_the_peak_stays_when_existing_code_lowers_the_counters(manager):
    manager.update_tokens(900)
    manager.input_tokens = 100
    manager.update_tokens(1)
    figures = manager.get_analytics()
    assert (figures["peak_usage_pct"], figures["context_usage_pct"]) == (90.0, 10.1)


def test_the_peak_may_exceed_100_per_cent(manager):
    manager.update_tokens(1500)
    assert manager.get_analytics()["peak_usage_pct"] == 150.0


def test_the_peak_is_measured_against_the_limit_of_now(manager):
    manager.update_tokens(500)
    manager.context_window_limit = 5000
    assert manager.get_analytics()["peak_usage_pct"] == 10.0


def test_cached_tokens_are_in_one_total_and_not_in_the_other(manager):
    manager.update_tokens(1, 2, 3, 4)
    figures = manager.get_analytics()
    assert (figures["total_tokens"], figures["total_tokens_with_cache"]) == (3, 10)


@pytest.mark.parametrize(
    ("totals", "trend"),
    [
        ([], "stable"),
        ([1, 1, 1, 9, 9], "stable"),
        ([10, 10, 10, 13, 13, 13], "increasing"),
        ([10, 10, 10, 12, 12, 12], "stable"),
        ([10, 10, 10, 8, 8, 8], "stable"),
        ([10, 10, 10, 7, 7, 7], "decreasing"),
        ([99, 10, 10, 10, 10, 10, 10], "stable"),
    ],
)
def test_the_trend_compares_the_last_three_requests_with_the_three_before(manager, totals, trend):
    for tokens in totals:
        manager.update_tokens(tokens)
    assert manager.get_analytics()["trend"] == trend


def test_the_trend_is_one_of_all_four_kinds(manager):
    for tokens in (1, 1, 1, 9, 9, 9):
        manager.update_tokens(cache_read=tokens)
    assert manager.get_analytics()["trend"] == "increasing"


def test_the_trend_does_not_depend_on_the_history(make):
    manager = make(history_size=0)
    for tokens in (9, 9, 9, 1, 1, 1):
        manager.update_tokens(tokens)
    assert manager.get_analytics()["trend"] == "decreasing"


def test_a_limit_made_useless_by_assignment_is_named(manager):
    manager.context_window_limit = -5
    with pytest.raises(InvalidValue, match="^context_window_limit must be positive"):
        manager.get_analytics()


def test_changing_the_returned_figures_changes_nothing(manager):
    manager.get_analytics()["total_requests"] = 99
    assert manager.get_analytics()["total_requests"] == 0


def test_the_summary_is_for_people(make, clock):
    manager = make(200_000)
    for _ in range(2):
        manager.update_tokens(12_000, 3_456, 99_999, 1)
    clock.advance(89.6)
    assert manager.get_summary().splitlines() == [
        "=== Token Manager Summary ===",
        "Total Requests: 2",
        "Input Tokens: 24,000",
        "Output Tokens: 6,912",
        "Total Tokens: 30,912",
        "Context Usage: 15.5%",
        "Avg Tokens/Request: 15456.0",
        "Trend: Stable",
        "Uptime: 90s",
    ]


def test_the_summary_of_a_new_manager_is_all_zeros(manager):
    assert manager.get_summary().splitlines()[1:] == [
        "Total Requests: 0",
        "Input Tokens: 0",
        "Output Tokens: 0",
        "Total Tokens: 0",
        "Context Usage: 0.0%",
        "Avg Tokens/Request: 0.0",
        "Trend: Stable",
        "Uptime: 0s",
    ]
