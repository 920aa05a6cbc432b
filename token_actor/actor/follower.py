"""The follower: fold the log as it grows, whoever leads.

A leader and every actor standing by own one each, so they have the same state. What a fold comes to
(answers, dead letters) is returned; only a leader passes it on.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from token_actor.actor.continuity import COMPARED, Break, Trail, counted_up_to, entries_from, find_break
from token_actor.actor.fold import Folded, fold
from token_actor.actor.recovery import Recovered, recover, without
from token_actor.core.columns import Columns, Rejection
from token_actor.errors import SnapshotError, TransportError
from token_actor.transport.ports import FIRST
from token_actor.wire.entries import LAST_ID, id_pair
from token_actor.wire.messages import DeadLetter
from token_actor.wire.reads import decode_read

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from token_actor.actor.manifests import Position
    from token_actor.actor.settings import ActorSettings
    from token_actor.core.ledger import Ledger
    from token_actor.transport.ports import Connection, Entry

_ENTRIES_MIN, _ENTRIES_MAX = 16, 4096  # per read: enough to amortise numpy, few enough to stay responsive
_ATTEMPTS_MAX: Final = 3  # a leader may drop a snapshot while it is being loaded; it keeps three

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Rejoining:
    """Hold how far a log that was replaced has been folded anew; whoever was interrupted goes on from there.

    ``common`` is the last entry that it has in common with what was read, ``after`` where to go on. Ids
    in ``known`` were read before; an entry up to ``doubtful`` may have been counted.
    """

    common: bytes | None
    after: bytes
    known: set[bytes]
    doubtful: bytes
    new_entries: int = 0
    unsure: int = 0


class Follower:
    """Own the state of one partition, and bring it up to date.

    ``recovered`` tells whether there is a state. ``replaced`` tells whether the log was replaced since
    the last snapshot; its next leader counts it as a new generation. ``all_read`` tells whether the log
    held no more at the last read that brought anything. ``before`` is the position in the log that was
    replaced, if it is known.
    """

    def __init__(self, connection: Connection, settings: ActorSettings) -> None:
        """Start without a state."""
        self._connection = connection
        self._keys = settings.keys
        self._settings = settings
        self._entries_per_read = 256
        self._state: Recovered | None = None
        self._former: Recovered | None = None
        self._trail = Trail()
        self._rejoining: _Rejoining | None = None
        self._lost_up_to = FIRST
        self._last: deque[Entry] = deque(maxlen=COMPARED)
        self._confirmed: list[Entry] = []  # the last ones when the log was last seen to go on
        self.replaced = False
        self.before: Position | None = None
        self.all_read = False

    @property
    def recovered(self) -> bool:
        """Tell whether there is a state."""
        return self._state is not None

    @property
    def _known(self) -> Recovered:
        assert self._state is not None, "recover comes first"
        return self._state

    @property
    def ledger(self) -> Ledger:
        """Return the ledger."""
        return self._known.ledger

    @property
    def position(self) -> Position:
        """Return up to where the log was folded."""
        return self._known.position

    @position.setter
    def position(self, position: Position) -> None:
        self._known.position = position

    @property
    def reached(self) -> bytes:
        """Return the id up to which there is nothing left to fold."""
        offset = self._known.position.offset
        return offset if self._lost_up_to == FIRST else max(offset, self._lost_up_to, key=id_pair)

    # --- recovery ------------------------------------------------------------------------------

    def recover(self, *, alone: bool) -> list[Folded]:
        """Restore the state of the newest snapshot that is whole; return what a log that was replaced came to.

        Only who is ``alone`` may accept a loss: a leader knows more, and will save it.

        Raises ``SnapshotError`` when the log does not go back to where the state ends.
        """
        self._trail = Trail()
        self._rejoining = None
        self._lost_up_to = FIRST
        self._forget_last()
        self.replaced = False
        self.before = None
        for attempt in range(1, _ATTEMPTS_MAX + 1):
            try:
                self._state = self._recovered(alone=alone)
                break
            except SnapshotError:
                if attempt == _ATTEMPTS_MAX:
                    raise
        if self._known.manifest is None and self._former is not None:  # the server has lost its snapshots meanwhile
            self._state = self._former
        self._former = None
        found = find_break(self._connection, self._keys.log, self.position)
        if found is not None and not found.replaced:
            self.position = without(self.position, found)  # who must not accept that did not get here
        self.replaced = self.position.lost > self._known.began.lost
        self._lost_up_to = counted_up_to(self._connection, self._keys.log, self.position)
        if found is None or not found.replaced:
            return []
        try:
            return list(self.rejoin(epoch=0))
        except TransportError:
            self.forget()
            raise

    def _recovered(self, *, alone: bool) -> Recovered:
        settings = self._settings
        accept = alone and settings.accept_data_loss
        return recover(self._connection, self._keys, settings.bounds, accept_data_loss=accept)

    def forget(self) -> None:
        """Let go of the state, because it cannot be brought up to date; it is still better than none at all."""
        self._former, self._state = self._state or self._former, None

    def _forget_last(self) -> None:
        self._last.clear()
        self._confirmed = []

    # --- the log -------------------------------------------------------------------------------

    def read(self, more: Mapping[bytes, bytes], *, block_ms: int | None) -> dict[bytes, list[Entry]]:
        """Return what the log holds after the position, and what other streams hold after an id."""
        after = {self._keys.log: self.position.offset, **more}
        return self._connection.read(after, count=self._entries_per_read, block_ms=block_ms)

    def fold(self, entries: Sequence[Entry], *, epoch: int) -> Folded:
        """Fold what is a good piece of work of a read; the next one begins with the rest."""
        folded = fold(self.ledger, entries, epoch=epoch)
        self.all_read = folded.entries == len(entries) < self._entries_per_read
        self._trail.add(self.position.offset, entries[: folded.entries])
        self._last.extend(entries[max(0, folded.entries - COMPARED) : folded.entries])
        count = self.position.entries + folded.entries
        self.position = replace(self.position, offset=entries[folded.entries - 1][0], entries=count)
        per_entry = max(1, folded.events // folded.entries)
        self._entries_per_read = max(_ENTRIES_MIN, min(_ENTRIES_MAX, self._settings.events_per_turn // per_entry))
        return folded

    # --- a log that does not go on -------------------------------------------------------------

    def find_break(self) -> Break | None:
        """Compare the log with what was read of it; ``None`` when it goes on from there."""
        found = find_break(self._connection, self._keys.log, self.position, self._last, self._confirmed)
        if found is None:
            self._trail.confirm()
            self._confirmed = list(self._last)
        return found

    def accept_loss(self, loss: Break) -> None:
        """Go on after entries that were removed unread, and remember how many they were."""
        self.position = without(self.position, loss)
        self._lost_up_to = loss.offset

    def begin_anew(self) -> None:
        """Follow an empty log: the one that was folded is full, and was deleted."""
        self._trail = Trail()
        self._forget_last()
        self.position = replace(self.position, offset=FIRST, entries=0, unbroken=False)
        self.replaced = True
        self.before = None

    def rejoin(self, *, epoch: int) -> Iterator[Folded]:
        """Fold what is new in a log that was replaced; yield what that comes to.

        What was counted stays counted: those calls were made. Entries that were read before are left
        out, or recognised by their numbers and ids; one that may have been counted and has neither
        becomes a dead letter. When the server goes away in between, the next call goes on.
        """
        stream = self._connection.stream_state(self._keys.log)
        until = FIRST if stream is None else stream.last_id
        work = self._rejoining = self._begin_rejoining()
        for entries in entries_from(self._connection, self._keys.log, work.after, until):
            work.after = entries[-1][0]
            yield from self._fold_new(work, entries, epoch)
        was = self.position
        self.before = self.before if self.replaced else was
        added = 0 if stream is None else stream.entries_added
        self.position = replace(was, offset=until, entries=added, unbroken=False)
        self._trail = Trail()
        self._rejoining = None
        self._lost_up_to = FIRST
        self._forget_last()
        self.replaced = True
        log.error(
            "The server has replaced the log; what was counted stays counted",
            extra={
                "action": "log_replaced",
                "was": was.offset.decode(),
                "now": until.decode(),
                "common": None if work.common is None else work.common.decode(),
                "new_entries": work.new_entries,
                "unsure": work.unsure,
            },
        )

    def _begin_rejoining(self) -> _Rejoining:
        """Return where to begin; where to go on if the log is still the one in which it was interrupted."""
        begun = self._rejoining
        if begun is None or begun.after == (begun.common or FIRST):  # nothing is folded yet
            common, known = self._trail.common(self._connection, self._keys.log)
            doubtful = self.position.offset if common is None else FIRST
            return _Rejoining(common, common or FIRST, known, doubtful)
        if not self._connection.range(self._keys.log, start=begun.after, end=begun.after, count=1):
            begun.after, begun.known, begun.doubtful = FIRST, set(), LAST_ID  # replaced once more
        return begun

    def _fold_new(self, work: _Rejoining, entries: Sequence[Entry], epoch: int) -> Iterator[Folded]:
        """Fold what is new among the entries of one read."""
        fresh, letters = self._told_apart([entry for entry in entries if entry[0] not in work.known], work.doubtful)
        work.unsure += len(letters)
        work.new_entries += len(fresh)
        results = [Folded(dead=letters)]
        while fresh:
            results.append(fold(self.ledger, fresh, epoch=epoch))
            fresh = fresh[results[-1].entries :]
        results[0].dead = sorted((letter for each in results for letter in each.dead), key=_place)  # ids must grow
        for each in results[1:]:
            each.dead = []
        yield from results

    def _told_apart(self, entries: Sequence[Entry], doubtful: bytes) -> tuple[list[Entry], list[DeadLetter]]:
        """Return the entries that can be folded without counting anything twice, and letters for the others."""
        safe: list[Entry] = []
        letters: list[DeadLetter] = []
        for entry in entries:
            if id_pair(entry[0]) > id_pair(doubtful) or _is_recognisable(entry):
                safe.append(entry)
            else:
                unsure = [Rejection(0, None, "unsure", "it may have been counted before the server replaced the log")]
                self.ledger.reject(unsure)
                letters.append(DeadLetter.of(*entry, unsure))
        return safe, letters


def _is_recognisable(entry: Entry) -> bool:
    """Tell whether a second reading of an entry would be noticed: by sequence numbers, ids, or as a dead letter."""
    events = [step for step in decode_read([entry]).steps if isinstance(step, Columns)]
    return all(step.runs or (step.message_ids is not None and None not in step.message_ids.tolist()) for step in events)


def _place(letter: DeadLetter) -> tuple[int, int]:
    return id_pair(letter.source)
