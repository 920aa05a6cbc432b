"""Facts about questions, commands, answers and dead letters, and their bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import event, examples
from token_actor.core.columns import Rejection
from token_actor.core.commands import Command
from token_actor.core.usage import UNPRICED
from token_actor.errors import BadEntry, InvalidQuestion, InvalidValue
from token_actor.wire.codec import pack
from token_actor.wire.messages import (
    BAD_EVENTS_MAX,
    RAW_BYTES_MAX,
    Answer,
    DeadLetter,
    Question,
    decode_command,
    encode_command,
)

QUESTION = {"v": 1, "id": "1", "client": "c", "kind": "status", "args": {}, "after": None}
COMMAND = {"v": 1, "id": "1", "client": "c", "op": "reset", "args": {}}


def refusal(decode, message):
    with pytest.raises(BadEntry) as refused:
        decode(pack(message))
    return refused.value.reason


# --- questions and commands -----------------------------------------------------------------------


@pytest.mark.parametrize("after", [None, b"1700000000000-3"])
def test_a_question_comes_back_as_it_was(after):
    question = Question(request_id="7", client="c-1", kind="history", arguments={"limit": 5}, after=after)
    assert Question.decode(question.encode()) == question


def test_a_question_may_have_no_arguments_and_wait_for_nothing():
    assert Question.decode(pack({"v": 1, "id": "1", "client": "c", "kind": "status"})) == Question(
        request_id="1", client="c", kind="status"
    )


@pytest.mark.parametrize("after", [b"", b"abc", b"5", "5-5", 7, b"5-5-5", b"-1-1", b"9" * 5000 + b"-0"])
def test_a_question_waits_for_an_entry_or_for_nothing(after):
    assert refusal(Question.decode, {**QUESTION, "after": after}) == "decode"


@pytest.mark.parametrize("event_fields", [None, {"agent": "a", "input_tokens": 5}])
def test_a_command_comes_back_as_it_was(event_fields):
    command = Command(operation="record", request_id="7", client="c", arguments={"a": 1})
    again = decode_command(encode_command(command, event_fields))
    expected = None if event_fields is None else event(5, agent="a")
    assert again == Command(operation="record", request_id="7", client="c", arguments={"a": 1}, event=expected)


@pytest.mark.parametrize("fields", [1, [], "a", True])
def test_the_event_of_a_command_is_a_map(fields):
    assert refusal(decode_command, {**COMMAND, "event": fields}) == "decode"


def test_the_event_of_a_command_is_checked():
    with pytest.raises(InvalidValue) as refused:
        decode_command(pack({**COMMAND, "event": {"input_tokens": -1}}))
    assert refused.value.field == "input_tokens"


CASES = [
    ({"v": None}, "version"),
    ({"v": 2}, "version"),
    ({"v": "1"}, "version"),
    ({"surprise": 1}, "decode"),
    ({"id": ""}, "decode"),
    ({"id": "x" * 65}, "decode"),
    ({"id": 7}, "decode"),
    ({"id": None}, "decode"),
    ({"client": None}, "decode"),
    ({"client": "a:b"}, "decode"),
    ({"client": "x" * 65}, "decode"),
    ({"args": []}, "decode"),
    ({"args": None}, "decode"),
    ({"args": "x"}, "decode"),
]


@pytest.mark.parametrize(("wrong", "reason"), [*CASES, ({"kind": 5}, "decode"), ({"kind": ""}, "decode")])
def test_a_question_that_is_none_is_refused(wrong, reason):
    assert refusal(Question.decode, {**QUESTION, **wrong}) == reason


@pytest.mark.parametrize(("wrong", "reason"), [*CASES, ({"op": 5}, "decode"), ({"op": "x" * 65}, "decode")])
def test_a_command_that_is_none_is_refused(wrong, reason):
    assert refusal(decode_command, {**COMMAND, **wrong}) == reason


@pytest.mark.parametrize("message", [{}, {"a": 1}])
def test_a_message_without_a_version_is_of_another_version(message):
    assert refusal(Question.decode, message) == refusal(decode_command, message) == "version"


SMALL_MESSAGES = st.dictionaries(
    st.sampled_from(sorted({*QUESTION, *COMMAND, "event"})), st.integers(-(2**63), 2**64 - 1) | st.text(), max_size=6
)


@pytest.mark.parametrize(
    "decode", [Question.decode, decode_command, Answer.decode], ids=["question", "command", "answer"]
)
@given(data=st.binary(max_size=100) | SMALL_MESSAGES.map(pack))
@examples(100)
def test_random_bytes_are_a_message_or_refused(decode, data):
    try:
        decode(data)
        reason = None
    except BadEntry as bad:
        reason = bad.reason
    assert reason in {None, "decode", "version", "bad_name"}


# --- answers --------------------------------------------------------------------------------------


def test_an_answer_comes_back_as_it_was():
    answer = Answer(request_id="7", epoch=3, result={"a": [1, {"b": None}]})
    assert Answer.decode(answer.encode()) == answer


def test_an_answer_that_a_question_is_wrong_says_what_is():
    problem = InvalidQuestion("limit", "must be an int", reason="type")
    again = Answer.decode(Answer(request_id="7", epoch=3, problem=problem).encode())
    assert again.result is None
    assert isinstance(again.problem, InvalidQuestion)
    assert (again.problem.field, again.problem.problem, again.problem.reason) == ("limit", "must be an int", "type")


def test_an_answer_may_be_long_and_deep():
    result = {"groups": [{"name": str(number)} for number in range(10_000)], "deep": {"a": {"b": {"c": [[[[[[1]]]]]]}}}}
    assert Answer.decode(Answer(request_id="7", epoch=3, result=result).encode()).result == result


@pytest.mark.parametrize(
    "message", [{}, {"id": "7"}, {"id": "7", "epoch": 1, "error": []}, {"id": "7", "epoch": 1, "error": 5}]
)
def test_what_is_no_answer_is_refused(message):
    assert refusal(Answer.decode, message) == "decode"


# --- dead letters ---------------------------------------------------------------------------------


def test_a_dead_letter_comes_back_as_it_was():
    letter = DeadLetter(
        source=b"5-0", reason="range", detail="too ä\ud800", name=b"b", raw=b"\x00\xff", events=[(3, "range", "x")]
    )
    again = DeadLetter.read(b"5-0", letter.fields())
    assert again == DeadLetter(
        source=b"5-0", reason="range", detail="too ä\\ud800", name=b"b", raw=b"\x00\xff", events=[(3, "range", "x")]
    )


def test_the_dead_letter_of_a_batch_names_its_bad_events():
    rejections = [Rejection(0, 4, "range", "too much"), Rejection(0, 7, "type", "what")]
    letter = DeadLetter.of(b"5-0", [b"b", b"raw"], rejections)
    assert (letter.reason, letter.detail, letter.name, letter.raw) == ("range", "too much", b"b", b"raw")
    assert letter.events == [(4, "range", "too much"), (7, "type", "what")]


def test_a_dead_letter_is_no_larger_than_this_whatever_came():
    rejections = [Rejection(0, position, "range", "x") for position in range(BAD_EVENTS_MAX + 1)]
    letter = DeadLetter.of(b"5-0", [b"b", b"x" * (RAW_BYTES_MAX + 1)], rejections)
    assert (len(letter.raw), len(letter.events)) == (RAW_BYTES_MAX, BAD_EVENTS_MAX)


@pytest.mark.parametrize("name", [b"e", b"j", b"c"])
def test_the_dead_letter_of_one_event_is_of_the_entry_as_a_whole(name):
    assert DeadLetter.of(b"5-0", [name, b"raw"], [Rejection(0, 0, "id_conflict", "x")]).events == []


def test_the_dead_letter_of_a_whole_batch_names_no_events():
    assert DeadLetter.of(b"5-0", [b"b", b"raw"], [Rejection(0, None, "decode", "x")]).events == []


@pytest.mark.parametrize("fields", [[], [b"b"]])
def test_an_entry_without_a_field_has_a_dead_letter_too(fields):
    letter = DeadLetter.of(b"5-0", fields, [Rejection(0, None, "decode", "x")])
    assert (letter.name, letter.raw) == (b"", b"")
    assert DeadLetter.read(b"5-0", letter.fields()).raw == b""


LETTER = dict(
    zip(*[iter(DeadLetter(source=b"", reason="r", detail="d", name=b"b", raw=b"x").fields())] * 2, strict=True)
)


@pytest.mark.parametrize("name", sorted(set(LETTER) - {b"whole"}))
def test_a_dead_letter_that_lacks_a_field_is_refused(name):
    fields = [part for pair in LETTER.items() for part in pair if pair[0] != name]
    with pytest.raises(BadEntry, match="not a dead letter"):
        DeadLetter.read(b"5-0", fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [(b"reason", b"\xff"), (b"detail", b"\xff"), (b"events", b""), (b"events", b"\x05"), (b"events", b"\x91\x05")],
)
def test_a_dead_letter_with_a_field_that_is_damaged_is_refused(name, value):
    with pytest.raises(BadEntry):
        DeadLetter.read(b"5-0", [part for pair in {**LETTER, name: value}.items() for part in pair])


def test_an_event_of_a_message_is_unpriced_unless_it_has_a_cost():
    command = decode_command(pack({**COMMAND, "op": "record", "event": {}}))
    assert command.event is not None
    assert command.event.flags == UNPRICED
