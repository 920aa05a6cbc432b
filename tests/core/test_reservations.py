"""Facts about reserving: what is decided, what is held, and what is made of it."""

from __future__ import annotations

import pytest

from tests.core.quota import NOW_MS, Quota, of_kind
from tests.makers import event, plain
from token_actor.core import reservations, retries
from token_actor.core.admission import Admission
from token_actor.core.limit_table import LimitTable
from token_actor.core.limits import Limit
from token_actor.core.reservations import TABLE_FULL, TTL_MS, Reservations
from token_actor.core.retries import REFUNDS_MAX


@pytest.fixture
def quota():
    return Quota(amount=100)


class TestDecision:
    def test_a_grant_names_the_reservation_and_what_is_left(self, quota):
        assert quota.reserve(30) == {
            "granted": True,
            "limit": "l",
            "unit": "tokens",
            "cost": 30,
            "scope": {},
            "amount": 100,
            "used": 0,
            "reserved": 30,
            "remaining": 70,
            "retry_after_ms": 0,
            "never": False,
            "shadow": [],
            "reservation": "c:2",
            "expires_ms": NOW_MS + TTL_MS,
            "limits_version": 1,
            "waited_ms": 0,
            "estimate": {"source": "given", "tokens": 30, "requests": 1},
        }

    def test_a_refusal_names_the_limit_and_takes_nothing(self, quota):
        quota.use(20)
        quota.reserve(50)
        assert quota.reserve(31) == {
            "granted": False,
            "limit": "l",
            "unit": "tokens",
            "cost": 31,
            "scope": {},
            "amount": 100,
            "used": 20,
            "reserved": 50,
            "remaining": 30,
            "retry_after_ms": 61_000,
            "never": False,
            "shadow": [],
            "reservation": None,
            "expires_ms": None,
            "limits_version": 1,
            "waited_ms": 0,
            "estimate": {"source": "given", "tokens": 31, "requests": 1},
        }
        assert quota.taken() == (20, 50)

    def test_what_no_limit_covers_is_granted(self):
        got = Quota().reserve(10**12)
        assert (got["granted"], got["limit"], got["remaining"]) == (True, None, None)

    def test_more_than_the_limit_can_never_be_granted(self, quota):
        got = quota.reserve(101)
        assert (got["granted"], got["never"], got["retry_after_ms"]) == (False, True, None)

    def test_nothing_is_granted_even_when_nothing_is_left(self, quota):
        quota.use(500)
        got = quota.reserve(0)
        assert (got["granted"], got["remaining"], quota.taken()) == (True, 0, (500, 0))

    def test_all_limits_or_none(self):
        quota = Quota(Limit("wide", 100), Limit("narrow", 10, by=["agent"]))
        got = quota.reserve(20, agent="a")
        assert (got["granted"], got["limit"], got["scope"]) == (False, "narrow", {"agent": "a"})
        assert (quota.taken("wide"), quota.taken("narrow", agent="a")) == ((0, 0), (0, 0))

    def test_of_those_that_refuse_the_one_to_wait_for_longest_binds(self):
        quota = Quota(Limit("short", 10, seconds=6), Limit("long", 10, seconds=60), Limit("free", 100))
        quota.use(10)
        got = quota.reserve(1)
        assert (got["limit"], got["retry_after_ms"]) == ("long", 61_000)

    def test_one_that_never_grants_binds_before_any_wait(self):
        quota = Quota(Limit("long", 10, seconds=60), Limit("never", 2))
        quota.use(10)
        got = quota.reserve(5)
        assert (got["limit"], got["never"], got["retry_after_ms"]) == ("never", True, None)

    def test_of_those_that_grant_the_one_with_the_smallest_share_left_binds(self):
        quota = Quota(Limit("big", 1_000), Limit("small", 100))
        assert quota.reserve(50)["limit"] == "small"

    def test_a_shadow_tells_and_does_not_refuse(self):
        quota = Quota(Limit("l", 10, mode="shadow"))
        got = quota.reserve(11)
        assert (got["granted"], got["shadow"], quota.taken()) == (True, ["l"], (0, 11))

    def test_every_value_of_by_has_a_counter_of_its_own(self):
        quota = Quota(Limit("l", 10, by=["agent", "user"]))
        granted = [quota.reserve(8, agent=agent)["granted"] for agent in "aab"]
        assert granted == [True, False, True]
        assert quota.taken(agent="a", user=None) == (0, 8)

    def test_the_same_request_has_the_same_answer(self, quota):
        first = quota.reserve(60)
        quota._requests -= 1
        assert (quota.reserve(60), quota.taken()) == (first, (0, 60))


class TestSettling:
    def test_what_was_not_used_can_be_granted_again(self, quota):
        quota.settle(quota.reserve(100)["reservation"], 10)
        assert quota.taken() == (10, 0)
        assert quota.reserve(90)["granted"]

    def test_it_counts_where_it_was_reserved(self, quota):
        reservation = quota.reserve(100)["reservation"]
        quota.at(NOW_MS + 30_000)
        quota.settle(reservation, 100)
        quota.at(NOW_MS + 61_000)
        assert quota.taken() == (0, 0)

    def test_what_is_beyond_is_debt_and_counts_now(self, quota):
        reservation = quota.reserve(40)["reservation"]
        quota.at(NOW_MS + 30_000)
        assert quota.settle(reservation, 140)["debt"] == {"l": 100}
        assert quota.taken() == (140, 0)
        quota.at(NOW_MS + 61_000)
        assert quota.taken() == (100, 0)
        assert quota.ledger.limits.meters["l"].debt == 100

    def test_the_call_is_counted_once_in_the_ledger(self, quota):
        quota.settle(quota.reserve(40)["reservation"], 30)
        total = quota.ledger.total()
        assert (total["requests"], total["input_tokens"]) == (1, 30)

    def test_twice_is_one_settlement_with_one_answer(self, quota):
        reservation = quota.reserve(40)["reservation"]
        assert quota.settle(reservation, 30) == quota.settle(reservation, 35)
        assert (quota.taken(), quota.ledger.total()["requests"]) == ((30, 0), 1)

    def test_one_that_nobody_knows_counts_directly_and_says_so(self, quota):
        first = quota.settle("c:99", 30)
        assert (first["counted"], first["unknown"], first["late"], first["debt"]) == (True, True, False, {})
        assert quota.settle("c:99", 30) == first
        assert (quota.taken(), quota.ledger.reservations.unknown_settled) == ((30, 0), 1)

    @pytest.mark.parametrize(("on_expire", "before"), [("charge", (40, 0)), ("refund", (0, 0))])
    def test_after_expiry_it_still_counts_what_was_used(self, on_expire, before):
        quota = Quota(Limit("l", 100, on_expire=on_expire))
        reservation = quota.reserve(40, ttl_ms=1_000)["reservation"]
        quota.at(NOW_MS + 1_000)
        assert quota.taken() == before
        got = quota.settle(reservation, 50)
        assert (got["late"], got["debt"]) == (True, {"l": 10 if on_expire == "charge" else 50})
        assert quota.taken() == (50, 0)

    @pytest.mark.parametrize("late", [False, True])
    def test_a_call_that_was_reported_already_is_not_charged_again(self, quota, late):
        quota.use(30, message_id="m")
        reservation = quota.reserve(40, ttl_ms=1_000)["reservation"]
        quota.at(NOW_MS + 1_000 * late)
        got = quota.settle(reservation, 30, message_id="m")
        assert (got["counted"], got["reason"], quota.taken()) == (False, "duplicate", (30, 0))

    def test_what_was_used_and_cannot_be_counted_is_charged_as_estimated(self, quota):
        quota.use(1, message_id="m")
        reservation = quota.reserve(40)["reservation"]
        got = quota.settle(reservation, 30, message_id="m")
        assert (got["counted"], got["reason"], quota.taken()) == (False, "id_conflict", (41, 0))

    @pytest.mark.parametrize("late", [False, True])
    def test_without_a_word_of_what_was_used_the_estimate_is_charged(self, quota, late):
        reservation = quota.reserve(40, ttl_ms=1_000)["reservation"]
        quota.at(NOW_MS + 1_000 * late)
        got = quota.run("settle", {"reservation": reservation})
        assert (got["counted"], got["reason"], quota.taken()) == (False, None, (40, 0))

    def test_another_model_than_reserved_is_charged_where_it_was_used(self):
        quota = Quota(Limit("l", 100, by=["model"]))
        reservation = quota.reserve(40, model="m")["reservation"]
        assert quota.settle(reservation, 30, model="n")["debt"] == {"l": 30}
        assert (quota.taken(model="m"), quota.taken(model="n")) == ((0, 0), (30, 0))

    def test_a_settlement_in_no_way_reserved_is_debt(self, quota):
        reservation = quota.reserve(0)["reservation"]
        assert quota.settle(reservation, 7)["debt"] == {"l": 7}

    def test_a_limit_that_is_gone_meanwhile_does_not_matter(self, quota):
        settled, released, expired = (quota.reserve(10, ttl_ms=5)["reservation"] for _ in range(3))
        quota.run("delete_limit", {"name": "l"})
        assert quota.settle(settled, 20)["debt"] == {}
        assert quota.run("release", {"reservation": released})["released"]
        quota.at(NOW_MS + 5)
        assert quota.ledger.reservations.state_of(expired) == "expired"

    def test_a_limit_that_was_replaced_meanwhile_counts_what_is_used(self, quota):
        reservation = quota.reserve(10)["reservation"]
        quota.run("put_limit", {"limit": Limit("l", 100, seconds=5).as_map()})
        assert quota.taken() == (0, 0)
        quota.settle(reservation, 20)
        assert quota.taken() == (20, 0)


class TestTime:
    def test_an_extension_counts_from_now(self, quota):
        reservation = quota.reserve(40, ttl_ms=1_000)["reservation"]
        quota.at(NOW_MS + 900)
        got = quota.run("extend", {"reservation": reservation, "ttl_ms": 5_000})
        assert got == {"extended": True, "state": "open", "expires_ms": NOW_MS + 5_900}
        quota.at(NOW_MS + 5_899)
        assert quota.taken() == (0, 40)
        quota.at(NOW_MS + 5_900)
        assert quota.taken() == (40, 0)

    def test_what_expires_during_a_read_does_so_at_its_place(self):
        quota = Quota(Limit("l", 100, on_expire="refund", kind="bucket", seconds=100))
        quota.reserve(100, ttl_ms=500)
        quota.at(NOW_MS + 400)
        quota.use(10)
        quota.now_ms = NOW_MS + 600
        quota.use(10)
        assert quota.taken() == (20, 0)

    def test_due_times_of_what_is_settled_do_not_pile_up(self, quota, monkeypatch):
        monkeypatch.setattr(reservations, "_STALE_MAX", 10)
        quota.reserve(1, ttl_ms=50_000)  # due before the others, so that nobody gets to theirs
        for _ in range(50):
            quota.run("release", {"reservation": quota.reserve(1)["reservation"]})
        assert len(quota.ledger.reservations._due) <= 13


class TestBounds:
    def test_too_many_open_ones_are_refused_until_one_expires(self, quota, monkeypatch):
        monkeypatch.setattr(reservations, "OPEN_MAX", 2)
        quota.reserve(1, ttl_ms=700)
        quota.reserve(1, ttl_ms=300)
        got = quota.reserve(1)
        assert (got["granted"], got["limit"], got["retry_after_ms"]) == (False, TABLE_FULL, 300)
        quota.at(NOW_MS + 300)
        assert quota.reserve(1)["granted"]

    def test_the_oldest_closed_ones_are_forgotten(self, quota, monkeypatch):
        monkeypatch.setattr(reservations, "CLOSED_MAX", 2)
        names = [quota.reserve(1)["reservation"] for _ in range(3)]
        for name in names:
            quota.run("release", {"reservation": name})
        assert [quota.ledger.reservations.state_of(name) for name in names] == ["unknown", "released", "released"]


def test_the_state_comes_back_as_it_was():
    quota = Quota(
        Limit("w", 100, by=["agent"]), Limit("b", 100, kind="bucket"), Limit("c", 5, kind="concurrency"), Limit("x", 9),
        Limit("d", 100, kind="calendar", period="day", tz="Asia/Kolkata", by=["agent"]),
    )  # fmt: skip
    quota.run("delete_limit", {"name": "x"})
    quota.use(10, agent="a")
    names = [quota.reserve(5, agent="a", ttl_ms=1_000 + each)["reservation"] for each in range(3)]
    quota.settle(names[0], 3, agent="a")
    quota.at(NOW_MS + 1_001)
    limits = LimitTable()
    limits.restore(quota.ledger.limits.dump())
    restored = Reservations(limits)
    restored.restore(quota.ledger.reservations.dump())
    assert plain([limits.dump(), restored.dump()]) == plain(
        [quota.ledger.limits.dump(), quota.ledger.reservations.dump()]
    )
    for table in (restored, quota.ledger.reservations):
        table.settle(names[2], [""] * 7, event(9), NOW_MS + 1_001, {"counted": True, "reason": None})
        Admission(table).advance(NOW_MS + 90_000)
    assert plain([limits.dump(), restored.dump()]) == plain(
        [quota.ledger.limits.dump(), quota.ledger.reservations.dump()]
    )
    assert [meter.holders for meter in limits.meters.values()] == [{}, {}, {}, {}]


def test_an_open_hold_on_a_limit_that_is_gone_comes_back_too():
    quota = Quota(amount=10)
    quota.reserve(5)
    quota.run("delete_limit", {"name": "l"})
    limits = LimitTable()
    limits.restore(quota.ledger.limits.dump())
    restored = Reservations(limits)
    restored.restore(quota.ledger.reservations.dump())
    assert restored.dump() == quota.ledger.reservations.dump()


@pytest.mark.parametrize("kind", ["window", "bucket", "calendar", "concurrency"])
def test_a_refusal_looks_at_no_more_open_reservations_than_have_to_end(kind, monkeypatch):
    quota = Quota(Limit("l", 300, seconds=3_600, on_expire="refund", **of_kind(kind)))
    for number in range(300):
        assert quota.reserve(1, ttl_ms=60_000 + number)["granted"]
    looked = []

    def refunds(*arguments):
        for refund in original(*arguments):
            looked.append(refund)
            yield refund

    original = retries._refunds
    monkeypatch.setattr(retries, "_refunds", refunds)
    quota.at(NOW_MS + 2)
    refused = quota.reserve(1)
    assert not refused["granted"]
    assert refused["retry_after_ms"] == (11_998 if kind == "bucket" else 59_998)
    assert len(looked) <= 2


def test_an_extension_moves_when_room_is_expected():
    quota = Quota(Limit("l", 2, kind="concurrency"))
    first, _ = quota.reserve(1, ttl_ms=1_000), quota.reserve(1, ttl_ms=2_000)
    assert quota.reserve(1)["retry_after_ms"] == 1_000
    quota.run("extend", {"reservation": first["reservation"], "ttl_ms": 5_000})
    assert quota.reserve(1)["retry_after_ms"] == 2_000


def test_of_very_many_refunds_the_first_ones_are_counted_on():
    quota = Quota(Limit("l", 300, on_expire="refund"))
    for _ in range(300):
        quota.reserve(1, ttl_ms=10_000)
    few, many = quota.reserve(REFUNDS_MAX), quota.reserve(REFUNDS_MAX + 1)
    assert (few["retry_after_ms"], many["retry_after_ms"]) == (10_000, 61_000)
