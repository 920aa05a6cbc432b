"""What every server promises of counters in a hash, and of operations that are carried out together."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import redis

from tests.contract.subjects import Key, append, ids, one
from token_actor.embedded import EmbeddedServer
from token_actor.errors import ServerRefused
from token_actor.transport.ports import FIRST, AddToField, Append, Delete, DeleteFields, Increment, Put, PutField

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.subjects import Subject
    from token_actor.transport.ports import Connection, Entry, Operation, Outcome
    from token_actor.transport.redis import RedisConnection

INT64_MAX = 2**63 - 1


def add(key: bytes, amount: int, field: bytes = b"f") -> AddToField:
    return AddToField(key=key, field=field, amount=amount)


class TestAdding:
    def test_an_absent_field_counts_from_0_and_below(self, connection: Connection, key: Key) -> None:
        assert [one(connection, add(key("h"), amount)) for amount in (-1, -1, 5, 0)] == [-1, -2, 3, 3]
        assert connection.get_fields(key("h")) == {b"f": b"3"}

    def test_each_field_has_a_number_of_its_own(self, connection: Connection, key: Key) -> None:
        assert connection.write([add(key("h"), 1), add(key("h"), 2, b"g"), add(key("h"), 1)]) == [1, 2, 2]

    @pytest.mark.parametrize("text", [b"x", b"1.5", b"", b" 1", b"+1"])
    def test_what_is_no_integer_is_refused_and_stays(self, connection: Connection, key: Key, text: bytes) -> None:
        one(connection, PutField(key=key("h"), field=b"f", value=text))
        (refused,) = connection.write([add(key("h"), 1)])
        assert isinstance(refused, ServerRefused)
        assert connection.get_fields(key("h")) == {b"f": text}

    def test_beyond_64_bits_it_is_refused_and_stays(self, connection: Connection, key: Key) -> None:
        assert one(connection, add(key("h"), INT64_MAX)) == INT64_MAX
        (refused,) = connection.write([add(key("h"), 1)])
        assert isinstance(refused, ServerRefused)
        assert one(connection, add(key("h"), 0)) == INT64_MAX

    def test_another_kind_of_key_is_refused(self, connection: Connection, key: Key) -> None:
        one(connection, Put(key=key("k"), value=b"1"))
        operations: list[Operation] = [add(key("k"), 1), DeleteFields(key=key("k"), fields=[b"f"])]
        codes = [outcome.code for outcome in connection.write(operations) if isinstance(outcome, ServerRefused)]
        assert codes == ["WRONGTYPE", "WRONGTYPE"]


class TestDeletingFields:
    def test_it_tells_how_many_were_there(self, connection: Connection, key: Key) -> None:
        connection.write([add(key("h"), 1, b"a"), add(key("h"), 1, b"b"), add(key("h"), 1, b"c")])
        assert one(connection, DeleteFields(key=key("h"), fields=[b"a", b"b", b"x"])) == 2
        assert connection.get_fields(key("h")) == {b"c": b"1"}
        assert one(connection, DeleteFields(key=key("none"), fields=[b"a"])) == 0

    def test_without_fields_the_key_is_gone(self, connection: Connection, key: Key) -> None:
        one(connection, add(key("h"), 1))
        assert one(connection, DeleteFields(key=key("h"), fields=[b"f"])) == 1
        assert one(connection, Delete(keys=[key("h")])) == 0
        assert one(connection, Increment(key=key("h"))) == 1

    def test_none_at_all_are_refused(self, connection: Connection, key: Key) -> None:
        (refused,) = connection.write([DeleteFields(key=key("h"), fields=[])])
        assert isinstance(refused, ServerRefused)


class TestTogether:
    def test_outcomes_are_those_of_each_in_order(self, connection: Connection, key: Key) -> None:
        left, entry_id = connection.write_together([add(key("h"), -1), Append(key=key("log"), fields=[b"v", b"1"])])
        assert left == -1
        assert ids(connection.range(key("log"), count=10)) == [entry_id]

    def test_a_refused_operation_does_not_stop_the_others(self, connection: Connection, key: Key) -> None:
        one(connection, Put(key=key("k"), value=b"x"))
        refused, entry_id = connection.write_together([add(key("k"), 1), Append(key=key("log"), fields=[b"v", b"1"])])
        assert isinstance(refused, ServerRefused)
        assert isinstance(entry_id, bytes)

    def test_the_connection_goes_on(self, connection: Connection, key: Key) -> None:
        connection.write_together([add(key("h"), 1)])
        assert one(connection, add(key("h"), 1)) == 2
        assert connection.write_together([add(key("h"), 1)]) == [3]

    def test_nothing_of_anybody_else_comes_in_between(self, subject: Subject, key: Key) -> None:
        def work(outcomes: list[list[Outcome]]) -> None:
            connection = subject.connect()
            there_and_back = [add(key("h"), 1), add(key("h"), -1)]
            outcomes += [connection.write_together(there_and_back) for _ in range(200)]

        found: list[list[list[Outcome]]] = [[], [], []]
        threads = [threading.Thread(target=work, args=(outcomes,)) for outcomes in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [[[1, 0]] * 200] * 3

    def test_it_wakes_who_waits_for_the_stream(self, subject: Subject, key: Key) -> None:
        append(subject.connect(), key("log"), b"0")
        found: list[list[Entry]] = []

        def wait() -> None:
            connection = subject.connect()
            first = connection.read({key("log"): FIRST}, count=10)[key("log")]
            ready.set()
            found.append(connection.read({key("log"): first[-1][0]}, count=10, block_ms=20_000)[key("log")])

        ready = threading.Event()
        thread = threading.Thread(target=wait)
        thread.start()
        ready.wait()
        _, entry_id = subject.connect().write_together([add(key("h"), 1), Append(key=key("log"), fields=[b"v", b"1"])])
        thread.join()
        assert [ids(entries) for entries in found] == [[entry_id]]


def test_a_full_server_does_nothing_of_it(open_connection: Callable[..., RedisConnection], key: Key) -> None:
    with EmbeddedServer() as own, redis.Redis(port=own.port) as operator:
        connection = open_connection(own.url)
        one(connection, add(key("h"), 5))
        operator.config_set("maxmemory", 1)
        outcomes = connection.write_together([add(key("h"), -1), Append(key=key("log"), fields=[b"v", b"2"])])
        assert [outcome.code for outcome in outcomes if isinstance(outcome, ServerRefused)] == ["OOM", "OOM"]
        assert connection.get_fields(key("h")) == {b"f": b"5"}
