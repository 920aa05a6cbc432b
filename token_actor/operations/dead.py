"""Dead letters: what could not be counted, as the actor put it aside; to look at, to select, to drop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from token_actor.errors import BadEntry, InvalidValue, ServerRefused
from token_actor.operations.places import all_keys
from token_actor.transport.ports import DeleteEntries
from token_actor.wire.entries import is_entry_id, log_ms_of
from token_actor.wire.keys import Keys
from token_actor.wire.messages import DeadLetter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from token_actor.transport.ports import Connection, Entry

LETTERS_AT_ONCE: Final = 100  # of at most 64 KiB each


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
            "whole": letter.whole,
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
    place = _place(entry_id)
    for keys in all_keys(connection, namespace):
        found = _read(keys, connection.range(keys.dead, start=place, end=place, count=1))
        if found:
            return found[0]
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Say which dead letters are meant: those of ``ids``, or all; of them, those that meet every condition.

    ``before_ms`` is unix milliseconds. Raises ``InvalidValue`` when one of ``ids`` is no id of an entry.
    """

    ids: Sequence[str] = ()
    reason: str | None = None
    before_ms: int | None = None

    def __post_init__(self) -> None:
        """Refuse an id that is none before anything is done for the others."""
        for entry_id in self.ids:
            _place(entry_id)

    def meets(self, letter: DeadLetter) -> bool:
        """Tell whether a letter meets every condition."""
        return (self.reason is None or letter.reason == self.reason) and (
            self.before_ms is None or log_ms_of(letter.source) < self.before_ms
        )


def selected_dead(connection: Connection, namespace: str, selection: Selection) -> Iterator[list[Quarantined]]:
    """Yield the dead letters meant, a partition after the other, oldest first, some of one partition at a time.

    Letters that are written meanwhile are not among them, so whoever retries comes to an end.
    """
    for keys in all_keys(connection, namespace):
        for entries in _pages(connection, keys, selection):
            found = [each for each in _read(keys, entries) if selection.meets(each.letter)]
            if found:
                yield found


def _pages(connection: Connection, keys: Keys, selection: Selection) -> Iterator[list[Entry]]:
    for place in map(_place, selection.ids):
        yield connection.range(keys.dead, start=place, end=place, count=1)
    stream = None if selection.ids else connection.stream_state(keys.dead)
    start = b"-"
    while stream is not None and (
        entries := connection.range(keys.dead, start=start, end=stream.last_id, count=LETTERS_AT_ONCE)
    ):
        yield entries
        start = b"(" + entries[-1][0]


def drop_dead(connection: Connection, namespace: str, selection: Selection) -> list[Quarantined]:
    """Delete the dead letters meant, for good; return what is gone, without its bytes.

    Raises ``ServerRefused`` when the server does not allow that.
    """
    gone: list[Quarantined] = []
    for page in selected_dead(connection, namespace, selection):
        delete_letters(connection, Keys(namespace, page[0].partition), page)
        gone += [replace(each, letter=replace(each.letter, raw=b"")) for each in page]
    return gone


def delete_letters(connection: Connection, keys: Keys, letters: Sequence[Quarantined]) -> None:
    """Delete dead letters of one partition. Raises ``ServerRefused``."""
    if letters:
        ids = [each.letter.source for each in letters]
        (outcome,) = connection.write([DeleteEntries(key=keys.dead, entry_ids=ids)])
        if isinstance(outcome, ServerRefused):
            raise outcome


def _place(entry_id: str) -> bytes:
    if not (entry_id.isascii() and is_entry_id(entry_id.encode())):
        raise InvalidValue("id", f"must be an entry id such as 1700000000000-0, not {entry_id!r}", reason="type")
    return entry_id.encode()


def _read(keys: Keys, entries: Sequence[Entry]) -> list[Quarantined]:
    return [Quarantined(partition=keys.partition, letter=_letter(*entry)) for entry in entries]


def _letter(entry_id: bytes, fields: Sequence[bytes]) -> DeadLetter:
    """Return the letter of an entry, also when somebody else wrote it: whoever looks must see everything."""
    try:
        return DeadLetter.read(entry_id, fields)
    except BadEntry as bad:
        name, raw = (fields[0], fields[1]) if len(fields) > 1 else (b"", b"")
        return DeadLetter(source=entry_id, reason="unreadable", detail=bad.detail, name=name, raw=raw, whole=False)
