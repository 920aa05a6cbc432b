"""Places: the partitions of a namespace, who leads them, and up to where they have been counted."""

from __future__ import annotations

from itertools import chain, count
from typing import TYPE_CHECKING, Final

from token_actor.actor.leadership import is_given_back
from token_actor.actor.manifests import list_manifests
from token_actor.core.usage import DEFAULT_TENANT
from token_actor.errors import ServerRefused
from token_actor.transport.ports import FIRST, Delete
from token_actor.wire.entries import id_pair
from token_actor.wire.keys import Keys, partition_of

if TYPE_CHECKING:
    from token_actor.client.questions import Questions
    from token_actor.transport.ports import Connection

_PARTITIONS: Final = b"partitions"


def partition_count(connection: Connection, namespace: str) -> int | None:
    """Return how many partitions a namespace has; ``None`` while no actor has ever served it."""
    written = connection.get_fields(Keys(namespace).meta).get(_PARTITIONS)
    return None if written is None else int(written)


def all_keys(connection: Connection, namespace: str) -> list[Keys]:
    """Return the keys of every partition of a namespace; of one while no actor has ever served it."""
    return [Keys(namespace, partition) for partition in range(partition_count(connection, namespace) or 1)]


def tenant_in(partition: int, partitions: int) -> str:
    """Return a tenant that would live in a partition: what routes a question about the partition itself."""
    names = chain([DEFAULT_TENANT], map("tenant-{}".format, count()))
    return next(name for name in names if partition_of(name, partitions) == partition)


def leader_of(connection: Connection, keys: Keys) -> str | None:
    """Return who leads a partition, as ``<epoch>:<holder>``; ``None`` when nobody does."""
    lease = connection.get(keys.leader)
    return None if lease is None or is_given_back(lease) else lease.decode("utf-8", "replace")


def end_of_log(connection: Connection, keys: Keys) -> bytes:
    """Return the id of the last entry of a log; ``0-0`` when there is none."""
    stream = connection.stream_state(keys.log)
    return FIRST if stream is None else stream.last_id


def counted_up_to(client: Questions, entry_id: bytes, *, tenant: str | None = None, timeout_s: float) -> bool:
    """Tell whether the actor has counted the log up to an entry.

    Waits for its answer; raises ``ActorUnavailable`` after ``timeout_s`` seconds.
    """
    offset: str = client.status(tenant=tenant, timeout_s=timeout_s)["offset"]
    return id_pair(offset.encode()) >= id_pair(entry_id)


def remove_namespace(connection: Connection, namespace: str) -> None:
    """Delete everything of a namespace that nobody serves any more, for good; inboxes go by themselves.

    Raises ``ServerRefused`` when the server does not allow that.
    """
    for keys in all_keys(connection, namespace):
        chunks = [
            keys.chunk(chunk.snapshot_id, chunk.number)
            for manifest in list_manifests(connection, keys)
            for chunk in manifest.chunks
        ]
        streams = [keys.log, keys.ask, keys.dead, keys.notices, keys.snapshots]
        _delete(connection, [*chunks, *streams, keys.leader, keys.epoch])
    _delete(connection, [Keys(namespace).meta])


def _delete(connection: Connection, names: list[bytes]) -> None:
    for outcome in connection.write([Delete(keys=names)]):
        if isinstance(outcome, ServerRefused):
            raise outcome
