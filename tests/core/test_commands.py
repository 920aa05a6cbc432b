"""Facts about commands: what changes the state and is answered."""

from __future__ import annotations

import pytest

from tests.makers import START_MS, apply, event, total
from token_actor.core import commands
from token_actor.core.commands import Command, execute
from token_actor.core.ledger import Ledger
from token_actor.errors import InvalidValue


@pytest.fixture
def ledger():
    return Ledger()


def run(ledger, operation, arguments=None, *, request_id="1", client="c", log_ms=START_MS, **more):
    command = Command(operation=operation, request_id=request_id, client=client, arguments=arguments or {}, **more)
    outcome = execute(ledger, command, log_ms)
    if outcome.problem is not None:
        raise outcome.problem
    return outcome.answer


def record(ledger, of, **more):
    return run(ledger, "record", event=of, **more)


def test_a_recorded_event_counts_and_the_answer_says_so(ledger):
    assert record(ledger, event(5)) == {"counted": True, "reason": None}
    assert total(ledger) == 5


def test_a_recorded_duplicate_does_not_count_and_the_answer_says_so(ledger):
    apply(ledger, event(5, message_id="m"))
    assert record(ledger, event(5, message_id="m")) == {"counted": False, "reason": "duplicate"}
    assert (total(ledger), total(ledger, "duplicates")) == (5, 1)


def test_a_recorded_conflict_does_not_count_and_is_told_to_everybody(ledger):
    apply(ledger, event(5, message_id="m"))
    command = Command(operation="record", request_id="1", client="c", arguments={}, event=event(6, message_id="m"))
    outcome = execute(ledger, command, START_MS)
    assert outcome.answer == {"counted": False, "reason": "id_conflict"}
    assert [rejection.reason for rejection in outcome.rejections] == ["id_conflict"]
    assert ledger.dead == {"id_conflict": 1}


def test_what_could_not_be_counted_is_told_once(ledger):
    apply(ledger, event(5, message_id="m"))
    command = Command(operation="record", request_id="1", client="c", arguments={}, event=event(6, message_id="m"))
    first, again = (execute(ledger, command, START_MS) for _ in range(2))
    assert (again.answer, again.rejections) == (first.answer, ())
    assert ledger.dead == {"id_conflict": 1}


def test_the_same_request_is_carried_out_once_and_has_the_same_answer(ledger):
    assert record(ledger, event(5)) == record(ledger, event(5)) == {"counted": True, "reason": None}
    assert total(ledger) == 5


@pytest.mark.parametrize("other", [{"request_id": "2"}, {"client": "d"}])
def test_another_request_is_carried_out(ledger, other):
    record(ledger, event(5))
    record(ledger, event(5), **other)
    assert total(ledger) == 10


def test_an_event_recorded_without_a_time_happened_when_the_log_took_it(ledger):
    record(ledger, event(5), log_ms=START_MS + 9)
    assert (ledger.log_ms, int(ledger.last_ms[0])) == (START_MS + 9, START_MS + 9)


def test_a_command_does_not_move_the_log_time_back(ledger):
    apply(ledger, event(), log_ms=START_MS + 9)
    record(ledger, event(), log_ms=START_MS)
    assert ledger.log_ms == START_MS + 9


def test_a_reset_starts_a_session_anew(ledger):
    apply(ledger, event(5, session="s"))
    assert run(ledger, "reset", {"tenant": "default", "session": "s"}) == {"reset": True}
    assert ledger.resets["default", "s"].sums == (5, 0, 0, 0, 0, 1)


def test_a_command_that_does_not_exist_is_refused(ledger):
    with pytest.raises(InvalidValue) as refused:
        run(ledger, "explode")
    assert (refused.value.field, refused.value.reason) == ("command", "unknown_command")


def test_an_event_to_record_must_be_there(ledger):
    with pytest.raises(InvalidValue) as refused:
        run(ledger, "record")
    assert (refused.value.field, refused.value.reason) == ("event", "decode")


@pytest.mark.parametrize(
    ("arguments", "field", "reason"),
    [
        ({}, "tenant", "decode"),
        ({"tenant": "t"}, "session", "decode"),
        ({"tenant": "", "session": "s"}, "tenant", "decode"),
        ({"tenant": "t", "session": 5}, "session", "type"),
        ({"tenant": ["t"], "session": "s"}, "tenant", "type"),
        ({"tenant": "t", "session": "__other__"}, "session", "bad_name"),
    ],
)
def test_a_session_to_reset_must_be_named(ledger, arguments, field, reason):
    with pytest.raises(InvalidValue) as refused:
        run(ledger, "reset", arguments)
    assert (refused.value.field, refused.value.reason) == (field, reason)


def test_a_refused_request_is_refused_again_in_the_same_words_whatever_it_asks_then(ledger):
    for _ in range(2):
        with pytest.raises(InvalidValue) as refused:
            run(ledger, "explode")
        assert (str(refused.value), refused.value.reason) == ("command 'explode' is not known", "unknown_command")
    with pytest.raises(InvalidValue):
        record(ledger, event(5))
    assert (total(ledger, "requests"), ledger.dead) == (0, {"unknown_command": 1})


def test_a_refused_request_has_something_to_put_aside_the_first_time_only(ledger):
    command = Command(operation="reset", request_id="1", client="c", arguments={})
    first, again = (execute(ledger, command, START_MS) for _ in range(2))
    assert [rejection.reason for rejection in first.rejections] == ["decode"]
    assert again.rejections == ()


def test_the_oldest_answers_are_forgotten_when_there_are_too_many(ledger, monkeypatch):
    monkeypatch.setattr(commands, "ANSWERS_MAX", 2)
    for number in "123":
        record(ledger, event(1), request_id=number)
    assert [ledger.answers.get(("c", number)) is None for number in "123"] == [True, False, False]
    assert len(ledger.answers) == 2
