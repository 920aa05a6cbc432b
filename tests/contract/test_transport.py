"""What every server promises through the ports: one suite for memory, fakeredis and a real Valkey."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from token_actor.errors import ClosedError, ServerRefused, ServerUnavailable
from token_actor.transport.ports import (
    FIRST,
    Append,
    Delete,
    DeleteEntries,
    Expire,
    Increment,
    Operation,
    Outcome,
    Put,
    PutField,
    StreamState,
    TrimBelow,
)

from tests.contract.subjects import FAKEREDIS, MEMORY, VALKEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_actor.transport.ports import Connection

    from tests.contract.subjects import Subject

    Key = Callable[[str], bytes]

LONG_MS = 30_000  # a wait that no test sits out
JOIN_S = 20.0
WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
INVALID_ID = "ERR Invalid stream ID specified as stream command argument"


def one(connection: Connection, operation: Operation) -> Outcome:
    """Carry out one operation."""
    (outcome,) = connection.write([operation])
    return outcome


def append(connection: Connection, key: bytes, *values: bytes) -> list[bytes]:
    """Append one entry per value; return the ids."""
    outcomes = connection.write([Append(key=key, fields=[b"v", value]) for value in values])
    assert all(isinstance(outcome, bytes) for outcome in outcomes)
    return outcomes  # type: ignore[return-value]


def fill(connection: Connection, key: bytes, *entry_ids: bytes) -> None:
    """Append entries with explicit ids."""
    outcomes = connection.write([Append(key=key, fields=[b"v", b"1"], entry_id=entry_id) for entry_id in entry_ids])
    assert outcomes == list(entry_ids)


def ids(entries: list[tuple[bytes, list[bytes]]]) -> list[bytes]:
    """Return the ids of entries."""
    return [entry_id for entry_id, _ in entries]


def refusal(connection: Connection, operation: Operation) -> str:
    """Return the text with which an operation is refused."""
    outcome = one(connection, operation)
    assert isinstance(outcome, ServerRefused)
    assert outcome.code == str(outcome).split(" ", 1)[0]
    return str(outcome)


def wait_until(reached: Callable[[], bool]) -> None:
    """Ask again and again until something has happened."""
    deadline_s = time.monotonic() + JOIN_S
    while not reached():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.001)


class TestAppend:
    def test_an_entry_is_read_back_as_it_was_appended(self, connection: Connection, key: Key) -> None:
        fields = [b"b", bytes(range(256)), b"", b""]
        entry_id = one(connection, Append(key=key("log"), fields=fields))
        ((read_id, read_fields),) = connection.range(key("log"), count=10)
        assert (read_id, list(read_fields)) == (entry_id, fields)

    def test_ids_that_the_server_chooses_only_grow(self, connection: Connection, key: Key) -> None:
        chosen = [tuple(map(int, entry_id.split(b"-"))) for entry_id in append(connection, key("log"), *[b"x"] * 50)]
        assert chosen == sorted(set(chosen))

    def test_an_explicit_id_is_taken(self, connection: Connection, key: Key) -> None:
        assert one(connection, Append(key=key("s"), fields=[b"a", b"b"], entry_id=b"7-3")) == b"7-3"

    @pytest.mark.parametrize("entry_id", [b"7-3", b"7-2", b"6-9", b"7"])
    def test_an_explicit_id_that_is_not_above_the_last_is_refused(
        self, connection: Connection, key: Key, entry_id: bytes
    ) -> None:
        fill(connection, key("s"), b"7-3")
        text = refusal(connection, Append(key=key("s"), fields=[b"a", b"b"], entry_id=entry_id))
        assert text == "ERR The ID specified in XADD is equal or smaller than the target stream top item"
        assert ids(connection.range(key("s"), count=10)) == [b"7-3"]

    def test_the_id_zero_is_refused(self, connection: Connection, key: Key) -> None:
        text = refusal(connection, Append(key=key("s"), fields=[b"a", b"b"], entry_id=b"0-0"))
        assert text == "ERR The ID specified in XADD must be greater than 0-0"
        assert connection.stream_state(key("s")) is None

    @pytest.mark.parametrize("entry_id", [b"x", b"", b"1-", b"-1", b"1-1-1", b"18446744073709551616-0"])
    def test_an_id_that_is_none_is_refused(self, connection: Connection, key: Key, entry_id: bytes) -> None:
        text = refusal(connection, Append(key=key("s"), fields=[b"a", b"b"], entry_id=entry_id))
        assert text == INVALID_ID

    @pytest.mark.unfaithful(fakeredis="takes the clock for an id even when the last one is above it")
    def test_the_id_the_server_chooses_is_above_an_explicit_one_in_the_future(
        self, connection: Connection, key: Key
    ) -> None:
        fill(connection, key("s"), b"99999999999999-5")
        assert append(connection, key("s"), b"x") == [b"99999999999999-6"]

    @pytest.mark.parametrize("fields", [[], [b"a"], [b"a", b"b", b"c"]])
    def test_fields_that_are_not_pairs_are_refused(
        self, connection: Connection, key: Key, fields: list[bytes]
    ) -> None:
        text = refusal(connection, Append(key=key("s"), fields=fields))
        assert text.lower() == "err wrong number of arguments for 'xadd' command"

    def test_a_bounded_stream_keeps_the_newest_and_drops_the_oldest(self, connection: Connection, key: Key) -> None:
        bounded = [Append(key=key("s"), fields=[b"v", b"%d" % n], length_max=100) for n in range(500)]
        added = connection.write(bounded)
        state = connection.stream_state(key("s"))
        assert state is not None
        assert 100 <= state.length <= 300  # a server drops whole nodes of about 100 entries
        assert state.entries_added == 500
        assert ids(connection.range(key("s"), count=1_000)) == added[-state.length :]

    def test_an_expiring_stream_goes_on_expiring_when_it_grows(self, connection: Connection, key: Key) -> None:
        connection.write(
            [
                Append(key=key("s"), fields=[b"a", b"b"]),
                Expire(key=key("s"), ttl_ms=20),
                Append(key=key("s"), fields=[b"a", b"b"]),
            ]
        )
        wait_until(lambda: connection.stream_state(key("s")) is None)


class TestRead:
    def test_it_returns_what_is_above_the_id_given(self, connection: Connection, key: Key) -> None:
        first, second, third = append(connection, key("log"), b"1", b"2", b"3")
        assert ids(connection.read({key("log"): FIRST}, count=10)[key("log")]) == [first, second, third]
        assert ids(connection.read({key("log"): first}, count=10)[key("log")]) == [second, third]
        assert connection.read({key("log"): third}, count=10) == {}

    def test_it_returns_at_most_count_entries_of_each_stream(self, connection: Connection, key: Key) -> None:
        log, ask = append(connection, key("log"), b"1", b"2", b"3"), append(connection, key("ask"), b"4", b"5", b"6")
        found = connection.read({key("log"): FIRST, key("ask"): FIRST}, count=2)
        assert {name: ids(entries) for name, entries in found.items()} == {key("log"): log[:2], key("ask"): ask[:2]}

    def test_a_stream_without_news_is_not_in_the_answer(self, connection: Connection, key: Key) -> None:
        append(connection, key("log"), b"1")
        found = connection.read({key("none"): FIRST, key("log"): FIRST}, count=10)
        assert list(found) == [key("log")]

    @pytest.mark.parametrize("block_ms", [None, 0])
    def test_it_does_not_wait_unless_it_is_told_to(
        self, connection: Connection, key: Key, block_ms: int | None
    ) -> None:
        assert connection.read({key("none"): FIRST}, count=10, block_ms=block_ms) == {}

    def test_it_returns_nothing_when_nothing_came_in_time(self, connection: Connection, key: Key) -> None:
        started_s = time.monotonic()
        assert connection.read({key("none"): FIRST}, count=10, block_ms=30) == {}
        assert time.monotonic() - started_s >= 0.03

    def test_it_does_not_wait_when_there_is_something(self, connection: Connection, key: Key) -> None:
        added = append(connection, key("log"), b"1")
        found = connection.read({key("log"): FIRST}, count=10, block_ms=LONG_MS)
        assert ids(found[key("log")]) == added

    def test_a_wait_ends_with_the_first_entry_that_another_connection_appends(
        self, subject: Subject, key: Key
    ) -> None:
        reader, writer = subject.connect(), subject.connect()
        found = {}
        after = {key("log"): FIRST, key("ask"): FIRST}
        thread = threading.Thread(target=lambda: found.update(reader.read(after, count=10, block_ms=LONG_MS)))
        thread.start()
        added = append(writer, key("ask"), b"1")
        thread.join(JOIN_S)
        assert {name: ids(entries) for name, entries in found.items()} == {key("ask"): added}

    @pytest.mark.unfaithful(fakeredis="breaks with an AttributeError of its own")
    def test_a_stream_that_is_none_is_refused(self, connection: Connection, key: Key) -> None:
        one(connection, Put(key=key("text"), value=b"x"))
        with pytest.raises(ServerRefused, match=WRONG_TYPE) as caught:
            connection.read({key("text"): FIRST}, count=10)
        assert caught.value.code == "WRONGTYPE"

    def test_an_id_that_is_none_is_refused(self, connection: Connection, key: Key) -> None:
        with pytest.raises(ServerRefused, match=INVALID_ID):
            connection.read({key("log"): b"x"}, count=10)


class TestRange:
    @pytest.fixture
    def stream(self, connection: Connection, key: Key) -> bytes:
        fill(connection, key("s"), b"1-1", b"1-2", b"2-0", b"3-5")
        return key("s")

    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            (b"-", b"+", [b"1-1", b"1-2", b"2-0", b"3-5"]),
            (b"1-2", b"2-0", [b"1-2", b"2-0"]),
            (b"(1-2", b"+", [b"2-0", b"3-5"]),
            (b"-", b"(2-0", [b"1-1", b"1-2"]),
            (b"(1-1", b"(3-5", [b"1-2", b"2-0"]),
            (b"1", b"1", [b"1-1", b"1-2"]),
            (b"(1", b"(2", [b"1-1", b"1-2", b"2-0"]),
            (b"3-6", b"+", []),
            (b"3", b"1", []),
        ],
    )
    @pytest.mark.parametrize("newest_first", [False, True])
    def test_it_returns_what_lies_between(
        self, connection: Connection, stream: bytes, start: bytes, end: bytes, expected: list[bytes], newest_first: bool
    ) -> None:
        found = connection.range(stream, start=start, end=end, count=10, newest_first=newest_first)
        assert ids(found) == (expected[::-1] if newest_first else expected)

    def test_it_returns_at_most_count_entries_from_its_own_end(self, connection: Connection, stream: bytes) -> None:
        assert ids(connection.range(stream, count=2)) == [b"1-1", b"1-2"]
        assert ids(connection.range(stream, count=2, newest_first=True)) == [b"3-5", b"2-0"]

    def test_a_stream_that_does_not_exist_is_empty(self, connection: Connection, key: Key) -> None:
        assert connection.range(key("none"), count=10) == []

    def test_an_id_that_is_none_is_refused(self, connection: Connection, stream: bytes) -> None:
        with pytest.raises(ServerRefused, match=INVALID_ID):
            connection.range(stream, start=b"(-", count=1)

    def test_a_stream_that_is_none_is_refused(self, connection: Connection, key: Key) -> None:
        one(connection, Put(key=key("text"), value=b"x"))
        with pytest.raises(ServerRefused, match=WRONG_TYPE):
            connection.range(key("text"), count=1)


class TestStreamState:
    def test_it_tells_length_ids_and_how_many_were_ever_added(self, connection: Connection, key: Key) -> None:
        fill(connection, key("s"), b"1-1", b"2-2", b"3-3")
        state = connection.stream_state(key("s"))
        assert state == StreamState(length=3, last_id=b"3-3", first_id=b"1-1", entries_added=3)

    def test_last_id_and_entries_added_survive_that_everything_is_dropped(
        self, connection: Connection, key: Key
    ) -> None:
        fill(connection, key("s"), b"1-1", b"2-2", b"3-3")
        connection.write([DeleteEntries(key=key("s"), entry_ids=[b"2-2"]), TrimBelow(key=key("s"), entry_id=b"9-0")])
        state = connection.stream_state(key("s"))
        assert state == StreamState(length=0, last_id=b"3-3", first_id=None, entries_added=3)

    def test_there_is_none_of_a_stream_that_does_not_exist(self, connection: Connection, key: Key) -> None:
        assert connection.stream_state(key("none")) is None

    def test_a_stream_that_is_none_is_refused(self, connection: Connection, key: Key) -> None:
        one(connection, Put(key=key("text"), value=b"x"))
        with pytest.raises(ServerRefused, match=WRONG_TYPE):
            connection.stream_state(key("text"))


class TestTrimAndDeleteEntries:
    def test_trimming_drops_exactly_what_is_below(self, connection: Connection, key: Key) -> None:
        fill(connection, key("s"), *[b"%d-0" % n for n in range(1, 301)])
        assert one(connection, TrimBelow(key=key("s"), entry_id=b"251-0")) == 250
        assert one(connection, TrimBelow(key=key("s"), entry_id=b"251-0")) == 0
        state = connection.stream_state(key("s"))
        assert state == StreamState(length=50, last_id=b"300-0", first_id=b"251-0", entries_added=300)
        assert ids(connection.read({key("s"): FIRST}, count=2)[key("s")]) == [b"251-0", b"252-0"]

    def test_single_entries_are_deleted_once(self, connection: Connection, key: Key) -> None:
        fill(connection, key("s"), b"1-0", b"2-0", b"3-0")
        deletion = DeleteEntries(key=key("s"), entry_ids=[b"1-0", b"2-0", b"2-5"])
        assert connection.write([deletion, deletion]) == [2, 0]
        assert ids(connection.range(key("s"), count=10)) == [b"3-0"]

    def test_there_is_nothing_to_drop_in_a_stream_that_does_not_exist(self, connection: Connection, key: Key) -> None:
        absent = [TrimBelow(key=key("s"), entry_id=b"1-0"), DeleteEntries(key=key("s"), entry_ids=[b"1-0"])]
        assert connection.write(absent) == [0, 0]

    def test_ids_that_are_none_are_refused(self, connection: Connection, key: Key) -> None:
        fill(connection, key("s"), b"1-0")
        assert refusal(connection, TrimBelow(key=key("s"), entry_id=b"x")) == INVALID_ID
        assert refusal(connection, DeleteEntries(key=key("s"), entry_ids=[b"x"])) == INVALID_ID
        text = refusal(connection, DeleteEntries(key=key("s"), entry_ids=[]))
        assert text == "ERR wrong number of arguments for 'xdel' command"


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
        steps = [Put(key=key("k"), value=b"1"), Increment(key=key("k")), Put(key=key("k"), value=b"5")]
        assert connection.write(steps) == [b"OK", 2, b"OK"]
        assert connection.get(key("k")) == b"5"

    def test_a_refused_operation_does_not_stop_the_others(self, connection: Connection, key: Key) -> None:
        steps = [Put(key=key("k"), value=b"x"), Increment(key=key("k")), Put(key=key("k"), value=b"y")]
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
        with pytest.raises(ServerRefused, match=WRONG_TYPE):
            question = Append(key=key("text"), fields=[b"q", b"?"])
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
