"""Facts about the limits in force: put, replaced, deleted, and the bounds of what they count."""

from __future__ import annotations

import pytest

from tests.core.quota import NOW_MS, Quota, of_kind
from tests.makers import HOUR_MS, START_MS, apply, ask, event
from token_actor.core import limit_table
from token_actor.core.ledger import Bounds
from token_actor.core.limits import KINDS, Limit
from token_actor.core.series import NAMES_MAX, OTHER
from token_actor.errors import InvalidValue


def put(quota, limit):
    return quota.run("put_limit", {"limit": limit.as_map()})


class TestPutting:
    def test_a_limit_is_in_force_at_once(self):
        quota = Quota()
        assert quota.reserve(50)["granted"]
        assert put(quota, Limit("l", 10))["counters_kept"] is False
        assert not quota.reserve(50)["granted"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_another_amount_keeps_what_is_taken(self, kind):
        quota = Quota(Limit("l", 100, **of_kind(kind)))
        quota.reserve(10)
        before = quota.taken()
        assert put(quota, Limit("l", 200, **of_kind(kind), mode="shadow"))["counters_kept"] is True
        assert (quota.taken(), quota.reserve(0)["amount"]) == (before, 200)

    def test_another_amount_decides_and_tells_how_long_to_wait(self):
        quota = Quota(Limit("l", 100))
        quota.reserve(10)
        put(quota, Limit("l", 15))
        assert quota.reserve(6)["retry_after_ms"] == 61_000
        assert quota.reserve(5)["granted"]

    def test_another_scope_begins_with_nothing_taken(self):
        quota = Quota(Limit("l", 100))
        quota.use(50)
        assert put(quota, Limit("l", 100, by=["agent"]))["counters_kept"] is False
        assert quota.taken(agent=None) == (0, 0)

    def test_a_limit_that_is_deleted_refuses_nothing(self):
        quota = Quota(Limit("l", 1))
        assert quota.run("delete_limit", {"name": "l"}) == {"deleted": True}
        assert quota.run("delete_limit", {"name": "l"}) == {"deleted": False}
        assert quota.reserve(50)["granted"]

    def test_there_is_a_bound_of_limits_but_any_of_them_can_be_replaced(self, monkeypatch):
        monkeypatch.setattr(limit_table, "LIMITS_MAX", 2)
        quota = Quota(Limit("a", 1), Limit("b", 1))
        put(quota, Limit("a", 1, seconds=5))
        with pytest.raises(InvalidValue) as refused:
            put(quota, Limit("c", 1))
        assert refused.value.field == "limit"


class TestDirectUsage:
    def test_it_counts_with_or_without_a_limit_that_covers_it(self):
        quota = Quota(Limit("l", 100, selector={"model": "m"}), Limit("n", 5, selector={"model": "x"}))
        quota.use(7, model="m")
        quota.use(8, model="n")
        assert (quota.taken("l"), quota.taken("n")) == ((7, 0), (0, 0))

    def test_it_may_exceed_the_limit_and_then_refuses(self):
        quota = Quota(amount=100)
        quota.use(150)
        got = quota.reserve(1)
        assert (got["granted"], got["used"], got["remaining"]) == (False, 150, 0)

    def test_a_duplicate_counts_nothing(self):
        quota = Quota(amount=100)
        quota.use(7, message_id="x")
        quota.use(7, message_id="x")
        assert quota.taken() == (7, 0)

    def test_series_that_are_numbered_anew_count_where_they_did(self):
        quota = Quota(Limit("l", 1_000, by=["session"], seconds=86_400))
        quota.ledger._rows_max = 40
        for number in range(31):
            quota.now_ms += 1
            quota.use(10, session=f"s{number}")
        quota.now_ms = NOW_MS + HOUR_MS
        quota.use(1, session="s30")
        assert quota.ledger.series.code("session", "s0") is None  # it was folded
        assert quota.taken(session="s30") == (11, 0)


class TestScopes:
    def test_counters_are_made_in_the_order_of_the_log_whatever_the_read(self):
        quota = Quota()
        quota.use(1, agent="a")
        quota.use(1, agent="b")
        put(quota, Limit("l", 100, by=["agent"]))
        apply(quota.ledger, event(1, agent="b"), event(1, agent="a"))
        assert list(quota.ledger.limits.meters["l"].scopes) == ["b", "a"]

    @pytest.fixture
    def quota(self, monkeypatch):
        monkeypatch.setattr(limit_table, "SCOPES_MAX", 3)
        return Quota(Limit("l", 100, by=["agent"]), Limit("w", 50, by=["user", "agent"], seconds=7_000))

    def test_beyond_the_bound_they_share_a_counter(self, quota):
        for agent in "abcde":
            quota.use(10, agent=agent)
        assert [quota.taken(agent=agent) for agent in ["a", "b", "c", OTHER]] == [(10, 0)] * 3 + [(20, 0)]
        quota.reserve(5, agent="d")
        assert quota.reserve(76, agent="f")["reserved"] == 5
        assert quota.taken("w", user=OTHER, agent=OTHER) == (20, 5)

    def test_in_a_new_hour_the_idle_ones_make_room(self, quota):
        reservation = quota.reserve(1, agent="a", ttl_ms=2 * HOUR_MS)["reservation"]
        for agent in "bcd":
            quota.use(10, agent=agent)
        held_by_others = quota.reserve(2, agent="e", ttl_ms=2 * HOUR_MS)["reservation"]
        quota.now_ms += HOUR_MS
        quota.use(10, agent="x")
        assert (quota.taken(agent="x"), quota.taken(agent=OTHER)) == ((10, 0), (0, 0))
        quota.settle(held_by_others, 2, agent="e")
        quota.settle(reservation, 1, agent="a")
        assert quota.taken("w", user=None, agent="a") == (1, 0)

    def test_a_counter_in_use_stays(self, quota):
        for agent in "abc":
            quota.now_ms += 1_000
            quota.use(10, agent=agent)
        quota.now_ms = START_MS + HOUR_MS
        quota.use(10, agent="a")
        assert quota.taken("w", user=None, agent="b") == (10, 0)
        assert quota.taken("w", user=None, agent="a") == (20, 0)

    @pytest.mark.parametrize("kind", ["bucket", "calendar", "concurrency"])
    def test_counters_of_every_kind_make_room(self, kind, monkeypatch):
        monkeypatch.setattr(limit_table, "SCOPES_MAX", 3)
        quota = Quota(Limit("l", 10, by=["agent"], **of_kind(kind)))
        kept = quota.reserve(3, agent="a", ttl_ms=2 * HOUR_MS)["reservation"]
        quota.run("release", {"reservation": quota.reserve(3, agent="b")["reservation"]})
        quota.reserve(3, agent="c", ttl_ms=2 * HOUR_MS)
        quota.at(NOW_MS + HOUR_MS)
        assert list(quota.ledger.limits.meters["l"].scopes) == ["a", "c"]
        quota.run("release", {"reservation": kept})
        assert quota.taken(agent="a") == (0, 0)

    def test_a_name_beyond_the_bound_of_its_dimension_is_reserved_where_it_will_count(self):
        quota = Quota(Limit("l", 10, by=["agent"]))
        quota.ledger.series._names_max[3] = 1
        quota.use(1, agent="a")
        quota.use(4, agent="b")
        assert quota.reserve(7, agent="c")["scope"] == {"agent": OTHER}
        assert quota.taken(agent=OTHER) == (4, 0)


class TestQuestions:
    def test_limits_are_listed_with_what_is_taken_the_fullest_first(self):
        quota = Quota(Limit("l", 100, by=["agent"]), Limit("b", 100, kind="bucket", by=["agent"]),
                      Limit("c", 100, kind="concurrency", by=["agent"]),
                      Limit("d", 100, **of_kind("calendar"), by=["agent"]))  # fmt: skip
        quota.use(5, agent="a")
        quota.reserve(7, agent="b")
        quota.reserve(1_000, agent="b")
        shown = ask(quota.ledger, "limits", quota.now_ms, top=1)
        assert shown["open_reservations"] == 1
        assert [each["name"] for each in shown["limits"]] == ["l", "b", "c", "d"]
        first = shown["limits"][0]
        assert (first["scopes"], first["refused"], first["debt"], first["kind"]) == (2, 1, 0, "window")
        assert [each["top"][0]["scope"] for each in shown["limits"]] == [{"agent": "b"}] * 4
        assert first["top"] == [{"scope": {"agent": "b"}, "amount": 100, "used": 0, "reserved": 7, "remaining": 93}]

    def test_what_has_left_the_window_since_the_last_entry_is_not_shown(self):
        quota = Quota(Limit("l", 100, by=["agent"]))
        quota.use(50, agent="a")
        quota.now_ms += 5_000
        quota.use(20, agent="b")
        quota.reserve(5, agent="c")
        quota.now_ms += 57_000
        quota.ledger.advance(START_MS + 5_000)
        shown = ask(quota.ledger, "limits", quota.now_ms, top=2)["limits"][0]["top"]
        assert [(each["scope"]["agent"], each["used"], each["reserved"]) for each in shown] == [
            ("b", 20, 0),
            ("c", 0, 5),
        ]
        quota.now_ms += 600_000
        shown = ask(quota.ledger, "limits", quota.now_ms)["limits"][0]["top"]
        assert {(each["used"], each["reserved"]) for each in shown} == {(0, 0)}

    def test_it_is_explained_what_covers_a_call_and_what_it_would_be_told(self):
        quota = Quota(Limit("l", 100), Limit("m", 10, selector={"model": "m"}), Limit("n", 1, mode="shadow"))
        told = ask(quota.ledger, "explain", quota.now_ms, selector={"model": "m"}, tokens=11)
        assert (told["granted"], told["limit"], told["never"], told["shadow"]) == (False, "m", True, ["n"])
        assert [(each["name"], each["cost"], each["fits"], each["retry_after_ms"]) for each in told["limits"]] == [
            ("l", 11, True, 0), ("m", 11, False, None), ("n", 11, False, None),
        ]  # fmt: skip
        assert quota.taken() == (0, 0)


def test_names_of_dimensions_are_bounded_as_everywhere():
    assert Bounds().names_max == NAMES_MAX  # what `__other__` of a limit follows
    quota = Quota(Limit("l", 5))
    apply(quota.ledger, event(1))
    assert quota.taken() == (1, 0)
