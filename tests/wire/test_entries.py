"""Facts about entries of streams and their ids."""

from __future__ import annotations

import pytest

from token_actor.wire.entries import LOG_MS_MAX, id_pair, is_entry_id, log_ms_of


def test_the_log_time_of_an_entry_is_the_first_part_of_its_id():
    assert log_ms_of(b"1700000000123-7") == 1_700_000_000_123


def test_an_id_may_claim_any_time_and_is_taken_for_one_that_fits():
    assert log_ms_of(b"18446744073709551615-0") == LOG_MS_MAX


def test_ids_compare_as_numbers():
    assert id_pair(b"5-10") > id_pair(b"5-9")
    assert id_pair(b"10-0") > id_pair(b"9-9")


def test_an_id_may_lack_its_second_part():
    assert id_pair(b"5") == (5, 0)


@pytest.mark.parametrize("value", [b"0-0", b"1700000000123-7", b"18446744073709551615-18446744073709551615"])
def test_two_numbers_are_an_id(value):
    assert is_entry_id(value)


@pytest.mark.parametrize(
    "value", [b"", b"5", b"-1-0", b"a-b", b"5-5\n", b"5-5-5", b"9" * 21 + b"-0", "5-5", 7, None, b"\xd9\xa3-1"]
)
def test_anything_else_is_none(value):
    assert not is_entry_id(value)
