"""The kill switch: whoever is killed gets nothing, at once and until revived."""

from __future__ import annotations

import pytest

from tests.core.quota import Quota
from token_actor.core.killing import is_killed, kill_limit, kill_name
from token_actor.core.limit_table import KILLS_MAX, LIMITS_MAX
from token_actor.core.limits import Limit
from token_actor.core.usage import NAME_BYTES_MAX
from token_actor.errors import InvalidValue


def test_whoever_is_killed_can_reserve_nothing_and_never_will():
    quota = Quota(kill_limit({"agent": "a"}))
    for estimate in ({"tokens": 1}, {"tokens": 0}, {"cost_usd": "0"}):
        answer = quota.reserve(**estimate, agent="a", session="s")
        assert (answer["granted"], answer["never"], answer["retry_after_ms"]) == (False, True, None)
        assert is_killed(answer["limit"], answer["amount"])
    assert quota.reserve(1, agent="b")["granted"]


def test_what_was_reserved_before_is_settled_and_what_is_used_all_the_same_is_counted_by_others():
    quota = Quota(amount=100)
    reservation = quota.reserve(10, agent="a")["reservation"]
    quota.run("put_limit", {"limit": kill_limit({"agent": "a"}).as_map()})
    assert quota.settle(reservation, 10, agent="a")["counted"]
    quota.use(5, agent="a")
    assert quota.taken() == (15, 0)
    assert quota.taken("kill:agent=a") == (0, 0)


def test_of_several_names_all_are_meant():
    quota = Quota(kill_limit({"session": "s", "agent": "a"}))
    assert not quota.reserve(1, agent="a", session="s")["granted"]
    assert quota.reserve(1, agent="a")["granted"]


def test_its_name_says_who_is_killed_in_whatever_order_that_was_said():
    names = {"session": "s", "agent": "a"}
    assert kill_limit(names).name == kill_limit(dict(reversed(names.items()))).name == "kill:agent=a,session=s"


def test_no_two_selections_have_one_name():
    selections = [
        {"agent": "a,session=s"},
        {"agent": "a", "session": "s"},
        {"agent": "a=b"},
        {"agent": "x" * NAME_BYTES_MAX},
        {"session": "x" * NAME_BYTES_MAX},
        {"user": "x" * NAME_BYTES_MAX, "agent": "ü" * (NAME_BYTES_MAX // 2)},
    ]
    names = [kill_limit(each).name for each in selections]
    assert len(set(names)) == len(names)
    assert all(name.startswith("kill:") for name in names)
    assert kill_name({"agent": "a"}) == "kill:agent=a"


@pytest.mark.parametrize(("selector", "field"), [({}, "selector"), ({"agent": ""}, "agent"), ({"tag": "x"}, "tag")])
def test_nobody_is_killed_by_mistake(selector, field):
    with pytest.raises(InvalidValue) as refused:
        kill_limit(selector)
    assert refused.value.field == field


@pytest.mark.parametrize(("name", "amount"), [("l", 0), ("kill:agent=a", 5), (None, None)])
def test_other_refusals_are_no_kills(name, amount):
    assert not is_killed(name, amount)


def test_many_are_killed_beside_as_many_limits_as_there_may_be():
    quota = Quota(*[Limit(f"l{number}", 100) for number in range(LIMITS_MAX)])
    for number in range(KILLS_MAX):
        quota.run("put_limit", {"limit": kill_limit({"session": f"s{number}"}).as_map()})
    assert not quota.reserve(1, session="s999")["granted"]
    assert quota.reserve(1, session="s")["granted"]
    with pytest.raises(InvalidValue, match="one too many: there are 1000"):
        quota.run("put_limit", {"limit": kill_limit({"session": "s"}).as_map()})
    assert quota.run("delete_limit", {"name": "kill:session=s999"})["deleted"]
    assert quota.reserve(1, session="s999")["granted"]


def test_a_kill_that_becomes_a_limit_counts_again():
    quota = Quota(kill_limit({"agent": "a"}))
    quota.run("put_limit", {"limit": {**kill_limit({"agent": "a"}).as_map(), "amount": 1}})
    assert quota.reserve(1, agent="a")["granted"]
    assert not quota.reserve(1, agent="a")["granted"]
