"""The composition root: what the parts are given, and the only reader of the environment.

``TokenClient`` and ``AsyncTokenClient`` are the faces of the client with an address to connect to.
``run_actor`` is an actor with the real clocks and a stop.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util
import os
import socket
import sys
import threading
import time
import uuid
import weakref
from typing import TYPE_CHECKING, Final, TypedDict, Unpack

from token_actor.actor.loop import Actor
from token_actor.actor.settings import ActorSettings, Clock
from token_actor.client.aio import AsyncFace
from token_actor.client.engine import Engine, finish_all
from token_actor.client.settings import ClientSettings
from token_actor.client.sync import SyncFace
from token_actor.core.usage import DIMENSIONS
from token_actor.errors import ServerUnavailable
from token_actor.transport.memory import MemoryServer
from token_actor.transport.redis import RedisConnector
from token_actor.wire.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_actor.transport.ports import Connection, Connector

DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"
MEMORY_SCHEME: Final = "memory://"
ENVIRONMENT: Final = {
    "TOKEN_ACTOR_REDIS": "the address of the server, when none is given",
    "TOKEN_ACTOR_NAMESPACE": "the namespace, when none is given",
    "TOKEN_ACTOR_SPOOL_DIR": "the folder of a client's spool, when none is given",
}
_CONNECT_TIMEOUT_S: Final = 2.0
_EXIT_TIMEOUT_S: Final = 5.0

_memory_servers: weakref.WeakValueDictionary[str, ResidentServer] = weakref.WeakValueDictionary()
_memory_lock = threading.Lock()


class ClientOptions(TypedDict, total=False):
    """Hold what ``TokenClient`` takes by keyword; see ``ClientSettings`` and ``usage.DIMENSIONS``."""

    namespace: str | None
    tenant: str | None
    project: str | None
    user: str | None
    agent: str | None
    session: str | None
    provider: str | None
    model: str | None
    batch_events_max: int
    batch_age_ms: int
    buffer_events_max: int
    timeout_s: float
    lines_max: int
    spool_dir: str | None
    spool_bytes_max: int
    spool_full: str
    resend_share: float


class TokenClient(SyncFace):
    """Record usage to the fleet's log and ask its actor, from any thread.

    ``url`` is ``redis://host:port/db``, ``rediss://``, ``unix://path``, or ``memory://`` for a server
    and an actor in this process; ``None`` means ``TOKEN_ACTOR_REDIS``, else this host. Keywords are
    ``namespace``, the dimensions that every record has unless it says otherwise, and the settings of
    ``client.settings.ClientSettings``. Connects with the first use. Raises ``InvalidValue`` and
    ``SetupError`` for what can never work.
    """

    def __init__(self, url: str | None = None, **options: Unpack[ClientOptions]) -> None:
        """Prepare; nothing is connected yet."""
        super().__init__(_engine(url, options))


class AsyncTokenClient(AsyncFace):
    """Be a ``TokenClient`` whose methods are coroutines; ``record`` stays a plain call."""

    def __init__(self, url: str | None = None, **options: Unpack[ClientOptions]) -> None:
        """Prepare; nothing is connected yet. Arguments as for ``TokenClient``."""
        super().__init__(_engine(url, options))


def _engine(url: str | None, options: ClientOptions) -> Engine:
    given = {name: value for name, value in options.items() if value is not None}
    names = {name: given.pop(name) for name in DIMENSIONS if name in given}
    given["namespace"] = given.get("namespace") or default_namespace()
    given.setdefault("spool_dir", default_spool_dir())
    settings = ClientSettings(names=names, **given)  # type: ignore[arg-type] # the TypedDict says which
    return Engine(connector_of(url or default_url(), settings.namespace), settings)


def named_url() -> str | None:
    """Return the address of the server from the environment, ``None`` when it names none."""
    return os.environ.get("TOKEN_ACTOR_REDIS") or None


def default_url() -> str:
    """Return the address of the server from the environment, else the one on this host."""
    return named_url() or DEFAULT_URL


def default_namespace() -> str:
    """Return the namespace from the environment, else ``default``."""
    return os.environ.get("TOKEN_ACTOR_NAMESPACE") or "default"


def default_spool_dir() -> str | None:
    """Return the folder of a client's spool from the environment, ``None`` when it names none."""
    return os.environ.get("TOKEN_ACTOR_SPOOL_DIR") or None


def connector_of(url: str, namespace: str = "default") -> Connector:
    """Return what connects to ``url``. Raises ``SetupError`` when it is not an address."""
    if url.startswith(MEMORY_SCHEME):
        return memory_server(url.removeprefix(MEMORY_SCHEME)).connector(namespace)
    return RedisConnector(url, connect_timeout_s=_CONNECT_TIMEOUT_S)


def actor_settings(namespace: str, *, partition: int = 0, partitions: int = 1) -> ActorSettings:
    """Return the settings of an actor in this process, under a name that people recognise."""
    holder = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:6]}"
    return ActorSettings(keys=Keys(namespace, partition), holder=holder, partitions=partitions)


def run_actor(connector: Connector, settings: ActorSettings, stop: threading.Event) -> None:
    """Serve one partition until ``stop`` is set. Raises ``SnapshotError``, ``SetupError``, ``ServerRefused``."""
    connection = connector.connect()
    clock = Clock(lambda: time.time_ns() // 1_000_000, lambda: time.monotonic_ns() // 1_000_000, stop.wait)
    try:
        Actor(connection, settings, clock).run()
    finally:
        connection.close()


class ResidentServer:
    """Be an in-memory server with an actor thread per namespace, for as long as a client holds it."""

    def __init__(self) -> None:
        """Start empty."""
        self.pid = os.getpid()
        self.server = MemoryServer()
        self._stop = threading.Event()
        self._serving: set[str] = set()
        weakref.finalize(self, self._stop.set)

    def connector(self, namespace: str) -> Connector:
        """Return a connector to the server, on which an actor serves ``namespace``."""
        with _memory_lock:
            if namespace not in self._serving:
                self._serving.add(namespace)
                arguments = (self.server, actor_settings(namespace), self._stop)
                threading.Thread(target=run_actor, args=arguments, name="token-actor-memory", daemon=True).start()
        return _HeldConnector(self)


class _HeldConnector:
    """Connect to a resident server, and keep it alive."""

    def __init__(self, resident: ResidentServer) -> None:
        self._resident = resident
        self.address = resident.server.address

    def connect(self) -> Connection:
        """Return a new connection. Raises ``ServerUnavailable`` in a child, whose copy no actor serves."""
        if self._resident.pid != os.getpid():
            raise ServerUnavailable(f"{self.address} ends at a fork: processes need a real server to share")
        return self._resident.server.connect()


def memory_server(name: str) -> ResidentServer:
    """Return the in-memory server of that name in this process; each one without a name is new."""
    if not name:
        return ResidentServer()
    with _memory_lock:
        resident = _memory_servers.get(name)
        if resident is None or resident.pid != os.getpid():
            resident = _memory_servers[name] = ResidentServer()
        return resident


# --- the end of the process ----------------------------------------------------------------------


def _at_exit(finish: Callable[[Engine, float], None]) -> None:
    for error in finish_all(finish, _EXIT_TIMEOUT_S):
        print(f"token-actor: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the last chance to say so


def _flush_in_child(_: object = None) -> None:
    """Let this child of ``multiprocessing`` flush: up to Python 3.12 it ends without the exit handlers.

    It flushes only, because other threads of the child may still record.
    """
    multiprocessing.util.Finalize(None, _at_exit, args=(Engine.flush,), exitpriority=0)


atexit.register(_at_exit, Engine.close)
multiprocessing.util.register_after_fork(_at_exit, _flush_in_child)
if multiprocessing.parent_process() is not None:
    _flush_in_child()
