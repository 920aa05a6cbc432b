"""Facts about escrow in a ledger: who is granted what is set aside, who has to wait for it, and what is shown."""

from __future__ import annotations

import pytest

from tests.core.quota import NOW_MS, Quota, of_kind
from tests.makers import ask, plain, state_of
from token_actor.core import admission, escrow, waiting
from token_actor.core.commands import Command, execute, told_since
from token_actor.core.escrow import CALLS_MAX, Terms
from token_actor.core.limits import Limit
from token_actor.core.snapshot import restore
from token_actor.core.usage import series_of
from token_actor.errors import InvalidValue

SERIES = series_of({"agent": "a"})
TEN = [10, 0, 0, 0, 0, 0]


class Till(Quota):
    """A quota with a leader who does as the test says; ``calls`` is what the counter on the server has."""

    def __init__(self, *limits, amount=None):
        super().__init__(*limits, amount=amount)
        self.calls = 0
        self.told = {}

    def set_aside(self, calls, number="e", most=TEN, **more):
        arguments = {"number": number, "series": SERIES, "most": most, "source": "given", "calls": calls, **more}
        return self.lead("set_aside", arguments)["set_aside"]

    def lead(self, operation, arguments):
        """Carry out a command as the leader gives it; raise what it is refused with."""
        self._requests += 1
        command = Command(operation=operation, request_id=str(self._requests), client="leader", arguments=arguments)
        outcome = execute(self.ledger, command, self.now_ms)
        if outcome.problem is not None:
            raise outcome.problem
        assert outcome.is_silent
        return outcome.answer

    def open(self, calls, number="e"):
        self.calls += calls
        return self.lead("open_escrow", {"number": number, "calls": calls})["opened"]

    def stock(self, calls, **more):
        assert self.set_aside(calls, **more)
        assert self.open(calls)

    def recall(self, *numbers):
        self.calls = 0
        answer = self.lead("recall_escrows", {"numbers": list(numbers or "e")})
        self.hear()
        return answer["recalled"]

    def take(self, tokens=10, request_id=None, number="e", **more):
        """Take a call as a client does; return whether the fold granted it without a word, and what it says."""
        self._requests += 1
        self.calls -= 1
        arguments = {"agent": "a", "tokens": tokens, "escrow": number, **more}
        arguments = {name: value for name, value in arguments.items() if value is not None}
        command = Command(
            operation="reserve", request_id=request_id or str(self._requests), client="c", arguments=arguments
        )
        outcome = execute(self.ledger, command, self.now_ms)
        self.hear()
        if outcome.problem is not None:
            raise outcome.problem
        return outcome.is_silent, outcome.answer

    def ask(self, tokens, request_id, **more):
        """Ask like anybody; return the answer, ``None`` when it will be told."""
        command = Command(
            operation="reserve", request_id=request_id, client="w", arguments={"tokens": tokens, "agent": "b", **more}
        )
        outcome = execute(self.ledger, command, self.now_ms)
        self.hear()
        return outcome.answer

    def at(self, now_ms):
        super().at(now_ms)
        self.hear()

    def hear(self):
        for _, request_id, answer in told_since(self.ledger):
            self.told[request_id] = answer

    @property
    def aside(self):
        return {scope: amount for meter in self.ledger.limits.meters.values() for scope, amount in meter.aside.items()}


@pytest.fixture
def till():
    return Till(amount=100)


class TestTaking:
    def test_what_is_set_aside_is_granted_without_an_answer(self, till):
        till.stock(3)
        assert till.take()[0]
        assert (till.taken(), till.aside) == ((0, 10), {"": 20})

    def test_as_many_as_were_set_aside_and_the_next_one_is_decided(self, till):
        till.stock(2)
        assert [till.take()[0] for _ in range(3)] == [True, True, False]
        assert till.calls == -1
        assert till.taken() == (0, 30)

    def test_the_answer_is_that_of_a_decision_and_says_where_it_was_taken(self, till):
        till.stock(1)
        _, answer = till.take(ttl_ms=7_000)
        assert answer["granted"]
        assert (answer["drawn"], answer["expires_ms"], answer["reserved"]) == ("e", NOW_MS + 7_000, 10)

    def test_asked_once_more_it_is_told(self, till):
        till.stock(1)
        _, answer = till.take(request_id="x")
        command = Command(operation="reserve", request_id="x", client="c", arguments={"agent": "a", "tokens": 10})
        outcome = execute(till.ledger, command, till.now_ms)
        assert (outcome.is_silent, outcome.answer) == (False, answer)
        assert till.taken() == (0, 10)

    def test_a_call_that_is_known_already_takes_its_place_for_nothing(self, till):
        till.stock(2)
        command = Command(operation="reserve", request_id="x", client="c", arguments={"agent": "a", "tokens": 10})
        execute(till.ledger, command, till.now_ms)
        known, answer = till.take(request_id="x")
        assert (known, "drawn" in answer) == (False, False)
        assert (till.taken(), till.aside) == ((0, 10), {"": 10})
        assert [till.take()[0] for _ in range(2)] == [True, False]

    def test_so_does_one_that_waits_already(self, till):
        till.ask(95, "w", wait_ms=0)
        command = Command(
            operation="reserve", request_id="x", client="c", arguments={"agent": "a", "tokens": 10, "wait_ms": 9_000}
        )
        till.ledger.limits.put(Limit("l", 200), NOW_MS)
        till.stock(2)
        till.ledger.limits.put(Limit("l", 100), NOW_MS)
        assert execute(till.ledger, command, till.now_ms).answer is None
        assert till.take(request_id="x")[1] is None
        assert till.aside == {"": 10}

    def test_it_is_settled_like_any_other(self, till):
        till.stock(2)
        _, answer = till.take()
        assert till.settle(answer["reservation"], 4, agent="a")["debt"] == {}
        assert (till.taken(), till.aside) == ((4, 0), {"": 10})

    def test_a_smaller_call_gives_the_rest_back(self, till):
        till.stock(1)
        assert till.take(3)[0]
        assert (till.taken(), till.aside) == ((0, 3), {})

    @pytest.mark.parametrize("more", [{"tokens": 11}, {"requests": 2}, {"agent": "b"}, {"cost_usd": 0.1}])
    def test_a_call_that_is_none_of_those_is_decided_and_its_place_is_lost(self, till, more):
        till.stock(2)
        known, answer = till.take(**{"tokens": 10, **more})
        assert (known, answer["granted"]) == (False, True)
        assert till.aside == {"": 10}

    def test_one_that_cannot_be_read_takes_its_place_too(self, till):
        till.stock(2)
        with pytest.raises(InvalidValue):
            till.take("ten")
        assert till.aside == {"": 10}
        assert [till.take()[0] for _ in range(2)] == [True, False]

    def test_under_a_number_that_nobody_knows_it_is_decided(self, till):
        known, answer = till.take(number="gone")
        assert (known, answer["granted"]) == (False, True)

    def test_who_says_nothing_is_taken_to_use_the_most(self, till):
        till.stock(1, source="learned")
        _, answer = till.take(tokens=None)
        assert answer["estimate"] == {"source": "learned", "tokens": 10, "requests": 1}

    def test_where_money_counts_the_cost_is_the_most_too(self):
        till = Till(Limit("money", 1_000, unit="cost_nanousd", kind="calendar", period="day"))
        till.stock(2, most=[10, 0, 0, 0, 0, 7])
        assert till.take()[0]
        assert till.taken("money") == (0, 7)

    def test_who_says_what_it_costs_holds_that(self):
        till = Till(Limit("money", 1_000, unit="cost_nanousd", kind="calendar", period="day"))
        till.stock(2, most=[10, 0, 0, 0, 0, 7])
        assert till.take(cost_usd="0.000000003")[0]
        assert till.taken("money") == (0, 3)

    def test_limits_put_since_then_hold_what_it_may_use(self, till):
        till.stock(1)
        till.run("put_limit", {"limit": Limit("new", 5).as_map()})
        assert till.take()[0]
        assert (till.taken("new"), till.taken()) == ((0, 10), (0, 10))


class TestSettingAside:
    def test_there_must_be_room_for_all_of_it(self, till):
        assert not till.set_aside(11)
        assert till.set_aside(10)
        assert till.aside == {"": 100}

    def test_what_is_set_aside_is_room_of_nobody_else(self, till):
        till.stock(6)
        assert not till.set_aside(5)
        assert till.set_aside(4)

    def test_more_of_it_has_the_same_terms(self, till):
        till.stock(1)
        assert not till.set_aside(1, most=[11, 0, 0, 0, 0, 0])
        assert not till.set_aside(1, source="learned")
        assert till.aside == {"": 10}

    def test_there_is_one_for_each_kind_of_calls_of_a_series(self, till):
        till.stock(1)
        assert not till.set_aside(1, number="other")
        assert till.set_aside(1, number="other", source="learned")

    def test_a_call_that_says_nothing_is_none_of_those_that_say_something(self, till):
        till.stock(1)
        assert not till.take(tokens=None)[0]

    @pytest.mark.parametrize("operation", ["set_aside", "open_escrow", "recall_escrows"])
    def test_only_a_leader_does(self, till, operation):
        with pytest.raises(InvalidValue, match="client"):
            till.run(operation, {})

    def test_more_than_was_set_aside_is_not_opened(self, till):
        assert till.set_aside(2)
        assert not till.open(3)
        assert not till.open(1, number="other")

    def test_what_was_asked_for_beyond_what_there_was_is_made_up_for(self, till):
        till.stock(1)
        for _ in range(3):
            till.take()
        assert till.set_aside(5)
        assert till.aside == {"": 50}
        till.open(5)
        assert (till.calls, till.aside) == (3, {"": 30})
        assert [till.take()[0] for _ in range(4)] == [True, True, True, False]

    def test_only_limits_that_refuse_have_something_set_aside(self):
        till = Till(Limit("shown", 5, mode="shadow"), Limit("l", 100))
        till.stock(2)
        meters = till.ledger.limits.meters
        assert (meters["shown"].aside, meters["l"].aside) == ({}, {"": 20})

    def test_nothing_during_a_pause(self, till):
        till.run("pause_limit", {"name": "l", "for_ms": 1_000})
        assert not till.set_aside(1)

    def test_nothing_where_somebody_waits(self, till):
        assert till.ask(95, "w", wait_ms=0)["granted"]
        assert till.ask(50, "waits", wait_ms=1_000) is None
        till.run("put_limit", {"limit": Limit("l", 130).as_map()})
        assert not till.set_aside(1)

    def test_many_are_bounded(self, till, monkeypatch):
        monkeypatch.setattr(escrow, "ESCROWS_MAX", 1)
        till.stock(1)
        assert not till.set_aside(1, number="f", series=series_of({"agent": "other"}))

    def test_none_where_half_of_all_reservations_are_open(self, till, monkeypatch):
        monkeypatch.setattr(escrow, "OPEN_MAX", 5)
        assert not till.set_aside(3)
        assert till.set_aside(2)
        assert till.ledger.reservations.promised == 2

    def test_a_scope_with_nothing_in_it_is_kept_for_it(self, monkeypatch):
        monkeypatch.setattr("token_actor.core.limit_table.SCOPES_MAX", 2)
        till = Till(Limit("l", 100, by=["agent"]))
        till.stock(1)
        till.ask(1, "b", ttl_ms=1)
        till.at(NOW_MS + 2 * 3_600_000)
        assert list(till.ledger.limits.meters["l"].scopes) == ["a"]

    @pytest.mark.parametrize(
        ("field", "wrong"),
        [
            ("number", 7),
            ("number", ""),
            ("series", "a"),
            ("most", "1"),
            ("most", [1, 2]),
            ("most", [1, 2, 3, 4, 5, -6]),
            ("source", "guessed"),
            ("calls", 0),
            ("calls", CALLS_MAX + 1),
            ("calls", "1"),
            ("more", 1),
        ],
    )
    def test_a_wrong_argument_is_named(self, till, field, wrong):
        arguments = {"number": "e", "series": SERIES, "most": TEN, "source": "given", "calls": 1, field: wrong}
        with pytest.raises(InvalidValue) as caught:
            till.lead("set_aside", arguments)
        assert field in str(caught.value) or caught.value.field == field
        assert till.aside == {}

    @pytest.mark.parametrize("numbers", [None, "e", ["e"] * 1_001])
    def test_numbers_that_are_none_are_refused(self, till, numbers):
        with pytest.raises(InvalidValue):
            till.lead("recall_escrows", {"numbers": numbers})


class TestRecalling:
    def test_who_lacks_only_what_is_set_aside_waits_for_it(self, till):
        till.stock(5)
        assert till.ask(60, "w") is None
        assert till.recall() == 5
        assert till.told["w"]["granted"]
        assert (till.taken(), till.aside) == ((0, 60), {})

    def test_what_does_not_fit_either_way_is_refused_at_once(self, till):
        till.stock(5)
        answer = till.ask(101, "w")
        assert (answer["granted"], answer["never"]) == (False, True)
        till.ask(50, "x")
        assert till.ask(51, "y")["granted"] is False

    def test_calls_taken_meanwhile_come_first_and_the_rest_is_refused_with_the_right_figures(self, till):
        till.stock(5)
        assert till.ask(60, "w") is None
        assert till.take()[0]
        till.recall()
        told = till.told["w"]
        assert (told["granted"], told["granted"], told["remaining"], told["reserved"]) == (True, True, 30, 70)
        till.stock(2)
        assert till.ask(30, "x") is None
        assert till.take()[0]
        till.recall()
        refused = till.told["x"]
        assert (refused["granted"], refused["remaining"], refused["reserved"]) == (False, 20, 80)
        assert refused["retry_after_ms"] > 0

    def test_who_comes_behind_somebody_waiting_for_it_waits_as_well(self, till):
        till.stock(5)
        assert till.ask(60, "first") is None
        assert till.ask(1, "second") is None
        till.recall()
        assert [till.told[each]["granted"] for each in ("first", "second")] == [True, True]

    def test_who_lacks_what_is_set_aside_twice_waits_for_both(self, till):
        till.stock(3)
        assert till.set_aside(3, number="f", series=series_of({"agent": "other"}))
        assert till.ask(95, "w") is None
        till.recall("e")
        assert till.told == {}
        till.recall("f")
        assert till.told["w"]["granted"]

    def test_when_all_of_it_is_taken_nobody_waits_for_it_any_more(self, till):
        till.stock(4)
        assert till.ask(80, "w") is None
        assert all(till.take()[0] for _ in range(4))
        assert not till.told["w"]["granted"]
        assert till.ask(5, "x")["granted"]

    @pytest.mark.parametrize("tokens", [10, "ten"])
    def test_nor_when_the_last_one_is_taken_for_nothing(self, till, tokens):
        """No snapshot has what became free and was not looked at: so it is, also by what changes nothing else."""
        till.ask(1, "x", ttl_ms=60_000)
        till.stock(1)
        assert till.ask(95, "w") is None
        if tokens == 10:
            known, _ = till.take(tokens, request_id="1")
            assert not known
        else:
            with pytest.raises(InvalidValue):
                till.take(tokens)
        assert till.told["w"]["granted"]
        assert (till.ledger.admission.escrows.was_emptied, till.ledger.reservations.take_freed()) == (False, [])

    def test_behind_one_that_is_refused_the_next_one_is_looked_at(self, till):
        till.stock(5)
        assert till.ask(60, "first") is None
        assert till.ask(30, "second") is None
        for _ in range(5):
            assert till.take()[0]
        till.recall()
        assert [till.told[each]["granted"] for each in ("first", "second")] == [False, True]

    def test_in_the_way_is_what_somebody_waits_for(self, till):
        till.stock(5)
        assert till.ledger.admission.escrows.in_the_way() == []
        till.ask(60, "w")
        assert till.ledger.admission.escrows.in_the_way() == ["e"]

    def test_who_has_nobody_to_recall_for_it_is_refused_in_the_end(self, till):
        till.stock(5)
        till.ask(60, "w")
        till.at(NOW_MS + admission.RECALL_MS_MAX)
        assert not till.told["w"]["granted"]
        assert till.told["w"]["retry_after_ms"] > 0

    def test_who_wants_to_wait_waits_for_as_long_as_it_wants(self, till):
        till.stock(5)
        till.ask(60, "w", wait_ms=60_000)
        till.at(NOW_MS + admission.RECALL_MS_MAX)
        assert till.told == {}
        till.recall()
        assert till.told["w"]["granted"]

    def test_with_a_full_waiting_room_it_is_refused(self, till, monkeypatch):
        monkeypatch.setattr(admission, "WAITING_MAX", 0)
        till.stock(5)
        assert not till.ask(60, "w")["granted"]

    def test_what_was_never_opened_comes_back_too(self, till):
        assert till.set_aside(5)
        assert till.recall() == 5
        assert till.aside == {}

    def test_what_is_gone_gives_nothing_back(self, till):
        till.stock(5)
        till.run("delete_limit", {"name": "l"})
        assert till.recall() == 5
        assert till.recall() == 0
        assert till.ledger.reservations.promised == 0

    def test_whoever_gives_up_meanwhile_is_told_so(self, till):
        till.stock(5)
        till.ask(60, "w")
        till.run("release", {"reservation": "w:w"})
        till.hear()
        assert not till.told["w"]["granted"]
        till.recall()
        assert till.taken() == (0, 0)


class TestNoting:
    def noted(self, till):
        return till.ledger.admission.escrows.noted()

    def test_what_was_granted_by_a_decision_is_noted_once(self, till):
        till.ask(10, "x", ttl_ms=5)
        till.ask(10, "x", ttl_ms=5)
        till.ask(200, "y")
        till.ask(10, "z", requests=2)
        decided, taken = self.noted(till)
        assert [each.most[0] for each in decided] == [10]
        assert taken == set()
        assert self.noted(till) == ([], set())

    def test_so_is_from_where_calls_were_taken(self, till):
        till.stock(1)
        till.take()
        till.take()
        assert self.noted(till)[1] == {"e"}

    def test_whatever_was_answered_under_the_id_before_it_is_told_again(self, till):
        till.run("reset", {"tenant": "default", "session": "s"})
        command = Command(operation="reserve", request_id="2", client="c", arguments={"agent": 17})
        assert execute(till.ledger, command, till.now_ms).answer == {"reset": True}
        assert self.noted(till) == ([], set())


class TestShowing:
    def test_it_is_neither_used_nor_reserved(self, till):
        till.stock(5)
        assert till.taken() == (0, 0)
        explained = ask(till.ledger, "explain", till.now_ms, selector={"agent": "b"}, tokens=60)
        assert explained["granted"]

    def test_a_decision_tells_where_the_next_calls_are_taken(self, till):
        assert "escrow" not in till.reserve(1, agent="a")
        till.set_aside(2)
        assert "escrow" not in till.reserve(1, agent="a")
        till.open(2)
        assert till.reserve(1, agent="a")["escrow"] == {
            "number": "e", "most": TEN, "source": "given", "ahead_ms": 0,
        }  # fmt: skip
        assert "escrow" not in till.reserve(1, agent="b")
        till.take()
        till.take()
        assert "escrow" not in till.reserve(1, agent="a")


@pytest.mark.parametrize("kind", ["window", "bucket", "calendar", "concurrency"])
def test_the_state_comes_back_as_it_was(kind):
    till = Till(Limit("l", 100, **of_kind(kind)))
    most = [0] * 6 if kind == "concurrency" else TEN
    till.stock(3, most=most)
    till.take(0 if kind == "concurrency" else 10)
    till.set_aside(2, most=most)
    till.ask(1 if kind == "concurrency" else 90, "w")
    segments = state_of(till.ledger)
    before = till.ledger
    till.ledger = restore(segments)
    assert plain(state_of(till.ledger)) == plain(segments)
    assert till.ledger.reservations.promised == before.reservations.promised == 4
    till.open(2)
    assert till.take(0 if kind == "concurrency" else 10)[0]
    till.recall()
    assert till.aside == {}


def test_terms_are_an_estimate_of_one_call():
    estimate = Terms(SERIES, (1, 2, 3, 4, 5, 6)).estimate
    assert (estimate.tokens, estimate.kinds, estimate.cost_nanousd, estimate.requests) == (1, (2, 3, 4, 5), 6, 1)


def test_nobody_waits_for_a_recall_for_longer_than_one_may_wait():
    assert admission.RECALL_MS_MAX < waiting.WAIT_MS_MAX
