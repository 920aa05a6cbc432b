"""The stage of one scenario: a directory, servers, actors and producers, and what a scenario awaits of them."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack, suppress
from random import Random
from typing import TYPE_CHECKING, Any, Final, Self

from tests.fault.cast import Child, ForkServer, NotSeenError, Server, until
from tests.fault.link import Link
from tests.fault.planted import ENVIRONMENT, PRODUCER
from tests.fault.truth import Truth
from token_actor.actor.manifests import Manifest
from token_actor.errors import ActorUnavailable, TransportError
from token_actor.operations.spools import look_into
from token_actor.service import TokenClient
from token_actor.transport.ports import FIRST
from token_actor.wire.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tests.fault.checker import Verdict
    from token_actor.transport.ports import Connection

NAMESPACE: Final = "fault"
SPOOL_S: Final = 30.0  # a lost batch is noticed by the next question of its owner, and deleted after the next snapshot
ASKING_S: Final = 2.0  # then it is looked whether there is anybody left to answer
COUNTED_S: Final = 600.0  # ten million events on a machine that does much else
SERVING_MS_MAX: Final = 10_000  # I9, unless a scenario says otherwise
# Small, so that everything that an actor does from time to time happens between two faults.
ACTOR_SETTINGS: Final = {
    "lease_ms": 300,
    "block_ms": 50,
    "snapshot_every_ms": 200,
    "snapshot_every_entries": 500,
}


class Stage:
    """Hold everything one scenario has started, and end all of it with the block."""

    def __init__(
        self,
        forks: ForkServer,
        directory: Path,
        *,
        seed: int,
        planted: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare an empty stage; ``planted`` is the bug that every process here runs with.

        ``settings`` are those of all actors, unless a scenario says otherwise.
        """
        self._settings = dict(settings or {})
        self.directory = directory
        self.random = Random(seed)
        self.keys = Keys(NAMESPACE)
        self.actors: list[Child] = []
        self.producers: dict[int, Child] = {}
        self.recovery_ms: list[float] = []
        self.faults = 0
        self.notes: list[str] = []
        self.manifests: dict[bytes, bytes] = {}  # snapshot id: the offset it goes up to
        self._led: list[tuple[str, int]] = []
        self.check: Callable[[Verdict], None] | None = None  # in the place of that of producers' events
        self.broken: list[str] = []  # what a scenario itself saw that must not be
        self._forks = forks
        self._planted = planted
        self._env = {ENVIRONMENT: planted} if planted else {}
        self._servers: list[Server] = []
        self._at_end = ExitStack()
        self._client: TokenClient | None = None
        self._connection: Connection | None = None
        self._specs: dict[int, dict[str, Any]] = {}
        self.server: Server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End everything, whatever state it is in."""
        self.forget_connections()
        for child in [*self.actors, *self.producers.values(), *(s.process for s in self._servers if s.process)]:
            if child.alive:
                child.resume()
                child.kill()
        self._at_end.close()

    # --- the server --------------------------------------------------------------------------------

    def serve(self, name: str = "server", *, under: Sequence[str] = (), **options: str) -> Server:
        """Start a server; the first one is the one that everything else uses unless told otherwise."""
        server = self.new_server(name, **options)
        server.under = under
        server.start()
        if len(self._servers) == 1:
            self.server = server
        return server

    def new_server(self, name: str, **options: str) -> Server:
        """Return a server that is not started yet."""
        server = Server(self._forks, self.directory / name, **options)
        self._servers.append(server)
        return server

    def link(self, server: Server) -> Link:
        """Return a new link to a server; it lasts as long as the stage."""
        return self._at_end.enter_context(Link(server.port, seed=self.random.randrange(2**32)))

    def at_end(self, action: Callable[[], object]) -> None:
        """Do something when everything has ended."""
        self._at_end.callback(action)

    @property
    def client(self) -> TokenClient:
        """Return the test's own client, past every proxy."""
        if self._client is None:
            self._client = TokenClient(self.server.url, namespace=NAMESPACE, timeout_s=SERVING_MS_MAX / 1000)
        return self._client

    @property
    def connection(self) -> Connection:
        """Return the test's own connection, past every proxy."""
        if self._connection is None:
            self._connection = self.server.connect()
        return self._connection

    def forget_connections(self) -> None:
        """Let go of the test's own connections, because the server is another one now."""
        if self._client is not None:
            self._client.close(0.1)
        if self._connection is not None:
            self._connection.close()
        self._client = self._connection = None

    def log_added(self) -> int:
        """Return how many entries the log has ever had; 0 while the server is away."""
        try:
            state = self.connection.stream_state(self.keys.log)
        except TransportError:
            return 0
        return 0 if state is None else state.entries_added

    def await_entries(self, more: int) -> None:
        """Wait until the log has so many entries more."""
        target = self.log_added() + more
        until(lambda: self.log_added() >= target, f"{more} more entries of the log")

    # --- actors ------------------------------------------------------------------------------------

    def start_actor(
        self,
        name: str = "actor",
        *,
        url: str | None = None,
        failpoint: dict[str, Any] | None = None,
        alone_with: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Child:
        """Start an actor; with an environment of its own it is no fork, and takes a second."""
        spec = {
            "url": url or self.server.url,
            "namespace": NAMESPACE,
            "settings": {**ACTOR_SETTINGS, **self._settings, **settings},
            "failpoint": failpoint,
        }
        said = self.directory / f"{name}.log"
        if alone_with is None:
            actor = self._forks.start(said, role="actor", spec=spec, env=self._env)
        else:
            actor = self._forks.start_alone(said, "actor", spec, env={**self._env, **alone_with})
        self.actors.append(actor)
        return actor

    def await_serving(
        self,
        *,
        after: str | None = None,
        since: float | None = None,
        noted: bool = True,
        asking_s: float = ASKING_S,
    ) -> str:
        """Wait until somebody else than ``after`` answers; return who, and note how long that took.

        ``asking_s`` is the patience of one question; then it is looked whether there is anybody left to answer.
        """
        since = time.monotonic() if since is None else since
        while True:
            if time.monotonic() - since > 6 * SERVING_MS_MAX / 1000:
                raise NotSeenError(f"nobody serves after {after}: {self.last_words()}")
            if not any(actor.alive for actor in self.actors):
                raise NotSeenError(f"every actor has ended: {self.last_words()}")
            try:
                status = self.client.status(timeout_s=asking_s)
            except (ActorUnavailable, TransportError):
                continue
            holder: str = status["holder"]
            if holder != after:
                if noted:
                    self.recovery_ms.append((time.monotonic() - since) * 1000)
                self._note_leader(holder, status["epoch"])
                return holder

    def _note_leader(self, holder: str, epoch: int) -> None:
        """Remember who led under which epoch: nobody may get an old one."""
        if self._led and self._led[-1][0] != holder and epoch <= self._led[-1][1]:
            self.broken.append(f"I7: {holder} leads under epoch {epoch} after {self._led[-1]}")
        self._led.append((holder, epoch))

    def await_snapshots(self, actor: Child, more: int) -> None:
        """Wait until an actor has taken so many snapshots more."""
        target = actor.actions().count("snapshot") + more
        until(
            lambda: actor.actions().count("snapshot") >= target, f"{more} snapshots; {self.last_words()}", poll_s=0.02
        )

    def watch_manifests(self) -> None:
        """Remember every snapshot from now on, also those that are dropped soon."""
        watching = self.server.connect()
        ended = threading.Event()
        watch = threading.Thread(target=self._watch_manifests, args=(watching, ended), daemon=True)
        watch.start()
        self.at_end(watching.close)
        self.at_end(watch.join)
        self.at_end(ended.set)

    def _watch_manifests(self, connection: Connection, ended: threading.Event) -> None:
        after = FIRST
        while not ended.is_set():
            with suppress(TransportError):
                for entry_id, fields in connection.read({self.keys.snapshots: after}, count=100, block_ms=100).get(
                    self.keys.snapshots, []
                ):
                    after = entry_id
                    self.manifests[entry_id] = Manifest.read(entry_id, fields).position.offset

    def last_words(self) -> list[str]:
        """Return what the actors said last."""
        return self.actors[-1].said()[-4:] if self.actors else []

    # --- producers ---------------------------------------------------------------------------------

    def start_spooling_producer(self, number: int, **spec: Any) -> Child:
        """Start a producer that keeps batches in a spool, which all producers of this host share."""
        return self.start_producer(number, client={"spool_dir": str(self.spool)}, **spec)

    @property
    def spool(self) -> Path:
        """Return the folder of the spools of this stage."""
        return self.directory / "spool"

    def spooled(self) -> int:
        """Return how many events wait in spools."""
        state = look_into(str(self.spool), namespace=NAMESPACE, address="")
        return sum(slot.events for slot in state.slots)

    def start_producer(self, number: int, **spec: Any) -> Child:
        """Start a producer, or start it again with what it was given the first time."""
        spec = self._specs.setdefault(number, spec) | spec
        full = {
            "url": self.server.url,
            "namespace": NAMESPACE,
            **spec,
            "number": number,
            "journal": str(self.journal(number)),
        }
        said = self.directory / f"producer-{number}.log"
        env = {**self._env, PRODUCER: str(number)}
        if under := full.pop("under", None):
            child = self._forks.start_alone(said, "producer", full, env=env, under=under)
        else:
            child = self._forks.start(said, role=full.pop("role", "producer"), spec=full, env=env)
        self.producers[number] = child
        return self.producers[number]

    def journal(self, number: int) -> Path:
        """Return where a producer writes down the truth; the test itself may be one."""
        self._specs.setdefault(number, {})
        return self.directory / f"producer-{number}.truth"

    def truths(self) -> list[Truth]:
        """Return what every producer has written down so far."""
        return [Truth.read(number, self.journal(number)) for number in sorted(self._specs)]

    def await_accepted(self, number: int, more: int) -> None:
        """Wait until a producer has been promised so many events more."""

        def accepted() -> int:
            return int(Truth.read(number, self.journal(number)).accepted.sum())

        target = accepted() + more
        until(lambda: accepted() >= target, f"{more} more events of producer {number}", poll_s=0.01)

    # --- the end -----------------------------------------------------------------------------------

    def stop_producers(self) -> None:
        """Ask all producers to stop, and wait until each has been promised all it tried.

        First those with a spool get the time to send again what was lost: until a snapshot covers all they hold.
        """
        if self.spool.exists():
            for child in self.producers.values():
                child.send(signal.SIGUSR1)
            if not any(actor.alive for actor in self.actors):
                self.start_actor()
            until(lambda: not self.spooled(), "an empty spool", SPOOL_S, poll_s=0.1)
        for child in self.producers.values():
            child.send(signal.SIGTERM)
        for number, child in self.producers.items():
            code = child.wait(2 * SERVING_MS_MAX / 1000 + 60)
            if code not in (0, -signal.SIGKILL):
                self.broken.append(f"producer {number} ended with {code}: {child.said()[-3:]}")

    def drain(self) -> None:
        """Wait until an actor has counted the whole log; start one if none runs."""
        if not any(actor.alive for actor in self.actors):
            self.start_actor()
        self.forget_connections()
        self.await_serving(noted=False)
        state = self.connection.stream_state(self.keys.log)
        if state is not None:
            until(lambda: self._offset() >= _pair(state.last_id.decode()), "the log counted to its end", poll_s=0.02)

    def await_counted(self, events: int) -> None:
        """Wait until so many events are counted."""
        with suppress(ActorUnavailable):  # nobody leads yet
            self.await_serving(noted=False)
        until(
            lambda: self.client.analytics(stale_ok=True, timeout_s=COUNTED_S)["requests"] >= events,
            f"{events} events counted",
            COUNTED_S,
            poll_s=0.5,
        )

    def _offset(self) -> tuple[int, int]:
        return _pair(self.client.status()["offset"])


def _pair(entry_id: str) -> tuple[int, int]:
    milliseconds, number = entry_id.split("-")
    return int(milliseconds), int(number)
