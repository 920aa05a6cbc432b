"""The workers by themselves: they read traces, simulate a fleet, and say truly what they sent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from random import Random

import pytest

from tests.acceptance.program import environment, log_length, until
from token_actor import BufferFull, LogUnavailable, TokenClient
from token_actor_workers.fleet import main as fleet_main
from token_actor_workers.lines import FORMATS, NotATrace, read_lines
from token_actor_workers.report import Stop, Truth, finish, record
from token_actor_workers.simulation import MODELS, NANO_PER_USD, Agent
from token_actor_workers.trace import main as trace_main
from token_actor_workers.trace import survey

KINDS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


def calls_of(number, count, seed="a"):
    agent = Agent(number, Random(f"{seed}/{number}"))
    return [agent.next_call() for _ in range(count)]


def test_the_same_seed_is_the_same_fleet():
    assert calls_of(3, 50) == calls_of(3, 50)
    assert calls_of(3, 50) != calls_of(3, 50, seed="b")


def test_a_session_grows_is_read_from_the_cache_and_stays_in_its_window():
    calls = [call for number in range(10) for call in calls_of(number, 400)]
    for call in calls:
        context = call["input_tokens"] + call["cache_read_tokens"] + call["cache_write_tokens"]
        assert 0 < context <= MODELS[call["model"]].window
        assert min(call[kind] for kind in KINDS) >= 0
        assert call["reasoning_tokens"] <= call["output_tokens"]
    assert len({call["session"] for call in calls}) > 20
    assert sum(call["cache_read_tokens"] for call in calls) > sum(call["input_tokens"] for call in calls)


def test_a_call_costs_what_its_tokens_cost():
    call = next(call for call in calls_of(0, 50) if call["model"] == "gpt-5")
    cost = 1_250 * call["input_tokens"] + 10_000 * call["output_tokens"] + 125 * call["cache_read_tokens"]
    assert float(call["cost_usd"]) == pytest.approx(cost / NANO_PER_USD, abs=1e-12)
    assert all(call["cost_usd"] is None for call in calls_of(1, 400) if call["model"] == "qwen3-coder-local")


def test_the_truth_is_added_up_in_whole_numbers():
    truth = Truth()
    truth.add({"input_tokens": 3, "cost_usd": "0.000000001"})
    truth.add({"output_tokens": 2, "reasoning_tokens": 1})
    assert truth.sums["events"] == 2
    assert (truth.sums["cost_nanousd"], truth.sums["unpriced"]) == (1, 1)


def read(tmp_path, trace_format, text):
    path = tmp_path / "trace"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_lines(path, trace_format))


def test_an_azure_line_is_in_utc_and_has_a_session_of_a_quarter_of_an_hour(tmp_path):
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n"
    (line,) = read(tmp_path, "azure-llm", text)
    assert line.number == 2
    assert line.event["timestamp"] == pytest.approx(1_700_158_623.97996)
    assert (line.event["input_tokens"], line.event["output_tokens"]) == (4808, 10)
    assert line.event["session"] == "2023-11-16T18:15"


@pytest.mark.parametrize(
    ("trace_format", "text", "problem"),
    [
        (
            "azure-llm",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,-1,2",
            "ContextTokens must be a whole",
        ),
        ("azure-llm", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1", "must have 3 cells, not 2"),
        ("csv", "input_tokens,timestamp\n1,2023-11-16 18:17:03", "must name its zone"),
        ("csv", "input_tokens,tags\n1,{", "Expecting"),
        ("csv", "input_tokens,user\n1,\x00", None),
        ("jsonl", "[1]", "must be a JSON object, not list"),
        ("jsonl", '{"timestamp": true}', "timestamp must be unix seconds"),
        ("jsonl", '{"names": 1}', "has the unknown field 'names'"),
        ("jsonl", b"\xff", "must be JSON"),
        ("jsonl", "[" * 100_000, "must be JSON"),
    ],
)
def test_a_line_that_is_none_is_said_and_never_raised(tmp_path, trace_format, text, problem):
    (line,) = read(tmp_path, trace_format, text)
    assert line.problem is None if problem is None else problem in line.problem


def test_a_csv_line_may_have_any_field(tmp_path):
    header = "input_tokens,timestamp,cost_usd,tags,message_id,agent\n"
    (line,) = read(tmp_path, "csv", header + '7,2023-11-16T18:17:03Z,0.5,"{""a"": ""b""}",id,\n\n')
    assert line.event == {
        "input_tokens": 7,
        "timestamp": 1_700_158_623.0,
        "cost_usd": "0.5",
        "tags": {"a": "b"},
        "message_id": "id",
    }


@pytest.mark.parametrize(
    ("trace_format", "text"),
    [("azure-llm", ""), ("azure-llm", "TIMESTAMP\n"), ("csv", "colour\n"), ("csv", "agent,agent\n")],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path, trace_format, text):
    with pytest.raises(NotATrace):
        read(tmp_path, trace_format, text)


def test_a_share_is_every_nth_line_and_knows_ids_of_the_others(tmp_path):
    events = [
        {"message_id": "x", "input_tokens": 1, "timestamp": 5.5},
        {"message_id": "x", "input_tokens": 1},
        {"message_id": "x", "input_tokens": 2},
        {"input_tokens": -1, "message_id": "y"},
        {"input_tokens": 1, "message_id": "y", "timestamp": "1970-01-01T00:00:09Z"},
        {"message_id": "x", "input_tokens": 1, "tenant": "other"},
    ]
    lines = read(tmp_path, "jsonl", "\n".join(json.dumps(event) for event in events))
    shares = [survey(iter(lines), worker, 2) for worker in range(2)]
    assert [share.lines for share in shares] == [3, 3]
    assert shares[0].bad == {3: "has the message_id of line 1 and other numbers"}
    assert list(shares[1].bad) == [4]
    assert [share.first_line_of for share in shares] == [{}, {2: 1}]
    assert (shares[0].first_s, shares[0].last_s) == (5.5, 9.0)


@pytest.fixture
def signals():
    """Give back the signals that a worker takes over, when it runs in this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, action in before.items():
        signal.signal(number, action)


def test_a_worker_that_nobody_supervises_reports_and_says_what_it_sent(
    server_url, namespace, tmp_path, capsys, signals
):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"input_tokens": 7, "timestamp": 1700000000}\n{"input_tokens": -7}\n')
    words = [str(path), "--format", "jsonl", "--redis", server_url, "--namespace", namespace]
    assert trace_main(words) == 1
    assert "line 2: input_tokens must be between 0" in capsys.readouterr().err
    assert trace_main([*words, "--skip-bad"]) == 0
    sent = json.loads(capsys.readouterr().out)["sent"]
    assert (sent["events"], sent["input_tokens"], sent["unpriced"], sent["pending"]) == (1, 7, 1, 0)
    assert log_length(server_url, namespace) == 1


@pytest.mark.parametrize("main", [trace_main, fleet_main], ids=["trace", "fleet"])
def test_a_worker_says_why_it_cannot_work(tmp_path, capsys, signals, main):
    path = tmp_path / "trace.csv"
    path.write_text("agent\na\n")
    words = [str(path), "--format", "csv"] if main is trace_main else []
    assert main([*words, "--redis", "nonsense"]) == 1
    assert "the address of the server is not usable" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", None])
def test_a_trace_that_cannot_be_read_is_named(tmp_path, capsys, signals, text):
    path = tmp_path / "trace.csv"
    if text is not None:
        path.write_text(text)
    assert trace_main([str(path), "--format", "csv"]) == 1
    assert str(path) in capsys.readouterr().err


def test_a_fleet_without_an_end_ends_on_sigterm_and_says_what_it_sent(server_url, namespace):
    words = ["--redis", server_url, "--namespace", namespace, "--agents", "3", "--seed", "a", "--resend", "0.5"]
    with subprocess.Popen(
        [sys.executable, "-m", "token_actor_workers.fleet", *words],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as worker:
        until(lambda: log_length(server_url, namespace) > 3)
        worker.terminate()
        assert worker.stdout is not None
        (line,) = worker.stdout.read().splitlines()
        assert worker.wait(10) == 0
    sent = json.loads(line)["sent"]
    assert sent["events"] > 0
    assert sent["pending"] == 0


class Unheard:
    """A client whose log stays away; the second flush comes with a stop."""

    pending = 3

    def __init__(self, stop):
        self.stop = stop
        self.flushes = 0

    def flush(self, timeout_s):
        self.flushes += 1
        if self.flushes == 2:
            self.stop.ask()
        raise LogUnavailable("away", timeout_s=timeout_s, pending=self.pending)

    def close(self, timeout_s):
        self.flush(timeout_s)


def test_a_worker_keeps_what_the_log_did_not_take_until_it_is_stopped(signals, capsys, monkeypatch):
    monkeypatch.setattr("token_actor_workers.report.STOPPED_FLUSH_S", 0)
    client = Unheard(Stop())
    truth = Truth()
    assert finish(client, truth, client.stop) == 1
    printed, said = capsys.readouterr()
    assert json.loads(printed)["sent"] == {**truth.sums, "pending": 3}
    assert "3 events could not be brought to the log" in said
    assert client.flushes == 3, "one before the stop, one with it, and one to close"


def test_a_trace_in_its_own_time_ends_on_sigterm_with_what_it_has_sent(server_url, namespace, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"input_tokens": 7, "timestamp": 1}\n{"input_tokens": 7, "timestamp": 99999}\n')
    words = [str(path), "--format", "jsonl", "--speed", "1", "--redis", server_url, "--namespace", namespace]
    with subprocess.Popen(
        [sys.executable, "-m", "token_actor_workers.trace", *words],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as worker:
        until(lambda: log_length(server_url, namespace))
        worker.terminate()
        printed, _ = worker.communicate(timeout=15)
    assert worker.returncode == 0
    assert json.loads(printed)["sent"]["events"] == 1


def test_a_fleet_goes_on_when_nobody_answers_for_the_limit(server_url, namespace, capsys, signals, monkeypatch):
    monkeypatch.setattr("token_actor_workers.fleet.ASK_TIMEOUT_S", 0.05)
    words = ["--redis", server_url, "--namespace", namespace, "--agents", "2", "--seconds", "1", "--limit-tokens", "1"]
    assert fleet_main(words) == 0
    sent = json.loads(capsys.readouterr().out)["sent"]
    assert sent["unanswered"] == sent["checks"] == sent["events"] > 0


class Crowded:
    """A client that has no room for the first record, and whose log takes a moment."""

    def __init__(self):
        self.refused = 0
        self.taken = 0

    def record(self, **usage):
        if self.refused < 2:
            self.refused += 1
            raise BufferFull("full", pending=1)
        self.taken += 1

    def flush(self, timeout_s):
        if self.refused == 1:
            raise LogUnavailable("away", timeout_s=timeout_s, pending=1)


def test_a_worker_waits_while_too_much_waits_for_the_log(signals):
    client = Crowded()
    assert record(client, {"input_tokens": 1}, Stop())
    assert (client.refused, client.taken) == (2, 1)


def test_a_worker_that_was_stopped_records_nothing_more(signals):
    stop = Stop()
    stop.ask()
    assert stop.wait(60)
    assert not record(Crowded(), {"input_tokens": 1}, stop)


def test_every_format_is_offered():
    assert set(FORMATS) == {"azure-llm", "jsonl", "csv"}


def test_a_supervised_worker_whose_stdin_ends_before_the_order_sends_nothing(server_url, namespace):
    words = ["--redis", server_url, "--namespace", namespace, "--supervised"]
    done = subprocess.run(
        [sys.executable, "-m", "token_actor_workers.fleet", *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
        env=environment(),
    )
    assert (done.returncode, json.loads(done.stdout)) == (0, {"ready": {"agents": 6}})
    with TokenClient(server_url, namespace=namespace) as client:
        assert client.pending == 0
    assert log_length(server_url, namespace) == 0
