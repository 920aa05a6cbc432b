"""One turn after the other: read, fold, answer, write; and what happens at the edges of that."""

from __future__ import annotations

import dataclasses
import logging
import threading

import pytest
import redis

from tests.actor.conftest import Recorder, Script, Stage, nothing
from token_actor.actor import desk, letters
from token_actor.actor.settings import ActorSettings, Clock
from token_actor.core.ledger import Bounds
from token_actor.embedded import EmbeddedServer
from token_actor.errors import LeadershipLost, ServerRefused, ServerUnavailable, SetupError
from token_actor.transport.memory import MemoryServer
from token_actor.transport.ports import Append, Delete, DeleteEntries, Expire, Increment, Put, PutField
from token_actor.transport.redis import RedisConnector
from token_actor.wire.entries import id_pair
from token_actor.wire.keys import Keys

MINUTE_MS = 60_000


def overtake(stage, lease):
    """Let somebody else lead."""
    stage.connection.write([Increment(key=stage.keys.epoch), Put(key=stage.keys.leader, value=lease)])


def results(stage):
    return [answer.result for answer in stage.answers()]


class TestATurn:
    def test_events_commands_and_questions_of_one_turn_are_all_done(self, stage):
        def step():
            stage.event(agent="a", input_tokens=5)
            stage.batch(3, input_tokens=1)
            stage.command("record", "2", event={"input_tokens": 7})
            stage.ask("analytics", request_id="3")

        stage.run(step)
        command, question = stage.answers()
        assert (command.request_id, command.result) == ("2", {"counted": True, "reason": None})
        assert (question.request_id, question.result["requests"], question.result["input_tokens"]) == ("3", 5, 15)

    def test_an_idle_turn_is_one_read_and_no_write(self, stage):
        player = stage.player("a").step(2)
        player.recorder.calls.clear()
        player.step()
        assert player.recorder.calls == ["read"]

    def test_a_few_times_per_lease_it_is_renewed_and_the_log_looked_at(self, stage):
        player = stage.player("a").step(2)
        player.recorder.calls.clear()
        player.look()
        assert player.recorder.calls == ["write_if", "write", "get_fields", "stream_state", "read"]

    def test_a_busy_turn_is_one_read_and_one_write(self, stage):
        recorder = Recorder(stage.connect())
        calls = []

        def step():
            recorder.calls.clear()
            for n in range(10):
                stage.event(input_tokens=1)
                stage.append(b"j", b"broken")
                stage.ask("status", request_id=str(n))

        stage.run(nothing, step, lambda: calls.extend(recorder.calls), connection=recorder)
        assert calls == ["read", "write_if", "write"]  # dead letters are guarded by the lease
        assert len(stage.answers()) == len(stage.dead()) == 10

    def test_answers_carry_the_epoch(self, stage):
        stage.run(lambda: stage.ask(request_id="1"))
        stage.run(lambda: stage.ask(request_id="2"))
        answers = stage.answers()
        assert (answers[0].request_id, answers[0].epoch) == ("1", 1)
        assert (answers[-1].request_id, answers[-1].epoch) == ("2", 2)

    def test_an_inbox_goes_away_by_itself(self, stage):
        stage.run(stage.ask)
        (still_there,) = stage.connection.write([Expire(key=stage.keys.inbox("c"), ttl_ms=-1)])
        assert still_there == 1
        assert desk.INBOX_TTL_MS == MINUTE_MS

    def test_questions_that_were_taken_are_trimmed_with_the_next_renewal(self, stage):
        player = stage.player("a").step(2)
        for n in range(1, 51):
            stage.ask(request_id=str(n))
        player.step()
        assert (len(stage.answers()), stage.state(stage.keys.ask).length) == (50, 50)
        player.look()
        assert (len(stage.answers()), stage.state(stage.keys.ask).length) == (50, 1)

    def test_answers_begin_when_everything_that_was_there_before_is_folded(self, stage):
        for n in range(600):
            stage.event(input_tokens=n)
        stage.ask("analytics")
        player = stage.player("a")
        folded = []
        while not stage.answers():
            folded.append(player.step().requests)
        assert folded[:2] == [0, 256]
        assert [result["requests"] for result in results(stage)] == [600]

    def test_nobody_waits_for_what_comes_later(self, stage):
        for n in range(300):
            stage.event(input_tokens=n)
        stage.ask("analytics")
        player = stage.player("a").step()
        while not stage.answers():
            stage.batch(200)
            player.step()
        assert results(stage)[0]["requests"] < player.requests + 200


class TestQuestions:
    def test_a_question_waits_for_the_entry_it_has_to_see(self, stage):
        milliseconds, sequence = id_pair(stage.event(input_tokens=1))
        later = f"{milliseconds + 10}-{sequence}".encode()
        seen = []

        def entry_it_waits_for():
            seen.append(len(stage.answers()))
            stage.connection.write([Append(key=stage.keys.log, fields=[b"j", b'{"input_tokens": 2}'], entry_id=later)])

        stage.run(lambda: stage.ask("analytics", after=later), nothing, entry_it_waits_for)
        assert seen == [0]
        assert [result["input_tokens"] for result in results(stage)] == [3]

    def test_a_question_that_waits_does_not_hold_up_the_others(self, stage):
        stage.run(
            lambda: stage.ask(after=b"99999999999999-0", request_id="waits"),
            lambda: stage.ask(request_id="answered"),
        )
        assert [answer.request_id for answer in stage.answers()] == ["answered"]

    def test_a_question_that_nobody_waits_for_any_more_is_forgotten(self, memory_stage):
        stage = memory_stage
        script = Script(
            nothing,
            lambda: stage.ask(after=b"99999999999999-0"),
            lambda: script.advance(MINUTE_MS),
            lambda: stage.connection.write(
                [Append(key=stage.keys.log, fields=[b"j", b"{}"], entry_id=b"99999999999999-0")]
            ),
        )
        stage.actor(script, lease_ms=10 * MINUTE_MS).run()
        assert stage.answers() == []

    def test_a_question_just_before_that_is_answered(self, memory_stage):
        stage = memory_stage
        script = Script(
            nothing,
            lambda: stage.ask(after=b"99999999999999-0"),
            lambda: script.advance(MINUTE_MS - 1),
            lambda: stage.connection.write(
                [Append(key=stage.keys.log, fields=[b"j", b"{}"], entry_id=b"99999999999999-0")]
            ),
        )
        stage.actor(script, lease_ms=10 * MINUTE_MS).run()
        assert len(stage.answers()) == 1

    @pytest.mark.parametrize(
        "fields",
        [[b"q", b"\xc1"], [b"x", b"y"], [b"q", b"", b"q", b""], [b"q", b"\x81\xa1v\x09"], [b"q", b"x" * 20_000]],
        ids=["no msgpack", "another field", "two fields", "a later version", "too large"],
    )
    def test_a_question_that_cannot_be_read_is_logged_and_skipped(self, stage, caplog, fields):
        stage.run(lambda: stage._write(stage.keys.ask, fields), stage.ask)
        assert len(stage.answers()) == 1
        assert [record.action for record in caplog.records] == ["bad_question"]

    @pytest.mark.parametrize("after", [b"x", b"", b"1", b"1-", b"9" * 30 + b"-1"])
    def test_a_question_that_waits_for_no_entry_is_skipped(self, stage, after):
        stage.run(lambda: stage.ask(after=after), lambda: stage.ask(request_id="2"))
        assert [answer.request_id for answer in stage.answers()] == ["2"]

    def test_what_is_wrong_with_a_question_is_the_answer(self, stage):
        stage.run(lambda: stage.ask("weather"), lambda: stage.ask("analytics", request_id="2", group_by=["colour"]))
        assert [(answer.problem.field, answer.result) for answer in stage.answers()] == [
            ("kind", None), ("group_by", None)
        ]  # fmt: skip

    def test_a_fault_of_ours_in_a_question_is_answered_and_logged_and_stops_nothing(self, stage, monkeypatch, caplog):
        def faulty(ledger, kind, arguments, now_ms):
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(desk, "answer", faulty)
            stage.run(stage.ask, patch.undo, lambda: stage.ask(request_id="2"))
        wrong, right = stage.answers()
        assert (wrong.problem.field, wrong.problem.reason) == ("kind", "internal")
        assert right.result["events"] == 0
        assert [record.action for record in caplog.records] == ["question_failed"]

    def test_status_says_where_the_actor_is(self, stage):
        last = []

        def step():
            stage.event(input_tokens=1)
            last.append(stage.event(input_tokens=2))
            stage.append(b"j", b"broken")
            last.append(stage.event(input_tokens=3))
            stage.ask()

        stage.run(step, holder="host/1")
        (status,) = results(stage)
        own = {"epoch": 1, "holder": "host/1", "offset": last[-1].decode(), "entries": 4, "snapshot_offset": "0-0"}
        assert {name: status[name] for name in own} == own
        assert (status["events"], status["dead"]) == (3, {"decode": 1})

    def test_status_says_where_the_last_snapshot_ends(self, stage):
        last = stage.event(input_tokens=1)
        stage.saved()
        assert stage.status()["snapshot_offset"] == last.decode()

    def test_the_books_say_where_the_actor_is_too(self, stage):
        last = stage.event(input_tokens=1)
        stage.run(lambda: stage.ask("books"))
        (books,) = results(stage)
        assert (books["offset"], books["differences"]) == (last.decode(), [])


class TestALotOfWork:
    def test_questions_that_take_long_are_answered_over_several_turns(self, memory_stage, monkeypatch):
        stage = memory_stage
        answered: list[int] = []

        def slow(ledger, kind, arguments, now_ms):
            script.advance(30)
            return {}

        monkeypatch.setattr(desk, "answer", slow)
        script = Script(
            nothing, lambda: [stage.ask("analytics", request_id=str(n)) for n in range(5)],
            lambda: answered.append(len(stage.answers())), lambda: answered.append(len(stage.answers())), nothing,
        )  # fmt: skip
        recorder = Recorder(stage.connect())
        stage.actor(script, recorder, block_ms=7).run()
        assert answered == [2, 4]
        assert [answer.request_id for answer in stage.answers()] == list("01234")
        assert recorder.blocks_ms[:3] == [7, None, None]  # the first one finds the questions

    def test_a_stop_answers_what_is_left(self, memory_stage, monkeypatch):
        stage = memory_stage

        def slow(ledger, kind, arguments, now_ms):
            script.advance(60)
            return {}

        monkeypatch.setattr(desk, "answer", slow)
        script = Script(nothing, lambda: [stage.ask("analytics", request_id=str(n)) for n in range(5)])
        stage.actor(script).run()
        assert len(stage.answers()) == 5

    def test_but_not_for_longer_than_its_lease_is_good(self, memory_stage, monkeypatch):
        stage = memory_stage

        def slow(ledger, kind, arguments, now_ms):
            script.advance(200)
            return {}

        monkeypatch.setattr(desk, "answer", slow)
        script = Script(nothing, lambda: [stage.ask("analytics", request_id=str(n)) for n in range(50)])
        stage.actor(script).run()
        assert len(stage.answers()) == 4  # one in the loop, and three within a quarter of the lease
        assert stage.connection.get(stage.keys.leader) == b"1:"

    def test_more_events_than_a_turn_should_have_are_folded_in_pieces(self, stage):
        positions = []
        script = Script(
            nothing, lambda: [stage.batch(1_000, input_tokens=1) for _ in range(40)],
            lambda: positions.append(actor._follower.position.entries),
            lambda: positions.append(actor._follower.position.entries),
        )  # fmt: skip
        actor = stage.actor(script)
        actor.run()
        assert positions == [33, 40]
        assert stage.total()["requests"] == 40_000

    def test_so_is_a_recovery(self, stage):
        for _ in range(40):
            stage.batch(1_000, input_tokens=1)
        assert stage.total()["requests"] == 40_000


class TestCommands:
    def test_the_same_request_has_the_same_answer_and_one_effect(self, stage):
        def step():
            for _ in range(3):
                stage.command("record", "1", event={"input_tokens": 7})

        stage.run(step)
        assert results(stage) == [{"counted": True, "reason": None}] * 3
        assert stage.total()["requests"] == 1

    def test_the_same_request_has_the_same_answer_after_a_restart(self, stage):
        stage.run(lambda: stage.command("record", "1", event={"input_tokens": 7}))
        stage.run(lambda: stage.command("record", "1", event={"input_tokens": 7}))
        assert (
            results(stage) == [{"counted": True, "reason": None}] * 3
        )  # the log was folded anew, and is answered anew
        assert stage.total()["requests"] == 1

    def test_an_unknown_command_is_answered_and_kept_aside(self, stage):
        entry_id = []
        stage.run(lambda: entry_id.append(stage.command("explode", "1")))
        (answer,) = stage.answers()
        assert (answer.problem.field, answer.problem.reason) == ("command", "unknown_command")
        assert [(letter.source, letter.reason) for letter in stage.dead()] == [(entry_id[0], "unknown_command")]


class TestDeadLetters:
    def test_what_cannot_be_applied_is_kept_under_its_id_with_the_reason(self, stage):
        ids = []

        def step():
            ids.append(stage.append(b"j", b"{broken"))
            ids.append(stage.append(b"j", b'{"input_tokens": -1}'))
            ids.append(stage.append(b"what", b"ever"))
            stage.event(input_tokens=1)

        stage.run(step)
        assert [(letter.source, letter.reason, letter.name, letter.raw) for letter in stage.dead()] == [
            (ids[0], "decode", b"j", b"{broken"),
            (ids[1], "range", b"j", b'{"input_tokens": -1}'),
            (ids[2], "decode", b"what", b"ever"),
        ]
        assert stage.total()["requests"] == 1

    def test_a_dead_letter_is_written_once_however_often_the_log_is_replayed(self, stage):
        stage.append(b"j", b"{broken")
        for _ in range(3):
            stage.run(nothing, nothing)
        assert len(stage.dead()) == 1
        assert stage.status()["dead"] == {"decode": 1}

    def test_a_dead_letter_that_an_operator_has_dropped_does_not_come_back(self, stage):
        entry_id = stage.append(b"j", b"{broken")
        stage.run(nothing)
        stage.connection.write(
            [DeleteEntries(key=stage.keys.dead, entry_ids=[entry_id]), Delete(keys=[stage.keys.snapshots])]
        )
        stage.run(nothing)
        assert stage.dead() == []

    def test_dead_letters_are_bounded(self, stage, monkeypatch):
        monkeypatch.setattr(letters, "DEAD_LENGTH_MAX", 100)
        stage.run(lambda: [stage.append(b"j", b"{broken") for _ in range(500)])
        assert 100 <= len(stage.dead()) <= 200
        assert stage.status()["dead"] == {"decode": 500}


class TestReadCount:
    def counts(self, stage, *steps, **settings):
        recorder = Recorder(stage.connect())
        stage.run(*steps, connection=recorder, **settings)
        return recorder.read_counts

    def test_it_begins_in_the_middle(self, stage):
        assert self.counts(stage, nothing)[0] == 256

    def test_large_batches_make_the_next_read_smaller(self, stage):
        counts = self.counts(stage, lambda: stage.batch(1_000), nothing)
        assert counts[:2] == [256, 32]

    def test_batches_make_it_aim_at_the_events_of_a_turn(self, stage):
        counts = self.counts(stage, lambda: stage.batch(512), nothing, events_per_turn=32_768)
        assert counts[:2] == [256, 64]

    def test_it_never_reads_less_than_sixteen_entries(self, stage):
        counts = self.counts(stage, lambda: stage.batch(1_000), nothing, events_per_turn=1)
        assert counts[1] == 16

    def test_single_events_make_full_reads_larger(self, stage):
        many = [lambda: [stage.event(input_tokens=1) for _ in range(600)], *[nothing] * 4]
        counts = self.counts(stage, *many)
        assert counts[0] == 256
        assert max(counts) > 256
        assert stage.total()["requests"] == 600


class TestALostConnection:
    def test_the_actor_goes_on_where_it_was_under_the_same_epoch(self, stage, caplog):
        recorder = Recorder(stage.connect())

        def lose():
            recorder.fail["read"] = [ServerUnavailable("gone")]

        script = stage.run(
            lambda: stage.event(input_tokens=1), lose, lambda: stage.event(input_tokens=2),
            lambda: stage.ask("analytics"), lambda: stage.ask(request_id="2"), connection=recorder,
        )  # fmt: skip
        assert script.waits_s == [0.05]
        first, second = stage.answers()
        assert first.result["input_tokens"] == 3
        assert (first.epoch, second.epoch) == (1, 1)
        assert [record.action for record in caplog.records] == ["server_away", "server_back"]

    def test_answers_that_were_lost_on_the_way_are_given_again(self, stage):
        recorder = Recorder(stage.connect())

        def ask_and_lose():
            stage.event(input_tokens=5)
            stage.ask("analytics")
            recorder.fail["write"] = [ServerUnavailable("gone")]

        stage.run(nothing, ask_and_lose, nothing, nothing, connection=recorder)
        assert [result["input_tokens"] for result in results(stage)] == [5]

    def test_dead_letters_that_were_lost_on_the_way_are_written_again(self, stage):
        recorder = Recorder(stage.connect())

        def lose():
            stage.append(b"j", b"{broken")
            recorder.fail["write"] = [ServerUnavailable("gone")]

        stage.run(nothing, lose, nothing, nothing, connection=recorder)
        assert len(stage.dead()) == 1

    def test_it_waits_longer_and_longer_up_to_a_second(self, memory_stage):
        recorder = Recorder(memory_stage.connect())
        script = Script(*[nothing] * 9)
        recorder.fail["write"] = [ServerUnavailable("gone")] * 8
        memory_stage.actor(script, recorder).run()
        assert script.waits_s == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]

    def test_after_a_success_the_waits_begin_anew(self, memory_stage):
        recorder = Recorder(memory_stage.connect())

        def lose():
            recorder.fail["read"] = [ServerUnavailable("gone")]

        script = memory_stage.run(nothing, lose, nothing, nothing, lose, nothing, nothing, connection=recorder)
        assert script.waits_s == [0.05, 0.05]

    def test_when_the_lease_is_gone_too_and_nobody_has_led_it_goes_on_under_its_epoch(self, stage):
        player = stage.player("a").step(2)
        stage.event(input_tokens=1)
        stage.connection.write([Delete(keys=[stage.keys.leader])])
        stage.ask("analytics")
        player.look()
        assert stage.connection.get(stage.keys.leader) == b"1:a"
        assert [(answer.epoch, answer.result["requests"]) for answer in stage.answers()] == [(1, 1)]

    def test_when_somebody_else_has_led_meanwhile_it_stands_by_until_it_leads_again(self, stage):
        stage.event(input_tokens=1)
        player = stage.player("a").step(2)
        overtake(stage, b"2:b")
        with pytest.raises(LeadershipLost):
            player.look()
        assert player.epoch == 0
        player.step()
        stage.connection.write([Put(key=stage.keys.leader, value=b"2:")])
        stage.event(input_tokens=1)
        stage.ask("analytics")
        player.look().step(2)
        assert [(answer.epoch, answer.result["requests"]) for answer in stage.answers()] == [(3, 2)]

    def test_a_lease_lost_in_the_loop_is_logged_and_survived(self, memory_stage, caplog):
        stage = memory_stage
        script = Script(nothing, lambda: (overtake(stage, b"2:b"), script.advance(500)), nothing, nothing)
        stage.actor(script).run()
        assert [record.action for record in caplog.records if record.levelno == logging.WARNING] == ["lease_lost"]
        assert stage.connection.get(stage.keys.leader) == b"2:b"

    def test_a_stop_while_the_server_is_away_ends_it(self, memory_stage):
        def away():
            memory_stage.connector.go_away()

        script = memory_stage.run(nothing, away)
        assert script.waits_s == [0.05]
        memory_stage.connector.come_back()
        assert memory_stage.connection.get(memory_stage.keys.leader) == b"1:actor"

    def test_a_server_that_goes_away_during_the_recovery_is_waited_for(self, stage):
        for n in range(10):
            stage.event(input_tokens=n)
        recorder = Recorder(stage.connect())
        recorder.fail["stream_state"] = [ServerUnavailable("gone")]
        script = Script(nothing, nothing, lambda: stage.ask("analytics"), nothing)
        stage.actor(script, recorder).run()
        (answer,) = stage.answers()
        assert (answer.epoch, answer.result["input_tokens"]) == (1, 45)


class TestTheStop:
    def test_it_gives_the_lease_back_at_once_and_leaves_the_rest_to_the_log(self, stage):
        stage.run(nothing)
        for n in range(600):
            stage.event(input_tokens=n)
        stage.run()
        assert stage.connection.get(stage.keys.leader) == b"2:"
        assert stage.snapshots() == []
        assert stage.total()["requests"] == 600

    def test_what_comes_in_the_last_moment_is_answered(self, stage):
        script = Script(nothing)
        actor = stage.actor(script)
        script._steps = [nothing, lambda: None]
        original = script._wait

        def wait(seconds):
            if not script._steps and not seconds and not stage.answers():
                stage.event(input_tokens=1)
                stage.ask("analytics")
            return original(seconds)

        actor._clock.wait = wait
        actor.run()
        assert [result["input_tokens"] for result in results(stage)] == [1]

    def test_without_a_change_no_snapshot_is_due(self, stage):
        stage.event(input_tokens=1)
        stage.saved()
        player = stage.player("b", snapshot_every_ms=0).step(3)
        player.step(5, after_ms=1_000)
        assert [entry_id for entry_id, _ in stage.snapshots()] == [b"1-1"]

    def test_an_endless_log_does_not_hold_it_up(self, memory_stage):
        stage = memory_stage
        player = stage.player("a").step(2)
        read = player.recorder._connection.read

        def endless(after, *, count, block_ms):
            stage.event(input_tokens=1)
            return read(after, count=count, block_ms=None)

        player.recorder.read = endless
        player.stop()
        assert player.requests == 1
        assert stage.connection.get(stage.keys.leader) == b"1:"

    def test_one_that_finds_the_lease_gone_to_somebody_else_leaves_it_there(self, stage, caplog):
        player = stage.player("a").step(2)
        overtake(stage, b"2:b")
        stage.append(b"j", b"{broken")
        player.stop()
        assert stage.connection.get(stage.keys.leader) == b"2:b"
        assert stage.dead() == []
        assert [record.action for record in caplog.records if record.levelno == logging.WARNING] == ["stopped"]

    def test_one_that_stands_by_says_nothing_and_changes_nothing(self, stage):
        stage.player("a").step(2)
        watcher = stage.player("b").step(2)
        watcher.stop()
        assert stage.connection.get(stage.keys.leader) == b"1:a"

    def test_a_stop_before_it_ever_led_leaves_nothing(self, stage):
        stage.actor(Script()).run()
        assert stage.connection.get(stage.keys.leader) is None
        assert stage.connection.get(stage.keys.epoch) is None

    def test_a_refused_connection_ends_it_loudly(self, memory_stage):
        recorder = Recorder(memory_stage.connect())
        recorder.fail["read"] = [ServerRefused("NOPERM this user has no permissions")]
        with pytest.raises(ServerRefused):
            memory_stage.run(nothing, nothing, connection=recorder)


class TestPartitions:
    def test_the_first_actor_writes_down_their_number(self, stage):
        stage.run(nothing, partitions=3)
        assert stage.connection.get_fields(stage.keys.meta) == {b"partitions": b"3"}

    def test_another_number_is_refused_with_both_of_them(self, stage):
        stage.run(nothing, partitions=2)
        with pytest.raises(SetupError) as refused:
            stage.run(nothing, partitions=3)
        assert str(refused.value) == (
            f"namespace '{stage.keys.namespace}' has 2 partitions, not 3: start the actor with that number"
        )
        assert stage.connection.get_fields(stage.keys.meta) == {b"partitions": b"2"}

    def test_a_number_that_cannot_be_written_down_is_waited_for(self, stage, caplog):
        stage.connection.write([Put(key=stage.keys.meta, value=b"no hash")])
        stage.run(nothing, nothing)
        assert [(record.action, record.problem.split()[0]) for record in caplog.records] == [
            ("server_refuses", "WRONGTYPE")
        ]
        assert stage.connection.get(stage.keys.leader) is None
        stage.connection.write([Delete(keys=[stage.keys.meta])])
        assert stage.total()["requests"] == 0


class TestAFullServer:
    @pytest.fixture
    def full(self, tmp_path, namespace):
        with EmbeddedServer(tmp_path) as server:
            stage = Stage(RedisConnector(server.url), namespace)
            admin = redis.Redis(port=server.port)
            yield stage, lambda full: admin.config_set("maxmemory", 1_000_000 if full else 0)
            admin.close()
            stage.close()

    def test_dead_letters_wait_for_room_and_are_not_lost(self, full, caplog):
        stage, fill = full
        stage.run(
            lambda: (stage.append(b"j", b"{broken"), stage.append(b"j", b"{also"), fill(True)),
            nothing,
            lambda: fill(False),
            nothing,
        )
        assert [letter.raw for letter in stage.dead()] == [b"{broken", b"{also"]
        assert {record.action for record in caplog.records} == {"write_refused"}
        assert {record.levelno for record in caplog.records} == {logging.ERROR}

    def test_no_snapshot_is_taken_before_they_are_written(self, full):
        stage, fill = full
        stage.run(lambda: (stage.append(b"j", b"{broken"), fill(True)), nothing)
        fill(False)
        assert stage.snapshots() == []
        stage.saved()
        assert len(stage.dead()) == len(stage.snapshots()) == 1

    def test_waiting_for_room_the_actor_does_not_spin(self, full):
        stage, fill = full
        recorder = Recorder(stage.connect())
        stage.run(
            lambda: (stage.append(b"j", b"{broken"), fill(True)), nothing, nothing, connection=recorder, block_ms=7
        )
        fill(False)
        assert set(recorder.blocks_ms[:3]) == {7}

    def test_it_keeps_its_lease(self, full):
        stage, fill = full
        holders = []
        script = Script(
            nothing,
            lambda: fill(True),
            lambda: script.advance(600),
            lambda: holders.append(stage.connection.get(stage.keys.leader)),
            lambda: fill(False),
        )
        stage.actor(script).run()
        assert holders == [b"1:actor"]

    def test_an_actor_that_starts_at_a_full_server_says_why_it_cannot_and_leads_once_there_is_room(self, full, caplog):
        stage, fill = full
        fill(True)
        script = stage.run(nothing, nothing, lambda: fill(False), nothing, lambda: stage.ask("analytics"))
        assert [record.action for record in caplog.records] == ["server_refuses", "server_back"]
        assert caplog.records[0].problem.startswith("OOM ")
        assert script.waits_s == [0.05, 0.1, 0.2]
        assert len(stage.answers()) == 1

    def test_one_that_gave_its_lease_back_there_leads_again_once_there_is_room(self, full):
        stage, fill = full
        stage.run(nothing)
        watcher = stage.player("b").step()
        watcher.actor._leadership.release()
        fill(True)
        with pytest.raises(ServerRefused, match="OOM"):
            watcher.look()
        assert watcher.epoch == 0
        fill(False)
        watcher.look()
        assert watcher.epoch > 1

    def test_a_snapshot_that_found_no_room_is_taken_later(self, full, caplog):
        stage, fill = full
        script = Script(
            nothing,
            lambda: stage.event(input_tokens=1),
            lambda: (fill(True), script.advance(100)),
            nothing,
            nothing,
            lambda: (fill(False), script.advance(100)),
            *[nothing] * 20,
        )
        stage.actor(script, snapshot_every_ms=100).run()
        assert "snapshot_refused" in {record.action for record in caplog.records}
        assert stage.status()["snapshot_offset"] != "0-0"


class TestTwoOfThem:
    def test_settings_are_plain_values(self):
        settings = ActorSettings(keys=Keys("n"), holder="h", bounds=Bounds(rows_max=10))
        assert dataclasses.replace(settings, partitions=2).bounds == Bounds(rows_max=10)

    def test_an_actor_in_a_thread_stops_within_its_block(self, namespace):
        stage = Stage(MemoryServer(), namespace)
        stop = threading.Event()
        actor = stage.actor(Script(), block_ms=50)
        actor._clock = Clock(lambda: 0, lambda: 0, stop.wait)
        thread = threading.Thread(target=actor.run)
        thread.start()
        stop.set()
        thread.join(10)
        assert not thread.is_alive()

    def test_partition_number_two_has_a_log_of_its_own(self, stage):
        there = Stage(stage.connector, stage.keys.namespace)
        there.keys = Keys(stage.keys.namespace, 1)
        stage.connection.write([PutField(key=stage.keys.meta, field=b"partitions", value=b"2")])
        stage.event(input_tokens=1)
        there.event(input_tokens=2)
        there.run(lambda: there.ask("analytics"), partitions=2)
        assert [result["input_tokens"] for result in results(there)] == [2]
        there.close()
