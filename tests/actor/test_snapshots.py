"""Snapshots: whole or not there at all, in small steps, three of them, and nothing left lying about."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
from dataclasses import replace

import pytest

from tests.actor.conftest import Recorder, Script, Stage, nothing
from token_actor.actor import snapshots
from token_actor.actor.manifests import Chunk, Manifest, Position, digest_of, digests_of, list_manifests, state_digest
from token_actor.actor.recovery import recover, replay
from token_actor.actor.snapshots import (
    SNAPSHOTS_KEPT,
    SnapshotWriter,
    digests_now,
    drop_old,
    drop_unfinished,
    load_snapshot,
)
from token_actor.core import recent
from token_actor.core.snapshot import STATE_VERSION
from token_actor.errors import ServerRefused, ServerUnavailable, SnapshotError
from token_actor.transport.memory import MemoryServer
from token_actor.transport.ports import Append, Delete, DeleteEntries, Put, TrimBelow
from token_actor.wire.codec import pack, pack_tree

AT = Position(offset=b"7-1", entries=3, generation=2, lost=5)


def nobody(*_):
    """Listen to what a replay tells, and do nothing."""


def recovered(stage):
    """Return the state after everything in the log."""
    state = recover(stage.connection, stage.keys)
    replay(stage.connection, stage.keys, state, epoch=1, on_read=nobody)
    return state


def writer_on(stage, connection=None):
    connection = connection or stage.connection
    return SnapshotWriter(connection, stage.keys, fenced=connection.write)


def begin(stage, state, snapshot_id=b"1-1", writer=None):
    """Return the steps of a snapshot of a state."""
    writer = writer or writer_on(stage)
    return writer.write(state.ledger, snapshot_id=snapshot_id, position=state.position, now_ms=5)


def finish(steps):
    """Take every step that is left; return how many those were."""
    return sum(1 for _ in steps)


def take(stage, snapshot_id=b"1-1", writer=None, state=None):
    """Take a snapshot of everything in the log; return its manifest."""
    finish(begin(stage, state or recovered(stage), snapshot_id, writer))
    return list_manifests(stage.connection, stage.keys)[0]


def chunks(stage, snapshot_id, most=50):
    """Return which chunks of a snapshot there are."""
    return [n for n in range(most) if stage.connection.get(stage.keys.chunk(snapshot_id, n)) is not None]


class TestAManifest:
    SEGMENTS = (
        ("series", [Chunk(b"3-2", 0, b"x" * 16), Chunk(b"2-9", 7, b"y" * 16)]),
        ("more", [Chunk(b"2-9", 8, b"z" * 16)]),
    )
    MANIFEST = Manifest(snapshot_id=b"3-2", position=AT, taken_ms=9, segments=list(SEGMENTS))

    def test_it_is_read_back_as_it_was_written(self):
        again = Manifest.read(b"3-2", self.MANIFEST.fields())
        assert again == Manifest(snapshot_id=b"3-2", position=AT, taken_ms=9, segments=list(self.SEGMENTS))
        assert [chunk.number for chunk in again.chunks] == [0, 7, 8]

    def test_it_stays_small(self):
        chunks = [Chunk(b"12-%d" % (number % 3), number, bytes(16)) for number in range(1000)]
        segments = [(f"recent/{chunk.number}", [chunk]) for chunk in chunks]
        manifest = Manifest(snapshot_id=b"12-2", position=AT, taken_ms=9, segments=segments)
        assert len(b"".join(manifest.fields())) < 45 * 1000

    def test_the_state_hash_depends_on_the_digests_alone(self):
        digests = digests_of(self.MANIFEST)
        assert digests == {"series": [b"x" * 16, b"y" * 16], "more": [b"z" * 16]}
        assert state_digest(digests) == state_digest(dict(reversed(digests.items())))
        assert state_digest(digests) != state_digest({**digests, "more": [b"x" * 16]})
        assert state_digest(digests) != state_digest({"series": [b"x" * 16], "more": [b"y" * 16, b"z" * 16]})

    @pytest.mark.parametrize("byte", [0, 10, -1])
    def test_a_flipped_bit_is_noticed(self, byte):
        name, body, *digest = self.MANIFEST.fields()
        damaged = bytearray(body)
        damaged[byte] ^= 1
        with pytest.raises(SnapshotError, match="^the manifest 3-2 is damaged$"):
            Manifest.read(b"3-2", [name, bytes(damaged), *digest])

    @pytest.mark.parametrize(
        "fields", [[], [b"manifest", b"x"], [b"digest", b"x"]], ids=["none", "no digest", "no body"]
    )
    def test_what_is_missing_is_noticed(self, fields):
        with pytest.raises(SnapshotError, match="is damaged"):
            Manifest.read(b"3-2", fields)

    @pytest.mark.parametrize("version", [1, 99])
    def test_another_version_is_refused_by_number(self, version):
        body = pack({"v": version})
        with pytest.raises(SnapshotError, match=f"^the manifest 3-2 has version {version}, this program reads 2$"):
            Manifest.read(b"3-2", [b"manifest", body, b"digest", digest_of(body)])

    @pytest.mark.parametrize(
        "wrong",
        [
            {"v": None}, {"offset": None}, {"offset": "7-1"}, {"offset": b"x"}, {"entries": -1}, {"entries": 1.0},
            {"taken_ms": None}, {"segments": None}, {"segments": [1]}, {"segments": [[1, []]]},
            {"segments": [["a", 1]]},
        ],
        ids=repr,
    )  # fmt: skip
    def test_what_has_another_shape_is_refused(self, wrong):
        body = {
            "v": 2,
            "offset": b"7-1",
            "entries": 3,
            "generation": 0,
            "lost": 0,
            "taken_ms": 9,
            "writers": [],
            "segments": [],
        }
        for broken in (pack({**body, **wrong}), pack({n: v for n, v in body.items() if n not in wrong})):
            with pytest.raises(SnapshotError, match="^the manifest 3-2 "):
                Manifest.read(b"3-2", [b"manifest", broken, b"digest", digest_of(broken)])

    def test_what_is_no_message_is_refused(self):
        with pytest.raises(SnapshotError, match="^the manifest 3-2 cannot be read"):
            Manifest.read(b"3-2", [b"manifest", b"\xc1", b"digest", digest_of(b"\xc1")])


class TestTaking:
    def test_a_state_that_is_whole_and_makes_no_sense_is_refused(self, stage):
        stage.event(input_tokens=1)
        manifest = take(stage)
        for head, problem in (
            ({"version": "nonsense"}, "version 'nonsense'"),
            ({"version": STATE_VERSION}, "^the snapshot 1-1 cannot be read: KeyError"),
        ):
            data = pack_tree(head)
            stage.connection.write([Put(key=stage.keys.chunk(b"1-1", 0), value=data)])
            senseless = [(name, [Chunk(b"1-1", 0, digest_of(data))]) for name, _ in manifest.segments]
            with pytest.raises(SnapshotError, match=problem):
                load_snapshot(stage.connection, stage.keys, replace(manifest, segments=senseless), None)

    def test_a_snapshot_is_loaded_as_it_was_taken(self, stage):
        stage.batch(100, input_tokens=3, agent="a", message_id=None)
        stage.event(message_id="m", tags={"k": "v"}, session="s")
        stage.command("reset", "1", tenant="default", session="s")
        stage.append(b"j", b"broken")
        manifest = take(stage)
        before, after = recovered(stage).ledger, load_snapshot(stage.connection, stage.keys, manifest, None)
        assert_same_state(before, after)

    def test_it_names_where_it_ends_and_when_it_was_taken(self, stage):
        last = stage.event(input_tokens=1)
        manifest = take(stage)
        assert (manifest.position, manifest.taken_ms) == (Position(offset=last, entries=1), 5)

    def test_before_its_manifest_there_is_none(self, stage):
        stage.event(input_tokens=1)
        state = recovered(stage)
        steps = begin(stage, state)
        seen = [len(stage.snapshots()) for _ in steps]
        assert seen == [0] * (len(seen) - 2) + [1] * 2  # then what is old is deleted

    def test_a_large_state_is_cut_into_chunks_of_a_mebibyte(self, stage, monkeypatch):
        monkeypatch.setattr(snapshots, "CHUNK_BYTES", 1_000)
        stage.batch(200, input_tokens=1)
        manifest = take(stage)
        count = len(manifest.chunks)
        assert len(dict(manifest.segments)["recent/0"]) > 5
        assert chunks(stage, b"1-1") == list(range(min(50, count)))
        largest = max(len(stage.connection.get(stage.keys.chunk(b"1-1", n))) for n in range(count))
        assert largest == 1_000
        assert_same_state(recovered(stage).ledger, load_snapshot(stage.connection, stage.keys, manifest, None))

    def test_what_happens_during_a_snapshot_is_not_in_it(self, stage):
        last = stage.event(input_tokens=1)
        state = recovered(stage)
        steps = begin(stage, state)
        next(steps)
        stage.event(input_tokens=1_000)
        replay(stage.connection, stage.keys, state, epoch=1, on_read=lambda *_: None)
        for _ in steps:
            pass
        (manifest,) = list_manifests(stage.connection, stage.keys)
        assert manifest.position.offset == last
        assert load_snapshot(stage.connection, stage.keys, manifest, None).total()["input_tokens"] == 1

    def test_a_manifest_of_an_older_epoch_is_refused(self, stage):
        stage.event(input_tokens=1)
        take(stage, b"2-1")
        with pytest.raises(ServerRefused, match="equal or smaller"):
            take(stage, b"1-9")
        assert [entry_id for entry_id, _ in stage.snapshots()] == [b"2-1"]

    def test_a_chunk_that_is_refused_ends_it(self, stage):
        state = recovered(stage)

        class Refusing(Recorder):
            def write(self, operations):
                if isinstance(operations[0], Put):
                    return [ServerRefused("OOM no memory")]
                return stage.connection.write(operations)

        steps = begin(stage, state, writer=writer_on(stage, Refusing(stage.connection)))
        with pytest.raises(ServerRefused, match="OOM"):
            finish(steps)


class Counting(Recorder):
    """Notes the keys of the chunks that are written."""

    def __init__(self, connection):
        super().__init__(connection)
        self.put: list[bytes] = []

    def write(self, operations):
        self.put += [operation.key for operation in operations if isinstance(operation, Put)]
        return self._connection.write(operations)


class TestSharing:
    """A writer that took two snapshots only writes what changed since the last but one."""

    @pytest.fixture(autouse=True)
    def small_segments(self, monkeypatch):
        monkeypatch.setattr(recent, "_PLACE_BITS", 3)

    @pytest.fixture
    def recorder(self, memory_stage):
        return Counting(memory_stage.connection)

    @pytest.fixture
    def more(self, memory_stage, recorder):
        """Return what appends ten events and takes a snapshot of a state that goes on; it returns the manifest."""
        stage = memory_stage
        writer, state = writer_on(stage, recorder), recover(stage.connection, stage.keys)
        numbers = itertools.count(1)

        def take_more(*, changed=True):
            if changed:
                stage.batch(10, input_tokens=1, session="s", message_id=None)
                replay(stage.connection, stage.keys, state, epoch=1, on_read=nobody)
            recorder.put.clear()
            return take(stage, b"1-%d" % next(numbers), writer, state)

        take_more.writer, take_more.state = writer, state
        return take_more

    def test_the_second_one_shares_nothing_with_the_first(self, more):
        first, second = more(), more(changed=False)
        assert {chunk.snapshot_id for chunk in first.chunks} == {b"1-1"}
        assert {chunk.snapshot_id for chunk in second.chunks} == {b"1-2"}

    def test_two_in_a_row_never_share_a_chunk(self, more):
        before: set[Chunk] = set()
        for _ in range(8):
            now = set(more().chunks)
            assert not before & now
            before = now

    def test_when_nothing_changed_nothing_is_written_but_the_manifest(self, more, recorder):
        first = more()
        more(changed=False)
        third = more(changed=False)
        assert recorder.put == []
        assert third.segments == first.segments

    def test_only_what_changed_since_the_last_but_one_is_written_again(self, memory_stage, more, recorder):
        for _ in range(5):
            more()
        sixth = dict(more().segments)
        shared = {name for name, chunks in sixth.items() if chunks[0].snapshot_id != b"1-6"}
        assert shared == {"series/0", *(f"recent/{block}" for block in range(5))}
        assert len(recorder.put) == len(sixth) - len(shared)
        assert recorder.put == [memory_stage.keys.chunk(b"1-6", number) for number in range(len(recorder.put))]

    def test_each_one_is_loaded_as_it_was_taken(self, memory_stage, more):
        for _ in range(6):
            manifest = more()
            loaded = load_snapshot(memory_stage.connection, memory_stage.keys, manifest, None)
            assert digests_now(loaded) == digests_of(manifest) == digests_now(more.state.ledger)

    def test_a_segment_of_the_same_bytes_is_not_written_again_although_nobody_knows_whether_it_changed(
        self, memory_stage, more, recorder
    ):
        memory_stage.command("reset", "1", tenant="default", session="s")
        for _ in range(3):
            third = more()
        assert dict(third.segments)["producers/0"][0].snapshot_id == b"1-3"
        more(changed=False)
        fifth = dict(more(changed=False).segments)
        assert {name for name, chunks in fifth.items() if chunks[0].snapshot_id == b"1-5"} == set()

    def test_after_forgetting_everything_is_written_anew(self, more):
        for _ in range(3):
            more()
        more.writer.forget()
        assert {chunk.snapshot_id for chunk in more(changed=False).chunks} == {b"1-4"}
        assert more.writer.durable
        more.writer.forget()
        assert more.writer.durable == {}

    def test_when_the_server_does_not_have_the_last_ones_everything_is_written_anew(self, memory_stage, more):
        for _ in range(3):
            more()
        memory_stage.connection.write([DeleteEntries(key=memory_stage.keys.snapshots, entry_ids=[b"1-3"])])
        assert {chunk.snapshot_id for chunk in more(changed=False).chunks} == {b"1-4"}

    def test_one_that_came_to_nothing_is_no_base_for_others(self, memory_stage, more):
        for _ in range(3):
            more()
        steps = begin(memory_stage, more.state, b"1-3", more.writer)  # there is a newer one: it is refused
        with pytest.raises(ServerRefused):
            finish(steps)
        fourth = more(changed=False)
        assert {chunk.snapshot_id for chunk in fourth.chunks} <= {b"1-2", b"1-4"}
        assert digests_now(load_snapshot(memory_stage.connection, memory_stage.keys, fourth, None)) == digests_of(
            fourth
        )

    def test_one_damaged_chunk_leaves_another_snapshot_to_recover_from(self, memory_stage, more):
        stage = memory_stage
        for _ in range(7):
            newest = more()
        for chunk in newest.chunks:
            key = stage.keys.chunk(chunk.snapshot_id, chunk.number)
            whole = stage.connection.get(key)
            for damage in (Put(key=key, value=whole[:-1]), Put(key=key, value=b"x" + whole[1:]), Delete(keys=[key])):
                stage.connection.write([damage])
                state = recovered(stage)
                assert state.manifest.snapshot_id == b"1-6"
                assert digests_now(state.ledger) == digests_of(newest)
            stage.connection.write([Put(key=key, value=whole)])

    def test_what_is_durable_is_what_the_last_committed_one_holds(self, memory_stage, more):
        assert more.writer.durable == {}
        more()
        assert {key: mark.next_seq for key, mark in more.writer.durable.items()} == {(bytes(16), 0): 10}
        memory_stage.batch(5, input_tokens=1)
        replay(memory_stage.connection, memory_stage.keys, more.state, epoch=1, on_read=nobody)
        steps = begin(memory_stage, more.state, b"1-9", more.writer)
        next(steps)
        memory_stage.batch(7, input_tokens=1)
        replay(memory_stage.connection, memory_stage.keys, more.state, epoch=1, on_read=nobody)
        while len(memory_stage.snapshots()) == 1:
            assert more.writer.durable[(bytes(16), 0)].next_seq == 10
            next(steps)
        assert more.writer.durable[(bytes(16), 0)].next_seq == 15

    def test_manifests_trims_and_deletions_are_fenced_and_chunks_are_not(self, memory_stage, more):
        fenced = Recorder(memory_stage.connection)
        done: list[type] = []
        real = memory_stage.connection.write
        fenced.write = lambda operations: (done.extend(map(type, operations)), real(operations))[1]
        writer = SnapshotWriter(memory_stage.connection, memory_stage.keys, fenced=fenced.write)
        for number in range(20, 25):
            memory_stage.batch(10, input_tokens=1)
            replay(memory_stage.connection, memory_stage.keys, more.state, epoch=1, on_read=nobody)
            finish(begin(memory_stage, more.state, b"1-%d" % number, writer))
        assert set(done) == {Append, TrimBelow, Delete, DeleteEntries}
        assert done.count(Append) == 5

    def test_a_leader_that_lost_its_lease_commits_nothing(self, memory_stage, more):
        class LostError(Exception):
            pass

        def lost(operations):
            if isinstance(operations[0], Append):
                raise LostError
            return memory_stage.connection.write(operations)

        writer = SnapshotWriter(memory_stage.connection, memory_stage.keys, fenced=lost)
        steps = begin(memory_stage, more.state, b"1-1", writer)
        with pytest.raises(LostError):
            finish(steps)
        assert (memory_stage.snapshots(), writer.durable) == ([], {})


@pytest.mark.parametrize("seed", range(30))
def test_a_kept_manifest_never_loses_a_chunk_and_no_other_chunk_stays(seed, namespace, monkeypatch):
    """Random leaders take snapshots, fail at any write, are overtaken, forget, and clean up."""
    monkeypatch.setattr(recent, "_PLACE_BITS", 2)
    monkeypatch.setattr(snapshots, "CHUNK_BYTES", 400)
    monkeypatch.setattr(snapshots, "_DELETED_AT_ONCE", 3)
    rng = random.Random(seed)
    stage = Stage(MemoryServer(), namespace)
    connection = Dying(stage.connect())
    epoch, number = 1, 1
    writer, state = writer_on(stage, connection), recover(stage.connection, stage.keys)
    for _ in range(40):
        if rng.random() < 0.15:  # another leader, with a state of its own
            epoch, number = epoch + 1, 1
            writer, state = writer_on(stage, connection), recover(stage.connection, stage.keys)
        for _ in range(rng.randrange(4)):
            stage.event(input_tokens=1, session=f"s{rng.randrange(9)}")
        replay(stage.connection, stage.keys, state, epoch=1, on_read=nobody)
        connection.writes_left = rng.choice((3, 12, 40, 10**9, 10**9))
        with contextlib.suppress(ServerUnavailable):
            take(stage, b"%d-%d" % (epoch, number), writer, state)
        number += 1
        manifests = list_manifests(stage.connection, stage.keys)
        for manifest in manifests:
            if manifest in manifests[:SNAPSHOTS_KEPT]:
                loaded = load_snapshot(stage.connection, stage.keys, manifest, None)
                assert digests_now(loaded) == digests_of(manifest)
        assert recover(stage.connection, stage.keys).manifest == (manifests[0] if manifests else None)
    connection.writes_left = 10**9
    for _ in range(2):
        number += 1
        take(stage, b"%d-%d" % (epoch, number), writer, state)
    manifests = list_manifests(stage.connection, stage.keys)
    referred = {stage.keys.chunk(chunk.snapshot_id, chunk.number) for each in manifests for chunk in each.chunks}
    assert len(manifests) <= SNAPSHOTS_KEPT
    assert connection.there == referred


class Dying:
    """A connection that breaks after so many writes, and knows which chunks there are."""

    def __init__(self, connection):
        self.writes_left = 10**9
        self.there: set[bytes] = set()
        self._connection = connection

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def write(self, operations):
        if self.writes_left == 0:
            raise ServerUnavailable("gone")
        self.writes_left -= 1
        for operation in operations:
            if isinstance(operation, Put):
                self.there.add(operation.key)
            elif isinstance(operation, Delete):
                self.there.difference_update(operation.keys)
        return self._connection.write(operations)


class TestKeeping:
    def test_three_are_kept(self, stage):
        for n in range(1, 6):
            stage.event(input_tokens=n)
            take(stage, b"1-%d" % n)
        assert [entry_id for entry_id, _ in stage.snapshots()] == [b"1-3", b"1-4", b"1-5"]

    def test_chunks_of_those_that_were_dropped_are_deleted(self, stage, monkeypatch):
        monkeypatch.setattr(snapshots, "CHUNK_BYTES", 200)
        for n in range(1, 5):
            stage.event(input_tokens=n)
            take(stage, b"1-%d" % n)
        assert chunks(stage, b"1-1") == []
        assert all(chunks(stage, b"1-%d" % n) for n in (2, 3, 4))

    def test_the_log_is_trimmed_below_the_oldest_that_is_kept(self, stage):
        ends = []
        for n in range(1, 5):
            ends += [stage.event(input_tokens=n) for _ in range(10)][-1:]
            take(stage, b"1-%d" % n)
        assert stage.state(stage.keys.log).first_id == ends[1]
        assert stage.state(stage.keys.log).length == 21

    def test_with_fewer_than_three_nothing_is_trimmed(self, stage):
        for n in (1, 2):
            stage.event(input_tokens=n)
            take(stage, b"1-%d" % n)
        assert stage.state(stage.keys.log).length == 2

    def test_a_damaged_one_does_not_count_as_kept(self, stage, caplog):
        for n in (1, 2):
            stage.event(input_tokens=n)
            take(stage, b"1-%d" % n)
        stage.connection.write([Append(key=stage.keys.snapshots, fields=[b"manifest", b"x"], entry_id=b"1-3")])
        finish(drop_old(stage.connection, stage.keys, fenced=stage.connection.write))
        assert stage.state(stage.keys.log).length == 2
        assert {record.action for record in caplog.records} == {"snapshot_damaged"}

    def test_a_trim_that_is_refused_is_raised(self, stage):
        for n in (1, 2, 3):
            stage.event(input_tokens=n)
            take(stage, b"1-%d" % n)
        stage.connection.write([Delete(keys=[stage.keys.log]), Put(key=stage.keys.log, value=b"no log")])
        with pytest.raises(ServerRefused, match="WRONGTYPE"):
            finish(drop_old(stage.connection, stage.keys, fenced=stage.connection.write))


class TestTheUnfinished:
    def put(self, stage, snapshot_id, count):
        stage.connection.write([Put(key=stage.keys.chunk(snapshot_id, n), value=b"x") for n in range(count)])

    def drop(self, stage, before):
        return finish(drop_unfinished(stage.connection, stage.keys, before=before, fenced=stage.connection.write))

    def test_chunks_without_a_manifest_are_deleted(self, stage):
        take(stage, b"4-2")
        self.put(stage, b"4-3", 7)
        self.drop(stage, b"5-1")
        assert chunks(stage, b"4-3") == []

    @pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 17, 33, 70])
    def test_however_many_they_are(self, memory_stage, count):
        self.put(memory_stage, b"1-1", count)
        self.drop(memory_stage, b"1-2")
        assert chunks(memory_stage, b"1-1", most=80) == []

    def test_who_was_stopped_while_deleting_them_goes_on_the_next_time(self, memory_stage):
        self.put(memory_stage, b"1-1", 40)
        keys, write = memory_stage.keys, memory_stage.connection.write
        steps = drop_unfinished(memory_stage.connection, keys, before=b"1-2", fenced=write)
        while len(chunks(memory_stage, b"1-1")) == 40:
            next(steps)
        steps.close()
        self.drop(memory_stage, b"1-3")
        assert chunks(memory_stage, b"1-1") == []

    def test_those_of_every_leader_since_are_found(self, stage):
        take(stage, b"4-2")
        for snapshot_id in (b"4-3", b"4-4", b"5-1", b"7-1", b"7-2"):
            self.put(stage, snapshot_id, 3)
        self.drop(stage, b"8-1")
        assert [chunks(stage, name) for name in (b"4-3", b"4-4", b"5-1", b"7-1", b"7-2")] == [[]] * 5

    def test_a_number_of_which_nothing_was_written_is_no_end(self, stage):
        self.put(stage, b"1-3", 3)
        self.drop(stage, b"1-4")
        assert chunks(stage, b"1-3") == []

    def test_those_of_a_snapshot_with_a_manifest_stay(self, stage):
        there = chunks(stage, take(stage, b"4-2").snapshot_id)
        self.drop(stage, b"5-1")
        assert chunks(stage, b"4-2") == there != []

    def test_those_of_a_later_leader_stay(self, stage):
        self.put(stage, b"6-1", 3)
        self.drop(stage, b"5-9")
        assert chunks(stage, b"6-1") == [0, 1, 2]

    def test_before_the_first_snapshot_of_all_there_may_be_some_too(self, stage):
        self.put(stage, b"1-1", 3)
        self.drop(stage, b"2-1")
        assert chunks(stage, b"1-1") == []

    def test_a_deletion_that_is_refused_is_raised(self, stage):
        class Refusing(Recorder):
            def write(self, operations):
                return [ServerRefused("NOPERM no")]

        self.put(stage, b"1-1", 1)
        refused = Refusing(stage.connection).write
        steps = drop_unfinished(stage.connection, stage.keys, before=b"2-1", fenced=refused)
        with pytest.raises(ServerRefused):
            finish(steps)

    def test_the_next_snapshot_deletes_what_an_actor_that_was_killed_left_behind(self, stage):
        stage.event(input_tokens=1)
        stage.saved()  # leaves 1-1
        self.put(stage, b"1-2", 5)
        stage.event(input_tokens=1)
        stage.saved()
        assert chunks(stage, b"1-2") == []
        assert chunks(stage, b"1-1") != []


class TestInTheLoop:
    @pytest.fixture(autouse=True)
    def small_chunks(self, monkeypatch):
        monkeypatch.setattr(snapshots, "CHUNK_BYTES", 200)

    def test_one_is_taken_when_it_is_time(self, stage):
        script = Script(
            nothing, lambda: stage.event(input_tokens=1), lambda: script.advance(999),
            lambda: seen.append(len(stage.snapshots())), lambda: script.advance(1), *[nothing] * 60,
            lambda: seen.append(len(stage.snapshots())),
        )  # fmt: skip
        seen: list[int] = []
        stage.actor(script, snapshot_every_ms=1_000).run()
        assert seen == [0, 1]

    def test_one_is_taken_after_so_many_entries(self, stage):
        seen: list[int] = []
        stage.run(
            lambda: [stage.event(input_tokens=1) for _ in range(9)], *[nothing] * 3,
            lambda: seen.append(len(stage.snapshots())), lambda: stage.event(input_tokens=1), *[nothing] * 60,
            lambda: seen.append(len(stage.snapshots())), snapshot_every_entries=10,
        )  # fmt: skip
        assert seen == [0, 1]

    def test_none_is_taken_while_nothing_changes(self, stage):
        script = Script(nothing, *[lambda: script.advance(10_000)] * 20)
        stage.event(input_tokens=1)
        stage.actor(script, snapshot_every_ms=1_000, lease_ms=10**6).run()
        assert len(stage.snapshots()) == 1

    def test_questions_are_answered_while_one_is_taken(self, stage):
        answered: list[int] = []
        script = Script(
            nothing, lambda: stage.event(input_tokens=1), lambda: script.advance(1_000), lambda: stage.ask("analytics"),
            lambda: answered.extend([len(stage.answers()), len(stage.snapshots())]), *[nothing] * 60,
        )  # fmt: skip
        stage.actor(script, snapshot_every_ms=1_000).run()
        assert answered == [1, 0]
        assert len(stage.snapshots()) == 1

    def test_while_one_is_taken_reads_do_not_wait(self, stage):
        recorder = Recorder(stage.connect())
        script = Script(
            nothing, lambda: stage.event(input_tokens=1), lambda: script.advance(1_000), *[nothing] * 5,
            lambda: during.extend(recorder.blocks_ms[-4:]),
        )  # fmt: skip
        during: list[int | None] = []
        stage.actor(script, recorder, snapshot_every_ms=1_000).run()
        assert during == [None] * 4

    def test_the_next_one_begins_so_much_later(self, stage, monkeypatch):
        monkeypatch.setattr(snapshots, "CHUNK_BYTES", 1 << 20)
        counts: list[int] = []

        def turns_with_events(count):
            return [lambda: (stage.event(input_tokens=1), script.advance(20))] * count

        script = Script(
            nothing, lambda: stage.event(input_tokens=1), lambda: script.advance(1_000), *turns_with_events(45),
            lambda: counts.append(len(stage.snapshots())), *turns_with_events(60),
            lambda: counts.append(len(stage.snapshots())),
        )  # fmt: skip
        stage.actor(script, snapshot_every_ms=1_000, lease_ms=10**6).run()
        assert counts == [1, 2]

    def test_ids_are_the_epoch_and_a_number(self, stage, monkeypatch):
        monkeypatch.setattr(snapshots, "CHUNK_BYTES", 1 << 20)

        def more():
            stage.event(input_tokens=1)

        stage.run(more, *[nothing] * 60, snapshot_every_entries=1)
        stage.run(more, *[nothing] * 60, more, *[nothing] * 60, snapshot_every_entries=1)
        assert [entry_id for entry_id, _ in stage.snapshots()] == [b"1-1", b"2-1", b"2-2"]

    def test_one_that_a_newer_epoch_has_overtaken_is_harmless(self, stage, caplog):
        stage.event(input_tokens=1)
        overtaken = [Append(key=stage.keys.snapshots, fields=[b"a", b"b"], entry_id=b"9-1")]
        stage.run(lambda: stage.connection.write(overtaken), *[nothing] * 60, snapshot_every_entries=1)
        assert "snapshot_refused" in {record.action for record in caplog.records}
        assert [entry_id for entry_id, _ in stage.snapshots()] == [b"9-1"]
        assert stage.total()["requests"] == 1

    def test_after_a_lost_connection_the_next_one_is_whole(self, stage):
        recorder = Recorder(stage.connect())

        def lose():
            recorder.fail["write"] = [ServerUnavailable("gone")]

        script = Script(
            nothing, lambda: [stage.event(input_tokens=1) for _ in range(10)], lambda: script.advance(1_000), nothing,
            nothing, lose, *[nothing] * 10, lambda: script.advance(1_000), *[nothing] * 60,
        )  # fmt: skip
        stage.actor(script, recorder, snapshot_every_ms=1_000, lease_ms=10**6).run()
        assert script.waits_s == [0.05]
        manifest = list_manifests(stage.connection, stage.keys)[0]
        assert load_snapshot(stage.connection, stage.keys, manifest, None).total()["requests"] == 10

    def test_one_under_way_when_the_actor_stops_is_tidied_up_after_by_the_next(self, stage):
        script = Script(
            nothing, lambda: [stage.event(input_tokens=1) for _ in range(100)], lambda: script.advance(1_000),
            nothing, nothing, lambda: stage.event(input_tokens=1),
        )  # fmt: skip
        stage.actor(script, snapshot_every_ms=1_000).run()
        assert stage.snapshots() == []
        assert chunks(stage, b"1-1") != []
        stage.saved()
        (manifest,) = list_manifests(stage.connection, stage.keys)
        assert manifest.position.entries == 101
        assert load_snapshot(stage.connection, stage.keys, manifest, None).total()["requests"] == 101
        assert [manifest.snapshot_id, chunks(stage, b"1-1")] == [b"2-1", []]

    def test_an_actor_that_lost_its_lease_does_not_go_on_with_one(self, stage):
        script = Script(
            nothing, lambda: stage.event(input_tokens=1), lambda: script.advance(1_000), nothing,
            lambda: (stage.connection.write([Put(key=stage.keys.leader, value=b"9:other")]), script.advance(10_000)),
            *[nothing] * 60,
        )  # fmt: skip
        stage.actor(script, snapshot_every_ms=1_000).run()
        assert stage.snapshots() == []

    def test_an_actor_that_lost_its_lease_begins_none(self, stage):
        script = Script(
            nothing, lambda: stage.event(input_tokens=1),
            lambda: (stage.connection.write([Put(key=stage.keys.leader, value=b"9:other")]), script.advance(10_000)),
            *[nothing] * 60,
        )  # fmt: skip
        stage.actor(script, snapshot_every_ms=1_000).run()
        assert stage.snapshots() == []
        assert chunks(stage, b"0-1") == []

    def test_it_is_logged_with_where_it_ends(self, stage, caplog):
        caplog.set_level(logging.INFO)
        last = stage.event(input_tokens=1)
        stage.saved()
        (record,) = [record for record in caplog.records if record.action == "snapshot"]
        assert record.offset == last.decode()


def assert_same_state(one, other):
    """Compare two ledgers by everything that a snapshot holds."""
    assert digests_now(one) == digests_now(other)
