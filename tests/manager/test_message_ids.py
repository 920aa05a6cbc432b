from __future__ import annotations

import pytest

from token_actor.core.manager import MESSAGE_IDS_MAX


def test_a_duplicate_returns_false(manager):
    manager.update_tokens(10, message_id="m")
    assert manager.update_tokens(10, message_id="m") is False


def test_a_duplicate_changes_nothing(manager):
    manager.update_tokens(10, 20, 30, 40, "m")
    before = manager.export_metrics()
    manager.update_tokens(10, 20, 30, 40, "m")
    assert manager.export_metrics() == before


def test_a_duplicate_with_other_numbers_changes_nothing_either(manager):
    manager.update_tokens(10, message_id="m")
    manager.update_tokens(999, message_id="m")
    assert manager.input_tokens == 10


def test_a_duplicate_is_not_in_the_window_of_a_rate_limit(manager):
    manager.update_tokens(10, message_id="m")
    manager.update_tokens(10, message_id="m")
    assert manager.check_rate_limit(60, 10) is True


def test_other_ids_are_other_requests(manager):
    manager.update_tokens(10, message_id="a")
    assert manager.update_tokens(10, message_id="b") is True
    assert manager.input_tokens == 20


@pytest.mark.parametrize("absent", [None, ""])
def test_without_an_id_every_request_counts(manager, absent):
    manager.update_tokens(10, message_id=absent)
    assert manager.update_tokens(10, message_id=absent) is True
    assert len(manager.processed_message_ids) == 0


def test_ids_that_differ_in_case_differ(manager):
    manager.update_tokens(1, message_id="M")
    assert manager.update_tokens(1, message_id="m") is True


def test_a_blank_is_an_id(manager):
    manager.update_tokens(1, message_id=" ")
    assert manager.update_tokens(1, message_id=" ") is False


@pytest.mark.parametrize("message_id", ["消息-✓", "a\nb", "x" * 10_000, "'; DROP TABLE", "\x00"])
def test_any_text_is_an_id(manager, message_id):
    manager.update_tokens(1, message_id=message_id)
    assert manager.update_tokens(1, message_id=message_id) is False


def test_known_ids_can_be_asked_for(manager):
    manager.update_tokens(1, message_id="m")
    assert "m" in manager.processed_message_ids
    assert "n" not in manager.processed_message_ids


def test_known_ids_can_be_counted(manager):
    for message_id in ("a", "b", "a"):
        manager.update_tokens(1, message_id=message_id)
    assert len(manager.processed_message_ids) == 2


@pytest.fixture
def full(manager):
    """Return a manager that knows as many ids as it can: 0, 1, 2, ..."""
    for number in range(MESSAGE_IDS_MAX):
        manager.update_tokens(1, message_id=str(number))
    return manager


def test_ten_thousand_ids_are_remembered(full):
    assert len(full.processed_message_ids) == 10_000
    assert full.update_tokens(1, message_id="0") is False


def test_one_id_more_forgets_the_oldest_only(full):
    full.update_tokens(1, message_id="new")
    assert len(full.processed_message_ids) == 10_000
    assert "0" not in full.processed_message_ids
    assert "1" in full.processed_message_ids


def test_a_forgotten_id_counts_again_and_forgets_the_next(full):
    full.update_tokens(1, message_id="new")
    assert full.update_tokens(1, message_id="0") is True
    assert "1" not in full.processed_message_ids


def test_a_duplicate_does_not_make_an_id_younger(full):
    full.update_tokens(1, message_id="0")
    full.update_tokens(1, message_id="new")
    assert "0" not in full.processed_message_ids


def test_ids_are_forgotten_in_the_order_they_came(full):
    for number in range(25):
        full.update_tokens(1, message_id=f"new-{number}")
    forgotten = [str(number) for number in range(100) if str(number) not in full.processed_message_ids]
    assert forgotten == [str(number) for number in range(25)]


def test_forgetting_an_id_forgets_no_tokens(full):
    full.update_tokens(1, message_id="new")
    assert full.input_tokens == 10_001
