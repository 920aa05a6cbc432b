"""Whole sessions, as an agent lives them."""

from __future__ import annotations

import json

from token_actor.manager import TokenManager


def test_a_conversation_that_grows_to_the_brim(make, clock, warnings):
    manager = make(10_000)
    for turn in range(10):
        overflow, _ = manager.predict_overflow(950)
        assert overflow is False, f"turn {turn} still fits"
        manager.update_tokens(800, 150, 5000, 100, f"turn-{turn}")
        clock.advance(60)
    assert manager.predict_overflow(950) == (True, 104.5)
    assert [used for _, used, _ in warnings] == [8550, 9500]
    assert manager.get_analytics()["tokens_per_minute"] == 950.0


def test_an_agent_that_resends_everything_is_counted_once(manager):
    calls = [(10 * number, number, f"call-{number}") for number in range(1, 8)]
    first = [manager.update_tokens(sent, received, message_id=name) for sent, received, name in calls]
    again = [manager.update_tokens(sent, received, message_id=name) for sent, received, name in calls]
    assert (first, again) == ([True] * 7, [False] * 7)
    assert (manager.input_tokens, manager.output_tokens) == (280, 28)


def test_an_agent_that_keeps_to_a_rate_limit_waits_its_turn(manager, clock):
    granted = 0
    for _ in range(300):  # one attempt per second for five minutes
        if manager.check_rate_limit(60, 900):
            manager.update_tokens(100)
            granted += 1
        clock.advance(1)
    assert granted == 50


def test_a_new_conversation_starts_after_a_reset(make, clock):
    manager = make(1000)
    manager.update_tokens(990, message_id="m")
    assert manager.predict_overflow(100)[0] is True
    manager.reset()
    assert manager.predict_overflow(100) == (False, 10.0)
    assert manager.update_tokens(100, message_id="m") is True


def test_an_export_can_be_checked_against_the_answers():
    manager = TokenManager()
    for number in range(20):
        manager.update_tokens(number, 2 * number, 3, 4, f"m{number}")
    document = json.loads(manager.export_metrics())
    history = document["history"]
    assert sum(entry["total_tokens"] for entry in history) == document["analytics"]["total_tokens_with_cache"]
    assert history[-1]["cumulative_input"] == document["analytics"]["total_input_tokens"]
    assert [entry["message_id"] for entry in history] == [f"m{number}" for number in range(20)]


def test_a_subclass_of_existing_code_still_works():
    class Named(TokenManager):
        def __init__(self, name, **options):
            super().__init__(**options)
            self.name = name

    manager = Named("agent", context_window_limit=500)
    manager.update_tokens(250)
    assert (manager.name, manager.get_context_usage_pct()) == ("agent", 50.0)
