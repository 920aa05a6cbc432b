"""Measure how many events one actor process applies per second, and what a question costs.

The actor is a process of its own on a real server. It is stopped (SIGSTOP) while a backlog is
written, then let go; the time ends with the answer to a question that may only be answered after
the last entry of the backlog. So the figure is the actor's alone: read, decode, count, answer.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import statistics
import threading
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import msgpack

from token_actor.core.usage import UNPRICED, Event, series_key
from token_actor.embedded import EmbeddedServer
from token_actor.service import TokenClient, actor_settings, connector_of, run_actor
from token_actor.transport.ports import Append
from token_actor.wire.batches import encode_batch
from token_actor.wire.keys import Keys
from token_actor.wire.messages import ANSWER_FIELD, Answer, Question

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from token_actor.transport.ports import Connection

LEASE_MS = 120_000  # longer than the actor is ever stopped
ENTRIES_PER_WRITE = 500
NOW_MS = time.time_ns() // 1_000_000


def batches(*, events: int, size: int, series: int, ids: bool) -> Iterator[Append]:
    """Yield a backlog of batches, each of a few of ``series`` series, as one producer makes them."""
    rng = random.Random(1)
    keys = [series_key(None, None, f"user{i % 50}", f"agent{i % 200}", f"session{i}", "p", "m") for i in range(series)]
    producer = uuid.uuid4().bytes
    for start in range(0, events, size):
        few = rng.choices(keys, k=4)
        yield Append(
            key=Keys("bench").log,
            fields=[
                b"b",
                encode_batch(
                    [_event(rng, few[i % 4], f"msg_{start + i}" if ids else None) for i in range(size)],
                    producer=producer,
                    epoch=0,
                    first_seq=start,
                ),
            ],
        )


def _event(rng: random.Random, key: str, message_id: str | None) -> Event:
    counts = (rng.randint(100, 60_000), rng.randint(1, 2_000), rng.choice((0, 0, 3_000)), 0, 0)
    return Event(key, *counts, 0, UNPRICED, NOW_MS, message_id)


def singles(*, events: int, series: int) -> Iterator[Append]:
    """Yield a backlog of single events, one entry each, with message ids."""
    for i in range(events):
        fields = {
            "agent": f"agent{i % 200}",
            "session": f"session{i % series}",
            "model": "m",
            "input_tokens": 1_000 + i % 77,
            "output_tokens": 30,
            "message_id": f"one_{i}",
        }
        yield Append(key=Keys("bench").log, fields=[b"e", msgpack.packb(fields)])


class Actor:
    """Run an actor in a process of its own."""

    def __init__(self, url: str) -> None:
        """Start it, and wait until it answers."""
        self._process = multiprocessing.get_context("fork").Process(target=_serve, args=(url,))
        self._process.start()
        with TokenClient(url, namespace="bench", timeout_s=10) as client:
            client.status()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def stop(self) -> None:
        """End it without ceremony."""
        self._process.kill()
        self._process.join()


def _serve(url: str) -> None:
    settings = replace(actor_settings("bench"), lease_ms=LEASE_MS)
    run_actor(connector_of(url), settings, threading.Event())


def apply_rate(appends: Iterator[Append], events: int) -> float:
    """Return the events per second at which an actor applies a backlog."""
    with EmbeddedServer() as server:
        actor = Actor(server.url)
        connection = connector_of(server.url).connect()
        try:
            actor.signal(signal.SIGSTOP)
            last = _write_all(connection, list(appends))
            started = time.perf_counter()
            actor.signal(signal.SIGCONT)
            counted = _events_after(connection, last)
            seconds = time.perf_counter() - started
        finally:
            connection.close()
            actor.stop()
        assert counted == events, f"{counted} of {events} were counted"
        return events / seconds


def _write_all(connection: Connection, appends: Sequence[Append]) -> bytes:
    last = b""
    for start in range(0, len(appends), ENTRIES_PER_WRITE):
        last = connection.write(appends[start : start + ENTRIES_PER_WRITE])[-1]  # type: ignore[assignment]
    return last


def _events_after(connection: Connection, last: bytes) -> int:
    """Return how many events were counted once the entry ``last`` has been folded."""
    keys = Keys("bench")
    question = Question(request_id="1", client="bench", kind="status", after=last)
    append = Append(key=keys.ask, fields=[b"q", question.encode()])
    _, entries = connection.exchange(append, inbox=keys.inbox("bench"), after=b"0-0", block_ms=120_000)
    fields = entries[-1][1]
    assert fields[0] == ANSWER_FIELD, "an inbox holds answers"
    result = Answer.decode(fields[1]).result
    assert result is not None, "a status is always answered"
    return int(result["events"])


def question_latency(rounds: int) -> dict[str, float]:
    """Return the median and 99th percentile of a question in microseconds, and of a bare PING."""
    with EmbeddedServer() as server:
        actor = Actor(server.url)
        try:
            with TokenClient(server.url, namespace="bench", session="s") as client:
                client.record(input_tokens=10)
                client.flush()
                asked = [_timed(lambda: client.check_rate_limit(60, 100, session="s")) for _ in range(rounds)]
            connection = connector_of(server.url).connect()
            pinged = [_timed(lambda: connection.get(b"nothing")) for _ in range(rounds)]
            connection.close()
        finally:
            actor.stop()
    return {
        "question_p50_us": statistics.median(asked),
        "question_p99_us": statistics.quantiles(asked, n=100)[98],
        "get_p50_us": statistics.median(pinged),
        "question_per_get": statistics.median(asked) / statistics.median(pinged),
    }


def _timed(call: object) -> float:
    started = time.perf_counter()
    call()  # type: ignore[operator]
    return (time.perf_counter() - started) * 1e6


def measure(scale: float = 1.0) -> dict[str, float]:
    """Return every figure of this file; ``scale`` makes the backlogs shorter or longer."""
    many, few = int(800_000 * scale) // 500 * 500, int(300_000 * scale)
    return {
        "batches_of_500_per_s": apply_rate(batches(events=many, size=500, series=200, ids=False), many),
        "batches_of_100_per_s": apply_rate(batches(events=many, size=100, series=200, ids=False), many),
        "batches_of_100_with_ids_per_s": apply_rate(batches(events=many, size=100, series=200, ids=True), many),
        "batches_of_100_over_100000_series_per_s": apply_rate(
            batches(events=many, size=100, series=100_000, ids=False), many
        ),
        "batches_of_10_per_s": apply_rate(batches(events=few, size=10, series=200, ids=False), few),
        "single_entries_with_ids_per_s": apply_rate(singles(events=few, series=200), few),
        **question_latency(2_000),
    }
