from __future__ import annotations

import pytest


@pytest.fixture
def reset(manager, clock):
    """Return a manager that was used, then reset, at 1,000 seconds after its start."""
    for tokens in (1, 1, 1, 200, 200, 500):
        manager.update_tokens(tokens, 10, 5, 5, f"m{tokens}")
    clock.advance(1000)
    manager.reset()
    return manager


def test_a_reset_manager_has_the_figures_of_a_new_one(reset, make):
    assert reset.get_analytics() == make(1000).get_analytics()


def test_a_reset_sets_every_counter_to_zero(reset):
    assert (reset.input_tokens, reset.output_tokens) == (0, 0)
    assert (reset.cache_read_tokens, reset.cache_write_tokens) == (0, 0)


def test_a_reset_forgets_the_message_ids(reset):
    assert len(reset.processed_message_ids) == 0
    assert reset.update_tokens(1, message_id="m500") is True


def test_ids_forgotten_by_a_reset_do_not_shorten_the_memory_of_new_ones(reset):
    reset.update_tokens(1, message_id="m1")
    for number in range(9_999):
        reset.update_tokens(1, message_id=str(number))
    assert len(reset.processed_message_ids) == 10_000
    assert "m1" in reset.processed_message_ids


def test_a_reset_empties_the_history(reset):
    assert reset.get_usage_history() == []


def test_a_reset_empties_the_window(reset):
    assert reset.check_rate_limit(10**6, 1) is True


def test_a_reset_forgets_the_peak(reset):
    reset.update_tokens(10)
    assert reset.get_analytics()["peak_usage_pct"] == 1.0


def test_a_reset_forgets_the_trend(reset):
    for _ in range(3):
        reset.update_tokens(1000)
    assert reset.get_analytics()["trend"] == "stable"


def test_a_reset_starts_the_uptime_anew(reset, clock):
    clock.advance(3)
    assert reset.get_analytics()["uptime_seconds"] == 3.0


def test_after_a_reset_the_first_overflow_warns_at_once(manager, warnings):
    manager.update_tokens(900)
    manager.reset()
    manager.update_tokens(900)
    assert len(warnings) == 2


def test_a_reset_keeps_limit_threshold_history_size_and_engine(make, engine):
    manager = make(500, 5, 50.0, engine)
    manager.reset()
    assert (manager.context_window_limit, manager.history_size) == (500, 5)
    assert (manager.overflow_warning_threshold, manager.metrics_engine) == (50.0, engine)


def test_a_reset_does_not_replace_the_known_ids_that_others_hold(manager):
    known = manager.processed_message_ids
    manager.update_tokens(1, message_id="m")
    manager.reset()
    assert known is manager.processed_message_ids


def test_a_new_manager_can_be_reset(manager):
    manager.reset()
    assert manager.get_analytics()["total_requests"] == 0


def test_a_reset_returns_nothing(manager):
    assert manager.reset() is None
