"""What was used: every reading command, for people and as JSON, and what it says when it cannot answer."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.program import COMMAND, document, environment, last_line, on_a_terminal, run
from token_actor import __version__

FILE = Path(__file__).name
NOWHERE = ("--redis", "redis://127.0.0.1:1/0")
READING = [
    ["summary"],
    ["analytics"],
    ["analytics", "--group-by", "model", "--group-by", "agent,session", "--since", "-1h"],
    ["history", "--limit", "3"],
    ["limits", "list"],
    ["limits", "explain", "--tokens", "5"],
    ["dead", "list"],
    ["verify"],
    ["doctor"],
]
ASKING = [["summary"], ["analytics"], ["history"], ["export"], ["verify"]]


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_reading_command_prints_exactly_one_json_document(fleet, words):
    assert isinstance(document(*words, *fleet.where), dict)


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_reading_command_prints_plain_text_into_a_pipe(fleet, words, call):
    code, printed, said = call(*words, *fleet.where)
    assert code == 0, said
    assert printed.strip()
    assert "\x1b" not in printed + said
    assert not any(line.endswith(" ") for line in printed.splitlines())


def test_analytics_has_the_totals_and_the_groups(fleet):
    answer = document("analytics", "--group-by", "agent", *fleet.where)
    assert {name: answer[name] for name in fleet.totals} == fleet.totals
    assert sum(group["requests"] for group in answer["groups"]) == fleet.totals["requests"]


def test_the_connection_may_come_before_the_command(fleet):
    answer = document(*fleet.where, "analytics", "--agent", "agent-1")
    assert answer["requests"] == 10
    assert document(*fleet.where, "dead", "list")["total"] == 2


def test_a_table_has_separators_and_names_what_has_no_price(fleet):
    done = run("analytics", "--group-by", "model", *fleet.where)
    assert "435,000" in done.stdout
    assert "unpriced" in done.stdout


def test_a_table_is_no_wider_than_the_terminal(fleet):
    code, printed = on_a_terminal("history", *fleet.where, columns=60)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed).splitlines()
    assert code == 0
    assert len(lines) > 10
    assert 50 < max(map(len, lines)) <= 60


def test_what_is_selected_and_what_is_left_out_is_said(fleet, call):
    _, printed, _ = call(
        "analytics", "--group-by", "agent", "--limit", "1", "--model", "priced", "--since", "1h", *fleet.where
    )
    assert printed.startswith("model priced from ")
    assert "and 2 more groups" in printed
    _, printed, _ = call("summary", "--agent", "agent-1", *fleet.where)
    assert printed.startswith("agent agent-1\n")
    assert "$1.25 + 5 requests unpriced" in printed


def test_without_events_there_is_nothing_to_list(fleet, call):
    assert call("history", "--agent", "nobody", *fleet.where)[:2] == (0, "no events\n")


def test_history_is_newest_first(fleet):
    events = document("history", "--limit", "2", *fleet.where)["history"]
    assert [event["model"] for event in events] == ["last", "unpriced"]


@pytest.mark.parametrize("export_format", ["json", "csv"])
def test_an_export_to_a_file_has_the_same_totals(fleet, tmp_path, export_format):
    path = tmp_path / "usage.out"
    done = run("export", "--format", export_format, "-o", str(path), *fleet.where)
    assert (done.returncode, done.stdout) == (0, "")
    assert str(path) in done.stderr
    events = json.loads(path.read_text())["history"] if export_format == "json" else history_rows(path)
    assert len(events) == fleet.totals["requests"]
    assert sum(int(event["input_tokens"]) for event in events) == fleet.totals["input_tokens"]
    assert list(tmp_path.iterdir()) == [path]


def history_rows(path):
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    header = rows.index(["=== Usage History ==="]) + 1
    return [dict(zip(rows[header], row, strict=True)) for row in rows[header + 1 :]]


def test_an_export_goes_to_stdout_by_itself(fleet):
    done = run("export", *fleet.where)
    assert json.loads(done.stdout)["analytics"]["requests"] == fleet.totals["requests"]


def test_an_export_that_cannot_be_written_says_so_on_one_line(fleet, tmp_path):
    done = run("export", "-o", str(tmp_path / "nowhere" / "usage.json"), *fleet.where)
    assert done.returncode == 1
    assert "No such file or directory" in last_line(done)
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_traceback(fleet):
    words = " ".join([*COMMAND, "export", *fleet.where])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} | true"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_without_an_actor_a_question_fails_with_one_line_that_says_what_to_do(server_url, namespace, words, call):
    code, printed, said = call(*words, "--redis", server_url, "--namespace", namespace, "--timeout", "0.1")
    assert (code, printed) == (1, "")
    assert len(said.strip().splitlines()) == 1
    assert "token-actor serve" in said


@pytest.mark.parametrize("words", [*ASKING, ["dead", "list"], ["replay", FILE, "--format", "jsonl"]], ids=" ".join)
def test_without_a_server_a_command_fails_with_one_line(words, call, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    code, printed, said = call(*words, *NOWHERE, *(["--timeout", "0.2"] if words in ASKING else []))
    assert (code, printed) == (1, "")
    assert len(said.strip().splitlines()) == 1
    assert "check that the server runs" in said


def test_the_program_itself_fails_with_one_line_and_no_traceback(server_url, namespace):
    for where in (NOWHERE, ("--redis", server_url, "--namespace", namespace)):
        done = run("summary", *where, "--timeout", "0.1")
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["analytics", "--group-by", "colour"],
        ["analytics", "--since", "whenever"],
        ["analytics", "--since", "1h", "--until", "2h"],
        ["history", "--limit", "-1"],
        ["summary", "--model", "x" * 200, "--limit"],
        ["export", "--format", "xml"],
        ["replay", "no-such-file", "--format", "jsonl"],
        ["replay", FILE],
        ["replay", FILE, "--format", "jsonl", "--workers", "0"],
        ["replay", FILE, "--format", "jsonl", "--resend", "2"],
        ["serve", "--embedded", "--redis", "redis://127.0.0.1:1/0"],
        ["serve", "--data", "."],
        ["serve", "--partition", "2", "--partitions", "2"],
        ["summary", "--namespace", "not a namespace"],
        ["dead", "show", "not-an-id"],
        ["dead", "show"],
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_wrong_usage_exits_2(fleet, words, call, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    where = () if words[:1] in ([], ["nonsense"], ["serve"]) else fleet.where
    code, printed, said = call(*where, *words)
    assert code == 2, said
    assert words == [] or (printed, bool(said)) == ("", True)


def test_wrong_usage_of_the_program_itself_exits_2_without_a_traceback(fleet):
    for words in (["analytics", "--group-by", "colour"], ["export", "--format", "xml"]):
        done = run(*words, *fleet.where)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr


def test_an_address_that_is_none_is_named():
    done = run("summary", "--redis", "localhost:6379")
    assert done.returncode == 1
    assert "the address of the server is not usable" in done.stderr


def test_the_version_is_told():
    assert run("--version").stdout.strip() == __version__
