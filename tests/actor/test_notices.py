"""What budgets have reached is written once, by whoever leads, and logged."""

from __future__ import annotations

import logging

import pytest

from tests.actor.conftest import LEASE_MS, Recorder, Script, nothing
from token_actor.actor import letters
from token_actor.core.limits import Limit
from token_actor.errors import LeadershipLost, ServerUnavailable
from token_actor.transport.ports import Delete, DeleteEntries, Put
from token_actor.wire.notices import NoticeEntry


def put_budget(stage, amount=100, request_id="put", **more):
    limit = Limit("b", amount, kind="calendar", period="month", by=["agent"], **more)
    return stage.command("put_limit", request_id, limit=limit.as_map())


@pytest.fixture
def leader(stage):
    """An actor that leads, and has a budget of 100 tokens a month for each agent."""
    put_budget(stage)
    return stage.player("a").step(2)


@pytest.fixture
def standby(stage, leader):
    """An actor that stands by."""
    return stage.player("b").step(2)


def written(stage):
    """Return what is in the stream: the id of the entry, and the thresholds it has reached."""
    entries = [NoticeEntry.read(*entry) for entry in stage.connection.range(stage.keys.notices, count=100_000)]
    return [(each.source, [notice["threshold_pct"] for notice in each.notices]) for each in entries]


def logged(caplog):
    return [(each.id, each.threshold_pct) for each in caplog.records if getattr(each, "action", "") == "threshold"]


class TestALeader:
    def test_writes_what_was_reached_under_the_id_of_its_entry(self, stage, leader):
        stage.event(input_tokens=40, agent="a")
        half = stage.event(input_tokens=40, agent="a")
        other = stage.event(input_tokens=60, agent="b")
        leader.step()
        assert written(stage) == [(half, [50, 80]), (other, [50])]

    def test_writes_one_entry_for_all_that_one_batch_has_reached(self, stage, leader):
        entry_id = stage.batch(10, input_tokens=12, agent="a")
        leader.step()
        assert written(stage) == [(entry_id, [50, 80, 100])]

    def test_logs_each_as_a_warning_with_its_figures(self, stage, leader, caplog):
        entry_id = stage.event(input_tokens=85, agent="a").decode()
        leader.step()
        first, second = (each for each in caplog.records if each.action == "threshold")
        assert logged(caplog) == [(f"{entry_id}:0", 50), (f"{entry_id}:1", 80)]
        assert (first.levelno, first.limit, first.scope, first.used, first.amount, first.unit) == (
            (logging.WARNING, "b", {"agent": "a"}, 85, 100, "tokens")
        )
        assert second.period_end_ms > stage.state(stage.keys.log).entries_added

    def test_writes_what_a_command_has_reached(self, stage, leader):
        stage.event(input_tokens=20, agent="a")
        entry_id = put_budget(stage, 25, "lower")
        leader.step()
        assert written(stage) == [(entry_id, [50, 80])]

    def test_writes_what_a_clock_has_let_expire_under_the_id_of_that(self, stage, leader):
        stage.command("reserve", "r", agent="a", tokens=60, ttl_ms=1_000)
        leader.step()
        leader.script.advance(3_600_000)
        leader.look()
        leader.step(3)
        (clock,) = [entry_id for entry_id, fields in stage.log_entries() if fields[0] == b"t"][-1:]
        assert written(stage) == [(clock, [50])]

    def test_keeps_a_bounded_number(self, stage, monkeypatch):
        monkeypatch.setattr(letters, "NOTICES_LENGTH_MAX", 100)
        put_budget(stage)
        stage.run(lambda: [stage.event(input_tokens=60, agent=f"a{n}") for n in range(500)])
        assert 100 <= len(written(stage)) <= 200

    def test_after_another_start_writes_and_logs_nothing_again(self, stage, caplog):
        put_budget(stage)
        stage.event(input_tokens=60, agent="a")
        stage.run(nothing)
        (one,) = written(stage)
        stage.run(nothing)
        assert written(stage) == [one]
        assert len(logged(caplog)) == 1

    def test_goes_on_after_a_snapshot_with_what_was_told(self, stage):
        put_budget(stage)
        stage.event(input_tokens=60, agent="a")
        stage.saved()
        stage.connection.write([Delete(keys=[stage.keys.notices])])
        entry_id = stage.event(input_tokens=30, agent="a")
        stage.run(nothing)
        assert written(stage) == [(entry_id, [80])]


class TestATakeover:
    def test_what_the_dead_leader_had_not_written_is_written(self, stage, leader, standby):
        entry_id = stage.event(input_tokens=60, agent="a")
        leader.recorder.fail["write_if"] = [ServerUnavailable("gone")]
        with pytest.raises(ServerUnavailable):
            leader.step()
        standby.step().outlast()
        standby.step()
        assert written(stage) == [(entry_id, [50])]

    def test_nothing_is_written_twice_nor_logged_by_the_second_one(self, stage, leader, standby, caplog):
        first = stage.event(input_tokens=60, agent="a")
        leader.step()
        second = stage.event(input_tokens=30, agent="a")
        standby.step().outlast()
        standby.step()
        assert written(stage) == [(first, [50]), (second, [80])]
        assert [per_cent for _, per_cent in logged(caplog)] == [50, 80]

    def test_what_is_written_is_forgotten_meanwhile(self, stage, leader, standby):
        for number in range(10):
            stage.event(input_tokens=60, agent=str(number))
        standby.step()
        assert len(standby.actor._letters) == 10
        leader.step()
        standby.look()
        assert len(standby.actor._letters) == 0

    def test_one_that_was_deleted_does_not_come_back(self, stage, leader, standby):
        entry_id = stage.event(input_tokens=60, agent="a")
        leader.step()
        standby.step()
        stage.connection.write([DeleteEntries(key=stage.keys.notices, entry_ids=[entry_id])])
        standby.outlast()
        standby.step()
        assert written(stage) == []

    def test_the_two_have_one_state(self, stage, leader, standby):
        for number in range(20):
            stage.event(input_tokens=7 * number, agent=str(number % 3))
            leader.step()
        standby.step()
        assert standby.state == leader.state

    def test_a_paused_leader_that_wakes_writes_nothing(self, stage, leader, standby):
        standby.outlast()
        stage.event(input_tokens=60, agent="a")
        standby.step()
        before = written(stage)
        stage.event(input_tokens=60, agent="b")
        with pytest.raises(LeadershipLost):
            leader.step()
        assert written(stage) == before


class TestTrouble:
    def test_a_stream_that_is_something_else_keeps_nobody_from_leading(self, stage, caplog):
        put_budget(stage)
        stage.connection.write([Put(key=stage.keys.notices, value=b"no stream")])
        script = Script(nothing, lambda: stage.event(input_tokens=60, agent="a"), stage.ask)
        script.wait_for(lambda: any(answer.request_id == "1" for answer in stage.answers()))
        stage.actor(script).run()
        assert "write_refused" in {record.action for record in caplog.records}
        stage.connection.write([Delete(keys=[stage.keys.notices])])
        stage.run(nothing)
        assert [per_cent for _, per_cent in written(stage)] == [[50]]

    def test_what_was_lost_on_the_way_is_written_again_and_logged_once(self, stage, caplog):
        put_budget(stage)
        recorder = Recorder(stage.connect())
        stage.run(
            lambda: stage.event(input_tokens=60, agent="a"),
            lambda: recorder.fail.update(write_if=[ServerUnavailable("gone")]),
            lambda: stage.event(input_tokens=30, agent="a"),
            nothing,
            nothing,
            connection=recorder,
            lease_ms=100 * LEASE_MS,
        )
        assert [per_cent for _, per_cent in written(stage)] == [[50], [80]]
        assert [per_cent for _, per_cent in logged(caplog)] == [50, 80]

    def test_no_snapshot_is_taken_before_it_is_written(self, stage):
        put_budget(stage)
        stage.connection.write([Put(key=stage.keys.notices, value=b"no stream")])
        stage.run(lambda: stage.event(input_tokens=60, agent="a"), nothing, nothing, snapshot_every_ms=0)
        assert stage.snapshots() == []

    def test_a_log_that_was_replaced_is_told_of_once(self, stage, leader):
        first = stage.event(input_tokens=60, agent="a", message_id="1")
        leader.step()
        entries = stage.log_entries()
        stage.replace_log(entries)
        leader.look()
        second = stage.event(input_tokens=30, agent="a", message_id="2")
        leader.look().step(2)
        assert written(stage) == [(first, [50]), (second, [80])]
