"""Anything that can speak Redis may report: by hand, too, and a mistake is quarantined with its reason."""

from __future__ import annotations

import pytest
import redis

from tests.acceptance.program import last_line, run, serving, until

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


def test_of_a_batch_only_the_bad_events_are_shown(fleet, call, ask):
    (_, older) = ask("dead", "list", *fleet.where)["dead"]
    assert older["reason"] == "id_conflict"
    shown = ask("dead", "show", older["id"], *fleet.where)
    assert [event["position"] for event in shown["events"]] == [0]
    _, printed, _ = call("dead", "show", older["id"], *fleet.where)
    assert "message_id 'message-0' was counted before" in printed
    assert "what was sent, as hex" in printed


def test_of_a_long_dead_letter_the_beginning_is_shown(server_url, namespace, call):
    with redis.Redis.from_url(server_url) as server:
        server.xadd(f"{{{namespace}:0}}:log", {"j": "x" * 3_000})
    with serving("--redis", server_url, "--namespace", namespace), redis.Redis.from_url(server_url) as server:
        until(lambda: server.xlen(f"{{{namespace}:0}}:dead"))
    ((entry_id, _),) = server.xrange(f"{{{namespace}:0}}:dead")
    _, printed, _ = call("dead", "show", entry_id.decode(), "--redis", server_url, "--namespace", namespace)
    assert "x" * 2_000 in printed
    assert "x" * 2_001 not in printed
    assert "--json shows all of it" in printed


def test_a_dead_letter_that_is_not_there_is_said_on_one_line(fleet):
    done = run("dead", "show", "1-1", *fleet.where)
    assert done.returncode == 1
    assert "there is no dead letter 1-1" in last_line(done)


@pytest.mark.parametrize("words", [["dead", "list"], ["dead", "list", "--limit", "1"]], ids=" ".join)
def test_dead_letters_are_listed_for_people(fleet, words, call):
    _, printed, _ = call(*words, *fleet.where)
    assert fleet.dead_id in printed
    assert "range" in printed
    assert ("and 1 older" in printed) == ("--limit" in words)


def test_without_dead_letters_the_list_is_empty(server_url, namespace, ask):
    where = ("--redis", server_url, "--namespace", namespace)
    assert ask("dead", "list", *where) == {"dead": [], "total": 0}
    assert run("dead", "list", *where).stdout == "no dead letters\n"
