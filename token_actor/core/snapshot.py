"""Snapshot: the whole state of a ledger in segments, taken at once and made one after the other, and back.

``Capture`` refers to blocks that no longer change, and to blocks that are copied just before they do
(see ``blocks``); so it takes a few milliseconds however large the state is, and the ledger may go
on while the segments are made. Each tree of a segment is a small piece of work.

What a ledger does not need to remember does not belong here: two ledgers that folded the same log
give equal segments, however the log was cut into reads, and whichever of them was restored on the way.
"""

from __future__ import annotations

from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

from token_actor.core.blocks import Segment, Tree, numbered
from token_actor.core.frames import RESOLUTIONS_MS
from token_actor.core.ledger import ROW_ARRAYS, Baseline, Bounds, Ledger
from token_actor.core.rows import restored
from token_actor.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

STATE_VERSION: Final = 5
_HEAD: Final = "head"
_RESET_BITS: Final = 13  # 8192 baselines are one segment


class Capture:
    """Hold the state of a ledger as it is now, whatever the ledger does next.

    ``marks`` maps (producer, epoch) to what has been seen of it.
    """

    def __init__(self, ledger: Ledger) -> None:
        """Take it. Takes a few milliseconds."""
        marks, self.marks = ledger.producers.capture()
        arrays = {name: getattr(ledger, name) for name in ROW_ARRAYS}
        segments = [
            *ledger.row_blocks.capture(arrays, len(ledger.series)),  # first what changes most
            *ledger.recent.capture(),
            *ledger.series.capture(),
            *marks,
            *ledger.message_ids.capture(),
            *ledger.frames.capture(),
            *ledger.answers.capture(),
            *ledger.requests.capture(),
            *_resets(ledger.resets.copy()),
            *_limits(ledger),
        ]
        head = {
            "version": STATE_VERSION,
            "segments": [segment.name for segment in segments],
            "log_ms": ledger.log_ms,
            "time": ledger.time.dump(),
            "dead": dict(sorted(ledger.dead.items())),
            "missing": ledger.producers.missing,
            "next_place": ledger.recent.next_place,
            "next_id": ledger.message_ids.next_number,
            "frames": ledger.frames.rest(),
        }
        self._segments = [*segments, Segment(_HEAD, None, lambda: [head])]

    def segments(self) -> Iterator[Segment]:
        """Yield every segment, once; each may be made until the next one is drawn."""
        for segment in self._segments:
            yield segment
            segment.release()


def _resets(resets: Mapping[tuple[str, str], Baseline]) -> Iterator[Segment]:
    for block, start, stop in numbered(0, len(resets), _RESET_BITS):
        yield Segment(f"resets/{block}", None, partial(_listed, resets, start, stop))


def _limits(ledger: Ledger) -> Iterator[Segment]:
    """Yield what is limited and reserved, in one piece: its size follows what is in use, not what was ever used."""
    if ledger.limits.version or ledger.reservations.open or ledger.reservations.closed or ledger.admission.escrows:
        tree = {
            "limits": ledger.limits.dump(),
            "reservations": ledger.reservations.dump(),
            "waiting": ledger.admission.dump(),
        }
        yield Segment("limits/0", None, lambda: [tree])


def _listed(resets: Mapping[tuple[str, str], Baseline], start: int, stop: int) -> Iterator[Tree]:
    some = islice(resets.items(), start, stop)
    yield {"resets": [[*key, base.place, base.log_ms, list(base.sums)] for key, base in some]}


def restore(segments: Mapping[str, Sequence[Tree]], bounds: Bounds | None = None) -> Ledger:
    """Return a ledger with the state whose segments these are.

    Raises ``SnapshotError`` for another version, and when a segment is missing.
    """
    head = _head(segments)
    ledger = Ledger(bounds)
    ledger.log_ms = head["log_ms"]
    ledger.time.restore(head["time"])
    ledger.dead = dict(head["dead"])
    ledger.series.restore(_part(segments, head, "series"))
    for name, array in restored(_part(segments, head, "rows")).items():
        setattr(ledger, name, array)
    ledger.producers.restore(_part(segments, head, "producers"), head["missing"])
    ledger.message_ids.restore(_part(segments, head, "message_ids"), head["next_id"])
    frames = {resolution: _part(segments, head, f"frames/{resolution}") for resolution in RESOLUTIONS_MS}
    ledger.frames.restore(frames, head["frames"])
    recent = list(_part(segments, head, "recent"))
    if any(part["row"].max(initial=-1) >= len(ledger.series) for part in recent):
        raise SnapshotError("the snapshot has an event of a series that it has not")
    ledger.recent.restore(recent, head["next_place"])
    ledger.answers.restore(_part(segments, head, "answers"))
    ledger.requests.restore(_part(segments, head, "estimates"))
    for tree in _part(segments, head, "limits"):
        ledger.limits.restore(tree["limits"])
        ledger.reservations.restore(tree["reservations"])
        ledger.admission.restore(tree["waiting"])
    for tree in _part(segments, head, "resets"):
        for tenant, session, place, log_ms, sums in tree["resets"]:
            ledger.resets[(tenant, session)] = Baseline(place, log_ms, tuple(sums))
    return ledger


def _head(segments: Mapping[str, Sequence[Tree]]) -> dict[str, Any]:
    head = dict(segments[_HEAD][0]) if segments.get(_HEAD) else {}
    if head.get("version") != STATE_VERSION:
        message = f"the snapshot has version {head.get('version')!r}, this program reads {STATE_VERSION}"
        raise SnapshotError(message)
    missing = [name for name in head["segments"] if name not in segments]
    if missing:
        raise SnapshotError(f"the snapshot has no segment {missing[0]!r}")
    return head


def _part(segments: Mapping[str, Sequence[Tree]], head: Mapping[str, Any], part: str) -> Iterable[Tree]:
    """Return the trees of all segments of one part of the state, in order."""
    return chain.from_iterable(segments[name] for name in head["segments"] if name.startswith(part + "/"))
