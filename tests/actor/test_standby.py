"""Two actors on one log: one leads, the other has the same state and takes over."""

from __future__ import annotations

import logging

import pytest

from tests.actor.conftest import LEASE_MS
from token_actor.actor.manifests import list_manifests
from token_actor.errors import LeadershipLost, ServerUnavailable, SnapshotError
from token_actor.transport.ports import Append, Delete, DeleteEntries, Put, TrimBelow

BROKEN = b"{broken"


@pytest.fixture
def leader(stage):
    """An actor that leads."""
    return stage.player("a").step(2)


@pytest.fixture
def standby(stage, leader):
    """An actor that stands by."""
    return stage.player("b").step(2)


def write_some_of_everything(stage, n=0):
    stage.batch(50, input_tokens=3, agent="a", model="m")
    stage.event(input_tokens=5, message_id=f"m{n}", session="s", tags={"k": "v"}, cost_usd="0.1")
    stage.event(input_tokens=5, message_id=f"m{n}", session="s")
    stage.event(input_tokens=6, message_id=f"m{n}", session="s")
    stage.append(b"j", BROKEN)
    stage.command("record", f"r{n}", event={"input_tokens": 7, "session": "s"})
    stage.command("reset", f"s{n}", tenant="default", session="s")
    stage.event(output_tokens=5, timestamp=1_000_000_000, tenant="t2")


def trim(stage, below):
    stage.connection.write([TrimBelow(key=stage.keys.log, entry_id=below)])


def actions(caplog, level=logging.WARNING):
    return [record.action for record in caplog.records if record.levelno >= level]


class TestStandingBy:
    def test_it_has_the_state_of_the_leader(self, stage, leader, standby):
        for n in range(3):
            write_some_of_everything(stage, n)
            leader.step()
            standby.step()
        assert standby.state == leader.state
        assert standby.position.offset == leader.position.offset

    def test_however_the_two_have_cut_the_log_into_reads(self, stage, leader, standby):
        for n in range(20):
            write_some_of_everything(stage, n)
            leader.step()
        standby.step(3)
        assert standby.state == leader.state

    def test_also_when_one_began_with_a_snapshot(self, stage, leader, standby):
        write_some_of_everything(stage)
        leader.step()
        standby.stop()
        write_some_of_everything(stage, 1)
        leader.actor._saving.hurry()
        leader.step(30)
        assert len(stage.snapshots()) == 1
        late = stage.player("c").step(2)
        write_some_of_everything(stage, 2)
        assert late.step().state == leader.step().state

    def test_it_writes_nothing(self, stage, leader, standby):
        stage.append(b"j", BROKEN)
        stage.command("record", "1", event={"input_tokens": 7})
        stage.ask()
        standby.recorder.calls.clear()
        standby.step(5, after_ms=10)
        assert not {"write", "write_if", "exchange"} & set(standby.recorder.calls)
        assert stage.answers() == stage.dead() == []

    def test_it_says_so_once(self, stage, leader, caplog):
        caplog.set_level(logging.INFO)
        stage.player("b").step(20, after_ms=10)
        assert actions(caplog, logging.INFO) == ["recovered", "standing_by"]

    def test_it_waits_for_the_log_as_long_as_it_may(self, stage, leader):
        standby = stage.player("b", standby_block_ms=7).step(2)
        assert set(standby.recorder.blocks_ms) == {7}

    def test_an_idle_step_is_one_read(self, stage, standby):
        standby.recorder.calls.clear()
        standby.step(3)
        assert standby.recorder.calls == ["read"] * 3

    def test_while_the_server_is_away_it_waits_and_goes_on(self, stage, leader, standby):
        standby.recorder.fail["read"] = [ServerUnavailable("gone")]
        with pytest.raises(ServerUnavailable):
            standby.step()
        stage.event(input_tokens=1)
        assert standby.step().requests == 1


class TestTakingOver:
    def test_a_lease_that_is_given_back_is_noticed_with_the_next_look(self, stage, leader, standby):
        stage.event(input_tokens=1)
        leader.stop()
        stage.ask("analytics")
        standby.step(2, after_ms=LEASE_MS // 20).step()
        assert standby.epoch == 2
        assert [(answer.epoch, answer.result["requests"]) for answer in stage.answers()] == [(2, 1)]

    def test_a_leader_that_was_killed_is_waited_out(self, stage, leader, standby):
        standby.step(3, after_ms=LEASE_MS // 4)
        assert standby.epoch == 0
        standby.step(2, after_ms=LEASE_MS // 4)
        assert standby.epoch == 2

    def test_one_that_still_renews_is_not_overtaken(self, stage, leader, standby):
        for _ in range(20):
            leader.actor._leadership._lease_ms += 1  # as if the server's clock had moved on
            leader.look()
            standby.look()
        assert (leader.epoch, standby.epoch) == (1, 0)

    def test_it_recounts_nothing(self, stage, leader, standby):
        write_some_of_everything(stage)
        leader.step()
        standby.step().outlast()
        before = standby.state
        standby.step(3)
        assert standby.state == before == leader.state

    def test_it_reads_no_old_entry(self, stage, leader, standby):
        write_some_of_everything(stage)
        standby.step()
        reads = []
        standby.actor._follower.fold = lambda entries, **_: reads.append(entries)
        standby.outlast()
        assert standby.epoch == 2
        assert reads == []

    def test_a_leader_that_comes_back_changes_nothing(self, stage, leader, standby):
        standby.outlast()
        stage.append(b"j", BROKEN)
        with pytest.raises(LeadershipLost):
            leader.step()
        assert (leader.epoch, stage.dead()) == (0, [])
        standby.step(3)
        leader.step(3)
        assert [letter.raw for letter in stage.dead()] == [BROKEN]
        assert leader.state == standby.state

    def test_it_saves_and_trims_nothing_either(self, stage, leader, standby):
        for n in range(3):
            write_some_of_everything(stage, n)
            leader.actor._saving.hurry()
            leader.step(30)
        standby.outlast()
        write_some_of_everything(stage, 3)
        standby.actor._saving.hurry()
        standby.step(30)
        before = stage.log_entries(), stage.snapshots()
        leader.actor._saving.hurry()
        with pytest.raises(LeadershipLost):
            leader.step(30)
        assert (stage.log_entries(), stage.snapshots()) == before

    def test_a_request_that_the_dead_leader_carried_out_has_the_same_answer(self, stage, leader, standby):
        stage.command("record", "1", event={"input_tokens": 7})
        leader.step()
        standby.step().outlast()
        stage.command("record", "1", event={"input_tokens": 7})
        standby.step()
        first, again = stage.answers()
        assert (first.epoch, again.epoch) == (1, 2)
        assert first.result == again.result == {"counted": True, "reason": None}
        assert standby.requests == 1

    def test_it_answers_only_once_it_has_folded_what_was_in_the_log(self, stage, leader, standby):
        for n in range(600):
            stage.event(input_tokens=n)
        leader.stop()
        stage.ask("analytics")
        standby.step(after_ms=LEASE_MS // 20)
        while not stage.answers():
            standby.step()
        assert [answer.result["requests"] for answer in stage.answers()] == [600]

    @pytest.mark.parametrize("call", ["stream_state", "write_if"])
    def test_one_that_is_interrupted_is_finished_by_the_next_step(self, stage, leader, standby, call):
        stage.event(input_tokens=1)
        leader.stop()
        standby.step()
        fail_when_leading(standby, call)
        with pytest.raises(ServerUnavailable):
            standby.step(after_ms=LEASE_MS // 20)
        stage.ask("analytics")
        standby.step(3, after_ms=LEASE_MS // 20)
        assert standby.epoch == standby.actor._desk.epoch > 1
        assert [(answer.epoch, answer.result["requests"]) for answer in stage.answers()] == [(standby.epoch, 1)]

    def test_one_that_is_interrupted_and_overtaken_stands_by(self, stage, leader, standby):
        leader.stop()
        fail_when_leading(standby, "stream_state")
        with pytest.raises(ServerUnavailable):
            standby.step(after_ms=LEASE_MS // 20)
        assert standby.epoch == 2
        stage.connection.write([Put(key=stage.keys.leader, value=b"3:c"), Put(key=stage.keys.epoch, value=b"3")])
        with pytest.raises(LeadershipLost):
            standby.step()
        assert standby.step().epoch == 0

    def test_one_that_is_interrupted_and_stopped_gives_the_lease_back(self, stage, leader, standby):
        leader.stop()
        fail_when_leading(standby, "stream_state")
        with pytest.raises(ServerUnavailable):
            standby.step(after_ms=LEASE_MS // 20)
        standby.stop()
        assert stage.connection.get(stage.keys.leader) == b"2:"


def fail_when_leading(player, name):
    """Let a connection break at the first such call after the lease was taken."""
    recorder, leadership = player.recorder, player.actor._leadership
    claim = leadership.contend

    def contend(ticks_ms):
        leads = claim(ticks_ms)
        if leads:
            recorder.fail[name] = [ServerUnavailable("gone")]
        return leads

    leadership.contend = contend


class TestDeadLettersOfADeadLeader:
    def test_those_that_it_had_not_written_are_written(self, stage, leader, standby):
        entry_id = stage.append(b"j", BROKEN)
        leader.recorder.fail["write_if"] = [ServerUnavailable("gone")]
        with pytest.raises(ServerUnavailable):
            leader.step()
        standby.step().outlast()
        standby.step()
        assert [letter.source for letter in stage.dead()] == [entry_id]

    def test_none_is_written_twice(self, stage, leader, standby):
        stage.append(b"j", BROKEN)
        leader.step()
        entry_id = stage.append(b"j", BROKEN)
        standby.step().outlast()
        standby.step()
        assert len(stage.dead()) == 2
        assert stage.dead()[-1].source == entry_id

    def test_one_that_an_operator_has_dropped_does_not_come_back(self, stage, leader, standby):
        entry_id = stage.append(b"j", BROKEN)
        leader.step()
        standby.step()
        stage.connection.write([DeleteEntries(key=stage.keys.dead, entry_ids=[entry_id])])
        standby.outlast()
        standby.step()
        assert stage.dead() == []

    def test_those_that_are_written_are_forgotten_meanwhile(self, stage, leader, standby):
        for _ in range(10):
            stage.append(b"j", BROKEN)
        standby.step()
        assert len(standby.actor._letters) == 10
        leader.step()
        standby.look()
        assert len(standby.actor._letters) == 0

    def test_a_stream_of_dead_letters_that_is_something_else_does_not_keep_it_from_leading(
        self, stage, leader, standby
    ):
        stage.append(b"j", BROKEN)
        standby.step()
        leader.stop()
        stage.connection.write([Delete(keys=[stage.keys.dead]), Put(key=stage.keys.dead, value=b"no stream")])
        standby.step(after_ms=LEASE_MS // 20)
        stage.ask()
        standby.step(2)
        assert [answer.epoch for answer in stage.answers()] == [2]


class TestALogThatWasTrimmedUnderIt:
    def test_by_the_leaders_snapshots_it_begins_anew_with_the_newest(self, stage, leader, standby):
        for n in range(4):
            write_some_of_everything(stage, n)
            leader.actor._saving.hurry()
            leader.step(30)
        assert stage.state(stage.keys.log).length < 32
        standby.look().step(2)
        assert standby.state == leader.state
        assert standby.position == leader.position

    def test_by_hand_it_waits_for_the_leader_to_save_what_it_has(self, stage, leader, standby, caplog):
        for _ in range(10):
            stage.event(input_tokens=1)
        leader.step()
        trim(stage, stage.event(input_tokens=1))
        standby.look().step(2)
        assert not standby.actor._follower.recovered
        assert standby.script.waits_s == [1.0, 1.0]
        assert actions(caplog) == ["snapshot_awaited"]
        leader.actor._saving.hurry()
        leader.step(30)
        standby.step(3)
        assert standby.state == leader.state

    def test_when_the_leader_dies_before_it_has_saved_what_the_log_lacks_it_refuses_to_lead(
        self, stage, leader, standby
    ):
        for _ in range(10):
            stage.event(input_tokens=1)
        leader.step()
        trim(stage, stage.event(input_tokens=1))
        standby.look()
        with pytest.raises(SnapshotError):
            standby.outlast()
        assert standby.epoch == 0
        assert stage.connection.get(stage.keys.leader) == b"1:a"

    def test_when_nobody_leads_it_refuses(self, stage, leader, standby):
        for _ in range(10):
            stage.event(input_tokens=1)
        leader.stop()
        trim(stage, stage.event(input_tokens=1))
        late = stage.player("c")
        with pytest.raises(SnapshotError):
            late.step()
        assert stage.connection.get(stage.keys.leader) == b"1:"

    def test_a_snapshot_that_goes_while_it_is_loaded_is_no_reason_to_give_up(self, stage, leader):
        stage.event(input_tokens=1)
        leader.actor._saving.hurry()
        leader.step(30)
        late = stage.player("c")
        (manifest,) = list_manifests(stage.connection, stage.keys)
        chunk = stage.keys.chunk(manifest.snapshot_id, 0)
        value = stage.connection.get(chunk)
        trim(stage, stage.event(input_tokens=1))
        stage.connection.write([Delete(keys=[chunk])])
        late.recorder.stream_state = lambda key: (
            stage.connection.write([Put(key=chunk, value=value)]), stage.connection.stream_state(key)
        )[1]  # fmt: skip
        late.step(2)
        assert late.requests == 2

    def test_a_leader_takes_a_snapshot_of_what_it_lost_at_once(self, stage, leader, standby, caplog):
        stage.event(input_tokens=1)
        leader.step()
        trim(stage, [stage.event(input_tokens=1) for _ in range(10)][-1])
        leader.look().step(30)
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert (record.action, record.lost) == ("log_trimmed", 9)
        assert (leader.requests, leader.position.lost) == (2, 9)
        standby.look().step(3)
        assert standby.position == leader.position
        status = stage_status(stage, leader)
        assert (status["lost_entries"], status["entries"]) == (9, 11)


def stage_status(stage, player):
    stage.ask("status", request_id="s")
    player.step()
    return stage.answers()[-1].result


class TestEntriesThatWereDeletedAheadOfIt:
    def test_the_leader_counts_them_as_lost_and_goes_on_answering(self, stage, leader, caplog):
        stage.event(input_tokens=1)
        leader.step()
        ids = [stage.event(input_tokens=1) for _ in range(3)]
        stage.connection.write([DeleteEntries(key=stage.keys.log, entry_ids=ids)])
        leader.look()
        stage.ask("status", after=ids[-1])
        leader.step()
        (answer,) = stage.answers()
        assert answer.result["lost_entries"] == 3
        assert actions(caplog) == ["log_trimmed"]
        stage.event(input_tokens=1)
        assert leader.look().requests == 2
        assert actions(caplog) == ["log_trimmed"]

    def test_who_leads_next_answers_too(self, stage, leader, standby):
        first = stage.event(input_tokens=1)
        leader.step()
        ids = [stage.event(input_tokens=1) for _ in range(3)]
        stage.connection.write([DeleteEntries(key=stage.keys.log, entry_ids=ids)])
        leader.look().step(30)
        leader.stop()
        stage.ask("status", after=first)
        standby.look().step(3, after_ms=LEASE_MS // 20)
        (answer,) = stage.answers()
        assert (answer.epoch, answer.result["lost_entries"]) == (2, 3)

    def test_an_entry_that_was_read_may_be_deleted(self, stage, leader, caplog):
        ids = [stage.event(input_tokens=1) for _ in range(3)]
        leader.look()
        generation = leader.position.generation
        stage.connection.write([DeleteEntries(key=stage.keys.log, entry_ids=[ids[-1]])])
        for _ in range(5):
            leader.look()
        assert leader.position.generation == generation
        stage.event(input_tokens=1)
        leader.step()
        assert leader.requests == 4
        assert actions(caplog) == []


class TestANewerGeneration:
    def test_a_snapshot_of_it_is_what_a_standby_goes_on_with(self, stage, leader, standby):
        stage.event(input_tokens=1)
        leader.step()
        standby.step()
        leader.stop()
        stage.connection.write([Delete(keys=[stage.keys.log])])
        stage.event(input_tokens=10)
        other = stage.player("c", snapshot_every_ms=0).step(40, after_ms=10)
        assert other.epoch == 2
        standby.look().step(2)
        assert standby.position.generation == other.position.generation
        assert standby.state == other.state

    def test_letters_of_a_state_that_was_let_go_are_not_written(self, stage, leader, standby):
        for _ in range(3):
            stage.event(input_tokens=1)
        leader.look()
        standby.look()
        stage.replace_log([(b"5-1", [b"j", b'{"input_tokens": 100}'])])
        standby.look().step(2)  # it has read nothing of this log, and is in doubt
        leader.look().step(40)
        standby.look().step(2)
        assert len(standby.actor._letters) <= 1
        assert standby.state == leader.state


def test_a_snapshot_that_cannot_be_read_is_said_and_no_reason_to_let_go_of_the_state(stage, leader, standby, caplog):
    stage.connection.write([Append(key=stage.keys.snapshots, fields=[b"a", b"b"], entry_id=b"1-1")])
    standby.look()
    assert "snapshot_damaged" in actions(caplog)
    assert standby.actor._follower.recovered
