"""Succession: whether to go on from the own state, or from the one that another leader has saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from token_actor.actor.continuity import find_break

if TYPE_CHECKING:
    from token_actor.actor.follower import Follower
    from token_actor.actor.manifests import Manifest
    from token_actor.transport.ports import Connection


def name_of(manifest: Manifest | None) -> tuple[bytes, int] | None:
    """Return what tells a snapshot from others, also on a server that has lost its keys and counts anew."""
    return None if manifest is None else (manifest.snapshot_id, manifest.taken_ms)


def is_better(
    connection: Connection, log: bytes, follower: Follower, manifest: Manifest | None, *, is_new: bool
) -> bool:
    """Tell whether a leader has saved a state that the own one will never become equal to."""
    if manifest is None:
        return False
    saved, own = manifest.position, follower.position
    if (saved.generation, saved.lost) != (own.generation, own.lost):
        return is_new
    if not follower.replaced:
        return False
    fits = saved.entries > 0 and find_break(connection, log, saved) is None
    return fits or knows_more(follower, manifest)


def knows_more(follower: Follower, manifest: Manifest | None) -> bool:
    """Tell whether a snapshot holds what nobody can read any more of a log that was replaced."""
    own = follower.before if follower.replaced else follower.position
    if manifest is None or own is None:
        return False
    saved = manifest.position
    return (saved.generation, saved.lost) == (own.generation, own.lost) and saved.entries > own.entries
