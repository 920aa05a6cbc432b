"""What is fuzzed: functions of bytes that may raise nothing, whatever the bytes are.

An error that a target names is part of its contract; every other exception is a fault of ours. A new
target is a function here and a line in ``TARGETS``, with a few inputs in ``corpus/<name>/``.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tests.fuzz.mutate import corpus, joined, parts_of
from tests.makers import START_MS, event
from token_actor.actor.fold import fold
from token_actor.actor.manifests import Chunk, Manifest, Position, digest_of
from token_actor.actor.snapshots import _data_of, digests_now, load_snapshot
from token_actor.core.columns import columns_of
from token_actor.core.ledger import Bounds, Ledger
from token_actor.core.queries import answer
from token_actor.core.snapshot import Capture
from token_actor.errors import BadEntry, InvalidValue, SnapshotError
from token_actor.transport.memory import MemoryServer
from token_actor.transport.ports import Put
from token_actor.wire.keys import Keys
from token_actor.wire.messages import Answer, Question
from token_actor.wire.reads import decode_read

if TYPE_CHECKING:
    from collections.abc import Callable

FIELDS: Final = (b"b", b"c", b"e", b"j", b"x", b"t")
SMALL: Final = Bounds(rows_max=64, producers_max=4, message_ids_max=32, recent_events_max=64)


def decode(data: bytes) -> None:
    """Read and fold a log: every entry is counted, or rejected for a reason that is no fault of ours."""
    parts = parts_of(data)
    entries = [
        (b"%d-%d" % (START_MS + 60_000 * place, place), [FIELDS[kind % len(FIELDS)], value])
        for place, (kind, value) in enumerate(parts)
    ]
    read = decode_read(entries)
    assert read.entries == len(entries)
    ledger = Ledger(SMALL)
    while entries:
        folded = fold(ledger, entries, epoch=1)
        for letter in folded.dead:
            assert letter.reason != "internal", letter.detail
            letter.fields()
        for _, reply in folded.answers:
            reply.encode()
        entries = entries[folded.entries :]
    assert answer(ledger, "books", {}, 0)["differences"] == []
    digests_now(ledger)


def read_snapshot(data: bytes) -> None:
    """Read a snapshot: a ledger, or a ``SnapshotError``."""
    with suppress(SnapshotError):
        snapshot_of(data)


def snapshot_of(data: bytes) -> Ledger:
    """Return the ledger of a snapshot whose digests are right: the first part is the manifest, the others chunks."""
    parts = [value for _, value in parts_of(data)]
    body, chunks = (parts[0], parts[1:]) if parts else (b"", [])
    manifest = Manifest.read(b"1-1", [b"manifest", body, b"digest", digest_of(body)])
    connection = MemoryServer(clock_ms=lambda: START_MS).connect()
    connection.write([Put(key=Keys().chunk(b"1-1", index), value=chunk) for index, chunk in enumerate(chunks)])
    right = (Chunk(b"1-1", index, digest_of(chunk)) for index, chunk in enumerate(chunks))
    segments = [(name, [next(right, each) for each in written]) for name, written in manifest.segments]
    return load_snapshot(connection, Keys(), replace(manifest, segments=segments), SMALL)


def snapshot_input(ledger: Ledger) -> bytes:
    """Return the snapshot of a ledger as an input."""
    numbers = itertools.count()
    chunks: list[bytes] = []
    segments = []
    for segment in Capture(ledger).segments():
        made = list(_data_of(segment))
        chunks += made
        segments.append((segment.name, [Chunk(b"1-1", next(numbers), digest_of(each)) for each in made]))
    position = Position(offset=b"7-1", entries=3)
    manifest = Manifest(snapshot_id=b"1-1", position=position, taken_ms=9, segments=segments)
    return joined([(0, manifest.fields()[1]), *((0, chunk) for chunk in chunks)])


def _asked_ledger() -> Ledger:
    ledger = Ledger(SMALL)
    events = [event(5, 1, session=f"s{number % 3}", model="m", message_id=f"i{number}") for number in range(9)]
    ledger.apply(columns_of(events, log_ms=[START_MS] * 9, entries=list(range(9))))
    return ledger


ASKED: Final = _asked_ledger()  # questions change nothing


def question(data: bytes) -> None:
    """Read a question, answer it, and write the answer down."""
    try:
        asked = Question.decode(data)
    except BadEntry:
        return
    try:
        result = answer(ASKED, asked.kind, asked.arguments, START_MS)
    except InvalidValue as problem:
        reply = Answer(request_id=asked.request_id, epoch=1, problem=problem)
    else:
        reply = Answer(request_id=asked.request_id, epoch=1, result=result)
    assert Answer.decode(reply.encode()).request_id == asked.request_id
    Keys().inbox(asked.client)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "decode": decode,
    "snapshot": read_snapshot,
    "question": question,
}


def inputs_of(name: str) -> list[bytes]:
    """Return what a target begins with: its corpus, and what depends on versions that change, made anew."""
    made = [snapshot_input(ASKED), snapshot_input(Ledger(SMALL))] if name == "snapshot" else []
    return [*corpus(name), *made]
