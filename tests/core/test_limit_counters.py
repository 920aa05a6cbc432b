"""Facts about counters of each kind; windows have an oracle of their own besides."""

from __future__ import annotations

import pytest

from tests.core.quota import NOW_MS, Quota
from tests.makers import event
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

    def test_numbers_beyond_64_bits_stay_exact(self):
        quota = Quota(Limit("l", 10**18, kind="bucket", seconds=86_400))
        quota.use(10**12)
        assert quota.reserve(0)["remaining"] == 10**18 - 10**12
        assert isinstance(quota.ledger.limits.dump()["meters"][0]["counters"]["levels"][0], str)


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
