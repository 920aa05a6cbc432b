from __future__ import annotations

import logging
import time

import pytest

from token_actor.manager import TokenManager


class BrokenEngine:
    def record_token_usage(self, **_counts):
        raise RuntimeError("broken")


def test_an_overflow_is_logged_as_a_warning(caplog):
    TokenManager(1000).update_tokens(400, 456)
    assert caplog.record_tuples == [
        ("token_actor.manager", logging.WARNING, "Context window usage at 85.6% (856 of 1000 tokens)")
    ]


def test_an_overflow_has_an_action_that_programs_can_look_for(caplog):
    TokenManager(1000).update_tokens(900)
    assert caplog.records[0].action == "context_overflow_warning"


def test_a_broken_engine_is_logged_with_what_it_raised(caplog):
    TokenManager(metrics_engine=BrokenEngine()).update_tokens(1)
    record = caplog.records[0]
    assert (record.levelno, record.action) == (logging.WARNING, "metrics_engine_failed")
    assert str(record.exc_info[1]) == "broken"


def test_an_ordinary_update_logs_nothing(caplog):
    caplog.set_level(logging.DEBUG)
    TokenManager().update_tokens(1, message_id="m")
    assert caplog.records == []


def test_the_public_manager_runs_on_the_clock_of_the_machine():
    before_s = time.time()
    manager = TokenManager()
    manager.update_tokens(1)
    assert before_s <= manager.get_usage_history()[0]["timestamp"] <= time.time()


def test_a_test_that_freezes_time_reaches_the_public_manager(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    manager = TokenManager()
    manager.update_tokens(5)
    monkeypatch.setattr(time, "time", lambda: 1061.0)
    assert manager.check_rate_limit(60, 1) is True
    assert manager.get_analytics()["uptime_seconds"] == pytest.approx(61.0)
