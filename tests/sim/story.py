"""One simulation from its seed: a fleet at work, faults, then peace, and what must be true in the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.sim.fleet import OUTPUT_TOKENS, ActorPlayer, HandWriter, SpoolProducer, Truth, counted
from tests.sim.world import T0_MS, Odds, World
from token_actor.actor.manifests import state_digest
from token_actor.actor.snapshots import digests_now
from token_actor.core.queries import answer
from token_actor.transport.memory_keys import Stream
from token_actor.wire.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_actor.transport.memory_keys import Keyspace

FAULTY_STEPS = 4_000
PEACE_STEPS_MAX = 40_000
EVENTS = 150  # per producer


@dataclass
class Verdict:
    """Hold what a simulation came to."""

    seed: int
    events: int = 0
    lost: list[int] = field(default_factory=list)
    twice: list[int] = field(default_factory=list)
    invented: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        """Tell whether every promise was kept."""
        return not (self.lost or self.twice or self.invented or self.problems)

    def __str__(self) -> str:
        """Say what went wrong."""
        return (
            f"seed {self.seed}: lost {self.lost}, twice {self.twice}, invented {self.invented}, "
            f"problems {self.problems}; faults {dict(self.faults)}"
        )


class Story:
    """A fleet, and what befalls it."""

    def __init__(self, seed: int) -> None:
        self.verdict = Verdict(seed)
        self.world = World(seed, Keys("sim"), Odds())
        self.truth = Truth()
        self.actors = [self._actor(), self._actor()]
        self.producers = [SpoolProducer(self.world, self.truth, f"p{n}", EVENTS) for n in range(2)]
        self.writers = [HandWriter(self.world, self.truth, "w", EVENTS // 2)]
        self._backup: Keyspace | None = None
        self._server_lost = False
        self._fragile_since = -1  # how many manifests there were when the server last lost what was safe
        # A story has its own mixture of faults, so that some are long without a certain one, and some full of it.
        chance = self.world.random
        self._faults: list[tuple[float, Callable[[], None]]] = [
            (chance.choice((0, 0.002, 0.01)), fault)
            for fault in (
                self._kill_actor,
                self._kill_producer,
                self._pause,
                self._cut_off,
                self._jump,
                self._spoil_disk,
                self._back_up,
            )
        ]
        self._faults += [
            (chance.choice((0, 0, 0.001)), fault)
            for fault in (self._fail_over, self._flush, self._trim, self._delete_log)
        ]

    def _actor(self) -> ActorPlayer:
        self._actors_made = getattr(self, "_actors_made", 0) + 1
        return ActorPlayer(self.world, f"actor{self._actors_made}")

    # --- faults ---

    def _fault(self, name: str) -> None:
        self.verdict.faults[name] += 1

    def _lose_snapshots(self) -> None:
        """Note that what a spool gave up as safe is now in the memory of the actors alone, until one has saved it."""
        self._fragile_since = self.world.told["manifests"]

    @property
    def _fragile(self) -> bool:
        return self.world.told["manifests"] == self._fragile_since

    @property
    def _robust(self) -> bool:
        """Tell whether either actor could lose what the server has, and the other would still know it."""
        stream = self.world.keyspace.value(self.world.keys.log, Stream)
        last = b"0-0" if stream is None else stream.state().last_id
        if self._fragile or not all(actor.offset == last for actor in self.actors):
            return False
        one, other = (actor.position for actor in self.actors)
        return one == other  # else one of them has yet to notice what it missed, or to take over what the leader saved

    def _kill_actor(self) -> None:
        if self._fragile:
            return
        self._fault("actor killed")
        place = self.world.random.randrange(2)
        self.world.remove(self.actors[place].player)
        self.actors[place] = self._actor()

    def _kill_producer(self) -> None:
        self._fault("producer killed")
        self.world.random.choice(self.producers).restart()

    def _pause(self) -> None:
        if self._fragile:
            return
        self._fault("paused")
        player = self.world.random.choice(self.actors).player
        player.paused_until_ms = self.world.now_ms + self.world.random.randint(500, 6_000)

    def _cut_off(self) -> None:
        player = self.world.random.choice(self.world.players)
        if self._fragile and player.name.startswith("actor"):
            return
        self._fault("cut off")
        player.cut_off_until_ms = self.world.now_ms + self.world.random.randint(100, 6_000)

    def _jump(self) -> None:
        self._fault("server clock jumped")
        self.world.server_off_ms = self.world.random.choice(
            (0, 60_000, -60_000, 3_600_000, 86_400_000 * 365, -3_600_000)
        )

    def _spoil_disk(self) -> None:
        self._fault("disk failed")
        disk = self.world.random.choice(self.producers).disk
        disk.full, disk.broken = self.world.random.choice(
            ((True, False), (False, True), (False, "after"), (False, False))
        )

    def _back_up(self) -> None:
        self._backup = self.world.backup()

    def _fail_over(self) -> None:
        if self._backup is not None and self._robust:
            self._fault("server lost its tail")
            self._server_lost = True
            self.world.replace(self._backup)
            self._lose_snapshots()
            self._backup = None

    def _flush(self) -> None:
        if not self._robust:
            return
        self._fault("server flushed")
        self._server_lost = True
        self._backup = None
        self.world.flush()
        self._lose_snapshots()

    def _delete_log(self) -> None:
        self._fault("log deleted")
        self._server_lost = True
        self.world.keyspace._forget(self.world.keys.log)

    def _trim(self) -> None:
        stream = self.world.keyspace.value(self.world.keys.log, Stream)
        if stream is not None:
            self._fault("log trimmed")
            self._server_lost = True
            stream.keep(self.world.random.randint(0, 3))

    # --- the story ---

    def tell(self) -> Verdict:
        """Let it happen, and say what came of it."""
        try:
            for _ in range(FAULTY_STEPS):
                self.world.step()
                for chance, fault in self._faults:
                    if self.world.random.random() < chance:
                        fault()
            self._make_peace()
            settled = self._wait_until_settled() and self._go_on()
            self._judge(settled)
        finally:
            self.world.end()
        return self.verdict

    def _make_peace(self) -> None:
        self.world.odds = Odds(0, 0, 0)
        self.world.server_off_ms = 0
        for player in self.world.players:
            player.paused_until_ms = player.cut_off_until_ms = 0
        for producer in self.producers:
            producer.disk.full, producer.disk.broken = False, False

    def _wait_until_settled(self, *, alike: bool = False) -> bool:
        for step in range(PEACE_STEPS_MAX):
            self.world.step()
            if step % 50 == 0 and self._is_settled() and not (alike and any(actor.replaced for actor in self.actors)):
                return True
        return False

    def _go_on(self) -> bool:
        """Let one more event come: who stands by with another state than the leader takes over the next it saves."""
        self.writers[0].left += 1
        return self._wait_until_settled(alike=True)

    def _is_settled(self) -> bool:
        if not (all(p.settled for p in self.producers) and all(w.settled for w in self.writers)):
            return False
        stream = self.world.keyspace.value(self.world.keys.log, Stream)
        last = b"0-0" if stream is None else stream.state().last_id
        leading = [actor.reached for actor in self.actors if actor.leads]
        if leading != [last] or any(actor.offset is None for actor in self.actors):
            return False
        one, other = (actor.position for actor in self.actors)
        return one == other

    def _judge(self, settled: bool) -> None:
        verdict, truth = self.verdict, self.truth
        verdict.events = len(truth.attempted)
        verdict.faults.update(self.world.told)
        verdict.faults["seconds"] = (self.world.now_ms - T0_MS) // 1000
        verdict.problems += self.world.violations
        if not settled:
            waiting = [len(producer.disk.batches) for producer in self.producers]
            states = [(actor.leads, actor.offset) for actor in self.actors]
            verdict.problems.append(f"not settled: batches left {waiting}, actors {states}")
        leading = [actor for actor in self.actors if actor.leads and actor.offset is not None]
        if not leading:
            verdict.problems.append("nobody leads")
            return
        found = counted(leading[0].ledger)
        must = truth.accepted if self._server_lost else truth.accepted | truth.by_hand
        verdict.lost = sorted(must - found.keys())
        verdict.twice = sorted(number for number, times in found.items() if times > 1)
        verdict.invented = sorted(found.keys() - truth.attempted)
        ledger = leading[0].ledger
        tokens, events_tokens = (
            ledger.total()["output_tokens"],
            sum(n * times for n, times in found.items()) * OUTPUT_TOKENS,
        )
        if tokens != events_tokens:
            verdict.problems.append(f"{tokens} output tokens in total, {events_tokens} of the events")
        differences = answer(ledger, "books", {}, 0)["differences"]
        if differences:
            verdict.problems.append(f"books do not balance: {differences}")
        if settled and len({state_digest(digests_now(actor.ledger)) for actor in self.actors}) != 1:
            verdict.problems.append("leader and standby differ")
