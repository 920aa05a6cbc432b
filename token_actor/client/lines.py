"""Lines: a connection with an inbox of its own, on which one question at a time is asked.

The caller's own thread sends the question and the blocking read of the inbox in one write, so an
answer costs one round trip and no hand-over between threads.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from token_actor.client.drawing import Hints
from token_actor.core.commands import reservation_id
from token_actor.errors import ClientBusy, ClosedError, ServerRefused, ServerUnavailable
from token_actor.transport.ports import FIRST
from token_actor.wire.messages import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from token_actor.client.deadline import Deadline
    from token_actor.client.drawing import Call
    from token_actor.transport.ports import Append, Connection, Connector, Entry
    from token_actor.wire.keys import Keys

ASK_AGAIN_MS: Final = 2_000  # a question that an actor took with it is asked again; it answers twice at the worst
WAITING_LINES_MAX: Final = 256  # reserves of one client that wait for quota at once, each in a thread of its own
RETRY_S: Final = 0.05  # after a lost connection


@dataclass(slots=True)
class _Inbox:
    """Hold up to where one partition's inbox has been read, and the newest epoch that has answered there."""

    key: bytes
    after: bytes = FIRST
    epoch: int = 0

    def pick(self, entries: list[Entry], request_id: str) -> Answer | None:
        """Return the answer to the question under way; those to earlier ones came too late."""
        found = None
        for entry_id, fields in entries:
            self.after = entry_id
            answer = Answer.decode(fields[1])
            if answer.request_id == request_id and answer.epoch >= self.epoch:
                self.epoch = answer.epoch
                found = answer
        return found


class Request(NamedTuple):
    """Say what is asked.

    ``make`` makes its entry of the keys of a partition, a client, a request id, and the number of the escrow that its
    ``call`` is taken from, if it is one that may be. ``take_back`` makes what undoes it of the keys, the client, its
    request id, and another one.
    """

    make: Callable[..., Append]
    take_back: Callable[[Keys, str, str, str], Append] | None = None
    call: Call | None = None


class Line:
    """Ask one question at a time, as the client ``name``."""

    def __init__(self, connection: Connection, name: str) -> None:
        """Prepare; it connects with the first question."""
        self.name = name
        self.connection = connection
        self._asked = 0
        self.hints = Hints()
        self._inboxes: dict[bytes, _Inbox] = {}  # ids and epochs of one partition mean nothing in another

    def ask(self, request: Request, keys: Keys, deadline: Deadline) -> Mapping[str, Any] | None:
        """Send a request under a new id, and return the answer; ``None`` at the deadline.

        Its call is taken from what the actor has set aside for such calls, if there is anything; else it is asked for.
        What is to be taken back at the deadline is asked for then, and nobody waits for what comes of it. Raises
        what the actor says is wrong with the request, ``ServerRefused``, and ``ServerUnavailable`` when the server
        is still away at the deadline.
        """
        request_id = self._new_id()
        call, appended, asked = request.call, False, False
        hint = None if call is None else self.hints.find(self.connection, keys, call)
        if call is not None and hint is not None and deadline.left_s > 0:
            append = request.make(keys, self.name, request_id, hint.number)
            reservation = reservation_id(self.name, request_id)
            try:
                answer = self.hints.draw(self.connection, keys, call, hint, append, reservation)
                appended = asked = True
            except ServerUnavailable:  # nobody knows: it is asked for like anything else, under the same id
                answer, asked = None, True
                self.hints.forget()
            except ServerRefused:  # whatever it refuses, it was not appended
                answer = None
                self.hints.rest()
            if answer is not None:
                return answer
        return self._ask(request, keys, request_id, deadline, appended=appended, asked=asked)

    def _ask(
        self, request: Request, keys: Keys, request_id: str, deadline: Deadline, *, appended: bool, asked: bool
    ) -> Mapping[str, Any] | None:
        """Ask until there is an answer.

        ``appended`` says that the log has it already, ``asked`` that it may have.
        """
        append = request.make(keys, self.name, request_id)
        inbox = keys.inbox(self.name)
        silent = 0
        while True:
            try:
                left_s = deadline.left_s
                if left_s <= 0:
                    if (silent or asked) and request.take_back is not None:
                        self.connection.write([request.take_back(keys, self.name, request_id, self._new_id())])
                    return None
                read_up_to = self._inboxes.setdefault(inbox, _Inbox(inbox))
                answer = self._exchange(None if appended else append, request_id, read_up_to, left_s)
                if answer is not None:
                    call = request.call
                    return answer if call is None else self.hints.learn(self.connection, keys, call, answer)
                appended = False
                silent += 1
                read_up_to.after = FIRST  # a server that lost its keys, and whose clock is behind, counts from below
                if silent > 1:
                    self._inboxes.clear()  # and one whose actors are new to it counts its epochs anew
            except ServerUnavailable:
                appended = False
                self.hints.forget()
                self._inboxes.clear()  # a server that lost its memory counts from the beginning
                if deadline.left_s <= RETRY_S:
                    raise
                time.sleep(RETRY_S)

    def _new_id(self) -> str:
        self._asked += 1
        return str(self._asked)

    def _exchange(
        self, append: Append | None, request_id: str, inbox: _Inbox, left_s: float
    ) -> Mapping[str, Any] | None:
        """Ask once, unless that was done already, and wait for the answer for a while."""
        until = time.monotonic() + min(left_s, ASK_AGAIN_MS / 1000)
        block_ms = max(1, int(min(left_s * 1000, ASK_AGAIN_MS)))
        entries: list[Entry] = []
        if append is not None:
            _, entries = self.connection.exchange(append, inbox=inbox.key, after=inbox.after, block_ms=block_ms)
        while True:
            answer = inbox.pick(entries, request_id)
            if answer is not None:
                if answer.problem is not None:
                    raise answer.problem
                return answer.result
            block_ms = int((until - time.monotonic()) * 1000)
            if block_ms <= 0:
                return None
            entries = self.connection.read({inbox.key: inbox.after}, count=100, block_ms=block_ms).get(inbox.key, [])

    def close(self) -> None:
        """Let go of the connection."""
        self.connection.close()


class _Turn:
    """Be somebody's place in the queue for a line."""

    def __init__(self) -> None:
        self.line: Line | None = None
        self.come = threading.Event()


class LinePool:
    """Keep the lines of one client; at most ``lines_max``, made when they are needed, lent first come first served."""

    def __init__(
        self,
        connector: Connector,
        *,
        client: str,
        lines_max: int,
        what: str = "lines to the actor",
        advice: str = "raise lines_max or ask less often",
    ) -> None:
        """Start with none; ``what`` and ``advice`` are for who finds them all busy."""
        self._connector = connector
        self._client = client
        self._what, self._advice = what, advice
        self._lines_max = lines_max
        self._lock = threading.Lock()
        self._lines: list[Line] = []
        self._free: list[Line] = []  # none while somebody queues
        self._queue: deque[_Turn] = deque()
        self._closed = False

    @contextmanager
    def line(self, deadline: Deadline) -> Iterator[Line]:
        """Lend a line for a while; see ``borrow``."""
        line = self.borrow(deadline)
        try:
            yield line
        finally:
            self.give_back(line)

    def borrow(self, deadline: Deadline) -> Line:
        """Lend a line until it is given back; waits for one. Raises ``ClientBusy`` at the deadline, ``ClosedError``."""
        lent = self._borrow()
        return self._wait_for(lent, deadline) if isinstance(lent, _Turn) else lent

    def _borrow(self) -> Line | _Turn:
        """Return a line, or a place in the queue for one."""
        with self._lock:
            if self._closed:
                raise ClosedError("the client is closed")
            if self._free:
                return self._free.pop()
            if len(self._lines) == self._lines_max:
                self._queue.append(_Turn())
                return self._queue[-1]
            line = Line(self._connector.connect(), f"{self._client}-{len(self._lines) + 1}")
            self._lines.append(line)
            return line

    def last_drawn(self, partition: int) -> list[bytes]:
        """Return the entries of the last calls that the lines have taken (see ``Hints``)."""
        found = [line.hints.last_drawn(partition) for line in list(self._lines)]
        return [entry_id for entry_id in found if entry_id is not None]

    def _wait_for(self, turn: _Turn, deadline: Deadline) -> Line:
        turn.come.wait(deadline.left_s)
        with self._lock:
            if turn.line is not None:
                return turn.line
            if self._closed:
                raise ClosedError("the client is closed")
            self._queue.remove(turn)
            message = f"all {self._lines_max} {self._what} are busy; {self._advice}"
            raise ClientBusy(message, timeout_s=deadline.timeout_s)

    def give_back(self, line: Line) -> None:
        """Take a line back, and lend it to whoever queues."""
        with self._lock:
            if self._closed:
                line.close()
            elif self._queue:
                turn = self._queue.popleft()
                turn.line = line
                turn.come.set()
            else:
                self._free.append(line)

    def close(self) -> None:
        """Close the lines: those that are free now, the others when their question is answered."""
        with self._lock:
            self._closed = True
            for line in self._free:
                line.close()
            for turn in self._queue:
                turn.come.set()
            self._free.clear()
            self._queue.clear()
