"""Facts about the leader that sets aside, where turns come in an order that threads would rarely give."""

from __future__ import annotations

import pytest

from token_actor.actor import escrow
from token_actor.actor.escrow import LOOK_MS
from token_actor.core.commands import Command
from token_actor.core.escrow_commands import LEADER
from token_actor.core.limits import Limit
from token_actor.errors import ServerRefused, ServerUnavailable
from token_actor.wire.messages import COMMAND_FIELD, encode_command


@pytest.fixture
def player(stage):
    """A leader under an ample limit, from whom one combination has asked often."""
    player = stage.player("a").step(2)
    stage.command("put_limit", "1", limit=Limit("l", 10**6).as_map())
    for number in range(2, 12):
        reserve(stage, number)
    return player.step()


def reserve(stage, number, **more):
    stage.command("reserve", str(number), **{"agent": "a", "tokens": 10, **more})


def counters(stage):
    return stage.connection.get_fields(stage.keys.escrow)


def escrows(player):
    return player.actor._follower.ledger.admission.escrows


def test_it_is_set_aside_in_one_turn_and_opened_in_the_next(stage, player):
    assert counters(stage) == {}
    player.step()
    assert len(counters(stage)) == 1
    player.step()
    (aside,) = escrows(player).by_number.values()
    assert [int(calls) for calls in counters(stage).values()] == [aside.left]


def test_a_leader_that_hears_of_its_escrow_and_its_recall_at_once_goes_on(stage, player):
    (number,) = player.actor._escrows._own
    recall = Command(operation="recall_escrows", request_id="x", client=LEADER, arguments={"numbers": [number]})
    stage.append(COMMAND_FIELD, encode_command(recall))
    player.step(3)
    assert counters(stage) == {}
    assert len(escrows(player)) == 0


@pytest.mark.parametrize("method", ["get_fields", "write_if"])
def test_a_recall_that_could_not_be_written_is_written_before_anything_is_answered(stage, player, method):
    player.step(2)
    assert counters(stage)
    stage.command("put_limit", "20", limit=Limit("new", 0).as_map())
    player.recorder.fail[method] = [ServerUnavailable("gone")]
    answers = len(stage.answers())
    with pytest.raises(ServerUnavailable):
        player.step(after_ms=LOOK_MS)
    assert len(stage.answers()) == answers
    player.step(3)
    assert counters(stage) == {}
    assert len(stage.answers()) == answers + 1


def test_at_the_bounds_nothing_is_asked_for(stage, player, monkeypatch):
    monkeypatch.setattr(escrow, "ESCROWS_MAX", 0)
    for number in range(30, 50):
        reserve(stage, number, agent="b")
    before = len(stage.log_entries())
    player.step(2)
    assert len(stage.log_entries()) == before + 1  # what is set aside for "a" is opened, once


def test_a_leader_that_cannot_even_delete_answers_nobody(stage, player):
    refused = ServerRefused("OOM")
    player.step(2)
    stage.command("put_limit", "20", limit=Limit("new", 0).as_map())
    player.actor._escrows._leadership.write = lambda operations: [refused] * len(operations)
    answers = len(stage.answers())
    with pytest.raises(ServerRefused):
        player.step()
    assert len(stage.answers()) == answers
    del player.actor._escrows._leadership.write
    player.step(3)
    assert counters(stage) == {}
    assert len(stage.answers()) == answers + 1
