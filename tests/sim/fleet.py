"""Who is in a simulated fleet: actors, producers with a spool, and somebody who appends JSON by hand."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.sim.world import Away, Link
from token_actor.actor.loop import Actor
from token_actor.actor.settings import ActorSettings, Clock
from token_actor.client.outbox import Outbox
from token_actor.client.recording import make_event
from token_actor.client.store import MemoryDisk
from token_actor.core.ledger import Bounds
from token_actor.errors import ServerRefused, SpoolError
from token_actor.transport.ports import FIRST, Append
from token_actor.wire.messages import ANSWER_FIELD, QUESTION_FIELD, Answer, Question

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.sim.world import Player, World
    from token_actor.actor.manifests import Position
    from token_actor.client.watermark import Watermark
    from token_actor.core.ledger import Ledger

BOUNDS = Bounds(recent_events_max=100_000)
OUTPUT_TOKENS = 1_000_003  # times the number of an event: sums that only integers keep exactly


class Truth:
    """What really happened, written down outside of the system: every event has a number, its input tokens."""

    def __init__(self) -> None:
        self.attempted: set[int] = set()
        self.accepted: set[int] = set()
        self.by_hand: set[int] = set()  # acknowledged, but in no spool: only as safe as the server

    def new(self, count: int) -> list[int]:
        """Return the numbers of events that are about to be recorded."""
        first = len(self.attempted) + 1
        numbers = list(range(first, first + count))
        self.attempted.update(numbers)
        return numbers


class ActorPlayer:
    """An actor, and the state a test may look at."""

    def __init__(self, world: World, name: str, **settings: Any) -> None:
        self.actor: Actor | None = None
        self.settings = ActorSettings(
            keys=world.keys,
            holder=name,
            bounds=BOUNDS,
            **{"snapshot_every_ms": 1_500, "snapshot_every_entries": 40, "accept_data_loss": True, **settings},
        )
        self.player = world.add(name, self._run)
        self._world = world

    def _run(self, player: Player) -> None:
        # Each actor's clock has an offset of its own; the even one counts from its start.
        off_ms = random.Random(player.name).randint(-900, 900)
        started_ms = self._world.now_ms
        clock = Clock(lambda: self._world.now_ms + off_ms, lambda: self._world.now_ms - started_ms, player.wait)
        self.actor = Actor(Link(player), self.settings, clock)
        self.actor.run()

    @property
    def leads(self) -> bool:
        """Tell whether it believes that it leads."""
        return self.actor is not None and bool(self.actor._leadership.epoch)

    @property
    def offset(self) -> bytes | None:
        """Return up to where it has folded the log; ``None`` when it has no state."""
        follower = None if self.actor is None else self.actor._follower
        return follower.position.offset if follower is not None and follower.recovered else None

    @property
    def reached(self) -> bytes | None:
        """Return up to where nothing is left to fold, also where the rest was removed; ``None`` without a state."""
        follower = None if self.actor is None else self.actor._follower
        return follower.reached if follower is not None and follower.recovered else None

    @property
    def replaced(self) -> bool:
        """Tell whether its log was replaced since it, or the leader, saved a state; it has a state."""
        assert self.actor is not None
        return self.actor._follower.replaced

    @property
    def position(self) -> Position:
        """Return the whole of its position; it has a state."""
        assert self.actor is not None
        return self.actor._follower.position

    @property
    def ledger(self) -> Ledger:
        """Return its ledger."""
        assert self.actor is not None
        return self.actor._follower.ledger


def counted(ledger: Ledger) -> Counter[int]:
    """Return the numbers of the events in a ledger, and how often each was counted."""
    recent = ledger.recent
    places = list(range(recent.first_place, recent.next_place))
    numbers = [int(recent.column("counts", _array([place]))[0, 0]) for place in places]
    return Counter(numbers)


def _array(places: list[int]) -> Any:
    import numpy as np

    return np.array(places, dtype=np.int64)


class SpoolProducer:
    """A producer whose spool is on a simulated disk; every life of it opens the disk anew."""

    def __init__(self, world: World, truth: Truth, name: str, events: int) -> None:
        self.disk = MemoryDisk()
        self.left = events
        self.lives = 0
        self.outbox: Outbox | None = None
        self._world = world
        self._truth = truth
        self._name = name
        self._unsaved: list[int] = []
        self.player = self._begin()

    def _begin(self) -> Player:
        self.lives += 1
        return self._world.add(f"{self._name}.{self.lives}", self._run)

    def restart(self) -> None:
        """Kill it with -9, and let the next one begin on the same disk."""
        self._world.remove(self.player)
        self._unsaved = []
        self.player = self._begin()

    @property
    def settled(self) -> bool:
        """Tell whether everything it recorded is safe, and nothing is left to record."""
        return self.left == 0 and not self._unsaved and not self.disk.batches

    def _run(self, player: Player) -> None:
        world, link, chance = self._world, Link(player), self._world.random
        store = self.disk.open(random.Random(player.name).randbytes(16))
        outbox = self.outbox = Outbox(
            world.keys.namespace, producer=store.producer, batch_events_max=5, store=store, store_bytes_max=1 << 20
        )
        outbox.adopt()
        polls = Polls(world, link, player.name.replace(".", "-"))
        while True:
            if self.left and chance.random() < 0.6:
                self._record(outbox, chance.randint(1, 7))
            self._save(outbox)
            try:
                for lane in list(outbox.lanes.values()):
                    for outcome in link.write(outbox.appends(lane)):
                        if isinstance(outcome, ServerRefused):
                            break
                        outbox.acknowledged(lane, outcome)
                if chance.random() < 0.3 and outbox.is_kept:
                    for asked, answer in polls.ask(outbox.questions()):
                        outbox.answered(asked, answer)
                    self._save(outbox)
            except Away:
                player.wait(0.05)
            player.wait(chance.choice((0, 0.01, 0.2)))

    def _record(self, outbox: Outbox, count: int) -> None:
        numbers = self._truth.new(min(count, self.left))
        self.left -= len(numbers)
        names = {"agent": self._name, "model": "m"}
        events = [make_event(names, input_tokens=n, output_tokens=n * OUTPUT_TOKENS) for n in numbers]
        outbox.add(events, 1)
        self._unsaved += numbers

    def _save(self, outbox: Outbox) -> None:
        if outbox.has_notes:
            try:
                saved = outbox.save()
            except SpoolError:
                return
            if saved:
                self._truth.accepted.update(self._unsaved)
                self._unsaved = []


class Polls:
    """Ask for watermarks, and take the answers whenever they come."""

    def __init__(self, world: World, link: Link, client: str) -> None:
        self._keys = world.keys
        self._link = link
        self._client = client
        self._asked: dict[str, Watermark] = {}
        self._after = FIRST
        self._count = 0

    def ask(self, questions: list[Watermark]) -> list[tuple[Watermark, Mapping[str, Any]]]:
        """Ask, and return what earlier questions were answered."""
        inbox = self._keys.inbox(self._client)
        for question in questions:
            self._count += 1
            self._asked[str(self._count)] = question
            message = Question(
                request_id=str(self._count),
                client=self._client,
                kind="producer",
                arguments={"producer": question.producer, "epochs": question.epochs},
            )
            self._link.write([Append(key=self._keys.ask, fields=[QUESTION_FIELD, message.encode()], length_max=1_000)])
        try:
            entries = self._link.read({inbox: self._after}, count=100, block_ms=50).get(inbox, [])
        except Away:
            self._after = FIRST
            raise
        if not entries:
            self._after = FIRST  # a server whose clock went back counts from below what was read
        answers = []
        for entry_id, fields in entries:
            assert fields[0] == ANSWER_FIELD
            self._after = entry_id
            answer = Answer.decode(fields[1])
            asked = self._asked.pop(answer.request_id, None)
            if asked is not None and answer.result is not None:
                answers.append((asked, answer.result))
        return answers


class HandWriter:
    """Somebody who appends JSON with message ids, and repeats what was not acknowledged."""

    def __init__(self, world: World, truth: Truth, name: str, events: int) -> None:
        self.left = events
        self._world = world
        self._truth = truth
        self._name = name
        self.player = world.add(name, self._run)

    @property
    def settled(self) -> bool:
        """Tell whether everything is written."""
        return self.left == 0

    def _run(self, player: Player) -> None:
        link = Link(player)
        while True:
            if self.left:
                (number,) = self._truth.new(1)
                tokens = {"input_tokens": number, "output_tokens": number * OUTPUT_TOKENS}
                event = {"agent": self._name, "model": "m", "message_id": f"m{number}", **tokens}
                entry = Append(key=self._world.keys.log, fields=[b"j", json.dumps(event).encode()])
                while not self._append(link, entry):
                    player.wait(0.05)
                self._truth.by_hand.add(number)
                self.left -= 1
            player.wait(0.1)

    @staticmethod
    def _append(link: Link, entry: Append) -> bool:
        """Try once; tell whether the server said that it has it."""
        try:
            (outcome,) = link.write([entry])
        except Away:
            return False
        return isinstance(outcome, bytes)
