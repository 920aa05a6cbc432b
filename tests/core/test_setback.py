"""When a leader says that it is earlier than the log believed, limits go on, and nothing taken is forgotten."""

from __future__ import annotations

import pytest

from tests.core.quota import NOW_MS, Quota
from tests.makers import DAY_MS, HOUR_MS, travelled
from token_actor.core.ledger import Ledger
from token_actor.core.limits import Limit
from token_actor.core.snapshot import Capture, restore

MINUTE_MS = 60_000


def ahead(quota: Quota, by_ms: int) -> None:
    """Let the server's clock jump."""
    quota.now_ms += by_ms


def told(quota: Quota, by_ms: int) -> None:
    """Let the leader say that it has."""
    quota.ledger.tell(quota.now_ms, quota.now_ms - by_ms, 1)


@pytest.mark.parametrize("by_ms", [6_000, 45_000, 10 * MINUTE_MS])
def test_what_a_window_holds_of_the_future_was_taken_now_and_leaves_in_time(by_ms):
    quota = Quota(amount=100)
    quota.use(10)
    ahead(quota, by_ms)
    quota.use(20)
    reservation = quota.reserve(30)["reservation"]
    told(quota, by_ms)
    assert quota.taken()[0] in (20, 30)  # the first 10 may have left with the jump
    assert quota.taken()[1] == 30
    quota.settle(reservation, 30)
    assert quota.taken()[0] in (50, 60)
    quota.now_ms += MINUTE_MS + 2_000
    quota.use(0)
    assert quota.taken() == (0, 0)


def test_an_expiry_that_was_charged_can_be_given_back_where_it_lies_now():
    quota = Quota(amount=100)
    ahead(quota, 10 * MINUTE_MS)
    reservation = quota.reserve(30, ttl_ms=1_000)["reservation"]
    quota.now_ms += 2_000
    quota.use(0)
    assert quota.taken() == (30, 0)
    told(quota, 10 * MINUTE_MS)
    quota.settle(reservation, 5)
    assert quota.taken() == (5, 0)


def test_a_bucket_fills_from_the_time_it_is():
    quota = Quota(Limit("l", 60, kind="bucket", burst=60))
    ahead(quota, 10 * MINUTE_MS)
    quota.use(50)
    reservation = quota.reserve(10)["reservation"]
    told(quota, 10 * MINUTE_MS)
    assert quota.taken()[1] == 10
    quota.now_ms += MINUTE_MS // 2
    assert quota.reserve(30)["granted"] is True
    assert quota.reserve(30)["granted"] is False
    quota.settle(reservation, 10)
    assert quota.taken()[1] == 30


@pytest.mark.parametrize("by_ms", [6_000, 45_000, 10 * MINUTE_MS])
def test_a_hold_that_left_the_window_with_the_jump_takes_nothing_of_others_with_it(by_ms):
    quota = Quota(amount=100)
    reservation = quota.reserve(30, ttl_ms=HOUR_MS)["reservation"]
    ahead(quota, by_ms)
    quota.use(20)
    other = quota.reserve(5, ttl_ms=HOUR_MS)["reservation"]
    told(quota, by_ms)
    quota.settle(reservation, 30)
    assert quota.taken() in [(20, 5), (50, 5)]
    quota.run("release", {"reservation": other})
    assert quota.taken()[1] == 0


DAILY = Limit("l", 100, kind="calendar", period="day")


def before_midnight(*limits: Limit) -> Quota:
    quota = Quota(*limits)
    quota.now_ms = NOW_MS + DAY_MS - MINUTE_MS
    quota.ledger.tell(quota.now_ms, quota.now_ms, 1)
    return quota


def test_a_day_goes_on_where_a_jump_had_begun_the_next_one():
    quota = before_midnight(DAILY)
    quota.use(10)
    quota.use(20)
    early = quota.reserve(30, ttl_ms=HOUR_MS)["reservation"]
    late = quota.reserve(5, ttl_ms=2 * MINUTE_MS)["reservation"]
    ahead(quota, 10 * MINUTE_MS)
    quota.use(3)
    meanwhile = quota.reserve(7, ttl_ms=HOUR_MS)["reservation"]
    assert quota.taken() == (3, 7)
    told(quota, 10 * MINUTE_MS)
    assert quota.taken() == (38, 37)
    quota.settle(late, 1)  # it had expired, and was charged
    quota.settle(early, 31)
    quota.settle(meanwhile, 7)
    assert quota.taken() == (72, 0)
    quota.now_ms += MINUTE_MS
    quota.use(4)
    assert quota.taken() == (4, 0)


def test_what_is_set_back_within_a_day_stays_as_it_is():
    quota = Quota(DAILY)
    ahead(quota, 10 * MINUTE_MS)
    quota.use(20)
    reservation = quota.reserve(30)["reservation"]
    told(quota, 10 * MINUTE_MS)
    assert quota.taken() == (20, 30)
    quota.settle(reservation, 10)
    assert quota.taken() == (30, 0)


def test_a_hold_of_a_day_that_is_forgotten_takes_nothing_of_another_with_it():
    quota = before_midnight(DAILY)
    oldest = quota.reserve(30, ttl_ms=DAY_MS)["reservation"]
    for day in (1, 2):
        quota.ledger.tell(quota.now_ms, quota.now_ms + day * DAY_MS, 1)
        quota.use(day)
    quota.ledger.tell(quota.now_ms, quota.now_ms, 1)
    assert quota.taken() == (3, 0)  # of the two days that were not yet
    assert quota.settle(oldest, 10)["late"]
    assert quota.taken() == (3, 0)
    quota.ledger.tell(quota.now_ms, quota.now_ms - DAY_MS, 1)
    assert quota.taken() == (3, 0)


def test_what_is_open_stays_open():
    quota = Quota(Limit("l", 2, kind="concurrency", unit="concurrency"))
    ahead(quota, 10 * MINUTE_MS)
    reservation = quota.reserve()["reservation"]
    told(quota, 10 * MINUTE_MS)
    assert quota.taken() == (0, 1)
    quota.settle(reservation, 1)
    assert quota.taken() == (0, 0)


def test_a_reservation_outlives_its_limit():
    quota = Quota(amount=100)
    reservation = quota.reserve(30)["reservation"]
    quota.run("delete_limit", {"name": "l"})
    ahead(quota, 10 * MINUTE_MS)
    quota.use(1)
    told(quota, 10 * MINUTE_MS)
    quota.settle(reservation, 30)
    assert quota.ledger.total()["input_tokens"] == 31


@pytest.mark.parametrize("limit", [Limit("l", 100), DAILY], ids=["window", "calendar"])
def test_limits_and_reservations_are_in_a_snapshot(limit):
    quota = Quota(limit)
    quota.use(20)
    reservation = quota.reserve(30)["reservation"]
    segments = {segment.name: list(segment.make()) for segment in Capture(quota.ledger).segments()}
    quota.use(3)  # which is not in it
    quota.ledger = restore(travelled(segments))
    assert quota.taken() == (20, 30)
    quota.settle(reservation, 10)
    assert quota.taken() == (30, 0)


def test_a_ledger_without_limits_has_no_segment_for_them():
    assert "limits/0" not in {segment.name for segment in Capture(Ledger()).segments()}


def test_the_time_of_a_silent_log_is_where_it_was():
    quota = Quota(amount=1)
    told(quota, 0)
    assert quota.ledger.log_ms == NOW_MS


@pytest.mark.parametrize("by_ms", [100_000, 10 * MINUTE_MS, HOUR_MS])
def test_what_was_taken_all_over_a_window_is_neither_lost_nor_kept_for_ever(by_ms):
    quota = Quota(amount=1_000)
    for _ in range(59):
        quota.now_ms += 1_000
        quota.use(10)
    told(quota, by_ms)
    again = restore(travelled({segment.name: list(segment.make()) for segment in Capture(quota.ledger).segments()}))
    for ledger in (quota.ledger, again):
        quota.ledger = ledger
        assert quota.taken() == (590, 0)
    for _ in range(70):  # a sub-bucket at a time, so that what leaves is subtracted
        quota.now_ms += 1_000
        quota.use(0)
    assert quota.taken() == (0, 0)
