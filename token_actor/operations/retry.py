"""Retry: dead letters that go into the log once more, where that can help.

The entry is appended first, and the letter dropped once the log has it. Whoever is stopped between the
two retries again, so what goes into the log must be known when it comes a second time: a batch by its
sequence numbers, a command by its request id, an event by its message id. An event without one is
given the id of its letter, which is the same however often it is retried.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from token_actor.errors import BadEntry, InvalidValue, ServerRefused
from token_actor.operations.dead import Quarantined, delete_letters, selected_dead
from token_actor.transport.ports import Append
from token_actor.wire.codec import MESSAGE_BYTES_MAX, pack, unpack_json, unpack_message
from token_actor.wire.keys import Keys
from token_actor.wire.messages import BATCH_FIELD, COMMAND_FIELD, EVENT_FIELD, JSON_FIELD, decode_command
from token_actor.wire.reads import LEFT_OPEN, RefusedBatch, decode_read

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from token_actor.operations.dead import Selection
    from token_actor.transport.ports import Connection
    from token_actor.wire.messages import DeadLetter

ID_PREFIX: Final = "dead:"  # of the message id that an event without one is given
_USED_UP: Final = {
    BATCH_FIELD: "its sequence numbers are used up: its sender has to send the mended events under new ones",
    COMMAND_FIELD: "its request id has been answered, and the same id has the same answer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Say what became of one dead letter: ``entry`` is its new id in the log, ``why`` why it was kept instead."""

    letter_id: str
    partition: int
    entry: str | None = None
    why: str | None = None

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        told = {"entry": self.entry} if self.why is None else {"why": self.why}
        return {"id": self.letter_id, "partition": self.partition, **told}


@dataclass(slots=True)
class Retried:
    """Hold what became of the dead letters that were meant."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def done(self) -> list[Outcome]:
        """Return those whose entries are in the log again."""
        return [outcome for outcome in self.outcomes if outcome.why is None]

    @property
    def kept(self) -> list[Outcome]:
        """Return those that are still dead letters, each with the reason."""
        return [outcome for outcome in self.outcomes if outcome.why is not None]


def retry_dead(
    connection: Connection, namespace: str, selection: Selection, *, hopeless: bool = False, unidentified: bool = False
) -> Retried:
    """Append the entries of dead letters to the log again, and drop the letters that are in it.

    One that would be refused again is kept, unless ``hopeless`` ones are asked for: an actor newer than
    this program may count it. So is one that nothing can tell from its repetition, unless
    ``unidentified`` ones are asked for: a retry that is cut off could count it twice. Raises
    ``ServerRefused`` when a letter cannot be dropped.
    """
    retried = Retried()
    for page in selected_dead(connection, namespace, selection):
        ready: list[tuple[Quarantined, Append]] = []
        keys = Keys(namespace, page[0].partition)
        for quarantined in page:
            raw, known_again = identified(quarantined.letter)
            why = None if hopeless and quarantined.letter.whole else why_hopeless(quarantined.letter)
            if why is None and not known_again and not unidentified:
                why = "nothing in it tells a repetition, so a retry that is cut off could count it twice"
            if why is None:
                ready.append((quarantined, Append(key=keys.log, fields=[quarantined.letter.name, raw])))
            else:
                retried.outcomes.append(_outcome(quarantined, why=why))
        _append(connection, keys, ready, retried)
    return retried


def _append(connection: Connection, keys: Keys, ready: list[tuple[Quarantined, Append]], retried: Retried) -> None:
    done: list[Quarantined] = []
    for (quarantined, _), entry in zip(ready, connection.write([append for _, append in ready]), strict=True):
        if isinstance(entry, bytes):
            done.append(quarantined)
            retried.outcomes.append(_outcome(quarantined, entry=entry.decode()))
        else:
            assert isinstance(entry, ServerRefused), "an append comes to an id, or is refused"
            retried.outcomes.append(_outcome(quarantined, why=f"the server refused it: {entry}"))
    delete_letters(connection, keys, done)


def _outcome(quarantined: Quarantined, *, entry: str | None = None, why: str | None = None) -> Outcome:
    source = quarantined.letter.source.decode()
    return Outcome(letter_id=source, partition=quarantined.partition, entry=entry, why=why)


def why_hopeless(letter: DeadLetter) -> str | None:
    """Return why a retry of a dead letter could not be counted, ``None`` when it might."""
    if not letter.whole:
        return "not all of it was kept, so it cannot be sent again"
    read = decode_read([(letter.source, [letter.name, letter.raw])])
    refused = [*read.rejections, *(step.rejection for step in read.steps if isinstance(step, RefusedBatch))]
    if refused:
        return f"it would be refused again: {refused[0].reason}, {refused[0].detail}"
    if letter.reason in LEFT_OPEN:
        return None
    conflict = "its message id was counted with other numbers, and the first one counts"
    return _USED_UP.get(letter.name, conflict if letter.reason == "id_conflict" else None)


def identified(letter: DeadLetter) -> tuple[bytes, bool]:
    """Return the bytes that go into the log, and whether their repetition is known for one.

    An event that has no message id is given one, if it can be read at all.
    """
    if letter.name == BATCH_FIELD:
        return letter.raw, True
    try:
        if letter.name == COMMAND_FIELD:
            decode_command(letter.raw)
            return letter.raw, True
        if letter.name == EVENT_FIELD:
            return _with_id(letter, unpack_message(letter.raw), pack)
        if letter.name == JSON_FIELD:
            return _with_id(letter, unpack_json(letter.raw), _json)
    except (BadEntry, InvalidValue):
        return letter.raw, False  # it goes as it came, or not at all
    return letter.raw, False


def _with_id(letter: DeadLetter, event: Mapping[str, Any], encode: Callable[[Any], bytes]) -> tuple[bytes, bool]:
    if event.get("message_id"):
        return letter.raw, True
    raw = encode({**event, "message_id": ID_PREFIX + letter.source.decode()})
    return (raw, True) if len(raw) <= MESSAGE_BYTES_MAX else (letter.raw, False)


def _json(event: object) -> bytes:
    return json.dumps(event).encode()
