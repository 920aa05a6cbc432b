"""Rows: which blocks of the ledger's rows changed, and pictures of them.

The ledger says which rows it is about to change, once for a whole read.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from token_actor.core.blocks import Pictures, Segment, Tree, numbered
from token_actor.core.columns import grown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from token_actor.core.columns import Int64s

_ROW_BITS: Final = 12  # 4096 rows of 136 bytes: half a mebibyte to copy, which takes less than a millisecond


class RowBlocks:
    """Note what changes in the arrays of the rows, whose last axis is the row."""

    def __init__(self) -> None:
        """Start with nothing changed."""
        self._changes = 0
        self._changed: Int64s = np.zeros(1, dtype=np.int64)  # per block the number of its last change
        self._pictures = Pictures()

    def change(self, rows: Int64s) -> None:
        """Say that ``rows``, at least one, are about to change."""
        counts = np.bincount(rows >> _ROW_BITS)
        if len(counts) > len(self._changed):
            self._changed = grown(self._changed, 2 * len(counts))
        blocks = np.flatnonzero(counts)
        self._changes += 1
        self._changed[blocks] = self._changes
        if self._pictures:
            self._pictures.keep(blocks.tolist())

    def exchange(self) -> None:
        """Say that the arrays were exchanged for others with other numbers."""
        self._changes += 1
        self._changed[:] = self._changes

    def capture(self, arrays: Mapping[str, Int64s], rows: int) -> list[Segment]:
        """Return the segments of the first ``rows`` rows of ``arrays``."""
        spans = {block: (start, stop) for block, start, stop in numbered(0, rows, _ROW_BITS)}

        def copy(block: int) -> Tree:
            start, stop = spans[block]
            return {name: array[..., start:stop].copy() for name, array in arrays.items()}

        picture = self._pictures.take(spans, copy)
        self._changed = grown(self._changed, max(len(self._changed), len(spans)))
        return [
            Segment(
                f"rows/{block}",
                (int(self._changed[block]), stop),
                partial(picture.make, block),
                partial(picture.release, block),
            )
            for block, (_, stop) in spans.items()
        ]


def restored(trees: Iterable[Tree]) -> dict[str, Int64s]:
    """Return the arrays of what ``RowBlocks.capture`` made; none for no trees."""
    parts = list(trees)
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in (parts[0] if parts else ())}
