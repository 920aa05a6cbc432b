"""Letters: what a leader writes about entries of the log, each once, whoever leads.

A letter is fenced and has the id of its entry, so the server refuses a second one. Every actor keeps
those that it came to until they are known to be on the server: a leader may die before writing them.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from token_actor.errors import ServerRefused
from token_actor.transport.ports import Append
from token_actor.wire.entries import LAST_ID, id_pair
from token_actor.wire.notices import NoticeEntry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from token_actor.actor.fold import Folded
    from token_actor.actor.leadership import Leadership
    from token_actor.transport.ports import Connection
    from token_actor.wire.keys import Keys
    from token_actor.wire.messages import DeadLetter

DEAD_LENGTH_MAX: Final = 10_000
NOTICES_LENGTH_MAX: Final = 10_000  # three thresholds of a thousand budgets, three times over
_LETTERS_PER_WRITE: Final = 64  # of at most 64 KiB each: one transaction that nobody else waits for long

log = logging.getLogger(__name__)


class Letter(Protocol):
    """Be written to a stream under the id of the entry ``source``."""

    @property
    def source(self) -> bytes:
        """Return the id of the entry of the log that it is about."""

    def fields(self) -> list[bytes]:
        """Return the fields of its entry in the stream."""


AnyLetter = TypeVar("AnyLetter", bound=Letter)


class Letters(Generic[AnyLetter]):
    """Keep the letters of one stream until they are known to be on the server; ``what`` names one for people."""

    def __init__(self, connection: Connection, key: bytes, *, length_max: int, what: str) -> None:
        """Start with none."""
        self._connection = connection
        self._key = key
        self._length_max = length_max
        self._what = what
        self._kept: deque[AnyLetter] = deque(maxlen=length_max)  # the stream holds no more either
        self._refused = False

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._kept)

    def add(self, letters: Iterable[AnyLetter]) -> None:
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

    def _note_refusal(self, letter: AnyLetter, refusal: ServerRefused) -> None:
        if not self._refused:
            extra = {"action": "write_refused", "problem": str(refusal), "id": letter.source.decode()}
            log.error("The server refused a %s; it is kept and written again", self._what, extra=extra)
        self._refused = True

    def _batch(self) -> list[AnyLetter]:
        """Return the next letters to write; one of the last id of all begins a batch."""
        batch = list(islice(self._kept, _LETTERS_PER_WRITE))
        last = next((place for place, letter in enumerate(batch) if letter.source == LAST_ID), 0)
        return batch[:last] or batch

    def _append(self, letter: AnyLetter) -> Append:
        entry_id = letter.source
        if entry_id == LAST_ID:  # under that, the stream could take none of the log that follows
            stream = self._connection.stream_state(self._key)
            milliseconds, sequence = (0, 0) if stream is None else id_pair(stream.last_id)
            entry_id = b"%d-%d" % (milliseconds, sequence + 1)
        return Append(key=self._key, fields=letter.fields(), entry_id=entry_id, length_max=self._length_max)


class Notices(Letters[NoticeEntry]):
    """Keep what budgets have reached until it is written; who writes it also logs it.

    It is logged before the first attempt, so when a leader dies in between, the next one logs it again.
    """

    def __init__(self, connection: Connection, key: bytes) -> None:
        """Start with none."""
        super().__init__(connection, key, length_max=NOTICES_LENGTH_MAX, what="notice")
        self._epoch = 0
        self._logged: NoticeEntry | None = None

    def write(self, leadership: Leadership) -> None:
        """Log what waits, and write it. Raises ``LeadershipLost``. What the server has no room for stays."""
        if self._kept and self._epoch != leadership.epoch:
            with suppress(ServerRefused):  # then it refuses what is written, too, and that is said below
                self.drop_written()  # an earlier leader has logged those
            self._epoch = leadership.epoch
        new = list(takewhile(lambda entry: entry is not self._logged, reversed(self._kept)))
        for entry in reversed(new):
            self._logged = entry
            _log(entry)
        super().write(leadership)


def _log(entry: NoticeEntry) -> None:
    for notice in entry.documents():
        extra = {"action": "threshold", **{name: notice[name] for name in _LOGGED}}
        log.warning("A budget has reached a threshold", extra=extra)


_LOGGED: Final = ("id", "limit", "scope", "threshold_pct", "unit", "amount", "used", "period_end_ms")


class Mail:
    """Keep letters of every kind: dead letters, and what budgets have reached."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        """Start with none."""
        self._dead: Letters[DeadLetter] = Letters(connection, keys.dead, length_max=DEAD_LENGTH_MAX, what="dead letter")
        self._notices = Notices(connection, keys.notices)

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._dead) + len(self._notices)

    def add(self, folded: Folded) -> None:
        """Take what a fold came to."""
        self._dead.add(folded.dead)
        self._notices.add(folded.notices)

    def forget(self) -> None:
        """Let go of all: what they came from is folded anew."""
        self._dead.forget()
        self._notices.forget()

    def drop_written(self) -> None:
        """Let go of those that a leader has written."""
        self._dead.drop_written()
        self._notices.drop_written()

    def write(self, leadership: Leadership) -> None:
        """Write what waits. Raises ``LeadershipLost``. What the server has no room for stays."""
        self._dead.write(leadership)
        self._notices.write(leadership)
