"""Small fleets for tests: one namespace on one server, actors in threads, clients, and outages on demand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.contract.doubles import TcpProxy
from token_actor.actor.settings import ActorSettings
from token_actor.client.aio import AsyncFace
from token_actor.client.engine import Engine
from token_actor.client.settings import ClientSettings
from token_actor.client.sync import SyncFace
from token_actor.core.usage import DIMENSIONS
from token_actor.errors import LogUnavailable, ServerUnavailable
from token_actor.service import run_actor
from token_actor.transport.memory import MemoryServer
from token_actor.transport.ports import Append
from token_actor.transport.redis import RedisConnector
from token_actor.wire.codec import BATCH_BYTES_MAX, unpack
from token_actor.wire.keys import Keys
from token_actor.wire.messages import QUESTION_FIELD, DeadLetter, Question

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_actor.transport.ports import Connection, Connector, Entry

ROOT = Path(__file__).parents[2]
JOIN_S = 20.0  # what takes longer hangs
POLL_S = 0.001
SLACK_S = 1.0  # how late a busy machine may wake a thread


def wait_until(reached: Callable[[], object]) -> None:
    """Ask again and again until something has happened."""
    deadline_s = time.monotonic() + JOIN_S
    while not reached():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(POLL_S)


def elapsed_s(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start_s = time.monotonic()
    call()
    return time.monotonic() - start_s


def run_script(text: str, *arguments: str, **environment: str) -> Any:
    """Run a program of its own, and return what it prints as JSON; its stderr must be empty."""
    done = start_script(text, *arguments, **environment)
    out, problems = done.communicate(timeout=60)
    assert (done.returncode, problems) == (0, ""), (done.returncode, problems)
    return json.loads(out) if out else None


def start_script(text: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a program of its own in the checkout."""
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Gate(TcpProxy):
    """Stand between clients and a real server, and play its outages."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.away = False

    def serve(self, client: socket.socket) -> None:
        """Pass on what both sides say; while the server is away, hang up."""
        if not self.away:
            super().serve(client)

    def _keep(self, each: socket.socket) -> None:
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super()._keep(each)

    def go_away(self) -> None:
        """Break every connection, and let no new one through."""
        self.away = True
        self.cut()

    def come_back(self) -> None:
        """Let connections through again."""
        self.away = False


class RunningActor:
    """An actor in a thread of this process."""

    def __init__(self, connector: Connector, settings: ActorSettings) -> None:
        self.settings = settings
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._connector = connector
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            run_actor(self._connector, self.settings, self._stop)
        except BaseException as error:  # noqa: BLE001 - shown by the test that waits for it
            self.error = error

    @property
    def running(self) -> bool:
        """Tell whether it has not ended by itself."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ask it to stop, and wait until it has."""
        self._stop.set()
        self._wake()
        self.join()
        if self.error is not None:
            raise self.error

    def _wake(self) -> None:
        """Ask it something: a real server ends a blocked read up to a tenth of a second late."""
        question = Question(request_id="stop", client="stop", kind="status").encode()
        with suppress(ServerUnavailable), closing(self._connector.connect()) as connection:
            connection.write([Append(key=self.settings.keys.ask, fields=[QUESTION_FIELD, question])])

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join(JOIN_S)
        assert not self._thread.is_alive()


class Fleet:
    """One namespace on one server: what runs here is stopped when the block ends.

    ``connector`` leads straight to the server; clients use ``client_connector``, which plays outages.
    """

    def __init__(self, connector: Connector, client_connector: Connector, outage: Gate | MemoryServer, name: str):
        self.connector = connector
        self.client_connector = client_connector
        self.namespace = name
        self.go_away = outage.go_away
        self.come_back = outage.come_back
        self._stack = ExitStack()
        self._actors = 0

    @classmethod
    def in_memory(cls, namespace: str) -> Self:
        """Make one on the in-memory server."""
        server = MemoryServer()
        return cls(server, server, server, namespace)

    @classmethod
    def on(cls, port: int, namespace: str) -> Self:
        """Make one on a real server."""
        gate = Gate(port)
        fleet = cls(RedisConnector(f"redis://127.0.0.1:{port}/0"), RedisConnector(gate.url), gate, namespace)
        fleet._stack.enter_context(gate)
        return fleet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keys(self, partition: int = 0) -> Keys:
        """Return the keys of a partition."""
        return Keys(self.namespace, partition)

    def connect(self) -> Connection:
        """Return a connection straight to the server."""
        connection = self.connector.connect()
        self._stack.callback(connection.close)
        return connection

    def actor(self, partition: int = 0, **settings: Any) -> RunningActor:
        """Start an actor; it is quick to notice a stop."""
        self._actors += 1
        settings = {"holder": f"actor-{self._actors}", "block_ms": 20, "lease_ms": 500, **settings}
        actor = RunningActor(self.connector, ActorSettings(keys=self.keys(partition), **settings))
        self._stack.callback(actor.stop)
        return actor

    def engine(self, **options: Any) -> Engine:
        """Make the engine of a client; options are settings and dimensions."""
        names: dict[str, str] = {name: options.pop(name) for name in DIMENSIONS if name in options}
        engine = Engine(self.client_connector, ClientSettings(namespace=self.namespace, names=names, **options))
        self._stack.callback(_let_go, engine)
        return engine

    def client(self, **options: Any) -> SyncFace:
        """Make a client."""
        return SyncFace(self.engine(**options))

    def async_client(self, **options: Any) -> AsyncFace:
        """Make a client for coroutines."""
        return AsyncFace(self.engine(**options))

    def log(self, partition: int = 0) -> list[Entry]:
        """Return the entries of the log."""
        return self.connect().range(self.keys(partition).log, count=100_000)

    def batches(self, partition: int = 0) -> list[dict[str, Any]]:
        """Return the batches in the log."""
        entries = self.log(partition)
        return [unpack(fields[1], bytes_max=BATCH_BYTES_MAX) for _, fields in entries if fields[0] == b"b"]

    def dead(self, partition: int = 0) -> list[DeadLetter]:
        """Return the dead letters."""
        return [DeadLetter.read(*entry) for entry in self.connect().range(self.keys(partition).dead, count=1_000)]


def _let_go(engine: Engine) -> None:
    """Close a client, and give up what a test left behind."""
    with suppress(LogUnavailable):
        engine.close(0.0)
    if engine._sender._thread is not None:
        engine._sender._thread.join(JOIN_S)
        assert not engine._sender._thread.is_alive()
