"""The poll: ask the actors, now and then, what they have seen of the batches in a spool.

It runs on the sender's own connection and never waits long: an answer that comes too late for one
poll is taken by the next.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from token_actor.errors import ServerRefused, ServerUnavailable
from token_actor.transport.ports import FIRST, Append
from token_actor.wire.keys import Keys
from token_actor.wire.messages import QUESTION_FIELD, Answer, Question

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from token_actor.client.watermark import Watermark
    from token_actor.transport.ports import Connection

_WAIT_S: Final = 0.05  # for the answers of one partition: an actor takes about a millisecond
_ASKED_MAX: Final = 10_000  # questions nobody has read yet, as for all questions
_UNANSWERED_MAX: Final = 256  # questions whose late answers are still welcome


class Poll:
    """Ask for watermarks, and keep in mind which questions are still without an answer."""

    def __init__(self, namespace: str) -> None:
        """Start under a name of its own, with nothing asked."""
        self._namespace = namespace
        self._client = uuid.uuid4().hex
        self._asked = 0
        self._unanswered: dict[str, Watermark] = {}
        self._read_up_to: dict[int, bytes] = {}

    def ask(
        self, connection: Connection, questions: Sequence[Watermark]
    ) -> Iterator[tuple[Watermark, Mapping[str, Any]]]:
        """Ask, and yield what is answered within a moment, now or from before. Raises ``TransportError``."""
        try:
            for partition in sorted({question.partition for question in questions}):
                asked = [self._append(question) for question in questions if question.partition == partition]
                for outcome in connection.write(asked):
                    if isinstance(outcome, ServerRefused):
                        raise outcome
                yield from self._answers(connection, partition)
        except ServerUnavailable:
            self._read_up_to.clear()  # a server that lost its memory counts from the beginning
            raise

    def _append(self, question: Watermark) -> Append:
        self._asked += 1
        request_id = str(self._asked)
        self._unanswered[request_id] = question
        if len(self._unanswered) > _UNANSWERED_MAX:
            del self._unanswered[next(iter(self._unanswered))]
        arguments = {"producer": question.producer, "epochs": question.epochs}
        message = Question(request_id=request_id, client=self._client, kind="producer", arguments=arguments)
        key = Keys(self._namespace, question.partition).ask
        return Append(key=key, fields=[QUESTION_FIELD, message.encode()], length_max=_ASKED_MAX)

    def _answers(self, connection: Connection, partition: int) -> Iterator[tuple[Watermark, Mapping[str, Any]]]:
        inbox = Keys(self._namespace, partition).inbox(self._client)
        until = time.monotonic() + _WAIT_S
        while any(question.partition == partition for question in self._unanswered.values()):
            block_ms = int((until - time.monotonic()) * 1000)
            if block_ms <= 0:
                self._read_up_to.pop(partition, None)  # one whose clock went back counts from below what was read
                return
            after = self._read_up_to.get(partition, FIRST)
            for entry_id, fields in connection.read({inbox: after}, count=100, block_ms=block_ms).get(inbox, []):
                self._read_up_to[partition] = entry_id
                answer = Answer.decode(fields[1])
                question = self._unanswered.pop(answer.request_id, None)
                if question is not None and answer.result is not None:
                    yield question, answer.result
