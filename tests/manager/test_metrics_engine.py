from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from token_actor.core.manager import TokenManager


class BrokenEngine:
    def record_token_usage(self, **_counts):
        raise RuntimeError("broken")


class AskingEngine:
    """Ask the manager again, in the middle of its update."""

    manager: TokenManager

    def __init__(self):
        self.answers = []

    def record_token_usage(self, **counts):
        self.answers.append(self.manager.get_analytics()["total_requests"])


class DelegatingEngine(AskingEngine):
    """Ask from another thread, and wait for it."""

    def record_token_usage(self, **counts):
        asking = threading.Thread(target=super().record_token_usage, kwargs=counts)
        asking.start()
        asking.join(timeout=10)
        assert not asking.is_alive(), "the manager holds its lock while it calls the engine"


class CountingEngine(AskingEngine):
    """Count something of its own for each request, once."""

    def record_token_usage(self, **counts):
        self.answers.append(counts)
        if counts["input_tokens"]:
            self.manager.update_tokens(output_tokens=1)


def test_an_engine_hears_of_an_update_by_keywords(make, engine):
    make(metrics_engine=engine).update_tokens(1, 2, 3, 4, "m")
    assert engine.seen == [{"input_tokens": 1, "output_tokens": 2, "cache_read": 3, "cache_write": 4}]


def test_an_engine_hears_of_an_update_without_tokens(make, engine):
    make(metrics_engine=engine).update_tokens()
    assert engine.seen == [{"input_tokens": 0, "output_tokens": 0, "cache_read": 0, "cache_write": 0}]


def test_an_engine_hears_of_every_update(make, engine):
    manager = make(metrics_engine=engine)
    for tokens in (1, 2, 3):
        manager.update_tokens(tokens)
    assert [counts["input_tokens"] for counts in engine.seen] == [1, 2, 3]


def test_an_engine_does_not_hear_of_a_duplicate(make, engine):
    manager = make(metrics_engine=engine)
    manager.update_tokens(1, message_id="m")
    manager.update_tokens(1, message_id="m")
    assert len(engine.seen) == 1


def test_an_engine_may_be_given_later(manager, engine):
    manager.update_tokens(1)
    manager.metrics_engine = engine
    manager.update_tokens(2)
    assert [counts["input_tokens"] for counts in engine.seen] == [2]


def test_an_engine_may_be_taken_away(make, engine):
    manager = make(metrics_engine=engine)
    manager.metrics_engine = None
    manager.update_tokens(1)
    assert engine.seen == []


def test_a_broken_engine_changes_nothing(make):
    manager = make(1000, metrics_engine=BrokenEngine())
    assert manager.update_tokens(5, message_id="m") is True
    assert manager.input_tokens == 5
    assert manager.update_tokens(5, message_id="m") is False


def test_what_a_broken_engine_raised_is_reported(make, failures):
    make(metrics_engine=BrokenEngine()).update_tokens(5)
    assert [str(problem) for problem in failures] == ["broken"]


def test_something_that_is_no_engine_is_reported(make, failures):
    make(metrics_engine=object()).update_tokens(5)
    assert [type(problem) for problem in failures] == [AttributeError]


def test_an_interrupt_in_an_engine_is_not_swallowed(make):
    class Interrupted:
        def record_token_usage(self, **_counts):
            raise KeyboardInterrupt

    manager = make(metrics_engine=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        manager.update_tokens(5)
    assert manager.input_tokens == 5


@pytest.mark.parametrize("asking", [AskingEngine, DelegatingEngine])
def test_an_engine_may_ask_the_manager_and_sees_the_update(make, asking):
    engine = asking()
    engine.manager = make(metrics_engine=engine)
    engine.manager.update_tokens(1)
    engine.manager.update_tokens(1)
    assert engine.answers == [1, 2]


def test_an_engine_may_update_the_manager(make):
    engine = CountingEngine()
    engine.manager = make(metrics_engine=engine)
    engine.manager.update_tokens(10)
    assert (engine.manager.input_tokens, engine.manager.output_tokens) == (10, 1)
    assert len(engine.answers) == 2


def test_a_warning_may_ask_the_manager_from_another_thread(make, manager):
    answers = []

    def ask(*_warning):
        asking = threading.Thread(target=lambda: answers.append(manager.get_context_usage_pct()))
        asking.start()
        asking.join(timeout=10)

    manager._warn_effect = ask
    manager.update_tokens(900)
    assert answers == [90.0]
