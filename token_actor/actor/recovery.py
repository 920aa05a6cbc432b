"""Recovery: the newest snapshot that is whole, and then the log from there on.

A gap between the two is refused: an actor that started with less than everything would answer with
numbers that are wrong and look right.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from token_actor.actor.fold import Folded, fold
from token_actor.actor.snapshots import Manifest, Position, list_manifests, load_snapshot
from token_actor.core.ledger import Bounds, Ledger
from token_actor.errors import ServerRefused, SetupError, SnapshotError
from token_actor.transport.ports import FIRST, Connection, PutField, StreamState
from token_actor.wire.entries import id_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_actor.wire.keys import Keys

_ENTRIES_PER_READ: Final = 512  # of at most 64 KiB each

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Recovered:
    """Hold a ledger, up to where it has folded the log, and the snapshot it began with, if any."""

    ledger: Ledger
    position: Position
    manifest: Manifest | None


def recover(connection: Connection, keys: Keys, bounds: Bounds | None = None) -> Recovered:
    """Return the state of the newest usable snapshot, or an empty one when the log is all there is.

    Raises ``SnapshotError`` when the log does not go back to where the state ends.
    """
    stream = connection.stream_state(keys.log)
    for manifest in list_manifests(connection, keys):
        try:
            ledger = load_snapshot(connection, keys, manifest, bounds)
        except SnapshotError as error:
            log.warning("A snapshot cannot be used", extra={"action": "snapshot_damaged", "problem": str(error)})
            continue
        _check_no_gap(stream, manifest.position)
        return Recovered(ledger, manifest.position, manifest)
    start = Position(offset=FIRST, entries=0)
    _check_no_gap(stream, start)
    return Recovered(Ledger(bounds), start, None)


def check_partitions(connection: Connection, keys: Keys, partitions: int) -> None:
    """Write down how many partitions the namespace has. Raises ``SetupError`` when it is another number.

    Tenants would change their place with it.
    """
    wanted = str(partitions).encode()
    (outcome,) = connection.write([PutField(key=keys.meta, field=b"partitions", value=wanted)])
    written = connection.get_fields(keys.meta).get(b"partitions")
    if written is None:
        assert isinstance(outcome, ServerRefused), "what was not refused is there"
        raise outcome
    if written != wanted:
        raise SetupError(
            f"namespace {keys.namespace!r} has {written.decode()} partitions, not {wanted.decode()}: "
            "start the actor with that number"
        )


def _check_no_gap(stream: StreamState | None, position: Position) -> None:
    if stream is None or id_pair(stream.last_id) < id_pair(position.offset):
        if position.entries:
            log.warning(
                "The log ends before the snapshot: the server lost its tail; what was counted stays counted",
                extra={"action": "log_behind_snapshot", "offset": position.offset.decode()},
            )
        return
    removed = stream.entries_added - stream.length
    if removed > position.entries:
        raise SnapshotError(
            f"{removed - position.entries} entries of the log were removed before they were counted: the state ends "
            f"at {position.offset.decode()}, the log begins at {(stream.first_id or stream.last_id).decode()}. "
            "Restore an older backup of the server, or start a new namespace."
        )


def replay(
    connection: Connection,
    keys: Keys,
    recovered: Recovered,
    *,
    epoch: int,
    on_read: Callable[[Folded, int], None],
    until: bytes | None = None,
) -> None:
    """Fold the log into ``recovered`` up to ``until``, by default its end as it is now.

    After each read ``on_read`` is given what it came to, and the number of its entries.
    """
    if until is None:
        stream = connection.stream_state(keys.log)
        until = FIRST if stream is None else stream.last_id
    while id_pair(recovered.position.offset) < id_pair(until):
        after = b"(" + recovered.position.offset
        entries = connection.range(keys.log, start=after, end=until, count=_ENTRIES_PER_READ)
        if not entries:
            return
        while entries:
            folded = fold(recovered.ledger, entries, epoch=epoch)
            count = recovered.position.entries + folded.entries
            recovered.position = Position(offset=entries[folded.entries - 1][0], entries=count)
            entries = entries[folded.entries :]
            on_read(folded, folded.entries)
