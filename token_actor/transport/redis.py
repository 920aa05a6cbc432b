"""The ports on a real server, through the lowest layer of redis-py.

Rules of this file:

* A call is one write and the replies to exactly that write. Nothing is sent twice: redis-py's own
  retries are off, because it cannot know whether a command may be repeated.
* A connection that may hold an unread reply is dropped, so that no call gets the answer to another.
* Replies are passed on as hiredis parsed them; there is no Python work per entry.
* The exceptions of redis-py end here.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from hiredis import pack_command
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    InvalidResponse,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from token_actor.errors import ClosedError, ServerRefused, ServerUnavailable, SetupError, TransportError
from token_actor.transport.ports import EXCHANGE_COUNT, Append, Entry, Operation, Outcome, StreamState
from token_actor.transport.redis_commands import Command, command, xread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

Reply: TypeAlias = Any  # what hiredis made of it; each command has its own shape

CLIENT_NAME = "token-actor"  # how CLIENT LIST shows our connections
CONNECT_TIMEOUT_S = 5.0  # above one lost SYN (1 s) and its second repetition (3 s)
REPLY_TIMEOUT_S = 5.0  # above the pause of a server that forks or waits for a slow disk
READ_BYTES = 262_144  # one recv: a read of 4,096 entries then takes few system calls and stays in the cache

# Errors that pass by themselves: the server loads its data, or the cluster is choosing a master.
PASSING_CODES = frozenset({"CLUSTERDOWN", "LOADING", "MASTERDOWN", "TRYAGAIN", "UNBLOCKED"})
# A replica refuses writes for as long as it is one; after a failover the name may lead elsewhere.
MOVED_CODES = frozenset({"READONLY"})
# What a server says to INFO or CONFIG GET when this client may not, or nobody may (managed servers).
FORBIDDEN_CODES = frozenset({"NOPERM"})
FORBIDDEN_TEXT = "ERR unknown command"

# Three times as fast as redis-py's packing around it; its stub says "a tuple of one".
_pack = cast("Callable[[Command], bytes]", pack_command)
_MULTI, _EXEC = _pack((b"MULTI",)), _pack((b"EXEC",))

_CONNECTING = re.compile(r"^Error -?\d+ connecting to \S+\. ")  # what redis-py puts before what is wrong

INSPECTED_SETTINGS = (b"maxmemory", b"maxmemory-policy", b"appendonly", b"appendfsync", b"save")


class _Wire(Protocol):
    """What is used of ``redis.Connection``."""

    def send_packed_command(self, command: list[bytes], check_health: bool) -> object: ...  # noqa: FBT001 - redis-py's

    def read_response(self, *, disable_decoding: bool, timeout: float = ...) -> Reply: ...

    def disconnect(self) -> object: ...


class RedisConnector:
    """Open connections to one Redis or Valkey server.

    ``url`` is ``redis://[user:password@]host:port/db``, ``rediss://`` for TLS, or ``unix://path?db=0``;
    redis-py's TLS options may follow as ``?ssl_ca_certs=...``. Connecting takes at most
    ``connect_timeout_s`` seconds per address of the host; each reply at most ``reply_timeout_s`` seconds
    more than the server was told to wait. ``connection_factory`` stands in for the connection class
    that the URL names, and gets its keyword arguments. Raises ``SetupError`` when the URL is of no use.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        reply_timeout_s: float = REPLY_TIMEOUT_S,
        connection_factory: Callable[..., object] | None = None,
    ) -> None:
        self._reply_timeout_s = reply_timeout_s
        try:
            pool = _settings_of(url, connect_timeout_s=connect_timeout_s, reply_timeout_s=reply_timeout_s)
            self._settings = pool.connection_kwargs
            self._factory = connection_factory or pool.connection_class
            self._new_wire()  # connects nothing, but finds an option that does not exist
        except (RedisError, TypeError, ValueError) as error:
            raise SetupError(f"the address of the server is not usable: {error}") from error
        self._address = _address(url.partition("://")[0], self._settings)

    @property
    def address(self) -> str:
        """Say which server this is, without user name and password."""
        return self._address

    def connect(self) -> RedisConnection:
        """Return a new connection; it connects on first use."""
        return RedisConnection(self._new_wire(), address=self._address, reply_timeout_s=self._reply_timeout_s)

    def _new_wire(self) -> _Wire:
        return cast("_Wire", self._factory(**self._settings))


class RedisConnection:
    """Be one connection to a Redis or Valkey server; see ``ports.Connection``."""

    def __init__(self, wire: _Wire, *, address: str, reply_timeout_s: float) -> None:
        self._wire = wire
        self._address = address
        self._reply_timeout_s = reply_timeout_s
        self._closed = False
        self._moved = False
        self.breaks = 0

    def read(
        self, after: Mapping[bytes, bytes], *, count: int, block_ms: int | None = None
    ) -> dict[bytes, list[Entry]]:
        """See ``ports.Reader``."""
        reply = self._ask(xread(after, count=count, block_ms=block_ms), wait_ms=block_ms)
        return dict(reply) if reply else {}

    def range(
        self, key: bytes, *, start: bytes = b"-", end: bytes = b"+", count: int, newest_first: bool = False
    ) -> list[Entry]:
        """See ``ports.Reader``."""
        span = (b"XREVRANGE", key, end, start) if newest_first else (b"XRANGE", key, start, end)
        return cast("list[Entry]", self._ask((*span, b"COUNT", count)))

    def get(self, key: bytes) -> bytes | None:
        """See ``ports.Reader``."""
        return cast("bytes | None", self._ask((b"GET", key)))

    def expires_at_ms(self, key: bytes) -> int | None:
        """See ``ports.Reader``."""
        at_ms = cast("int", self._ask((b"PEXPIRETIME", key)))
        return at_ms if at_ms >= 0 else None

    def get_fields(self, key: bytes) -> dict[bytes, bytes]:
        """See ``ports.Reader``."""
        return _pairs(self._ask((b"HGETALL", key)))

    def stream_state(self, key: bytes) -> StreamState | None:
        """See ``ports.Reader``; raises ``SetupError`` when the server is older than Redis 7."""
        with self._conversation((b"XINFO", b"STREAM", key)):
            reply = self._reply()
        if isinstance(reply, ServerRefused):
            if str(reply) == "ERR no such key":
                return None
            raise reply
        facts = _pairs(reply)
        if b"entries-added" not in facts:
            raise SetupError(f"{self._address} does not count the entries of a stream: Redis 7 or Valkey is needed")
        first = facts[b"first-entry"]
        return StreamState(
            length=facts[b"length"],
            last_id=facts[b"last-generated-id"],
            first_id=first[0] if first else None,
            entries_added=facts[b"entries-added"],
        )

    def write(self, operations: Sequence[Operation]) -> list[Outcome]:
        """See ``ports.Writer``."""
        if not operations:
            return []
        with self._conversation(*map(command, operations)):
            return [self._reply() for _ in operations]

    def write_if(self, guard: bytes, holds: bytes | None, operations: Sequence[Operation]) -> list[Outcome] | None:
        """See ``ports.Writer``: optimistic, so it costs two round trips and never waits for anybody."""
        with self._conversation((b"WATCH", guard), (b"GET", guard)):
            watching, held = self._reply(), self._reply()
        if isinstance(watching, ServerRefused):
            raise watching
        if isinstance(held, ServerRefused) or held != holds or not operations:
            self._ask((b"UNWATCH",))
            if isinstance(held, ServerRefused):
                raise held
            return None if held != holds else []
        return self._transaction(operations)

    def write_together(self, operations: Sequence[Operation]) -> list[Outcome]:
        """See ``ports.Writer``."""
        outcomes = self._transaction(operations)
        assert outcomes is not None, "nothing is watched"
        return outcomes

    def _transaction(self, operations: Sequence[Operation]) -> list[Outcome] | None:
        """Return what a transaction comes to; ``None`` when something that was watched has changed."""
        packed = [_MULTI, *[_pack(command(operation)) for operation in operations], _EXEC]
        try:  # a conversation without its context manager: a call that is taken waits for this alone
            self._send(packed)
            queued = [self._reply() for _ in packed[1:]]
            done = self._reply()
        except BaseException as error:
            self._leave(error)
            raise
        self._end()
        if isinstance(done, ServerRefused):
            return [outcome if isinstance(outcome, ServerRefused) else done for outcome in queued[1:]]
        return None if done is None else [self._refusal(each) for each in done]

    def exchange(self, append: Append, *, inbox: bytes, after: bytes, block_ms: int) -> tuple[bytes, list[Entry]]:
        """See ``ports.Exchanger``."""
        with self._conversation(command(append), xread({inbox: after}, count=EXCHANGE_COUNT, block_ms=block_ms)):
            question_id = self._reply()
            if isinstance(question_id, ServerRefused):
                # The server goes on to wait for an answer that cannot come: leaving drops the connection.
                raise question_id
            answers = self._reply(block_ms)
        if isinstance(answers, ServerRefused):
            raise answers
        return question_id, answers[0][1] if answers else []

    def server_facts(self) -> dict[str, str]:
        """See ``ports.Inspector``."""
        with self._conversation((b"INFO", b"all"), *((b"CONFIG", b"GET", name) for name in INSPECTED_SETTINGS)):
            info, *settings = [self._reply() for _ in range(1 + len(INSPECTED_SETTINGS))]
        lines = _if_allowed(info, otherwise=b"").decode("utf-8", "replace").splitlines()
        facts = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
        for reply in settings:
            for name, value in _pairs(_if_allowed(reply, otherwise=[])).items():
                facts[f"config:{name.decode()}"] = value.decode("utf-8", "replace")
        return facts

    def close(self) -> None:
        """See ``ports.Connection``."""
        self._closed = True
        self._wire.disconnect()

    def _ask(self, command: Command, *, wait_ms: int | None = None) -> Reply:
        with self._conversation(command):
            reply = self._reply(wait_ms)
        if isinstance(reply, ServerRefused):
            raise reply
        return reply

    @contextmanager
    def _conversation(self, *commands: Command) -> Iterator[None]:
        """Send ``commands`` in one write, and drop the connection if the block fails to read every reply."""
        try:
            self._send(map(_pack, commands))
            yield
        except BaseException as error:
            self._leave(error)
            raise
        self._end()

    def _send(self, packed: Iterable[bytes]) -> None:
        if self._closed:
            raise ClosedError(f"the connection to {self._address} is closed")
        self._wire.send_packed_command([b"".join(packed)], check_health=False)

    def _leave(self, error: BaseException) -> None:
        """Drop the connection, which may hold unread replies; raise in our own words what is wrong with the server."""
        self.breaks += 1
        self._wire.disconnect()
        if isinstance(error, (RedisError, OSError, UnicodeError)):  # the last: a host name that is none
            raise self._border_error(error) from error

    def _end(self) -> None:
        """Leave a server that is no longer the right one."""
        if self._moved or self._closed:
            self._moved, self.breaks = False, self.breaks + 1
            self._wire.disconnect()

    def _reply(self, wait_ms: int | None = None) -> Reply:
        """Return the next reply, an error reply as a ``ServerRefused``; raise what concerns every command."""
        try:
            if not wait_ms:
                return self._wire.read_response(disable_decoding=True)
            return self._wire.read_response(disable_decoding=True, timeout=wait_ms / 1000 + self._reply_timeout_s)
        except ResponseError as error:
            refusal = self._border_error(error)
        if not isinstance(refusal, ServerRefused):
            raise refusal
        self._moved = self._moved or refusal.code in MOVED_CODES
        return refusal

    def _refusal(self, outcome: Reply) -> Outcome:
        """Return an outcome of a transaction; hiredis puts errors into its list as they are."""
        return cast("ServerRefused", self._border_error(outcome)) if isinstance(outcome, Exception) else outcome

    def _border_error(self, error: Exception) -> TransportError:
        """Translate an exception of redis-py or of the socket under it."""
        code = getattr(error, "status_code", None)  # redis-py cuts the first word off the errors it knows
        text = f"{code} {error}" if code else str(error)
        if isinstance(error, (AuthenticationError, AuthorizationError)):
            return ServerRefused(f"{text} (check user name and password for {self._address})")
        if isinstance(error, ResponseError) and text.split(" ", 1)[0] not in PASSING_CODES:
            return ServerRefused(text)
        if isinstance(error, InvalidResponse):
            text = f"what answers does not speak the Redis protocol ({text})"
        return ServerUnavailable(
            f"{self._address} cannot be used for the moment ({_CONNECTING.sub('', text).rstrip('.')})"
        )


def _settings_of(url: str, *, connect_timeout_s: float, reply_timeout_s: float) -> ConnectionPool:
    """Return redis-py's reading of a URL: the class of its connections, and their arguments.

    The pool is not used as one: it would count connections and refuse the hundredth.
    """
    ours: dict[str, Any] = {
        "protocol": 2,  # one shape per reply, and no pushed messages (so no maintenance notifications)
        "decode_responses": False,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "health_check_interval": 0,
        "socket_connect_timeout": connect_timeout_s,
        "socket_timeout": reply_timeout_s,
        "socket_read_size": READ_BYTES,
        "client_name": CLIENT_NAME,
        "driver_info": None,  # two round trips less per connection
    }
    pool = ConnectionPool.from_url(url, **ours)
    taken = sorted(name for name, value in ours.items() if pool.connection_kwargs.get(name) is not value)
    if taken:
        raise SetupError(f"the address of the server must not set {', '.join(taken)}: token-actor decides that")
    return pool


def _address(scheme: str, settings: Mapping[str, Any]) -> str:
    """Write an address anew, without user, password and options; redis-py's defaults fill what it left out."""
    db = settings.get("db", 0)
    if scheme == "unix":
        return f"unix://{settings.get('path', '')}?db={db}"
    host = settings.get("host", "localhost")
    bracketed = f"[{host}]" if ":" in host else host
    return f"{scheme}://{bracketed}:{settings.get('port', 6379)}/{db}"


def _pairs(flat: list[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _if_allowed(reply: Reply, *, otherwise: Reply) -> Reply:
    """Return ``reply``, or ``otherwise`` when the server lets nobody or not us ask that."""
    if not isinstance(reply, ServerRefused):
        return reply
    if reply.code in FORBIDDEN_CODES or str(reply).startswith(FORBIDDEN_TEXT):
        return otherwise
    raise reply
