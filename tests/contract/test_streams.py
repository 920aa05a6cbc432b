"""What every server promises of streams: one suite for memory, fakeredis and a real Valkey."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.contract.subjects import (
    INVALID_ID,
    JOIN_S,
    LONG_MS,
    WRONG_TYPE,
    append,
    fill,
    ids,
    one,
    refusal,
    wait_until,
)
from token_actor.errors import ServerRefused
from token_actor.transport.ports import (
    FIRST,
    Append,
    DeleteEntries,
    Expire,
    Operation,
    Put,
    StreamState,
    TrimBelow,
)

if TYPE_CHECKING:
    from tests.contract.subjects import Key, Subject
    from token_actor.transport.ports import Connection


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

    @pytest.mark.unfaithful(fakeredis="does not know the last possible id")
    @pytest.mark.parametrize("entry_id", [b"*", b"18446744073709551615-18446744073709551615"])
    def test_nothing_follows_the_last_possible_id(self, connection: Connection, key: Key, entry_id: bytes) -> None:
        fill(connection, key("s"), b"18446744073709551615-18446744073709551615")
        text = refusal(connection, Append(key=key("s"), fields=[b"a", b"b"], entry_id=entry_id))
        assert text == "ERR The stream has exhausted the last possible ID, unable to add more items"

    @pytest.mark.parametrize("fields", [[], [b"a"], [b"a", b"b", b"c"]])
    def test_fields_that_are_not_pairs_are_refused(self, connection: Connection, key: Key, fields: list[bytes]) -> None:
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

    def test_a_wait_ends_with_the_first_entry_that_another_connection_appends(self, subject: Subject, key: Key) -> None:
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
            (b"(1-18446744073709551615", b"(3-0", [b"2-0"]),
            (b"+", b"-", []),
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

    @pytest.mark.unfaithful(fakeredis="finds nothing to complain about")
    def test_a_bound_that_excludes_every_id_is_refused(self, connection: Connection, stream: bytes) -> None:
        with pytest.raises(ServerRefused, match="ERR invalid start ID for the interval"):
            connection.range(stream, start=b"(18446744073709551615-18446744073709551615", count=1)
        with pytest.raises(ServerRefused, match="ERR invalid end ID for the interval"):
            connection.range(stream, end=b"(0-0", count=1)

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
        absent: list[Operation] = [
            TrimBelow(key=key("s"), entry_id=b"1-0"),
            DeleteEntries(key=key("s"), entry_ids=[b"1-0"]),
        ]
        assert connection.write(absent) == [0, 0]

    def test_ids_that_are_none_are_refused(self, connection: Connection, key: Key) -> None:
        fill(connection, key("s"), b"1-0")
        assert refusal(connection, TrimBelow(key=key("s"), entry_id=b"x")) == INVALID_ID
        assert refusal(connection, DeleteEntries(key=key("s"), entry_ids=[b"x"])) == INVALID_ID
        text = refusal(connection, DeleteEntries(key=key("s"), entry_ids=[]))
        assert text == "ERR wrong number of arguments for 'xdel' command"
