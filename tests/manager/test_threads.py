from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from token_actor.manager import TokenManager


@pytest.fixture(autouse=True)
def _frequent_switches():
    """Make threads interrupt each other hundreds of times more often than usual."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval_s)


def in_threads(count, work):
    """Run ``work(number)`` in ``count`` threads that start together, and return what they returned."""
    together = threading.Barrier(count)

    def started(number):
        together.wait(timeout=10)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(started, range(count)))


def test_ten_threads_lose_no_update():
    manager = TokenManager()

    def work(_number):
        for _ in range(100):
            manager.update_tokens(1, 2, 3, 4)

    in_threads(10, work)
    assert (manager.input_tokens, manager.output_tokens) == (1000, 2000)
    assert (manager.cache_read_tokens, manager.cache_write_tokens) == (3000, 4000)
    assert manager.get_analytics()["total_requests"] == 1000


def test_twenty_threads_with_the_same_ids_count_each_id_once():
    manager = TokenManager()

    def work(_number):
        return sum(manager.update_tokens(10, message_id=f"m{call}") for call in range(25))

    counted = in_threads(20, work)
    assert sum(counted) == 25
    assert manager.input_tokens == 250
    assert len(manager.processed_message_ids) == 25


def test_threads_with_ids_of_their_own_count_them_all():
    manager = TokenManager()
    in_threads(10, lambda number: [manager.update_tokens(1, message_id=f"{number}-{call}") for call in range(100)])
    assert len(manager.processed_message_ids) == 1000
    assert manager.input_tokens == 1000


def test_the_running_totals_of_the_history_have_no_gap():
    manager = TokenManager(history_size=1000)
    in_threads(10, lambda _number: [manager.update_tokens(1) for _ in range(100)])
    cumulative = [entry["cumulative_input"] for entry in manager.get_usage_history(1000)]
    assert cumulative == list(range(1000, 0, -1))


def test_the_window_misses_no_update_of_any_thread():
    manager = TokenManager()
    in_threads(10, lambda _number: [manager.update_tokens(1) for _ in range(100)])
    assert manager.check_rate_limit(3600, 1000) is True
    assert manager.check_rate_limit(3600, 999) is False


def test_readers_never_see_half_an_update():
    manager = TokenManager()
    torn = []

    def work(number):
        for _ in range(100):
            if number % 2:
                manager.update_tokens(1, 1, 1, 1)
                continue
            document = json.loads(manager.export_metrics())
            figures, history = document["analytics"], document["history"]
            counts = {figures[f"total_{kind}_tokens"] for kind in ("input", "output", "cache_read", "cache_write")}
            cumulative = history[-1]["cumulative_input"] if history else 0
            if counts != {figures["total_requests"]} or cumulative != figures["total_requests"]:
                torn.append(document)

    in_threads(8, work)
    assert torn == []


def test_a_hundred_threads_in_overflow_warn_once(caplog):
    manager = TokenManager(10)
    in_threads(100, lambda _number: manager.update_tokens(10))
    assert len(caplog.records) == 1


def test_a_reset_between_updates_leaves_a_consistent_manager():
    manager = TokenManager()

    def work(number):
        for _ in range(50):
            if number == 0:
                manager.reset()
            manager.update_tokens(1, 1)

    in_threads(8, work)
    figures = manager.get_analytics()
    assert figures["total_input_tokens"] == figures["total_output_tokens"] == figures["total_requests"]


def test_the_metrics_engine_hears_every_update_of_every_thread(engine):
    manager = TokenManager(metrics_engine=engine)
    in_threads(10, lambda _number: [manager.update_tokens(1) for _ in range(100)])
    assert len(engine.seen) == 1000


def test_a_thread_that_holds_the_lock_may_ask_again(manager):
    with manager._lock:  # as when a signal handler interrupts an update
        assert manager.get_analytics()["total_requests"] == 0
