"""At most one actor acts for a partition, under an epoch that only grows."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing

import pytest
import redis

from tests.actor.conftest import Recorder, Stage
from tests.client.harness import SLACK_S, Fleet, start_script, wait_until
from token_actor.actor.leadership import Leadership
from token_actor.embedded import EmbeddedServer
from token_actor.errors import LeadershipLost, ServerRefused, ServerUnavailable
from token_actor.transport.memory import MemoryServer
from token_actor.transport.ports import Append, Delete, Increment, Put
from token_actor.transport.redis import RedisConnector
from token_actor.wire.keys import Keys

LONG_MS = 60_000


@pytest.fixture
def candidate(stage):
    """Return a function that makes candidates for the lease."""

    def make(name, connection=None, lease_ms=LONG_MS):
        return Leadership(connection or stage.connect(), stage.keys, holder=name, lease_ms=lease_ms)

    return make


def outlasts(watcher, lease_ms, since_ms=0):
    """Let a watcher look at the lease for as long as it runs; return when it got it, ``None`` if it did not."""
    for ticks_ms in range(since_ms, since_ms + 2 * lease_ms, lease_ms // 10):
        if watcher.contend(ticks_ms):
            return ticks_ms - since_ms
    return None


class TestTheLease:
    def test_the_first_one_takes_it_under_epoch_one(self, stage, candidate):
        first = candidate("a")
        assert first.contend(0) is True
        assert first.epoch == 1
        assert stage.connection.get(stage.keys.leader) == b"1:a"

    def test_it_has_a_time_to_live_on_the_server(self, stage, candidate):
        candidate("a").contend(0)
        assert stage.connection.expires_at_ms(stage.keys.leader) is not None

    def test_while_it_is_held_nobody_else_gets_it(self, stage, candidate):
        candidate("a").contend(0)
        second = candidate("b")
        assert second.contend(0) is False
        assert second.epoch == 0
        assert stage.connection.get(stage.keys.leader) == b"1:a"

    def test_who_stands_by_uses_up_no_epoch(self, stage, candidate):
        candidate("a").contend(0)
        for _ in range(5):
            candidate("b").contend(0)
        assert stage.connection.get(stage.keys.epoch) == b"1"

    def test_once_it_is_given_back_the_next_one_takes_it_at_once(self, stage, candidate):
        first, second = candidate("a"), candidate("b")
        first.contend(0)
        second.contend(0)
        first.release()
        assert first.epoch == 0
        assert stage.connection.get(stage.keys.leader) == b"1:"
        assert second.contend(0) is True
        assert second.epoch == 2

    def test_who_gave_it_back_may_take_it_again(self, candidate):
        first = candidate("a")
        first.contend(0)
        first.release()
        assert first.contend(0) is True
        assert first.epoch == 2

    def test_who_was_overtaken_learns_of_it_and_has_no_epoch_any_more(self, stage, candidate):
        first = candidate("a")
        first.contend(0)
        stage.connection.write([Increment(key=stage.keys.epoch), Put(key=stage.keys.leader, value=b"2:b")])
        assert first.renew() is False
        assert first.epoch == 0

    def test_so_does_one_whose_place_is_empty_again_since(self, stage, candidate):
        first = candidate("a")
        first.contend(0)
        stage.connection.write([Increment(key=stage.keys.epoch), Delete(keys=[stage.keys.leader])])
        assert first.renew() is False
        assert stage.connection.get(stage.keys.leader) is None

    def test_who_was_overtaken_neither_renews_nor_gives_back_what_is_not_his(self, stage, candidate):
        first = candidate("a")
        first.contend(0)
        stage.connection.write([Put(key=stage.keys.leader, value=b"2:b")])
        first.release()
        assert stage.connection.get(stage.keys.leader) == b"2:b"

    def test_the_same_holder_under_another_epoch_is_somebody_else(self, stage, candidate):
        first = candidate("a")
        first.contend(0)
        stage.connection.write([Put(key=stage.keys.leader, value=b"7:a")])
        assert first.renew() is False

    def test_giving_back_nothing_is_fine(self, stage, candidate):
        candidate("a").release()
        assert stage.connection.get(stage.keys.leader) is None

    def test_of_many_at_once_one_gets_it(self, stage, candidate):
        candidates = [candidate(f"c{n}") for n in range(10)]
        outcomes = []
        ready = threading.Barrier(10)

        def try_it(one):
            ready.wait()
            outcomes.append(one.contend(0))

        threads = [threading.Thread(target=try_it, args=(one,)) for one in candidates]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == [False] * 9 + [True]
        (leader,) = [one for one in candidates if one.epoch]
        assert stage.connection.get(stage.keys.leader) == f"{leader.epoch}:{leader._holder}".encode()

    def test_whether_it_is_free_can_be_asked_without_taking_it(self, stage, candidate):
        first, second = candidate("a"), candidate("b")
        free = [second.is_free(0)]
        first.contend(0)
        free.append(second.is_free(0))
        first.release()
        assert [*free, second.is_free(0)] == [True, False, True]
        assert stage.connection.get(stage.keys.leader) == b"1:"

    @pytest.mark.parametrize("value", [b"", b"nonsense", b"x:b", b"-1:b", b"7:somebody:b"])
    def test_a_lease_that_is_none_of_ours_is_somebody_elses_until_it_was_silent_for_long(self, stage, candidate, value):
        stage.connection.write([Put(key=stage.keys.leader, value=value)])
        assert outlasts(candidate("b", lease_ms=1_000), 1_000) == 1_000


class TestTheWatcher:
    def test_a_silent_leader_is_overtaken_after_the_lease_by_the_watchers_clock(self, candidate):
        candidate("a", lease_ms=1_000).contend(0)
        assert outlasts(candidate("b", lease_ms=1_000), 1_000, since_ms=70_000) == 1_000

    def test_one_that_renews_is_not_however_long_it_is_watched(self, candidate):
        first, second = candidate("a"), candidate("b", lease_ms=1_000)
        first.contend(0)
        for ticks_ms in range(0, 20_000, 100):
            first._lease_ms += 1  # as if a millisecond had passed on the server
            first.renew()
            assert second.contend(ticks_ms) is False

    def test_a_watcher_that_was_paused_does_not_take_over_at_once(self, candidate):
        first, second = candidate("a", lease_ms=1_000), candidate("b", lease_ms=1_000)
        first.contend(0)
        second.contend(0)
        assert [second.contend(ticks_ms) for ticks_ms in (9_000, 9_100, 9_600, 9_800)] == [False] * 4
        assert second.contend(10_000) is True

    def test_a_lease_that_went_away_is_waited_out_too(self, stage, candidate):
        first, second = candidate("a", lease_ms=1_000), candidate("b", lease_ms=1_000)
        first.contend(0)
        second.contend(0)
        stage.connection.write([Delete(keys=[stage.keys.leader])])
        assert outlasts(second, 1_000) == 1_000

    def test_a_lease_that_came_back_counts_as_a_sign_of_life(self, stage, candidate):
        first, second = candidate("a", lease_ms=1_000), candidate("b", lease_ms=1_000)
        first.contend(0)
        for ticks_ms in range(0, 1_000, 100):
            second.contend(ticks_ms)
        stage.connection.write([Delete(keys=[stage.keys.leader])])
        first._lease_ms = 5_000
        assert first.renew() is True
        assert second.contend(1_000) is False
        assert outlasts(second, 1_000, since_ms=1_000) == 1_000

    def test_another_leader_is_watched_from_the_beginning(self, stage, candidate):
        first, second = candidate("a", lease_ms=1_000), candidate("b", lease_ms=1_000)
        first.contend(0)
        for ticks_ms in range(0, 1_000, 100):
            second.contend(ticks_ms)
        stage.connection.write([Put(key=stage.keys.leader, value=b"2:c")])
        assert outlasts(second, 1_000, since_ms=1_000) == 1_000

    def test_a_key_of_another_type_is_refused_and_no_reason_to_lead(self, stage, candidate):
        stage.connection.write([Append(key=stage.keys.leader, fields=[b"a", b"b"])])
        watcher = candidate("a")
        with pytest.raises(ServerRefused, match="WRONGTYPE"):
            watcher.contend(0)
        assert watcher.epoch == 0


class TestEpochs:
    def test_they_stay_above_the_newest_snapshot_when_the_counter_was_lost(self, stage, candidate):
        stage.connection.write([Append(key=stage.keys.snapshots, fields=[b"a", b"b"], entry_id=b"41-3")])
        leader = candidate("a")
        leader.contend(0)
        assert leader.epoch == 42
        assert stage.connection.get(stage.keys.epoch) == b"42"

    def test_they_stay_above_those_a_watcher_has_seen_when_the_server_lost_everything(self, stage, candidate):
        stage.connection.write([Put(key=stage.keys.epoch, value=b"6"), Put(key=stage.keys.leader, value=b"6:")])
        candidate("a", lease_ms=1_000).contend(0)
        second = candidate("b", lease_ms=1_000)
        second.contend(0)
        stage.connection.write([Delete(keys=[stage.keys.leader, stage.keys.epoch])])
        assert outlasts(second, 1_000) == 1_000
        assert second.epoch == 8

    def test_a_leader_writes_lease_and_counter_again_when_the_server_lost_everything(self, stage, candidate):
        stage.connection.write([Put(key=stage.keys.epoch, value=b"6"), Put(key=stage.keys.leader, value=b"6:")])
        leader = candidate("a")
        leader.contend(0)
        stage.connection.write([Delete(keys=[stage.keys.leader, stage.keys.epoch])])
        assert leader.renew() is True
        assert stage.connection.get(stage.keys.leader) == b"7:a"
        assert stage.connection.get(stage.keys.epoch) == b"7"
        assert stage.connection.expires_at_ms(stage.keys.leader) is not None

    def test_a_counter_that_is_no_number_is_refused_and_no_reason_to_lead(self, stage, candidate):
        stage.connection.write([Put(key=stage.keys.epoch, value=b"many"), Put(key=stage.keys.leader, value=b"1:")])
        watcher = candidate("a")
        with pytest.raises(ServerRefused, match="not an integer"):
            watcher.contend(0)
        assert watcher.epoch == 0


class TestTheFence:
    def test_a_leader_writes(self, stage, candidate):
        leader = candidate("a")
        leader.contend(0)
        assert leader.write([Increment(key=stage.keys.chunk(b"1-1", 0))]) == [1]

    def test_a_leader_of_the_past_writes_nothing(self, stage, candidate):
        leader = candidate("a")
        leader.contend(0)
        stage.connection.write([Increment(key=stage.keys.epoch), Put(key=stage.keys.leader, value=b"2:b")])
        with pytest.raises(LeadershipLost):
            leader.write([Increment(key=stage.keys.chunk(b"1-1", 0))])
        assert leader.epoch == 0
        assert stage.connection.get(stage.keys.chunk(b"1-1", 0)) is None

    def test_a_leader_whose_lease_went_away_writes_nothing_but_that_at_first(self, stage, candidate):
        leader = candidate("a")
        leader.contend(0)
        stage.connection.write([Delete(keys=[stage.keys.leader])])
        with pytest.raises(ServerUnavailable, match="vanished"):
            leader.write([Increment(key=stage.keys.chunk(b"1-1", 0))])
        assert stage.connection.get(stage.keys.leader) == b"1:a"
        assert leader.write([Increment(key=stage.keys.chunk(b"1-1", 0))]) == [1]

    def test_one_overtaken_between_the_two_writes_nothing(self, stage, candidate):
        leader = candidate("a")
        leader.contend(0)
        stage.connection.write([Delete(keys=[stage.keys.leader])])
        overtake = lambda: stage.connection.write([Put(key=stage.keys.leader, value=b"2:b")])  # noqa: E731
        leader._connection = Interrupted(leader._connection, call_4=overtake)
        with pytest.raises(LeadershipLost):
            leader.write([Increment(key=stage.keys.chunk(b"1-1", 0))])
        assert stage.connection.get(stage.keys.chunk(b"1-1", 0)) is None

    def test_one_overtaken_while_it_writes_its_lease_again_is_overtaken(self, stage, candidate):
        leader = candidate("a")
        leader.contend(0)
        stage.connection.write([Delete(keys=[stage.keys.leader])])
        overtake = lambda: stage.connection.write([Put(key=stage.keys.leader, value=b"2:b")])  # noqa: E731
        leader._connection = Interrupted(leader._connection, call_3=overtake)
        assert leader.renew() is False
        assert leader.epoch == 0


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
    CLAIM = "call_5"  # after looks at the lease and the counter, an epoch drawn, and a look at the snapshots

    def test_who_is_second_by_a_moment_does_not_get_it(self, stage, candidate):
        claim = [Increment(key=stage.keys.epoch), Put(key=stage.keys.leader, value=b"2:b")]
        late = candidate("a", Interrupted(stage.connect(), **{self.CLAIM: lambda: stage.connection.write(claim)}))
        assert late.contend(0) is False
        assert late.epoch == 0
        assert stage.connection.get(stage.keys.leader) == b"2:b"

    def test_who_was_held_up_for_a_whole_reign_of_another_leads_above_its_epoch(self, stage, candidate):
        def reign():
            stage.connection.write([Increment(key=stage.keys.epoch)])

        late = candidate("a", Interrupted(stage.connect(), **{self.CLAIM: reign}))
        assert late.contend(0) is True
        assert late.epoch == 3
        assert stage.connection.get(stage.keys.leader) == b"3:a"
        assert stage.connection.get(stage.keys.epoch) == b"3"
        assert late.renew() is True

    def test_a_lease_that_changed_hands_meanwhile_is_not_taken(self, stage, candidate):
        reign = [Increment(key=stage.keys.epoch), Put(key=stage.keys.leader, value=b"2:")]
        late = candidate("a", Interrupted(stage.connect(), **{self.CLAIM: lambda: stage.connection.write(reign)}))
        assert late.contend(0) is False
        assert late.contend(0) is True
        assert late.epoch == 3

    def test_epochs_that_others_drew_in_vain_are_passed_over(self, stage, candidate):
        draw = lambda: stage.connection.write([Increment(key=stage.keys.epoch)])  # noqa: E731
        late = candidate("a", Interrupted(stage.connect(), call_4=draw, call_7=draw))
        assert late.contend(0) is True
        assert stage.connection.get(stage.keys.epoch) == f"{late.epoch}".encode()

    def test_a_lost_reply_to_the_claim_is_no_loss_of_the_lease(self, stage, candidate):
        leader = candidate("a", LosesTheReply(stage.connect()))
        with pytest.raises(ServerUnavailable):
            leader.contend(0)
        assert leader.epoch == 0
        assert leader.contend(0) is True
        assert leader.epoch == 1

    def test_a_claim_that_was_lost_on_the_way_leads_nobody(self, stage, candidate):
        connection = Recorder(stage.connect())
        connection.fail["write_if"] = [ServerUnavailable("gone")]
        leader = candidate("a", connection, lease_ms=1_000)
        with pytest.raises(ServerUnavailable):
            leader.contend(0)
        assert leader.epoch == 0
        assert outlasts(leader, 1_000) == 1_000  # somebody has drawn an epoch, and may lead
        assert leader.epoch == 2

    def test_after_a_lost_reply_and_the_reign_of_another_it_leads_above_that(self, stage, candidate):
        leader = candidate("a", LosesTheReply(stage.connect()))
        with pytest.raises(ServerUnavailable):
            leader.contend(0)
        stage.connection.write([Put(key=stage.keys.epoch, value=b"5")])
        assert leader.contend(0) is True
        assert leader.epoch == 6
        assert stage.connection.get(stage.keys.leader) == b"6:a"

    @pytest.mark.parametrize("operation", [Increment, Put])
    def test_a_server_that_refuses_is_raised(self, stage, candidate, operation):
        class Refuses(Recorder):
            def write(self, operations):
                if any(isinstance(each, operation) for each in operations):
                    return [ServerRefused("OOM no memory")]
                return stage.connection.write(operations)

            def write_if(self, guard, holds, operations):
                return self.write(operations)

        leader = candidate("a", Refuses(stage.connect()))
        with pytest.raises(ServerRefused):
            leader.contend(0)
        assert leader.epoch == 0


class LosesTheReply(Recorder):
    """A connection that loses the reply to a guarded write, once."""

    lost = False

    def write_if(self, *arguments):
        outcomes = self._connection.write_if(*arguments)
        if not self.lost:
            self.lost = True
            raise ServerUnavailable("gone")
        return outcomes


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
        first = fleet.actor(lease_ms=10_000)
        client = fleet.client(timeout_s=20.0)
        client.record(1)
        assert client.status()["holder"] == "actor-1"
        fleet.actor(lease_ms=10_000)
        start_s = time.monotonic()
        first.stop()
        client.record(2)
        status = client.status()
        assert time.monotonic() - start_s < 2 * SLACK_S + 2
        assert (status["epoch"], status["events"], status["holder"]) == (2, 2, "actor-2")

    def test_a_leader_whose_lease_is_gone_stops_acting_and_stands_by(self, fleet):
        fleet.actor(lease_ms=200)
        client = fleet.client(timeout_s=20.0)
        client.record(1)
        assert client.status()["epoch"] == 1
        connection = fleet.connect()
        connection.write([Increment(key=fleet.keys().epoch)])
        connection.write([Put(key=fleet.keys().leader, value=b"2:somebody", ttl_ms=700)])
        client.record(2)
        wait_until(lambda: client.status()["epoch"] == 3)
        status = client.status()
        assert (status["events"], status["duplicates"]) == (2, 0)


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


class TestAFullServer:
    @pytest.fixture
    def full(self, tmp_path, namespace):
        with EmbeddedServer(tmp_path) as server, closing(RedisConnector(server.url).connect()) as connection:
            stage = Stage(RedisConnector(server.url), namespace)
            admin = redis.Redis(port=server.port)
            yield stage, connection, lambda full: admin.config_set("maxmemory", 1_000_000 if full else 0)
            admin.close()
            stage.close()

    def test_the_lease_is_kept_on_it_and_given_back(self, full):
        stage, connection, fill = full
        first = Leadership(connection, stage.keys, holder="a", lease_ms=LONG_MS)
        second = Leadership(stage.connection, stage.keys, holder="b", lease_ms=1_000)
        first.contend(0)
        fill(True)
        assert first.renew() is True
        first.release()
        assert connection.get(stage.keys.leader) is None
        with pytest.raises(ServerRefused, match="OOM"):
            outlasts(second, 1_000)
        fill(False)
        assert second.contend(1_000) is True  # at once: it has been missed for long enough
        assert second.epoch == 2

    def test_a_lease_that_went_away_on_it_is_written_once_there_is_room(self, full):
        stage, connection, fill = full
        leader = Leadership(connection, stage.keys, holder="a", lease_ms=LONG_MS)
        leader.contend(0)
        fill(True)
        connection.write([Delete(keys=[stage.keys.leader])])
        with pytest.raises(ServerRefused, match="OOM"):
            leader.renew()
        fill(False)
        assert leader.renew() is True
        assert leader.epoch == 1


class TestAServerWhoseClockJumps:
    @pytest.fixture
    def clock(self):
        return {"now_ms": 1_000_000}

    @pytest.fixture
    def both(self, namespace, clock):
        server = MemoryServer(clock_ms=lambda: clock["now_ms"])
        return [Leadership(server.connect(), Keys(namespace), holder=name, lease_ms=2_000) for name in "ab"]

    def test_a_lease_that_ran_out_by_its_clock_alone_is_not_taken(self, both, clock):
        first, second = both
        first.contend(0)
        assert second.contend(0) is False
        clock["now_ms"] += 60_000
        assert second.contend(100) is False

    def test_the_leader_writes_it_again(self, both, clock):
        first, second = both
        first.contend(0)
        second.contend(0)
        clock["now_ms"] += 60_000
        assert first.renew() is True
        assert first.epoch == 1
        assert [second.contend(ticks_ms) for ticks_ms in range(0, 1_900, 100)] == [False] * 19

    @pytest.mark.parametrize("jump_ms", [-3_600_000, 3_600_000])
    def test_no_jump_moves_the_lead(self, both, clock, jump_ms):
        first, second = both
        first.contend(0)
        for ticks_ms in range(0, 10_000, 100):
            clock["now_ms"] += 100 + (jump_ms if ticks_ms == 5_000 else 0)
            if ticks_ms % 500 == 0:
                assert first.renew() is True
            assert second.contend(ticks_ms) is False

    def test_a_dead_leader_is_overtaken_although_the_clock_stands_still(self, both):
        first, second = both
        first.contend(0)
        assert outlasts(second, 2_000) == 2_000

    def test_a_dead_leader_is_overtaken_although_the_clock_went_back(self, both, clock):
        first, second = both
        first.contend(0)
        clock["now_ms"] -= 3_600_000
        assert outlasts(second, 2_000) == 2_000
