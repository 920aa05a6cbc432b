"""Questions that were asked and not answered yet, because the log must be folded further first."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from token_actor.errors import BadEntry
from token_actor.wire.entries import Entry, id_pair, log_ms_of
from token_actor.wire.messages import QUESTION_FIELD, Question

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WAITING_MAX: Final = 10_000  # the oldest is forgotten first; its client asks again
WAITING_MS_MAX: Final = 60_000  # nobody waits for longer

log = logging.getLogger(__name__)


class Asked(NamedTuple):
    """Hold a question, when it was asked by the server's clock, and when nobody waits any more by ours."""

    question: Question
    asked_ms: int
    expires_ticks_ms: int


class AskedQuestions:
    """Keep questions until they can be answered, in the order in which they were asked."""

    def __init__(self) -> None:
        """Start with none."""
        self._waiting: list[Asked] = []

    def take(self, entries: Sequence[Entry], ticks_ms: int, dated: Callable[[int], int]) -> None:
        """Decode questions; one that cannot be read has nobody to answer to, and is logged.

        ``dated`` tells when a question was asked from what its id says.
        """
        for entry_id, fields in entries:
            try:
                question = _decode(fields)
            except BadEntry as bad:
                log.warning("A question cannot be read", extra={"action": "bad_question", "problem": str(bad)})
            else:
                self._waiting.append(Asked(question, dated(log_ms_of(entry_id)), ticks_ms + WAITING_MS_MAX))
        del self._waiting[:-WAITING_MAX]

    def ready(self, offset: bytes, ticks_ms: int) -> list[Asked]:
        """Return the questions that can be answered once the log is folded up to ``offset``."""
        folded = id_pair(offset)
        ready: list[Asked] = []
        waiting: list[Asked] = []
        for asked in self._waiting:
            after = asked.question.after
            if after is None or id_pair(after) <= folded:
                ready.append(asked)
            elif ticks_ms < asked.expires_ticks_ms:
                waiting.append(asked)
        self._waiting = waiting
        return ready


def _decode(fields: Sequence[bytes]) -> Question:
    if len(fields) != 2 or fields[0] != QUESTION_FIELD:  # noqa: PLR2004 - a name and a value
        raise BadEntry("decode", "must have one field, 'q'")
    return Question.decode(fields[1])
