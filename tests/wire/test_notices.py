"""Facts about notices and their bytes."""

from __future__ import annotations

import json

import pytest

from token_actor.core.thresholds import Notice
from token_actor.errors import BadEntry, InvalidValue
from token_actor.wire import notices
from token_actor.wire.notices import NOTICES_MAX, NoticeEntry, place_of

NOTICE = Notice(0, "büdget", {"agent": "a", "user": None}, "cost_nanousd", "enforce", 80, 100, 81, 1_000, 2_000, 1_500)
MAP = {
    "limit": "büdget",
    "scope": {"agent": "a", "user": None},
    "threshold_pct": 80,
    "unit": "cost_nanousd",
    "mode": "enforce",
    "amount": 100,
    "used": 81,
    "period_start_ms": 1_000,
    "period_end_ms": 2_000,
    "log_ms": 1_500,
}


def test_what_is_written_is_read():
    written = NoticeEntry.of(b"5-1", [NOTICE, NOTICE])
    assert NoticeEntry.read(b"5-1", written.fields()) == written


def test_it_is_json_that_anybody_can_read():
    name, value = NoticeEntry.of(b"5-1", [NOTICE]).fields()
    assert name == b"n"
    assert json.loads(value) == {"v": 1, "notices": [MAP], "left_out": 0}


def test_each_notice_has_an_id_of_its_own():
    entry = NoticeEntry.of(b"5-1", [NOTICE, NOTICE])
    assert entry.documents() == [{"id": "5-1:0", **MAP}, {"id": "5-1:1", **MAP}]
    assert entry.documents(after=0) == [{"id": "5-1:1", **MAP}]


def test_one_entry_holds_a_bounded_number_and_says_how_many_were_left_out(monkeypatch):
    monkeypatch.setattr(notices, "NOTICES_MAX", 2)
    entry = NoticeEntry.of(b"5-1", [NOTICE] * 5)
    assert (len(entry.notices), entry.left_out) == (2, 3)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [b"x", b"{}"],
        [b"n"],
        [b"n", b"{broken"],
        [b"n", b"\xff"],
        [b"n", b"[]"],
        [b"n", b"{}"],
        [b"n", b'{"v": 1, "notices": 5, "left_out": 0}'],
        [b"n", b'{"v": 1, "notices": [5], "left_out": 0}'],
        [b"n", b"[" * 100_000],
    ],
    ids=range(10),
)
def test_what_is_no_notice_is_refused(fields):
    with pytest.raises(BadEntry) as bad:
        NoticeEntry.read(b"5-1", fields)
    assert bad.value.reason == "decode"


def test_another_version_is_refused_by_its_number():
    with pytest.raises(BadEntry, match="notice version 2; this program reads 1"):
        NoticeEntry.read(b"5-1", [b"n", b'{"v": 2, "notices": [], "left_out": 0}'])


def test_an_id_names_an_entry_and_a_place_in_it_and_an_entry_is_behind_all_of_its_own():
    assert place_of("1700000000000-3:7") == (b"1700000000000-3", 7)
    assert place_of("1700000000000-3") == (b"1700000000000-3", NOTICES_MAX)


@pytest.mark.parametrize(
    "wrong", ["", "5", "5-1:", "5-1:x", "5-1:0:0", "5-1 ", "\N{SUPERSCRIPT TWO}-1", b"5-1:0", 5, None], ids=range(10)
)
def test_what_is_no_id_of_a_notice_is_refused(wrong):
    with pytest.raises(InvalidValue) as refused:
        place_of(wrong)
    assert refused.value.field == "after"
