"""States: the snapshots of a partition held against each other.

A snapshot is canonical: whoever folds the same log comes to the same segments, to the last byte. So an
older snapshot and the log after it must come to the newest one; what differs is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from token_actor.actor.manifests import Manifest, Position, digests_of, list_manifests, state_digest
from token_actor.actor.recovery import Recovered, replay
from token_actor.actor.snapshots import digests_now, load_snapshot
from token_actor.core.ledger import Ledger
from token_actor.errors import SnapshotError
from token_actor.transport.ports import FIRST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from token_actor.transport.ports import Connection
    from token_actor.wire.keys import Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Hold one figure that two ways of adding up disagree on: ``actor`` says this, ``other`` that."""

    figure: str
    actor: Any
    other: Any
    way: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StateComparison:
    """Hold the state hash of the newest snapshot, ``live``, and what another one and the log come to.

    ``source`` says with what it was compared, or why with nothing. ``overtaken`` means that newer
    snapshots were taken meanwhile, and what was to be compared is gone.
    """

    live: str | None = None
    replayed: str | None = None
    source: str = ""
    differences: tuple[Difference, ...] = ()
    overtaken: bool = False


def compare_states(connection: Connection, keys: Keys, kept: Sequence[Manifest]) -> StateComparison:
    """Compare the newest of the snapshots ``kept``, newest first, with what the oldest one and the log come to.

    With one snapshot alone, with what the log comes to from its start on, if it still goes back so far.
    """
    if not kept:
        return StateComparison(source="nothing to compare: there is no snapshot yet")
    newest = kept[0]
    live = digests_of(newest)
    try:
        begun, source = _beginning(connection, keys, kept)
        replay(connection, keys, begun, epoch=0, on_read=lambda *_: None, until=newest.position.offset)
    except SnapshotError as error:
        begun, source = None, f"nothing to compare with: {error}"
    if all(manifest.snapshot_id != kept[-1].snapshot_id for manifest in list_manifests(connection, keys)):
        return StateComparison(overtaken=True)
    if begun is None:
        return StateComparison(live=state_digest(live), source=source)
    found = digests_now(begun.ledger)
    return StateComparison(
        live=state_digest(live),
        replayed=state_digest(found),
        source=source,
        differences=(
            *_differences({"entries": newest.position.entries}, {"entries": begun.position.entries}, source),
            *_differences(_named(live), _named(found), source),
        ),
    )


def _beginning(connection: Connection, keys: Keys, kept: Sequence[Manifest]) -> tuple[Recovered, str]:
    """Return the state to begin with, and its name. Raises ``SnapshotError`` when there is none."""
    newest = kept[0]
    generation = newest.position.generation
    oldest = [manifest for manifest in kept if manifest.position.generation == generation][-1]
    if oldest is not newest:
        ledger = load_snapshot(connection, keys, oldest, None)
        return Recovered(ledger, oldest.position, oldest), f"snapshot {oldest.snapshot_id.decode()} and the log"
    stream = connection.stream_state(keys.log)
    if not newest.position.unbroken or stream is None or stream.entries_added > stream.length:
        raise SnapshotError("there is one snapshot of this log, and the log no longer goes back to its start")
    return Recovered(Ledger(None), Position(offset=FIRST, entries=0), None), "the whole log"


def _named(digests: Mapping[str, Sequence[bytes]]) -> dict[str, str]:
    return {f"segment {name}": b"".join(parts).hex() for name, parts in digests.items()}


def _differences(live: Mapping[str, Any], found: Mapping[str, Any], source: str) -> list[Difference]:
    return [
        Difference(figure=name, actor=live.get(name), other=found.get(name), way=f"state rebuilt from {source}")
        for name in dict.fromkeys((*live, *found))
        if live.get(name) != found.get(name)
    ]
