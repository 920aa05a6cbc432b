"""A log that was replaced under the actor: what was counted stays counted, what is new is counted once."""

from __future__ import annotations

import json
import logging

import pytest

from tests.actor.conftest import LEASE_MS
from token_actor.actor import continuity
from token_actor.actor.manifests import list_manifests
from token_actor.client.recording import make_event
from token_actor.errors import ServerRefused, ServerUnavailable
from token_actor.transport.ports import Append, Delete, Put
from token_actor.wire.batches import encode_batch
from token_actor.wire.entries import LAST_ID, id_pair

BROKEN = b"{broken"
WRONG = b"this is no stream"


def event(n, message_id=None):
    """Return the fields of an event of so many tokens."""
    fields = {"input_tokens": n} if message_id is None else {"input_tokens": n, "message_id": message_id}
    return [b"j", json.dumps(fields).encode()]


def batch(n, seq):
    """Return the fields of a batch of one event of so many tokens."""
    return [b"b", encode_batch([make_event({}, input_tokens=n)], producer=bytes(16), epoch=0, first_seq=seq)]


def replaced(caplog):
    """Return the records of replacements."""
    return [record for record in caplog.records if record.action == "log_replaced"]


def tokens(player):
    return int(player.actor._follower.ledger.total()["input_tokens"])


@pytest.fixture(autouse=True)
def nobody_tells_the_time(monkeypatch):
    """Leave the log as it is: the ids of these tests are of long ago."""
    monkeypatch.setattr("token_actor.actor.timekeeping.Timekeeper.look", lambda *_, **__: None)


@pytest.fixture
def leader(stage):
    """An actor that leads."""
    return stage.player("a").step(2)


def fill(stage, leader, count=10):
    """Put so many events of one token into the log, one read each; they have been seen to be there."""
    for n in range(1, count + 1):
        stage.add(b"%d-0" % (1_000 * n), *event(1))
        leader.step()
    leader.look()


class TestALeader:
    def test_counts_what_comes_after_a_deletion(self, stage, leader, caplog):
        fill(stage, leader)
        stage.connection.write([Delete(keys=[stage.keys.log])])
        leader.look()
        stage.event(input_tokens=5)
        leader.step()
        assert (leader.requests, tokens(leader)) == (11, 15)
        (record,) = replaced(caplog)
        assert (record.levelno, record.was, record.now, record.common) == (logging.ERROR, "10000-0", "0-0", None)

    def test_counts_what_came_before_it_noticed(self, stage, leader):
        fill(stage, leader)
        stage.replace_log([(b"20000-0", event(5)), (b"20001-0", event(6))])
        leader.step()
        stage.add(b"20002-0", *event(7))
        leader.look().step()
        assert (leader.requests, tokens(leader)) == (13, 28)
        assert stage.dead() == []

    def test_finds_entries_with_ids_below_those_it_has_read(self, stage, leader):
        fill(stage, leader)
        stage.replace_log([(b"500-0", batch(5, 0)), (b"501-0", event(6, "m"))])
        leader.look().step()
        assert (leader.requests, tokens(leader)) == (12, 21)

    def test_keeps_apart_what_may_have_been_counted_and_cannot_be_told(self, stage, leader, caplog):
        fill(stage, leader)
        stage.replace_log([(b"500-0", event(5)), (b"501-0", event(6, "m")), (b"20000-0", event(7))])
        leader.look().step()
        assert (leader.requests, tokens(leader)) == (12, 23)
        (letter,) = stage.dead()
        assert (letter.source, letter.reason, letter.whole) == (b"500-0", "unsure", True)
        (record,) = replaced(caplog)
        assert (record.new_entries, record.unsure) == (2, 1)
        assert leader.actor._follower.ledger.dead == {"unsure": 1}

    @pytest.mark.parametrize("kept", [1, 5, 9])
    def test_counts_once_what_an_older_copy_still_has(self, stage, leader, caplog, kept):
        fill(stage, leader)
        stage.replace_log(stage.log_entries()[:kept])
        leader.look()
        stage.add(b"30000-0", *event(5))
        leader.step()
        assert (leader.requests, tokens(leader)) == (11, 15)
        assert stage.dead() == []
        assert len(replaced(caplog)) == 1

    @pytest.mark.parametrize("ids", [[b"9500-0", b"9600-0"], [b"11000-0", b"12000-0"], [b"9500-0", b"12000-0"]])
    def test_counts_everything_a_new_master_took_that_lacked_the_end(self, stage, leader, ids):
        fill(stage, leader)
        stage.replace_log([*stage.log_entries()[:7], *((entry_id, event(5)) for entry_id in ids)])
        leader.look().step()
        assert (leader.requests, tokens(leader)) == (12, 20)
        assert stage.dead() == []

    def test_counts_what_is_sent_again_once(self, stage, leader):
        for seq in range(10):
            stage.add(b"%d-0" % (1_000 + seq), *batch(1, seq))
            leader.step()
        leader.look()
        stage.replace_log(stage.log_entries()[:5])
        for seq in range(3, 12):
            stage.add(b"%d-0" % (2_000 + seq), *batch(1, seq))
        leader.look().step()
        assert leader.requests == 12

    def test_commands_of_a_log_that_is_back_are_carried_out_once(self, stage, leader):
        stage.command("record", "1", event={"input_tokens": 7})
        leader.step()
        entries = stage.log_entries()
        stage.replace_log([(b"5-0", entries[0][1])])
        leader.look().step()
        assert leader.requests == 1

    def test_goes_on_answering(self, stage, leader):
        fill(stage, leader)
        stage.connection.write([Delete(keys=[stage.keys.log])])
        leader.look()
        entry_id = stage.add(b"77-0", *event(5))
        stage.ask("analytics", after=entry_id)
        leader.step()
        assert [answer.result["requests"] for answer in stage.answers()] == [11]

    def test_writes_the_letters_of_what_is_new_in_the_order_of_the_log(self, stage, leader):
        fill(stage, leader)
        stage.replace_log([(b"500-0", [b"j", BROKEN]), (b"501-0", event(5)), (b"502-0", [b"j", BROKEN])])
        leader.look().step()
        assert [(letter.source, letter.reason) for letter in stage.dead()] == [
            (b"500-0", "decode"), (b"501-0", "unsure"), (b"502-0", "decode"),
        ]  # fmt: skip

    def test_that_loses_everything_writes_lease_and_epoch_again(self, stage, leader):
        fill(stage, leader)
        stage.flush()
        leader.look().step(30)
        assert stage.connection.get(stage.keys.leader) == b"1:a"
        assert stage.connection.get(stage.keys.epoch) == b"1"
        assert [entry_id for entry_id, _ in stage.snapshots()] == [b"1-1"]
        leader.stop()
        stage.event(input_tokens=5)
        assert stage.total()["input_tokens"] == 15

    def test_takes_questions_from_the_beginning_when_their_stream_is_lost(self, stage, leader):
        stage.ask(request_id="1")
        leader.step()
        stage.connection.write([Delete(keys=[stage.keys.ask])])
        question = stage.ask(request_id="2")
        again = Append(
            key=stage.keys.ask, fields=stage.connection.range(stage.keys.ask, count=1)[0][1], entry_id=b"1-1"
        )
        stage.connection.write([Delete(keys=[stage.keys.ask]), again])
        leader.look().step()
        assert question > b"1-1"
        assert [answer.request_id for answer in stage.answers()] == ["1", "2"]


class TestOneThatIsInterrupted:
    @pytest.fixture(autouse=True)
    def short_reads(self, monkeypatch):
        monkeypatch.setattr(continuity, "ENTRIES_PER_READ", 2)

    def interrupt(self, stage, leader, after_calls):
        """Let the connection break in the middle of a rejoining."""
        calls = iter([True] * after_calls)
        ranged = stage.connection.range

        def breaking(*arguments, **options):
            if next(calls, None) is None:
                del leader.recorder.range
                raise ServerUnavailable("gone")
            return ranged(*arguments, **options)

        leader.recorder.range = breaking
        with pytest.raises(ServerUnavailable):
            leader.look()

    @pytest.mark.parametrize("after_calls", range(6))
    def test_counts_nothing_twice_and_loses_nothing(self, stage, leader, after_calls):
        fill(stage, leader)
        new = [(b"%d-0" % (20_000 + n), event(5) if n % 2 else [b"j", BROKEN]) for n in range(8)]
        stage.replace_log([(b"500-0", event(3)), *new])
        self.interrupt(stage, leader, after_calls)
        stage.add(b"30000-0", *event(100))
        leader.look().step(2)
        assert (leader.requests, tokens(leader)) == (10 + 4 + 1, 10 + 20 + 100)
        assert [letter.reason for letter in stage.dead()] == ["unsure", *["decode"] * 4]

    @pytest.mark.parametrize("after_calls", range(3, 9))
    def test_also_when_there_is_something_in_common(self, stage, leader, after_calls):
        fill(stage, leader)
        new = [(b"%d-0" % (20_000 + n), event(5)) for n in range(8)]
        stage.replace_log([*stage.log_entries()[:5], *new])
        self.interrupt(stage, leader, after_calls)
        leader.look().step(2)
        assert (leader.requests, tokens(leader)) == (18, 50)
        assert stage.dead() == []

    def test_is_in_doubt_about_all_of_a_log_that_was_replaced_once_more(self, stage, leader):
        fill(stage, leader)
        stage.replace_log([(b"%d-0" % (20_000 + n), event(5)) for n in range(8)])
        self.interrupt(stage, leader, 2)
        counted = leader.requests
        stage.replace_log([(b"40000-0", event(7)), (b"40001-0", event(8, "m"))])
        leader.look().step()
        assert counted > 10
        assert leader.requests == counted + 1
        assert [(letter.source, letter.reason) for letter in stage.dead()] == [(b"40000-0", "unsure")]

    def test_while_it_recovers_begins_the_recovery_anew(self, stage, leader):
        fill(stage, leader)
        leader.actor._saving.hurry()
        leader.step(30)
        leader.stop()
        stage.replace_log([(b"%d-0" % (20_000 + n), event(5)) for n in range(8)])
        other = stage.player("b")
        self.interrupt(stage, other, 4)
        assert not other.actor._follower.recovered
        other.look().step(5)
        assert (other.requests, tokens(other)) == (18, 50)


class TestANewLeader:
    @pytest.fixture(autouse=True)
    def saved(self, stage, leader):
        """Ten events and a snapshot of them; the leader has stopped."""
        fill(stage, leader)
        leader.actor._saving.hurry()
        leader.step(30)
        leader.stop()

    def test_counts_what_is_in_a_log_that_replaced_the_one_of_its_snapshot(self, stage):
        stage.replace_log([(b"500-0", event(5)), (b"501-0", event(6, "m")), (b"20000-0", event(7))])
        other = stage.player("b").step(3)
        assert (other.requests, tokens(other)) == (12, 23)
        assert [letter.reason for letter in stage.dead()] == ["unsure"]

    def test_is_in_doubt_about_what_its_snapshot_may_hold(self, stage):
        stage.replace_log(stage.log_entries()[:5])
        other = stage.player("b").step(3)
        assert (other.requests, tokens(other)) == (10, 10)
        assert [letter.reason for letter in stage.dead()] == ["unsure"] * 5

    def test_counts_a_new_generation_and_saves_it_at_once(self, stage):
        (before,) = list_manifests(stage.connection, stage.keys)
        stage.replace_log([(b"500-0", event(5, "m"))])
        other = stage.player("b").step(40)
        after = list_manifests(stage.connection, stage.keys)[0]
        assert before.position.generation < after.position.generation == other.position.generation
        assert (after.position.offset, after.position.entries) == (b"500-0", 1)

    def test_that_has_saved_it_is_in_doubt_no_more(self, stage):
        stage.replace_log([(b"500-0", event(5, "m"))])
        stage.player("b").step(40).stop()
        third = stage.player("c").step(3)
        third.look()
        assert (third.requests, tokens(third)) == (11, 15)
        assert not third.actor._follower.replaced

    def test_trims_nothing_of_the_new_log_by_the_snapshots_of_the_old_one(self, stage):
        stage.replace_log([(b"500-0", event(5, "m"))])
        other = stage.player("b")
        for n in range(6):
            other.step(40)
            stage.add(b"%d-0" % (600 + n), *event(1))
            stage.add(b"%d-1" % (600 + n), *event(1))
            other.actor._saving.hurry()
        other.step(40)
        assert (other.requests, other.position.lost) == (23, 0)
        assert other.look().position.lost == 0


class TestGenerations:
    def test_the_first_one_begins_when_somebody_leads(self, stage):
        player = stage.player("a").step(2)
        assert player.position.generation == player.script.now_ms

    def test_it_is_kept_across_restarts(self, stage, leader):
        stage.event(input_tokens=1)
        leader.actor._saving.hurry()
        leader.step(40)
        leader.stop()
        assert stage.player("b").step(2).position.generation == leader.position.generation

    def test_it_grows_with_each_replacement_although_the_clock_stands_still(self, stage, leader):
        generations = [leader.position.generation]
        for _ in range(3):
            stage.event(input_tokens=1)
            leader.step()
            stage.connection.write([Delete(keys=[stage.keys.log])])
            leader.actor._due_ms = 0
            leader.step()
            generations.append(leader.position.generation)
        assert generations == sorted(set(generations))

    def test_it_is_told(self, stage, leader):
        stage.ask("status")
        leader.step()
        assert stage.answers()[0].result["generation"] == leader.position.generation

    def test_it_does_not_grow_without_one(self, stage, leader):
        for n in range(5):
            stage.event(input_tokens=n)
            leader.look()
        assert leader.position.generation == leader.script.now_ms - leader.script.ticks_ms


class TestKeysOfAnotherType:
    def spoil(self, stage, key):
        stage.connection.write([Delete(keys=[key]), Put(key=key, value=WRONG)])

    def mend(self, stage, key):
        stage.connection.write([Delete(keys=[key])])

    def test_a_log_is_waited_for(self, stage, leader, caplog):
        fill(stage, leader)
        self.spoil(stage, stage.keys.log)
        for _ in range(2):
            with pytest.raises(ServerRefused, match="WRONGTYPE"):
                leader.look()
        assert stage.connection.get(stage.keys.leader) == b"1:a"
        self.mend(stage, stage.keys.log)
        stage.event(input_tokens=5)
        leader.look().step()
        assert tokens(leader) == 15

    def test_a_log_of_another_type_is_said_in_the_loop(self, stage, caplog):
        stage.event(input_tokens=1)
        stage.run(
            lambda: None, lambda: self.spoil(stage, stage.keys.log), lambda: None, lambda: None,
            lambda: self.mend(stage, stage.keys.log), lambda: stage.event(input_tokens=5),
            lambda: stage.ask("analytics"), lambda: None,
        )  # fmt: skip
        assert [record.action for record in caplog.records] == [
            "questions_unread", "server_refuses", "log_replaced", "server_back",
        ]  # fmt: skip
        assert stage.answers()[0].result["input_tokens"] == 6

    @pytest.mark.parametrize("heard", [False, True])
    def test_questions_are_left_alone_and_the_log_goes_on(self, stage, leader, caplog, heard):
        if heard:
            stage.ask(request_id="1")
            leader.step()
        self.spoil(stage, stage.keys.ask)
        leader.look().step(2)
        stage.event(input_tokens=1)
        leader.look().step(2)
        assert leader.requests == 1
        assert [record.action for record in caplog.records] == ["questions_unread"]
        self.mend(stage, stage.keys.ask)
        stage.ask(request_id="2")
        leader.look().step(2)
        assert stage.answers()[-1].request_id == "2"

    def test_dead_letters_are_kept_until_they_can_be_written(self, stage, leader, caplog):
        self.spoil(stage, stage.keys.dead)
        for _ in range(3):
            stage.append(b"j", BROKEN)
            leader.step()
        assert [record.action for record in caplog.records] == ["write_refused"]
        self.mend(stage, stage.keys.dead)
        leader.step()
        assert len(stage.dead()) == 3

    def test_while_they_cannot_nothing_is_saved(self, stage, leader):
        self.spoil(stage, stage.keys.dead)
        stage.append(b"j", BROKEN)
        leader.step()
        leader.actor._saving.hurry()
        leader.step(30)
        assert stage.snapshots() == []

    def test_a_lease_is_waited_for(self, stage, leader):
        stage.connection.write([Delete(keys=[stage.keys.leader])])
        stage.connection.write([Append(key=stage.keys.leader, fields=[b"a", b"b"])])
        with pytest.raises(ServerRefused, match="WRONGTYPE"):
            leader.look()
        self.mend(stage, stage.keys.leader)
        leader.look()
        assert stage.connection.get(stage.keys.leader) == b"1:a"

    def test_snapshots_are_not_taken_and_the_log_goes_on(self, stage, leader, caplog):
        self.spoil(stage, stage.keys.snapshots)
        stage.event(input_tokens=1)
        leader.actor._saving.hurry()
        leader.step(30)
        assert "snapshot_refused" in {record.action for record in caplog.records}
        stage.event(input_tokens=1)
        assert leader.step().requests == 2

    def test_an_inbox_loses_its_answers_and_nobody_elses(self, stage, leader, caplog):
        self.spoil(stage, stage.keys.inbox("c"))
        stage.ask()
        leader.step()
        assert [record.action for record in caplog.records] == ["write_refused"]
        self.mend(stage, stage.keys.inbox("c"))
        stage.ask(request_id="2")
        leader.step()
        assert [answer.request_id for answer in stage.answers()] == ["2"]

    def test_a_server_that_runs_somebodys_script_is_waited_for(self, memory_stage, caplog):
        recorder = memory_stage.player("a").recorder
        recorder.fail["read"] = [ServerRefused("BUSY Redis is busy running a script.")]
        memory_stage.run(*[lambda: None] * 3, connection=recorder)
        assert [record.action for record in caplog.records] == ["server_refuses", "server_back"]


class TestALogThatIsFull:
    def test_is_folded_saved_and_deleted_and_another_begins(self, stage, leader, caplog):
        stage.event(input_tokens=1)
        stage.add(LAST_ID, *event(2))
        leader.step()
        with pytest.raises(AssertionError):
            stage.event(input_tokens=3)
        leader.look()
        assert stage.connection.stream_state(stage.keys.log) is not None  # it is not saved yet
        leader.actor._saving.hurry()
        leader.step(30).look()
        assert stage.connection.stream_state(stage.keys.log) is None
        stage.event(input_tokens=4)
        leader.step()
        assert tokens(leader) == 7
        assert stage.dead() == []
        assert replaced(caplog) == []
        leader.step(30)
        leader.stop()
        assert stage.total()["input_tokens"] == 7

    def test_counts_what_came_between_the_deletion_and_a_crash(self, stage, leader):
        stage.add(LAST_ID, *event(2))
        leader.step()
        leader.actor._saving.hurry()
        leader.step(30).look()
        stage.add(b"5-0", *event(4, "m"))
        other = stage.player("b").step(2).outlast().step(3)
        assert (other.epoch, tokens(other)) == (2, 6)

    def test_its_last_entry_may_be_a_dead_letter_and_others_follow(self, stage, leader):
        stage.append(b"j", BROKEN)
        stage.add(LAST_ID, b"j", BROKEN)
        leader.step()
        leader.actor._saving.hurry()
        leader.step(30).look()
        later_ms = id_pair(stage.state(stage.keys.dead).last_id)[0] + 1  # a dead letter has the id of its entry
        stage.add(b"%d-0" % later_ms, b"j", BROKEN + b"2")
        leader.step()
        assert [letter.raw for letter in stage.dead()] == [BROKEN, BROKEN, BROKEN + b"2"]

    def test_so_are_questions(self, stage, leader):
        stage.ask(request_id="1")
        question = stage.connection.range(stage.keys.ask, count=1)[0][1]
        stage.connection.write([Append(key=stage.keys.ask, fields=question, entry_id=LAST_ID)])
        leader.step().look()
        stage.ask(request_id="2")
        leader.step()
        assert [answer.request_id for answer in stage.answers()] == ["1", "1", "2"]


def test_a_leader_that_was_paused_while_the_log_was_replaced_and_another_led_changes_nothing(stage, leader):
    fill(stage, leader)
    stage.replace_log([(b"500-0", event(5, "m"))])
    other = stage.player("b").step(2).outlast().step(40)
    assert other.epoch == 2
    before = stage.log_entries(), stage.snapshots(), stage.dead()
    leader.script.advance(10 * LEASE_MS)
    leader.stop()
    assert (stage.log_entries(), stage.snapshots(), stage.dead()) == before
    assert stage.connection.get(stage.keys.leader) == b"2:b"


class TestWhoWasBehindWhenTheLogWentAway:
    """Nobody can read any more what it missed; but the leader before has saved it."""

    def save(self, stage, leader):
        before = len(stage.snapshots())
        for _ in range(10):
            stage.event(input_tokens=1)
            leader.step()
        leader.look()
        leader.actor._saving.hurry()
        leader.step(40)
        assert len(stage.snapshots()) == before + 1

    def behind(self, stage, leader):
        """Return an actor that has read less than the leader saved before the log was deleted."""
        self.save(stage, leader)
        other = stage.player("b").step(2)
        self.save(stage, leader)
        stage.connection.write([Delete(keys=[stage.keys.log])])
        return other

    def test_it_goes_on_from_the_snapshot_when_it_notices(self, stage, leader):
        other = self.behind(stage, leader)
        other.look().step(3)
        assert other.requests == leader.requests > 0

    def test_it_does_when_it_has_the_lease_before_it_notices(self, stage, leader):
        other = self.behind(stage, leader)
        leader.stop()
        assert other.actor._leadership.contend(other.script.ticks_ms)
        other.step(3, after_ms=LEASE_MS).outlast().step(3)
        assert (other.epoch > 0, other.requests) == (True, leader.requests)
