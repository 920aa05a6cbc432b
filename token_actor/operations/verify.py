"""Verify: the books of the actor against each other, and against what the log says.

The actor adds its totals up in every way it has. Then the newest snapshot and the log after it are
folded once more, here and independently of the actor, up to the very entry its answer speaks of.

At last the snapshots are held against each other: the oldest one and the log after it must come to the
newest one, to the last byte. The *state hash* says so in one word; see ``states``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from token_actor.actor.manifests import list_manifests
from token_actor.actor.recovery import Recovered, recover, replay
from token_actor.core.queries import answer
from token_actor.errors import SnapshotError
from token_actor.operations.places import partition_count, tenant_in
from token_actor.operations.states import Difference, compare_states
from token_actor.wire.entries import id_pair
from token_actor.wire.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from token_actor.client.questions import Questions
    from token_actor.transport.ports import Connection


ATTEMPTS_MAX: Final = 5  # a snapshot every minute may overtake one attempt, not five


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Hold what the verification of one partition came to.

    ``snapshot`` is the one the rebuild began with, ``None`` when it was the empty ledger;
    ``replayed`` counts the entries of the log after it. ``problem`` says why there was no rebuild.
    ``state_hash`` is that of the newest snapshot, ``state_hash_replayed`` what another one and the
    log come to; ``state_source`` says which one, or why there was nothing to compare with.
    """

    partition: int
    offset: str
    entries: int
    ways: int
    total: Mapping[str, int]
    differences: tuple[Difference, ...]
    snapshot: str | None = None
    replayed: int = 0
    problem: str | None = None
    state_hash: str | None = None
    state_hash_replayed: str | None = None
    state_source: str = ""

    @property
    def balanced(self) -> bool:
        """Tell whether everything agrees."""
        return not self.differences and self.problem is None

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"balanced": self.balanced, **asdict(self), "differences": [asdict(d) for d in self.differences]}


def verify(client: Questions, connection: Connection, namespace: str) -> list[Verification]:
    """Verify every partition of a namespace; waits for the actor, and for the log to be read again.

    Raises ``ActorUnavailable`` when an actor does not answer.
    """
    partitions = partition_count(connection, namespace) or 1
    return [
        verify_partition(client, connection, Keys(namespace, partition), tenant_in(partition, partitions))
        for partition in range(partitions)
    ]


def verify_partition(client: Questions, connection: Connection, keys: Keys, tenant: str) -> Verification:
    """Verify one partition; ``tenant`` is any that lives in it."""
    attempt = _attempt(client, connection, keys, tenant)
    for _ in range(ATTEMPTS_MAX - 1):
        if attempt is not None:
            break
        attempt = _attempt(client, connection, keys, tenant)
    if attempt is None:
        raise SnapshotError("snapshots were taken faster than they could be read; try again when there is less to do")
    return attempt


def _attempt(client: Questions, connection: Connection, keys: Keys, tenant: str) -> Verification | None:
    """Verify once; ``None`` when a snapshot overtook the actor's answer, so that it cannot be rebuilt."""
    books, status = client.books(tenant=tenant), client.status(tenant=tenant)
    found = [
        Difference(figure=d["counter"], actor=d["total"], other=d["found"], way=d["way"]) for d in books["differences"]
    ]
    problem, snapshot, replayed = None, None, 0
    try:
        rebuilt = recover(connection, keys)
        if id_pair(rebuilt.position.offset) > id_pair(books["offset"].encode()):
            return None
        snapshot = None if rebuilt.manifest is None else rebuilt.manifest.snapshot_id
        begun_with = rebuilt.position.entries
        found += _compared(connection, keys, rebuilt, books, status)
        replayed = rebuilt.position.entries - begun_with
    except SnapshotError as error:
        problem = f"the state cannot be rebuilt: {error}"
    kept = list_manifests(connection, keys)
    if snapshot is not None and all(manifest.snapshot_id != snapshot for manifest in kept):
        return None  # three newer ones were taken meanwhile, and the log under our feet was trimmed
    states = compare_states(connection, keys, kept)
    if states.overtaken:
        return None
    return Verification(
        partition=keys.partition,
        offset=status["offset"],
        entries=status["entries"],
        ways=books["ways"],
        total=books["total"],
        differences=(*found, *states.differences),
        snapshot=None if snapshot is None else snapshot.decode(),
        replayed=replayed,
        problem=problem,
        state_hash=states.live,
        state_hash_replayed=states.replayed,
        state_source=states.source,
    )


def _compared(
    connection: Connection, keys: Keys, rebuilt: Recovered, books: Mapping[str, Any], status: Mapping[str, Any]
) -> Iterator[Difference]:
    """Yield what a rebuild makes of the log in another way than the actor, first for the older answer."""
    for kind, told in (("books", books), ("status", status)):
        until = told["offset"].encode()
        replay(connection, keys, rebuilt, epoch=0, on_read=lambda *_: None, until=until)
        again = {**answer(rebuilt.ledger, kind, {}, 0), "entries": rebuilt.position.entries}
        expected = _flat({name: told[name] for name in again if name != "differences"})
        found = _flat({name: again[name] for name in again if name != "differences"})
        for figure in dict.fromkeys((*expected, *found)):
            actor, other = expected.get(figure, 0), found.get(figure, 0)
            if actor != other:
                yield Difference(figure=figure, actor=actor, other=other, way=f"{kind} rebuilt from the log")


def _flat(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures with the maps among them spread out: ``dead`` of ``decode`` is ``dead.decode``."""
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{inner}": figure for inner, figure in value.items()})
        else:
            flat[name] = value
    return flat
