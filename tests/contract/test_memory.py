"""What only the in-memory server can show: its clock, its outages, and that it answers as a real server does."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import examples
from token_actor.errors import ServerUnavailable
from token_actor.transport.memory import MemoryServer, wall_clock_ms
from token_actor.transport.ports import (
    FIRST,
    AddToField,
    Append,
    Delete,
    DeleteEntries,
    DeleteFields,
    Expire,
    Increment,
    Operation,
    Put,
    PutField,
    TrimBelow,
)
from token_actor.transport.redis import RedisConnector

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_actor.transport.ports import Connection, Outcome

LONG_MS = 30_000
JOIN_S = 20.0


class Clock:
    """A clock that stands still unless it is set."""

    def __init__(self) -> None:
        self.now_ms = 1_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(clock: Clock) -> MemoryServer:
    return MemoryServer(clock_ms=clock)


@pytest.fixture
def connection(memory: MemoryServer) -> Connection:
    return memory.connect()


def append(connection: Connection, key: bytes = b"s") -> Outcome:
    (entry_id,) = connection.write([Append(key=key, fields=[b"v", b"1"])])
    return entry_id


class TestIds:
    def test_they_carry_the_time_of_the_clock_and_count_within_it(self, connection: Connection, clock: Clock) -> None:
        assert [append(connection), append(connection)] == [b"1000-0", b"1000-1"]
        clock.now_ms = 1_001
        assert append(connection) == b"1001-0"

    def test_they_go_on_growing_when_the_clock_goes_back(self, connection: Connection, clock: Clock) -> None:
        append(connection)
        clock.now_ms = 10
        assert append(connection) == b"1000-1"

    def test_they_begin_above_zero_when_the_clock_does_not(self, connection: Connection, clock: Clock) -> None:
        clock.now_ms = 0
        assert append(connection) == b"0-1"

    def test_they_enter_the_next_millisecond_when_one_is_full(self, connection: Connection) -> None:
        connection.write([Append(key=b"s", fields=[b"v", b"1"], entry_id=b"1000-18446744073709551615")])
        assert append(connection) == b"1001-0"

    def test_they_are_unique_whoever_appends(self, memory: MemoryServer) -> None:
        taken: list[Outcome] = []

        def append_many() -> None:
            own = memory.connect()
            taken.extend([append(own) for _ in range(200)])

        threads = [threading.Thread(target=append_many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(JOIN_S)
        assert len(set(taken)) == 800

    def test_they_carry_the_time_of_this_machine_by_default(self) -> None:
        before_ms = wall_clock_ms()
        entry_id = append(MemoryServer().connect())
        assert isinstance(entry_id, bytes)
        assert before_ms <= int(entry_id.partition(b"-")[0]) <= wall_clock_ms()


class TestExpiry:
    def test_a_key_goes_when_the_clock_has_passed_its_time(self, connection: Connection, clock: Clock) -> None:
        connection.write([Put(key=b"k", value=b"x", ttl_ms=500)])
        clock.now_ms = 1_500
        assert connection.get(b"k") == b"x"
        clock.now_ms = 1_501
        assert connection.get(b"k") is None

    def test_a_stream_that_expired_begins_anew(self, connection: Connection, clock: Clock) -> None:
        append(connection)
        connection.write([Expire(key=b"s", ttl_ms=500)])
        clock.now_ms = 1_501
        assert append(connection) == b"1501-0"
        state = connection.stream_state(b"s")
        assert state is not None
        assert (state.length, state.entries_added) == (1, 1)

    def test_a_key_that_was_set_again_forgets_the_time_it_had(self, connection: Connection, clock: Clock) -> None:
        connection.write([Put(key=b"k", value=b"x", ttl_ms=500), Delete(keys=[b"k"]), Increment(key=b"k")])
        clock.now_ms = 5_000
        assert connection.get(b"k") == b"1"


class TestOutage:
    def test_every_call_is_in_vain_while_it_is_away(self, memory: MemoryServer, connection: Connection) -> None:
        memory.go_away()
        question = Append(key=b"ask", fields=[b"q", b"?"])
        calls: list[Callable[[], object]] = [
            lambda: connection.get(b"k"),
            lambda: connection.get_fields(b"k"),
            lambda: connection.range(b"k", count=1),
            lambda: connection.read({b"k": FIRST}, count=1),
            lambda: connection.stream_state(b"k"),
            lambda: connection.write([question]),
            lambda: connection.write_together([question]),
            lambda: connection.write_if(b"leader", None, [question]),
            lambda: connection.exchange(question, inbox=b"k", after=FIRST, block_ms=0),
            connection.server_facts,
            lambda: memory.connect().get(b"k"),
        ]
        for call in calls:
            with pytest.raises(ServerUnavailable):
                call()

    def test_a_wait_ends_when_it_goes(self, memory: MemoryServer) -> None:
        ends = []
        asked = threading.Event()

        def wait() -> None:
            with pytest.raises(ServerUnavailable) as caught:
                memory.connect().exchange(
                    Append(key=b"ask", fields=[b"q", b"?"]), inbox=b"in", after=FIRST, block_ms=LONG_MS
                )
            ends.append(caught.type)

        def watch() -> None:
            memory.connect().read({b"ask": FIRST}, count=1, block_ms=LONG_MS)
            asked.set()

        threads = [threading.Thread(target=wait), threading.Thread(target=watch)]
        for thread in threads:
            thread.start()
        assert asked.wait(JOIN_S)
        memory.go_away()
        for thread in threads:
            thread.join(JOIN_S)
        assert ends == [ServerUnavailable]

    def test_it_comes_back_with_everything_it_had(self, memory: MemoryServer, connection: Connection) -> None:
        entry_id = append(connection)
        memory.go_away()
        memory.come_back()
        assert [found for found, _ in connection.range(b"s", count=10)] == [entry_id]


class TestTrimming:
    def test_what_was_trimmed_is_let_go(self, memory: MemoryServer, connection: Connection) -> None:
        for _ in range(1_000):
            connection.write([Append(key=b"s", fields=[b"v", b"1"], length_max=10)])
        stream = memory._shared.keyspace._values[b"s"]
        assert len(stream._entries) <= 2 * 10 + 1  # type: ignore[union-attr]


KEYS = st.sampled_from([b"a", b"b"])
IDS = st.builds(lambda ms, sequence: b"%d-%d" % (ms, sequence), st.integers(0, 6), st.integers(0, 2))
VALUES = st.sampled_from([b"", b"1", b"x"])
# The last integers and those just beyond them, as numbers and as texts.
AMOUNTS = st.sampled_from([-1, 0, 1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1])
NUMBERS = st.one_of(VALUES, AMOUNTS.map(b"%d".__mod__))
OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.builds(Append, key=KEYS, fields=st.lists(VALUES, min_size=2, max_size=2), entry_id=IDS),
    st.builds(Append, key=KEYS, fields=st.lists(VALUES, min_size=2, max_size=2), entry_id=IDS),
    st.builds(TrimBelow, key=KEYS, entry_id=IDS),
    st.builds(DeleteEntries, key=KEYS, entry_ids=st.lists(IDS, min_size=1, max_size=3)),
    st.builds(Put, key=KEYS, value=NUMBERS, only_if_absent=st.booleans()),
    st.builds(PutField, key=KEYS, field=VALUES, value=NUMBERS),
    st.builds(AddToField, key=KEYS, field=VALUES, amount=AMOUNTS),
    st.builds(AddToField, key=KEYS, field=VALUES, amount=AMOUNTS),
    st.builds(DeleteFields, key=KEYS, fields=st.lists(VALUES, min_size=1, max_size=3)),
    st.builds(Delete, keys=st.lists(KEYS, min_size=1, max_size=2)),
    st.builds(Increment, key=KEYS),
    st.builds(Expire, key=KEYS, ttl_ms=st.sampled_from([0, LONG_MS])),
)
TIMES = st.integers(0, 6).map(b"%d".__mod__)
BOUNDS = st.one_of(st.sampled_from([b"-", b"+"]), IDS, IDS.map(b"(".__add__), TIMES)


def outcome_of(call: Callable[[], object]) -> object:
    """Return what a call returns, or the words of what it raises."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - to be compared
        return repr(error)


def everything(connection: Connection, key: bytes, after: bytes, start: bytes, end: bytes, count: int) -> list[object]:
    """Return what each way of reading says about a key."""
    return [
        outcome_of(call)
        for call in (
            lambda: connection.get(key),
            lambda: connection.get_fields(key),
            lambda: connection.stream_state(key),
            lambda: list(connection.read({key: after}, count=count).values()),
            lambda: connection.range(key, start=start, end=end, count=count),
            lambda: connection.range(key, start=start, end=end, count=count, newest_first=True),
        )
    ]


_traces = itertools.count(1)


@examples(150)
@given(
    steps=st.lists(st.lists(OPERATIONS, min_size=1, max_size=4), min_size=1, max_size=8),
    after=st.one_of(IDS, TIMES),
    start=BOUNDS,
    end=BOUNDS,
    count=st.integers(1, 5),
    method=st.sampled_from(["write", "write_together"]),
)
def test_it_answers_as_a_real_server_does_whatever_is_done_to_it(
    server_url: str, *, steps: list[list[Operation]], after: bytes, start: bytes, end: bytes, count: int, method: str
) -> None:
    twin, real = MemoryServer().connect(), RedisConnector(server_url).connect()
    trace = next(_traces)

    def own(key: bytes) -> bytes:
        return b"{trace%d}:%s" % (trace, key)

    def renamed(operation: Operation) -> Operation:
        if isinstance(operation, Delete):
            return replace(operation, keys=[own(key) for key in operation.keys])
        return replace(operation, key=own(operation.key))

    for step in steps:
        operations = [renamed(operation) for operation in step]
        ours, theirs = (getattr(each, method)(operations) for each in (twin, real))
        assert list(map(repr, ours)) == list(map(repr, theirs))
        for key in (own(b"a"), own(b"b")):
            assert everything(twin, key, after, start, end, count) == everything(real, key, after, start, end, count)
    real.close()
