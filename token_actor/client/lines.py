"""Lines: a connection with an inbox of its own, on which one question at a time is asked.

The caller's own thread sends the question and the blocking read of the inbox in one write, so an
answer costs one round trip and no hand-over between threads.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from token_actor.errors import ActorUnavailable, ClosedError, ServerUnavailable
from token_actor.transport.ports import FIRST, Append
from token_actor.wire.messages import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from token_actor.client.deadline import Deadline
    from token_actor.transport.ports import Connection, Connector, Entry

ASK_AGAIN_MS: Final = 2_000  # a question that an actor took with it is asked again; it answers twice at the worst
RETRY_S: Final = 0.05  # after a lost connection


class Line:
    """Ask one question at a time, as the client ``name``."""

    def __init__(self, connection: Connection, name: str) -> None:
        """Prepare; it connects with the first question."""
        self.name = name
        self.connection = connection
        self._after = FIRST
        self._asked = 0
        self._epoch = 0

    def ask(self, make: Callable[[str], Append], inbox: bytes, deadline: Deadline) -> Mapping[str, Any] | None:
        """Send what ``make`` makes of a new request id, and return the answer; ``None`` at the deadline.

        Raises what the actor says is wrong with the question, ``ServerRefused``, and
        ``ServerUnavailable`` when the server is still away at the deadline.
        """
        self._asked += 1
        request_id = str(self._asked)
        append = make(request_id)
        while True:
            try:
                left_s = deadline.left_s
                if left_s <= 0:
                    return None
                answer = self._exchange(append, request_id, inbox, left_s)
                if answer is not None:
                    return answer
            except ServerUnavailable:
                self._after, self._epoch = FIRST, 0  # a server that lost its memory counts from the beginning
                if deadline.left_s <= RETRY_S:
                    raise
                time.sleep(RETRY_S)

    def _exchange(self, append: Append, request_id: str, inbox: bytes, left_s: float) -> Mapping[str, Any] | None:
        """Ask once, and wait for the answer for a while."""
        until = time.monotonic() + min(left_s, ASK_AGAIN_MS / 1000)
        block_ms = max(1, int(min(left_s * 1000, ASK_AGAIN_MS)))
        _, entries = self.connection.exchange(append, inbox=inbox, after=self._after, block_ms=block_ms)
        while True:
            answer = self._pick(entries, request_id)
            if answer is not None:
                if answer.problem is not None:
                    raise answer.problem
                return answer.result
            block_ms = int((until - time.monotonic()) * 1000)
            if block_ms <= 0:
                return None
            entries = self.connection.read({inbox: self._after}, count=100, block_ms=block_ms).get(inbox, [])

    def _pick(self, entries: list[Entry], request_id: str) -> Answer | None:
        """Return the answer to the question under way; those to earlier ones came too late."""
        found = None
        for entry_id, fields in entries:
            self._after = entry_id
            answer = Answer.decode(fields[1])
            if answer.request_id == request_id and answer.epoch >= self._epoch:
                self._epoch = answer.epoch
                found = answer
        return found

    def close(self) -> None:
        """Let go of the connection."""
        self.connection.close()


class LinePool:
    """Keep the lines of one client; at most ``lines_max``, made when they are needed."""

    def __init__(self, connector: Connector, *, client: str, lines_max: int) -> None:
        """Start with none."""
        self._connector = connector
        self._client = client
        self._free: list[Line] = []
        self._made = 0
        self._closed = False
        self._lines_max = lines_max
        self._changed = threading.Condition()

    @contextmanager
    def line(self, deadline: Deadline) -> Iterator[Line]:
        """Lend a line; waits for one until ``deadline``. Raises ``ActorUnavailable`` at it, ``ClosedError``."""
        line = self._borrow(deadline)
        try:
            yield line
        finally:
            self._give_back(line)

    def _borrow(self, deadline: Deadline) -> Line:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._free or self._made < self._lines_max, deadline.left_s)
            if self._closed:
                raise ClosedError("the client is closed")
            if self._free:
                return self._free.pop()
            if self._made == self._lines_max:
                message = f"all {self._lines_max} lines to the actor are busy; raise lines_max or ask less often"
                raise ActorUnavailable(message, timeout_s=deadline.timeout_s)
            line = Line(self._connector.connect(), f"{self._client}-{self._made + 1}")
            self._made += 1
            return line

    def _give_back(self, line: Line) -> None:
        with self._changed:
            self._free.append(line)
            self._changed.notify()
            if self._closed:
                self._close_free()

    def close(self) -> None:
        """Close the lines: those that are free now, the others when their question is answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._close_free()

    def _close_free(self) -> None:
        while self._free:
            self._free.pop().close()
