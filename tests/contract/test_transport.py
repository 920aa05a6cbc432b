"""What every server promises of everything but streams: keys, writes, exchanges, facts, connections."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.contract.subjects import (
    FAKEREDIS,
    JOIN_S,
    LONG_MS,
    MEMORY,
    VALKEY,
    WRONG_TYPE,
    append,
    ids,
    one,
    refusal,
    wait_until,
)
from token_actor.errors import ClosedError, ServerRefused, ServerUnavailable
from token_actor.transport.ports import (
    FIRST,
    Append,
    Delete,
    DeleteEntries,
    Expire,
    Increment,
    Operation,
    Put,
    PutField,
    TrimBelow,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.subjects import Key, Subject
    from token_actor.transport.ports import Connection


class TestKeys:
    def test_a_string_is_read_back_and_replaced(self, connection: Connection, key: Key) -> None:
        assert connection.get(key("k")) is None
        assert one(connection, Put(key=key("k"), value=b"one")) == b"OK"
        assert one(connection, Put(key=key("k"), value=b"")) == b"OK"
        assert connection.get(key("k")) == b""

    def test_a_string_that_must_be_absent_is_set_once(self, connection: Connection, key: Key) -> None:
        claims = [Put(key=key("k"), value=value, only_if_absent=True) for value in (b"a", b"b")]
        assert connection.write(claims) == [b"OK", None]
        assert connection.get(key("k")) == b"a"

    def test_a_string_replaces_whatever_was_there(self, connection: Connection, key: Key) -> None:
        append(connection, key("k"), b"1")
        assert one(connection, Put(key=key("k"), value=b"x")) == b"OK"
        assert connection.get(key("k")) == b"x"

    def test_a_string_goes_after_its_time(self, connection: Connection, key: Key) -> None:
        one(connection, Put(key=key("k"), value=b"x", ttl_ms=20, only_if_absent=True))
        wait_until(lambda: connection.get(key("k")) is None)
        assert one(connection, Put(key=key("k"), value=b"y", ttl_ms=LONG_MS, only_if_absent=True)) == b"OK"

    def test_a_string_that_is_replaced_without_a_time_stays(self, connection: Connection, key: Key) -> None:
        marks = [Put(key=key("mark"), value=b"x", ttl_ms=30)]
        connection.write([Put(key=key("k"), value=b"x", ttl_ms=20), Put(key=key("k"), value=b"y"), *marks])
        wait_until(lambda: connection.get(key("mark")) is None)
        assert connection.get(key("k")) == b"y"

    @pytest.mark.parametrize("ttl_ms", [0, -1])
    def test_a_string_without_any_time_is_refused(self, connection: Connection, key: Key, ttl_ms: int) -> None:
        text = refusal(connection, Put(key=key("k"), value=b"x", ttl_ms=ttl_ms))
        assert text.startswith("ERR invalid expire time in")

    def test_a_key_is_told_to_expire(self, connection: Connection, key: Key) -> None:
        append(connection, key("s"), b"1")
        assert one(connection, Expire(key=key("s"), ttl_ms=20)) == 1
        wait_until(lambda: connection.range(key("s"), count=1) == [])
        assert one(connection, Expire(key=key("s"), ttl_ms=20)) == 0

    def test_a_key_that_expires_at_once_is_gone(self, connection: Connection, key: Key) -> None:
        one(connection, Put(key=key("k"), value=b"x"))
        assert one(connection, Expire(key=key("k"), ttl_ms=0)) == 1
        assert connection.get(key("k")) is None

    def test_a_longer_life_replaces_a_shorter_one(self, connection: Connection, key: Key) -> None:
        marks = [Put(key=key("mark"), value=b"x", ttl_ms=30)]
        life = [Expire(key=key("k"), ttl_ms=20), Expire(key=key("k"), ttl_ms=LONG_MS)]
        connection.write([Put(key=key("k"), value=b"x"), *life, *marks])
        wait_until(lambda: connection.get(key("mark")) is None)
        assert connection.get(key("k")) == b"x"

    def test_keys_are_deleted_and_counted(self, connection: Connection, key: Key) -> None:
        append(connection, key("s"), b"1")
        one(connection, Put(key=key("k"), value=b"x"))
        deletion = Delete(keys=[key("s"), key("k"), key("none")])
        assert connection.write([deletion, deletion]) == [2, 0]
        assert connection.stream_state(key("s")) is None

    def test_deleting_nothing_is_refused(self, connection: Connection) -> None:
        assert refusal(connection, Delete(keys=[])) == "ERR wrong number of arguments for 'del' command"

    def test_a_field_of_a_hash_is_set_once(self, connection: Connection, key: Key) -> None:
        assert connection.get_fields(key("h")) == {}
        fields = [(b"a", b"1"), (b"a", b"2"), (b"b", b"")]
        assert connection.write([PutField(key=key("h"), field=f, value=v) for f, v in fields]) == [1, 0, 1]
        assert connection.get_fields(key("h")) == {b"a": b"1", b"b": b""}

    def test_an_integer_is_incremented(self, connection: Connection, key: Key) -> None:
        assert connection.write([Increment(key=key("n")), Increment(key=key("n"))]) == [1, 2]
        assert connection.get(key("n")) == b"2"
        one(connection, Put(key=key("n"), value=b"-1"))
        assert one(connection, Increment(key=key("n"))) == 0

    @pytest.mark.parametrize("text", [b"x", b"1.5", b" 1", b"", b"9223372036854775808"])
    def test_what_is_no_integer_is_not_incremented(self, connection: Connection, key: Key, text: bytes) -> None:
        one(connection, Put(key=key("n"), value=text))
        assert refusal(connection, Increment(key=key("n"))) == "ERR value is not an integer or out of range"

    def test_every_operation_is_refused_on_a_key_of_another_kind(self, connection: Connection, key: Key) -> None:
        one(connection, Put(key=key("text"), value=b"x"))
        append(connection, key("stream"), b"1")
        on_text: list[Operation] = [
            Append(key=key("text"), fields=[b"a", b"b"]),
            TrimBelow(key=key("text"), entry_id=b"1-0"),
            DeleteEntries(key=key("text"), entry_ids=[b"1-0"]),
            PutField(key=key("text"), field=b"a", value=b"b"),
            Increment(key=key("stream")),
            PutField(key=key("stream"), field=b"a", value=b"b"),
        ]
        assert [str(outcome) for outcome in connection.write(on_text)] == [WRONG_TYPE] * len(on_text)
        for ask in (connection.get, connection.get_fields):
            with pytest.raises(ServerRefused, match=WRONG_TYPE):
                ask(key("stream"))


class TestWrite:
    def test_operations_are_carried_out_in_order(self, connection: Connection, key: Key) -> None:
        steps: list[Operation] = [Put(key=key("k"), value=b"1"), Increment(key=key("k")), Put(key=key("k"), value=b"5")]
        assert connection.write(steps) == [b"OK", 2, b"OK"]
        assert connection.get(key("k")) == b"5"

    def test_a_refused_operation_does_not_stop_the_others(self, connection: Connection, key: Key) -> None:
        steps: list[Operation] = [Put(key=key("k"), value=b"x"), Increment(key=key("k")), Put(key=key("k"), value=b"y")]
        first, refused, last = connection.write(steps)
        assert (first, last) == (b"OK", b"OK")
        assert isinstance(refused, ServerRefused)
        assert connection.get(key("k")) == b"y"

    def test_writing_nothing_is_fine(self, connection: Connection) -> None:
        assert connection.write([]) == []

    def test_many_and_large_operations_go_in_one_write(self, connection: Connection, key: Key) -> None:
        large = Put(key=key("chunk"), value=b"\r\n" * 524_288)
        outcomes = connection.write([large, *[Increment(key=key("n"))] * 2_000])
        assert outcomes == [b"OK", *range(1, 2_001)]
        assert connection.get(key("chunk")) == large.value

    def test_connections_see_what_the_others_wrote(self, subject: Subject, key: Key) -> None:
        one(subject.connect(), Put(key=key("k"), value=b"x"))
        assert subject.connect().get(key("k")) == b"x"


class TestExchange:
    def test_it_returns_the_id_of_the_question_and_the_answers(self, connection: Connection, key: Key) -> None:
        first, second = append(connection, key("inbox"), b"1", b"2")
        question = Append(key=key("ask"), fields=[b"q", b"?"])
        question_id, answers = connection.exchange(question, inbox=key("inbox"), after=first, block_ms=LONG_MS)
        assert ids(connection.range(key("ask"), count=10)) == [question_id]
        assert ids(answers) == [second]

    def test_it_waits_for_the_answer(self, subject: Subject, key: Key) -> None:
        client, actor = subject.connect(), subject.connect()
        answered = []

        def answer() -> None:
            questions = actor.read({key("ask"): FIRST}, count=1, block_ms=LONG_MS)
            (question_id,) = ids(questions[key("ask")])
            answered.extend(append(actor, key("inbox"), question_id))

        thread = threading.Thread(target=answer)
        thread.start()
        question = Append(key=key("ask"), fields=[b"q", b"?"])
        question_id, answers = client.exchange(question, inbox=key("inbox"), after=FIRST, block_ms=LONG_MS)
        thread.join(JOIN_S)
        assert [(entry_id, list(fields)) for entry_id, fields in answers] == [(answered[0], [b"v", question_id])]

    @pytest.mark.parametrize("block_ms", [0, 20])
    def test_it_returns_no_answers_when_none_came_in_time(
        self, connection: Connection, key: Key, block_ms: int
    ) -> None:
        question = Append(key=key("ask"), fields=[b"q", b"?"])
        question_id, answers = connection.exchange(question, inbox=key("inbox"), after=FIRST, block_ms=block_ms)
        assert (ids(connection.range(key("ask"), count=1)), answers) == ([question_id], [])

    @pytest.mark.unfaithful(fakeredis="sits out the wait before it hands over the refusal")
    def test_a_refused_question_is_raised_at_once_and_leaves_nothing_behind(
        self, connection: Connection, key: Key
    ) -> None:
        one(connection, Put(key=key("text"), value=b"x"))
        question = Append(key=key("text"), fields=[b"q", b"?"])
        with pytest.raises(ServerRefused, match=WRONG_TYPE):
            connection.exchange(question, inbox=key("inbox"), after=FIRST, block_ms=LONG_MS)
        assert connection.get(key("text")) == b"x"

    @pytest.mark.unfaithful(fakeredis="breaks with an AttributeError of its own")
    def test_an_inbox_that_cannot_be_read_is_raised_though_the_question_was_asked(
        self, connection: Connection, key: Key
    ) -> None:
        one(connection, Put(key=key("text"), value=b"x"))
        question = Append(key=key("ask"), fields=[b"q", b"?"])
        with pytest.raises(ServerRefused, match=WRONG_TYPE):
            connection.exchange(question, inbox=key("text"), after=FIRST, block_ms=LONG_MS)
        assert len(connection.range(key("ask"), count=10)) == 1
        assert connection.get(key("text")) == b"x"


class TestServerFacts:
    EXPECTED = {MEMORY: ("memory", "no"), VALKEY: ("valkey", "yes")}  # noqa: RUF012 - nobody changes it

    @pytest.mark.unfaithful(fakeredis="knows neither INFO nor CONFIG GET of more than what was set")
    def test_they_name_the_server_and_how_it_keeps_data(self, subject: Subject) -> None:
        facts = subject.connect().server_facts()
        assert (facts["server_name"], facts["config:appendonly"]) == self.EXPECTED[subject.name]
        assert facts["role"] == "master"
        assert facts["run_id"]
        assert facts["config:maxmemory-policy"] == "noeviction"
        assert (facts["config:save"], facts["config:maxmemory"]) == ("", "0")
        assert "config:appendfsync" in facts


class TestClose:
    def test_closing_twice_is_fine_and_using_it_afterwards_is_not(self, connection: Connection, key: Key) -> None:
        one(connection, Put(key=key("k"), value=b"x"))
        connection.close()
        connection.close()
        question = Append(key=key("ask"), fields=[b"q", b"?"])
        calls: list[Callable[[], object]] = [
            lambda: connection.get(key("k")),
            lambda: connection.get_fields(key("k")),
            lambda: connection.range(key("k"), count=1),
            lambda: connection.read({key("k"): FIRST}, count=1),
            lambda: connection.stream_state(key("k")),
            lambda: connection.write([question]),
            lambda: connection.write_together([question]),
            lambda: connection.write_if(b"leader", None, [question]),
            lambda: connection.exchange(question, inbox=key("k"), after=FIRST, block_ms=0),
            connection.server_facts,
        ]
        for call in calls:
            with pytest.raises(ClosedError):
                call()

    def test_the_other_connections_stay(self, subject: Subject, key: Key) -> None:
        stays, goes = subject.connect(), subject.connect()
        goes.close()
        assert stays.get(key("k")) is None

    @pytest.mark.unfaithful(fakeredis="cannot be interrupted")
    def test_closing_from_another_thread_ends_a_wait(self, subject: Subject, key: Key) -> None:
        waiting, other = subject.connect(), subject.connect()
        ends = []

        def wait() -> None:
            with pytest.raises((ServerUnavailable, ClosedError)) as caught:
                waiting.exchange(
                    Append(key=key("ask"), fields=[b"q", b"?"]), inbox=key("in"), after=FIRST, block_ms=LONG_MS
                )
            ends.append(caught.type)

        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: other.stream_state(key("ask")) is not None)
        waiting.close()
        thread.join(JOIN_S)
        assert ends == [ServerUnavailable]


def test_the_address_names_the_server(subject: Subject) -> None:
    expected = {MEMORY: "memory://", FAKEREDIS: "redis://fakeredis:6379/0"}
    address = subject.connector.address
    assert address == expected.get(subject.name, address)
    assert address.endswith(("/0", "//"))
