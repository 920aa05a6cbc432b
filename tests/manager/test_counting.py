from __future__ import annotations

import pytest

from token_actor.manager import TokenManager


def test_an_update_that_counts_returns_true(manager):
    assert manager.update_tokens(10) is True


@pytest.mark.parametrize(
    ("argument", "attribute"),
    [
        ("input_tokens", "input_tokens"),
        ("output_tokens", "output_tokens"),
        ("cache_read", "cache_read_tokens"),
        ("cache_write", "cache_write_tokens"),
    ],
)
def test_each_kind_is_counted_apart(manager, argument, attribute):
    manager.update_tokens(**{argument: 7})
    counted = {
        name: getattr(manager, name)
        for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
        if getattr(manager, name)
    }
    assert counted == {attribute: 7}


def test_the_arguments_may_be_positional(manager):
    manager.update_tokens(1, 2, 3, 4, "m")
    entry = manager.get_usage_history(1)[0]
    assert (manager.input_tokens, manager.output_tokens) == (1, 2)
    assert (manager.cache_read_tokens, manager.cache_write_tokens) == (3, 4)
    assert entry["message_id"] == "m"


def test_updates_add_up(manager):
    manager.update_tokens(100, 50)
    manager.update_tokens(200, 75)
    assert (manager.input_tokens, manager.output_tokens) == (300, 125)


def test_an_update_without_tokens_counts_as_a_request(manager):
    assert manager.update_tokens() is True
    assert manager.get_analytics()["total_requests"] == 1


def test_the_context_holds_input_and_output(manager):
    manager.update_tokens(300, 200)
    assert manager.get_context_usage_pct() == 50.0


def test_cached_tokens_do_not_fill_the_context(manager):
    manager.update_tokens(cache_read=900, cache_write=900)
    assert manager.get_context_usage_pct() == 0.0


def test_the_usage_is_not_rounded(make):
    manager = make(3)
    manager.update_tokens(1)
    assert manager.get_context_usage_pct() == 1 / 3 * 100


def test_the_usage_may_exceed_100_per_cent(manager):
    manager.update_tokens(2500)
    assert manager.get_context_usage_pct() == 250.0


def test_counters_may_be_assigned_by_existing_code(manager):
    manager.input_tokens = 400
    manager.update_tokens(100)
    assert manager.input_tokens == 500
    assert manager.get_context_usage_pct() == 50.0


def test_a_new_limit_is_in_force_at_once(manager):
    manager.update_tokens(500)
    manager.context_window_limit = 2000
    assert manager.get_context_usage_pct() == 25.0


def test_sums_beyond_64_bits_stay_exact(make):
    manager = make(10**12)
    manager.input_tokens = 2**64
    manager.update_tokens(10**12)
    assert manager.input_tokens == 2**64 + 10**12


def test_the_representation_says_how_much_was_used(manager):
    manager.update_tokens(123, 333)
    assert repr(manager) == "TokenManager(requests=1, tokens=456, usage=45.6%)"


def test_the_representation_of_a_new_manager_is_all_zeros():
    assert repr(TokenManager()) == "TokenManager(requests=0, tokens=0, usage=0.0%)"


def test_the_representation_leaves_cached_tokens_out(manager):
    manager.update_tokens(cache_read=5)
    assert repr(manager) == "TokenManager(requests=1, tokens=0, usage=0.0%)"
