"""Replay: a recorded trace is counted exactly, however it is sent, and whatever happens to the actor."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.acceptance.program import (
    TRACE,
    Program,
    connected,
    document,
    last_line,
    leader_pid,
    log_length,
    run,
    serving,
    until,
)
from token_actor import TokenClient
from token_actor.transport.ports import Append, Put, PutField
from token_actor.wire.keys import Keys

if TYPE_CHECKING:
    from pathlib import Path

AZURE = {"events": 8_819, "input_tokens": 18_059_974, "output_tokens": 245_896}
KEYS = {
    "events",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "total_tokens",
    "duplicates",
    "dead",
    "elapsed_s",
    "events_per_s",
}
needs_the_trace = pytest.mark.skipif(not TRACE.exists(), reason=f"{TRACE.name} is not in ../shared/data")


class Made(NamedTuple):
    """A trace and its totals."""

    words: tuple[str, ...]
    totals: dict[str, int]


def totals_of(events):
    kinds = ("input_tokens", "output_tokens", "cache_read_tokens")
    return {"events": len(events), **{kind: sum(event.get(kind, 0) for event in events) for kind in kinds}}


def events_of(count, *, first_s=1_700_000_000.0, every_s=1.0):
    return [
        {
            "timestamp": first_s + number * every_s,
            "input_tokens": 10 + number,
            "output_tokens": number % 7,
            "cache_read_tokens": number * 3 % 11,
            "model": f"model-{number % 2}",
            "agent": f"agent-{number % 5}",
        }
        for number in range(count)
    ]


def write_jsonl(path: Path, events) -> Made:
    path.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return Made((str(path), "--format", "jsonl"), totals_of(events))


def counted(answer, totals):
    return {name: answer[name] for name in totals}


@needs_the_trace
def test_the_azure_trace_is_counted_exactly_by_four_workers_that_resend():
    answer = document("replay", str(TRACE), "--format", "azure-llm", "--workers", "4", "--resend", "0.05")
    assert set(answer) == KEYS
    assert counted(answer, AZURE) == AZURE
    assert answer["total_tokens"] == 18_305_870
    assert answer["duplicates"] > 0
    assert answer["dead"] == 0


def test_a_jsonl_trace_is_counted_exactly_and_each_message_id_once(server_url, namespace, tmp_path, ask):
    events = events_of(300)
    repeated = {**events[3], "message_id": "twice", "cost_usd": "0.5", "tags": {"a": "b"}, "exactness": "estimated"}
    made = write_jsonl(tmp_path / "trace.jsonl", [*events, repeated, {}, {**repeated, "agent": "other"}])
    where = ("--redis", server_url, "--namespace", namespace)
    expected = totals_of([*events, repeated, {}])
    for _ in range(2):  # a second run is another project, and its ids are others
        answer = document("replay", *made.words, *where, "--workers", "3", "--resend", "0.05")
        assert counted(answer, expected) == expected
        assert answer["duplicates"] > 0
    with serving(*where):
        assert ask("analytics", *where)["requests"] == 2 * expected["events"]
        assert ask("analytics", "--agent", "agent-1", *where)["requests"] == 2 * 60


def test_a_csv_trace_is_counted_exactly(tmp_path):
    events = [{**event, "session": "", "message_id": f"id-{number}"} for number, event in enumerate(events_of(50))]
    path = tmp_path / "trace.csv"
    rows = [",".join(events[0]), *(",".join(map(str, event.values())) for event in events)]
    path.write_text("\n".join(rows))
    answer = document("replay", str(path), "--format", "csv", "--workers", "2")
    expected = totals_of(events)
    assert counted(answer, expected) == expected
    assert answer["duplicates"] == 0


def test_for_people_the_totals_of_both_sides_are_shown(tmp_path):
    made = write_jsonl(tmp_path / "trace.jsonl", events_of(2_000))
    done = run("replay", *made.words, "--workers", "1", "--original-times", "--project", "mine")
    assert done.returncode == 0, done.stderr
    assert "as project mine" in done.stdout
    assert "workers sent  actor counted" in done.stdout
    assert "2,000" in done.stdout
    assert "shifted" not in done.stderr


def test_nothing_is_sent_of_a_trace_with_a_bad_line_unless_told_to_leave_it_out(server_url, namespace, tmp_path):
    path = tmp_path / "trace.jsonl"
    good = [json.dumps(event) for event in events_of(5)]
    path.write_text("\n".join([*good[:2], '{"input_tokens": -1}', "no json", '{"colour": "red"}', *good[2:]]))
    words = ("replay", str(path), "--format", "jsonl", "--redis", server_url, "--namespace", namespace)
    done = run(*words, "--workers", "2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "3 of 8 lines" in last_line(done)
    assert "line 3 (input_tokens must be between 0" in last_line(done)
    assert "--skip-bad" in last_line(done)
    assert "line 4: must be JSON" in done.stderr
    assert log_length(server_url, namespace) == 0
    answer = document(*words, "--workers", "2", "--skip-bad")
    assert counted(answer, totals_of(events_of(5))) == totals_of(events_of(5))


@pytest.mark.parametrize(
    ("text", "words", "reason"),
    [
        ("", ("--format", "azure-llm"), "its first line must name columns"),
        ("a,b\n1,2\n", ("--format", "csv"), "has 'a'"),
        ("\n\n", ("--format", "jsonl"), "nothing to replay"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,2\n", ("--format", "azure-llm"), "line 2"),
    ],
)
def test_a_file_that_is_no_such_trace_is_refused_with_one_line(server_url, namespace, tmp_path, text, words, reason):
    path = tmp_path / "trace"
    path.write_text(text)
    done = run("replay", str(path), *words, "--workers", "1", "--redis", server_url, "--namespace", namespace)
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in last_line(done)
    assert "Traceback" not in done.stderr


def test_a_replay_fails_when_somebody_else_reports_the_same_project(server_url, namespace, tmp_path):
    made = write_jsonl(tmp_path / "trace.jsonl", events_of(200))
    where = ("--redis", server_url, "--namespace", namespace)
    with Program("replay", *made.words, *where, "--speed", "200", "--project", "mine", "--json") as replay:
        until(lambda: log_length(server_url, namespace))
        with connected(server_url) as connection:
            stray = b'{"project": "mine", "output_tokens": 9}'
            connection.write([Append(key=Keys(namespace).log, fields=[b"j", stray])])
        code, printed = replay.end()
    assert code == 1
    assert json.loads(printed)["events"] == 201
    assert "the totals differ: events: workers sent 200, actor counted 201 (+1); output tokens" in replay.said[-1]


def test_an_actor_that_gives_up_by_itself_is_not_started_again(server_url, namespace, tmp_path):
    made = write_jsonl(tmp_path / "trace.jsonl", events_of(2))
    with connected(server_url) as connection:
        connection.write([PutField(key=Keys(namespace).meta, field=b"partitions", value=b"2")])
    done = run("replay", *made.words, "--redis", server_url, "--namespace", namespace, "--workers", "1")
    assert done.returncode == 1
    assert "the actor ended with status 1" in last_line(done)
    assert "has 2 partitions, not 1" in last_line(done)


def test_a_leader_that_never_answers_is_given_up(server_url, namespace, tmp_path, call, monkeypatch):
    monkeypatch.setattr("token_actor.cli.stage.START_TIMEOUT_S", 0)
    monkeypatch.setattr("token_actor.cli.stage.ASK_TIMEOUT_S", 0.1)
    made = write_jsonl(tmp_path / "trace.jsonl", events_of(2))
    with connected(server_url) as connection:
        connection.write([Put(key=Keys(namespace).leader, value=b"1:somebody/1/x")])
    code, printed, said = call("replay", *made.words, "--redis", server_url, "--namespace", namespace, "--workers", "1")
    assert (code, printed) == (1, "")
    assert "token-actor serve" in said.splitlines()[-1]


@pytest.fixture
def stretched(tmp_path):
    """A trace that takes about three seconds at the speed that comes with it."""
    if TRACE.exists():
        return Made((str(TRACE), "--format", "azure-llm", "--speed", "1200"), AZURE)
    made = write_jsonl(tmp_path / "trace.jsonl", events_of(2_000))
    return Made((*made.words, "--speed", "650"), made.totals)


def test_a_killed_actor_is_started_again_and_changes_no_total(server_url, namespace, stretched):
    where = ("--redis", server_url, "--namespace", namespace)
    with Program("replay", *stretched.words, *where, "--resend", "0.05", "--json") as replay:
        with TokenClient(server_url, namespace=namespace) as client:
            until(lambda: log_length(server_url, namespace))
            until(lambda: client.analytics()["requests"] > stretched.totals["events"] // 5)
        pid = leader_pid(server_url, namespace)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        replay.hear(f"the actor was ended by SIGKILL (process {pid}); started again as process")
        code, printed = replay.end()
    answer = json.loads(printed)
    assert code == 0, replay.stderr
    assert counted(answer, stretched.totals) == stretched.totals
    assert answer["duplicates"] > 0


def test_a_replay_waits_for_an_actor_that_somebody_else_kills_and_restarts(server_url, namespace, tmp_path):
    made = write_jsonl(tmp_path / "trace.jsonl", events_of(1_000))
    where = ("--redis", server_url, "--namespace", namespace)
    with serving(*where) as first, Program("replay", *made.words, *where, "--speed", "400", "--json") as replay:
        until(lambda: log_length(server_url, namespace) > 2)
        first.send(signal.SIGKILL)
        first.popen.wait()
        with serving(*where):
            code, printed = replay.end()
    assert code == 0, replay.stderr
    assert counted(json.loads(printed), made.totals) == made.totals
    assert "started an actor" not in replay.stderr
