"""The book of escrow, on logs whose faults are known: it names what was granted or taken though it could not be."""

from __future__ import annotations

import pytest

from tests.fault.escrow_book import Decision, EscrowBook
from tests.makers import START_MS, command_entry
from token_actor.core.limits import Limit

TTL_MS = 1_000


class Log:
    """Write entries for a book that is told what was decided."""

    def __init__(self):
        self.told = {}
        self.book = EscrowBook(lambda request, key: self.told[key], lambda request: request[1])
        self.now_ms = START_MS
        self.sent = 0
        for limit in (Limit("l", 100, seconds=3_600), Limit("c", 2, kind="concurrency")):
            self.write("put_limit", {"limit": limit.as_map()})

    def write(self, operation, arguments, event=None, key=None):
        self.sent += 1
        entry = command_entry(operation, arguments, event=event, request_id=key or f"#{self.sent}", at_ms=self.now_ms)
        self.book.take(*entry)

    def open(self, number, calls):
        self.write("open_escrow", {"number": number, "calls": calls})

    def reserve(self, key, tokens, *, granted=True, drawn=None, escrow=None, decided_ms=None, waited_ms=0):
        decided_ms = self.now_ms if decided_ms is None else decided_ms
        self.told[key] = Decision(granted, decided_ms + TTL_MS if granted else None, drawn, waited_ms)
        more = {} if escrow is None else {"escrow": escrow}
        self.write("reserve", {"tokens": tokens, "ttl_ms": TTL_MS, **more}, key=key)

    def draw(self, key, tokens, number="e"):
        self.reserve(key, tokens, drawn=number, escrow=number)

    def settle(self, key, used):
        self.write("settle", {"reservation": f"c:{key}"}, {"agent": "a", "input_tokens": used})

    def release(self, key):
        self.write("release", {"reservation": f"c:{key}"})

    def go_on(self, ms=1):
        self.now_ms += ms
        self.write("set_aside", {})

    @property
    def found(self):
        self.go_on()
        return self.book.over, self.book.wrong


@pytest.fixture
def log():
    return Log()


def test_what_fits_is_in_order_however_it_was_granted(log):
    log.open("e", 1)
    log.draw("a", 60)
    log.reserve("b", 40)
    assert log.found == ([], [])
    assert (log.book.drawn, log.book.decided, log.book.fullest, log.book.most_open) == (1, 1, 1.0, 2)


def test_a_taken_call_beyond_the_window_is_over_at_its_entry(log):
    log.open("e", 2)
    log.draw("a", 60)
    log.draw("b", 41)
    assert log.book.over == ["b: 101 of 100 tokens are taken"]


def test_a_taken_call_beyond_the_concurrency_is_over(log):
    log.open("e", 3)
    for key in "xyz":
        log.draw(key, 1)
    assert log.book.over == ["z: 3 of 2 reservations are open"]


def test_a_decided_grant_beyond_the_window_is_over(log):
    log.reserve("a", 60)
    log.reserve("b", 41)
    assert log.found == (["b: 101 of 100 tokens are taken"], [])


def test_a_decided_grant_counts_from_the_end_of_the_millisecond_of_its_answer(log):
    log.reserve("a", 60)
    log.reserve("b", 60, decided_ms=START_MS + 5)
    log.now_ms += 5
    log.release("a")
    assert log.found == ([], [])
    assert log.book.waited == 1


def test_a_decided_grant_whose_answer_is_of_before_room_came_is_over(log):
    log.reserve("a", 60)
    log.reserve("b", 60, decided_ms=START_MS + 5)
    log.now_ms += 6
    log.release("a")
    assert log.found == (["b: 120 of 100 tokens are taken"], [])


def test_a_decided_grant_counts_at_the_latest_when_its_caller_goes_on(log):
    log.open("e", 1)
    log.reserve("a", 60)
    log.settle("a", 60)
    log.draw("b", 41)
    assert log.book.over == ["b: 101 of 100 tokens are taken"]


def test_a_counter_has_what_was_opened_and_no_more(log):
    log.open("e", 1)
    log.draw("a", 1)
    log.draw("b", 1)
    assert log.found == ([], ["b: taken from e, it was told, by the counters from None"])


def test_a_counter_that_was_recalled_has_nothing(log):
    log.open("e", 3)
    log.write("recall_escrows", {"numbers": ["e"]})
    log.draw("a", 1)
    assert log.found == ([], ["a: taken from e, it was told, by the counters from None"])
    assert log.book.recalled == 3


def test_a_call_that_a_counter_had_must_have_been_granted_there(log):
    log.open("e", 1)
    log.reserve("a", 1, escrow="e")
    assert log.found == ([], ["a: taken from None, it was told, by the counters from e"])


def test_a_repeated_request_takes_a_call_for_nobody(log):
    log.open("e", 2)
    log.draw("a", 1)
    log.draw("a", 1)
    log.draw("b", 1)
    assert log.found == ([], ["b: taken from e, it was told, by the counters from None"])
    assert (log.book.repeated, log.book.forfeited) == (1, 1)


def test_a_refusal_of_what_fits_is_wrong(log):
    log.open("e", 1)  # what is set aside is no reason
    log.reserve("a", 60, granted=False)
    assert log.found == ([], ["a: refused, and there was room for its 60 all the time"])


def test_a_refusal_of_what_does_not_fit_is_none(log):
    log.reserve("a", 60)
    log.reserve("b", 41, granted=False)
    assert log.found == ([], [])


def test_a_refusal_that_waited_may_have_a_reason_that_came_meanwhile(log):
    log.open("e", 1)
    log.reserve("a", 41, granted=False, waited_ms=2)
    log.go_on()
    log.draw("b", 60)
    log.go_on(5)
    assert log.found == ([], [])


def test_what_expired_is_charged_and_settling_late_makes_it_right(log):
    log.reserve("a", 60)
    log.go_on(TTL_MS)
    assert log.book.expired == 1
    log.reserve("b", 41, granted=False)
    log.settle("a", 10)
    log.reserve("c", 90)
    assert log.found == ([], [])
    assert log.book.answers["c", f"#{log.sent - 2}"]["late"]
    assert (log.book.usage, log.book.requests) == ({"a": 10}, 1)


def test_what_is_settled_twice_under_two_ids_is_wrong(log):
    log.reserve("a", 60)
    log.settle("a", 10)
    log.settle("a", 10)
    assert log.found == ([], ["c:a was settled, and is settled"])
