"""Blocks: a picture of arrays that go on changing, taken at once and looked at later.

A picture refers to the arrays and copies nothing. Whoever is about to change a block says so first,
and every picture that still needs that block copies it then. Where arrays are exchanged for others
(because they grew, or because rows were numbered anew), the picture keeps the old ones, which nobody
changes any more.

A *segment* is a piece of a picture with a name of its own. Its *token* says whether it can have changed:
two pictures of one ledger in memory whose segments have the same name and the same token hold the same.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

Tree: TypeAlias = "dict[str, Any]"  # plain values and arrays, ready to be packed
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_OLDEST_TAKEN: Final = 1024  # at once: finding the first one of a dict passes over the gaps of those deleted


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Hold one piece of a picture. The token ``None`` says that nobody knows whether it changed.

    ``make`` returns its trees in order, each of them a small piece of work; it may be called until
    ``release`` was, which says that the segment is no longer needed.
    """

    name: str
    token: Hashable
    make: Callable[[], Iterable[Tree]]
    release: Callable[[], None] = _nothing


class Picture:
    """Hold blocks as they were when the picture was taken."""

    def __init__(self, blocks: Iterable[int], copy: Callable[[int], Tree]) -> None:
        """Refer to ``blocks``; ``copy`` copies one, as long as nobody has changed it."""
        self._needed = set(blocks)
        self._copy = copy
        self._kept: dict[int, Tree] = {}

    def keep(self, blocks: Iterable[int]) -> None:
        """Copy those of ``blocks`` that are still needed: they are about to change."""
        for block in self._needed.intersection(blocks):
            if block not in self._kept:
                self._kept[block] = self._copy(block)

    def make(self, block: int) -> Iterator[Tree]:
        """Yield a block as it was."""
        assert block in self._needed, "a block is made before it is released"
        kept = self._kept.get(block)
        yield self._copy(block) if kept is None else kept

    def release(self, block: int) -> None:
        """Let go of a block."""
        self._needed.discard(block)
        self._kept.pop(block, None)


class Pictures:
    """Know the pictures that somebody still looks at."""

    def __init__(self) -> None:
        """Start with none."""
        self._taken: WeakSet[Picture] = WeakSet()

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return len(self._taken) > 0

    def take(self, blocks: Iterable[int], copy: Callable[[int], Tree]) -> Picture:
        """Return a picture of ``blocks``."""
        picture = Picture(blocks, copy)
        self._taken.add(picture)
        return picture

    def keep(self, blocks: Iterable[int]) -> None:
        """Let every picture copy what it needs of ``blocks``, which are about to change."""
        blocks = list(blocks)
        for picture in self._taken:
            picture.keep(blocks)


class Oldest(Generic[_Key, _Value]):
    """Drop the oldest item of a dict, again and again, without passing over the gaps each time.

    An item that moves to the end of the dict, or comes again, does so with another value object.
    """

    def __init__(self, items: dict[_Key, _Value]) -> None:
        """Look after ``items``."""
        self._items = items
        self._queue: deque[tuple[_Key, _Value]] = deque()

    def drop(self) -> None:
        """Drop the oldest item of a dict that is not empty."""
        while True:
            if not self._queue:
                self._queue.extend(islice(self._items.items(), _OLDEST_TAKEN))
            key, value = self._queue.popleft()
            if self._items.get(key) is value:
                del self._items[key]
                return


def numbered(first: int, end: int, bits: int) -> Iterator[tuple[int, int, int]]:
    """Yield (block, start, stop) of the numbers from ``first`` to ``end``, in blocks of ``2**bits``."""
    for block in range(first >> bits, -(-end >> bits) if first < end else 0):
        yield block, max(first, block << bits), min(end, (block + 1) << bits)
