"""Verify and doctor: they agree with what is sound, and notice what is not."""

from __future__ import annotations

import pytest
import redis

from tests.acceptance.program import Program, last_line, run, serving
from tests.actor.conftest import Stage
from token_actor import TokenClient
from token_actor.transport.redis import RedisConnector
from token_actor.wire.keys import Keys

LEVELS = ("ok", "warning", "problem")


def record(url, namespace, count):
    with TokenClient(url, namespace=namespace, batch_events_max=10) as client:
        for number in range(count):
            client.record(100, agent=f"agent-{number}")
        client.flush()
        return client.analytics()["requests"]


def remove_entry(url, namespace, from_the_end):
    with redis.Redis.from_url(url) as server:
        log = Keys(namespace).log
        entry_id, _ = server.xrevrange(log, count=from_the_end)[-1]
        server.xdel(log, entry_id)


def test_the_books_of_a_fleet_balance_and_so_does_the_log(fleet, ask):
    verified = ask("verify", *fleet.where)
    assert verified["balanced"] is True
    (partition,) = verified["partitions"]
    assert partition["total"]["requests"] == fleet.totals["requests"]
    assert partition["ways"] == 10
    if partition["snapshot"] is None:  # one is taken every minute, and this fleet may be older
        assert partition["replayed"] == partition["entries"]
    else:
        assert partition["state_hash"]


def test_an_entry_removed_after_it_was_counted_makes_the_rebuild_differ(server_url, namespace, ask):
    where = ("--redis", server_url, "--namespace", namespace)
    with serving(*where) as actor:
        record(server_url, namespace, 10)
        actor.popen.terminate()
        assert actor.end()[0] == 0
    stage = Stage(RedisConnector(server_url), namespace)
    stage.saved()
    stage.close()
    with serving(*where):
        assert record(server_url, namespace, 10) == 20
        assert record(server_url, namespace, 10) == 30
        remove_entry(server_url, namespace, from_the_end=2)
        verified = ask("verify", *where, code=1)
        done = run("verify", *where)
    assert verified["balanced"] is False
    found = {d["figure"]: (d["actor"], d["other"]) for d in verified["partitions"][0]["differences"]}
    assert found["total.requests"] == (30, 20)
    assert found["total.input_tokens"] == (3_000, 2_000)
    assert found["entries"] == (3, 2)
    assert done.returncode == 1
    assert "the books do not balance: total.input_tokens is 3000 to the actor and 2000" in last_line(done)
    assert "total.input_tokens" in done.stdout


def test_a_log_with_a_hole_and_no_snapshot_cannot_be_proved(server_url, namespace, ask):
    where = ("--redis", server_url, "--namespace", namespace)
    with serving(*where):
        record(server_url, namespace, 10)
        remove_entry(server_url, namespace, from_the_end=1)
        verified = ask("verify", *where, code=1)
    assert "of the log removed before they could be counted" in verified["partitions"][0]["problem"]


def test_the_doctor_finds_an_embedded_server_sound_and_warns_of_what_it_can_lose(ask):
    with Program("serve", "--embedded") as actor:
        actor.hear("Recovered")
        assert actor.popen.stdout is not None
        url = actor.popen.stdout.readline().strip()
        found = ask("doctor", "--redis", url)
    assert found["sound"] is True
    levels = {finding["subject"]: finding["level"] for finding in found["findings"]}
    assert {"version", "role", "eviction", "namespace", "leader", "lag", "snapshots", "dead letters"} <= levels.keys()
    assert {subject for subject, level in levels.items() if level == "warning"} == {"persistence", "access"}
    persistence = next(finding for finding in found["findings"] if finding["subject"] == "persistence")
    assert "can lose the last second" in persistence["found"]
    assert persistence["advice"]


@pytest.mark.parametrize("where", ["server", "actor"])
def test_the_doctor_exits_1_when_there_is_a_problem(server_url, namespace, where, ask):
    url = "redis://127.0.0.1:1/0" if where == "server" else server_url
    words = ("doctor", "--redis", url, "--namespace", namespace, "--timeout", "0.2")
    found = ask(*words, code=1)
    assert found["sound"] is False
    problems = [finding["subject"] for finding in found["findings"] if finding["level"] == "problem"]
    assert problems == ["server" if where == "server" else "leader"]
    done = run(*words)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_doctor_tells_what_waits_in_a_spool_and_whose_it_is(server_url, namespace, ask, tmp_path):
    where = ("--redis", server_url, "--namespace", namespace)
    folder = str(tmp_path / "spool")
    with serving(*where), TokenClient(server_url, namespace=namespace, spool_dir=folder) as client:
        empty = ask("doctor", *where, "--spool-dir", folder)
        for _ in range(10):
            client.record(1)
        client.flush()
        used = ask("doctor", *where, "--spool-dir", folder)["spool"]
        client.close()
        left = ask("doctor", *where, "--spool-dir", folder)
    assert empty["spool"] == {"slots": [], "damaged": []}
    (slot,) = used["slots"]
    assert (slot["here"], slot["owned"], slot["events"], slot["problem"]) == (True, True, 10, None)
    (slot,) = left["spool"]["slots"]
    assert (slot["owned"], slot["events"]) == (False, 10)
    (finding,) = [finding for finding in left["findings"] if finding["subject"] == "spool"]
    assert "left behind, 10 events in 1 batch" in finding["found"]
    assert left["sound"] is True


def test_a_spool_that_is_not_there_is_said(server_url, namespace, tmp_path):
    done = run("doctor", "--redis", server_url, "--namespace", namespace, "--spool-dir", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "--spool-dir" in done.stderr
