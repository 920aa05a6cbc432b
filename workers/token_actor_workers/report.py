"""Report: what every worker owes whoever started it.

A worker prints JSON lines on stdout. The last one is what it has sent, added up here in plain ints
and apart from the client, so that it can be held against what the actor counted:
``{"sent": {"events": ..., "input_tokens": ..., ...}}``.

A *supervised* worker first prints ``{"ready": {...}}`` and waits for a line of JSON on stdin, which
is its order to begin; it ends when stdin does, so it never outlives who started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from decimal import Decimal
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from token_actor import BufferFull, LogUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from token_actor import TokenClient

COUNTS: Final = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
NANO_PER_USD: Final = 10**9
FLUSH_SLICE_S: Final = 0.5  # how soon a stop is noticed while the log is away
STOPPED_FLUSH_S: Final = 4.0  # after a stop; whoever asks for one kills after 5 seconds


class Truth:
    """Add up what a worker has sent."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.sums = dict.fromkeys(("events", *COUNTS, "cost_nanousd", "unpriced"), 0)

    def add(self, usage: Mapping[str, Any]) -> None:
        """Count the usage of one call, given as the keywords of ``record``."""
        self.sums["events"] += 1
        for name in COUNTS:
            self.sums[name] += usage.get(name, 0)
        cost = usage.get("cost_usd")
        if cost is None:
            self.sums["unpriced"] += 1
        else:
            self.sums["cost_nanousd"] += int((Decimal(str(cost)) * NANO_PER_USD).to_integral_value())


class Stop:
    """Know whether to stop, by SIGTERM or SIGINT.

    A queue and no ``threading.Event``: a signal's handler may not take a lock that the interrupted
    thread holds.
    """

    def __init__(self) -> None:
        """Take over both signals."""
        self.asked = False
        self._wake: SimpleQueue[None] = SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.ask())

    def ask(self) -> None:
        """Ask to stop; from any thread."""
        self.asked = True
        self._wake.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait up to ``seconds``, no longer than until asked to stop; tell whether that is so."""
        if seconds > 0 and not self.asked:
            try:
                self._wake.get(timeout=seconds)
            except Empty:
                return self.asked
        return self.asked


def say(kind: str, content: Mapping[str, Any]) -> None:
    """Print one line for whoever started this worker."""
    print(json.dumps({kind: content}), flush=True)  # noqa: T201 - stdout is how workers report


def await_order(ready: Mapping[str, Any], stop: Stop) -> dict[str, Any] | None:
    """Say that this worker is ready, and wait for the order to begin; ``None`` means the end instead."""
    say("ready", ready)
    orders: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(orders, stop), name="orders", daemon=True).start()
    while not stop.asked:
        try:
            line = orders.get(timeout=FLUSH_SLICE_S)
        except Empty:
            continue
        order: dict[str, Any] = json.loads(line)
        return order
    return None


def _listen(orders: SimpleQueue[str], stop: Stop) -> None:
    """Pass on the first line of stdin, and ask to stop at its end.

    Reads the descriptor itself: the lock of ``sys.stdin`` held by a daemon thread is fatal at exit.
    """
    waiting: bytes | None = b""
    while more := os.read(sys.stdin.fileno(), 4096):
        if waiting is not None:
            waiting += more
            if b"\n" in waiting:
                orders.put(waiting.decode())
                waiting = None
    stop.ask()


def record(client: TokenClient, usage: Mapping[str, Any], stop: Stop) -> bool:
    """Record one call, waiting while too much waits for the log; tell whether it was recorded.

    It was not when a stop came in between.
    """
    while not stop.asked:
        try:
            client.record(**usage)
        except BufferFull:
            _flush_once(client)
        else:
            return True
    return False


def _flush_once(client: TokenClient) -> bool:
    try:
        client.flush(timeout_s=FLUSH_SLICE_S)
    except LogUnavailable:
        return False
    return True


def finish(client: TokenClient, truth: Truth, stop: Stop, **more: object) -> int:
    """Bring everything to the log, say what was sent, and return the exit code.

    Waits for the log as long as it takes, after a stop 4 seconds. What is not in the log by then is
    said as ``pending``, and the code is 1.
    """
    deadline = None
    while not _flush_once(client):
        now = time.monotonic()
        if stop.asked and deadline is None:
            deadline = now + STOPPED_FLUSH_S
        if deadline is not None and now >= deadline:
            break
    pending = client.pending
    say("sent", {**truth.sums, "pending": pending, **more})
    if pending:
        print(f"{pending} events could not be brought to the log and are lost", file=sys.stderr)  # noqa: T201
    try:
        client.close(timeout_s=FLUSH_SLICE_S)
    except LogUnavailable:
        return 1
    return 1 if pending else 0
