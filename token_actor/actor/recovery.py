"""Recovery: the newest snapshot that is whole, and then the log from there on.

A gap between the two is refused: an actor that started with less than everything would answer with
numbers that are wrong and look right.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from token_actor.actor.continuity import Break, entries_from, find_break
from token_actor.actor.fold import Folded, fold
from token_actor.actor.manifests import Manifest, Position, list_manifests
from token_actor.actor.snapshots import load_snapshot
from token_actor.core.ledger import Bounds, Ledger
from token_actor.core.texts import counted
from token_actor.errors import ServerRefused, SetupError, SnapshotError
from token_actor.transport.ports import FIRST, Connection, PutField

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_actor.wire.keys import Keys

NOWHERE: Final = Position(offset=FIRST, entries=0)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Recovered:
    """Hold a ledger, up to where it has folded the log, and the snapshot it began with, if any."""

    ledger: Ledger
    position: Position
    manifest: Manifest | None

    @property
    def began(self) -> Position:
        """Return where the log goes on after the snapshot."""
        return NOWHERE if self.manifest is None else self.manifest.position


def recover(
    connection: Connection, keys: Keys, bounds: Bounds | None = None, *, accept_data_loss: bool = False
) -> Recovered:
    """Return the state of the newest usable snapshot, or an empty one when the log is all there is.

    Raises ``SnapshotError`` when the log does not go back to where the state ends, unless whoever runs
    the actor said that it may go on with what is left; the loss is counted in the position then.
    """
    for manifest in list_manifests(connection, keys):
        try:
            ledger = load_snapshot(connection, keys, manifest, bounds)
        except SnapshotError as error:
            log.warning("A snapshot cannot be used", extra={"action": "snapshot_damaged", "problem": str(error)})
            continue
        return Recovered(ledger, _without_gap(connection, keys, manifest.position, accept_data_loss), manifest)
    return Recovered(Ledger(bounds), _without_gap(connection, keys, NOWHERE, accept_data_loss), None)


def _without_gap(connection: Connection, keys: Keys, position: Position, accept_data_loss: bool) -> Position:  # noqa: FBT001 - passed on
    """Return the position to go on from."""
    found = find_break(connection, keys.log, position)
    if found is None or found.replaced:
        return position
    lost = (
        f"{counted(found.lost, 'entry', 'entries')} of the log removed before they could be counted: the state ends at "
        f"{position.offset.decode()}, and the log begins later."
    )
    if not accept_data_loss:
        raise SnapshotError(
            f"{lost} Restore an older backup of the server, start a new namespace, or accept the loss with "
            "--accept-data-loss."
        )
    log.error(lost, extra={"action": "log_trimmed", "lost": found.lost})
    return without(position, found)


def without(position: Position, loss: Break) -> Position:
    """Return the position to go on from after entries that were removed before they were counted."""
    lost = position.lost + loss.lost
    return replace(position, entries=position.entries + loss.lost, lost=lost, unbroken=False)


def check_partitions(connection: Connection, keys: Keys, partitions: int) -> None:
    """Write down how many partitions the namespace has. Raises ``SetupError`` when it is another number.

    Tenants would change their place with it.
    """
    wanted = str(partitions).encode()
    written = None
    while written is None:  # a server that loses its keys may lose this one between the two steps
        (outcome,) = connection.write([PutField(key=keys.meta, field=b"partitions", value=wanted)])
        written = connection.get_fields(keys.meta).get(b"partitions")
        if written is None and isinstance(outcome, ServerRefused):
            raise outcome
    if written != wanted:
        raise SetupError(
            f"namespace {keys.namespace!r} has {written.decode()} partitions, not {wanted.decode()}: "
            "start the actor with that number"
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
    for read in entries_from(connection, keys.log, recovered.position.offset, until):
        entries = read
        while entries:
            folded = fold(recovered.ledger, entries, epoch=epoch)
            count = recovered.position.entries + folded.entries
            recovered.position = replace(recovered.position, offset=entries[folded.entries - 1][0], entries=count)
            entries = entries[folded.entries :]
            on_read(folded, folded.entries)
