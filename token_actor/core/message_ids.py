"""Message ids: the ids that callers gave, exactly (no hash may stand for an id), bounded by count and by age.

Every id has a number, counted from the first one that ever came. The ids lie in blocks of their
numbers. A full block never changes again, except that ids are forgotten by request, which exchanges
the list of its ids for another; so a picture of all ids is a list of blocks.

Ids age by a clock that never moves back, also where log time does: by the latest time at which one
came. A clock that was wrong for a while would let ids age by what it was wrong by otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from token_actor.core.blocks import Segment, Tree, numbered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from token_actor.core.columns import Int64s

MESSAGE_IDS_MAX: Final = 1_000_000
MESSAGE_ID_AGE_MS_MAX: Final = 35 * 86_400_000  # no event may claim to be older, so no honest resend is
_ID_BITS: Final = 14  # 16,384 ids are one segment of a snapshot: with ids of 40 bytes just below a mebibyte
_SIZE: Final = 1 << _ID_BITS
_INSIDE: Final = _SIZE - 1  # the bits of a number that are its place inside its block


@dataclass(slots=True)
class _Block:
    """Hold the ids of one block (``None`` where one was forgotten), their fingerprints and log times.

    The list grows at its end; what lies in it never changes.
    """

    ids: list[str | None]
    fingerprints: Int64s
    log_ms: Int64s
    changes: int = 0  # of what was closed


class MessageIds:
    """Know message ids, with a fingerprint of the numbers that came with each.

    The fingerprint only tells a repetition from a conflict; whether an id is known is decided by
    the id itself.
    """

    def __init__(self, *, ids_max: int = MESSAGE_IDS_MAX, age_ms_max: int = MESSAGE_ID_AGE_MS_MAX) -> None:
        """Start knowing none."""
        self.next_number = 0
        self._first = 0  # the number of the oldest id that is neither too old nor too many
        self._ids_max = ids_max
        self._age_ms_max = age_ms_max
        self._newest_ms = 0  # when the last id came that was new
        self._number_of: dict[str, int] = {}
        self._blocks: dict[int, _Block] = {}

    def __len__(self) -> int:
        """Return how many ids are known."""
        return len(self._number_of)

    def __contains__(self, message_id: str) -> bool:
        """Tell whether an id is known."""
        return message_id in self._number_of

    def see(
        self, ids: Sequence[str], fingerprints: Int64s | Sequence[int], log_ms: Int64s | Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Mark ``ids`` as known; return the places of the duplicates and of the conflicts among them.

        A place is an index into ``ids``; ``log_ms`` are their log times, in order. The first one of an
        id wins, also within one call. The result never depends on how the log was cut into reads.
        """
        fingerprints = np.asarray(fingerprints, dtype=np.int64)
        log_ms = np.maximum(np.asarray(log_ms, dtype=np.int64), self._newest_ms)
        known = self._number_of
        fresh = dict(zip(ids, range(self.next_number, self.next_number + len(ids)), strict=True))
        if len(fresh) == len(ids) and known.keys().isdisjoint(fresh):  # the everyday case, all of it in C
            known.update(fresh)
            self._append(ids, fingerprints, log_ms)
            self._drop(self.next_number - self._first - self._ids_max)
            self._forget_older_than(int(log_ms[-1]) - self._age_ms_max)
            return [], []
        return self._see_one_by_one(ids, fingerprints.tolist(), log_ms.tolist())

    def _see_one_by_one(
        self, ids: Sequence[str], fingerprints: list[int], log_ms: list[int]
    ) -> tuple[list[int], list[int]]:
        duplicates: list[int] = []
        conflicts: list[int] = []
        now_ms = None
        for place, (message_id, fingerprint, ms) in enumerate(zip(ids, fingerprints, log_ms, strict=True)):
            if ms != now_ms:
                now_ms = ms
                self._forget_older_than(ms - self._age_ms_max)
            number = self._number_of.get(message_id)
            if number is None:
                self._number_of[message_id] = self.next_number
                self._append([message_id], fingerprint, ms)
                self._drop(self.next_number - self._first - self._ids_max)
            else:
                first = self._blocks[number >> _ID_BITS].fingerprints.item(number & _INSIDE)
                (duplicates if first == fingerprint else conflicts).append(place)
        return duplicates, conflicts

    def _append(self, ids: Sequence[str | None], fingerprints: Int64s | int, log_ms: Int64s | int) -> None:
        """Take ids with the next numbers; a single int stands for as many as there are ids."""
        begin = self.next_number
        self.next_number += len(ids)
        self._newest_ms = log_ms if isinstance(log_ms, int) else int(log_ms[-1])
        for number, start, stop in numbered(begin, self.next_number, _ID_BITS):
            block = self._blocks.get(number)
            if block is None:
                empty = np.zeros((2, _SIZE), dtype=np.int64)
                block = self._blocks[number] = _Block([], empty[0], empty[1])
            part, at = slice(start - begin, stop - begin), start & _INSIDE
            inside = slice(at, at + stop - start)
            block.ids += [None] * (at - len(block.ids))  # only after a restore, where the first block begins inside
            block.ids += ids[part]
            block.fingerprints[inside] = fingerprints if isinstance(fingerprints, int) else fingerprints[part]
            block.log_ms[inside] = log_ms if isinstance(log_ms, int) else log_ms[part]

    def forget(self, ids: Iterable[str]) -> None:
        """Forget ids, whatever their age. Their numbers stay taken until their time has come."""
        gone: dict[int, list[int]] = {}
        for message_id in ids:
            number = self._number_of.pop(message_id, None)
            if number is not None:
                gone.setdefault(number >> _ID_BITS, []).append(number & _INSIDE)
        for number, places in gone.items():
            block = self._blocks[number]
            left = block.ids.copy()
            for place in places:
                left[place] = None
            self._blocks[number] = replace(block, ids=left, changes=block.changes + 1)

    def _forget_older_than(self, log_ms: int) -> None:
        while self._first < self.next_number:
            block, at = self._blocks[self._first >> _ID_BITS], self._first & _INSIDE
            if block.log_ms[at] >= log_ms:
                return
            self._drop(int(np.searchsorted(block.log_ms[at : len(block.ids)], log_ms)))

    def _drop(self, count: int) -> None:
        """Drop the ``count`` oldest."""
        while count > 0:
            number, at = self._first >> _ID_BITS, self._first & _INSIDE
            ids = self._blocks[number].ids
            dropped = ids[at : at + count]
            for message_id in dropped:
                if message_id is not None:
                    del self._number_of[message_id]
            self._first += len(dropped)
            count -= len(dropped)
            if at + len(dropped) == _SIZE:
                del self._blocks[number]

    def capture(self) -> list[Segment]:
        """Return the segments of the ids."""
        segments = []
        for number, start, stop in numbered(self._first, self.next_number, _ID_BITS):
            block = self._blocks[number]
            token = (start, stop, block.changes)
            segments.append(Segment(f"message_ids/{number}", token, partial(_tree, block, start, stop)))
        return segments

    def restore(self, trees: Iterable[Tree], next_number: int) -> None:
        """Take over what ``capture`` made, and the number of the next id."""
        self._first = self.next_number = next_number
        for place, tree in enumerate(trees):
            if place == 0:
                self._first = tree["first"]
            self.next_number = tree["first"]
            self._append(tree["ids"], tree["fingerprints"], tree["log_ms"])
            numbers = range(tree["first"], self.next_number)
            self._number_of.update(
                (message_id, number)
                for message_id, number in zip(tree["ids"], numbers, strict=True)
                if message_id is not None
            )


def _tree(block: _Block, start: int, stop: int) -> Iterator[Tree]:
    inside = slice(start & _INSIDE, (start & _INSIDE) + stop - start)
    yield {
        "first": start,
        "ids": block.ids[inside],
        "fingerprints": block.fingerprints[inside],
        "log_ms": block.log_ms[inside],
    }
