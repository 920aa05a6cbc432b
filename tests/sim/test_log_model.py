"""The simulator believes in its log, so that log does what a real server's does: one random trace, on both."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from token_actor.errors import ServerRefused
from token_actor.transport.memory import MemoryServer
from token_actor.transport.ports import Append, Delete, DeleteEntries, Expire, Increment, Put, PutField, TrimBelow
from token_actor.transport.redis import RedisConnector

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_actor.transport.ports import Connection

STEPS = 3_000
PASSED_MS = 3_600_000  # a time to live that no run of this test sees the end of


class Trace:
    """Draw one random command after the other; each is a function of a connection."""

    def __init__(self, seed: int, namespace: str) -> None:
        self.random = random.Random(seed)
        self.streams = [f"{{{namespace}:0}}:{name}".encode() for name in ("log", "ask", "dead")]
        self.strings = [f"{{{namespace}:0}}:{name}".encode() for name in ("leader", "epoch")]
        self.keys = [*self.streams, *self.strings, f"{{{namespace}:0}}:meta".encode()]

    def _id(self) -> bytes:
        return b"%d-%d" % (self.random.randint(0, 40), self.random.randint(0, 3))

    def operation(self) -> Any:
        """Return one change, sometimes of a key of the wrong kind."""
        pick, key = self.random.choice, self.random.choice(self.keys)
        stream = pick(self.streams) if self.random.random() < 0.9 else key
        string = pick(self.strings) if self.random.random() < 0.9 else key
        return pick(
            (
                *[Append(key=stream, fields=[b"b", b"%d" % self.random.randint(0, 9)], entry_id=self._id())] * 4,
                TrimBelow(key=stream, entry_id=self._id()),
                DeleteEntries(key=stream, entry_ids=[self._id(), self._id()]),
                Put(key=string, value=b"%d" % self.random.randint(0, 3), only_if_absent=self.random.random() < 0.3),
                Put(key=string, value=b"x", ttl_ms=PASSED_MS),
                PutField(key=self.keys[-1], field=b"partitions", value=b"%d" % self.random.randint(1, 3)),
                Increment(key=string),
                Expire(key=key, ttl_ms=PASSED_MS),
                Delete(keys=[key]),
            )
        )

    def command(self) -> Callable[[Connection], Any]:
        """Return one command."""
        operations = [self.operation() for _ in range(self.random.randint(1, 3))]
        stream, string, after = self.random.choice(self.streams), self.random.choice(self.strings), self._id()
        held = self.random.choice((None, b"1", b"2", b"x"))
        newest_first = self.random.random() < 0.5
        return self.random.choice(
            (
                lambda c: c.write(operations),
                lambda c: c.write(operations),
                lambda c: c.write_if(string, held, operations),
                lambda c: c.read({stream: after}, count=5),
                lambda c: c.range(stream, start=b"(" + after, count=5, newest_first=newest_first),
                lambda c: c.get(string),
                lambda c: c.get_fields(self.keys[-1]),
                lambda c: c.stream_state(stream),
            )
        )


def outcome_of(command: Callable[[Connection], Any], connection: Connection) -> Any:
    """Return what a command comes to, refusals by their words."""
    try:
        outcome = command(connection)
    except ServerRefused as refused:
        return str(refused)
    if isinstance(outcome, list):
        return [str(each) if isinstance(each, ServerRefused) else each for each in outcome]
    return outcome


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_random_trace_has_the_same_outcomes_on_both(server_url: str, namespace: str, seed: int) -> None:
    trace = Trace(seed, namespace)
    model, real = MemoryServer().connect(), RedisConnector(server_url).connect()
    try:
        for step in range(STEPS):
            command = trace.command()
            assert outcome_of(command, model) == outcome_of(command, real), f"step {step}"
    finally:
        real.close()
