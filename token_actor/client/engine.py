"""The engine behind both faces of the client: one sender, a few lines, and what survives a fork."""

from __future__ import annotations

import os
import time
import uuid
import weakref
from typing import TYPE_CHECKING, Any, Final

from token_actor.client.lines import LinePool
from token_actor.client.sender import Sender
from token_actor.core.commands import Command
from token_actor.errors import ActorUnavailable, ClosedError, InvalidQuestion, ServerUnavailable
from token_actor.transport.ports import Append
from token_actor.wire.keys import Keys, partition_of
from token_actor.wire.messages import COMMAND_FIELD, QUESTION_FIELD, Question, encode_command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from token_actor.client.settings import ClientSettings
    from token_actor.core.usage import Event
    from token_actor.transport.ports import Connection, Connector

ASKED_MAX: Final = 10_000  # questions nobody has read yet; older ones have nobody waiting any more

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """Record events, ask questions and give commands for one client."""

    def __init__(self, connector: Connector, settings: ClientSettings) -> None:
        """Prepare; nothing connects before the first use."""
        self.settings = settings
        self._connector = connector
        self._closed = False
        self._begin()
        _engines.add(self)

    def _begin(self) -> None:
        self._sender = Sender(self._connector, self.settings)
        self._lines = LinePool(self._connector, client=uuid.uuid4().hex, lines_max=self.settings.lines_max)

    def begin_in_child(self) -> None:
        """Start anew after a fork: events, connections and identity stay the parent's."""
        if not self._closed:
            self._begin()

    @property
    def pending(self) -> int:
        """Return how many recorded events are not known to be in the log."""
        return self._sender.pending

    def record(self, event: Event) -> None:
        """Take one event. Does not wait. Raises ``BufferFull``, ``ClosedError``."""
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
        return self._call(tenant, deadline, lambda keys, partition, line, request_id: Append(
            key=keys.ask,
            fields=[QUESTION_FIELD, Question(
                request_id=request_id,
                client=line,
                kind=kind,
                arguments=arguments,
                after=None if stale_ok else self._sender.last_id(partition),
            ).encode()],
            length_max=ASKED_MAX,
        ))  # fmt: skip

    def command(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        *,
        tenant: str,
        event: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Mapping[str, Any]:
        """Return the answer to a command, which comes after everything this client recorded before.

        Raises ``ActorUnavailable`` at the deadline: the command may still be carried out then.
        """
        deadline = self._deadline(timeout_s)
        self._sender.flush(deadline)

        def make(keys: Keys, partition: int, line: str, request_id: str) -> Append:
            del partition
            command = Command(operation=operation, request_id=request_id, client=line, arguments=arguments)
            return Append(key=keys.log, fields=[COMMAND_FIELD, encode_command(command, event)])

        return self._call(tenant, deadline, make)

    def _call(
        self, tenant: str | None, deadline: float, make: Callable[[Keys, int, str, str], Append]
    ) -> Mapping[str, Any]:
        if self._closed:
            raise ClosedError("the client is closed")
        timeout_s = max(0.0, deadline - time.monotonic())
        partition = 0
        try:
            with self._lines.line(deadline) as line:
                partition = self._partition(line.connection, tenant)
                keys = Keys(self.settings.namespace, partition)
                answer = line.ask(
                    lambda request_id: make(keys, partition, line.name, request_id), keys.inbox(line.name), deadline
                )
        except ServerUnavailable as error:
            raise ActorUnavailable(f"no answer: {error}", timeout_s=timeout_s) from error
        if answer is None:
            raise ActorUnavailable(
                f"no actor answered for partition {partition} of namespace {self.settings.namespace!r} on "
                f"{self._connector.address} within {timeout_s:.1f} s; is 'token-actor serve' running? "
                "'token-actor doctor' tells more",
                timeout_s=timeout_s,
            )
        return answer

    def _partition(self, connection: Connection, tenant: str | None) -> int:
        """Return the partition to ask, by the number of partitions the first actor wrote down."""
        partitions = self._sender.partitions(connection)
        if partitions == 1:
            return 0
        if tenant is None:
            message = f"must be named: this namespace has {partitions} partitions, and each tenant lives in one"
            raise InvalidQuestion("tenant", message)
        return partition_of(tenant, partitions)

    def _deadline(self, timeout_s: float | None) -> float:
        return time.monotonic() + (self.settings.timeout_s if timeout_s is None else timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """Flush and let go of everything; closing twice is fine.

        Raises ``LogUnavailable`` when events could not be brought to the log by the deadline.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._sender.close(self._deadline(timeout_s))
        finally:
            self._lines.close()


def _after_fork() -> None:
    for engine in list(_engines):
        engine.begin_in_child()


os.register_at_fork(after_in_child=_after_fork)
