"""Facts about waiting for quota: who is granted when, in which order, and what is told."""

from __future__ import annotations

import random

import pytest

from tests.core.quota import NOW_MS, Quota
from tests.makers import event, plain
from token_actor.core import admission, waiting
from token_actor.core.columns import columns_of
from token_actor.core.commands import ANSWERS_MAX, Command, execute, told_since
from token_actor.core.limits import Limit
from token_actor.core.snapshot import Capture, restore
from token_actor.core.waiting import WAIT_MS_MAX
from token_actor.errors import InvalidValue


class Line(Quota):
    """A quota, and what those were told who had to wait."""

    def __init__(self, *limits, amount=None):
        super().__init__(*limits, amount=amount)
        self.told = {}

    def run(self, operation, arguments=None, **more):
        answer = super().run(operation, arguments, **more)
        self.hear()
        return answer

    def at(self, now_ms):
        super().at(now_ms)
        self.hear()

    def use(self, tokens=0, **more):
        super().use(tokens, **more)
        self.hear()

    def hear(self):
        for client, request_id, answer in told_since(self.ledger):
            assert (client, request_id) not in self.told, "nobody is told twice"
            self.told[client, request_id] = answer

    def ask(self, tokens, request_id, wait_ms=60_000, client="w", **names):
        """Ask to reserve; return the answer, ``None`` when it waits."""
        arguments = {"tokens": tokens, "wait_ms": wait_ms, "ttl_ms": 600_000, **names}
        command = Command(operation="reserve", request_id=request_id, client=client, arguments=arguments)
        outcome = execute(self.ledger, command, self.now_ms)
        self.hear()
        if outcome.problem is not None:
            raise outcome.problem
        return outcome.answer

    @property
    def granted(self):
        """Return who was told that they may go, in order."""
        return [request_id for (_, request_id), answer in self.told.items() if answer["granted"]]


@pytest.fixture
def line():
    return Line(Limit("l", 100))


class TestTheQueue:
    def test_who_fits_does_not_wait(self, line):
        got = line.ask(100, "a")
        assert (got["granted"], got["waited_ms"], line.told) == (True, 0, {})

    def test_who_does_not_is_told_when_somebody_gives_back(self, line):
        first = line.ask(80, "a")
        assert line.ask(60, "b") is None
        line.at(NOW_MS + 500)
        line.settle(first["reservation"], 10)
        answer = line.told["w", "b"]
        assert (answer["granted"], answer["waited_ms"], answer["reservation"]) == (True, 500, "w:b")
        assert line.taken() == (10, 60)

    @pytest.mark.parametrize("way", ["release", "settle_estimate_of_less", "expiry"])
    def test_every_way_of_giving_back_lets_the_next_one_go(self, way):
        line = Line(Limit("l", 100, on_expire="refund"))
        first = line.run("reserve", {"tokens": 80, "ttl_ms": 1_000})
        assert line.ask(60, "b") is None
        if way == "release":
            line.run("release", {"reservation": first["reservation"]})
        elif way == "expiry":
            line.at(NOW_MS + 1_000)
        else:
            line.settle(first["reservation"], 40)
        assert line.granted == ["b"]

    def test_a_late_settlement_of_less_lets_the_next_one_go(self, line):
        first = line.run("reserve", {"tokens": 80, "ttl_ms": 1_000})
        line.at(NOW_MS + 1_000)  # charged
        assert line.ask(60, "b") is None
        line.settle(first["reservation"], 1)
        assert line.granted == ["b"]

    def test_time_alone_lets_the_next_one_go_at_its_place_in_the_log(self, line):
        line.use(80)
        assert line.ask(60, "b", wait_ms=600_000) is None
        assert line.ledger.admission.waking_ms == NOW_MS + 61_000
        line.at(NOW_MS + 60_999)
        assert line.granted == []
        line.at(NOW_MS + 300_000)  # long after: it is granted as of when there was room
        assert line.told["w", "b"]["waited_ms"] == 61_000

    def test_nobody_passes_who_would_fit(self, line):
        line.ask(80, "a")
        assert line.ask(60, "b") is None
        assert line.ask(10, "c") is None
        refused = line.reserve(10)
        assert (refused["granted"], refused["never"], refused["limit"]) == (False, False, "l")
        assert refused["retry_after_ms"] == 61_000
        line.run("release", {"reservation": "w:a"})
        assert line.granted == ["b", "c"]

    def test_past_who_waits_at_another_limit_others_may_go(self):
        line = Line(Limit("all", 1_000), Limit("each", 10, by=["agent"]))
        line.ask(10, "a1", agent="a")
        assert line.ask(10, "a2", agent="a") is None
        assert line.ask(10, "b", agent="b")["granted"] is True
        assert line.ask(5, "a3", agent="a") is None

    def test_who_waits_at_one_limit_goes_on_to_wait_at_the_next(self):
        line = Line(Limit("all", 100), Limit("each", 50, by=["agent"]))
        line.ask(50, "a1", agent="a")
        assert line.ask(50, "a2", agent="a") is None
        line.ask(50, "b1", agent="b")
        line.run("release", {"reservation": "w:a1"})  # now both limits have room for it
        assert line.granted == ["a2"]
        assert line.ask(50, "a3", agent="a") is None
        assert line.ask(20, "c", agent="c") is None
        line.run("release", {"reservation": "w:b1"})  # a3 still lacks room with its agent: c may go
        assert line.granted == ["a2", "c"]

    def test_several_go_at_once_as_far_as_they_fit(self, line):
        first = line.ask(100, "a")
        for name in "bcdef":
            assert line.ask(30, name) is None
        line.run("release", {"reservation": first["reservation"]})
        assert line.granted == ["b", "c", "d"]

    def test_one_that_can_never_fit_does_not_wait(self, line):
        got = line.ask(101, "a")
        assert (got["granted"], got["never"]) == (False, True)

    def test_a_shadow_limit_lets_nobody_wait(self):
        line = Line(Limit("l", 10, mode="shadow"))
        assert line.ask(100, "a")["granted"] is True

    def test_no_more_than_so_many_may_wait(self, line, monkeypatch):
        monkeypatch.setattr(admission, "WAITING_MAX", 1)
        line.ask(100, "a")
        assert line.ask(1, "b") is None
        assert line.ask(1, "c")["granted"] is False

    def test_with_the_table_of_reservations_full_one_goes_when_another_ends(self, line, monkeypatch):
        monkeypatch.setattr(admission, "OPEN_MAX", 2)
        line.ask(60, "a")
        line.ask(40, "b")
        assert line.ask(10, "c") is None
        line.ask(0, "d")
        line.run("release", {"reservation": "w:a"})
        assert line.granted == []
        line.run("release", {"reservation": "w:b"})
        assert line.granted == ["c"]


class TestItsEnd:
    def test_at_the_deadline_it_is_refused(self, line):
        line.use(80)
        line.ask(60, "b", wait_ms=1_000)
        line.at(NOW_MS + 5_000)
        answer = line.told["w", "b"]
        assert (answer["granted"], answer["waited_ms"], answer["reservation"]) == (False, 1_000, None)
        assert answer["retry_after_ms"] == 60_000
        assert (line.taken(), line.ledger.limits.meters["l"].refused) == ((80, 0), 1)

    def test_who_waited_only_for_others_is_told_how_long_they_may_take(self, line):
        line.ask(80, "a")
        line.ask(60, "b", wait_ms=600_000)
        line.ask(10, "c", wait_ms=1_000)
        line.at(NOW_MS + 1_000)
        answer = line.told["w", "c"]
        assert (answer["granted"], answer["limit"], answer["retry_after_ms"]) == (False, "l", 60_000)

    def test_room_at_the_deadline_is_in_time(self, line):
        line.use(80)
        line.ask(60, "b", wait_ms=61_000)
        line.at(NOW_MS + 70_000)
        assert line.granted == ["b"]

    def test_who_gives_up_takes_nothing_and_lets_the_next_one_go(self, line):
        line.ask(80, "a")
        line.ask(60, "b")
        line.ask(20, "c")
        assert line.run("release", {"reservation": "w:b"}) == {"released": True, "state": "released"}
        assert line.told["w", "b"]["granted"] is False
        assert line.granted == ["c"]

    def test_to_ask_again_under_the_same_id_changes_nothing(self, line):
        line.ask(80, "a")
        assert line.ask(60, "b") is None
        assert line.ask(60, "b") is None
        line.run("release", {"reservation": "w:a"})
        assert line.ask(60, "b") == line.told["w", "b"]
        assert line.taken() == (0, 60)

    def test_what_was_told_is_remembered_within_the_bound_of_all_answers(self, line):
        line.ask(80, "a")
        line.ask(60, "b")
        line.run("release", {"reservation": "w:a"})
        assert line.ledger.answers.get(("w", "b"))["granted"] is True
        assert len(line.ledger.answers) < ANSWERS_MAX

    @pytest.mark.parametrize("wait_ms", [-1, WAIT_MS_MAX + 1, 1.5, "1", None, True])
    def test_a_wait_that_is_none_is_refused(self, line, wait_ms):
        with pytest.raises(InvalidValue) as caught:
            line.ask(1, "a", wait_ms=wait_ms)
        assert caught.value.field == "wait_ms"


class TestChangedLimits:
    def test_a_limit_that_is_raised_helps_at_once(self, line):
        line.ask(80, "a")
        assert line.ask(60, "b") is None
        line.run("put_limit", {"limit": Limit("l", 200).as_map()})
        assert line.granted == ["b"]

    def test_so_does_one_that_goes(self, line):
        line.ask(80, "a")
        assert line.ask(60, "b") is None
        line.run("delete_limit", {"name": "l"})
        assert line.granted == ["b"]

    def test_a_new_one_holds_who_waits_too(self, line):
        line.ask(80, "a")
        assert line.ask(60, "b") is None
        line.run("put_limit", {"limit": Limit("new", 50).as_map()})
        line.run("release", {"reservation": "w:a"})
        assert line.granted == []
        line.run("put_limit", {"limit": Limit("new", 60).as_map()})
        assert line.granted == ["b"]

    def test_one_below_the_wish_refuses_it_at_its_deadline(self, line):
        line.ask(80, "a")
        line.ask(60, "b", wait_ms=1_000)
        line.run("put_limit", {"limit": Limit("l", 50).as_map()})
        line.at(NOW_MS + 1_000)
        assert (line.told["w", "b"]["granted"], line.told["w", "b"]["never"]) == (False, True)


class TestTurns:
    def test_the_values_of_fair_by_take_turns(self):
        line = Line(Limit("l", 10, fair_by=["agent"]))
        line.ask(10, "first")
        for number in range(3):
            line.ask(10, f"a{number}", agent="a", wait_ms=600_000)
        line.ask(10, "b0", agent="b", wait_ms=600_000)
        line.ask(10, "b1", agent="b", wait_ms=600_000)
        for _ in range(5):
            line.run("release", {"reservation": f"w:{line.granted[-1] if line.granted else 'first'}"})
        assert line.granted == ["a0", "b0", "a1", "b1", "a2"]

    def test_who_asks_for_more_has_fewer_turns(self):
        line = Line(Limit("l", 20, fair_by=["agent"]))
        line.ask(20, "first")
        for number in range(2):
            line.ask(20, f"a{number}", agent="a", wait_ms=600_000)
        for number in range(4):
            line.ask(10, f"b{number}", agent="b", wait_ms=600_000)
        line.run("release", {"reservation": "w:first"})
        assert line.granted == ["b0"]  # b asks for half of it first
        line.run("release", {"reservation": "w:b0"})
        line.run("release", {"reservation": "w:a0"})
        assert line.granted[:4] == ["b0", "a0", "b1", "b2"]

    def test_without_it_it_is_first_come_first_served(self):
        line = Line(Limit("l", 10))
        line.ask(10, "first")
        for name in ("a0", "a1", "b0"):
            line.ask(10, name, agent=name[0], wait_ms=600_000)
        for _ in range(3):
            line.run("release", {"reservation": f"w:{line.granted[-1] if line.granted else 'first'}"})
        assert line.granted == ["a0", "a1", "b0"]


def busy_line(seed):
    """Return a line in the middle of much to do, and the wishes still open."""
    chance = random.Random(seed)
    line = Line(
        Limit("all", 200, fair_by=["agent"], on_expire="refund"),
        Limit("each", 80, by=["agent"], kind="bucket", seconds=30),
        Limit("open", 6, kind="concurrency"),
    )
    for number in range(60):
        line.at(line.now_ms + chance.randrange(0, 2_000))
        line.ask(
            chance.randrange(1, 60), f"r{number}", wait_ms=chance.choice((0, 3_000, 30_000)), agent=chance.choice("abc")
        )
        if line.ledger.reservations.open and chance.random() < 0.5:
            line.settle(chance.choice(list(line.ledger.reservations.open)), chance.randrange(0, 50), agent="a")
    return line


@pytest.mark.parametrize("seed", range(5))
def test_the_state_comes_back_as_it_was_and_goes_on_alike(seed):
    line = busy_line(seed)
    assert line.ledger.admission.room
    segments = {segment.name: list(segment.make()) for segment in Capture(line.ledger).segments()}
    again = restore(segments)
    assert plain(again.admission.dump()) == plain(line.ledger.admission.dump())
    for ledger in (line.ledger, again):
        ledger.advance(line.now_ms + 40_000)
    assert again.admission.take_told() == line.ledger.admission.take_told() != []


@pytest.mark.parametrize("seed", range(20))
def test_whoever_waits_ends_in_one_answer_and_no_limit_leaks(seed):
    line = busy_line(seed)
    line.at(line.now_ms + 700_000)
    assert not line.ledger.admission.room
    assert line.ledger.admission.waking_ms is None
    assert not line.ledger.reservations.open
    for name, scope in (("all", {}), ("open", {})):
        assert line.taken(name, **scope)[1] == 0


def test_when_log_time_moves_back_nobody_waits_longer_than_one_may(line):
    line.use(80)
    line.ask(60, "b", wait_ms=WAIT_MS_MAX)
    line.ledger.time.now_ms = NOW_MS - 3_600_000
    line.ledger.admission.set_back(NOW_MS - 3_600_000)
    (waiter,) = line.ledger.admission.room.waiters.values()
    assert waiter.wish.deadline_ms == NOW_MS - 3_600_000 + WAIT_MS_MAX
    assert waiter.wish.asked_ms == NOW_MS - 3_600_000


def test_usage_that_comes_in_one_read_is_granted_around_at_the_same_places_as_one_by_one():
    def told(step):
        line = Line(Limit("l", 100, seconds=6))
        line.use(100)
        line.ask(50, "w", wait_ms=600_000)
        times = [NOW_MS + 1_000 * n for n in range(10)]
        for begin in range(0, 10, step):
            some = times[begin : begin + step]
            line.ledger.apply(columns_of([event(1)] * len(some), log_ms=some, entries=list(range(len(some)))))
        line.hear()
        return line.told, line.ledger.limits.dump()

    assert plain(told(1)) == plain(told(3)) == plain(told(10))


def test_a_wish_that_is_asked_again_when_its_time_has_come_is_granted_once():
    line = Line(Limit("c", 1, kind="concurrency"))
    line.ask(0, "holder", wait_ms=0)
    line.run("extend", {"reservation": "w:holder", "ttl_ms": 1_000})
    assert line.ask(0, "again") is None
    line.now_ms += 2_000
    assert line.ask(0, "again") is None  # the entry that brings the time at which it may go
    assert line.granted == ["again"]
    assert line.taken("c") == (0, 1)
    line.run("release", {"reservation": "w:again"})
    assert line.taken("c") == (0, 0)


def test_a_wish_that_is_asked_again_after_its_deadline_is_refused_once(line):
    line.use(100)
    assert line.ask(50, "late", wait_ms=1_000) is None
    line.now_ms += 2_000
    assert line.ask(50, "late", wait_ms=1_000) is None
    assert line.told["w", "late"]["granted"] is False
    assert not line.ledger.admission.room


@pytest.mark.parametrize("operation", ["put_limit", "no_such"])
def test_another_command_under_the_id_of_a_wish_gets_the_answer_of_the_wish(line, operation):
    line.use(100)
    assert line.ask(50, "w1", wait_ms=1_000) is None
    outcome = execute(line.ledger, Command(operation=operation, request_id="w1", client="w", arguments={}), NOW_MS)
    assert (outcome.answer, outcome.problem) == (None, None)
    line.at(NOW_MS + 1_000)
    assert len(line.told) == 1


def test_a_request_id_that_was_forgotten_cannot_reserve_once_more_what_it_still_holds(monkeypatch):
    monkeypatch.setattr("token_actor.core.commands.ANSWERS_MAX", 1)
    line = Line(Limit("c", 1, kind="concurrency"))
    line.ask(0, "a", wait_ms=0)
    line.run("extend", {"reservation": "nobody's"})
    with pytest.raises(InvalidValue, match="was used before"):
        line.ask(0, "a", wait_ms=0)
    line.run("release", {"reservation": "w:a"})
    assert line.taken("c") == (0, 0)


def test_who_goes_before_others_in_its_turn_has_had_it():
    line = Line(Limit("l", 10, fair_by=["agent"]))
    line.ask(6, "first", wait_ms=0)
    assert line.ask(10, "big", wait_ms=600_000, agent="a") is None
    last = "w:first"
    for number in range(10):
        answer = line.ask(4, f"small{number}", wait_ms=0, agent="b")
        line.run("release", {"reservation": last})
        last = answer["reservation"] or last
    assert line.granted == ["big"]


def test_a_limit_that_refuses_nothing_gives_no_turns():
    line = Line(Limit("l", 10), Limit("s", 1, mode="shadow", fair_by=["agent"], weights={"input_tokens": 10}))
    line.ask(10, "first", wait_ms=0)
    line.ask(1, "one", agent="a", input_tokens=0)
    (waiter,) = line.ledger.admission.room.waiters.values()
    assert waiter.turn == (0, ())


def looked_at(line, monkeypatch, do):
    """Return how often somebody who waits was looked at meanwhile."""
    looks = []
    try_once = line.ledger.admission._try
    monkeypatch.setattr(line.ledger.admission, "_try", lambda *each: looks.append(each) or try_once(*each))
    do()
    monkeypatch.undo()
    return len(looks)


def test_however_long_a_line_is_few_are_looked_at_when_the_first_may_go(monkeypatch):
    line = Line(Limit("b", 100, kind="bucket", seconds=1_000))
    line.use(100)
    for number in range(200):
        line.ask(1, f"w{number}", wait_ms=600_000)
    assert looked_at(line, monkeypatch, lambda: line.at(line.ledger.admission.waking_ms)) <= 3
    assert line.granted == ["w0"]
    line.at(NOW_MS + 100_000)
    assert line.granted == [f"w{number}" for number in range(10)]


def test_who_lacks_room_elsewhere_is_not_looked_at_for_what_it_does_not_lack(monkeypatch):
    line = Line(Limit("all", 1_000), Limit("each", 1, by=["agent"], kind="concurrency"))
    for number in range(100):
        line.ask(1, f"h{number}", wait_ms=0, agent=f"a{number}")
        line.ask(1, f"w{number}", wait_ms=600_000, agent=f"a{number}")
    assert looked_at(line, monkeypatch, lambda: line.run("release", {"reservation": "w:h7"})) <= 3
    assert line.granted == ["w7"]


def test_who_is_behind_somebody_goes_when_that_one_lacks_room_elsewhere_only():
    line = Line(Limit("k", 100, selector={"model": "m"}, seconds=6), Limit("j", 1, by=["agent"], kind="concurrency"))
    line.use(100, model="m")
    line.ask(1, "holder", wait_ms=0, agent="a")
    line.ask(1, "next", agent="a", wait_ms=600_000)
    line.ask(60, "both", agent="a", model="m", wait_ms=600_000)
    line.ask(60, "behind", agent="b", model="m", wait_ms=600_000)
    line.at(NOW_MS + 6_200)
    assert line.granted == ["behind"]


def test_looking_again_and_again_keeps_nothing():
    line = Line(Limit("c", 2, kind="concurrency"), Limit("t", 10, by=["agent"]))
    line.use(10, agent="a")
    line.ask(1, "waits", agent="a", wait_ms=600_000)
    for number in range(3_000):
        line.run("pause_limit", {"name": "t", "for_ms": number + 1})
    assert len(line.ledger.admission.room._times) < 1_100


def test_times_at_which_nobody_has_to_be_looked_at_any_more_are_cleared_away(monkeypatch):
    monkeypatch.setattr(waiting, "_STALE_MAX", 10)
    line = Line(Limit("l", 100, seconds=10_000, on_expire="refund"))
    for number in range(50):
        line.ask(2, f"h{number}", wait_ms=0, ttl_ms=100_000 + number)
    line.ask(100, "waits", wait_ms=600_000)
    for number in reversed(range(50)):  # with each, all the others are given back a little earlier
        line.run("release", {"reservation": f"w:h{number}"})
        assert len(line.ledger.admission.room._times) <= 12
    assert line.granted == ["waits"]


def test_who_has_no_turns_goes_behind_those_who_have_and_came_before():
    line = Line(Limit("fair", 100, fair_by=["agent"], selector={"model": "m"}), Limit("one", 1, kind="concurrency"))
    line.ask(1, "holder", wait_ms=0)
    line.ask(10, "early", agent="a", model="m", wait_ms=600_000)
    for number in range(5):
        line.ask(1, f"late{number}", wait_ms=600_000)
    line.run("release", {"reservation": "w:holder"})
    assert line.granted == ["early"]


def test_who_can_never_go_is_in_nobodys_way(line):
    line.ask(100, "first", wait_ms=0)
    line.ask(60, "killed", agent="a", wait_ms=600_000)
    line.ask(10, "b", agent="b", wait_ms=600_000)
    kill = Limit("kill:agent=a", 0, unit="requests", selector={"agent": "a"})
    line.run("put_limit", {"limit": kill.as_map()})
    line.run("put_limit", {"limit": Limit("l", 110).as_map()})
    assert line.granted == ["b"]
    assert line.ask(1, "new", wait_ms=0)["granted"] is False
    line.run("delete_limit", {"name": "kill:agent=a"})
    line.run("release", {"reservation": "w:first"})
    assert line.granted == ["b", "killed"]


def test_a_limit_that_is_lowered_below_a_wish_does_not_stop_all_others(line):
    line.use(100)
    line.ask(60, "large", wait_ms=600_000)
    line.run("put_limit", {"limit": Limit("l", 50).as_map()})
    line.at(NOW_MS + 61_000)
    assert line.ask(10, "small", wait_ms=0)["granted"]


def test_turns_of_those_who_went_are_not_kept_for_ever():
    line = Line(Limit("one", 1, kind="concurrency", fair_by=["session"]))
    line.reserve(1)
    line.ask(1, "stays", wait_ms=WAIT_MS_MAX)
    for number in range(3_000):
        line.ask(1, f"{number}", wait_ms=1, session=f"s{number}")
        line.at(line.now_ms + 1)
    assert len(line.ledger.admission.room.dump()["turns"]) < 1_100


def test_who_waits_at_another_limit_takes_no_turns_away():
    def place_of_light(grants_elsewhere):
        limits = [Limit(name, 1, kind="concurrency", selector={"model": name}, fair_by=["agent"]) for name in "ab"]
        line = Line(*limits)
        last = {name: line.reserve(1, model=name, agent=name)["reservation"] for name in "ab"}
        for number in range(40):
            line.ask(1, f"a{number}", wait_ms=WAIT_MS_MAX, model="a", agent="a")
        for number in range(10):
            line.ask(1, f"heavy{number}", wait_ms=WAIT_MS_MAX, model="b", agent="heavy")
        for _ in range(grants_elsewhere):
            line.run("release", {"reservation": last["a"]})
            last["a"] = f"w:{line.granted[-1]}"
        line.ask(1, "light", wait_ms=WAIT_MS_MAX, model="b", agent="light")
        for _ in range(11):
            line.run("release", {"reservation": last["b"]})
            last["b"] = f"w:{line.granted[-1]}"
        return line.granted[grants_elsewhere:].index("light")

    assert place_of_light(0) == place_of_light(30) <= 1


def test_turns_are_kept_only_where_somebody_waits():
    one = Limit("one", 1, kind="concurrency", selector={"model": "n"})
    line = Line(Limit("fair", 100, fair_by=["agent"], selector={"model": "m"}), one)
    line.ask(1, "holder", wait_ms=0, model="n")
    assert line.ask(1, "waits", wait_ms=WAIT_MS_MAX, model="n") is None
    assert line.ask(10, "passes", model="m", agent="a", wait_ms=0)["granted"]
    room = line.ledger.admission.room.dump()
    assert (room["clocks"], room["turns"]) == ([], [])
