"""A producer in a process of its own: records numbered events, and writes down what it tried and what it was promised.

Started again on the same file it goes on behind the last event it tried. With ``message_ids`` it
first records what it tried and was not promised once more, under the same ids.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.fault.planted import ENVIRONMENT, planted
from tests.fault.truth import Journal, Truth, agent_of, names, numbers
from token_actor.cli.logs import start_logging
from token_actor.errors import ActorUnavailable, BufferFull
from token_actor.service import TokenClient

if TYPE_CHECKING:
    from collections.abc import Mapping

FLUSH_S: Final = 1.0  # per attempt; how soon a stop is noticed while the log is away
LAST_FLUSH_S: Final = 60.0  # after a stop: faults are over by then
QUIET_MS: Final = 60_000  # a signal ends the wait
UNPROMISED: Final = 3  # exit code: the log stayed away


class Producer:
    """Record chunks of events at a pace."""

    def __init__(self, spec: Mapping[str, Any], client: TokenClient) -> None:
        """``spec``: ``number``, ``journal``, ``chunk``, ``every_ms``, ``events_max``, ``message_ids``, ``promise``.

        Events are promised once the log has them; with the promise ``spool`` once the disk has them.
        """
        self._number: int = spec["number"]
        self._message_ids: bool = spec.get("message_ids", False)
        self._path = Path(spec["journal"])
        self._journal = Journal(self._path)
        self._client = client
        self._promised = self._saved if spec.get("promise") == "spool" else self._flush
        self._quiet = False
        self._stopped = False

    def run(self, *, chunk: int, every_ms: float, events_max: int) -> int:
        """Go on until SIGTERM; SIGUSR1, or enough events, end the recording only. Return the exit code."""
        truth = Truth.read(self._number, self._path)
        if self._message_ids:
            self._repeat(truth)
        k = truth.last
        while k < events_max and not self._quiet:
            first, k = k + 1, min(k + chunk, events_max)
            at_ms = time.time_ns() // 1_000_000
            self._journal.attempts(first, k, at_ms)
            for event in range(first, k + 1):
                self._record(event, at_ms)
            if self._promised(FLUSH_S):
                self._journal.accepted(first, k)
            self._pause(every_ms)
        if not self._flush(LAST_FLUSH_S):
            return UNPROMISED
        while not self._stopped:  # its client is still there, and sends again what the log has lost
            self._pause(QUIET_MS)
        since = 1 if self._message_ids else truth.last + 1  # what a killed one left behind is promised by its ids alone
        if k >= since:
            self._journal.accepted(since, k)
        return 0

    def _repeat(self, truth: Truth) -> None:
        for event in np.flatnonzero((truth.attempted > 0) & ~truth.accepted).tolist():
            self._record(event, int(truth.at_ms[event]))

    def _record(self, event: int, at_ms: int) -> None:
        dimensions: Any = names(self._number, event)
        tokens = numbers(self._number, event)
        message_id = f"{agent_of(self._number)}/{event}" if self._message_ids else None
        while True:
            try:
                self._client.record(
                    *tokens[:3],
                    reasoning_tokens=tokens.reasoning_tokens,
                    timestamp=at_ms / 1000,
                    message_id=message_id,
                    **dimensions,
                )
            except BufferFull:
                self._flush(FLUSH_S)
            else:
                return

    def _flush(self, timeout_s: float) -> bool:
        """Wait until the log has it; go on trying until told to stop."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._client.flush(FLUSH_S)
            except ActorUnavailable:
                self._pause(0)
                if self._quiet and time.monotonic() > deadline:
                    return False
            else:
                return True

    def _saved(self, timeout_s: float) -> bool:
        """Wait until the spool has it, wherever the log is; the client says so to nobody but itself."""
        sender = self._client._engine._sender
        saved = False
        while not saved and not self._quiet:
            with sender._changed:
                saved = sender._changed.wait_for(lambda: sender._delivery.saved >= sender._recorded, timeout_s)
            self._pause(0)
        return saved

    def _pause(self, every_ms: float) -> None:
        """Wait for a while, or for the request to stop."""
        request = signal.sigtimedwait([signal.SIGTERM, signal.SIGUSR1], every_ms / 1000)
        if request is not None:
            self._quiet = True
            self._stopped = request.si_signo == signal.SIGTERM


def main(spec: Mapping[str, Any]) -> int:
    """Produce. ``spec``: ``url``, ``namespace``, ``client`` (options of TokenClient), and those of ``Producer``.

    SIGTERM is blocked by the fork server, and taken in ``_pause``, where nothing is under way.
    """
    start_logging(as_json=True)
    with planted(os.environ.get(ENVIRONMENT)):
        client = TokenClient(spec["url"], namespace=spec["namespace"], **spec.get("client", {}))
        producer = Producer(spec, client)
        code = producer.run(
            chunk=spec.get("chunk", 20), every_ms=spec.get("every_ms", 5), events_max=spec.get("events_max", 10**9)
        )
        if code == 0:
            client.close()
        return code
