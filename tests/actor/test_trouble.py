"""Trouble: what passes is logged once, and what does not is raised."""

from __future__ import annotations

import pytest

from token_actor.actor.trouble import PASSING, Trouble
from token_actor.errors import ServerRefused, ServerUnavailable

AWAY = ServerUnavailable("memory:// does not answer")


def actions(caplog):
    return [record.action for record in caplog.records]


def refused(code):
    return ServerRefused(f"{code} something is wrong")


def test_an_outage_is_logged_when_it_begins_and_when_it_ends(caplog):
    trouble = Trouble()
    for _ in range(3):
        trouble.note(AWAY)
    trouble.end()
    trouble.end()
    assert actions(caplog) == ["server_away", "server_back"]


def test_the_next_outage_is_logged_again(caplog):
    trouble = Trouble()
    for error in (AWAY, refused("OOM")):
        trouble.note(error)
        trouble.end()
    assert actions(caplog) == ["server_away", "server_back", "server_refuses", "server_back"]


@pytest.mark.parametrize("code", sorted(PASSING))
def test_a_refusal_that_passes_is_waited_for(caplog, code):
    Trouble().note(refused(code))
    assert actions(caplog) == ["server_refuses"]


@pytest.mark.parametrize("code", ["NOAUTH", "NOPERM", "ERR"])
def test_a_refusal_that_will_not_pass_is_raised(caplog, code):
    with pytest.raises(ServerRefused, match=code):
        Trouble().note(refused(code))
    assert actions(caplog) == []


def test_without_trouble_there_is_nothing_to_say(caplog):
    Trouble().end()
    assert actions(caplog) == []
