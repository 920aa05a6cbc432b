"""What every server promises of counters in a hash, and of operations that are carried out together."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import pytest
import redis

from tests.contract.doubles import halting_connection
from tests.contract.subjects import JOIN_S, LONG_MS, MEMORY, WRONG_TYPE, Key, append, ids, one, refusal, wait_until
from token_actor.embedded import EmbeddedServer
from token_actor.errors import ServerRefused
from token_actor.transport.ports import (
    FIRST,
    AddToField,
    Append,
    Delete,
    DeleteFields,
    Expire,
    Increment,
    Put,
    PutField,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.subjects import Subject
    from token_actor.transport.ports import Connection, Entry, Operation, Outcome
    from token_actor.transport.redis import RedisConnection

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
NO_INTEGERS = [
    b"x",
    b"1.5",
    b"",
    b" 1",
    b"+1",
    b"-0",
    b"01",
    b"9223372036854775808",
    b"-9223372036854775809",
    b"9" * 40,
]
NOT_AN_INTEGER = "ERR hash value is not an integer"
OVERFLOW = "ERR increment or decrement would overflow"
OUT_OF_RANGE = "ERR value is not an integer or out of range"


def add(key: bytes, amount: int, field: bytes = b"f") -> AddToField:
    return AddToField(key=key, field=field, amount=amount)


def codes(outcomes: list[Outcome]) -> list[str]:
    return [outcome.code for outcome in outcomes if isinstance(outcome, ServerRefused)]


class TestAdding:
    def test_an_absent_field_counts_from_0_and_below(self, connection: Connection, key: Key) -> None:
        assert [one(connection, add(key("h"), amount)) for amount in (-1, -1, 5, 0)] == [-1, -2, 3, 3]
        assert connection.get_fields(key("h")) == {b"f": b"3"}

    def test_each_field_has_a_number_of_its_own(self, connection: Connection, key: Key) -> None:
        assert connection.write([add(key("h"), 1), add(key("h"), 2, b"g"), add(key("h"), 1)]) == [1, 2, 2]

    @pytest.mark.parametrize("text", [b"7", b"-7", b"%d" % INT64_MIN])
    def test_it_goes_on_from_an_integer_that_was_put(self, connection: Connection, key: Key, text: bytes) -> None:
        one(connection, PutField(key=key("h"), field=b"f", value=text))
        assert one(connection, add(key("h"), 3)) == int(text) + 3

    @pytest.mark.parametrize("amount", [1, -1])
    @pytest.mark.parametrize("text", NO_INTEGERS)
    def test_what_is_no_integer_is_refused_and_stays(
        self, connection: Connection, key: Key, text: bytes, amount: int
    ) -> None:
        one(connection, PutField(key=key("h"), field=b"f", value=text))
        assert refusal(connection, add(key("h"), amount)) == NOT_AN_INTEGER
        assert connection.get_fields(key("h")) == {b"f": text}

    @pytest.mark.parametrize(("edge", "amount"), [(INT64_MAX, 1), (INT64_MIN, -1), (-2, INT64_MIN)])
    def test_beyond_64_bits_it_is_refused_and_stays(
        self, connection: Connection, key: Key, edge: int, amount: int
    ) -> None:
        assert one(connection, add(key("h"), edge)) == edge
        assert refusal(connection, add(key("h"), amount)) == OVERFLOW
        assert one(connection, add(key("h"), 0)) == edge

    @pytest.mark.parametrize("amount", [INT64_MAX + 1, INT64_MIN - 1])
    def test_an_amount_beyond_64_bits_is_refused_and_makes_no_field(
        self, connection: Connection, key: Key, amount: int
    ) -> None:
        assert refusal(connection, add(key("h"), amount)) == OUT_OF_RANGE
        assert connection.get_fields(key("h")) == {}

    def test_a_number_that_is_a_key_has_the_same_bounds(self, connection: Connection, key: Key) -> None:
        for number, text in ((INT64_MAX, OVERFLOW), (INT64_MIN - 1, OUT_OF_RANGE)):
            one(connection, Put(key=key("n"), value=b"%d" % number))
            assert refusal(connection, Increment(key=key("n"))) == text

    def test_it_leaves_the_key_the_time_it_has(self, connection: Connection, key: Key) -> None:
        connection.write([add(key("h"), 1), Expire(key=key("h"), ttl_ms=LONG_MS)])
        goes_at_ms = connection.expires_at_ms(key("h"))
        one(connection, add(key("h"), 1))
        assert connection.expires_at_ms(key("h")) == goes_at_ms
        assert goes_at_ms is not None

    def test_another_kind_of_key_is_refused(self, connection: Connection, key: Key) -> None:
        one(connection, Put(key=key("text"), value=b"1"))
        append(connection, key("stream"), b"1")
        for other in (key("text"), key("stream")):
            assert refusal(connection, add(other, 1)) == WRONG_TYPE
            assert refusal(connection, DeleteFields(key=other, fields=[b"f"])) == WRONG_TYPE


class TestDeletingFields:
    def test_it_tells_how_many_were_there(self, connection: Connection, key: Key) -> None:
        connection.write([add(key("h"), 1, b"a"), add(key("h"), 1, b"b"), add(key("h"), 1, b"c")])
        assert one(connection, DeleteFields(key=key("h"), fields=[b"a", b"b", b"x"])) == 2
        assert connection.get_fields(key("h")) == {b"c": b"1"}
        assert one(connection, DeleteFields(key=key("none"), fields=[b"a"])) == 0

    def test_one_that_is_named_twice_is_counted_once(self, connection: Connection, key: Key) -> None:
        connection.write([PutField(key=key("h"), field=b"", value=b""), add(key("h"), 1)])
        assert one(connection, DeleteFields(key=key("h"), fields=[b"", b""])) == 1

    def test_one_that_was_deleted_counts_from_0_again(self, connection: Connection, key: Key) -> None:
        deletion = DeleteFields(key=key("h"), fields=[b"f"])
        assert connection.write([add(key("h"), 5, b"g"), add(key("h"), 5), deletion, add(key("h"), 1)])[2:] == [1, 1]

    def test_without_fields_the_key_is_gone(self, connection: Connection, key: Key) -> None:
        one(connection, add(key("h"), 1))
        assert one(connection, DeleteFields(key=key("h"), fields=[b"f"])) == 1
        assert one(connection, Delete(keys=[key("h")])) == 0
        assert one(connection, Increment(key=key("h"))) == 1

    def test_a_key_that_is_gone_may_come_back_as_another_kind(self, connection: Connection, key: Key) -> None:
        gone: list[Operation] = [add(key("h"), 1), DeleteFields(key=key("h"), fields=[b"f"])]
        claim = Put(key=key("h"), value=b"x", only_if_absent=True)
        entry = Append(key=key("h"), fields=[b"v", b"1"], entry_id=b"1-0")
        assert connection.write([*gone, claim, Delete(keys=[key("h")])]) == [1, 1, b"OK", 1]
        assert connection.write([*gone, entry]) == [1, 1, b"1-0"]

    def test_a_key_that_is_gone_has_forgotten_its_time(self, connection: Connection, key: Key) -> None:
        deletion = DeleteFields(key=key("h"), fields=[b"f"])
        connection.write([add(key("h"), 1), Expire(key=key("h"), ttl_ms=LONG_MS), deletion, add(key("h"), 1)])
        assert connection.expires_at_ms(key("h")) is None

    def test_none_at_all_are_refused(self, connection: Connection, key: Key) -> None:
        text = refusal(connection, DeleteFields(key=key("h"), fields=[]))
        assert text == "ERR wrong number of arguments for 'hdel' command"


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that take turns as often as they can, so that they meet where they may."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual_s)


class TestTogether:
    def test_outcomes_are_those_of_each_in_order(self, connection: Connection, key: Key) -> None:
        left, entry_id = connection.write_together([add(key("h"), -1), Append(key=key("log"), fields=[b"v", b"1"])])
        assert left == -1
        assert ids(connection.range(key("log"), count=10)) == [entry_id]

    def test_each_append_comes_to_the_id_of_its_entry(self, connection: Connection, key: Key) -> None:
        chosen, named = (Append(key=key("log"), fields=[b"v", b"1"], entry_id=each) for each in (b"*", b"9" * 18))
        added = connection.write_together([chosen, named])
        assert added == ids(connection.range(key("log"), count=10))
        assert added[1] == b"999999999999999999-0"

    def test_each_operation_sees_what_those_before_it_did(self, connection: Connection, key: Key) -> None:
        claim = Put(key=key("h"), value=b"x", only_if_absent=True)
        deletion = DeleteFields(key=key("h"), fields=[b"f"])
        assert connection.write_together([add(key("h"), 4), claim, deletion, claim]) == [4, None, 1, b"OK"]

    @pytest.mark.parametrize(
        ("field", "expected"), [(b"x", NOT_AN_INTEGER), (b"%d" % INT64_MAX, OVERFLOW), (None, WRONG_TYPE)]
    )
    def test_a_refused_operation_does_not_stop_the_others(
        self, connection: Connection, key: Key, field: bytes | None, expected: str
    ) -> None:
        there = Put(key=key("h"), value=b"1") if field is None else PutField(key=key("h"), field=b"f", value=field)
        entry = Append(key=key("log"), fields=[b"v", b"1"])
        one(connection, there)
        before, refused, after = connection.write_together([entry, add(key("h"), 1), entry])
        assert isinstance(refused, ServerRefused)
        assert (str(refused), refused.code) == (expected, expected.split(" ", 1)[0])
        assert ids(connection.range(key("log"), count=10)) == [before, after]

    @pytest.mark.parametrize("position", [0, 1, 2])
    def test_nothing_is_done_when_one_cannot_even_begin(self, connection: Connection, key: Key, position: int) -> None:
        one(connection, add(key("h"), 5))
        operations: list[Operation] = [add(key("h"), -1), Append(key=key("log"), fields=[b"v", b"1"])]
        operations.insert(position, DeleteFields(key=key("h"), fields=[]))
        expected = ["ERR" if each == position else "EXECABORT" for each in range(3)]
        assert codes(connection.write_together(operations)) == expected
        assert (connection.get_fields(key("h")), connection.stream_state(key("log"))) == ({b"f": b"5"}, None)
        assert connection.write_together([add(key("h"), -1)]) == [4]

    def test_many_and_large_operations_go_together(self, connection: Connection, key: Key) -> None:
        large = Put(key=key("chunk"), value=b"\r\n" * 524_288)
        assert connection.write_together([large, *[add(key("h"), 1)] * 2_000]) == [b"OK", *range(1, 2_001)]
        assert connection.get(key("chunk")) == large.value

    def test_the_connection_goes_on(self, connection: Connection, key: Key) -> None:
        connection.write_together([add(key("h"), 1)])
        assert one(connection, add(key("h"), 1)) == 2
        assert connection.write_together([add(key("h"), 1)]) == [3]

    def test_nothing_of_anybody_else_comes_in_between(self, subject: Subject, key: Key, eager_threads: None) -> None:
        def work(outcomes: list[list[Outcome]]) -> None:
            connection = subject.connect()
            there_and_back = [add(key("h"), 1), add(key("h"), -1)]
            start.wait(JOIN_S)
            outcomes += [connection.write_together(there_and_back * 5) for _ in range(200)]

        start = threading.Barrier(3)
        found: list[list[list[Outcome]]] = [[], [], []]
        threads = [threading.Thread(target=work, args=(outcomes,)) for outcomes in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(JOIN_S)
        assert found == [[[1, 0] * 5] * 200] * 3

    def test_it_wakes_who_waits_for_the_stream(self, subject: Subject, key: Key) -> None:
        append(subject.connect(), key("log"), b"0")
        found: list[list[Entry]] = []

        def wait() -> None:
            connection = subject.connect()
            first = connection.read({key("log"): FIRST}, count=10)[key("log")]
            ready.set()
            found.append(connection.read({key("log"): first[-1][0]}, count=10, block_ms=LONG_MS)[key("log")])

        ready = threading.Event()
        thread = threading.Thread(target=wait)
        thread.start()
        assert ready.wait(JOIN_S)
        _, entry_id = subject.connect().write_together([add(key("h"), 1), Append(key=key("log"), fields=[b"v", b"1"])])
        thread.join(JOIN_S)
        assert [ids(entries) for entries in found] == [[entry_id]]

    @pytest.mark.unfaithful(fakeredis="does not tell how many wait")
    def test_it_wakes_everybody_who_is_blocked_on_the_stream(self, subject: Subject, key: Key) -> None:
        writer, readers = subject.connect(), [subject.connect(), subject.connect()]
        found: list[list[Entry]] = []

        def wait(reader: Connection) -> None:
            found.append(reader.read({key("log"): FIRST}, count=10, block_ms=LONG_MS)[key("log")])

        def blocked() -> int:
            if subject.name == MEMORY:
                return len(subject.connector._shared.changed._waiters)  # type: ignore[attr-defined]
            return int(writer.server_facts()["blocked_clients"])

        threads = [threading.Thread(target=wait, args=(reader,)) for reader in readers]
        for thread in threads:
            thread.start()
        wait_until(lambda: blocked() == len(readers))
        entry = Append(key=key("log"), fields=[b"v", b"1"])
        _, *added = writer.write_together([add(key("h"), 1), entry, entry])
        for thread in threads:
            thread.join(JOIN_S)
            assert not thread.is_alive()
        assert [ids(entries) for entries in found] == [added, added]


def test_a_full_server_does_nothing_of_it(open_connection: Callable[..., RedisConnection], key: Key) -> None:
    with EmbeddedServer() as own, redis.Redis(port=own.port) as operator:
        connection = open_connection(own.url)
        one(connection, add(key("h"), 5))
        operator.config_set("maxmemory", 1)
        entry, deletion = Append(key=key("log"), fields=[b"v", b"2"]), DeleteFields(key=key("h"), fields=[b"f"])
        assert codes(connection.write_together([add(key("h"), -1), entry])) == ["OOM", "OOM"]
        assert codes(connection.write_together([deletion, entry])) == ["EXECABORT", "OOM"]
        assert (connection.get_fields(key("h")), connection.stream_state(key("log"))) == ({b"f": b"5"}, None)
        assert connection.write_together([deletion]) == [1]


def test_what_somebody_else_writes_halfway_comes_before_all_of_it(
    open_connection: Callable[..., RedisConnection], server_url: str, admin: redis.Redis, key: Key
) -> None:
    other = open_connection(server_url)

    def write_halfway() -> None:
        wait_until(lambda: any(client["multi"] == "1" for client in admin.client_list()))
        one(other, add(key("h"), 10))

    connection = open_connection(server_url, connection_factory=halting_connection(write_halfway))
    assert connection.write_together([add(key("h"), 1), add(key("h"), 1)]) == [11, 12]
