"""One client as a whole: own records seen, deadlines kept, forks and ends of processes survived."""

from __future__ import annotations

import gc
import shutil
import sys
import threading
import time

import pytest

from tests.client.harness import SLACK_S, Fleet, elapsed_s, run_script, start_script, wait_until
from token_actor.client import engine as engines
from token_actor.client.engine import Engine
from token_actor.embedded import EmbeddedServer
from token_actor.errors import (
    ActorUnavailable,
    BufferFull,
    ClosedError,
    InvalidQuestion,
    InvalidValue,
    LogUnavailable,
)
from token_actor.transport.ports import Append, Delete
from token_actor.wire.messages import Question

QUIET = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}  # Python 3.12 warns of forks beside threads


class TestOwnRecords:
    def test_a_question_sees_everything_recorded_before_it(self, fleet):
        fleet.actor()
        client = fleet.client()
        for turn in range(1, 51):
            for _ in range(1_000):
                client.record(1)
            assert client.analytics()["requests"] == 1_000 * turn

    def test_every_thread_sees_its_own_records(self, fleet):
        fleet.actor()
        client = fleet.client(batch_events_max=50)
        wrong = []

        def work(agent):
            for turn in range(1, 11):
                for _ in range(200):
                    client.record(1, agent=agent)
                seen = client.analytics(agent=agent)["requests"]
                if seen != 200 * turn:
                    wrong.append((agent, turn, seen))

        threads = [threading.Thread(target=work, args=(f"agent{n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert client.analytics()["requests"] == 12_000

    def test_a_stale_answer_is_fine_when_the_caller_says_so(self, fleet):
        fleet.actor()
        client = fleet.client(batch_age_ms=60_000)
        client.record(1)
        assert client.analytics(stale_ok=True)["requests"] == 0
        assert client.pending == 1
        assert client.analytics()["requests"] == 1

    def test_a_question_that_must_see_own_records_needs_the_log(self, memory_fleet):
        memory_fleet.actor()
        client = memory_fleet.client()
        memory_fleet.go_away()
        client.record(1)
        with pytest.raises(LogUnavailable) as late:
            client.analytics(timeout_s=0.1)
        assert isinstance(late.value, ActorUnavailable)
        assert (late.value.pending, late.value.timeout_s) == (1, 0.1)


class TestNobodyAnswers:
    def test_a_namespace_without_an_actor_is_reported_with_what_to_do(self, fleet):
        client = fleet.client()
        start_s = time.monotonic()
        with pytest.raises(ActorUnavailable) as nobody:
            client.analytics(timeout_s=0.3)
        assert 0.2 <= time.monotonic() - start_s < 0.2 + SLACK_S
        assert str(nobody.value) == (
            f"no actor has ever served namespace '{fleet.namespace}' on {fleet.client_connector.address}, "
            "nor has one begun to within 0.3 s; start 'token-actor serve'"
        )
        assert nobody.value.timeout_s == 0.3

    def test_an_actor_that_is_gone_is_reported_with_what_to_do(self, fleet):
        fleet.actor().stop()
        client = fleet.client()
        start_s = time.monotonic()
        with pytest.raises(ActorUnavailable) as nobody:
            client.analytics(timeout_s=0.3)
        assert 0.3 <= time.monotonic() - start_s < 0.3 + SLACK_S
        assert str(nobody.value) == (
            f"no actor answered for partition 0 of namespace '{fleet.namespace}' on {fleet.client_connector.address} "
            "within 0.3 s; check that 'token-actor serve' runs: 'token-actor doctor' tells more"
        )

    def test_a_server_that_is_away_is_reported_with_what_to_do(self, fleet):
        fleet.actor()
        client = fleet.client()
        client.analytics()
        fleet.go_away()
        start_s = time.monotonic()
        with pytest.raises(ActorUnavailable, match="^no answer within 0.3 s: .*; check that the server runs") as nobody:
            client.analytics(timeout_s=0.3)
        assert 0.2 <= time.monotonic() - start_s < 0.2 + SLACK_S
        assert nobody.value.timeout_s == 0.3

    def test_the_clients_own_deadline_holds_where_none_is_given(self, fleet):
        client = fleet.client(timeout_s=0.2)
        start_s = time.monotonic()
        with pytest.raises(ActorUnavailable) as nobody:
            client.status()
        assert 0.1 <= time.monotonic() - start_s < 0.1 + SLACK_S
        assert nobody.value.timeout_s == 0.2

    def test_the_first_question_waits_for_a_server_that_comes_back(self, fleet):
        fleet.actor()
        client = fleet.client()
        fleet.go_away()
        timer = threading.Timer(0.2, fleet.come_back)
        timer.start()
        assert client.analytics()["requests"] == 0
        timer.join()

    def test_a_question_waits_for_an_actor_that_starts(self, fleet):
        client = fleet.client()
        client.record(5)
        timer = threading.Timer(0.2, fleet.actor)
        timer.start()
        assert client.analytics()["input_tokens"] == 5
        timer.join()

    def test_an_answer_that_came_too_late_is_not_taken_for_the_next_one(self, fleet):
        fleet.actor().stop()
        client = fleet.client()
        for _ in range(3):
            with pytest.raises(ActorUnavailable):
                client.analytics(["agent"], timeout_s=0.05)
        fleet.actor()
        wait_until(lambda: fleet.connect().stream_state(fleet.keys().inbox(client._engine._lines._client + "-1")))
        client.record(1, agent="a")
        assert client.status()["events"] == 1

    @pytest.mark.parametrize("timeout_s", [-1, float("nan"), float("inf"), "5"])
    @pytest.mark.parametrize("call", ["flush", "close", "status", "analytics", "history"])
    def test_a_deadline_that_is_none_is_refused(self, memory_fleet, call, timeout_s):
        client = memory_fleet.client()
        with pytest.raises(InvalidValue) as wrong:
            getattr(client, call)(timeout_s=timeout_s)
        assert wrong.value.field == "timeout_s"


class TestManyAtOnce:
    def test_more_threads_than_lines_all_get_their_own_answers(self, fleet):
        fleet.actor()
        client = fleet.client(lines_max=2)
        for n in range(10):
            client.record(n, agent=f"agent{n}")
        client.flush()
        found = {}

        def work(n):
            found[n] = {client.analytics(agent=f"agent{n}")["input_tokens"] for _ in range(20)}

        threads = [threading.Thread(target=work, args=(n,)) for n in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {n: {n} for n in range(10)}
        assert len(client._engine._lines._lines) == 2

    def test_when_all_lines_wait_the_next_caller_is_told_in_time(self, fleet):
        fleet.actor().stop()
        client = fleet.client(lines_max=1)
        busy = threading.Thread(target=lambda: pytest.raises(ActorUnavailable, client.status, timeout_s=0.5))  # noqa: RUF061
        busy.start()
        wait_until(lambda: len(client._engine._lines._lines) == 1)
        start_s = time.monotonic()
        with pytest.raises(ActorUnavailable, match="all 1 lines .* are busy") as late:
            client.status(timeout_s=0.1)
        assert 0.1 <= time.monotonic() - start_s < 0.1 + SLACK_S
        assert late.value.timeout_s == 0.1
        busy.join()


class TestQuestionsThatCannotBeSent:
    def test_a_value_that_no_message_can_hold_is_named(self, memory_fleet):
        memory_fleet.actor()
        with pytest.raises(InvalidQuestion) as wrong:
            memory_fleet.client().analytics(limit=object())
        assert (wrong.value.field, wrong.value.reason) == ("arguments", "type")

    def test_a_number_that_no_message_can_hold_is_named(self, memory_fleet):
        memory_fleet.actor()
        with pytest.raises(InvalidQuestion) as wrong:
            memory_fleet.client().analytics(limit=2**70)
        assert wrong.value.field == "arguments"

    def test_a_question_that_is_too_large_is_refused_before_it_is_sent(self, memory_fleet):
        memory_fleet.actor()
        with pytest.raises(InvalidQuestion, match="at most 16384 are read"):
            memory_fleet.client().analytics(agent="x" * 20_000)

    def test_with_several_partitions_a_tenant_must_be_named(self, fleet):
        for partition in (0, 1):
            fleet.actor(partition, partitions=2)
        with pytest.raises(InvalidQuestion, match="this namespace has 2 partitions") as wrong:
            fleet.client().analytics()
        assert wrong.value.field == "tenant"


class TestCommands:
    def test_a_command_asked_twice_is_carried_out_once(self, fleet, monkeypatch):
        monkeypatch.setattr("token_actor.client.lines.ASK_AGAIN_MS", 100)
        client = fleet.client()
        manager = client.manager("s")
        results = []
        asking = threading.Thread(target=lambda: results.append(manager.update_tokens(5, message_id="m")))
        connection = fleet.connect()
        fleet.actor().stop()
        asking.start()
        wait_until(lambda: connection.stream_state(fleet.keys().log))
        wait_until(lambda: connection.stream_state(fleet.keys().log).length >= 2)  # it was asked again
        fleet.actor()
        asking.join()
        assert results == [True]
        answer = client.analytics()
        assert (answer["requests"], answer["duplicates"]) == (1, 0)

    def test_a_command_comes_after_what_was_recorded_before(self, fleet):
        fleet.actor()
        client = fleet.client(session="s", batch_age_ms=60_000)
        client.record(100)
        client.manager().reset()
        client.record(1)
        assert client.session("s")["figures"]["input_tokens"] == 1

    def test_a_command_to_nobody_ends_at_the_deadline(self, fleet):
        client = fleet.client(timeout_s=0.2)
        with pytest.raises(ActorUnavailable):
            client.manager("s").update_tokens(1, message_id="m")


class TestClosing:
    def test_closing_twice_is_fine(self, fleet):
        client = fleet.client()
        client.record(1)
        client.close()
        client.close()
        assert len(fleet.batches()) == 1

    def test_closing_again_after_a_close_that_failed_is_fine(self, memory_fleet):
        client = memory_fleet.client()
        memory_fleet.go_away()
        client.record(1)
        with pytest.raises(LogUnavailable):
            client.close(0)
        client.close(0)

    @pytest.mark.parametrize(
        "use",
        [
            lambda client: client.record(1),
            lambda client: client.flush(),
            lambda client: client.analytics(),
            lambda client: client.analytics(stale_ok=True),
            lambda client: client.manager("s").update_tokens(1),
            lambda client: client.manager("s").update_tokens(1, message_id="m"),
            lambda client: client.manager("s").get_summary(),
        ],
        ids=["record", "flush", "question", "stale question", "update", "update with an id", "summary"],
    )
    def test_after_close_nothing_works_and_says_so(self, fleet, use):
        client = fleet.client()
        client.close()
        with pytest.raises(ClosedError):
            use(client)

    def test_after_a_close_that_failed_a_question_is_refused_at_once(self, memory_fleet):
        client = memory_fleet.client()
        memory_fleet.go_away()
        client.record(1)
        with pytest.raises(LogUnavailable):
            client.close(0)
        with pytest.raises(ClosedError):
            client.analytics()

    def test_a_client_is_a_context_manager(self, fleet):
        with fleet.client(batch_age_ms=60_000) as client:
            client.record(1)
        assert len(fleet.batches()) == 1
        with pytest.raises(ClosedError):
            client.record(1)

    def test_a_close_that_fails_raises_at_the_end_of_the_block(self, memory_fleet):
        memory_fleet.go_away()
        with pytest.raises(LogUnavailable), memory_fleet.client(timeout_s=0.05) as client:
            client.record(1)

    def test_a_question_under_way_is_answered_though_the_client_closes(self, fleet):
        fleet.actor().stop()
        client = fleet.client()
        answers = []
        asking = threading.Thread(target=lambda: answers.append(client.analytics()["requests"]))
        asking.start()
        wait_until(lambda: fleet.connect().stream_state(fleet.keys().ask))
        client.close()
        fleet.actor()
        asking.join()
        assert answers == [0]
        assert client._engine._lines._free == []


class TestADroppedClient:
    def test_what_it_recorded_is_still_sent(self, fleet):
        client = fleet.client(batch_age_ms=60_000)
        fleet._stack.pop_all()  # nobody else holds it
        client.record(1)
        del client
        gc.collect()
        wait_until(lambda: len(fleet.batches()) == 1)

    def test_its_thread_ends(self, memory_fleet):
        engine = memory_fleet.engine()
        memory_fleet._stack.pop_all()
        thread = _sender_thread_after_a_record(engine)
        del engine
        gc.collect()
        thread.join(10)
        assert not thread.is_alive()

    def test_while_its_events_wait_the_end_of_the_process_knows_of_them(self, memory_fleet):
        engine = memory_fleet.engine()
        memory_fleet._stack.pop_all()
        memory_fleet.go_away()
        thread = _sender_thread_after_a_record(engine)
        del engine
        gc.collect()
        problems = list(engines.finish_all(Engine.flush, 0.05))
        assert [problem.pending for problem in problems] == [1]
        memory_fleet.come_back()
        thread.join(10)
        assert list(engines.finish_all(Engine.flush, 0.05)) == []


def _sender_thread_after_a_record(engine):
    from token_actor.client.recording import make_event

    engine.record(make_event({}))
    return engine._sender._thread


FORK = """
import json, os, sys
from token_actor import TokenClient

client = TokenClient(sys.argv[1], namespace=sys.argv[2], batch_age_ms=60_000)
for _ in range(10):
    client.record(1, agent="parent")
child = os.fork()
if child == 0:
    assert client.pending == 0
    for _ in range(5):
        client.record(1, agent="child")
    assert client.analytics(agent="child")["requests"] == 5
    client.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert client.pending == 10
client.record(1, agent="parent")
groups = client.analytics(["agent"])["groups"]
print(json.dumps({group["agent"]: group["requests"] for group in groups}))
"""

FORK_UNDER_LOAD = """
import json, os, sys, threading
from token_actor import TokenClient

client = TokenClient(sys.argv[1], namespace=sys.argv[2], batch_events_max=20)
stop = threading.Event()
counts = [0] * 4

def work(n):
    while not stop.is_set():
        client.record(1, agent="parent")
        if counts[n] % 50 == 0:
            client.analytics(agent="parent")
        counts[n] += 1

threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads:
    thread.start()
children = []
for _ in range(10):
    child = os.fork()
    if child == 0:
        for _ in range(10):
            client.record(1, agent="child")
        client.flush()
        seen = client.analytics(agent="child")["requests"]
        os._exit(0 if seen >= 10 else 1)
    children.append(child)
statuses = [os.waitpid(child, 0)[1] for child in children]
stop.set()
for thread in threads:
    thread.join()
assert statuses == [0] * 10, statuses
groups = {group["agent"]: group["requests"] for group in client.analytics(["agent"])["groups"]}
print(json.dumps([groups["parent"] - sum(counts), groups["child"], client.status()["duplicates"]]))
"""

FORKED_CHILD_EXITS = """
import os, sys
from token_actor import TokenClient

client = TokenClient(sys.argv[1], namespace=sys.argv[2], batch_age_ms=60_000)
client.record(1)
if os.fork() == 0:
    client.record(1)
    sys.exit(0)
os.wait()
"""

CLOSED_BEFORE_FORK = """
import os, sys
from token_actor import TokenClient
from token_actor.errors import ClosedError

client = TokenClient(sys.argv[1], namespace=sys.argv[2])
client.record(1)
client.close()
if os.fork() == 0:
    try:
        client.record(1)
    except ClosedError:
        os._exit(0)
    os._exit(1)
sys.exit(os.wait()[1])
"""


class TestAFork:
    @pytest.fixture
    def place(self, server, valkey_fleet):
        valkey_fleet.actor()
        return [server.url, valkey_fleet.namespace]

    def test_parent_and_child_count_their_own_events_once(self, place):
        assert run_script(FORK, *place, **QUIET) == {"parent": 11, "child": 5}

    def test_parent_and_child_are_two_producers(self, place, valkey_fleet):
        run_script(FORK, *place, **QUIET)
        assert len({batch["p"] for batch in valkey_fleet.batches()}) == 2
        assert all(batch["q"] == 0 for batch in valkey_fleet.batches())

    def test_forks_under_load_neither_hang_nor_miscount(self, place):
        assert run_script(FORK_UNDER_LOAD, *place, **QUIET) == [0, 100, 0]

    def test_a_child_that_exits_flushes_its_own_events(self, place, valkey_fleet):
        run_script(FORKED_CHILD_EXITS, *place, **QUIET)
        assert valkey_fleet.client().analytics()["requests"] == 2

    def test_a_client_closed_before_the_fork_is_closed_after_it(self, place):
        assert run_script(CLOSED_BEFORE_FORK, *place, **QUIET) is None


NO_CLOSE = """
import sys
from token_actor import TokenClient

client = TokenClient(sys.argv[1], namespace=sys.argv[2], batch_age_ms=60_000)
for _ in range(10):
    client.record(1)
"""

DROPPED = """
import sys
from token_actor import TokenClient

def main():
    client = TokenClient(sys.argv[1], namespace=sys.argv[2], batch_age_ms=60_000)
    for _ in range(10):
        client.record(1)

main()
"""

UNREACHABLE = """
import sys
from token_actor import TokenClient, service

service._EXIT_TIMEOUT_S = 0.3
clients = [TokenClient("redis://127.0.0.1:9/0") for _ in range(3)]
for client in clients:
    client.record(1)
"""

WITH_MULTIPROCESSING = """
import multiprocessing, sys
from token_actor import TokenClient

def work(url, namespace):
    client = TokenClient(url, namespace=namespace, batch_age_ms=60_000)
    for _ in range(10):
        client.record(1)

def work_with(client):
    for _ in range(10):
        client.record(1)

if __name__ == "__main__":
    method, url, namespace = sys.argv[1:]
    context = multiprocessing.get_context(method)
    inherited = TokenClient(url, namespace=namespace, batch_age_ms=60_000)
    inherited.record(1)
    children = [context.Process(target=work, args=(url, namespace))]
    if method == "fork":
        children.append(context.Process(target=work_with, args=(inherited,)))
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
"""


class TestTheEndOfTheInterpreter:
    @pytest.fixture
    def place(self, server, valkey_fleet):
        valkey_fleet.actor()
        return [server.url, valkey_fleet.namespace]

    def test_what_was_recorded_without_a_close_is_flushed(self, place, valkey_fleet):
        run_script(NO_CLOSE, *place)
        assert valkey_fleet.client().analytics()["requests"] == 10

    def test_what_a_client_recorded_that_went_out_of_scope_is_flushed(self, place, valkey_fleet):
        run_script(DROPPED, *place)
        assert valkey_fleet.client().analytics()["requests"] == 10

    @pytest.mark.parametrize(("method", "requests"), [("fork", 21), ("spawn", 11), ("forkserver", 11)])
    def test_a_child_of_multiprocessing_flushes_what_it_recorded(self, tmp_path, place, valkey_fleet, method, requests):
        script = tmp_path / "script.py"
        script.write_text(WITH_MULTIPROCESSING)
        run_script_file(script, method, *place)
        assert valkey_fleet.client().analytics()["requests"] == requests

    def test_what_cannot_be_sent_is_reported_on_stderr_by_one_deadline(self):
        program = start_script(UNREACHABLE)
        start_s = time.monotonic()
        out, problems = program.communicate(timeout=30)
        assert time.monotonic() - start_s < 5
        assert (program.returncode, out) == (0, "")
        lines = problems.splitlines()
        reports = [line for line in lines if line.startswith("token-actor: 1 event not yet in the log: redis://")]
        assert len(reports) == 3
        assert all(line.endswith("; given up") for line in reports)


def run_script_file(path, *arguments):
    program = start_script(
        "import subprocess, sys; sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)",
        str(path),
        *arguments,
        PYTHONPATH=":".join(filter(None, sys.path)),
        **QUIET,
    )
    out, problems = program.communicate(timeout=60)
    assert (program.returncode, out, problems) == (0, "", "")


def test_a_server_that_lost_everything_is_served_and_asked_again(tmp_path, namespace):
    with EmbeddedServer(tmp_path) as server, Fleet.on(server.port, namespace) as fleet:
        fleet.actor().stop()
        fleet.actor()
        client = fleet.client(timeout_s=15.0)
        client.record(1)
        assert client.status()["epoch"] == 2
        server.kill()
        shutil.rmtree(tmp_path / "appendonlydir")
        server.start()
        client.record(2)
        status = client.status()
        assert (status["epoch"], status["events"], status["missing"]) == (2, 2, 0)  # what was counted stays counted


def test_a_server_that_is_killed_and_comes_back_costs_no_event_and_doubles_none(tmp_path, namespace):
    with EmbeddedServer(tmp_path, appendfsync="always") as server, Fleet.on(server.port, namespace) as fleet:
        fleet.actor()
        client = fleet.client(timeout_s=15.0, batch_events_max=10)
        for turn in range(1, 4):
            for _ in range(100):
                client.record(1)
            if turn == 2:
                client.flush()
            server.kill()
            for _ in range(50):
                client.record(1)
            server.start()
            assert client.analytics()["requests"] == 150 * turn
        assert client.status()["missing"] == 0
        assert client.books()["differences"] == []


def test_an_unread_question_is_dropped_when_ten_thousand_newer_ones_wait(memory_fleet):
    connection = memory_fleet.connect()
    question = Question(request_id="1", client="c", kind="status").encode()
    connection.write([Append(key=memory_fleet.keys().ask, fields=[b"q", question])] * 10_500)
    client = memory_fleet.client(timeout_s=0.1)
    memory_fleet.actor().stop()
    connection.write([Delete(keys=[memory_fleet.keys().ask])])
    connection.write([Append(key=memory_fleet.keys().ask, fields=[b"q", question])] * 10_500)
    with pytest.raises(ActorUnavailable):
        client.status()
    assert connection.stream_state(memory_fleet.keys().ask).length == 10_000


def test_many_short_lived_clients_leave_no_thread(memory_fleet):
    before = threading.active_count()
    for _ in range(50):
        with memory_fleet.client() as client:
            client.record(1)
    assert threading.active_count() == before
    assert sum(batch["n"] for batch in memory_fleet.batches()) == 50


def test_a_full_buffer_and_a_closed_client_are_told_apart(memory_fleet):
    client = memory_fleet.client(buffer_events_max=1)
    memory_fleet.go_away()
    client.record(1)
    with pytest.raises(BufferFull):
        client.record(1)
    with pytest.raises(LogUnavailable):
        client.close(0)
    with pytest.raises(ClosedError):
        client.record(1)


def test_a_client_that_never_recorded_has_no_thread(memory_fleet):
    memory_fleet.actor()
    client = memory_fleet.client()
    client.analytics()
    assert client._engine._sender._thread is None
    assert elapsed_s(client.close) < SLACK_S
