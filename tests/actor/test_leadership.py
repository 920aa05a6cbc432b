"""At most one actor acts for a partition, under an epoch that only grows."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from tests.actor.conftest import Recorder
from tests.client.harness import SLACK_S, Fleet, start_script, wait_until
from token_actor.actor.leadership import Leadership
from token_actor.errors import ServerRefused, ServerUnavailable
from token_actor.transport.memory import MemoryServer
from token_actor.transport.ports import Delete, Increment, Put
from token_actor.wire.keys import Keys

LONG_MS = 60_000


@pytest.fixture
def candidate(stage):
    """Return a function that makes candidates for the lease."""
    return lambda name, connection=None: Leadership(connection or stage.connect(), stage.keys, holder=name)


class TestTheLease:
    def test_the_first_one_takes_it_under_epoch_one(self, stage, candidate):
        first = candidate("a")
        assert first.acquire(LONG_MS) is True
        assert first.epoch == 1
        assert stage.connection.get(stage.keys.leader) == b"1:a"

    def test_while_it_is_held_nobody_else_gets_it(self, stage, candidate):
        candidate("a").acquire(LONG_MS)
        second = candidate("b")
        assert second.acquire(LONG_MS) is False
        assert second.epoch == 0
        assert stage.connection.get(stage.keys.leader) == b"1:a"

    def test_who_stands_by_uses_up_no_epoch(self, stage, candidate):
        candidate("a").acquire(LONG_MS)
        for _ in range(5):
            candidate("b").acquire(LONG_MS)
        assert stage.connection.get(stage.keys.epoch) == b"1"

    def test_once_it_is_given_back_the_next_one_takes_it_at_once(self, candidate):
        first, second = candidate("a"), candidate("b")
        first.acquire(LONG_MS)
        first.release()
        assert first.epoch == 0
        assert second.acquire(LONG_MS) is True
        assert second.epoch == 2

    def test_it_runs_out_by_itself(self, candidate):
        candidate("a").acquire(30)
        second = candidate("b")
        wait_until(lambda: second.acquire(LONG_MS))
        assert second.epoch == 2

    def test_renewing_sets_how_long_it_runs_from_now(self, candidate):
        first, second = candidate("a"), candidate("b")
        first.acquire(LONG_MS)
        first.renew(30)
        wait_until(lambda: second.acquire(LONG_MS))

    def test_who_lost_it_learns_of_it_and_has_no_epoch_any_more(self, stage, candidate):
        first = candidate("a")
        first.acquire(LONG_MS)
        stage.connection.write([Delete(keys=[stage.keys.leader])])
        assert first.renew(LONG_MS) is False
        assert first.epoch == 0

    def test_who_was_overtaken_neither_renews_nor_gives_back_what_is_not_his(self, stage, candidate):
        first = candidate("a")
        first.acquire(LONG_MS)
        stage.connection.write([Put(key=stage.keys.leader, value=b"2:b")])
        first.release()
        assert stage.connection.get(stage.keys.leader) == b"2:b"

    def test_the_same_holder_under_another_epoch_is_somebody_else(self, stage, candidate):
        first = candidate("a")
        first.acquire(LONG_MS)
        stage.connection.write([Put(key=stage.keys.leader, value=b"7:a")])
        assert first.renew(LONG_MS) is False

    def test_giving_back_nothing_is_fine(self, stage, candidate):
        candidate("a").release()
        assert stage.connection.get(stage.keys.leader) is None

    def test_of_many_at_once_one_gets_it(self, stage, candidate):
        candidates = [candidate(f"c{n}") for n in range(10)]
        outcomes = []
        ready = threading.Barrier(10)

        def try_it(one):
            ready.wait()
            outcomes.append(one.acquire(LONG_MS))

        threads = [threading.Thread(target=try_it, args=(one,)) for one in candidates]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == [False] * 9 + [True]
        (leader,) = [one for one in candidates if one.epoch]
        assert stage.connection.get(stage.keys.leader) == f"{leader.epoch}:{leader._holder}".encode()


class Interrupted(Recorder):
    """A connection on which something happens between two calls: ``before`` maps the number of a call to it."""

    def __init__(self, connection, **before):
        super().__init__(connection)
        self._before = before

    def __getattr__(self, name):
        call = super().__getattr__(name)

        def interrupted(*arguments, **options):
            self._before.pop(f"call_{len(self.calls) + 1}", lambda: None)()
            return call(*arguments, **options)

        return interrupted


class TestRaces:
    def test_who_is_second_by_a_moment_does_not_get_it(self, stage, candidate):
        other = candidate("b")
        late = candidate("a", Interrupted(stage.connect(), call_3=lambda: other.acquire(LONG_MS)))
        assert late.acquire(LONG_MS) is False
        assert late.epoch == 0
        assert stage.connection.get(stage.keys.leader) == b"2:b"

    def test_who_was_held_up_for_a_whole_reign_of_another_leads_above_its_epoch(self, stage, candidate):
        other = candidate("b")

        def reign():
            other.acquire(LONG_MS)
            other.release()

        late = candidate("a", Interrupted(stage.connect(), call_3=reign))
        assert late.acquire(LONG_MS) is True
        assert late.epoch > 2
        assert stage.connection.get(stage.keys.leader) == f"{late.epoch}:a".encode()
        assert stage.connection.get(stage.keys.epoch) == f"{late.epoch}".encode()
        assert late.renew(LONG_MS) is True

    def test_epochs_that_others_drew_in_vain_are_passed_over(self, stage, candidate):
        draw = lambda: stage.connection.write([Increment(key=stage.keys.epoch)])  # noqa: E731
        late = candidate("a", Interrupted(stage.connect(), call_3=draw, call_5=draw))
        assert late.acquire(LONG_MS) is True
        assert stage.connection.get(stage.keys.epoch) == f"{late.epoch}".encode()

    def test_a_lost_reply_to_the_claim_is_no_loss_of_the_lease(self, stage, candidate):
        class LosesTheReply(Recorder):
            def write(self, operations):
                outcomes = stage.connection.write(operations)
                if any(isinstance(operation, Put) for operation in operations):
                    raise ServerUnavailable("gone")
                return outcomes

        leader = candidate("a", LosesTheReply(stage.connect()))
        with pytest.raises(ServerUnavailable):
            leader.acquire(LONG_MS)
        assert leader.acquire(LONG_MS) is True
        assert leader.epoch == 1

    @pytest.mark.parametrize("operation", [Increment, Put])
    def test_a_server_that_refuses_is_raised(self, stage, candidate, operation):
        class Refuses(Recorder):
            def write(self, operations):
                if any(isinstance(each, operation) for each in operations):
                    return [ServerRefused("OOM no memory")]
                return stage.connection.write(operations)

        with pytest.raises(ServerRefused):
            candidate("a", Refuses(stage.connect())).acquire(LONG_MS)


@pytest.fixture(params=["memory", "valkey"])
def fleet(request, namespace):
    if request.param == "memory":
        made = Fleet.in_memory(namespace)
    else:
        made = Fleet.on(request.getfixturevalue("server").port, namespace)
    with made as fleet:
        yield fleet


class TestTwoActors:
    def test_only_one_of_them_leads(self, fleet):
        actors = [fleet.actor() for _ in range(3)]
        client = fleet.client()
        leaders = set()
        for _ in range(20):
            client.record(1)
            status = client.status()
            leaders.add((status["holder"], status["epoch"]))
        assert len(leaders) == 1
        assert status["events"] == 20
        assert all(actor.running for actor in actors)

    def test_the_other_one_takes_over_at_once_when_the_first_stops(self, fleet):
        first = fleet.actor(lease_ms=60_000)
        client = fleet.client(timeout_s=20.0)
        client.record(1)
        client.flush()
        fleet.actor(lease_ms=400)
        wait_until(lambda: client.status()["epoch"] == 1)
        start_s = time.monotonic()
        first.stop()
        client.record(2)
        status = client.status()
        assert time.monotonic() - start_s < 0.4 + 2 * SLACK_S
        assert (status["epoch"], status["events"], status["holder"]) == (2, 2, "actor-2")

    def test_a_leader_whose_lease_is_gone_stops_acting_and_stands_by(self, fleet):
        fleet.actor(lease_ms=200)
        client = fleet.client(timeout_s=20.0)
        client.record(1)
        assert client.status()["epoch"] == 1
        connection = fleet.connect()
        connection.write([Put(key=fleet.keys().leader, value=b"2:somebody", ttl_ms=700)])
        connection.write([Increment(key=fleet.keys().epoch)])
        wait_until(lambda: connection.get(fleet.keys().leader) is None)
        client.record(2)
        status = client.status()
        assert (status["epoch"], status["events"], status["duplicates"]) == (3, 2, 0)


ACTOR = """
import sys, threading
from token_actor.actor.settings import ActorSettings
from token_actor.service import connector_of, run_actor
from token_actor.wire.keys import Keys

settings = ActorSettings(keys=Keys(sys.argv[2]), holder="process", lease_ms=300, block_ms=20)
run_actor(connector_of(sys.argv[1]), settings, threading.Event())
"""


class TestProcesses:
    @pytest.fixture
    def process(self, server, namespace):
        process = start_script(ACTOR, server.url, namespace)
        yield process
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()

    @pytest.fixture
    def fleet(self, server, namespace):
        with Fleet.on(server.port, namespace) as fleet:
            yield fleet

    def test_when_the_leader_is_killed_the_other_takes_over_when_the_lease_runs_out(self, process, fleet):
        client = fleet.client(timeout_s=20.0)
        for n in range(100):
            client.record(n)
        assert client.status()["holder"] == "process"
        fleet.actor(lease_ms=300)
        killed_s = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        client.record(1)
        status = client.status()
        assert time.monotonic() - killed_s < 3.0
        assert (status["holder"], status["epoch"], status["events"], status["duplicates"]) == ("actor-1", 2, 101, 0)
        assert client.analytics()["input_tokens"] == 4_951

    def test_a_paused_leader_that_wakes_stands_by_and_changes_nothing(self, process, fleet):
        client = fleet.client(timeout_s=20.0)
        client.record(1)
        assert client.status()["holder"] == "process"
        other = fleet.actor(lease_ms=300)
        os.kill(process.pid, signal.SIGSTOP)
        client.record(2)
        assert client.status()["holder"] == "actor-1"
        os.kill(process.pid, signal.SIGCONT)
        for n in range(20):
            client.record(n)
            assert client.status()["epoch"] == 2
        other.stop()
        client.record(4)
        status = client.status()
        assert (status["holder"], status["epoch"], status["events"], status["missing"]) == ("process", 3, 23, 0)
        assert client.analytics()["input_tokens"] == 1 + 2 + 190 + 4


class TestByTheMillisecond:
    @pytest.fixture
    def clock(self):
        return {"now_ms": 1_000_000}

    @pytest.fixture
    def both(self, namespace, clock):
        server = MemoryServer(clock_ms=lambda: clock["now_ms"])
        return [Leadership(server.connect(), Keys(namespace), holder=name) for name in "ab"]

    def test_a_lease_runs_out_after_its_time(self, both, clock):
        first, second = both
        first.acquire(2_000)
        clock["now_ms"] += 2_000
        assert second.acquire(2_000) is False
        clock["now_ms"] += 1
        assert second.acquire(2_000) is True

    def test_renewed_it_does_not_run_out(self, both, clock):
        first, second = both
        first.acquire(2_000)
        for _ in range(10):
            clock["now_ms"] += 1_999
            assert first.renew(2_000) is True
            assert second.acquire(2_000) is False
        clock["now_ms"] += 2_001
        assert first.renew(2_000) is False
        assert second.acquire(2_000) is True
