from __future__ import annotations

import math

import pytest

from tests.manager.conftest import START_S
from token_actor.errors import InvalidValue


def test_an_entry_has_the_keys_of_the_contract_in_order(manager):
    manager.update_tokens(1)
    assert list(manager.get_usage_history(1)[0]) == [
        "timestamp",
        "datetime",
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "total_tokens",
        "message_id",
        "cumulative_input",
        "cumulative_output",
        "context_usage_pct",
    ]


def test_an_entry_holds_one_request(manager, clock):
    manager.update_tokens(100, 50)
    clock.advance(1.5)
    manager.update_tokens(10, 20, 30, 40, "m")
    assert manager.get_usage_history(1) == [
        {
            "timestamp": START_S + 1.5,
            "datetime": "2023-11-14T22:13:21.500000+00:00",
            "input_tokens": 10,
            "output_tokens": 20,
            "cache_read_tokens": 30,
            "cache_write_tokens": 40,
            "total_tokens": 100,
            "message_id": "m",
            "cumulative_input": 110,
            "cumulative_output": 70,
            "context_usage_pct": 18.0,
        }
    ]


def test_the_newest_request_comes_first(manager):
    for tokens in (1, 2, 3):
        manager.update_tokens(tokens)
    assert [entry["input_tokens"] for entry in manager.get_usage_history()] == [3, 2, 1]


def test_ten_requests_are_returned_by_default(manager):
    for _ in range(25):
        manager.update_tokens(1)
    assert len(manager.get_usage_history()) == 10


def test_a_limit_returns_the_newest(manager):
    for tokens in range(1, 6):
        manager.update_tokens(tokens)
    assert [entry["input_tokens"] for entry in manager.get_usage_history(2)] == [5, 4]


def test_a_limit_above_what_there_is_returns_all(manager):
    manager.update_tokens(1)
    assert len(manager.get_usage_history(10**30)) == 1


def test_the_limit_may_be_a_keyword(manager):
    manager.update_tokens(1)
    manager.update_tokens(2)
    assert len(manager.get_usage_history(limit=1)) == 1


@pytest.mark.parametrize("limit", [0, -1, True, 1.0, math.nan, "3", None])
def test_a_limit_that_is_no_positive_int_is_refused(manager, limit):
    with pytest.raises(InvalidValue, match="^limit must be a positive int, not "):
        manager.get_usage_history(limit)


def test_the_oldest_request_leaves_a_full_history(make):
    manager = make(history_size=3)
    for tokens in range(1, 6):
        manager.update_tokens(tokens)
    assert [entry["input_tokens"] for entry in manager.get_usage_history()] == [5, 4, 3]


def test_a_history_of_size_zero_keeps_nothing_and_counts_all(make):
    manager = make(history_size=0)
    manager.update_tokens(5)
    assert manager.get_usage_history() == []
    assert manager.input_tokens == 5


def test_a_smaller_history_size_drops_the_oldest_at_once(manager):
    for tokens in range(1, 6):
        manager.update_tokens(tokens)
    manager.history_size = 2
    assert [entry["input_tokens"] for entry in manager.get_usage_history()] == [5, 4]


def test_a_larger_history_size_keeps_what_there_is_and_more(make):
    manager = make(history_size=1)
    manager.update_tokens(1)
    manager.history_size = 2
    manager.update_tokens(2)
    assert [entry["input_tokens"] for entry in manager.get_usage_history()] == [2, 1]


@pytest.mark.parametrize("size", [-1, 2.5, True, "3"])
def test_a_history_size_that_counts_nothing_cannot_be_assigned(manager, size):
    with pytest.raises(InvalidValue, match="^history_size must be"):
        manager.history_size = size
    assert manager.history_size == 100


def test_an_entry_keeps_the_usage_of_its_time(manager):
    manager.update_tokens(100)
    manager.update_tokens(400)
    assert [entry["context_usage_pct"] for entry in manager.get_usage_history()] == [50.0, 10.0]


def test_an_entry_keeps_the_limit_of_its_time(manager):
    manager.update_tokens(100)
    manager.context_window_limit = 10_000
    assert manager.get_usage_history()[0]["context_usage_pct"] == 10.0


def test_cumulative_counts_leave_cached_tokens_out(manager):
    manager.update_tokens(1, 2, 300, 400)
    entry = manager.get_usage_history()[0]
    assert (entry["cumulative_input"], entry["cumulative_output"]) == (1, 2)


@pytest.mark.parametrize("absent", [None, ""])
def test_a_request_without_an_id_has_none_in_history(manager, absent):
    manager.update_tokens(1, message_id=absent)
    assert manager.get_usage_history()[0]["message_id"] is None


def test_changing_a_returned_entry_does_not_change_the_history(manager):
    manager.update_tokens(5)
    manager.get_usage_history()[0]["input_tokens"] = 999
    assert manager.get_usage_history()[0]["input_tokens"] == 5


def test_changing_the_returned_list_does_not_change_the_history(manager):
    manager.update_tokens(5)
    manager.get_usage_history().clear()
    assert len(manager.get_usage_history()) == 1
