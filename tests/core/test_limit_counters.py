"""Facts about counters of each kind; windows have an oracle of their own besides."""

from __future__ import annotations

import numpy as np
import pytest

from tests.core.quota import NOW_MS, Quota
from tests.makers import DAY_MS, HOUR_MS, event, tell
from token_actor.core import limit_buckets, limit_windows
from token_actor.core.limit_counters import counters_of
from token_actor.core.limits import Limit


class TestWindow:
    def test_the_oldest_part_counts_whole_until_it_has_left(self):
        quota = Quota(amount=100)
        quota.use(100)
        quota.at(NOW_MS + 60_999)
        assert quota.taken() == (100, 0)
        quota.at(NOW_MS + 61_000)
        assert quota.taken() == (0, 0)

    def test_more_scopes_than_there_was_room_for_are_counted(self):
        quota = Quota(Limit("l", 100, by=["agent"]))
        for number in range(200):
            quota.use(number, agent=f"a{number}")
        assert quota.taken(agent="a199") == (199, 0)

    def test_a_settlement_after_the_window_charges_nothing_but_the_debt(self):
        quota = Quota(amount=100)
        reservation = quota.reserve(50, ttl_ms=200_000)["reservation"]
        quota.at(NOW_MS + 100_000)
        quota.use(1)
        quota.settle(reservation, 60)
        assert quota.taken() == (11, 0)

    def test_what_is_given_back_earlier_shortens_the_wait(self):
        quota = Quota(Limit("l", 100, on_expire="refund"))
        quota.reserve(60, ttl_ms=3_000)
        quota.reserve(40, ttl_ms=5_000)
        assert [quota.reserve(cost)["retry_after_ms"] for cost in (60, 61)] == [3_000, 5_000]


class TestBucket:
    @pytest.fixture
    def quota(self):
        return Quota(Limit("l", 10, kind="bucket", seconds=1, burst=25))

    def test_the_burst_can_be_taken_at_once_and_no_more(self, quota):
        assert quota.reserve(25)["granted"]
        got = quota.reserve(1)
        assert (got["granted"], got["amount"], got["remaining"], got["retry_after_ms"]) == (False, 25, 0, 100)

    def test_it_fills_up_at_the_rate_to_the_millisecond(self, quota):
        quota.reserve(25)
        assert quota.reserve(3)["retry_after_ms"] == 300
        quota.at(NOW_MS + 299)
        assert not quota.reserve(3)["granted"]
        quota.at(NOW_MS + 300)
        assert quota.reserve(3)["granted"]

    def test_it_never_holds_more_than_the_burst(self, quota):
        quota.at(NOW_MS + 10**9)
        assert not quota.reserve(26)["granted"]

    def test_more_than_the_burst_is_never_granted(self, quota):
        assert quota.reserve(26)["never"]

    def test_usage_may_drain_it_below_nothing(self, quota):
        quota.use(45)
        assert (quota.taken(), quota.reserve(1)["retry_after_ms"]) == ((45, 0), 2_100)

    def test_a_settlement_gives_back_what_was_not_used(self, quota):
        quota.settle(quota.reserve(20)["reservation"], 5)
        assert quota.taken() == (5, 0)

    def test_a_late_settlement_gives_back_what_was_charged(self, quota):
        reservation = quota.reserve(20, ttl_ms=100)["reservation"]
        quota.at(NOW_MS + 100)
        assert quota.taken() == (19, 0)
        quota.settle(reservation, 5)
        assert quota.taken() == (4, 0)

    def test_what_is_reserved_is_shown_until_it_has_flowed_in_again(self, quota):
        quota.reserve(20)
        quota.use(2)
        assert quota.taken() == (2, 20)
        quota.at(NOW_MS + 1_000)
        assert quota.taken() == (0, 12)

    @pytest.mark.parametrize(("cost", "wait_ms"), [(1, 100), (6, 500), (11, 600), (22, 1_200)])
    def test_what_is_given_back_shortens_the_wait(self, cost, wait_ms):
        quota = Quota(Limit("l", 10, kind="bucket", seconds=1, burst=25, on_expire="refund"))
        quota.use(15)
        for ttl_ms in (500, 800):
            quota.reserve(5, ttl_ms=ttl_ms)
        got = quota.reserve(cost)
        assert (got["granted"], got["retry_after_ms"]) == (False, wait_ms)
        quota.at(NOW_MS + wait_ms - 1)
        assert not quota.reserve(cost)["granted"]
        quota.at(NOW_MS + wait_ms)
        assert quota.reserve(cost)["granted"]

    def test_what_has_flowed_in_again_is_not_given_back_as_well(self, quota):
        early = quota.reserve(25)["reservation"]
        quota.at(NOW_MS + 2_000)
        later = quota.reserve(20)["reservation"]
        quota.run("release", {"reservation": early})  # five of it were still missing when the others were taken
        assert quota.taken() == (0, 20)
        quota.run("release", {"reservation": later})
        assert quota.taken() == (0, 0)

    def test_a_settlement_counts_where_it_was_reserved_even_if_that_has_flowed_in_again(self, quota):
        reservation = quota.reserve(20)["reservation"]
        quota.at(NOW_MS + 2_000)
        quota.reserve(25)
        assert quota.settle(reservation, 23)["debt"] == {"l": 3}
        assert quota.taken() == (3, 25)

    def test_of_many_holds_the_oldest_share_what_can_be_given_back(self, quota, monkeypatch):
        monkeypatch.setattr(limit_buckets, "_LOWS_MAX", 2)
        names = [quota.reserve(1)["reservation"] for _ in range(4)]
        assert len(quota.ledger.limits.meters["l"].counters.dump(1)["buckets"][0][2]) == 2
        for name in reversed(names):
            quota.run("release", {"reservation": name})
        assert quota.taken()[0] >= 0

    def test_numbers_beyond_64_bits_stay_exact(self):
        quota = Quota(Limit("l", 10**18, kind="bucket", seconds=86_400))
        quota.use(10**12)
        assert quota.reserve(0)["remaining"] == 10**18 - 10**12
        assert isinstance(quota.ledger.limits.dump()["meters"][0]["counters"]["buckets"][0][0], str)


class TestConcurrency:
    @pytest.fixture
    def quota(self):
        return Quota(Limit("l", 2, kind="concurrency", by=["model"]))

    def test_so_many_are_open_at_once_and_usage_opens_none(self, quota):
        quota.use(500, model="m")
        granted = [quota.reserve(model="m")["granted"] for _ in range(3)]
        assert granted == [True, True, False]

    @pytest.mark.parametrize("end", ["settle", "release"])
    def test_the_end_of_one_lets_another_begin(self, quota, end):
        first = quota.reserve(model="m")["reservation"]
        quota.reserve(model="m")
        quota.run(end, {"reservation": first}, **({"event": event(5, model="m")} if end == "settle" else {}))
        assert (quota.taken(model="m"), quota.reserve(model="m")["granted"]) == ((0, 1), True)

    def test_a_refused_one_knows_when_enough_will_have_expired(self, quota):
        for ttl_ms in (900, 400):
            quota.reserve(model="m", ttl_ms=ttl_ms)
        assert quota.reserve(model="m")["retry_after_ms"] == 400
        quota.at(NOW_MS + 400)
        assert quota.reserve(model="m")["granted"]

    def test_an_expiry_charges_nothing_and_a_late_settlement_no_more(self, quota):
        reservation = quota.reserve(model="m", ttl_ms=400)["reservation"]
        quota.at(NOW_MS + 400)
        quota.settle(reservation, 5, model="m")
        assert quota.taken(model="m") == (0, 0)


def come(quota, now_ms):
    """Let the log come to a time that may be far, without a leap."""
    tell(quota.ledger, now_ms)
    quota.at(now_ms)


class TestCalendar:
    """Days of Kolkata, where it is half past five when the tests begin."""

    MIDNIGHT_MS = NOW_MS + 18 * HOUR_MS + HOUR_MS // 2

    @pytest.fixture
    def quota(self):
        return Quota(Limit("l", 100, kind="calendar", period="day", tz="Asia/Kolkata"))

    def test_a_new_period_begins_with_nothing_taken(self, quota):
        quota.use(60)
        quota.reserve(40, ttl_ms=DAY_MS)
        come(quota, self.MIDNIGHT_MS - 1)
        assert (quota.taken(), quota.reserve(1)["granted"]) == ((60, 40), False)
        come(quota, self.MIDNIGHT_MS)
        assert (quota.taken(), quota.reserve(100)["granted"]) == ((0, 0), True)

    def test_a_refused_one_waits_for_the_next_period(self, quota):
        quota.use(60)
        got = quota.reserve(41)
        assert (got["granted"], got["retry_after_ms"], got["never"]) == (False, self.MIDNIGHT_MS - NOW_MS, False)
        assert quota.reserve(101)["never"]

    def test_what_is_given_back_before_shortens_the_wait(self):
        quota = Quota(Limit("l", 100, kind="calendar", period="day", on_expire="refund"))
        come(quota, NOW_MS + HOUR_MS)
        quota.reserve(60, ttl_ms=3_000)
        quota.reserve(30, ttl_ms=24 * HOUR_MS)  # until after midnight
        quota.reserve(10, ttl_ms=5_000)
        assert [quota.reserve(cost)["retry_after_ms"] for cost in (60, 61, 71)] == [3_000, 5_000, 23 * HOUR_MS]

    def test_what_is_held_of_another_period_shortens_no_wait(self):
        quota = Quota(Limit("l", 100, kind="calendar", period="day", on_expire="refund"))
        come(quota, NOW_MS + 23 * HOUR_MS)
        quota.reserve(60, ttl_ms=2 * HOUR_MS)
        come(quota, NOW_MS + 24 * HOUR_MS)
        quota.use(50)
        assert quota.reserve(51)["retry_after_ms"] == 24 * HOUR_MS

    def test_a_settlement_in_the_next_period_charges_nothing_but_the_debt(self, quota):
        reservation = quota.reserve(50, ttl_ms=DAY_MS)["reservation"]
        come(quota, self.MIDNIGHT_MS)
        quota.use(1)
        assert quota.settle(reservation, 60)["debt"] == {"l": 10}
        assert quota.taken() == (11, 0)

    def test_a_late_settlement_in_the_same_period_gives_back_what_was_charged(self, quota):
        reservation = quota.reserve(50, ttl_ms=1_000)["reservation"]
        quota.at(NOW_MS + 1_000)
        assert quota.taken() == (50, 0)
        quota.settle(reservation, 60)
        assert quota.taken() == (60, 0)

    def test_a_late_settlement_in_the_next_period_takes_nothing_out_of_it(self, quota):
        reservation = quota.reserve(50, ttl_ms=1_000)["reservation"]
        quota.at(NOW_MS + 1_000)
        come(quota, self.MIDNIGHT_MS)
        quota.use(10)
        quota.settle(reservation, 5)
        assert quota.taken() == (10, 0)

    def test_a_release_two_periods_later_gives_nothing_back(self, quota):
        reservation = quota.reserve(50, ttl_ms=DAY_MS)["reservation"]
        for half_days in range(6):
            come(quota, self.MIDNIGHT_MS + half_days * DAY_MS // 2)
            quota.run("extend", {"reservation": reservation, "ttl_ms": DAY_MS})
            quota.use(10)
        assert quota.run("release", {"reservation": reservation})["released"]
        assert quota.taken() == (20, 0)

    def test_more_scopes_than_there_was_room_for_are_counted(self):
        quota = Quota(Limit("l", 100, kind="calendar", period="month", by=["agent"]))
        for number in range(200):
            quota.use(number, agent=f"a{number}")
        assert [quota.reserve(0, agent=f"a{number}")["used"] for number in (1, 64, 199)] == [1, 64, 199]

    def test_money_per_month_is_counted_to_the_last_nano_dollar(self):
        quota = Quota(Limit("l", 10**12, "cost_nanousd", kind="calendar", period="month", tz="America/New_York"))
        quota.use(5, cost_nanousd=999_999_999_999, flags=0)
        assert [quota.reserve(cost_usd=cost)["granted"] for cost in ("0.000000002", "0.000000001")] == [False, True]

    def test_after_the_last_date_there_is_still_a_limit(self):
        quota = Quota(amount=1)
        come(quota, 2**61)
        quota.run("put_limit", {"limit": Limit("l", 100, kind="calendar", period="month").as_map()})
        quota.use(60)
        got = quota.reserve(41)
        assert (got["granted"], got["retry_after_ms"]) == (False, 2**63 - 1 - 2**61)


class TestCountersOfCalendars:
    """One read, and times that go back: what counters are told, without a ledger."""

    @pytest.fixture
    def counters(self):
        counters = counters_of(Limit("l", 100, kind="calendar", period="day"))
        counters.make_room(1)
        return counters

    def test_one_read_may_reach_over_several_periods(self, counters):
        days = np.array([0, DAY_MS - 1, DAY_MS, 3 * DAY_MS])
        counters.add(np.zeros(4, dtype=np.int64), np.array([1, 2, 4, 8]), NOW_MS + days)
        assert counters.sums(0, NOW_MS + 3 * DAY_MS) == (8, 0)
        assert [each[0] for each in counters.dump(1)["periods"]] == [NOW_MS + DAY_MS, NOW_MS + 3 * DAY_MS]

    def test_a_time_before_the_last_one_counts_as_the_last_one(self, counters):
        place = counters.hold(0, 5, NOW_MS)
        assert counters.hold(0, 7, NOW_MS - 1) == place
        assert counters.sums(0, NOW_MS - 1) == (0, 12)
        counters.add(np.zeros(1, dtype=np.int64), np.array([3]), np.array([NOW_MS - 1]))
        assert counters.sums(0, NOW_MS) == (3, 12)

    def test_time_may_go_back_into_a_period_in_which_nothing_happened(self, counters):
        places = [counters.hold(0, 5, NOW_MS), counters.hold(0, 7, NOW_MS + 2 * DAY_MS)]
        counters.set_back(NOW_MS + DAY_MS)
        assert [counters.place_now(place) for place in places] == [NOW_MS, NOW_MS + DAY_MS]
        assert counters.sums(0, NOW_MS + DAY_MS) == (0, 7)
        counters.unhold(0, NOW_MS, 5, NOW_MS + DAY_MS, charge=True)
        counters.set_back(NOW_MS)
        assert counters.sums(0, NOW_MS) == (5, 7)

    def test_where_nothing_happened_yet_nothing_is_set_back(self, counters):
        counters.set_back(NOW_MS)
        assert (counters.sums(0, NOW_MS), counters.dump(1)) == ((0, 0), {"periods": []})

    def test_scopes_that_are_let_go_of_leave_no_trace(self, counters):
        counters.make_room(3)
        counters.hold(0, 5, NOW_MS - 1)
        counters.hold(2, 7, NOW_MS)
        assert 0 not in counters.idle(NOW_MS)  # log time may still go back to where it was taken
        idle = counters.idle(NOW_MS + HOUR_MS)
        assert (0 in idle, 1 in idle, 2 in idle) == (True, True, False)
        counters.keep([2])
        counters.make_room(3)
        counters.set_back(NOW_MS - 1)
        assert [counters.sums(scope, NOW_MS - 1) for scope in range(3)] == [(0, 7), (0, 0), (0, 0)]


def test_what_a_window_holds_is_freed_once_whether_it_is_given_back_or_leaves(monkeypatch):
    freed = []
    monkeypatch.setattr(limit_windows, "freed_ms", lambda told, _: freed.extend(told) or NOW_MS)
    counters = counters_of(Limit("l", 100))
    counters.make_room(1)
    place = counters.hold(0, 30, NOW_MS)
    counters.hold(0, 20, NOW_MS)
    counters.retry_after_ms(0, 60, NOW_MS, [(NOW_MS + 10, place, 30)])
    assert [each for each in freed if each[1]] == [(NOW_MS + 10, 30), (NOW_MS + 61_000 - NOW_MS % 1_000, 20)]
