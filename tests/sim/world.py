"""The world of a simulation: time, a server with a will of its own, and players that take turns.

Every player runs in a thread, and exactly one of them runs at a time: each call to the server and
each wait hands over to the world, which decides by its seed who goes on, what becomes of the call,
and what else happens. So a player can be stopped, paused or killed between any two calls, and the
same seed always tells the same story.
"""

from __future__ import annotations

import copy
import random
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from token_actor.errors import ServerUnavailable
from token_actor.transport.memory import MemoryConnection, MemoryServer
from token_actor.transport.memory_keys import Keyspace
from token_actor.transport.ports import Append

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from token_actor.transport.ports import Operation
    from token_actor.wire.keys import Keys

T0_MS = 1_700_000_000_000
STUCK_S = 30.0  # of real time: a player that does not hand over hangs


class Killed(BaseException):
    """End a player, wherever it is; nothing in the product catches this."""


class Away(ServerUnavailable):
    """Say that a simulated connection broke."""


@dataclass
class Odds:
    """Hold how likely each thing is: per call, and per step of the world."""

    drop: float = 0.01  # the call never arrives
    lose: float = 0.01  # it is carried out, and the reply is lost
    late: float = 0.005  # the connection breaks, and the call is carried out later all the same


class Player:
    """Somebody who runs until the world ends: an actor or a producer."""

    def __init__(self, world: World, name: str, run: Callable[[Player], None]) -> None:
        self.world = world
        self.name = name
        self.asleep_until_ms = 0
        self.paused_until_ms = 0
        self.cut_off_until_ms = 0
        self.killed = False
        self.ended = False
        self.failure: BaseException | None = None
        self._run = run
        self._go = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()

    def _live(self) -> None:
        self._go.acquire()
        try:
            if not self.killed:
                self._run(self)
        except Killed:
            pass
        except BaseException as failure:  # noqa: BLE001 - the world raises it where the test can see it
            self.failure = failure
        finally:
            self.ended = True
            self.world.back.release()

    def resume(self) -> None:
        """Let the player go on until it hands over again."""
        self._go.release()
        assert self.world.back.acquire(timeout=STUCK_S), f"{self.name} does not hand over"

    def hand_over(self) -> None:
        """Let the world decide what happens next."""
        self.world.back.release()
        self._go.acquire()
        if self.killed:
            raise Killed

    def wait(self, seconds: float) -> bool:
        """Wait in virtual time; never asked to stop."""
        if seconds:
            self.asleep_until_ms = self.world.now_ms + max(1, int(seconds * 1000))
        self.hand_over()
        return False

    def kill(self) -> None:
        """End it now, in the middle of whatever it does."""
        if not self.ended:
            self.killed = True
            self.resume()

    def is_ready(self, now_ms: int) -> bool:
        """Tell whether it can take a turn."""
        return not self.ended and now_ms >= max(self.asleep_until_ms, self.paused_until_ms)


class World:
    """Time, the server, and who is there."""

    def __init__(self, seed: int, keys: Keys, odds: Odds | None = None) -> None:
        self.random = random.Random(seed)
        self.keys = keys
        self.odds = odds or Odds()
        self.now_ms = T0_MS
        self.server_off_ms = 0
        self.server = MemoryServer(clock_ms=self.server_ms)
        self.players: list[Player] = []
        self.back = threading.Semaphore(0)
        self.told: Counter[str] = Counter()
        self.breaks = 0  # grows whenever every connection breaks
        self.violations: list[str] = []
        self._late: list[tuple[int, Callable[[], object]]] = []
        self._highest_epoch = 0

    def server_ms(self) -> int:
        """Return what the server's clock shows."""
        return self.now_ms + self.server_off_ms

    def add(self, name: str, run: Callable[[Player], None]) -> Player:
        """Let somebody join."""
        player = Player(self, name, run)
        self.players.append(player)
        return player

    def remove(self, player: Player) -> None:
        """Kill somebody with -9."""
        player.kill()
        self.players.remove(player)

    def step(self) -> None:
        """Let one player go on, whose turn it may be, and time pass a little."""
        ready = [player for player in self.players if player.is_ready(self.now_ms)]
        if not ready:
            wakes = [max(p.asleep_until_ms, p.paused_until_ms) for p in self.players if not p.ended]
            assert wakes, "nobody is left"
            self.now_ms = max(self.now_ms + 1, min(wakes))
            return
        player = self.random.choice(ready)
        player.resume()
        if player.failure is not None:
            raise player.failure
        if self.random.random() < 0.2:
            self.now_ms += self.random.randint(1, 10)
        self._deliver_late()

    def _deliver_late(self) -> None:
        due = [call for at_ms, call in self._late if at_ms <= self.now_ms]
        self._late = [(at_ms, call) for at_ms, call in self._late if at_ms > self.now_ms]
        for call in due:
            call()

    def carry_out_late(self, call: Callable[[], object]) -> None:
        """Carry a call out some time later, when nobody waits for it any more."""
        self.told["late"] += 1
        self._late.append((self.now_ms + self.random.randint(1, 3_000), call))

    # --- what befalls the server ---

    @property
    def keyspace(self) -> Keyspace:
        """Return what the server holds."""
        return self.server._shared.keyspace

    def backup(self) -> Keyspace:
        """Return a copy of everything the server holds."""
        return copy.deepcopy(self.keyspace, {id(self): self})

    def replace(self, keyspace: Keyspace) -> None:
        """Let the server hold something else from now on, after every connection broke."""
        self.server._shared.keyspace = keyspace
        self.breaks += 1

    def flush(self) -> None:
        """Let the server forget everything, without breaking a connection."""
        self.server._shared.keyspace = Keyspace(self.server_ms)

    def note(self, writer: str, operations: Sequence[Operation], outcomes: Sequence[object]) -> None:
        """Watch what is accepted: a manifest of anybody but who leads, or of another epoch, must not be."""
        for operation, outcome in zip(operations, outcomes, strict=True):
            if not isinstance(operation, Append) or operation.key != self.keys.snapshots or type(outcome) is not bytes:
                continue
            self.told["manifests"] += 1
            held = self.keyspace.value(self.keys.leader, bytes) or b""
            if held != b"%b:%b" % (outcome.partition(b"-")[0], writer.encode()):
                self.violations.append(f"manifest {outcome!r} of {writer} accepted while {held!r} led")

    def end(self) -> None:
        """Let everybody go."""
        for player in self.players:
            player.kill()


class Link:
    """One player's connection to the server: what it sends may be dropped, repeated in vain, or arrive late."""

    def __init__(self, player: Player) -> None:
        self.player = player
        self.world = player.world
        self._connection: MemoryConnection = self.world.server.connect()
        self._breaks = self.world.breaks

    def _fate(self) -> str:
        world, odds = self.world, self.world.odds
        if self._breaks != world.breaks:
            self._breaks = world.breaks
            return "drop"
        if world.now_ms < self.player.cut_off_until_ms:
            return "drop"
        number = world.random.random()
        for fate, share in (("drop", odds.drop), ("lose", odds.lose), ("late", odds.late)):
            if number < share:
                return fate
            number -= share
        return "arrive"

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        player, world = self.player, self.world
        player.hand_over()
        method = getattr(self._connection, name)
        fate = self._fate()
        if fate == "arrive":
            return method(*arguments, **options)
        world.told[fate] += 1
        if fate == "lose":
            method(*arguments, **options)
        elif fate == "late" and name == "write":  # a guarded write of a broken connection is not carried out
            world.carry_out_late(lambda: self._written(*arguments))
        raise Away(f"{player.name} lost its connection ({fate})")

    def read(self, after: Any, *, count: int, block_ms: int | None = None) -> Any:
        """See ``ports.Reader``; waits in virtual time, and at most once."""
        found = self._call("read", after, count=count)
        if not found and block_ms:
            self.player.asleep_until_ms = self.world.now_ms + self.world.random.randint(1, block_ms)
            found = self._call("read", after, count=count)
        return found

    def write(self, operations: Sequence[Operation]) -> Any:
        """See ``ports.Writer``."""
        outcomes = self._call("write", operations)
        self.world.note(self.player.name, operations, outcomes)
        return outcomes

    def _written(self, operations: Sequence[Operation]) -> None:
        self.world.note(self.player.name, operations, self._connection.write(operations))

    def write_if(self, guard: bytes, holds: bytes | None, operations: Sequence[Operation]) -> Any:
        """See ``ports.Writer``."""
        outcomes = self._call("write_if", guard, holds, operations)
        if outcomes is not None:
            self.world.note(self.player.name, operations, outcomes)
        return outcomes

    def close(self) -> None:
        """Let go."""

    def __getattr__(self, name: str) -> Any:
        """Pass on everything else."""
        return lambda *arguments, **options: self._call(name, *arguments, **options)
