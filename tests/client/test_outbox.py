"""The outbox: what is saved, sent, sent again and forgotten, decided without a thread, a clock or a network."""

from __future__ import annotations

import pytest

from token_actor.client.outbox import HELD_BYTES_MAX, Outbox
from token_actor.client.recording import make_event
from token_actor.client.store import MemoryDisk
from token_actor.client.watermark import Watermark
from token_actor.errors import SpoolError
from token_actor.wire.codec import BATCH_BYTES_MAX, unpack
from token_actor.wire.keys import Keys, partition_of

LOG = Keys("ns").log


def events(count, **more):
    return [make_event({}, input_tokens=n, **more) for n in range(count)]


def read(append):
    return unpack(append.fields[1], bytes_max=BATCH_BYTES_MAX)


def numbers(appends):
    return [(read(append)["q"], read(append)["n"]) for append in appends]


class Client:
    """An outbox on a disk, and what a sender would do with it."""

    def __init__(self, disk, bytes_max=1 << 30, **settings):
        self.store = disk.open()
        self.outbox = Outbox(
            "ns", producer=self.store.producer, store=self.store, store_bytes_max=bytes_max, **settings
        )
        self.adopted = self.outbox.adopt()
        self.sent = 0

    def record(self, count, partitions=1, **more):
        self.outbox.add(events(count, **more), partitions)
        return self.outbox.save()

    def appends(self, partition=0):
        lane = self.outbox.lanes.get(partition)
        return [] if lane is None else self.outbox.appends(lane)

    def send(self, entry_ids=None, partition=0):
        """Send what waits; return what was sent."""
        appends = self.appends(partition)
        for append in appends:
            self.sent += 1
            self.outbox.acknowledged(self.outbox.lanes[partition], b"%d-0" % self.sent)
            assert append
        return appends

    def answer(
        self, next_seq, *, durable=0, durable_ranges=(), ranges=(), generation=1, offset="0-0", missing=0, **more
    ):
        asked = self.outbox.questions()
        for question in asked:
            seen = {"next_seq": next_seq, "ranges": list(ranges), "missing": missing, "durable": durable}
            seen["durable_ranges"] = list(durable_ranges)
            answer = {"epochs": {str(epoch): seen for epoch in question.epochs}, "generation": generation}
            self.outbox.answered(question, {**answer, "offset": offset, **more})
        return asked


@pytest.fixture
def disk():
    return MemoryDisk()


@pytest.fixture
def client(disk):
    return Client(disk, batch_events_max=10)


class TestOnTheWay:
    def test_nothing_waits_for_the_log_before_it_is_on_disk(self, disk, client):
        client.outbox.add(events(25), 1)
        assert client.outbox.unsaved_events == 25
        assert (client.outbox.is_waiting, client.appends()) == (False, [])
        assert client.outbox.save() is True
        assert numbers(client.appends()) == [(0, 10), (10, 10), (20, 5)]
        assert len(disk.batches) == 3
        assert disk.commits == 1

    def test_without_a_store_it_waits_at_once_and_is_forgotten_when_acknowledged(self):
        outbox = Outbox("ns", producer=bytes(16), batch_events_max=10)
        outbox.add(events(15), 1)
        lane = outbox.lanes[0]
        assert numbers(outbox.appends(lane)) == [(0, 10), (10, 5)]
        assert outbox.acknowledged(lane, b"1-0") == (10, None)
        assert numbers(outbox.appends(lane)) == [(10, 5)]
        assert not outbox.is_kept

    def test_the_data_of_a_long_queue_is_read_back_from_the_disk(self, disk, monkeypatch):
        monkeypatch.setattr("token_actor.client.outbox.HELD_BYTES_MAX", 300)
        client = Client(disk, batch_events_max=1)
        client.record(10)
        held = [batch.data is not None for batch in client.outbox.lanes[0].waiting]
        assert held == [True] * held.index(False) + [False] * (10 - held.index(False))
        assert numbers(client.appends()) == [(n, 1) for n in range(10)]
        assert HELD_BYTES_MAX > BATCH_BYTES_MAX

    def test_a_batch_that_the_disk_has_lost_is_told_and_does_not_stop_the_others(self, disk, monkeypatch):
        monkeypatch.setattr("token_actor.client.outbox.HELD_BYTES_MAX", 0)
        client = Client(disk, batch_events_max=10)
        client.record(30)
        del disk.batches[sorted(disk.batches)[1]]
        assert numbers(client.appends()) == [(0, 10), (20, 10)]
        assert client.outbox.take_lost() == (10, 10)
        assert client.outbox.take_lost() == (0, 0)


class TestAFullDisk:
    def test_what_has_no_room_stays_unsaved_and_is_saved_in_order_when_there_is(self, disk):
        client = Client(disk, bytes_max=1, batch_events_max=10)
        assert client.record(10) is True  # one batch always fits
        assert client.record(20) is False
        assert client.outbox.unsaved_events == 20
        client.send()
        client.answer(10, durable=10)
        assert client.outbox.save() is False  # room for one is made in this very commit
        assert client.outbox.unsaved_events == 10
        assert numbers(client.appends()) == [(10, 10)]

    def test_a_disk_that_takes_nothing_is_tried_again_with_the_same_numbers(self, disk, client):
        disk.full = True
        with pytest.raises(SpoolError):
            client.record(10)
        assert client.outbox.unsaved_events == 10
        disk.full = False
        assert client.outbox.save() is True
        assert numbers(client.appends()) == [(0, 10)]

    def test_a_full_disk_still_forgets_what_is_safe(self, disk, client):
        client.record(10)
        client.send()
        client.answer(10, durable=10)
        disk.full = True
        with pytest.raises(SpoolError):
            client.record(10)
        assert disk.batches == {}

    def test_a_commit_that_failed_after_all_was_done_is_repeated_without_a_second_batch(self, disk, client):
        disk.broken = "after"
        with pytest.raises(SpoolError):
            client.record(10)
        disk.broken = False
        client.outbox.save()
        assert len(disk.batches) == 1
        assert numbers(client.appends()) == [(0, 10)]


class TestACrash:
    def test_what_was_saved_is_sent_by_the_next_one_with_the_numbers_it_has(self, disk, client):
        client.record(20)
        before = [append.fields for append in client.appends()]
        heir = Client(disk, batch_events_max=10)
        assert heir.adopted == 20
        assert [append.fields for append in heir.appends()] == before
        heir.record(10)
        assert read(heir.appends()[-1])["p"] != client.store.producer

    def test_what_was_not_saved_is_gone(self, disk, client):
        client.outbox.add(events(20), 1)
        assert Client(disk).adopted == 0

    def test_what_was_acknowledged_and_noted_is_not_sent_again_at_once(self, disk, client):
        client.record(10)
        client.send()
        client.record(5)
        heir = Client(disk)
        assert numbers(heir.appends()) == [(0 + 10, 5)]
        heir.answer(0, offset="1-0")
        assert numbers(heir.appends()) == [(10, 5), (0, 10)]

    def test_acknowledging_what_others_recorded_acknowledges_nothing_of_ours(self, disk, client):
        client.record(10)
        heir = Client(disk)
        heir.appends()
        assert heir.outbox.acknowledged(heir.outbox.lanes[0], b"1-0") == (0, None)


class TestTheWatermark:
    def test_what_is_below_it_is_forgotten(self, disk, client):
        client.record(30)
        client.send()
        client.answer(30, durable=20)
        client.outbox.save()
        assert [key.first_seq for key in disk.batches] == [20]
        assert client.outbox.is_kept

    def test_what_was_never_acknowledged_is_not_forgotten_but_sent(self, disk, client):
        client.record(10)
        client.answer(10, durable=10)
        assert numbers(client.appends()) == [(0, 10)]
        assert len(disk.batches) == 1

    def test_what_the_actor_has_passed_without_seeing_it_is_sent_again(self, client):
        client.record(30)
        client.answer(0, generation=1)
        client.send()
        client.answer(10, ranges=[[20, 30]], offset="3-0")
        assert numbers(client.appends()) == [(10, 10)]

    def test_what_the_actor_has_not_come_to_yet_is_left_alone(self, client):
        client.record(30)
        client.answer(0, generation=1)
        client.send()
        client.answer(10, offset="1-0")
        assert client.appends() == []
        client.answer(20, offset="3-0")
        assert numbers(client.appends()) == [(20, 10)]

    def test_another_log_is_sent_everything_it_has_not_seen_and_that_once(self, client):
        client.record(20)
        client.answer(0, generation=1)
        client.send()
        client.answer(20, durable=10, generation=1, offset="2-0")
        client.answer(0, generation=2, offset="0-0")
        assert numbers(client.send()) == [(10, 10)]
        client.answer(0, generation=2, offset="0-0")
        assert client.appends() == []

    def test_what_was_acknowledged_before_anybody_told_the_generation_is_sent_again_if_it_is_not_seen(self, client):
        client.record(10)
        client.send()
        client.answer(0, generation=7)
        assert numbers(client.appends()) == [(0, 10)]

    def test_what_waits_already_does_not_wait_twice(self, client):
        client.record(10)
        client.send()
        for _ in range(3):
            client.answer(0, offset="9-0")
        assert numbers(client.appends()) == [(0, 10)]

    def test_above_the_ranges_that_fit_into_an_answer_nothing_is_concluded(self, client):
        client.record(10)
        client.record(1000)
        while client.send():
            pass
        client.answer(0, ranges=[[2 * n, 2 * n + 1] for n in range(5, 69)], offset="999-0")
        assert max(read(append)["q"] for append in client.appends()) < 140

    def test_above_a_hole_that_is_never_closed_the_ranges_of_the_snapshot_decide(self, disk, client):
        client.record(30)
        client.answer(0, generation=1)
        client.send()
        hole = {"ranges": [[10, 30]], "generation": 1, "offset": "3-0", "missing": 10}
        client.answer(0, durable_ranges=[[10, 20]], **hole)
        client.outbox.save()
        assert sorted(key.first_seq for key in disk.batches) == [0, 20]

    def test_an_actor_that_tells_less_only_delays_the_end(self, client):
        client.record(10)
        client.send()
        (asked,) = client.outbox.questions()
        client.outbox.answered(asked, {"epochs": {"0": {"next_seq": 10, "ranges": []}, "5": {"next_seq": 0}}})
        assert client.outbox.is_kept
        assert client.appends() == []

    def test_many_producers_are_asked_about_in_turn(self, disk):
        for _ in range(70):
            Client(disk).record(1)
        heir = Client(disk)
        first, second = heir.outbox.questions(), heir.outbox.questions()
        assert (len(first), len(second)) == (64, 64)
        assert len({(asked.partition, asked.producer) for asked in [*first, *second]}) == 70
        assert isinstance(first[0], Watermark)


class TestBeforeThePartitionsAreKnown:
    def test_it_is_saved_apart_by_tenant_and_sent_when_they_are_known(self, disk, client):
        client.outbox.add([*events(3, tenant="a"), *events(2, tenant="b"), *events(1, tenant="c")], None)
        assert client.outbox.save() is True
        assert len(disk.batches) == 3
        assert client.outbox.questions() == []
        client.outbox.place(4)
        for partition in range(4):
            here = {tenant for tenant in "abc" if partition_of(tenant, 4) == partition}
            batches = [read(append) for append in client.appends(partition)]
            assert {batch["k"][0].split("\x1f")[0] for batch in batches} == here
            assert {batch["q"] for batch in batches} <= {0}

    def test_its_numbers_stay_the_same_over_a_crash(self, client, disk):
        client.outbox.add([*events(3, tenant="a"), *events(2, tenant="b")], None)
        client.outbox.save()
        heir = Client(disk)
        client.outbox.place(1)
        heir.outbox.place(1)
        assert [append.fields for append in client.appends()] == [append.fields for append in heir.appends()]

    def test_no_number_is_given_twice_before_and_after(self, client):
        client.record(3, partitions=None, tenant="a")
        client.outbox.place(1)
        client.record(3, tenant="a")
        found = {(read(append)["o"], read(append)["q"]) for append in client.appends()}
        assert found == {(1, 0), (0, 0)}

    def test_it_is_forgotten_like_everything_else(self, client, disk):
        client.record(3, partitions=None)
        client.outbox.place(1)
        client.send()
        client.answer(3, durable=3)
        client.outbox.save()
        assert disk.batches == {}
        assert client.outbox.stored_bytes == 0

    def test_what_the_disk_has_lost_has_no_place(self, client, disk, monkeypatch):
        monkeypatch.setattr("token_actor.client.outbox.HELD_BYTES_MAX", 0)
        client.record(3, partitions=None)
        disk.batches.clear()
        client.outbox.place(1)
        assert client.outbox.take_lost() == (3, 3)
        assert not client.outbox.is_waiting
