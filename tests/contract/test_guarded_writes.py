"""What every server promises of a write that is done only while a key holds what it should."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis

from tests.contract.subjects import Key, append, ids, one
from token_actor.embedded import EmbeddedServer
from token_actor.errors import ServerRefused
from token_actor.transport.ports import Append, Delete, Expire, Increment, Put, TrimBelow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from token_actor.transport.ports import Connection, Operation
    from token_actor.transport.redis import RedisConnection


class TestGuardedWrites:
    def test_operations_are_carried_out_while_the_key_holds_the_value(self, connection: Connection, key: Key) -> None:
        first, second = append(connection, key("log"), b"1", b"2")
        one(connection, Put(key=key("leader"), value=b"7:a"))
        operations: list[Operation] = [Increment(key=key("n")), TrimBelow(key=key("log"), entry_id=second)]
        assert connection.write_if(key("leader"), b"7:a", operations) == [1, 1]
        assert first not in ids(connection.range(key("log"), count=10))

    def test_nothing_is_done_when_the_key_holds_another_value(self, connection: Connection, key: Key) -> None:
        one(connection, Put(key=key("leader"), value=b"8:b"))
        assert connection.write_if(key("leader"), b"7:a", [Increment(key=key("n"))]) is None
        assert connection.get(key("n")) is None

    def test_nothing_is_done_when_the_key_is_gone(self, connection: Connection, key: Key) -> None:
        assert connection.write_if(key("leader"), b"7:a", [Increment(key=key("n"))]) is None
        assert connection.get(key("n")) is None

    def test_the_absence_of_the_key_can_be_asked_for(self, connection: Connection, key: Key) -> None:
        claim = Put(key=key("leader"), value=b"1:a", ttl_ms=60_000)
        assert connection.write_if(key("leader"), None, [claim]) == [b"OK"]
        assert connection.write_if(key("leader"), None, [claim]) is None

    def test_the_key_itself_may_be_changed(self, connection: Connection, key: Key) -> None:
        one(connection, Put(key=key("leader"), value=b"1:a"))
        operations: list[Operation] = [Expire(key=key("leader"), ttl_ms=60_000), Put(key=key("leader"), value=b"1:")]
        assert connection.write_if(key("leader"), b"1:a", operations) == [1, b"OK"]
        assert connection.get(key("leader")) == b"1:"

    def test_no_operations_only_look(self, connection: Connection, key: Key) -> None:
        assert connection.write_if(key("leader"), None, []) == []
        assert connection.write_if(key("leader"), b"1:a", []) is None

    def test_a_refused_operation_does_not_stop_the_others(self, connection: Connection, key: Key) -> None:
        append(connection, key("log"), b"1")
        outcomes = connection.write_if(
            key("leader"), None, [Increment(key=key("log")), Append(key=key("log"), fields=[b"v", b"2"])]
        )
        assert outcomes is not None
        assert isinstance(outcomes[0], ServerRefused)
        assert outcomes[0].code == "WRONGTYPE"
        assert len(connection.range(key("log"), count=10)) == 2

    def test_a_guard_of_another_kind_is_refused(self, connection: Connection, key: Key) -> None:
        append(connection, key("log"), b"1")
        with pytest.raises(ServerRefused, match="WRONGTYPE"):
            connection.write_if(key("log"), None, [Increment(key=key("n"))])
        assert one(connection, Increment(key=key("n"))) == 1

    def test_the_connection_goes_on_after_each_way_it_can_end(self, connection: Connection, key: Key) -> None:
        connection.write_if(key("leader"), b"1:a", [Increment(key=key("n"))])
        connection.write_if(key("leader"), None, [Increment(key=key("n"))])
        assert one(connection, Increment(key=key("n"))) == 2

    def test_when_a_key_goes_is_told(self, connection: Connection, key: Key) -> None:
        one(connection, Put(key=key("leader"), value=b"1:a", ttl_ms=60_000))
        before = connection.expires_at_ms(key("leader"))
        one(connection, Expire(key=key("leader"), ttl_ms=90_000))
        after = connection.expires_at_ms(key("leader"))
        assert before is not None
        assert after is not None
        assert 29_000 <= after - before <= 31_000

    def test_a_key_that_stays_or_is_absent_goes_at_no_time(self, connection: Connection, key: Key) -> None:
        one(connection, Put(key=key("leader"), value=b"1:a"))
        assert connection.expires_at_ms(key("leader")) is None
        one(connection, Delete(keys=[key("leader")]))
        assert connection.expires_at_ms(key("leader")) is None


def test_a_full_server_does_nothing_of_it(open_connection: Callable[..., RedisConnection], key: Key) -> None:
    with EmbeddedServer() as own, redis.Redis(port=own.port) as operator:
        connection = open_connection(own.url)
        one(connection, Put(key=key("leader"), value=b"7:a"))
        append(connection, key("log"), b"1")
        operator.config_set("maxmemory", 1)
        renewal = Expire(key=key("leader"), ttl_ms=60_000)
        outcomes = connection.write_if(key("leader"), b"7:a", [Append(key=key("log"), fields=[b"v", b"2"]), renewal])
        assert outcomes is not None
        assert [outcome.code for outcome in outcomes if isinstance(outcome, ServerRefused)] == ["OOM", "EXECABORT"]
        assert len(connection.range(key("log"), count=10)) == 1
        assert connection.write_if(key("leader"), b"7:a", [renewal]) == [1]


def test_a_change_by_somebody_else_in_between_is_noticed(
    direct: RedisConnection, open_connection: Callable[..., RedisConnection], server_url: str, key: Key
) -> None:
    one(direct, Put(key=key("leader"), value=b"7:a"))
    other = open_connection(server_url)

    class Slow(list[Increment]):
        """Operations that take somebody else's time to be listed."""

        def __iter__(self) -> Iterator[Increment]:
            one(other, Put(key=key("leader"), value=b"8:b"))
            return super().__iter__()

    assert direct.write_if(key("leader"), b"7:a", Slow([Increment(key=key("n"))])) is None
    assert direct.get(key("n")) is None


def test_a_refused_watch_is_raised(
    open_connection: Callable[..., RedisConnection], server: EmbeddedServer, admin: redis.Redis
) -> None:
    admin.acl_setuser("unwatchful", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-watch"])
    connection = open_connection(f"redis://unwatchful:pw@127.0.0.1:{server.port}/0")
    with pytest.raises(ServerRefused, match="NOPERM"):
        connection.write_if(b"leader", None, [Increment(key=b"n")])
