"""The book of grants, on logs whose faults are known: it names what was granted though it did not fit."""

from __future__ import annotations

import json

import pytest

from tests.fault.caller_process import Diary
from tests.fault.grants import GrantBook, read_diary
from tests.makers import START_MS, command_entry
from token_actor.core.limits import Limit


class Log:
    """Write entries for a book that is told what was granted."""

    def __init__(self):
        self.granted = {}
        self.book = GrantBook(lambda request, key: self.granted.get(key))
        self.now_ms = START_MS
        self.sent = 0
        for limit in (Limit("l", 100, seconds=6), Limit("c", 2, kind="concurrency")):
            self.write("put_limit", {"limit": limit.as_map()})

    def write(self, operation, arguments, event=None, request=None):
        self.sent += 1
        request = request or str(self.sent)
        entry = command_entry(operation, arguments, event=event, request_id=request, at_ms=self.now_ms)
        self.book.take(*entry)
        return self.book.answers["c", request]

    def reserve(self, key, tokens, *, told=None, ttl_ms=1_000, request=None):
        self.granted[key] = told
        return self.write("reserve", {"session": key, "tokens": tokens, "ttl_ms": ttl_ms}, request=request)


@pytest.fixture
def log():
    return Log()


def test_what_fits_is_granted_and_what_does_not_is_refused(log):
    assert log.reserve("a", 60) == {"granted": True, "reservation": "c:3", "expires_ms": START_MS + 1_000}
    assert log.reserve("b", 41) == {"granted": False}
    assert log.reserve("c", 40)["granted"]
    assert (log.book.over, log.book.wrong, log.book.fullest) == ([], [], 100)


def test_a_grant_beyond_the_window_is_over(log):
    log.reserve("a", 60, told=True)
    log.reserve("b", 41, told=True)
    assert log.book.over == ["b: 101 of 100 tokens in a window"]
    assert log.book.wrong == ["b: 41 with 60 taken and 1 open: granted True"]


def test_a_refusal_of_what_fits_is_wrong(log):
    log.reserve("a", 60, told=False)
    assert (log.book.over, log.book.wrong) == ([], ["a: 60 with 0 taken and 0 open: granted False"])


def test_a_grant_beyond_the_concurrency_is_over(log):
    for key in "abc":
        log.reserve(key, 1, told=True)
    assert log.book.over == ["c: 3 of 2 reservations open"]


def test_what_expired_is_still_used_and_no_longer_open(log):
    log.reserve("a", 60)
    log.reserve("b", 40)
    log.now_ms += 1_000
    assert log.reserve("c", 1) == {"granted": False}
    log.now_ms += 5_200  # a window, and the sub-bucket it began in
    assert log.reserve("d", 100)["granted"]


def test_a_request_that_comes_again_changes_nothing(log):
    first = log.reserve("a", 60, request="x")
    log.now_ms += 5_000
    assert log.reserve("a", 60, request="x") == first
    assert (log.book.grants, log.book.repeated, log.book.expired) == (1, 1, 0)


def test_settling_makes_right_what_was_taken_and_counts_once(log):
    name = log.reserve("a", 60)["reservation"]
    event = {"agent": "z", "input_tokens": 70}
    told = log.write("settle", {"reservation": name}, event)
    assert told == {"counted": True, "unknown": False, "late": False, "debt": 10}
    assert log.write("settle", {"reservation": name}, event) == told
    assert (log.book.usage, log.book.requests) == ({"z": 70}, 1)
    assert log.reserve("b", 31) == {"granted": False}
    assert log.reserve("c", 30)["granted"]


def test_what_is_released_can_be_granted_again(log):
    name = log.reserve("a", 100)["reservation"]
    assert log.write("release", {"reservation": name}) == {"released": True}
    assert log.write("release", {"reservation": name}) == {"released": False}
    assert log.reserve("b", 100)["granted"]


def test_direct_usage_takes_from_the_window(log):
    log.book.take(b"%d-9" % log.now_ms, [b"j", json.dumps({"agent": "z", "input_tokens": 90}).encode()])
    assert log.reserve("a", 11) == {"granted": False}


def test_half_a_line_at_the_end_of_a_diary_is_none(tmp_path):
    Diary(tmp_path / "d").note(key="a", op="reserve", asked=True)
    with (tmp_path / "d").open("ab") as file:
        file.write(b'{"key": "b"')
    assert read_diary(tmp_path / "d") == [{"key": "a", "op": "reserve", "asked": True}]
