"""The demo: what the actor counts is what the workers sent, or it says so; and nothing is left behind."""

from __future__ import annotations

import json
import signal
import sys

import pytest
import redis

from tests.acceptance.program import Program, alive, children_of, connected, last_line, log_length, run, until
from token_actor.transport.ports import Append
from token_actor.wire.keys import Keys

KINDS = ("events", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


def test_the_demo_ends_well_when_the_totals_are_what_the_workers_sent():
    done = run("demo", "--seconds", "2", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    said = {name: sum(worker[name] for worker in document["workers"]) for name in KINDS}
    assert {name: document[name] for name in KINDS} == said
    assert len(document["workers"]) == 4
    assert document["events"] > 50
    assert document["duplicates"] > 0
    assert document["dead"] == 0
    assert document["differences"] == []
    assert document["soft_limit"]["checks"] >= document["events"]


def test_the_demo_shows_tables_and_holds_calls_back_at_the_limit():
    done = run("demo", "--seconds", "1", "--workers", "2", "--agents", "7", "--soft-limit", "300000", "--seed", "a")
    assert done.returncode == 0, done.stderr
    assert "✓ What the actor counted is exactly what the workers sent." in done.stdout
    assert "Soft limit: 300,000 tokens" in done.stdout
    assert " 0 calls held back" not in done.stdout


def test_the_demo_fails_when_somebody_else_reports_in_between(server_url, namespace):
    where = ("--redis", server_url, "--namespace", namespace)
    with Program("demo", *where, "--seconds", "1.5", "--workers", "2", "--json") as demo:
        until(lambda: log_length(server_url, namespace))
        with connected(server_url) as connection:
            connection.write([Append(key=Keys(namespace).log, fields=[b"j", b'{"input_tokens": 7, "model": "m"}'])])
        code, printed = demo.end()
    document = json.loads(printed)
    assert code == 1
    assert document["ok"] is False
    assert document["events"] == document["sent"]["events"] + 1
    assert document["input_tokens"] == document["sent"]["input_tokens"] + 7
    assert "the totals differ: events: workers sent" in demo.said[-1]
    assert "(+7)" in demo.said[-1]


def test_the_demo_leaves_nothing_on_a_server_that_was_there_before(server_url):
    done = run("demo", "--redis", server_url, "--seconds", "0.5", "--workers", "1", "--agents", "2", "--json")
    assert done.returncode == 0, done.stderr
    with redis.Redis.from_url(server_url) as server:
        left = [key for key in server.keys("*demo-*") if b":inbox:" not in key]
    assert left == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_whatever_ends_the_demo_ends_everything_it_started(namespace, number):
    with Program("demo", "--namespace", namespace, "--seconds", "60", "--workers", "2") as demo:
        demo.hear(" calls, ")
        started = children_of(demo.popen.pid)
        assert len(alive(started)) >= 5, "a server and its watch, an actor, two workers"
        demo.send(number)
        code, _ = demo.end(timeout_s=15)
        until(lambda: not alive(started), timeout_s=15)
    if number is not signal.SIGKILL:
        assert code == 1
        assert "interrupted" in demo.said[-1]
        assert "Traceback" not in demo.stderr


def test_the_demo_says_what_it_lacks_when_there_is_no_server():
    done = run("demo", "--redis", "redis://127.0.0.1:1/0", "--seconds", "1")
    assert done.returncode == 1
    assert "check that the server runs" in last_line(done)
