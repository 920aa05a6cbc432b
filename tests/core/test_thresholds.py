"""Thresholds of budgets: each is told once per period, where it was reached, however the log is cut."""

from __future__ import annotations

import os
import random

import pytest

from tests.core.quota import NOW_MS, Quota
from tests.makers import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    batch_entry,
    clock_entry,
    command_entry,
    event,
    plain,
    single_entry,
    state_of,
    travelled,
)
from token_actor.actor.fold import fold
from token_actor.core import limit_table
from token_actor.core.ledger import Ledger
from token_actor.core.limits import AMOUNT_MAX, Limit
from token_actor.core.snapshot import restore
from token_actor.wire import notices as wire_notices

SEEDS = 20 * int(os.environ.get("MORE_EXAMPLES", "1"))


def budget(amount=100, **more):
    return Limit(**{"name": "b", "amount": amount, "kind": "calendar", "period": "day", "by": ["agent"], **more})


@pytest.fixture
def quota():
    """A ledger in which each agent may use 100 tokens a day, at the first moment of a day."""
    return Quota(budget())


def told(quota):
    """Return what is to be told since the last look: agent, per cent, used."""
    return [(each.scope.get("agent"), each.per_cent, each.used) for each in quota.ledger.limits.watch.take()]


def at(quota, now_ms):
    """Let the log come to a time, told by a leader, so that it is no leap."""
    quota.now_ms = now_ms
    quota.ledger.tell(now_ms, now_ms=now_ms, epoch=1)


def put(quota, **more):
    quota.run("put_limit", {"limit": budget(**more).as_map()})


class TestWhatIsTold:
    def test_a_threshold_is_told_when_it_is_reached_and_not_before(self, quota):
        quota.use(49, agent="a")
        assert told(quota) == []
        quota.use(1, agent="a")
        assert told(quota) == [("a", 50, 50)]

    def test_once_per_period(self, quota):
        for _ in range(3):
            quota.use(60, agent="a")
        assert told(quota) == [("a", 50, 60), ("a", 80, 120), ("a", 100, 120)]
        at(quota, NOW_MS + DAY_MS)
        quota.use(60, agent="a")
        assert told(quota) == [("a", 50, 60)]

    def test_several_that_one_call_reaches_are_told_in_their_order(self, quota):
        quota.use(500, agent="a")
        assert told(quota) == [("a", 50, 500), ("a", 80, 500), ("a", 100, 500)]

    def test_each_value_of_by_is_told_for_itself(self, quota):
        quota.use(60, agent="a")
        quota.use(60, agent="b")
        quota.use(30, agent="a")
        assert told(quota) == [("a", 50, 60), ("b", 50, 60), ("a", 80, 90)]

    def test_it_is_said_of_what_when_and_in_which_period(self, quota):
        at(quota, NOW_MS + 5 * HOUR_MS)
        quota.use(60)
        (notice,) = quota.ledger.limits.watch.take()
        assert notice._asdict() == {
            "entry": 0,
            "limit": "b",
            "scope": {"agent": None},
            "unit": "tokens",
            "mode": "enforce",
            "per_cent": 50,
            "amount": 100,
            "used": 60,
            "start_ms": NOW_MS,
            "end_ms": NOW_MS + DAY_MS,
            "log_ms": NOW_MS + 5 * HOUR_MS,
        }

    def test_periods_are_those_of_the_time_zone(self):
        quota = Quota(budget(tz="Asia/Kolkata", by=[]))
        quota.use(60)
        at(quota, NOW_MS + 18 * HOUR_MS + 29 * MINUTE_MS)
        quota.use(1)
        at(quota, NOW_MS + 18 * HOUR_MS + 30 * MINUTE_MS)
        quota.use(70)
        assert [each.start_ms - NOW_MS for each in quota.ledger.limits.watch.take()] == [
            -(5 * HOUR_MS + 30 * MINUTE_MS),
            18 * HOUR_MS + 30 * MINUTE_MS,
        ]

    def test_a_read_over_the_end_of_a_period_is_told_by_period(self):
        quota = Quota(budget(by=[]))
        at(quota, NOW_MS + DAY_MS - 1)
        times = [NOW_MS + DAY_MS - 1, NOW_MS + DAY_MS, NOW_MS + DAY_MS + 1]
        entries = [single_entry(at_ms, input_tokens=60) for at_ms in times]
        found = [each.notices for each in fold(quota.ledger, entries, epoch=1).notices]
        assert [[(each["threshold_pct"], each["used"]) for each in some] for some in found] == [
            [(50, 60)],
            [(50, 60)],
            [(80, 120), (100, 120)],
        ]

    def test_a_limit_that_only_tells_is_told_too(self):
        quota = Quota(budget(mode="shadow"))
        quota.use(60)
        assert [each.mode for each in quota.ledger.limits.watch.take()] == ["shadow"]

    @pytest.mark.parametrize("limit", [Limit("l", 100), budget(thresholds=[])])
    def test_a_limit_without_periods_or_thresholds_tells_nothing(self, limit):
        quota = Quota(limit)
        quota.use(100)
        quota.reserve(0)
        assert told(quota) == []

    def test_of_a_budget_of_nothing_the_first_use_is_told(self):
        quota = Quota(budget(0, thresholds=[1, 1000]))
        quota.use(0)
        assert told(quota) == []
        quota.use(1)
        assert told(quota) == [(None, 1, 1), (None, 1000, 1)]

    def test_what_no_count_can_reach_is_never_told(self):
        quota = Quota(budget(AMOUNT_MAX, thresholds=[1000]))
        quota.use(10**12)
        assert told(quota) == []

    def test_money_is_told_in_its_unit(self):
        quota = Quota(budget(10**9, unit="cost_nanousd", by=[], selector={"agent": "a"}))
        quota.use(1, agent="b", cost_nanousd=10**9)
        quota.use(1, agent="a", cost_nanousd=5 * 10**8)
        (notice,) = quota.ledger.limits.watch.take()
        assert (notice.unit, notice.used, notice.scope) == ("cost_nanousd", 5 * 10**8, {})


class TestReservations:
    def test_what_is_reserved_is_not_used(self, quota):
        quota.reserve(100)
        assert told(quota) == []

    def test_a_settlement_tells_what_was_used_in_the_end(self, quota):
        quota.use(40)
        reservation = quota.reserve(60)["reservation"]
        assert told(quota) == []
        quota.settle(reservation, 10)
        assert told(quota) == [(None, 50, 50)]

    def test_an_estimate_that_is_charged_is_used(self, quota):
        reservation = quota.reserve(60)["reservation"]
        quota.run("settle", {"reservation": reservation})
        assert told(quota) == [(None, 50, 60)]

    def test_what_is_given_back_is_told_of_nothing(self, quota):
        quota.run("release", {"reservation": quota.reserve(60)["reservation"]})
        assert told(quota) == []

    def test_an_expiry_is_told_at_its_time_under_the_entry_that_came_next(self, quota):
        quota.reserve(60, ttl_ms=1_000)
        entries = [single_entry(NOW_MS + 500, input_tokens=1), single_entry(NOW_MS + 9_000, input_tokens=40)]
        (found,) = fold(quota.ledger, entries, epoch=1).notices
        assert found.source == entries[1][0]
        assert [(each["threshold_pct"], each["used"], each["log_ms"] - NOW_MS) for each in found.notices] == [
            (50, 61, 1_000),
            (80, 101, 9_000),
            (100, 101, 9_000),
        ]

    def test_an_expiry_where_sessions_are_folded_belongs_to_the_entry_that_began_the_hour(self, quota):
        quota.ledger._rows_max = 4
        quota.reserve(60, ttl_ms=1_000)
        times = [NOW_MS + 1, NOW_MS + 2, NOW_MS + HOUR_MS, NOW_MS + HOUR_MS + 1]
        entries = [single_entry(at_ms, input_tokens=1, agent="x", session=f"s{at_ms}") for at_ms in times]
        (found,) = fold(quota.ledger, entries, epoch=1).notices
        assert found.source == entries[2][0]

    def test_within_a_step_nothing_is_told_before_its_end(self, quota):
        watch = quota.ledger.limits.watch
        with watch.step(NOW_MS):
            quota.use(60)
            watch.look(NOW_MS)
            assert told(quota) == []
        assert told(quota) == [(None, 50, 60)]

    def test_a_late_settlement_does_not_count_twice_for_a_moment(self, quota):
        reservation = quota.reserve(49, ttl_ms=1_000)["reservation"]
        at(quota, NOW_MS + 2_000)
        quota.settle(reservation, 45)
        assert told(quota) == []

    def test_what_was_reserved_in_the_period_before_counts_there(self, quota):
        reservation = quota.reserve(60, ttl_ms=DAY_MS)["reservation"]
        at(quota, NOW_MS + DAY_MS - 1)
        at(quota, NOW_MS + DAY_MS)
        quota.settle(reservation, 55)
        assert told(quota) == []

    def test_a_threshold_is_not_told_again_when_usage_was_given_back_and_came_again(self, quota):
        reservation = quota.reserve(60, ttl_ms=1_000)["reservation"]
        at(quota, NOW_MS + 2_000)
        assert told(quota) == [(None, 50, 60)]
        quota.settle(reservation, 10)
        quota.use(50)
        assert told(quota) == []


class TestChanges:
    def test_a_limit_that_is_lowered_tells_at_once_what_is_reached(self, quota):
        for agent in ("a", "b", "c"):
            quota.use(60 if agent == "b" else 30, agent=agent)
        assert told(quota) == [("b", 50, 60)]
        put(quota, amount=40)
        assert told(quota) == [("a", 50, 30), ("b", 80, 60), ("b", 100, 60), ("c", 50, 30)]

    def test_a_limit_that_is_raised_tells_nothing_a_second_time(self, quota):
        quota.use(90)
        told(quota)
        put(quota, amount=1_000)
        quota.use(800)
        assert told(quota) == []
        quota.use(200)
        assert told(quota) == [(None, 100, 1_090)]

    def test_other_thresholds_are_told_above_the_highest_that_was(self, quota):
        quota.use(85)
        assert [per_cent for _, per_cent, _ in told(quota)] == [50, 80]
        put(quota, thresholds=[10, 82, 90])
        assert told(quota) == [(None, 82, 85)]

    def test_a_new_limit_knows_nothing_of_what_was_used_before(self, quota):
        quota.use(60)
        quota.run("delete_limit", {"name": "b"})
        put(quota)
        quota.use(49)
        assert [used for *_, used in told(quota)] == [60]


class TestLogTimeMovesBack:
    def back(self, quota, by_ms):
        quota.ledger.tell(quota.now_ms, quota.now_ms - by_ms, 1)

    def test_what_was_told_of_the_period_it_comes_back_to_is_not_told_again(self, quota):
        at(quota, NOW_MS + DAY_MS - MINUTE_MS)
        quota.use(60)
        quota.now_ms += 2 * MINUTE_MS
        quota.use(1)
        told(quota)
        self.back(quota, 2 * MINUTE_MS)
        quota.use(10)
        assert told(quota) == []

    def test_what_it_brings_along_from_the_future_may_reach_the_next_one(self, quota):
        at(quota, NOW_MS + DAY_MS - MINUTE_MS)
        quota.use(40)
        quota.now_ms += 2 * MINUTE_MS
        quota.use(40)
        assert told(quota) == []
        self.back(quota, 2 * MINUTE_MS)
        assert told(quota) == [(None, 50, 80), (None, 80, 80)]

    def test_within_a_period_nothing_is_told_of_it(self, quota):
        at(quota, NOW_MS + HOUR_MS)
        quota.use(60)
        told(quota)
        self.back(quota, 10 * MINUTE_MS)
        quota.use(10)
        assert told(quota) == []

    def test_to_before_everything_what_was_told_stays_told(self, quota):
        quota.use(60)
        at(quota, NOW_MS + DAY_MS)
        quota.use(90)
        told(quota)
        self.back(quota, 3 * DAY_MS)
        assert told(quota) == [(None, 100, 150)]


class TestMuchToTell:
    def test_one_entry_tells_a_bounded_number_and_says_how_many_more_there_were(self, quota, monkeypatch):
        monkeypatch.setattr(wire_notices, "NOTICES_MAX", 5)
        fold(quota.ledger, [single_entry(NOW_MS, seq, input_tokens=20, agent=f"a{seq}") for seq in range(6)], epoch=1)
        lowered = command_entry("put_limit", {"limit": budget(20).as_map()}, request_id="low", at_ms=NOW_MS, seq=9)
        (found,) = fold(quota.ledger, [lowered], epoch=1).notices
        assert (len(found.notices), found.left_out) == (5, 13)

    def test_room_is_made_without_forgetting_what_was_told(self, monkeypatch):
        monkeypatch.setattr(limit_table, "SCOPES_MAX", 4)
        quota = Quota(budget())
        reservation = quota.reserve(60, agent="a", ttl_ms=1_000)["reservation"]
        quota.use(0, agent="idle")
        quota.use(90, agent="c")
        at(quota, NOW_MS + 2_000)
        quota.settle(reservation, 0, agent="a")
        assert [agent for agent, *_ in told(quota)] == ["c", "c", "a"]
        at(quota, NOW_MS + 2 * HOUR_MS)
        assert list(quota.ledger.limits.meters["b"].scopes) == ["a", "c"]
        quota.use(60, agent="a")
        quota.use(10, agent="c")
        assert told(quota) == [("c", 100, 100)]
        quota.use(0, agent="d")
        at(quota, NOW_MS + DAY_MS)  # a wrong clock may still be set back into the day before
        assert list(quota.ledger.limits.meters["b"].scopes) == ["a", "c"]
        quota.use(0, agent="d")
        at(quota, NOW_MS + DAY_MS + HOUR_MS)
        assert list(quota.ledger.limits.meters["b"].scopes) == []

    def test_of_many_scopes_each_is_told(self):
        quota = Quota(budget())
        for number in range(100):
            quota.use(50, agent=str(number))
        assert len(told(quota)) == 100


def test_what_was_told_is_in_a_snapshot():
    quota = Quota(budget(), Limit("other", 10))
    quota.use(60, agent="a")
    at(quota, NOW_MS + DAY_MS)
    quota.use(85, agent="b")
    again = Quota()
    again.ledger, again.now_ms = restore(travelled(state_of(quota.ledger))), quota.now_ms
    again._requests = quota._requests
    for each in (quota, again):
        told(each)
        each.use(20, agent="a")
        each.use(20, agent="b")
        assert told(each) == [("b", 100, 105)]
    assert plain(state_of(quota.ledger)) == plain(state_of(again.ledger))


# --- however the log is cut -----------------------------------------------------------------------


def random_log(rng):
    """Return a log of usage of every form, reservations, changed limits and clocks, over some days."""
    entries, now_ms, requests = [], NOW_MS + rng.randrange(DAY_MS), 0
    open_ids: list[str] = []

    def command(operation, arguments, **more):
        nonlocal requests
        requests += 1
        at = {"at_ms": now_ms, "seq": len(entries), "request_id": str(requests)}
        entries.append(command_entry(operation, arguments, **at, **more))

    command("put_limit", {"limit": budget().as_map()})
    command("put_limit", {"limit": budget(300, name="all", period="week", by=[], tz="Asia/Kolkata").as_map()})
    command("put_limit", {"limit": Limit("w", 1_000).as_map()})
    seq = 0
    for _ in range(rng.randrange(20, 80)):
        now_ms += rng.choice([0, 0, 1, 1_000, HOUR_MS, HOUR_MS, 5 * HOUR_MS])
        names = {"agent": rng.choice("abc")}
        choice = rng.random()
        if choice < 0.4:
            entries.append(single_entry(now_ms, len(entries), input_tokens=rng.randrange(40), **names))
        elif choice < 0.6:
            some = [event(rng.randrange(20), agent=rng.choice("abc")) for _ in range(rng.randrange(1, 9))]
            entries.append(batch_entry(*some, at_ms=now_ms, seq=len(entries), first_seq=seq))
            seq += len(some)
        elif choice < 0.8:
            command("reserve", {"tokens": rng.randrange(60), "ttl_ms": rng.choice([500, 3 * HOUR_MS]), **names})
            open_ids.append(f"c:{requests}")
        elif choice < 0.9 and open_ids:
            used = {"input_tokens": rng.randrange(60), **names} if rng.random() < 0.8 else None
            command("settle", {"reservation": rng.choice(open_ids)}, event=used)
        elif choice < 0.95:
            command("put_limit", {"limit": budget(rng.choice([50, 100, 200])).as_map()})
        else:
            told_ms = now_ms + rng.choice([0, 0, 0, -DAY_MS, DAY_MS])
            entries.append(clock_entry(told_ms, at_ms=now_ms, seq=len(entries)))
    return entries


def notices_of(ledger, entries, sizes):
    """Fold a log in reads of these sizes; return every notice with the entry it belongs to."""
    found, left = [], list(entries)
    while left:
        read, left = left[: (size := next(sizes))], left[size:]
        while read:
            folded = fold(ledger, read, epoch=1)
            found += [(each.source, notice) for each in folded.notices for notice in each.notices]
            read = read[folded.entries :]
    return found


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_is_told_does_not_depend_on_how_the_log_is_cut(seed):
    rng = random.Random(seed)
    entries = random_log(rng)
    whole, cut, single = Ledger(), Ledger(), Ledger()
    expected = notices_of(whole, entries, iter([len(entries)]))
    assert notices_of(cut, entries, iter(lambda: rng.choice([1, 2, 5, 20]), 0)) == expected
    assert notices_of(single, entries, iter(lambda: 1, 0)) == expected
    assert plain(state_of(whole)) == plain(state_of(cut)) == plain(state_of(single))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_usage_is_told_as_somebody_who_adds_it_up_would(seed):
    rng = random.Random(seed)
    ledger, used, expected, entries = Ledger(), {}, [], []
    put_it = command_entry("put_limit", {"limit": budget().as_map()}, at_ms=NOW_MS)
    for seq in range(1, 200):
        at_ms, agent, tokens = NOW_MS + seq * HOUR_MS // 2, rng.choice("abc"), rng.randrange(30)
        entries.append(single_entry(at_ms, seq, input_tokens=tokens, agent=agent))
        scope = (agent, at_ms // DAY_MS)
        before, used[scope] = used.get(scope, 0), used.get(scope, 0) + tokens
        expected += [
            (entries[-1][0], agent, per_cent, used[scope], at_ms)
            for per_cent in (50, 80, 100)
            if before < per_cent <= used[scope]
        ]
    found = notices_of(ledger, [put_it, *entries], iter([len(entries) + 1]))
    shown = [(s, n["scope"]["agent"], n["threshold_pct"], n["used"], n["log_ms"]) for s, n in found]
    assert shown == expected
    assert len(expected) > 20
