"""The watermark: what the answer of an actor means for batches that are kept. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from token_actor.core.progress import SEEN_RANGES_MAX
from token_actor.wire.entries import id_pair

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from token_actor.client.store import Batch


class Watermark(NamedTuple):
    """Ask the actor of a partition what it has seen of a producer."""

    partition: int
    producer: bytes
    epochs: list[int]


class Progress(NamedTuple):
    """Hold how far an actor is: up to where it folded which log, and where that ends.

    What an actor does not say only delays the end of a batch.
    """

    generation: int | None
    offset: tuple[int, int]
    log_end: tuple[int, int] | None = None

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Progress:
        """Return what an answer to ``producer`` says."""
        offset, log_end = (id_pair(str(answer.get(name, "0-0")).encode()) for name in ("offset", "log_end"))
        return cls(answer.get("generation"), offset, log_end if "log_end" in answer else None)

    def has_passed(self, batch: Batch) -> bool:
        """Tell whether the actor will not read the entry that took a batch, or not in that log."""
        entry = id_pair(batch.entry_id or b"0-0")
        is_gone = self.log_end is not None and entry > self.log_end  # it ended above that once
        return batch.generation != self.generation or self.offset >= entry or is_gone


def safe_batches(batches: dict[int, Batch], seen: Mapping[str, Any]) -> list[Batch]:
    """Return the acknowledged batches that a committed snapshot covers.

    Those are the ones below ``durable``, and those above a hole that are in ``durable_ranges``: a hole may
    stay for ever, when its events are lost for good.
    """
    durable, ranges = seen.get("durable", 0), seen.get("durable_ranges", ())
    safe: list[Batch] = []
    for batch in batches.values():
        if batch.waiting:
            continue
        if batch.stop_seq <= durable or _is_within(batch, ranges):
            safe.append(batch)
        elif not ranges:
            break
    return safe


def batches_to_resend(batches: dict[int, Batch], seen: Mapping[str, Any], progress: Progress) -> list[Batch]:
    """Return, in order, the acknowledged batches that the actor has not seen, and will not see as things are.

    That is so when it has passed their entries, or reads another log than the one that took them.
    """
    unseen: list[Batch] = []
    for batch in reversed(batches.values()):
        if batch.stop_seq <= seen["next_seq"]:
            break
        if batch.waiting or _is_seen(batch, seen) is not False:
            continue
        if progress.has_passed(batch):
            unseen.append(batch)
    unseen.reverse()
    return unseen


def _is_seen(batch: Batch, seen: Mapping[str, Any]) -> bool | None:
    """Tell whether the actor has seen a batch; ``None`` above the ranges that fit into the answer."""
    if batch.stop_seq <= seen["next_seq"]:
        return True
    ranges = seen["ranges"]
    if _is_within(batch, ranges):
        return True
    is_beyond = len(ranges) >= SEEN_RANGES_MAX and batch.key.first_seq >= ranges[-1][1]
    return None if is_beyond else False


def _is_within(batch: Batch, ranges: Sequence[Sequence[int]]) -> bool:
    return any(start <= batch.key.first_seq and batch.stop_seq <= stop for start, stop in ranges)
