"""The desk of a leader: who asked what, and what was answered.

Answers carry the epoch, so they need no fence: a client takes none of an older leader.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from token_actor.actor.asked import Asked, AskedQuestions
from token_actor.core.queries import answer
from token_actor.errors import InvalidQuestion, InvalidValue, ServerRefused, TransportError
from token_actor.transport.ports import FIRST, Append, Expire, Operation, TrimBelow
from token_actor.wire.messages import ANSWER_FIELD, Answer, Question

if TYPE_CHECKING:
    from collections.abc import Sequence

    from token_actor.actor.follower import Follower
    from token_actor.actor.settings import Clock
    from token_actor.actor.standing import Standing
    from token_actor.actor.timekeeping import Timekeeper
    from token_actor.transport.ports import Connection, Entry
    from token_actor.wire.keys import Keys

INBOX_TTL_MS: Final = 60_000  # an answer that nobody fetched within a minute has nobody waiting
INBOX_LENGTH_MAX: Final = 1_000
_ANSWERING_MS: Final = 50  # per turn: short against the lease

log = logging.getLogger(__name__)


class Desk:
    """Take questions, answer them when the log is folded far enough, and send what commands came to."""

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        follower: Follower,
        *,
        epoch: int,
        clock: Clock,
        standing: Standing,
    ) -> None:
        """Start with nobody waiting. ``standing`` maps kinds of questions to what adds the actor's own part."""
        self.offset = FIRST
        self._connection = connection
        self._keys = keys
        self._follower = follower
        self.epoch = epoch
        self._clock = clock
        self._standing = standing
        self._asked = AskedQuestions()
        self._ready: deque[Asked] = deque()
        self._unsent: list[Operation] = []

    @property
    def busy(self) -> bool:
        """Tell whether somebody waits who could be answered now."""
        return bool(self._ready)

    def take(self, questions: Sequence[Entry], timekeeper: Timekeeper) -> None:
        """Take a read of the stream of questions."""
        self.offset = questions[-1][0]
        correction_ms = self._follower.ledger.time.correction_ms
        dated = partial(timekeeper.dated, correction_ms=correction_ms)
        self._asked.take(questions, self._clock.ticks_ms(), dated)

    def trim(self) -> TrimBelow:
        """Return what lets go of the questions that were taken."""
        return TrimBelow(key=self._keys.ask, entry_id=self.offset)

    def answer_ready(self) -> None:
        """Answer questions for a while; the rest is answered in the next turn."""
        ticks_ms = self._clock.ticks_ms()
        self._ready.extend(self._asked.ready(self._follower.reached, ticks_ms))
        while self._ready:
            asked = self._ready.popleft()
            self.reply(asked.question.client, self._answer(asked.question, asked.asked_ms))
            if self._clock.ticks_ms() >= ticks_ms + _ANSWERING_MS:
                return

    def _answer(self, question: Question, asked_ms: int) -> Answer:
        try:
            result = answer(self._follower.ledger, question.kind, question.arguments, asked_ms)
            standing = self._standing.get(question.kind)
            if standing is not None:
                standing(question, result)
        except InvalidValue as problem:
            return Answer(request_id=question.request_id, epoch=self.epoch, problem=problem)
        except TransportError:  # that is no fault in a question
            raise
        except Exception:  # a question changes nothing, so a fault of ours in one must not stop the others
            log.exception("A question failed", extra={"action": "question_failed", "kind": question.kind})
            fault = InvalidQuestion("kind", "could not be answered; the actor's log says why", reason="internal")
            return Answer(request_id=question.request_id, epoch=self.epoch, problem=fault)
        return Answer(request_id=question.request_id, epoch=self.epoch, result=result)

    def reply(self, client: str, reply: Answer) -> None:
        """Queue an answer for a client."""
        inbox = self._keys.inbox(client)
        fields = [ANSWER_FIELD, reply.encode()]
        self._unsent.append(Append(key=inbox, fields=fields, length_max=INBOX_LENGTH_MAX))
        self._unsent.append(Expire(key=inbox, ttl_ms=INBOX_TTL_MS))

    def send(self) -> None:
        """Send what is queued. A refused answer is dropped: whoever waits for it asks again."""
        if not self._unsent:
            return
        outcomes = self._connection.write(self._unsent)
        self._unsent = []  # not before: answers that were lost on the way are sent again
        for outcome in outcomes:
            if isinstance(outcome, ServerRefused):
                log.error("The server refused an answer", extra={"action": "write_refused", "problem": str(outcome)})
