"""An actor on a stage: its clock is a script, so what happens between two turns is exactly what a test says."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from token_actor.actor.loop import Actor
from token_actor.actor.settings import ActorSettings, Clock
from token_actor.actor.snapshots import digests_now
from token_actor.client.recording import make_event
from token_actor.transport.memory import MemoryServer
from token_actor.transport.ports import Append, Delete
from token_actor.transport.redis import RedisConnector
from token_actor.wire.batches import encode_batch
from token_actor.wire.keys import Keys
from token_actor.wire.messages import COMMAND_FIELD, Answer, DeadLetter, Question, encode_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from token_actor.actor.manifests import Position
    from token_actor.transport.ports import Connection, Connector, Entry, StreamState

PRODUCER = bytes(16)
TURNS_MAX = 1_000  # what takes more never happens
LEASE_MS = 2_000


class Script:
    """The clock of an actor. It takes a step before each turn, and stops the actor after the last one.

    The first step comes before the actor has begun at all. Time moves when a test says so, and when
    the actor waits.
    """

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.now_ms = time.time_ns() // 1_000_000
        self.ticks_ms = 0
        self.waits_s: list[float] = []
        self._steps = list(steps)

    def clock(self) -> Clock:
        return Clock(lambda: self.now_ms, lambda: self.ticks_ms, self._wait)

    def advance(self, milliseconds: float) -> None:
        self.now_ms += int(milliseconds)
        self.ticks_ms += int(milliseconds)

    def wait_for(self, reached: Callable[[], bool]) -> None:
        """Let turns pass after the last step until something has happened."""

        def look(turns: int = TURNS_MAX) -> None:
            assert turns, "it did not happen"
            if not reached():
                self.advance(LEASE_MS // 20)
                self._steps.append(lambda: look(turns - 1))

        self._steps.append(look)

    def _wait(self, seconds: float) -> bool:
        if seconds:
            self.waits_s.append(seconds)
            self.advance(seconds * 1000)
            return False
        if not self._steps:
            return True
        self._steps.pop(0)()
        return False


class Stage:
    """One partition on one server, and what a test does there."""

    def __init__(self, connector: Connector, namespace: str) -> None:
        self.connector = connector
        self.keys = Keys(namespace)
        self.connection = connector.connect()
        self._opened = [self.connection]
        self._next_seq = 0

    def connect(self) -> Connection:
        self._opened.append(self.connector.connect())
        return self._opened[-1]

    def close(self) -> None:
        for connection in self._opened:
            connection.close()

    # --- actors ---

    def actor(self, script: Script, connection: Connection | None = None, **settings: Any) -> Actor:
        settings = {"holder": "actor", "block_ms": 0, "standby_block_ms": 0, **settings}
        return Actor(connection or self.connect(), ActorSettings(keys=self.keys, **settings), script.clock())

    def player(self, holder: str, connection: Connection | None = None, **settings: Any) -> Player:
        return Player(self, holder, connection or self.connect(), settings)

    def run(self, *steps: Callable[[], object], connection: Connection | None = None, **settings: Any) -> Script:
        """Let an actor begin, take a turn after each step but the first, and stop."""
        script = Script(nothing, *steps)
        self.actor(script, connection, **settings).run()
        return script

    def saved(self, **settings: Any) -> None:
        """Let an actor fold the log, take a snapshot of it, and stop."""
        script = Script(nothing)
        actor = self.actor(script, snapshot_every_ms=0, **settings)

        def is_saved() -> bool:
            all_folded = actor._follower.reached == self.state(self.keys.log).last_id
            return all_folded and actor._saving.saved_all and not actor._saving.under_way

        script.wait_for(is_saved)
        actor.run()

    # --- what others write ---

    def append(self, *fields: bytes) -> bytes:
        return self._write(self.keys.log, fields)

    def event(self, **fields: Any) -> bytes:
        return self.append(b"j", json.dumps(fields).encode())

    def batch(self, count: int = 1, *, first_seq: int | None = None, **fields: Any) -> bytes:
        first_seq = self._next_seq if first_seq is None else first_seq
        data = encode_batch([make_event({}, **fields)] * count, producer=PRODUCER, epoch=0, first_seq=first_seq)
        self._next_seq = max(self._next_seq, first_seq + count)
        return self.append(b"b", data)

    def command(self, operation: str, request_id: str, event: dict[str, Any] | None = None, **arguments: Any) -> bytes:
        from token_actor.core.commands import Command

        command = Command(operation=operation, request_id=request_id, client="c", arguments=arguments)
        return self.append(COMMAND_FIELD, encode_command(command, event))

    def ask(self, kind: str = "status", after: bytes | None = None, request_id: str = "1", **arguments: Any) -> bytes:
        question = Question(request_id=request_id, client="c", kind=kind, arguments=arguments, after=after)
        return self._write(self.keys.ask, [b"q", question.encode()])

    def _write(self, key: bytes, fields: Any) -> bytes:
        (outcome,) = self.connection.write([Append(key=key, fields=list(fields))])
        assert isinstance(outcome, bytes)
        return outcome

    # --- what befalls the server ---

    def log_entries(self) -> list[Entry]:
        """Return the log, as a backup or a replica would have it."""
        return self.connection.range(self.keys.log, count=100_000)

    def replace_log(self, entries: Sequence[Entry]) -> None:
        """Put another log in the place of this one, as a restore or a failover does."""
        self.connection.write([Delete(keys=[self.keys.log])])
        for entry_id, fields in entries:
            self.add(entry_id, *fields)

    def add(self, entry_id: bytes, *fields: bytes) -> bytes:
        """Append an entry under an id of its own."""
        (outcome,) = self.connection.write([Append(key=self.keys.log, fields=list(fields), entry_id=entry_id)])
        assert outcome == entry_id
        return entry_id

    def flush(self) -> None:
        """Lose everything, as FLUSHALL does."""
        keys = self.keys
        names = [keys.log, keys.ask, keys.dead, keys.leader, keys.epoch, keys.snapshots, keys.meta, keys.inbox("c")]
        chunks = [keys.chunk(b"%d-%d" % (epoch, n), i) for epoch in range(5) for n in range(5) for i in range(20)]
        self.connection.write([Delete(keys=names + chunks)])

    # --- what the actor wrote ---

    def answers(self, client: str = "c") -> list[Answer]:
        entries = self.connection.range(self.keys.inbox(client), count=10_000)
        return [Answer.decode(fields[1]) for _, fields in entries]

    def status(self) -> dict[str, Any]:
        """Return what a new actor says of itself after a recovery."""
        return self._result("status")

    def total(self, **selector: str) -> dict[str, Any]:
        """Return the analytics of a new actor after a recovery."""
        return self._result("analytics", selector=selector)

    def _result(self, kind: str, **arguments: Any) -> dict[str, Any]:
        before = len(self.answers())
        script = Script(nothing, lambda: self.ask(kind, request_id=kind, **arguments))
        script.wait_for(lambda: len(self.answers()) > before)
        self.actor(script).run()
        result = self.answers()[before:][-1].result
        assert result is not None
        return dict(result)

    def dead(self) -> list[DeadLetter]:
        return [DeadLetter.read(*entry) for entry in self.connection.range(self.keys.dead, count=100_000)]

    def snapshots(self) -> list[Entry]:
        return self.connection.range(self.keys.snapshots, count=1_000)

    def state(self, key: bytes) -> StreamState:
        state = self.connection.stream_state(key)
        assert state is not None
        return state


class Player:
    """An actor whose every step a test takes by hand; its clock stands still in between."""

    def __init__(self, stage: Stage, holder: str, connection: Connection, settings: dict[str, Any]) -> None:
        self.script = Script()
        self.recorder = Recorder(connection)
        self.actor = stage.actor(self.script, cast("Connection", self.recorder), holder=holder, **settings)

    def step(self, times: int = 1, *, after_ms: int = 0) -> Player:
        """Take steps, each after some time; an interruption is that of the step."""
        for _ in range(times):
            self.script.advance(after_ms)
            self.actor.step()
        return self

    def look(self) -> Player:
        """Take a step in which the lease is due."""
        return self.step(after_ms=LEASE_MS // 4)

    def outlast(self) -> Player:
        """Watch for as long as a lease runs."""
        return self.step(5, after_ms=LEASE_MS // 4)

    def stop(self) -> None:
        """Run to the end: the script has no step left."""
        self.actor.run()

    @property
    def epoch(self) -> int:
        return self.actor._leadership.epoch

    @property
    def position(self) -> Position:
        return self.actor._follower.position

    @property
    def requests(self) -> int:
        return int(self.actor._follower.ledger.total()["requests"])

    @property
    def state(self) -> Any:
        return digests_now(self.actor._follower.ledger)


def nothing() -> None:
    """Let a turn pass."""


class Recorder:
    """A connection that notes what is done with it, and plays losses: ``fail`` maps a call to an error."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.calls: list[str] = []
        self.read_counts: list[int] = []
        self.blocks_ms: list[int | None] = []
        self.fail: dict[str, list[Exception]] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._connection, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name)
            if name == "read":
                self.read_counts.append(options["count"])
                self.blocks_ms.append(options["block_ms"])
            if self.fail.get(name):
                raise self.fail[name].pop(0)
            return method(*arguments, **options)

        return call


@pytest.fixture(params=["memory", "valkey"])
def stage(request: pytest.FixtureRequest, namespace: str) -> Iterator[Stage]:
    """A partition of one's own on each kind of server."""
    connector: Connector
    connector = MemoryServer() if request.param == "memory" else RedisConnector(request.getfixturevalue("server_url"))
    stage = Stage(connector, namespace)
    yield stage
    stage.close()


@pytest.fixture
def memory_stage(namespace: str) -> Iterator[Stage]:
    """A partition of one's own in memory."""
    stage = Stage(MemoryServer(), namespace)
    yield stage
    stage.close()
