"""What a real server may say to keep a client out, and what an address may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import redis

from tests.contract.doubles import ScriptedServer
from token_actor.embedded import EmbeddedServer
from token_actor.errors import ServerRefused, ServerUnavailable, SetupError
from token_actor.transport.ports import Increment, Put
from token_actor.transport.redis import RedisConnector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.contract.subjects import Key
    from token_actor.transport.redis import RedisConnection

NAMED = b"+OK\r\n"  # the answer to CLIENT SETNAME, with which every connection begins


class TestRefusedAtTheDoor:
    @pytest.fixture
    def user(self, admin: redis.Redis, namespace: str) -> str:
        """A user who may do everything but CONFIG, INFO and INCR."""
        admin.acl_setuser(
            namespace,
            enabled=True,
            passwords=["+se@cret"],
            keys=["*"],
            commands=["+@all", "-config", "-info", "-incr"],
        )
        return namespace

    def test_a_right_password_is_taken_from_the_address(
        self, open_connection: Callable[..., RedisConnection], server: EmbeddedServer, user: str, key: Key
    ) -> None:
        connection = open_connection(f"redis://{user}:se%40cret@127.0.0.1:{server.port}/0")
        assert connection.write([Put(key=key("k"), value=b"x")]) == [b"OK"]

    def test_a_wrong_password_is_refused_without_telling_it(
        self, open_connection: Callable[..., RedisConnection], server: EmbeddedServer, user: str
    ) -> None:
        connection = open_connection(f"redis://{user}:hush@127.0.0.1:{server.port}/0")
        for _ in range(2):
            with pytest.raises(ServerRefused, match=f"127.0.0.1:{server.port}") as caught:
                connection.get(b"k")
            assert caught.value.code == "WRONGPASS"
            assert "hush" not in str(caught.value)

    def test_a_missing_password_is_refused(self, open_connection: Callable[..., RedisConnection]) -> None:
        with EmbeddedServer() as own, redis.Redis(port=own.port) as admin:
            admin.config_set("requirepass", "secret")
            with pytest.raises(ServerRefused) as caught:
                open_connection(own.url).get(b"k")
            assert caught.value.code == "NOAUTH"

    def test_a_database_that_does_not_exist_is_refused(
        self, open_connection: Callable[..., RedisConnection], server: EmbeddedServer
    ) -> None:
        with pytest.raises(ServerRefused, match="ERR DB index is out of range"):
            open_connection(f"redis://127.0.0.1:{server.port}/1000").get(b"k")

    def test_a_forbidden_operation_is_refused_alone(
        self, open_connection: Callable[..., RedisConnection], server: EmbeddedServer, user: str, key: Key
    ) -> None:
        connection = open_connection(f"redis://{user}:se%40cret@127.0.0.1:{server.port}/0")
        refused, done = connection.write([Increment(key=key("n")), Put(key=key("k"), value=b"x")])
        assert isinstance(refused, ServerRefused)
        assert (refused.code, done) == ("NOPERM", b"OK")

    def test_facts_that_may_not_be_read_are_absent(
        self, open_connection: Callable[..., RedisConnection], server: EmbeddedServer, user: str
    ) -> None:
        assert open_connection(f"redis://{user}:se%40cret@127.0.0.1:{server.port}/0").server_facts() == {}


class TestWhatServersSay:
    @pytest.fixture
    def scripted(
        self, open_connection: Callable[..., RedisConnection]
    ) -> Iterator[Callable[..., tuple[ScriptedServer, RedisConnection]]]:
        """Start servers that follow a script, one line per write, one script per connection."""
        running = []

        def start(*scripts: list[bytes]) -> tuple[ScriptedServer, RedisConnection]:
            server = ScriptedServer(*scripts)
            running.append(server.__enter__())
            return server, open_connection(server.url)

        yield start
        for server in running:
            server.__exit__()

    @pytest.mark.parametrize(
        "error",
        [
            b"LOADING Valkey is loading the dataset in memory",
            b"MASTERDOWN Link with MASTER is down",
            b"CLUSTERDOWN The cluster is down",
            b"TRYAGAIN Multiple keys request during rehashing of slot",
            b"UNBLOCKED force unblock from blocking operation",
            b"ERR max number of clients reached",
        ],
    )
    def test_an_error_that_passes_by_itself_means_not_for_the_moment(self, scripted: Any, error: bytes) -> None:
        _, connection = scripted([NAMED, b"-%s\r\n" % error], [NAMED, b"$1\r\nx\r\n"])
        with pytest.raises(ServerUnavailable, match=error.decode()):
            connection.get(b"k")
        assert connection.get(b"k") == b"x"

    def test_it_means_so_for_a_whole_write(self, scripted: Any) -> None:
        _, connection = scripted([NAMED, b":1\r\n-LOADING wait\r\n:9\r\n"], [NAMED, b"$1\r\nx\r\n"])
        with pytest.raises(ServerUnavailable, match="LOADING wait"):
            connection.write([Increment(key=b"n")] * 3)
        assert connection.get(b"k") == b"x"

    def test_it_means_so_for_a_whole_transaction(self, scripted: Any) -> None:
        _, connection = scripted(
            [NAMED, b"+OK\r\n-LOADING wait\r\n-LOADING wait\r\n-EXECABORT no\r\n"],
            [NAMED, b"+OK\r\n+QUEUED\r\n*1\r\n:4\r\n"],
        )
        with pytest.raises(ServerUnavailable, match="LOADING wait"):
            connection.write_together([Increment(key=b"n")] * 2)
        assert connection.write_together([Increment(key=b"n")]) == [4]

    def test_a_replica_refuses_and_the_next_call_asks_the_name_again(self, scripted: Any) -> None:
        replica = [NAMED, b":1\r\n-READONLY You can't write against a read only replica.\r\n:3\r\n"]
        server, connection = scripted(replica, [NAMED, b":4\r\n"])
        first, refused, third = connection.write([Increment(key=b"n")] * 3)
        assert (first, third) == (1, 3)
        assert isinstance(refused, ServerRefused)
        assert refused.code == "READONLY"
        assert connection.write([Increment(key=b"n")]) == [4]
        assert server.accepted == 2

    def test_a_replica_refuses_a_transaction_and_the_next_call_asks_the_name_again(self, scripted: Any) -> None:
        replica = [NAMED, b"+OK\r\n-READONLY You can't write.\r\n-EXECABORT Transaction discarded.\r\n"]
        server, connection = scripted(replica, [NAMED, b"+OK\r\n+QUEUED\r\n*1\r\n:4\r\n"])
        (refused,) = connection.write_together([Increment(key=b"n")])
        assert isinstance(refused, ServerRefused)
        assert refused.code == "READONLY"
        assert connection.write_together([Increment(key=b"n")]) == [4]
        assert server.accepted == 2

    def test_something_that_is_no_server_is_named(self, scripted: Any) -> None:
        _, connection = scripted([b"HTTP/1.1 400 Bad Request\r\n\r\n"])
        with pytest.raises(ServerUnavailable, match="does not speak the Redis protocol"):
            connection.get(b"k")

    def test_a_server_that_hangs_up_is_unavailable(self, scripted: Any) -> None:
        _, connection = scripted([NAMED])
        with pytest.raises(ServerUnavailable):
            connection.get(b"k")

    def test_a_server_that_does_not_count_entries_is_too_old(self, scripted: Any) -> None:
        _, connection = scripted([NAMED, b"*2\r\n$6\r\nlength\r\n:0\r\n"])
        with pytest.raises(SetupError, match="Redis 7"):
            connection.stream_state(b"log")

    def test_a_server_that_hides_its_settings_still_tells_the_rest(self, scripted: Any) -> None:
        info = b"# Server\r\nredis_version:7.2.4\r\nexecutable:/a:b\r\n"
        hidden = b"-ERR unknown command 'CONFIG', with args beginning with: 'GET'\r\n"
        _, connection = scripted([NAMED, b"$%d\r\n%s\r\n" % (len(info), info) + hidden * 5])
        assert connection.server_facts() == {"redis_version": "7.2.4", "executable": "/a:b"}

    def test_an_unforeseen_error_about_settings_is_raised(self, scripted: Any) -> None:
        _, connection = scripted([NAMED, b"$0\r\n\r\n" + b"-ERR something else\r\n" * 5])
        with pytest.raises(ServerRefused, match="ERR something else"):
            connection.server_facts()


class TestAddress:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("redis://ada:secret@db.example:7000/3", "redis://db.example:7000/3"),
            ("redis://:secret@localhost", "redis://localhost:6379/0"),
            ("rediss://ada:secret@db.example/1?ssl_cert_reqs=none", "rediss://db.example:6379/1"),
            ("redis://:secret@[::1]:7000/0", "redis://[::1]:7000/0"),
            ("unix://ada:secret@/run/valkey.sock?db=2", "unix:///run/valkey.sock?db=2"),
        ],
    )
    def test_it_is_written_without_user_and_password(self, url: str, expected: str) -> None:
        assert RedisConnector(url).address == expected

    @pytest.mark.parametrize(
        "url",
        [
            "http://localhost",
            "localhost:6379",
            "redis://localhost:70000",
            "redis://localhost?no_such_option=1",
            "redis://localhost?protocol=3",
            "redis://localhost?socket_timeout=1",
            "redis://localhost?health_check_interval=5",
            "redis://localhost?db=x",
            "",
        ],
    )
    def test_one_that_is_of_no_use_is_said_at_once(self, url: str) -> None:
        with pytest.raises(SetupError, match="address of the server"):
            RedisConnector(url)

    def test_a_host_without_such_a_name_is_unavailable(self, open_connection: Callable[..., RedisConnection]) -> None:
        with pytest.raises(ServerUnavailable):
            open_connection(f"redis://{'x' * 70}.invalid").get(b"k")

    def test_a_socket_file_that_is_absent_is_unavailable(
        self, open_connection: Callable[..., RedisConnection], tmp_path: Path
    ) -> None:
        with pytest.raises(ServerUnavailable, match="No such file"):
            open_connection(f"unix://{tmp_path}/none.sock").get(b"k")

    def test_connections_are_not_counted(self, server_url: str) -> None:
        connector = RedisConnector(server_url)
        for _ in range(150):
            connector.connect().close()


def test_the_server_lists_our_connections_by_name(
    open_connection: Callable[..., RedisConnection], server_url: str, admin: redis.Redis
) -> None:
    open_connection(server_url).get(b"k")
    names = [client["name"] for client in admin.client_list()]
    assert "token-actor" in names
