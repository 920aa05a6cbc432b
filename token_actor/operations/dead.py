"""Dead letters: what could not be counted, as the actor put it aside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from token_actor.errors import BadEntry, InvalidValue
from token_actor.operations.places import all_keys
from token_actor.wire.entries import log_ms_of
from token_actor.wire.messages import DeadLetter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from token_actor.transport.ports import Connection, Entry
    from token_actor.wire.keys import Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """Hold one dead letter and the partition it lies in."""

    partition: int
    letter: DeadLetter

    def document(self) -> dict[str, Any]:
        """Return it as plain values. ``raw`` is text where it is some, else hex, as ``raw_form`` says."""
        letter = self.letter
        form, raw = readable(letter.raw)
        return {
            "id": letter.source.decode(),
            "partition": self.partition,
            "time": log_ms_of(letter.source) / 1000,
            "reason": letter.reason,
            "detail": letter.detail,
            "field": readable(letter.name)[1],
            "raw": raw,
            "raw_form": form,
            "raw_bytes": len(letter.raw),
            "events": [{"position": place, "reason": why, "detail": text} for place, why, text in letter.events],
        }


def readable(raw: bytes) -> tuple[str, str]:
    """Return ``("text", text)`` for bytes that a terminal can show as they are, else ``("hex", digits)``."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return "hex", raw.hex()
    return ("text", text) if text.isprintable() else ("hex", raw.hex())


def list_dead(connection: Connection, namespace: str, *, limit: int) -> tuple[list[Quarantined], int]:
    """Return the newest dead letters, newest first, and how many are kept in all."""
    found: list[Quarantined] = []
    total = 0
    for keys in all_keys(connection, namespace):
        stream = connection.stream_state(keys.dead)
        total += 0 if stream is None else stream.length
        found += _read(keys, connection.range(keys.dead, count=limit, newest_first=True))
    found.sort(key=lambda quarantined: log_ms_of(quarantined.letter.source), reverse=True)
    return found[:limit], total


def find_dead(connection: Connection, namespace: str, entry_id: str) -> Quarantined | None:
    """Return the dead letter of one log entry, ``None`` when there is none.

    Raises ``InvalidValue`` when ``entry_id`` is no id of an entry.
    """
    milliseconds, dash, sequence = entry_id.partition("-")
    if not (milliseconds.isdecimal() and dash and sequence.isdecimal() and entry_id.isascii()):
        raise InvalidValue("id", f"must be an entry id such as 1700000000000-0, not {entry_id!r}", reason="type")
    place = entry_id.encode()
    for keys in all_keys(connection, namespace):
        found = _read(keys, connection.range(keys.dead, start=place, end=place, count=1))
        if found:
            return found[0]
    return None


def _read(keys: Keys, entries: Sequence[Entry]) -> list[Quarantined]:
    return [Quarantined(partition=keys.partition, letter=_letter(*entry)) for entry in entries]


def _letter(entry_id: bytes, fields: Sequence[bytes]) -> DeadLetter:
    """Return the letter of an entry, also when somebody else wrote it: whoever looks must see everything."""
    try:
        return DeadLetter.read(entry_id, fields)
    except BadEntry as bad:
        name, raw = (fields[0], fields[1]) if len(fields) > 1 else (b"", b"")
        return DeadLetter(source=entry_id, reason="unreadable", detail=bad.detail, name=name, raw=raw)
