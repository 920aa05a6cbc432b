"""What a leader says of the time, as bytes."""

from __future__ import annotations

from typing import Any

import pytest

from token_actor.errors import BadEntry
from token_actor.wire.clock import ClockEntry
from token_actor.wire.codec import pack


def test_it_comes_back_as_it_was() -> None:
    entry = ClockEntry(now_ms=1_700_000_000_000, epoch=7)
    assert ClockEntry.decode(entry.encode()) == entry


def test_another_version_is_kept_for_a_program_that_reads_it() -> None:
    with pytest.raises(BadEntry) as caught:
        ClockEntry.decode(pack({"v": 2, "now": 1, "epoch": 1}))
    assert caught.value.reason == "version"


@pytest.mark.parametrize(
    "change",
    [{"now": 0}, {"now": -1}, {"now": 2**60}, {"now": 1.5}, {"now": True}, {"epoch": 0}, {"more": 1}],
)
def test_what_is_no_time_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadEntry) as caught:
        ClockEntry.decode(pack({"v": 1, "now": 1, "epoch": 1, **change}))
    assert caught.value.reason == "decode"


def test_a_missing_field_is_refused() -> None:
    with pytest.raises(BadEntry):
        ClockEntry.decode(pack({"v": 1, "now": 1}))


def test_an_entry_that_only_says_that_time_goes_on_travels_too() -> None:
    assert ClockEntry.decode(ClockEntry(None, 7).encode()) == ClockEntry(None, 7)
