"""Serve: an actor ends well when asked to, knows the same numbers after a restart, and stands by for another."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.acceptance.program import Program, last_line, run, serving
from token_actor import TokenClient


def record(url, namespace, count):
    with TokenClient(url, namespace=namespace) as client:
        for number in range(count):
            client.record(100 + number, 7, agent=f"agent-{number % 3}", model="m", message_id=f"id-{number}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_the_actor_within_5_s_and_a_restart_answers_the_same(server_url, namespace, number, ask):
    where = ("--redis", server_url, "--namespace", namespace)
    with serving(*where) as actor:
        record(server_url, namespace, 1_000)
        before = ask("analytics", "--group-by", "agent", *where)
        begun_at = time.monotonic()
        actor.send(number)
        code, printed = actor.end()
    assert code == 0
    assert time.monotonic() - begun_at < 5
    assert printed == ""
    assert "Stopped" in actor.stderr
    assert "Snapshot taken" not in actor.stderr  # the next one goes on from the log
    assert "Traceback" not in actor.stderr
    with serving(*where):
        after = ask("analytics", "--group-by", "agent", *where)
        verified = ask("verify", *where)["partitions"][0]
    assert without_times(after) == without_times(before)
    assert (verified["snapshot"], verified["replayed"]) == (None, verified["entries"])


def without_times(answer):
    return {name: value for name, value in answer.items() if name != "as_of"}


def test_an_embedded_server_prints_its_address_and_keeps_its_data(tmp_path, ask):
    totals = []
    for _ in range(2):
        with Program("serve", "--embedded", "--data", str(tmp_path), "--namespace", "kept") as actor:
            actor.hear("Recovered")
            assert actor.popen.stdout is not None
            url = actor.popen.stdout.readline().strip()
            record(url, "kept", 10)  # the same ids both times
            totals.append(ask("analytics", "--redis", url, "--namespace", "kept")["input_tokens"])
            actor.send(signal.SIGTERM)
            code, _ = actor.end()
        assert code == 0, actor.stderr
    assert totals == [1_045, 1_045]


def test_a_second_actor_stands_by_and_leads_when_the_first_is_gone(server_url, namespace):
    where = ("--redis", server_url, "--namespace", namespace)
    with serving(*where) as first, Program("serve", *where) as second:
        second.hear("Standing by")
        assert "Leading" not in second.stderr
        first.send(signal.SIGTERM)
        assert first.end()[0] == 0
        second.hear("Leading")
        second.send(signal.SIGTERM)
        assert second.end()[0] == 0


def test_json_logs_are_one_object_per_line_with_an_action(server_url, namespace):
    with Program("serve", "--log-json", "--redis", server_url, "--namespace", namespace) as actor:
        actor.hear('"action": "leading"')
        actor.send(signal.SIGTERM)
        assert actor.end()[0] == 0
    said = [json.loads(line) for line in actor.said]
    lines = [line for line in said if line["action"] != "server_unsafe"]
    assert {line["subject"] for line in said if line not in lines} == {"persistence", "access"}
    assert [line["action"] for line in lines] == ["starting", "recovered", "leading", "stopping", "stopped"]
    assert lines[2]["epoch"] == 1
    assert all(line["level"] == "info" and line["time"].endswith("+00:00") for line in lines)


def test_a_supervised_actor_ends_when_its_standard_input_does(server_url, namespace):
    with serving("--redis", server_url, "--namespace", namespace, "--supervised") as actor:
        assert actor.popen.stdin is not None
        actor.popen.stdin.close()
        assert actor.popen.wait(10) == 0


def test_another_number_of_partitions_is_refused_with_one_line(server_url, namespace):
    where = ("--redis", server_url, "--namespace", namespace)
    with serving(*where, "--partition", "1", "--partitions", "2"):
        done = run("serve", *where)
    assert done.returncode == 1
    assert "has 2 partitions, not 1" in last_line(done)
    assert "Traceback" not in done.stderr


def test_two_partitions_are_looked_after_as_one_namespace(server_url, namespace, ask):
    where = ("--redis", server_url, "--namespace", namespace)
    two = ("--partitions", "2")
    with serving(*where, *two, "--partition", "0"), serving(*where, *two, "--partition", "1"):
        assert [found["balanced"] for found in ask("verify", *where)["partitions"]] == [True, True]
        subjects = [finding["subject"] for finding in ask("doctor", *where)["findings"]]
        assert {"leader of 0", "leader of 1"} <= set(subjects)
        done = run("summary", *where)
    assert done.returncode == 2
    assert "tenant must be named" in last_line(done)


def test_an_embedded_server_that_cannot_start_is_told_on_one_line(server):
    done = run("serve", "--embedded", "--port", str(server.port))
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Address already in use" in done.stderr
