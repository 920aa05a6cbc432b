"""What only the leading actor itself can add to an answer."""

from __future__ import annotations

import pytest

from tests.actor.conftest import PRODUCER, TURNS_MAX
from token_actor.transport.ports import Delete


@pytest.fixture
def leader(stage):
    return stage.player("a").step(2)


def ask(stage, player, kind="producer", **arguments):
    if kind == "producer":
        arguments = {"producer": PRODUCER, "epochs": [0]}
    stage.ask(kind, **arguments)
    return answered(stage, player)


def answered(stage, player):
    before = len(stage.answers())
    for _ in range(TURNS_MAX):
        player.step()
        if len(stage.answers()) > before:
            return stage.answers()[-1].result
    raise AssertionError("nobody answered")


def save(stage, player):
    """Let time pass until a snapshot is due, and take it."""
    player.step(after_ms=60_000)
    for _ in range(TURNS_MAX):
        if player.actor._saving.saved_all and not player.actor._saving.under_way:
            return
        player.step()
    raise AssertionError("no snapshot was taken")


def test_what_was_seen_of_a_producer_is_durable_once_a_snapshot_covers_it(stage, leader):
    stage.batch(5, input_tokens=1)
    seen = ask(stage, leader)["epochs"]["0"]
    assert (seen["next_seq"], seen["durable"], seen["durable_ranges"]) == (5, 0, [])
    save(stage, leader)
    stage.batch(2, input_tokens=1)
    seen = ask(stage, leader)["epochs"]["0"]
    assert (seen["next_seq"], seen["durable"]) == (7, 5)


def test_so_is_what_lies_above_a_hole(stage, leader):
    stage.batch(5, first_seq=3, input_tokens=1)
    save(stage, leader)
    seen = ask(stage, leader)["epochs"]["0"]
    assert (seen["durable"], seen["durable_ranges"], seen["missing"]) == (0, [[3, 8]], 3)


def test_the_answer_says_up_to_where_which_log_was_folded(stage, leader):
    last = stage.batch(5, input_tokens=1)
    answer = ask(stage, leader)
    assert answer["offset"] == answer["log_end"] == last.decode()


def test_a_log_that_was_replaced_is_another_generation(stage, leader):
    stage.batch(5, input_tokens=1)
    before = ask(stage, leader)["generation"]
    assert ask(stage, leader)["generation"] == before
    stage.connection.write([Delete(keys=[stage.keys.log])])
    leader.look()
    after = ask(stage, leader)
    assert after["generation"] > before
    assert (after["log_end"], after["epochs"]["0"]["next_seq"]) == ("0-0", 5)


def test_another_leader_is_another_generation_too(stage, leader):
    stage.batch(5, input_tokens=1)
    before = ask(stage, leader)["generation"]
    leader.stop()
    assert ask(stage, stage.player("b").step(3))["generation"] > before


def test_status_says_who_answers_and_what_is_saved(stage, leader):
    last = stage.batch(5, input_tokens=1)
    save(stage, leader)
    status = ask(stage, leader, "status")
    assert (status["holder"], status["epoch"], status["entries"], status["lost_entries"]) == ("a", 1, 1, 0)
    assert status["offset"] == status["snapshot_offset"] == last.decode()
    assert status["generation"] == leader.position.generation
