"""Anything that can speak Redis may report: by hand, too, and a mistake is quarantined with its reason."""

from __future__ import annotations

import pytest
import redis

from tests.acceptance.program import last_line, run, serving

GOOD = '{"agent": "by-hand", "model": "m", "input_tokens": 10, "output_tokens": 5, "message_id": "m1"}'
MALFORMED = '{"agent": "by-hand", "model": "m", "input_tokens": "ten"}'
NEXT = '{"agent": "by-hand", "model": "m", "input_tokens": 100}'


def test_an_entry_by_hand_is_counted_and_a_malformed_one_does_not_stop_the_next(server_url, namespace, ask):
    where = ("--redis", server_url, "--namespace", namespace)
    log = f"{{{namespace}:0}}:log"
    with serving(*where), redis.Redis.from_url(server_url) as server:
        server.xadd(log, {"j": GOOD})
        first = ask("analytics", "--agent", "by-hand", *where)
        malformed_id = server.xadd(log, {"j": MALFORMED}).decode()
        dead = ask("dead", "list", *where)["dead"]
        server.xadd(log, {"j": NEXT})
        second = ask("analytics", "--agent", "by-hand", *where)
    assert (first["requests"], first["total_tokens"]) == (1, 15)
    assert [(letter["id"], letter["reason"]) for letter in dead] == [(malformed_id, "type")]
    assert "input_tokens must be an int" in dead[0]["detail"]
    assert dead[0]["raw"] == MALFORMED
    assert (second["requests"], second["total_tokens"]) == (2, 115)


def test_a_dead_letter_is_shown_in_full(fleet, ask):
    shown = ask("dead", "show", fleet.dead_id, *fleet.where)
    assert (shown["id"], shown["reason"], shown["field"]) == (fleet.dead_id, "range", "j")
    assert shown["raw"] == '{"input_tokens": -1, "model": "m"}'
    done = run("dead", "show", fleet.dead_id, *fleet.where)
    assert '{"input_tokens": -1, "model": "m"}' in done.stdout


def test_a_dead_letter_that_is_not_there_is_said_on_one_line(fleet):
    done = run("dead", "show", "1-1", *fleet.where)
    assert done.returncode == 1
    assert "there is no dead letter 1-1" in last_line(done)


@pytest.mark.parametrize("words", [["dead", "list"], ["dead", "list", "--limit", "1"]], ids=" ".join)
def test_dead_letters_are_listed_for_people(fleet, words):
    done = run(*words, *fleet.where)
    assert fleet.dead_id in done.stdout
    assert "range" in done.stdout


def test_without_dead_letters_the_list_is_empty(server_url, namespace, ask):
    where = ("--redis", server_url, "--namespace", namespace)
    assert ask("dead", "list", *where) == {"dead": [], "total": 0}
    assert run("dead", "list", *where).stdout == "no dead letters\n"
