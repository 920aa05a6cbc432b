"""Dead letters from the command line: sent once more, dropped, and what the exit code says."""

from __future__ import annotations

import redis

from tests.acceptance.program import last_line, run, serving, until
from tests.makers import PRODUCER, event
from token_actor import TokenClient
from token_actor.wire.batches import encode_batch
from token_actor.wire.codec import pack, unpack_batch

BATCH = encode_batch([event(5)], producer=PRODUCER, epoch=0, first_seq=0)
NEWER = pack({**unpack_batch(BATCH, lists="kmg"), "v": 99})


def put_aside(server_url, namespace, *entries):
    """Append entries that cannot be counted; return their ids once all of them are dead letters."""
    with redis.Redis.from_url(server_url) as server:
        ids = [server.xadd(f"{{{namespace}:0}}:log", {name: value}).decode() for name, value in entries]
        until(lambda: server.xlen(f"{{{namespace}:0}}:dead") == len(entries))
    return ids


def test_letters_are_retried_kept_and_dropped(server_url, namespace, ask, call):
    where = ("--redis", server_url, "--namespace", namespace)
    with serving(*where):
        newer, broken = put_aside(server_url, namespace, ("b", NEWER), ("j", '{"input_tokens": -1}'))

        found = ask("dead", "retry", "--all", *where, code=1)
        assert (found["retried"], found["missing"]) == ([], [])
        assert [kept["id"] for kept in found["kept"]] == [newer, broken]
        assert "version" in found["kept"][0]["why"]

        code, printed, said = call("dead", "retry", broken, *where)
        assert (code, "not sent once more: 1 dead letter;" in said) == (1, True)
        assert f"{broken} is kept: it would be refused again: range" in " ".join(printed.split())

        (sent,) = ask("dead", "retry", "--reason", "version", "--force", *where)["retried"]
        assert sent["id"] == newer
        until(lambda: {letter["id"] for letter in ask("dead", "list", *where)["dead"]} == {sent["entry"], broken})

        done = run("dead", "drop", "--reason", "range", *where)
        assert done.returncode == 2
        assert "this would delete 1 dead letters for good" in last_line(done)
        assert ask("dead", "drop", "--reason", "range", "--yes", *where) == {"dropped": [broken], "missing": []}
        code, printed, _ = call("dead", "drop", "--before", "now", "--yes", *where)
        assert (code, printed) == (0, "1 dropped\n")
        assert ask("dead", "list", *where)["total"] == 0


def test_what_cannot_be_told_from_its_repetition_is_sent_when_that_is_said(server_url, namespace, call):
    where = ("--redis", server_url, "--namespace", namespace)
    with serving(*where), TokenClient(server_url, namespace=namespace) as client:
        (broken,) = put_aside(server_url, namespace, ("e", b"\xc1"))
        code, printed, _ = call("dead", "retry", broken, "--force", "--yes", *where)
        assert (code, "1 sent once more, 0 kept" in printed) == (0, True)
        assert client.status()["dead"] == {"decode": 2}


def test_a_letter_that_is_not_there_is_said_and_the_exit_code_is_1(fleet, ask, call):
    assert ask("dead", "retry", "1-1", *fleet.where, code=1)["missing"] == ["1-1"]
    code, _, said = call("dead", "drop", "1-1", "--yes", *fleet.where)
    assert (code, "there is no such dead letter: 1-1" in said) == (1, True)


def test_what_is_meant_must_be_said(fleet, call):
    for words in (("retry",), ("drop", "--yes"), ("drop", "1-1", "--all", "--yes"), ("retry", "not-an-id")):
        code, printed, said = call("dead", *words, *fleet.where)
        assert (code, printed) == (2, "")
        assert len(said.strip().splitlines()) == 1
