"""Facts about pauses: limits that grant nothing for a while, exactly as long as somebody said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.quota import NOW_MS, Quota
from tests.core.test_waiting import Line
from tests.makers import MINUTE_MS, ask, examples, packed, state_of, travelled
from token_actor.core.commands import Command, execute
from token_actor.core.limits import Limit
from token_actor.core.pauses import PAUSE_MS_MAX
from token_actor.core.snapshot import restore
from token_actor.errors import InvalidValue

SELECTOR = {"provider": "p", "model": "m"}


def pause(quota, for_ms, name="l", **more):
    return quota.run("pause_limit", {"name": name, "for_ms": for_ms, **more})["paused"]


@pytest.fixture
def quota():
    return Quota(amount=100)


@pytest.mark.parametrize("kind", ["window", "bucket", "concurrency"])
def test_it_refuses_until_exactly_its_end(kind):
    quota = Quota(Limit("l", 100, kind=kind))
    assert pause(quota, 1_000) == {"l": 1_000}
    for passed_ms, granted, retry_ms in ((0, False, 1_000), (999, False, 1), (1_000, True, 0)):
        quota.now_ms = NOW_MS + passed_ms
        told = quota.reserve(1)
        assert (told["granted"], told["retry_after_ms"], told["never"]) == (granted, retry_ms, False)


class TestDecision:
    def test_nothing_remains_while_it_lasts_and_all_that_was_left_after_it(self, quota):
        quota.use(30)
        pause(quota, 1_000)
        told = quota.reserve(1)
        assert (told["limit"], told["used"], told["remaining"]) == ("l", 30, 0)
        quota.now_ms += 1_000
        assert quota.reserve(70)["granted"]

    def test_who_waits_for_quota_anyway_waits_for_the_longer_of_both(self, quota):
        quota.use(60)
        pause(quota, 1_000)
        assert [quota.reserve(tokens)["retry_after_ms"] for tokens in (40, 41)] == [1_000, 61_000]
        pause(quota, 5 * MINUTE_MS)
        assert quota.reserve(41)["retry_after_ms"] == 5 * MINUTE_MS

    def test_what_can_never_fit_can_not_after_the_pause_either(self, quota):
        pause(quota, 1_000)
        told = quota.reserve(101)
        assert (told["never"], told["retry_after_ms"]) == (True, None)

    def test_a_limit_that_only_tells_refuses_nothing(self):
        quota = Quota(Limit("l", 100, mode="shadow"))
        pause(quota, 1_000)
        told = quota.reserve(1)
        assert (told["granted"], told["shadow"]) == (True, ["l"])

    def test_it_holds_for_every_value_of_by(self):
        quota = Quota(Limit("l", 100, by=["agent"]))
        pause(quota, 1_000)
        assert [quota.reserve(1, agent=agent)["granted"] for agent in "ab"] == [False, False]

    def test_what_is_held_can_be_settled(self, quota):
        reservation = quota.reserve(30)["reservation"]
        pause(quota, 1_000)
        quota.settle(reservation, 20)
        assert quota.taken() == (20, 0)

    def test_it_is_shown_of_the_limits_and_by_limit(self, quota):
        pause(quota, 1_000)
        (shown,) = ask(quota.ledger, "limits", NOW_MS + 400)["limits"]
        assert shown["paused_ms"] == 600
        (explained,) = ask(quota.ledger, "explain", NOW_MS + 400, selector={}, tokens=1)["limits"]
        assert (explained["fits"], explained["remaining"], explained["retry_after_ms"]) == (False, 0, 600)
        (over,) = ask(quota.ledger, "limits", NOW_MS + 1_000)["limits"]
        assert over["paused_ms"] == 0


class TestCommand:
    def test_a_shorter_one_never_ends_a_longer_one(self, quota):
        pause(quota, 10_000)
        quota.now_ms += 1_000
        assert pause(quota, 2_000) == {"l": 9_000}
        assert pause(quota, 20_000) == {"l": 20_000}

    def test_a_selector_names_the_limits_that_cover_just_that(self):
        quota = Quota(Limit("a", 1, selector=SELECTOR), Limit("b", 1, selector={"model": "m", "provider": "p"}),
                      Limit("wide", 1, selector={"provider": "p"}), Limit("all", 1))  # fmt: skip
        told = quota.run("pause_limit", {"selector": SELECTOR, "for_ms": 5})
        assert told == {"paused": {"a": 5, "b": 5}}

    def test_a_limit_that_does_not_exist_is_not_paused(self, quota):
        version = quota.ledger.limits.version
        assert pause(quota, 5, name="nobody") == {}
        assert quota.run("pause_limit", {"selector": SELECTOR, "for_ms": 5}) == {"paused": {}}
        assert quota.ledger.limits.version == version

    def test_where_nothing_is_selected_another_limit_can_be_put_and_paused(self):
        quota = Quota()
        arguments = {"selector": SELECTOR, "for_ms": 5, "otherwise": Limit("new", 9, selector=SELECTOR).as_map()}
        assert quota.run("pause_limit", arguments) == {"paused": {"new": 5}}
        assert not quota.reserve(1, **SELECTOR)["granted"]
        assert quota.run("pause_limit", {**arguments, "otherwise": Limit("x", 1).as_map()}) == {"paused": {"new": 5}}

    def test_but_it_replaces_none_of_that_name(self):
        quota = Quota(Limit("new", 100))
        arguments = {"selector": SELECTOR, "for_ms": 5, "otherwise": Limit("new", 9, selector=SELECTOR).as_map()}
        assert quota.run("pause_limit", arguments) == {"paused": {"new": 5}}
        assert ask(quota.ledger, "limits", quota.now_ms)["limits"][0]["amount"] == 100

    def test_who_has_a_copy_of_the_limits_needs_no_new_one(self, quota):
        version = quota.ledger.limits.version
        pause(quota, 5)
        assert quota.ledger.limits.version == version

    @pytest.mark.parametrize(
        ("arguments", "field"),
        [
            ({}, "for_ms"), ({"for_ms": 0}, "for_ms"), ({"for_ms": PAUSE_MS_MAX + 1}, "for_ms"),
            ({"for_ms": 1.5}, "for_ms"), ({"for_ms": True}, "for_ms"), ({"for_ms": 5}, "name"),
            ({"for_ms": 5, "name": "l", "selector": {}}, "name"), ({"for_ms": 5, "name": []}, "name"),
            ({"for_ms": 5, "selector": 5}, "selector"), ({"for_ms": 5, "selector": {"x": "y"}}, "x"),
            ({"for_ms": 5, "selector": SELECTOR, "otherwise": 5}, "otherwise"),
            ({"for_ms": 5, "selector": SELECTOR, "otherwise": {}}, "name"), ({"for_ms": 5, "colour": 1}, "colour"),
        ],
    )  # fmt: skip
    def test_a_wrong_argument_is_named(self, quota, arguments, field):
        with pytest.raises(InvalidValue) as refused:
            quota.run("pause_limit", arguments)
        assert refused.value.field == field


class TestLife:
    @pytest.mark.parametrize("limit", [Limit("l", 50), Limit("l", 50, seconds=5)], ids=["same shape", "other shape"])
    def test_it_outlives_a_change_of_its_limit(self, quota, limit):
        pause(quota, 1_000)
        quota.run("put_limit", {"limit": limit.as_map()})
        assert quota.reserve(1)["retry_after_ms"] == 1_000

    def test_it_goes_with_its_limit(self, quota):
        pause(quota, 1_000)
        quota.run("delete_limit", {"name": "l"})
        quota.run("put_limit", {"limit": Limit("l", 5).as_map()})
        assert quota.reserve(1)["granted"]

    def test_it_is_in_a_snapshot(self, quota):
        pause(quota, 1_000)
        state = state_of(quota.ledger)
        quota.ledger = restore(travelled(state))
        assert packed(state_of(quota.ledger)) == packed(state)
        assert quota.reserve(1)["retry_after_ms"] == 1_000

    def test_when_log_time_moves_back_one_of_the_future_begins_now(self, quota):
        quota.now_ms += 30 * MINUTE_MS  # the server's clock jumped
        pause(quota, 10_000)
        quota.ledger.tell(quota.now_ms, quota.now_ms - 30 * MINUTE_MS, 1)
        assert quota.reserve(1)["retry_after_ms"] == 10_000

    def test_when_log_time_moves_back_one_that_began_before_ends_when_it_did(self, quota):
        pause(quota, 40 * MINUTE_MS)
        quota.now_ms += 30 * MINUTE_MS
        quota.ledger.tell(quota.now_ms, quota.now_ms - 29 * MINUTE_MS, 1)
        assert quota.reserve(1)["retry_after_ms"] == 39 * MINUTE_MS


class TestWaiting:
    """Who waits for quota waits for the end of a pause, and is granted exactly then."""

    @pytest.fixture
    def line(self):
        return Line(amount=100)

    def test_who_comes_during_a_pause_is_granted_at_its_end(self, line):
        pause(line, 5_000)
        assert line.ask(10, "a") is None
        line.at(NOW_MS + 4_999)
        assert line.granted == []
        line.at(NOW_MS + 5_000)
        assert (line.granted, line.told["w", "a"]["waited_ms"]) == (["a"], 5_000)

    def test_who_waits_already_waits_for_a_pause_that_begins_then(self, line):
        line.use(100)
        assert line.ask(10, "a", wait_ms=600_000) is None
        pause(line, 3 * MINUTE_MS)
        line.at(NOW_MS + 2 * MINUTE_MS)
        assert line.granted == []
        line.at(NOW_MS + 3 * MINUTE_MS)
        assert line.granted == ["a"]

    def test_who_waits_is_told_what_it_was_taken_to_use_also_after_a_restart(self, line):
        line.use(30)
        pause(line, 5_000)
        command = Command(operation="reserve", request_id="a", client="w", arguments={"wait_ms": 60_000})
        assert execute(line.ledger, command, line.now_ms).answer is None
        line.ledger = restore(travelled(state_of(line.ledger)))
        line.at(NOW_MS + 5_000)
        assert line.told["w", "a"]["estimate"] == {"source": "learned", "input_tokens": 30, "requests": 1}

    def test_who_waits_in_vain_is_told_it_too(self, line):
        pause(line, 5_000)
        assert line.ask(10, "a", wait_ms=1_000) is None
        line.at(NOW_MS + 1_000)
        told = line.told["w", "a"]
        assert (told["granted"], told["retry_after_ms"], told["estimate"]["tokens"]) == (False, 4_000, 10)


@examples(300)
@given(
    st.sampled_from(["window", "bucket", "concurrency"]),
    st.lists(st.tuples(st.integers(0, 60), st.booleans(), st.integers(0, 40_000)), max_size=6),
    st.lists(st.tuples(st.integers(1, 200_000), st.integers(0, 60_000)), min_size=1, max_size=3),
    st.integers(1, 100),
)
def test_a_refusal_during_a_pause_says_to_the_millisecond_when_it_will_be_granted(kind, calls, pauses, cost):
    quota = Quota(Limit("l", 100, kind=kind, on_expire="refund"))
    for tokens, reserved, passed_ms in calls:
        (quota.reserve if reserved else quota.use)(tokens)
        quota.at(quota.now_ms + passed_ms)
    end_ms = 0
    for for_ms, passed_ms in pauses:
        end_ms = max(end_ms, quota.now_ms + for_ms)
        assert pause(quota, for_ms) == {"l": end_ms - quota.now_ms}
        quota.at(quota.now_ms + passed_ms)
    told = ask(quota.ledger, "explain", quota.now_ms, selector={}, tokens=cost)
    wait_ms = told["retry_after_ms"]
    assert wait_ms >= end_ms - quota.now_ms
    assert told["granted"] == (wait_ms == 0)
    if wait_ms:
        quota.at(quota.now_ms + wait_ms - 1)
        assert not ask(quota.ledger, "explain", quota.now_ms, selector={}, tokens=cost)["granted"]
        quota.at(quota.now_ms + 1)
        assert quota.reserve(cost)["granted"]


def test_a_pause_that_changes_nothing_is_no_new_version_of_the_limits():
    quota = Quota(amount=100)
    quota.run("pause_limit", {"name": "l", "for_ms": 2_000})
    version = quota.ledger.limits.version
    quota.run("pause_limit", {"name": "l", "for_ms": 1_000})
    assert quota.ledger.limits.version == version
