"""What is recorded comes to the log: later when it must, never twice, and never not at all."""

from __future__ import annotations

import itertools
import logging
import threading
import time

import pytest

from tests.client.harness import SLACK_S, Gate, elapsed_s, wait_until
from token_actor.client.deadline import Deadline
from token_actor.client.engine import Engine
from token_actor.client.settings import ClientSettings
from token_actor.client.sync import SyncFace
from token_actor.errors import BufferFull, ClosedError, LogUnavailable, ServerRefused, SetupError
from token_actor.transport.memory import MemoryConnection
from token_actor.transport.ports import Delete, Put, PutField
from token_actor.transport.redis import RedisConnector
from token_actor.wire.entries import log_ms_of
from token_actor.wire.keys import partition_of

LONG_MS = 60_000  # an age that no batch of a test reaches


def spans(batches):
    """Return the sequence numbers of batches as (first, behind the last), in the order of the numbers."""
    return sorted((batch["q"], batch["q"] + batch["n"]) for batch in batches)


class TestAnOutage:
    def test_record_returns_at_once_while_the_server_is_away(self, fleet):
        client = fleet.client()
        fleet.go_away()
        assert elapsed_s(lambda: [client.record(1) for _ in range(1_000)]) < 1.0
        assert client.pending == 1_000

    def test_what_was_recorded_in_an_outage_is_counted_once_after_it(self, fleet):
        fleet.actor()
        client = fleet.client(batch_events_max=10)
        client.record(7)
        client.flush()
        fleet.go_away()
        for _ in range(95):
            client.record(7)
        with pytest.raises(LogUnavailable):
            client.flush(0.05)
        fleet.come_back()
        client.flush()
        answer = client.analytics()
        assert (answer["requests"], answer["input_tokens"], answer["duplicates"]) == (96, 7 * 96, 0)

    def test_many_short_outages_lose_nothing_and_double_nothing(self, fleet):
        fleet.actor()
        client = fleet.client(batch_events_max=5, batch_age_ms=1)
        for _ in range(10):
            for _ in range(20):
                client.record(1)
            fleet.go_away()
            for _ in range(20):
                client.record(1)
            fleet.come_back()
            wait_until(lambda: client.pending < 20)
        client.flush()
        assert client.analytics()["requests"] == 400
        assert client.status()["missing"] == 0

    def test_a_flush_that_came_too_late_says_what_waits_and_keeps_it(self, fleet):
        client = fleet.client()
        fleet.go_away()
        for _ in range(3):
            client.record(1)
        with pytest.raises(LogUnavailable, match="^3 events not yet in the log: .*; kept and sent again$") as late:
            client.flush(0.1)
        assert (late.value.pending, late.value.timeout_s) == (3, 0.1)
        assert client.pending == 3

    def test_a_flush_ends_at_its_deadline(self, fleet):
        client = fleet.client()
        fleet.go_away()
        client.record(1)

        def late():
            with pytest.raises(LogUnavailable):
                client.flush(0.2)

        assert 0.2 <= elapsed_s(late) < 0.2 + SLACK_S

    def test_a_flush_of_nothing_needs_no_server(self, fleet):
        client = fleet.client()
        fleet.go_away()
        client.flush(0)
        assert client.pending == 0

    def test_an_outage_is_logged_once_and_not_with_every_attempt(self, memory_fleet, caplog):
        client = memory_fleet.client()
        memory_fleet.go_away()
        client.record(1)
        with pytest.raises(LogUnavailable):
            client.flush(0.4)  # attempts after 0, 50, 150 and 350 ms
        (line,) = caplog.records
        assert (line.name, line.levelno, line.action, line.pending) == (
            "token_actor.client", logging.WARNING, "send_failed", 1
        )  # fmt: skip

    def test_a_log_that_refuses_is_named_and_tried_again(self, fleet):
        connection = fleet.connect()
        connection.write([Put(key=fleet.keys().log, value=b"not a stream")])
        client = fleet.client()
        client.record(1)
        with pytest.raises(LogUnavailable, match="WRONGTYPE"):
            client.flush(0.1)
        connection.write([Delete(keys=[fleet.keys().log])])
        client.flush()
        assert spans(fleet.batches()) == [(0, 1)]


class TestTheBound:
    def test_a_full_buffer_refuses_the_next_event_and_says_how_many_wait(self, fleet):
        client = fleet.client(buffer_events_max=10)
        fleet.go_away()
        for _ in range(10):
            client.record(1)
        with pytest.raises(BufferFull, match="^10 events waiting for the log is the bound: .*not recorded$") as full:
            client.record(1)
        assert full.value.pending == 10
        assert client.pending == 10

    def test_a_refused_event_is_not_counted_and_all_others_are(self, fleet):
        fleet.actor()
        client = fleet.client(buffer_events_max=10)
        fleet.go_away()
        for _ in range(10):
            client.record(1)
        for _ in range(5):
            with pytest.raises(BufferFull):
                client.record(100)
        fleet.come_back()
        client.flush()
        client.record(1)
        assert client.analytics()["input_tokens"] == 11

    def test_the_reason_of_the_outage_is_in_the_refusal(self, fleet):
        client = fleet.client(buffer_events_max=1)
        fleet.go_away()
        client.record(1)
        with pytest.raises(LogUnavailable):
            client.flush(0.1)
        with pytest.raises(BufferFull, match="cannot be used for the moment"):
            client.record(1)


class TestBatches:
    def test_a_batch_goes_when_it_is_full(self, fleet):
        client = fleet.client(batch_events_max=10, batch_age_ms=LONG_MS)
        for _ in range(10):
            client.record(1)
        wait_until(lambda: client.pending == 0)
        assert spans(fleet.batches()) == [(0, 10)]

    def test_a_batch_goes_when_its_first_event_is_old_enough(self, fleet):
        client = fleet.client(batch_age_ms=50)
        recorded_ms = time.time() * 1000
        client.record(1)
        wait_until(lambda: client.pending == 0)
        ((entry_id, _),) = fleet.log()
        assert log_ms_of(entry_id) >= recorded_ms + 49

    def test_a_flush_does_not_wait_for_age_or_count(self, fleet):
        client = fleet.client(batch_age_ms=LONG_MS)
        client.record(1)
        client.flush()
        assert spans(fleet.batches()) == [(0, 1)]

    def test_events_recorded_while_another_flush_waits_go_at_once_too(self, fleet):
        client = fleet.client(batch_age_ms=LONG_MS)
        fleet.go_away()
        client.record(1)
        flushing = threading.Thread(target=client.flush, args=(10,))
        flushing.start()
        client.record(1)
        fleet.come_back()
        flushing.join()
        client.flush()
        assert spans(fleet.batches())[-1][1] == 2

    def test_many_events_are_cut_into_full_batches_and_a_rest(self, fleet):
        client = fleet.client(batch_events_max=10, batch_age_ms=LONG_MS)
        fleet.go_away()
        for _ in range(10):
            client.record(1)
        wait_until(lambda: client._engine._sender._delivery.failure)  # the sender has its hands full
        for _ in range(25):
            client.record(1)
        fleet.come_back()
        client.flush()
        assert spans(fleet.batches()) == [(0, 10), (10, 20), (20, 30), (30, 35)]

    def test_a_batch_that_is_too_large_is_split(self, fleet):
        fleet.actor()
        client = fleet.client(batch_events_max=1_000, batch_age_ms=LONG_MS)
        for n in range(1_000):
            client.record(1, message_id=f"{n:0256}")
        client.flush()
        batches = fleet.batches()
        assert len(batches) >= 4
        assert sum(batch["n"] for batch in batches) == 1_000
        assert client.analytics()["requests"] == 1_000
        assert client.status()["missing"] == 0

    def test_a_share_of_the_batches_is_sent_twice_on_demand(self, fleet):
        fleet.actor()
        client = fleet.client(resend_share=0.5, batch_events_max=10, batch_age_ms=LONG_MS)
        for _ in range(6):
            for _ in range(10):
                client.record(1)
            client.flush()
        assert [batch["q"] for batch in fleet.batches()] == [0, 0, 10, 20, 20, 30, 40, 40, 50]
        answer = client.analytics()
        assert (answer["requests"], answer["duplicates"]) == (60, 30)

    def test_each_client_is_a_producer_of_its_own(self, fleet):
        for client in (fleet.client(), fleet.client()):
            client.record(1)
            client.flush()
        assert len({batch["p"] for batch in fleet.batches()}) == 2
        assert spans(fleet.batches()) == [(0, 1), (0, 1)]

    def test_threads_share_one_sequence_without_a_hole(self, fleet):
        fleet.actor()
        client = fleet.client(batch_events_max=7)

        def work():
            for _ in range(250):
                client.record(1)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.analytics()["requests"] == 2_000
        found = spans(fleet.batches())
        assert found[0][0] == 0
        assert found[-1][1] == 2_000
        assert all(before[1] == after[0] for before, after in itertools.pairwise(found))


class TestALostReply:
    @pytest.fixture
    def gate(self, server):
        with Gate(server.port) as gate:
            yield gate

    @pytest.fixture
    def client(self, gate, namespace, valkey_fleet):
        valkey_fleet.actor()
        settings = ClientSettings(namespace=namespace, batch_events_max=10, batch_age_ms=LONG_MS)
        client = SyncFace(Engine(RedisConnector(gate.url), settings))
        yield client
        client.close()

    @pytest.mark.parametrize("reply_bytes", [1, 10, 35], ids=["before the first", "in the first", "in the second"])
    def test_a_batch_whose_reply_was_lost_is_sent_again_and_counted_once(self, gate, client, valkey_fleet, reply_bytes):
        client.record(1)
        client.flush()
        gate.hold_replies = True  # so that the three batches are written together
        client.record(1)
        flushing = threading.Thread(target=client.flush)
        flushing.start()
        wait_until(lambda: len(valkey_fleet.batches()) == 2)
        for _ in range(29):
            client.record(1)
        gate.reply_bytes_left = 22 + reply_bytes  # the reply to the second batch is one id of 22 bytes
        gate.release()
        wait_until(lambda: len(valkey_fleet.batches()) == 5)
        wait_until(lambda: gate.reply_bytes_left == 0)
        gate.reply_bytes_left = None
        flushing.join()
        client.flush()
        answer = client.analytics()
        assert (answer["requests"], answer["duplicates"]) == (31, 29)
        assert client.status()["missing"] == 0
        assert spans(valkey_fleet.batches()) == sorted([(0, 1), (1, 2), *[(2, 12), (12, 22), (22, 31)] * 2])

    def test_a_server_that_hangs_costs_time_and_no_event(self, gate, client):
        client.record(1)
        client.flush()
        gate.hold_replies = True
        client.record(1)
        with pytest.raises(LogUnavailable):
            client.flush(0.1)
        gate.release()
        client.flush()
        answer = client.analytics()
        assert (answer["requests"], answer["duplicates"]) == (2, 0)


class TestPartitions:
    def test_each_tenant_goes_to_the_log_of_its_partition(self, fleet):
        fleet.connect().write([PutField(key=fleet.keys().meta, field=b"partitions", value=b"2")])
        client = fleet.client(batch_events_max=10)
        tenants = [f"tenant{n}" for n in range(10)]
        for n in range(300):
            client.record(1, tenant=tenants[n % 10])
        client.flush()
        for partition in (0, 1):
            here = {tenant for tenant in tenants if partition_of(tenant, 2) == partition}
            batches = fleet.batches(partition)
            assert {key.split("\x1f")[0] for batch in batches for key in batch["k"]} == here
            found = spans(batches)
            assert found[0][0] == 0
            assert found[-1][1] == 30 * len(here)
            assert all(before[1] == after[0] for before, after in itertools.pairwise(found))

    def test_what_is_recorded_for_two_partitions_is_answered_by_two_actors(self, fleet):
        for partition in (0, 1):
            fleet.actor(partition, partitions=2)
        client = fleet.client()
        for n in range(100):
            client.record(1, tenant=f"tenant{n % 10}")
        assert [client.analytics(tenant=f"tenant{n}")["requests"] for n in range(10)] == [10] * 10

    def test_whoever_records_first_decides_for_one_partition(self, fleet):
        client = fleet.client()
        client.record(1)
        client.flush()
        assert fleet.connect().get_fields(fleet.keys().meta) == {b"partitions": b"1"}

    def test_an_actor_that_wants_more_partitions_than_there_are_is_told(self, fleet):
        client = fleet.client()
        client.record(1, tenant="b")
        client.flush()
        late = fleet.actor(1, partitions=2)
        late.join()
        error, late.error = late.error, None
        assert isinstance(error, SetupError)

    def test_a_question_only_reads_the_number_of_partitions(self, fleet):
        client = fleet.client(timeout_s=0.1)
        with pytest.raises(Exception, match="no actor has ever served"):
            client.analytics()
        assert fleet.connect().get_fields(fleet.keys().meta) == {}

    def test_a_number_that_cannot_be_written_down_is_tried_again(self, fleet):
        connection = fleet.connect()
        connection.write([Put(key=fleet.keys().meta, value=b"not a hash")])
        client = fleet.client()
        client.record(1)
        with pytest.raises(LogUnavailable, match="WRONGTYPE"):
            client.flush(0.1)
        connection.write([Delete(keys=[fleet.keys().meta])])
        client.flush()
        assert len(fleet.batches()) == 1

    def test_a_server_without_room_for_the_number_is_tried_again(self, memory_fleet, monkeypatch):
        refused = []
        write = MemoryConnection.write

        def full(connection, operations):
            if isinstance(operations[0], PutField) and len(refused) < 2:
                refused.append(ServerRefused("OOM command not allowed"))
                return refused[-1:]
            return write(connection, operations)

        monkeypatch.setattr(MemoryConnection, "write", full)
        client = memory_fleet.client()
        client.record(1)
        client.flush()
        assert len(refused) == 2
        assert len(memory_fleet.batches()) == 1


class TestTheEnd:
    def test_close_brings_everything_to_the_log(self, fleet):
        client = fleet.client(batch_age_ms=LONG_MS)
        for _ in range(100):
            client.record(1)
        client.close()
        assert spans(fleet.batches()) == [(0, 100)]

    def test_close_ends_the_thread(self, fleet):
        client = fleet.client()
        client.record(1)
        client.close()
        assert not client._engine._sender._thread.is_alive()

    def test_a_close_that_came_too_late_says_what_is_given_up(self, fleet):
        client = fleet.client()
        fleet.go_away()
        client.record(1)
        with pytest.raises(LogUnavailable, match="; given up$") as late:
            client.close(0.1)
        assert (late.value.pending, late.value.timeout_s) == (1, 0.1)

    def test_after_close_nothing_can_be_recorded(self, fleet):
        client = fleet.client()
        client.close()
        with pytest.raises(ClosedError):
            client.record(1)

    def test_while_a_close_waits_nothing_more_is_taken(self, fleet):
        client = fleet.client()
        fleet.go_away()
        client.record(1)
        closing = threading.Thread(target=client.close, args=(10,))
        closing.start()
        wait_until(lambda: client._engine._sender._closed)
        with pytest.raises(ClosedError):
            client.record(1)
        fleet.come_back()
        closing.join()
        assert spans(fleet.batches()) == [(0, 1)]

    def test_what_threads_record_during_a_close_is_refused_or_in_the_log(self, fleet):
        fleet.actor()
        for _ in range(20):
            client = fleet.client(batch_events_max=3, tenant="t")
            taken = []
            ready = threading.Barrier(5)

            def work(client=client, taken=taken, ready=ready):
                count = 0
                ready.wait()
                try:
                    while True:
                        client.record(1)
                        count += 1
                except ClosedError:
                    taken.append(count)

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            ready.wait()
            client.close()
            for thread in threads:
                thread.join()
            assert client.pending == 0
            found = spans(batch for batch in fleet.batches() if batch["p"] == client._engine._sender._delivery.producer)
            assert (found[-1][1] if found else 0) == sum(taken)

    def test_a_retired_sender_sends_what_it_has_and_ends(self, fleet):
        sender = fleet.engine(batch_age_ms=LONG_MS)._sender
        sender.put(_event())
        sender.retire()
        wait_until(lambda: not sender._thread.is_alive())
        assert spans(fleet.batches()) == [(0, 1)]

    def test_a_retired_sender_that_never_started_has_nothing_to_do(self, fleet):
        sender = fleet.engine()._sender
        sender.retire()
        assert sender._thread is None


class TestAFaultOfOurs:
    @pytest.fixture
    def broken(self, memory_fleet, monkeypatch):
        monkeypatch.setattr("token_actor.client.lanes.encode_batch", _fault)
        return memory_fleet.client(buffer_events_max=5)

    def test_a_fault_in_the_thread_ends_a_flush_at_once_and_is_its_reason(self, broken):
        broken.record(1)
        with pytest.raises(LogUnavailable, match="the sender failed: RuntimeError\\('fault'\\)"):
            broken.flush(30)

    def test_a_fault_in_the_thread_is_logged_with_its_trace(self, broken, caplog):
        broken.record(1)
        with pytest.raises(LogUnavailable):
            broken.flush(30)
        (line,) = caplog.records
        assert (line.levelno, line.action) == (logging.ERROR, "sender_failed")
        assert line.exc_info[0] is RuntimeError

    def test_after_a_fault_nothing_more_can_be_recorded_and_the_reason_is_said(self, broken):
        broken.record(1)
        with pytest.raises(LogUnavailable, match="; given up$"):
            broken.flush(30)
        with pytest.raises(
            LogUnavailable, match=r"the sender failed.* not recorded, and those before it \(1\) are given up"
        ) as ended:
            broken.record(1)
        assert ended.value.pending == 1

    def test_after_a_fault_closing_says_what_is_given_up(self, broken):
        broken.record(1)
        with pytest.raises(LogUnavailable, match="; given up$"):
            broken.close(30)

    def test_a_system_without_threads_refuses_the_event_and_not_the_next(self, memory_fleet, monkeypatch):
        client = memory_fleet.client()
        with monkeypatch.context() as patch:
            patch.setattr("threading.Thread.start", _fault)
            with pytest.raises(RuntimeError, match="fault"):
                client.record(1)
        assert client.pending == 0
        client.record(2)
        client.flush()
        assert spans(memory_fleet.batches()) == [(0, 1)]


def _event():
    from token_actor.client.recording import make_event

    return make_event({})


def _fault(*_args: object, **_kwargs: object) -> None:
    raise RuntimeError("fault")


def test_a_deadline_that_has_passed_fails_at_once_when_something_waits(memory_fleet):
    client = memory_fleet.client()
    memory_fleet.go_away()
    client.record(1)
    with pytest.raises(LogUnavailable):
        client._engine._sender.flush(Deadline(time.monotonic() - 1, 5.0))
