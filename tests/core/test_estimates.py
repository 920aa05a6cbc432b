"""Facts about estimates: what a call is taken to use when its caller does not say."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.quota import NOW_MS, Quota
from tests.makers import HOUR_MS, START_MS, apply, ask, columns, event, examples, packed, state_of, travelled
from token_actor.core import estimates
from token_actor.core.estimates import KEPT, TOKENS_DEFAULT
from token_actor.core.ledger import Ledger
from token_actor.core.limits import Limit
from token_actor.core.series import OTHER
from token_actor.core.snapshot import Capture, restore
from token_actor.core.usage import COST_NANOUSD_MAX, TOKEN_KINDS, TOKENS_MAX
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from token_actor.core.blocks import Segment


def learned(ledger, **names):
    """Return what a call would be taken to use."""
    return ask(ledger, "explain", selector=names)["estimate"]


def input_of(ledger, **names):
    return learned(ledger, **names).get("input_tokens")


@pytest.fixture
def ledger():
    return Ledger()


class TestQuantile:
    def test_of_few_requests_it_is_the_highest(self, ledger):
        apply(ledger, event(5, agent="a"), event(900, agent="a"), event(7, agent="a"))
        assert learned(ledger, agent="a") == {"source": "learned", "input_tokens": 900, "requests": 1}

    def test_of_as_many_as_are_kept_it_is_the_second_highest(self, ledger):
        apply(ledger, *(event(number) for number in range(KEPT)))
        assert input_of(ledger) == KEPT - 2

    def test_one_call_out_of_the_ordinary_is_no_rule(self, ledger):
        apply(ledger, event(1_000_000), *(event(10) for _ in range(KEPT - 1)))
        assert input_of(ledger) == 10

    def test_what_lies_further_back_is_forgotten(self, ledger):
        apply(ledger, *(event(1_000) for _ in range(5)))
        apply(ledger, *(event(10) for _ in range(KEPT)))
        assert input_of(ledger) == 10

    def test_it_is_taken_of_each_kind_and_of_the_cost(self, ledger):
        apply(ledger, event(5, 1, counts=(3, 0, 1), cost_nanousd=8, flags=0), event(1, 2, counts=(0, 4, 0)))
        assert learned(ledger) == {
            "source": "learned", "input_tokens": 5, "output_tokens": 2, "cache_read_tokens": 3, "cache_write_tokens": 4,
            "cost_nanousd": 8, "requests": 1,
        }  # fmt: skip

    def test_a_call_that_was_counted_before_teaches_nothing(self, ledger):
        apply(ledger, event(5, message_id="x"))
        apply(ledger, event(5, message_id="x", agent="b"), event(9, message_id="x"))
        assert [input_of(ledger, **names) for names in ({}, {"agent": "b"})] == [5, 5]


class TestGroups:
    def test_each_tenant_agent_and_model_has_its_own(self, ledger):
        for number, names in enumerate(({}, {"tenant": "t"}, {"agent": "a"}, {"model": "m"}), start=1):
            apply(ledger, event(number, **names))
            assert input_of(ledger, **names) == number

    def test_other_dimensions_make_no_difference(self, ledger):
        apply(ledger, event(1, agent="a", session="s1", user="u"), event(2, agent="a", session="s2", provider="p"))
        assert input_of(ledger, agent="a", session="s3", project="x") == 2

    def test_a_new_agent_is_taken_to_be_like_the_others_with_its_model(self, ledger):
        apply(ledger, event(7, agent="a", model="m"), event(9, agent="b", model="m"), event(50, agent="a", model="n"))
        assert input_of(ledger, agent="new", model="m") == 9

    def test_but_not_like_those_of_another_tenant(self, ledger):
        apply(ledger, event(7, agent="a", model="m", tenant="t"))
        assert learned(ledger, agent="a", model="m") == {
            "source": "default", "tokens": TOKENS_DEFAULT, "requests": 1,
        }  # fmt: skip

    def test_of_a_model_with_many_agents_the_newest_are_looked_at(self, ledger):
        apply(ledger, *(event(100 - number, agent=f"a{number}", model="m") for number in range(33)))
        assert input_of(ledger, agent="new", model="m") == 98  # of 32 agents, the first one is left out

    def test_a_series_that_counted_nothing_makes_no_estimate(self, ledger):
        apply(ledger, event(5, message_id="x", model="m"))
        apply(ledger, event(5, message_id="x", model="n"))  # a duplicate, under a series of its own
        assert learned(ledger, model="n")["source"] == "default"

    def test_beyond_the_bound_they_share_one(self, ledger, monkeypatch):
        monkeypatch.setattr(estimates, "GROUPS_MAX", 2)
        apply(ledger, *(event(number, agent=name, model=name) for number, name in enumerate("abcd")))
        assert [input_of(ledger, agent=name, model=name) for name in "bcdx"] == [1, 3, 3, 3]
        again = restore(travelled(state_of(ledger)))
        assert packed(state_of(again)) == packed(state_of(ledger))
        assert input_of(again, agent="x") == 3

    def test_at_the_bound_there_may_be_no_others_yet(self, ledger, monkeypatch):
        monkeypatch.setattr(estimates, "GROUPS_MAX", 1)
        apply(ledger, event(5, model="m"))
        assert learned(ledger, model="n")["source"] == "default"

    def test_series_that_are_numbered_anew_are_of_the_group_they_were(self):
        quota = Quota()
        quota.ledger._rows_max = 40
        for number in range(31):
            quota.use(10 + number, session=f"s{number}", agent=f"a{number % 3}")
        quota.now_ms = NOW_MS + HOUR_MS
        quota.use(1, session="s30", agent="a0")
        assert quota.ledger.series.code("session", "s0") is None  # it was folded
        assert [input_of(quota.ledger, agent=f"a{number}") for number in range(3)] == [40, 38, 39]
        quota.use(99, session="new", agent="a1")
        assert input_of(quota.ledger, agent="a1") == 99

    def test_agents_beyond_the_bound_of_names_are_estimated_together(self, ledger):
        ledger.series._names_max[3] = 1
        apply(ledger, event(1, agent="a"), event(4, agent="b"))
        assert (input_of(ledger, agent="c"), list(ledger.requests._groups)[1].split("\x1f")[1]) == (4, OTHER)


class TestDecisions:
    def test_a_reservation_without_any_count_holds_what_was_learned(self):
        quota = Quota(Limit("l", 1_000), Limit("out", 100, unit="output_tokens"))
        quota.use(300, agent="a")
        apply(quota.ledger, event(0, 20, agent="a"))
        told = quota.run("reserve", {"agent": "a"})
        assert told["estimate"] == {"source": "learned", "input_tokens": 300, "output_tokens": 20, "requests": 1}
        assert (quota.taken("l"), quota.taken("out")) == ((320, 320), (20, 20))

    def test_where_nothing_was_learned_it_holds_the_default(self):
        quota = Quota(amount=10_000)
        told = quota.run("reserve")
        assert told["estimate"] == {"source": "default", "tokens": TOKENS_DEFAULT, "requests": 1}
        assert quota.taken() == (0, TOKENS_DEFAULT)

    def test_money_is_held_too(self):
        quota = Quota(Limit("l", 10**9, unit="cost_nanousd"))
        apply(quota.ledger, event(1, cost_nanousd=700, flags=0))
        quota.run("reserve")
        assert quota.taken() == (700, 700)

    def test_a_cost_that_was_not_given_is_what_was_learned(self):
        quota = Quota(Limit("l", 1_000, unit="cost_nanousd"))
        apply(quota.ledger, event(1, cost_nanousd=700, flags=0))
        told = quota.run("reserve", {"tokens": 5})
        assert told["estimate"] == {"source": "given", "tokens": 5, "cost_nanousd": 700, "requests": 1}
        assert not told["granted"]
        quota.at(NOW_MS + 120_000)
        assert quota.run("reserve", {"tokens": 5})["granted"]
        assert quota.taken() == (0, 700)

    def test_where_no_cost_is_known_a_budget_that_is_used_up_refuses_all_the_same(self):
        quota = Quota(Limit("l", 1_000, unit="cost_nanousd"))
        assert quota.run("reserve", {"tokens": 5})["granted"]
        assert quota.taken() == (0, 1)
        assert quota.run("reserve", {"cost_usd": "0.000000999"})["granted"]
        refused = quota.run("reserve", {"tokens": 5})
        assert (refused["granted"], refused["limit"], refused["remaining"]) == (False, "l", 0)
        assert not ask(quota.ledger, "explain", selector={}, tokens=5)["granted"]
        assert quota.run("reserve", {"tokens": 5, "cost_usd": 0})["granted"]
        assert quota.run("reserve", {"tokens": 5, "requests": 0})["granted"]

    def test_where_no_limit_counts_money_nobody_asks_what_a_call_costs(self):
        quota = Quota(amount=1_000)
        apply(quota.ledger, event(1, cost_nanousd=700, flags=0))
        assert quota.run("reserve", {"tokens": 5})["estimate"] == {"source": "given", "tokens": 5, "requests": 1}

    @pytest.mark.parametrize("given", [{"tokens": 0}, {"output_tokens": 3}, {"cost_usd": "0.5"}, {"cost_usd": 0}])
    def test_what_was_given_is_kept(self, given):
        quota = Quota(amount=1_000)
        quota.use(300)
        told = quota.run("reserve", given)
        assert told["estimate"]["source"] == "given"
        assert quota.taken() == (300, given.get("output_tokens", 0))
        explained = ask(quota.ledger, "explain", selector={}, **given)
        assert explained["estimate"] == told["estimate"]

    def test_a_cost_that_nobody_knows_is_none_given(self):
        assert Quota().run("reserve", {"cost_usd": None})["estimate"]["source"] == "default"

    @pytest.mark.parametrize(("requests", "held"), [(0, 0), (3, 900)])
    def test_several_calls_hold_as_much_for_each(self, requests, held):
        quota = Quota(amount=5_000)
        quota.use(300)
        quota.run("reserve", {"requests": requests})
        assert quota.taken() == (300, held)

    def test_no_number_of_calls_holds_more_than_one_call_may_ever_use(self):
        quota = Quota(Limit("l", 1, mode="shadow"), Limit("m", 1, unit="cost_nanousd", mode="shadow"))
        assert quota.run("reserve", {"requests": 10**12})["estimate"]["tokens"] == TOKENS_MAX
        apply(quota.ledger, event(TOKENS_MAX, cost_nanousd=10**9, flags=0))
        told = quota.run("reserve", {"requests": 10**12})["estimate"]
        assert (told["input_tokens"], told["cost_nanousd"]) == (TOKENS_MAX, COST_NANOUSD_MAX)

    def test_a_refusal_says_what_it_was_decided_on(self):
        quota = Quota(amount=100)
        quota.use(300)
        told = quota.run("reserve")
        assert (told["granted"], told["cost"], told["estimate"]["input_tokens"]) == (False, 100, 300)

    def test_a_guess_that_is_more_than_a_limit_ever_grants_does_not_refuse_for_good(self):
        quota = Quota(amount=100)
        quota.use(300)
        told = quota.run("reserve")
        assert (told["never"], told["retry_after_ms"] > 0) == (False, True)
        quota.at(quota.now_ms + told["retry_after_ms"])
        assert quota.run("reserve")["granted"]

    def test_a_guess_never_fits_where_nothing_is_granted(self):
        quota = Quota(amount=0)
        assert quota.run("reserve")["never"]

    def test_a_settlement_teaches(self):
        quota = Quota(amount=10_000)
        reservation = quota.run("reserve")["reservation"]
        quota.settle(reservation, 70)
        assert quota.run("reserve")["estimate"]["input_tokens"] == 70

    def test_the_names_are_checked_as_ever(self):
        with pytest.raises(InvalidValue):
            Quota().run("reserve", {"agent": 5})


class TestSnapshot:
    def test_it_holds_what_was_learned(self, ledger):
        apply(ledger, *(event(number, agent=f"a{number % 3}") for number in range(100)))
        again = restore(travelled(state_of(ledger)))
        for each in (ledger, again):
            apply(each, event(5, agent="a1"), event(6, agent="new"))
        assert packed(state_of(again)) == packed(state_of(ledger))
        assert [input_of(again, agent=f"a{number}") for number in range(3)] == [96, 94, 95]

    def test_more_groups_than_one_segment_holds_come_back(self, ledger, monkeypatch):
        monkeypatch.setattr(estimates, "_GROUP_BITS", 2)
        apply(ledger, *(event(number, agent=f"a{number}") for number in range(100)))
        state = state_of(ledger)
        assert sum(name.startswith("estimates/") for name in state) == 25
        again = restore(travelled(state))
        assert [input_of(again, agent=f"a{number}") for number in (1, 63, 64, 99)] == [1, 63, 64, 99]

    def test_a_token_changes_with_its_segment_and_only_then(self, ledger, monkeypatch):
        monkeypatch.setattr(estimates, "_GROUP_BITS", 1)
        apply(ledger, *(event(1, agent=name) for name in "abcd"))

        def tokens() -> list[object]:
            return [segment.token for segment in of_estimates(ledger)]

        before = tokens()
        assert tokens() == before
        apply(ledger, event(1, agent="c"))
        assert [old == new for old, new in zip(before, tokens(), strict=True)] == [True, False]

    def test_a_capture_stays_as_it_was(self, ledger):
        apply(ledger, event(1))
        (segment,) = of_estimates(ledger)
        apply(ledger, event(2))
        (tree,) = segment.make()
        assert (tree["seen"].tolist(), tree["requests"][0, :2, 0].tolist()) == ([1], [1, 0])


def of_estimates(ledger) -> list[Segment]:
    return [segment for segment in Capture(ledger).segments() if segment.name.startswith("estimates/")]


# --- against a plain model ------------------------------------------------------------------------

requests = st.tuples(st.sampled_from("abc"), st.sampled_from("mn"), st.sampled_from("st"), st.integers(0, 50))


class Model:
    """The same in plain Python."""

    def __init__(self):
        self.last = {}

    def add(self, made):
        key = made.series.split("\x1f")
        self.last.setdefault((key[3], key[6]), deque(maxlen=KEPT)).append((*made[1:5], made.cost_nanousd))

    def high(self, agent, model):
        ordered = [sorted(column) for column in zip(*self.last[agent, model], strict=True)]
        return [column[-2 if len(column) == KEPT else -1] for column in ordered]


@examples(150)
@given(
    st.lists(requests, min_size=1, max_size=300),
    st.lists(st.integers(1, 120), min_size=1, max_size=10),
    st.sampled_from([(1, 10**9), (10**9, 2), (40, 3), (65_536, 1_024)]),
    st.booleans(),
)
def test_it_is_the_quantile_of_the_last_requests_however_the_log_is_cut(made, cuts, bounds, asking):
    events = [
        event(number, 50 - number, agent=agent, model=model, session=session, counts=(number % 7, 0, 0),
              cost_nanousd=number * 3, flags=0)
        for agent, model, session, number in made
    ]  # fmt: skip
    ledger, whole, model = Ledger(), Ledger(), Model()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(estimates, "_WAITING_MAX", bounds[0])
        patched.setattr(estimates, "_READS_MAX", bounds[1])
        start = 0
        while start < len(events):
            stop = start + cuts[start % len(cuts)]
            ledger.apply(columns(*events[start:stop], log_ms=START_MS))
            if asking:
                learned(ledger, agent="a", model="m")
            start = stop
    whole.apply(columns(*events, log_ms=START_MS))
    for each in events:
        model.add(each)
    for agent, name in model.last:
        told = learned(ledger, agent=agent, model=name)
        found = [told.get(kind, 0) for kind in (*TOKEN_KINDS, "cost_nanousd")]
        assert (told["source"], found) == ("learned", model.high(agent, name))
    assert packed(state_of(ledger)) == packed(state_of(whole))
