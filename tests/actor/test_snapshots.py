"""Snapshots: whole or not there at all, in small steps, three of them, and nothing left lying about."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from tests.actor.conftest import Recorder, Script, nothing
from token_actor.actor import snapshots
from token_actor.actor.recovery import recover, replay
from token_actor.actor.snapshots import (
    Manifest,
    Position,
    drop_old,
    drop_unfinished,
    list_manifests,
    load_snapshot,
    write_snapshot,
)
from token_actor.core import snapshot
from token_actor.errors import ServerRefused, ServerUnavailable, SnapshotError
from token_actor.transport.ports import Append, Delete, Put
from token_actor.wire.codec import pack

AT = Position(offset=b"7-1", entries=3)


def recovered(stage):
    """Return the state after everything in the log."""
    state = recover(stage.connection, stage.keys)
    replay(stage.connection, stage.keys, state, epoch=1, on_read=lambda *_: None)
    return state


def take(stage, snapshot_id=b"1-1", position=None):
    """Take a snapshot of everything in the log; return its manifest."""
    state = recovered(stage)
    for _ in write_snapshot(
        stage.connection, stage.keys, state.ledger,
        snapshot_id=snapshot_id, position=position or state.position, now_ms=5,
    ):  # fmt: skip
        pass
    drop_old(stage.connection, stage.keys)
    return list_manifests(stage.connection, stage.keys)[0]


def chunks(stage, snapshot_id, most=50):
    """Return which chunks of a snapshot there are."""
    return [n for n in range(most) if stage.connection.get(stage.keys.chunk(snapshot_id, n)) is not None]


class TestAManifest:
    MANIFEST = Manifest(snapshot_id=b"3-2", position=AT, taken_ms=9, segments=[("series", [b"x" * 16]), ("empty", [])])

    def test_it_is_read_back_as_it_was_written(self):
        assert Manifest.read(b"3-2", self.MANIFEST.fields()) == Manifest(
            snapshot_id=b"3-2", position=AT, taken_ms=9, segments=[("series", [b"x" * 16]), ("empty", [])]
        )
        assert self.MANIFEST.chunk_count == 1

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

    def test_another_version_is_refused_by_number(self):
        body = pack({"v": 99})
        with pytest.raises(SnapshotError, match="^the manifest 3-2 has version 99$"):
            Manifest.read(b"3-2", [b"manifest", body, b"digest", snapshots._digest(body)])

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
        body = {"v": 1, "offset": b"7-1", "entries": 3, "taken_ms": 9, "segments": []}
        for broken in (pack({**body, **wrong}), pack({n: v for n, v in body.items() if n not in wrong})):
            with pytest.raises(SnapshotError, match="^the manifest 3-2 "):
                Manifest.read(b"3-2", [b"manifest", broken, b"digest", snapshots._digest(broken)])

    def test_what_is_no_message_is_refused(self):
        with pytest.raises(SnapshotError, match="^the manifest 3-2 cannot be read"):
            Manifest.read(b"3-2", [b"manifest", b"\xc1", b"digest", snapshots._digest(b"\xc1")])


class TestTaking:
    def test_a_state_that_is_whole_and_makes_no_sense_is_refused(self, stage):
        stage.event(input_tokens=1)
        manifest = take(stage)
        chunk = snapshots.pack_state({"value": "nonsense"})
        stage.connection.write([Put(key=stage.keys.chunk(b"1-1", n), value=chunk) for n in range(50)])
        digests = [(name, [snapshots._digest(chunk)]) for name, _ in manifest.segments]
        with pytest.raises(SnapshotError, match="version 'nonsense'"):
            load_snapshot(stage.connection, stage.keys, replace(manifest, segments=digests), None)
        version = snapshots.pack_state({"value": 1})
        stage.connection.write([Put(key=stage.keys.chunk(b"1-1", 0), value=version)])
        only = replace(manifest, segments=[("version", [snapshots._digest(version)])])
        with pytest.raises(SnapshotError, match="^the snapshot 1-1 cannot be read: KeyError"):
            load_snapshot(stage.connection, stage.keys, only, None)

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
        steps = write_snapshot(
            stage.connection, stage.keys, state.ledger, snapshot_id=b"1-1", position=state.position, now_ms=5
        )
        seen = [len(stage.snapshots()) for _ in steps]
        assert set(seen) == {0}
        assert len(stage.snapshots()) == 1

    def test_a_large_state_is_cut_into_chunks_of_a_mebibyte(self, stage, monkeypatch):
        monkeypatch.setattr(snapshots, "CHUNK_BYTES", 1_000)
        stage.batch(200, input_tokens=1)
        manifest = take(stage)
        digests = dict(manifest.segments)
        assert len(digests["recent"]) > 5
        assert chunks(stage, b"1-1") == list(range(min(50, manifest.chunk_count)))
        largest = max(len(stage.connection.get(stage.keys.chunk(b"1-1", n))) for n in range(manifest.chunk_count))
        assert largest == 1_000
        assert_same_state(recovered(stage).ledger, load_snapshot(stage.connection, stage.keys, manifest, None))

    def test_what_happens_during_a_snapshot_is_not_in_it(self, stage):
        last = stage.event(input_tokens=1)
        state = recovered(stage)
        steps = write_snapshot(
            stage.connection, stage.keys, state.ledger, snapshot_id=b"1-1", position=state.position, now_ms=5
        )
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

        steps = write_snapshot(
            Refusing(stage.connection), stage.keys, state.ledger, snapshot_id=b"1-1", position=AT, now_ms=5
        )
        next(steps)
        with pytest.raises(ServerRefused, match="OOM"):
            next(steps)


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
        drop_old(stage.connection, stage.keys)
        assert stage.state(stage.keys.log).length == 2
        assert {record.action for record in caplog.records} == {"snapshot_damaged"}

    def test_a_trim_that_is_refused_is_raised(self, stage):
        for n in (1, 2, 3):
            stage.event(input_tokens=n)
            take(stage, b"1-%d" % n)
        stage.connection.write([Delete(keys=[stage.keys.log]), Put(key=stage.keys.log, value=b"no log")])
        with pytest.raises(ServerRefused, match="WRONGTYPE"):
            drop_old(stage.connection, stage.keys)


class TestTheUnfinished:
    def put(self, stage, snapshot_id, count):
        stage.connection.write([Put(key=stage.keys.chunk(snapshot_id, n), value=b"x") for n in range(count)])

    def drop(self, stage, before):
        drop_unfinished(stage.connection, stage.keys, before=before)

    def test_chunks_without_a_manifest_are_deleted(self, stage):
        take(stage, b"4-2")
        self.put(stage, b"4-3", 7)
        self.drop(stage, b"5-1")
        assert chunks(stage, b"4-3") == []

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

        with pytest.raises(ServerRefused):
            drop_unfinished(Refusing(stage.connection), stage.keys, before=b"2-1")

    def test_the_next_snapshot_deletes_what_an_actor_that_was_killed_left_behind(self, stage):
        stage.run(lambda: stage.event(input_tokens=1))  # leaves 1-1
        self.put(stage, b"1-2", 5)
        stage.run(lambda: stage.event(input_tokens=1))
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
        stage.actor(script, snapshot_every_ms=1_000, recovery_lease_ms=60_000).run()
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
        stage.actor(script, snapshot_every_ms=1_000, lease_ms=10**6, recovery_lease_ms=10**6).run()
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
        stage.actor(script, snapshot_every_ms=1_000, lease_ms=10**6, recovery_lease_ms=10**6).run()
        assert counts == [1, 2]

    def test_ids_are_the_epoch_and_a_number(self, stage, monkeypatch):
        monkeypatch.setattr(snapshots, "CHUNK_BYTES", 1 << 20)

        def more():
            stage.event(input_tokens=1)

        stage.run(more)
        stage.run(more, *[nothing] * 60, more, *[nothing] * 60, snapshot_every_entries=1)
        first, second, last = (entry_id for entry_id, _ in stage.snapshots())
        assert (first, second) == (b"1-1", b"2-1")
        assert last in {b"2-2", b"2-3"}  # one under way at the stop has used up its number

    def test_one_that_a_newer_epoch_has_overtaken_is_harmless(self, stage, caplog):
        stage.event(input_tokens=1)
        stage.connection.write([Append(key=stage.keys.snapshots, fields=[b"a", b"b"], entry_id=b"9-1")])
        stage.run(nothing)
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
        stage.actor(script, recorder, snapshot_every_ms=1_000, lease_ms=10**6, recovery_lease_ms=10**6).run()
        assert script.waits_s == [0.05]
        manifest = list_manifests(stage.connection, stage.keys)[0]
        assert load_snapshot(stage.connection, stage.keys, manifest, None).total()["requests"] == 10

    def test_one_under_way_when_the_actor_stops_leaves_no_chunk_behind(self, stage):
        script = Script(
            nothing, lambda: [stage.event(input_tokens=1) for _ in range(100)], lambda: script.advance(1_000),
            nothing, nothing, lambda: stage.event(input_tokens=1),
        )  # fmt: skip
        stage.actor(script, snapshot_every_ms=1_000).run()
        (manifest,) = list_manifests(stage.connection, stage.keys)
        assert manifest.position.entries == 101
        assert load_snapshot(stage.connection, stage.keys, manifest, None).total()["requests"] == 101
        assert [manifest.snapshot_id, chunks(stage, b"1-1")] == [b"1-2", []]

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

    def test_an_actor_that_lost_its_lease_while_it_drained_takes_none(self, stage):
        script = Script(nothing, nothing)
        recorder = Recorder(stage.connect())
        read = stage.connect().read
        drained = []

        def losing(after, *, count, block_ms):
            if not script._steps and len(drained) < 5:
                drained.append(stage.event(input_tokens=1))
                if len(drained) == 3:
                    stage.connection.write([Put(key=stage.keys.leader, value=b"9:other")])
                    script.advance(10_000)
            return read(after, count=count, block_ms=block_ms)

        stage.event(input_tokens=1)
        recorder.read = losing
        stage.actor(script, recorder, drain_ms=60_000).run()
        assert len(drained) == 3
        assert stage.snapshots() == []
        assert stage.connection.get(stage.keys.leader) == b"9:other"

    def test_it_is_logged_with_where_it_ends(self, stage, caplog):
        caplog.set_level(logging.INFO)
        last = stage.event(input_tokens=1)
        stage.run(nothing)
        (record,) = [record for record in caplog.records if record.action == "snapshot"]
        assert record.offset == last.decode()


def assert_same_state(one, other):
    """Compare two ledgers by everything that a snapshot holds."""
    assert flat(snapshot.dump(one)) == flat(snapshot.dump(other))


def flat(value):
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {name: flat(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [flat(each) for each in value]
    return value
