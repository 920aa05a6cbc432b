"""The desk of a leader: who asked what, what was answered, and what could not be counted.

Answers carry the epoch, so they need no fence: a client takes none of an older leader. Dead letters
are fenced, and have the ids of their entries, so each is written once.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from token_actor.actor.asked import Asked, AskedQuestions
from token_actor.core.queries import answer
from token_actor.errors import InvalidQuestion, InvalidValue, ServerRefused, TransportError
from token_actor.transport.ports import FIRST, Append, Expire, Operation, TrimBelow
from token_actor.wire.entries import LAST_ID, id_pair
from token_actor.wire.messages import ANSWER_FIELD, Answer, DeadLetter, Question

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from token_actor.actor.follower import Follower
    from token_actor.actor.leadership import Leadership
    from token_actor.actor.settings import Clock
    from token_actor.actor.standing import Standing
    from token_actor.actor.timekeeping import Timekeeper
    from token_actor.transport.ports import Connection, Entry
    from token_actor.wire.keys import Keys

INBOX_TTL_MS: Final = 60_000  # an answer that nobody fetched within a minute has nobody waiting
INBOX_LENGTH_MAX: Final = 1_000
DEAD_LENGTH_MAX: Final = 10_000
_ANSWERING_MS: Final = 50  # per turn: short against the lease
_LETTERS_PER_WRITE: Final = 64  # of at most 64 KiB each: one transaction that nobody else waits for long

log = logging.getLogger(__name__)


class Letters:
    """Keep dead letters until they are known to be on the server.

    Standing by, these are the ones that a leader may have died before writing.
    """

    def __init__(self, connection: Connection, key: bytes) -> None:
        """Start with none."""
        self._connection = connection
        self._key = key
        self._kept: deque[DeadLetter] = deque(maxlen=DEAD_LENGTH_MAX)  # the stream holds no more either
        self._refused = False

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._kept)

    def add(self, letters: Iterable[DeadLetter]) -> None:
        """Take letters in log order."""
        self._kept.extend(letters)

    def forget(self) -> None:
        """Let go of all: what they came from is folded anew."""
        self._kept.clear()

    def drop_written(self) -> None:
        """Let go of those that a leader has written."""
        if self._kept:
            stream = self._connection.stream_state(self._key)
            last = (0, 0) if stream is None else id_pair(stream.last_id)
            while self._kept and id_pair(self._kept[0].source) <= last:
                self._kept.popleft()

    def write(self, leadership: Leadership) -> None:
        """Write what waits. Raises ``LeadershipLost``. What the server has no room for stays."""
        while self._kept:
            batch = self._batch()
            outcomes = leadership.write([self._append(letter) for letter in batch])
            for letter, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, ServerRefused) and "equal or smaller" not in str(outcome):
                    self._note_refusal(letter, outcome)
                    return
                self._kept.popleft()  # written, now or by an earlier leader
            self._refused = False

    def _note_refusal(self, letter: DeadLetter, refusal: ServerRefused) -> None:
        if not self._refused:
            extra = {"action": "write_refused", "problem": str(refusal), "id": letter.source.decode()}
            log.error("The server refused a dead letter; it is kept and written again", extra=extra)
        self._refused = True

    def _batch(self) -> list[DeadLetter]:
        """Return the next letters to write; one of the last id of all begins a batch."""
        batch = list(islice(self._kept, _LETTERS_PER_WRITE))
        last = next((place for place, letter in enumerate(batch) if letter.source == LAST_ID), 0)
        return batch[:last] or batch

    def _append(self, letter: DeadLetter) -> Append:
        entry_id = letter.source
        if entry_id == LAST_ID:  # under that, the stream could take none of the log that follows
            stream = self._connection.stream_state(self._key)
            milliseconds, sequence = (0, 0) if stream is None else id_pair(stream.last_id)
            entry_id = b"%d-%d" % (milliseconds, sequence + 1)
        return Append(key=self._key, fields=letter.fields(), entry_id=entry_id, length_max=DEAD_LENGTH_MAX)


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
