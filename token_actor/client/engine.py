"""The engine behind both faces of the client: one sender, a few lines, and what survives a fork."""

from __future__ import annotations

import codecs
import os
import time
import uuid
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from token_actor.client import sender
from token_actor.client.deadline import Deadline
from token_actor.client.lines import RETRY_S, WAITING_LINES_MAX, LinePool, Request
from token_actor.core.commands import Command, reservation_id
from token_actor.core.escrow_commands import ESCROW
from token_actor.errors import (
    ActorUnavailable,
    ClientBusy,
    ClosedError,
    InvalidQuestion,
    LogUnavailable,
    ServerUnavailable,
)
from token_actor.transport.ports import Append
from token_actor.wire.codec import MESSAGE_BYTES_MAX
from token_actor.wire.entries import id_pair
from token_actor.wire.keys import Keys, partition_of
from token_actor.wire.messages import COMMAND_FIELD, QUESTION_FIELD, Question, encode_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from token_actor.client.drawing import Call
    from token_actor.client.notices import Watch
    from token_actor.client.settings import ClientSettings
    from token_actor.core.usage import Event
    from token_actor.transport.ports import Connection, Connector

ASKED_MAX: Final = 10_000  # questions nobody has read yet; older ones have nobody waiting any more

T = TypeVar("T")

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """Record events, ask questions and give commands for one client.

    When the last reference to it goes, what it has recorded is still sent.
    """

    def __init__(self, connector: Connector, settings: ClientSettings) -> None:
        """Prepare; nothing connects before the first use, unless there is a spool. Raises ``SetupError``."""
        self.settings = settings
        self._connector = connector
        self._closed = False
        self._keys: dict[int, Keys] = {}
        self.before_close: list[Callable[[float], None]] = []  # each is given the seconds it may take
        self._begin()
        if settings.spool_dir is not None:
            self._sender.start()  # there may be something in the spool that nobody else will send
        _engines.add(self)

    def _begin(self) -> None:
        self._sender = sender.Sender(self._connector, self.settings)
        self._lines = LinePool(self._connector, client=uuid.uuid4().hex, lines_max=self.settings.lines_max)
        self._waiting_lines = LinePool(  # apart: what frees quota must not wait behind those who wait for it
            self._connector,
            client=uuid.uuid4().hex,
            lines_max=WAITING_LINES_MAX,
            what="reservations that one client may wait for",
            advice="wait for fewer at once, or in more processes",
        )
        self._partitions: int | None = None
        self._watches: set[Watch] = set()
        self._retirement = weakref.finalize(self, _retire, self._sender, self._watches)
        self._retirement.atexit = False

    def begin_in_child(self) -> None:
        """Start anew after a fork: events, connections, spool and identity stay the parent's.

        A spool of its own is opened with its first event: a child that only replaces itself needs none.
        """
        self._retirement.detach()  # the old sender's lock may be held by a thread that is not here
        if not self._closed:
            self._begin()

    @property
    def closed(self) -> bool:
        """Tell whether ``close`` has been called."""
        return self._closed

    @property
    def pending(self) -> int:
        """Return how many recorded events are not known to be in the log."""
        return self._sender.pending

    def partition(self, tenant: str) -> int | None:
        """Return the partition that a tenant lives in; ``None`` before anything has been asked."""
        return None if self._partitions is None else _partition(self._partitions, tenant)

    def record(self, event: Event) -> None:
        """Take one event. Waits for room in a full spool only. Raises ``BufferFull``, ``ClosedError``."""
        self._sender.put(event)

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything recorded so far is in the log. Raises ``LogUnavailable`` at the deadline."""
        self._sender.flush(self._deadline(timeout_s))

    def ask(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        *,
        tenant: str | None = None,
        stale_ok: bool = False,
        timeout_s: float | None = None,
    ) -> Mapping[str, Any]:
        """Return the answer to a question, which sees everything this client recorded before.

        ``tenant`` says which partition to ask; ``None`` is enough where there is only one. With
        ``stale_ok`` it does not wait for own records. Raises ``ActorUnavailable`` at the deadline,
        ``InvalidQuestion`` naming the field that is wrong.
        """
        deadline = self._deadline(timeout_s)
        if not stale_ok:
            self._sender.flush(deadline)

        def make(keys: Keys, line: str, request_id: str) -> Append:
            after = None if stale_ok else self._last_id(keys.partition)
            question = Question(request_id=request_id, client=line, kind=kind, arguments=arguments, after=after)
            return Append(key=keys.ask, fields=[QUESTION_FIELD, _encoded(question)], length_max=ASKED_MAX)

        return self._call(tenant, deadline, Request(make), self._lines)

    def _last_id(self, partition: int) -> bytes | None:
        """Return the last entry of this client in a log that it was told no answer to; ``None``: there is none."""
        drawn = self._lines.last_drawn(partition) + self._waiting_lines.last_drawn(partition)
        return max(filter(None, [*drawn, self._sender.last_id(partition)]), key=id_pair, default=None)

    def command(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        *,
        tenant: str | None,
        event: Mapping[str, Any] | None = None,
        take_back: bool = False,
        waits: bool = False,
        call: Call | None = None,
        timeout_s: float | None = None,
    ) -> Mapping[str, Any]:
        """Return the answer to a command, which comes after everything this client recorded before.

        ``tenant`` is as for ``ask``. Raises ``ActorUnavailable`` at the deadline: the command may still be
        carried out then. With ``take_back``, what it reserves is released after that, if the log can be reached.
        One that ``waits`` for quota takes no line from the others. ``ClientBusy`` when too many are under way.
        A ``reserve`` says by ``call`` what it may take from what the actor has set aside.
        """
        deadline = self._deadline(timeout_s)
        self._sender.flush(deadline)

        def make(keys: Keys, line: str, request_id: str, escrow: str | None = None) -> Append:
            asked = arguments if escrow is None else {**arguments, ESCROW: escrow}
            command = Command(operation=operation, request_id=request_id, client=line, arguments=asked)
            return Append(key=keys.log, fields=[COMMAND_FIELD, encode_command(command, event)])

        lines = self._waiting_lines if waits else self._lines
        return self._call(tenant, deadline, Request(make, _release if take_back else None, call), lines)

    def look(self, find: Callable[[Connection, Keys], T], *, tenant: str | None, timeout_s: float | None = None) -> T:
        """Return what ``find`` reads from the server about a partition; it may be tried again.

        ``tenant`` is as for ``ask``. Raises ``ActorUnavailable`` at the deadline.
        """
        deadline = self._deadline(timeout_s)
        while True:
            try:
                with self._lines.line(deadline) as line:
                    return find(line.connection, self._keys_of(tenant, line.connection, deadline))
            except ServerUnavailable as error:
                if deadline.left_s <= RETRY_S:
                    raise self._unavailable(error, deadline) from error
                time.sleep(RETRY_S)

    def follow(self, watch: Watch) -> None:
        """Let a watch of this client run until it is stopped, or the client is closed or let go of."""
        self._watches.difference_update([each for each in list(self._watches) if not each.running])
        watch.start(self._connector)
        self._watches.add(watch)
        if self._closed:
            watch.stop()

    def _call(self, tenant: str | None, deadline: Deadline, request: Request, lines: LinePool) -> Mapping[str, Any]:
        try:
            line = lines.borrow(deadline)
            try:
                asked_s = deadline.left_s
                keys = self._keys_of(tenant, line.connection, deadline)
                answer = line.ask(request, keys, deadline)
            finally:
                lines.give_back(line)
        except ServerUnavailable as error:
            raise self._unavailable(error, deadline) from error
        if answer is None and deadline.timeout_s - asked_s > max(deadline.timeout_s / 2, RETRY_S):
            raise ClientBusy("too much is under way in this client to ask in time", timeout_s=deadline.timeout_s)
        if answer is None:
            raise ActorUnavailable(
                f"no actor answered for partition {keys.partition} of {self._where} within {deadline}; "
                "check that 'token-actor serve' runs: 'token-actor doctor' tells more",
                timeout_s=deadline.timeout_s,
            )
        return answer

    @property
    def _where(self) -> str:
        return f"namespace {self.settings.namespace!r} on {self._connector.address}"

    def _unavailable(self, error: ServerUnavailable, deadline: Deadline) -> ActorUnavailable:
        return ActorUnavailable(
            f"no answer within {deadline}: {error}; check that the server runs, and that this is its address",
            timeout_s=deadline.timeout_s,
        )

    def _keys_of(self, tenant: str | None, connection: Connection, deadline: Deadline) -> Keys:
        """Return the keys of the partition of a tenant. Raises ``ActorUnavailable`` when nobody has served any."""
        partitions = self._await_partitions(connection, deadline)
        if partitions is None:
            raise ActorUnavailable(
                f"no actor has ever served {self._where}, nor has one begun to within {deadline}; "
                "start 'token-actor serve'",
                timeout_s=deadline.timeout_s,
            )
        self._partitions = partitions
        number = _partition(partitions, tenant)
        if number not in self._keys:
            self._keys[number] = Keys(self.settings.namespace, number)
        return self._keys[number]

    def _await_partitions(self, connection: Connection, deadline: Deadline) -> int | None:
        """Return how many partitions there are; ``None`` when nobody has written that down by the deadline.

        Without it nobody could answer, and to guess would be to ask the wrong one.
        """
        while True:
            try:
                partitions = self._sender.partitions(connection)
                if partitions is not None or deadline.left_s <= RETRY_S:
                    return partitions
            except ServerUnavailable:
                if deadline.left_s <= RETRY_S:
                    raise
            time.sleep(RETRY_S)

    def _deadline(self, timeout_s: float | None) -> Deadline:
        """Return the deadline of a call. Raises ``ClosedError``."""
        deadline = self._deadline_of(timeout_s)
        if self._closed:
            raise ClosedError("the client is closed")
        return deadline

    def _deadline_of(self, timeout_s: float | None) -> Deadline:
        return Deadline.after(self.settings.timeout_s if timeout_s is None else timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """Flush and let go of everything; closing twice is fine.

        Raises ``LogUnavailable`` when events could not be brought to the log by the deadline.
        """
        deadline = self._deadline_of(timeout_s)
        if self._closed:
            return
        for finish in self.before_close:
            finish(max(0.0, deadline.left_s) / 2)  # the other half is for what was recorded
        self._closed = True
        try:
            self._sender.close(deadline)
        finally:
            self._lines.close()
            self._waiting_lines.close()
            watches = list(self._watches)
            for watch in watches:
                watch.leave()
            for watch in watches:
                watch.stop()


def finish_all(finish: Callable[[Engine, float], None], timeout_s: float) -> Iterator[LogUnavailable]:
    """Flush or close every client of this process by one deadline; yield what did not come to the log."""
    deadline = Deadline.after(timeout_s)
    still_open = [engine for engine in list(_engines) if not engine.closed]
    steps: list[Callable[[], None]] = [partial(_finish, finish, engine, deadline) for engine in still_open]
    steps += [partial(orphan.flush, deadline) for orphan in list(sender.retired)]
    for step in steps:
        try:
            step()
        except LogUnavailable as error:
            yield error


def _finish(finish: Callable[[Engine, float], None], engine: Engine, deadline: Deadline) -> None:
    finish(engine, max(0.0, deadline.left_s))


def _retire(outgoing: sender.Sender, watches: set[Watch]) -> None:
    """Let go of what a client leaves behind that nobody refers to any more."""
    outgoing.retire()
    for watch in watches:
        watch.leave()


def _release(keys: Keys, line: str, reserved: str, request_id: str) -> Append:
    """Return what gives back what the request ``reserved`` of a line was granted, or waits for."""
    arguments = {"reservation": reservation_id(line, reserved)}
    command = Command(operation="release", request_id=request_id, client=line, arguments=arguments)
    return Append(key=keys.log, fields=[COMMAND_FIELD, encode_command(command)])


def _encoded(question: Question) -> bytes:
    try:
        data = question.encode()
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidQuestion("arguments", f"must be plain values: {error}", reason="type") from None
    if len(data) > MESSAGE_BYTES_MAX:
        raise InvalidQuestion("arguments", f"take {len(data)} bytes, at most {MESSAGE_BYTES_MAX} are read")
    return data


def _partition(partitions: int, tenant: str | None) -> int:
    """Return the partition to ask."""
    if partitions == 1:
        return 0
    if tenant is None:
        message = f"must be named: this namespace has {partitions} partitions, and each tenant lives in one"
        raise InvalidQuestion("tenant", message)
    return partition_of(tenant, partitions)


def _after_fork() -> None:
    sender.retired.clear()
    for engine in list(_engines):
        engine.begin_in_child()


# The first connection looks up how to encode a host name, which imports. A fork in the middle of that would leave the
# import's lock held for ever in the child, so it is looked up now.
codecs.lookup("idna")
os.register_at_fork(after_in_child=_after_fork)
