"""What a real connection goes through: breaks, timeouts, and servers that come and go."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis

from tests.contract.doubles import TcpProxy, halting_connection
from tests.contract.subjects import JOIN_S, LONG_MS, wait_until
from token_actor.embedded import EmbeddedServer
from token_actor.errors import ServerRefused, ServerUnavailable
from token_actor.transport.ports import FIRST, AddToField, Append, Increment, Operation, Put
from token_actor.transport.redis import RedisConnector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.subjects import Key
    from token_actor.transport.redis import RedisConnection

SHORT_S = 0.2  # a reply on loopback takes less than a millisecond
QUESTION = [b"q", b"?"]


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[TcpProxy]:
    with TcpProxy(server.port) as running:
        yield running


@pytest.fixture
def disturbed(open_connection: Callable[..., RedisConnection], proxy: TcpProxy) -> RedisConnection:
    """A connection through the proxy, connected already."""
    connection = open_connection(proxy.url, reply_timeout_s=SHORT_S)
    assert connection.get(b"nothing") is None
    return connection


class TestBrokenConnection:
    def test_what_was_under_way_is_raised_and_the_next_call_connects_anew(
        self, disturbed: RedisConnection, proxy: TcpProxy, key: Key
    ) -> None:
        proxy.cut()
        with pytest.raises(ServerUnavailable, match=disturbed._address):
            disturbed.get(key("k"))
        assert disturbed.write([Put(key=key("k"), value=b"x")]) == [b"OK"]
        assert disturbed.get(key("k")) == b"x"
        assert proxy.accepted == 2

    def test_half_a_reply_is_not_taken_for_the_next_one(
        self, disturbed: RedisConnection, direct: RedisConnection, proxy: TcpProxy, key: Key
    ) -> None:
        direct.write([Put(key=key("large"), value=b"$1\r\nx\r\n" * 1_000), Put(key=key("k"), value=b"y")])
        proxy.reply_bytes_left = 300
        with pytest.raises(ServerUnavailable):
            disturbed.get(key("large"))
        proxy.reply_bytes_left = None
        assert disturbed.get(key("k")) == b"y"

    def test_unread_replies_of_a_broken_write_are_not_taken_for_the_next_ones(
        self, disturbed: RedisConnection, proxy: TcpProxy, key: Key
    ) -> None:
        proxy.reply_bytes_left = len(b":1\r\n") * 10
        with pytest.raises(ServerUnavailable):
            disturbed.write([Increment(key=key("n"))] * 100)
        proxy.reply_bytes_left = None
        assert disturbed.get(key("n")) == b"100"

    def test_a_lost_reply_does_not_make_the_command_run_twice(
        self, disturbed: RedisConnection, direct: RedisConnection, proxy: TcpProxy, key: Key
    ) -> None:
        proxy.reply_bytes_left = 0
        with pytest.raises(ServerUnavailable):
            disturbed.write([Append(key=key("log"), fields=QUESTION)])
        assert len(direct.range(key("log"), count=10)) == 1

    @pytest.mark.parametrize(
        "reply_bytes_left", [0, len(b"+OK\r\n+QUE"), len(b"+OK\r\n" + b"+QUEUED\r\n" * 2 + b"*2\r\n:1")]
    )
    def test_a_transaction_whose_replies_are_lost_is_unavailable_and_done_once(
        self, disturbed: RedisConnection, direct: RedisConnection, proxy: TcpProxy, key: Key, reply_bytes_left: int
    ) -> None:
        together: list[Operation] = [
            AddToField(key=key("h"), field=b"f", amount=1),
            Append(key=key("log"), fields=QUESTION),
        ]
        proxy.reply_bytes_left = reply_bytes_left
        with pytest.raises(ServerUnavailable, match=disturbed._address):
            disturbed.write_together(together)
        assert (direct.get_fields(key("h")), len(direct.range(key("log"), count=10))) == ({b"f": b"1"}, 1)
        proxy.reply_bytes_left = None
        assert disturbed.write_together(together)[0] == 2
        assert proxy.accepted == 2

    def test_a_transaction_that_is_half_sent_is_unavailable_and_not_done(
        self,
        open_connection: Callable[..., RedisConnection],
        direct: RedisConnection,
        proxy: TcpProxy,
        admin: redis.Redis,
        key: Key,
    ) -> None:
        breaks = [proxy.cut]

        def break_once() -> None:
            if breaks:
                wait_until(lambda: any(client["multi"] == "1" for client in admin.client_list()))
                breaks.pop()()

        connection = open_connection(proxy.url, connection_factory=halting_connection(break_once))
        together: list[Operation] = [
            AddToField(key=key("h"), field=b"f", amount=1),
            Append(key=key("log"), fields=QUESTION),
        ]
        with pytest.raises(ServerUnavailable):
            connection.write_together(together)
        assert (direct.get_fields(key("h")), direct.stream_state(key("log"))) == ({}, None)
        assert connection.write_together(together)[0] == 1
        assert proxy.accepted == 2

    @pytest.mark.parametrize("method", ["write", "write_together"])
    def test_an_interrupted_call_leaves_no_reply_behind(self, server_url: str, key: Key, method: str) -> None:
        interrupts = [KeyboardInterrupt()]

        class Interrupted(redis.Connection):
            def read_response(self, *args: Any, **options: Any) -> Any:
                if self.is_connected and interrupts and options.get("disable_decoding"):
                    raise interrupts.pop()
                return super().read_response(*args, **options)

        connection = RedisConnector(server_url, connection_factory=Interrupted).connect()
        with pytest.raises(KeyboardInterrupt):
            getattr(connection, method)([Put(key=key("k"), value=b"x")])
        assert connection.get(key("k")) == b"x"
        connection.close()

    def test_a_waiting_read_ends_when_the_connection_breaks(
        self, disturbed: RedisConnection, direct: RedisConnection, proxy: TcpProxy, key: Key
    ) -> None:
        ends = []

        def wait() -> None:
            with pytest.raises(ServerUnavailable) as caught:
                disturbed.exchange(
                    Append(key=key("ask"), fields=QUESTION), inbox=key("in"), after=FIRST, block_ms=LONG_MS
                )
            ends.append(caught.type)

        thread = threading.Thread(target=wait)
        thread.start()
        assert direct.read({key("ask"): FIRST}, count=1, block_ms=LONG_MS)
        proxy.cut()
        thread.join(JOIN_S)
        assert ends == [ServerUnavailable]


class TestTimeouts:
    def test_a_reply_that_does_not_come_in_time_is_not_taken_for_the_next_one(
        self, disturbed: RedisConnection, direct: RedisConnection, proxy: TcpProxy, key: Key
    ) -> None:
        direct.write([Put(key=key("late"), value=b"late"), Put(key=key("k"), value=b"x")])
        proxy.hold_replies = True
        started_s = time.monotonic()
        with pytest.raises(ServerUnavailable, match="Timeout"):
            disturbed.get(key("late"))
        assert SHORT_S <= time.monotonic() - started_s < JOIN_S
        proxy.release()
        assert disturbed.get(key("k")) == b"x"

    def test_a_wait_that_was_asked_for_is_no_timeout(self, disturbed: RedisConnection, key: Key) -> None:
        block_ms = int(SHORT_S * 2_000)
        assert disturbed.read({key("none"): FIRST}, count=1, block_ms=block_ms) == {}
        question = Append(key=key("ask"), fields=QUESTION)
        _, answers = disturbed.exchange(question, inbox=key("none"), after=FIRST, block_ms=block_ms)
        assert answers == []

    def test_a_wait_that_the_server_forgets_is_a_timeout(
        self, disturbed: RedisConnection, proxy: TcpProxy, key: Key
    ) -> None:
        proxy.hold_replies = True
        with pytest.raises(ServerUnavailable, match="Timeout"):
            disturbed.read({key("none"): FIRST}, count=1, block_ms=50)

    def test_the_time_for_a_reply_is_the_usual_one_after_a_long_wait(
        self, disturbed: RedisConnection, direct: RedisConnection, proxy: TcpProxy, key: Key
    ) -> None:
        direct.write([Append(key=key("log"), fields=QUESTION)])
        assert disturbed.read({key("log"): FIRST}, count=1, block_ms=LONG_MS)
        proxy.hold_replies = True
        started_s = time.monotonic()
        with pytest.raises(ServerUnavailable, match="Timeout"):
            disturbed.get(key("k"))
        assert time.monotonic() - started_s < LONG_MS / 1_000

    def test_a_host_that_does_not_answer_is_given_up(self, open_connection: Callable[..., RedisConnection]) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=1) as deaf:  # completes connections, says nothing
            url = f"redis://127.0.0.1:{deaf.getsockname()[1]}"
            connection = open_connection(url, connect_timeout_s=SHORT_S, reply_timeout_s=SHORT_S)
            with pytest.raises(ServerUnavailable, match="Timeout"):
                connection.get(b"k")


class TestServerComesAndGoes:
    def test_acknowledged_writes_are_there_after_a_crash(
        self, open_connection: Callable[..., RedisConnection], key: Key
    ) -> None:
        with EmbeddedServer(appendfsync="always") as own:
            connection = open_connection(own.url)
            (entry_id,) = connection.write([Append(key=key("log"), fields=QUESTION)])
            own.kill()
            with pytest.raises(ServerUnavailable):
                connection.get(key("k"))
            with pytest.raises(ServerUnavailable, match="Connection refused"):
                connection.get(key("k"))
            own.restart()
            ((found_id, fields),) = connection.range(key("log"), count=10)
            assert (found_id, fields) == (entry_id, QUESTION)

    def test_a_full_server_refuses_what_grows_and_serves_the_rest(
        self, open_connection: Callable[..., RedisConnection], key: Key
    ) -> None:
        with EmbeddedServer() as own, redis.Redis(port=own.port) as admin:
            connection = open_connection(own.url)
            connection.write([Put(key=key("k"), value=b"x")])
            admin.config_set("maxmemory", "1")
            (outcome,) = connection.write([Append(key=key("log"), fields=QUESTION)])
            assert isinstance(outcome, ServerRefused)
            assert outcome.code == "OOM"
            assert connection.get(key("k")) == b"x"
