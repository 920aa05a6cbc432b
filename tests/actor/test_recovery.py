"""Recovery: the newest whole snapshot and the log from there on, or nothing; never a part that looks like all."""

from __future__ import annotations

import logging

import pytest

from tests.actor.conftest import Script, nothing
from tests.actor.test_snapshots import assert_same_state, recovered, take
from token_actor.actor import snapshots
from token_actor.actor.recovery import recover, replay
from token_actor.core.ledger import Bounds
from token_actor.errors import SnapshotError
from token_actor.transport.ports import Append, Delete, DeleteEntries, Increment, Put, TrimBelow


def snapshots_of(stage, *counts):
    """Write so many events before each snapshot of epoch 1; return the id of the last entry before each."""
    stage.connection.write([Increment(key=stage.keys.epoch)])
    ends = []
    for number, count in enumerate(counts, start=1):
        ends += [stage.event(input_tokens=1, session=f"s{number}") for _ in range(count)][-1:]
        take(stage, b"1-%d" % number)
    return ends


def damage(stage, snapshot_id, index=0):
    stage.connection.write([Put(key=stage.keys.chunk(snapshot_id, index), value=b"damaged")])


def actions(caplog):
    return [record.action for record in caplog.records]


class TestTheStart:
    def test_an_empty_namespace_is_an_empty_state(self, stage):
        state = recover(stage.connection, stage.keys)
        assert (state.position.offset, state.position.entries, state.manifest) == (b"0-0", 0, None)
        assert state.ledger.total()["requests"] == 0

    def test_without_a_snapshot_the_log_is_all_there_is(self, stage):
        last = [stage.event(input_tokens=n) for n in range(10)][-1]
        state = recovered(stage)
        assert (state.position.offset, state.position.entries) == (last, 10)
        assert state.ledger.total()["input_tokens"] == 45

    def test_the_newest_snapshot_is_where_it_begins(self, stage):
        ends = snapshots_of(stage, 5, 5)
        state = recover(stage.connection, stage.keys)
        assert (state.manifest.snapshot_id, state.position.offset, state.position.entries) == (b"1-2", ends[1], 10)
        assert state.ledger.total()["requests"] == 10

    def test_what_came_after_the_snapshot_is_replayed(self, stage):
        snapshots_of(stage, 5)
        last = stage.event(input_tokens=100)
        state = recovered(stage)
        assert (state.position.offset, state.position.entries) == (last, 6)
        assert state.ledger.total()["input_tokens"] == 105

    def test_bounds_are_those_of_the_settings(self, stage):
        for n in range(10):
            stage.event(input_tokens=1, session=f"s{n}")
        bounds = Bounds(recent_events_max=3)
        state = recover(stage.connection, stage.keys, bounds)
        replay(stage.connection, stage.keys, state, epoch=1, on_read=lambda *_: None)
        assert len(state.ledger.recent) == 3

    def test_it_is_logged_with_where_it_ends(self, stage, caplog):
        caplog.set_level(logging.INFO)
        last = stage.event(input_tokens=1)
        stage.saved()
        stage.run(nothing)
        first, second = [record for record in caplog.records if record.action == "recovered"]
        assert (first.offset, second.offset) == ("0-0", last.decode())


class TestReplay:
    def test_it_reads_all_of_a_long_log(self, stage):
        reads = []
        for n in range(1_100):
            stage.event(input_tokens=n)
        state = recover(stage.connection, stage.keys)
        replay(stage.connection, stage.keys, state, epoch=1, on_read=lambda _, entries: reads.append(entries))
        assert reads == [512, 512, 76]
        assert state.ledger.total()["requests"] == 1_100

    def test_it_can_end_at_an_entry(self, stage):
        ids = [stage.event(input_tokens=1) for _ in range(10)]
        state = recover(stage.connection, stage.keys)
        replay(stage.connection, stage.keys, state, epoch=1, on_read=lambda *_: None, until=ids[4])
        assert (state.position.offset, state.position.entries) == (ids[4], 5)

    def test_it_ends_where_the_log_ended_when_it_began(self, stage):
        stage.event(input_tokens=1)
        state = recover(stage.connection, stage.keys)
        replay(stage.connection, stage.keys, state, epoch=1, on_read=lambda *_: stage.event(input_tokens=1))
        assert state.position.entries == 1

    def test_it_ends_when_what_was_left_has_been_deleted(self, stage):
        ids = [stage.event(input_tokens=1) for _ in range(3)]
        state = recover(stage.connection, stage.keys)
        stage.connection.write([DeleteEntries(key=stage.keys.log, entry_ids=ids)])
        replay(stage.connection, stage.keys, state, epoch=1, on_read=lambda *_: None)
        assert state.position.entries == 0

    def test_commands_are_answered_again_and_dead_letters_returned(self, stage):
        stage.command("record", "1", event={"input_tokens": 7})
        stage.append(b"j", b"broken")
        found = []
        state = recover(stage.connection, stage.keys)
        replay(stage.connection, stage.keys, state, epoch=4, on_read=lambda folded, _: found.append(folded))
        ((client, answer),) = found[0].answers
        assert (client, answer.request_id, answer.epoch) == ("c", "1", 4)
        assert [letter.reason for letter in found[0].dead] == ["decode"]


class TestEqualStates:
    def write_some_of_everything(self, stage):
        stage.batch(50, input_tokens=3, agent="a", model="m")
        stage.event(input_tokens=5, message_id="m1", session="s", tags={"k": "v"}, cost_usd="0.1")
        stage.event(input_tokens=5, message_id="m1", session="s")
        stage.event(input_tokens=6, message_id="m1", session="s")
        stage.append(b"j", b"broken")
        stage.command("record", "1", event={"input_tokens": 7, "session": "s", "message_id": "m2"})
        stage.command("reset", "2", tenant="default", session="s")
        stage.event(output_tokens=5, timestamp=1_000_000_000, tenant="t2")

    def lived(self, stage, times, **settings):
        """Return an actor that has lived through so much of everything."""
        player = stage.player("live", **settings).step()
        for _ in range(times):
            self.write_some_of_everything(stage)
            player.step()
        return player

    def assert_same(self, again, player):
        assert again.position.offset == player.position.offset
        assert again.position.entries == player.position.entries
        assert_same_state(again.ledger, player.actor._follower.ledger)

    def test_a_replay_gives_the_state_of_the_actor_that_lived_through_it(self, stage):
        live = self.lived(stage, 3)
        self.assert_same(recovered(stage), live)

    def test_a_snapshot_and_a_replay_give_it_too(self, stage):
        self.write_some_of_everything(stage)
        stage.saved()
        live = self.lived(stage, 2)
        again = recover(stage.connection, stage.keys)
        assert again.manifest.snapshot_id == b"1-1"
        replay(stage.connection, stage.keys, again, epoch=1, on_read=lambda *_: None)
        self.assert_same(again, live)

    def test_a_snapshot_alone_gives_it_too(self, stage):
        live = self.lived(stage, 3, snapshot_every_entries=20)
        live.step(50)
        self.assert_same(recover(stage.connection, stage.keys), live)

    def test_what_an_actor_was_killed_over_is_there_again(self, stage):
        script = Script(nothing, *[lambda: self.write_some_of_everything(stage)] * 3, explode)
        actor = stage.actor(script)
        with pytest.raises(RuntimeError):
            actor.run()
        assert stage.snapshots() == []
        assert_same_state(recovered(stage).ledger, actor._follower.ledger)


def explode():
    """End an actor as kill -9 would: no teardown, nothing written."""
    raise RuntimeError


class TestDedupeAcrossRestarts:
    def test_a_batch_that_is_sent_again_after_a_restart_is_a_duplicate(self, stage):
        stage.run(lambda: stage.batch(10, input_tokens=1))
        _, fields = stage.connection.range(stage.keys.log, count=1)[0]
        stage.run(lambda: stage.append(*fields))
        total = stage.total()
        assert (total["requests"], total["duplicates"]) == (10, 10)

    def test_a_message_id_that_comes_again_after_a_restart_is_a_duplicate(self, stage):
        stage.run(lambda: stage.event(input_tokens=1, message_id="m"))
        stage.run(lambda: stage.event(input_tokens=1, message_id="m"))
        total = stage.total()
        assert (total["requests"], total["duplicates"]) == (1, 1)

    def test_a_hole_that_was_seen_before_a_restart_is_still_one_and_can_be_filled(self, stage):
        stage.run(lambda: stage.batch(5, input_tokens=1, first_seq=5))
        assert stage.status()["missing"] == 5
        stage.run(lambda: stage.batch(5, input_tokens=1, first_seq=0))
        status = stage.status()
        assert (status["missing"], status["events"]) == (0, 10)

    def test_counts_of_dead_letters_survive(self, stage):
        stage.run(lambda: stage.append(b"j", b"broken"))
        assert stage.status()["dead"] == {"decode": 1}


class TestDamage:
    @pytest.mark.parametrize("what", ["damaged", "missing"])
    def test_a_chunk_that_is_damaged_or_missing_makes_it_fall_back(self, stage, caplog, what):
        snapshots_of(stage, 5, 5)
        if what == "damaged":
            damage(stage, b"1-2", 3)
        else:
            stage.connection.write([Delete(keys=[stage.keys.chunk(b"1-2", 3)])])
        state = recovered(stage)
        assert state.manifest.snapshot_id == b"1-1"
        assert state.ledger.total()["requests"] == 10
        (record,) = caplog.records
        assert record.action == "snapshot_damaged"
        assert record.problem == f"chunk 3 of snapshot 1-2 is {what}"

    def test_a_manifest_that_is_damaged_makes_it_fall_back(self, stage, caplog):
        snapshots_of(stage, 5)
        stage.event(input_tokens=1)
        stage.connection.write(
            [Append(key=stage.keys.snapshots, fields=[b"manifest", b"x", b"digest", b"y"], entry_id=b"1-2")]
        )
        state = recovered(stage)
        assert state.manifest.snapshot_id == b"1-1"
        assert state.ledger.total()["requests"] == 6
        assert actions(caplog) == ["snapshot_damaged"]

    def test_with_two_damaged_the_third_will_do(self, stage, caplog):
        snapshots_of(stage, 5, 5, 5)
        damage(stage, b"1-3")
        damage(stage, b"1-2")
        state = recovered(stage)
        assert state.manifest.snapshot_id == b"1-1"
        assert state.ledger.total()["requests"] == 15
        assert actions(caplog) == ["snapshot_damaged"] * 2

    def test_with_all_damaged_and_a_whole_log_the_log_is_enough(self, stage):
        snapshots_of(stage, 5, 5)
        damage(stage, b"1-1")
        damage(stage, b"1-2")
        state = recovered(stage)
        assert state.manifest is None
        assert state.ledger.total()["requests"] == 10

    def test_with_all_damaged_and_a_trimmed_log_it_refuses_to_start(self, stage):
        snapshots_of(stage, 5, 5, 5, 5)
        for n in (2, 3, 4):
            damage(stage, b"1-%d" % n)
        with pytest.raises(SnapshotError, match="^9 entries of the log removed before they could be counted"):
            recover(stage.connection, stage.keys)

    def test_a_state_of_another_version_is_passed_over(self, stage, monkeypatch, caplog):
        snapshots_of(stage, 5)
        with monkeypatch.context() as patch:
            patch.setattr("token_actor.core.snapshot.STATE_VERSION", 99)
            snapshots_of_version_99 = take(stage, b"1-2")
        assert snapshots_of_version_99.snapshot_id == b"1-2"
        assert recovered(stage).manifest.snapshot_id == b"1-1"
        assert "99" in caplog.records[0].problem

    def test_every_flipped_byte_of_every_chunk_is_noticed(self, memory_stage, monkeypatch):
        stage = memory_stage
        monkeypatch.setattr(snapshots, "CHUNK_BYTES", 300)
        manifest = take_one(stage)
        for index in range(len(manifest.chunks)):
            key = stage.keys.chunk(b"1-1", index)
            whole = stage.connection.get(key)
            for place in {0, len(whole) // 2, len(whole) - 1}:
                damaged = bytearray(whole)
                damaged[place] ^= 0x40
                stage.connection.write([Put(key=key, value=bytes(damaged))])
                with pytest.raises(SnapshotError, match=f"^chunk {index} of snapshot 1-1 is damaged$"):
                    snapshots.load_snapshot(stage.connection, stage.keys, manifest, None)
            stage.connection.write([Put(key=key, value=whole)])


def take_one(stage):
    stage.event(input_tokens=1)
    return take(stage, b"1-1")


class TestGaps:
    def refusal(self, stage):
        with pytest.raises(SnapshotError) as refused:
            recover(stage.connection, stage.keys)
        return str(refused.value)

    def test_a_log_that_was_trimmed_without_a_snapshot_is_refused_with_what_can_be_done(self, stage):
        ids = [stage.event(input_tokens=1) for _ in range(10)]
        stage.connection.write([TrimBelow(key=stage.keys.log, entry_id=ids[3])])
        assert self.refusal(stage) == (
            "3 entries of the log removed before they could be counted: the state ends at 0-0, "
            "and the log begins later. Restore an older backup of the server, start a new namespace, "
            "or accept the loss with --accept-data-loss."
        )

    def test_a_log_that_was_trimmed_behind_the_snapshot_is_refused_with_where_that_ends(self, stage):
        (end,) = snapshots_of(stage, 5)
        ids = [stage.event(input_tokens=1) for _ in range(5)]
        stage.connection.write([TrimBelow(key=stage.keys.log, entry_id=ids[2])])
        assert self.refusal(stage).startswith(
            f"2 entries of the log removed before they could be counted: the state ends at {end.decode()}"
        )

    def test_a_log_that_was_trimmed_to_nothing_behind_the_snapshot_is_refused(self, stage):
        snapshots_of(stage, 5)
        last = [stage.event(input_tokens=1) for _ in range(5)][-1]
        trim_all(stage, last)
        assert self.refusal(stage).startswith("5 entries ")

    def test_one_whose_end_was_deleted_behind_the_snapshot_is_refused(self, stage):
        snapshots_of(stage, 5)
        ids = [stage.event(input_tokens=1) for _ in range(3)]
        stage.connection.write([DeleteEntries(key=stage.keys.log, entry_ids=ids)])
        assert self.refusal(stage).startswith("3 entries ")

    def test_an_actor_does_not_start_on_a_gap(self, stage):
        ids = [stage.event(input_tokens=1) for _ in range(10)]
        stage.connection.write([TrimBelow(key=stage.keys.log, entry_id=ids[3])])
        with pytest.raises(SnapshotError):
            stage.run(stage.ask)
        assert stage.answers() == []
        assert stage.snapshots() == []
        assert stage.connection.get(stage.keys.leader) is None

    def test_an_actor_that_may_lose_data_starts_on_it_and_counts_the_loss(self, stage, caplog):
        ids = [stage.event(input_tokens=1) for _ in range(10)]
        stage.connection.write([TrimBelow(key=stage.keys.log, entry_id=ids[3])])
        stage.run(stage.ask, nothing, accept_data_loss=True)
        (status,) = [answer.result for answer in stage.answers()]
        assert (status["events"], status["lost_entries"], status["entries"]) == (7, 3, 10)
        assert [(record.levelno, record.action, record.lost) for record in caplog.records] == [
            (logging.ERROR, "log_trimmed", 3)
        ]

    def test_it_answers_although_nothing_is_left_of_the_log(self, stage):
        last = [stage.event(input_tokens=1) for _ in range(10)][-1]
        trim_all(stage, last)
        stage.run(stage.ask, nothing, accept_data_loss=True)
        (status,) = [answer.result for answer in stage.answers()]
        assert (status["events"], status["lost_entries"]) == (0, 10)

    def test_nor_is_anything_missing_to_who_goes_on_from_its_snapshot(self, stage):
        first, *_, last = [stage.event(input_tokens=1) for _ in range(10)]
        trim_all(stage, last)
        stage.saved(accept_data_loss=True)
        stage.ask("status", after=first)
        stage.run(nothing)
        (status,) = [answer.result for answer in stage.answers()]
        assert (status["events"], status["lost_entries"]) == (0, 10)

    def test_a_loss_that_was_accepted_is_saved_and_needs_not_be_accepted_again(self, stage):
        ids = [stage.event(input_tokens=1) for _ in range(10)]
        stage.connection.write([TrimBelow(key=stage.keys.log, entry_id=ids[3])])
        stage.saved(accept_data_loss=True)
        status = stage.status()
        assert (status["events"], status["lost_entries"]) == (7, 3)

    def test_a_log_that_was_trimmed_up_to_the_snapshot_is_fine(self, stage):
        (end,) = snapshots_of(stage, 5)
        stage.event(input_tokens=1)
        stage.connection.write([TrimBelow(key=stage.keys.log, entry_id=end)])
        assert recovered(stage).ledger.total()["requests"] == 6

    def test_trimming_by_many_snapshots_leaves_no_gap(self, stage):
        for n in range(1, 8):
            for _ in range(n):
                stage.event(input_tokens=1)
            stage.saved()
        assert stage.state(stage.keys.log).length < 28
        assert stage.total()["requests"] == 28


def trim_all(stage, last):
    """Trim the log to nothing."""
    milliseconds, _, sequence = last.partition(b"-")
    stage.connection.write([TrimBelow(key=stage.keys.log, entry_id=b"%s-%d" % (milliseconds, int(sequence) + 1))])


class TestALogThatLostItsTail:
    def test_a_log_that_ends_before_the_snapshot_is_gone_on_with(self, stage):
        snapshots_of(stage, 5)
        entries = stage.connection.range(stage.keys.log, count=2)
        stage.connection.write([Delete(keys=[stage.keys.log])])
        stage.connection.write([Append(key=stage.keys.log, fields=f, entry_id=entry_id) for entry_id, f in entries])
        assert recovered(stage).ledger.total()["requests"] == 5

    def test_so_is_a_log_that_is_gone(self, stage):
        snapshots_of(stage, 5)
        stage.connection.write([Delete(keys=[stage.keys.log])])
        assert recovered(stage).ledger.total()["requests"] == 5

    def test_an_actor_says_so(self, stage, caplog):
        (end,) = snapshots_of(stage, 5)
        stage.connection.write([Delete(keys=[stage.keys.log])])
        stage.run(nothing)
        (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert (record.levelno, record.action, record.was) == (logging.ERROR, "log_replaced", end.decode())

    def test_what_comes_afterwards_is_counted(self, stage):
        snapshots_of(stage, 5)
        stage.connection.write([Delete(keys=[stage.keys.log])])
        stage.run(lambda: stage.event(input_tokens=10))
        assert stage.total()["input_tokens"] == 15

    def test_a_namespace_that_never_had_a_log_is_nothing_to_warn_of(self, stage, caplog):
        stage.run(nothing)
        assert caplog.records == []
