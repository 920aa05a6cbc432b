"""Three actors, a server and a sender, and whatever may befall them in a random order: everything counts once."""

from __future__ import annotations

import json
import os
import random
from contextlib import suppress

import pytest

from tests.actor.conftest import LEASE_MS, Stage
from token_actor.client.recording import make_event
from token_actor.errors import LeadershipLost, ServerUnavailable, SnapshotError
from token_actor.transport.memory import MemoryServer
from token_actor.transport.ports import Delete
from token_actor.wire.batches import encode_batch

STEPS = 250
SEEDS = 60 * int(os.environ.get("MORE_EXAMPLES", "1"))
CALLS = ["read", "write", "write_if", "range", "stream_state", "get", "expires_at_ms"]


class World:
    """Everything that was ever sent is kept here, as a spool would, and sent again at the end."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock_ms = 1_000_000_000_000
        self.stage = Stage(MemoryServer(clock_ms=lambda: self.clock_ms), "world")
        self.sent: list[list[bytes]] = []
        self.players = [self.new_player(n) for n in range(3)]
        self.made = 3

    def new_player(self, number):
        player = self.stage.player(f"p{number}", snapshot_every_ms=self.random.choice([50, 60_000]))
        player.script.now_ms = self.clock_ms
        return player

    def send(self):
        number = len(self.sent)
        kind = self.random.randrange(4)
        if kind == 0:
            fields = [b"j", json.dumps({"input_tokens": 1, "message_id": f"m{number}"}).encode()]
        elif kind == 1:
            fields = [b"j", b"broken %d" % number]
        else:
            data = encode_batch([make_event({}, input_tokens=1)], producer=bytes(16), epoch=0, first_seq=number)
            fields = [b"b", data]
        self.sent.append(fields)
        self.stage.append(*fields)

    def pass_ms(self, milliseconds):
        self.clock_ms += milliseconds
        for player in self.players:
            player.script.advance(milliseconds)

    def step(self):
        player = self.random.choice(self.players)
        with suppress(ServerUnavailable, LeadershipLost, SnapshotError):
            player.step()

    def interrupt(self):
        player = self.random.choice(self.players)
        player.recorder.fail[self.random.choice(CALLS)] = [ServerUnavailable("gone")]

    def kill(self):
        self.players[self.random.randrange(3)] = self.new_player(self.made)
        self.made += 1

    def stop(self):
        place = self.random.randrange(3)
        with suppress(ServerUnavailable, SnapshotError):
            self.players[place].stop()
        self.players[place] = self.new_player(self.made)
        self.made += 1

    def lose_the_end(self):
        entries = self.stage.log_entries()
        newest_ms = max((int(entry_id.partition(b"-")[0]) for entry_id, _ in entries), default=0)
        self.clock_ms = max(self.clock_ms, newest_ms) + 10  # a clock that is behind would give lost ids once more
        self.stage.replace_log(entries[: self.random.randrange(len(entries) + 1)])

    def lose_the_log(self):
        self.stage.connection.write([Delete(keys=[self.stage.keys.log])])

    def jump(self):
        self.clock_ms += self.random.choice([-5_000, 5_000, LEASE_MS * 10])

    def play(self):
        often = [self.send, self.step, self.step, self.step, lambda: self.pass_ms(self.random.choice([1, 30, 300]))]
        seldom = [self.interrupt, self.interrupt, self.kill, self.stop, self.jump, self.lose_the_end, self.lose_the_log]
        for _ in range(STEPS):
            self.random.choice(often)() if self.random.random() < 0.9 else self.random.choice(seldom)()

    def settle(self):
        """Let nothing happen any more until one leads and has folded everything; return it."""
        for player in self.players:
            player.recorder.fail.clear()
        for _ in range(60):
            self.pass_ms(LEASE_MS // 10)
            for player in self.players:
                with suppress(LeadershipLost, ServerUnavailable):  # a lease that vanished is written again
                    player.step()
        (leader,) = [player for player in self.players if player.epoch]
        return leader


@pytest.mark.parametrize("seed", range(SEEDS))
def test_everything_that_is_sent_until_it_is_there_counts_once(seed):
    world = World(seed)
    world.play()
    world.settle()
    for fields in world.sent:
        world.stage.append(*fields)
    leader = world.settle()
    assert leader.requests == sum(not fields[1].startswith(b"broken") for fields in world.sent)
    leader.actor._saving.hurry()  # who stands by goes on with the leader's snapshot, if theirs was another log
    world.settle()
    for player in world.players:
        assert player.state == leader.state
