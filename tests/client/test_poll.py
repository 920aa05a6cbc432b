"""The poll asks without waiting long, and takes answers that come late."""

from __future__ import annotations

from dataclasses import replace

import pytest

from token_actor.client.poll import Poll
from token_actor.client.watermark import Watermark
from token_actor.errors import ServerRefused, ServerUnavailable
from token_actor.transport.memory import MemoryServer
from token_actor.transport.ports import Append, Put
from token_actor.wire.keys import Keys
from token_actor.wire.messages import ANSWER_FIELD, Answer, Question

KEYS = Keys("ns")
ASKED = Watermark(0, b"p" * 16, [0])


@pytest.fixture
def server():
    return MemoryServer()


@pytest.fixture
def connection(server):
    return server.connect()


def answer_all(connection, *, ahead=False):
    """Answer like an actor would; return how many questions there were. ``ahead`` answers the next one, too."""
    questions = [Question.decode(fields[1]) for _, fields in connection.range(KEYS.ask, count=1_000)]
    following = replace(questions[-1], request_id=str(1 + int(questions[-1].request_id)))
    for question in [*questions, following] if ahead else questions:
        answer = Answer(request_id=question.request_id, epoch=1, result={"epochs": {}})
        key = KEYS.inbox(question.client)
        connection.write([Append(key=key, fields=[ANSWER_FIELD, answer.encode()])])
    return len(questions)


def test_nobody_answers_and_the_next_poll_takes_the_late_answer_too(connection):
    poll = Poll("ns")
    assert list(poll.ask(connection, [ASKED])) == []
    assert answer_all(connection) == 1
    assert list(poll.ask(connection, [ASKED])) == [(ASKED, {"epochs": {}})]


def test_an_answer_is_taken_once(connection):
    poll = Poll("ns")
    list(poll.ask(connection, [ASKED]))
    answer_all(connection)
    answer_all(connection)
    assert len(list(poll.ask(connection, [ASKED]))) == 1


def test_a_question_that_an_actor_does_not_know_has_no_answer(server, connection, monkeypatch):
    from token_actor.errors import InvalidQuestion

    monkeypatch.setattr(
        Answer, "decode", lambda data: Answer(request_id="1", epoch=1, problem=InvalidQuestion("kind", "is not known"))
    )
    poll = Poll("ns")
    list(poll.ask(connection, [ASKED]))
    answer_all(connection)
    assert list(poll.ask(connection, [ASKED])) == []


def test_a_server_that_refuses_the_question_is_told(connection):
    connection.write([Put(key=KEYS.ask, value=b"not a stream")])
    with pytest.raises(ServerRefused):
        list(Poll("ns").ask(connection, [ASKED]))


def test_after_a_lost_connection_the_inbox_is_read_from_its_beginning(server, connection):
    poll = Poll("ns")
    list(poll.ask(connection, [ASKED]))
    answer_all(connection, ahead=True)
    assert len(list(poll.ask(connection, [ASKED]))) == 2
    assert poll._read_up_to
    server.go_away()
    with pytest.raises(ServerUnavailable):
        list(poll.ask(connection, [ASKED]))
    assert poll._read_up_to == {}


def test_an_inbox_without_what_is_waited_for_is_read_from_its_beginning_the_next_time(connection):
    poll = Poll("ns")
    list(poll.ask(connection, [ASKED]))
    answer_all(connection)
    assert len(list(poll.ask(connection, [ASKED]))) == 1
    assert poll._read_up_to == {}


def test_only_so_many_unanswered_questions_are_kept_in_mind(connection, monkeypatch):
    monkeypatch.setattr("token_actor.client.poll._UNANSWERED_MAX", 3)
    poll = Poll("ns")
    for _ in range(5):
        list(poll.ask(connection, [ASKED]))
    assert len(poll._unanswered) == 3
