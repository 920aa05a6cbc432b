from __future__ import annotations

from tests.manager.conftest import START_S


def test_the_uptime_is_the_time_since_the_start(manager, clock):
    clock.advance(12.25)
    assert manager.get_analytics()["uptime_seconds"] == 12.25


def test_a_clock_set_back_does_not_take_uptime_away(manager, clock):
    clock.advance(10)
    assert manager.get_analytics()["uptime_seconds"] == 10.0
    clock.advance(-3600)
    assert manager.get_analytics()["uptime_seconds"] == 10.0


def test_the_uptime_goes_on_after_a_clock_was_set_back(manager, clock):
    clock.advance(10)
    manager.get_analytics()
    clock.advance(-3600)
    manager.get_analytics()
    clock.advance(5)
    assert manager.get_analytics()["uptime_seconds"] == 15.0


def test_a_window_slides_on_after_a_clock_was_set_back(manager, clock):
    manager.update_tokens(100)
    clock.advance(-3600)
    manager.update_tokens(100)
    assert manager.check_rate_limit(60, 199) is False
    clock.advance(61)
    assert manager.check_rate_limit(60, 1) is True


def test_a_window_holds_what_came_after_a_clock_was_set_back(manager, clock):
    manager.update_tokens(1)
    clock.advance(-3600)
    manager.check_rate_limit(60, 1)
    clock.advance(50)
    manager.update_tokens(100)
    assert manager.check_rate_limit(30, 100) is True
    assert manager.check_rate_limit(30, 99) is False


def test_warnings_go_on_after_a_clock_was_set_back(manager, clock, warnings):
    manager.update_tokens(900)
    clock.advance(-3600)
    manager.update_tokens(1)
    clock.advance(60)
    manager.update_tokens(1)
    assert [used for _, used, _ in warnings] == [900, 902]


def test_the_history_shows_the_time_of_the_clock_whatever_it_does(manager, clock):
    manager.update_tokens(1)
    clock.advance(-3600)
    manager.update_tokens(1)
    assert [entry["timestamp"] for entry in manager.get_usage_history()] == [START_S - 3600, START_S]


def test_one_request_reads_the_clock_once(make, clock, monkeypatch):
    manager = make()
    readings = iter([clock()])
    monkeypatch.setattr(manager, "_clock", lambda: next(readings))
    assert manager.update_tokens(1, message_id="m") is True
