"""Series: every distinct tuple of dimensions gets a row, and every row can be found by its names.

A series key is the seven names joined by a control character that no name can hold, so a key is
canonical, hashes once, and is checked only when it is seen for the first time.

Bounds: names that nobody can bound (a million models, users, agents) are folded into ``__other__``
once a dimension is full, so totals stay exact. Sessions come and go for ever: the idle ones are
folded in time (see ``folding``); should the rows run out all the same, new ones are counted under
``__other__`` sessions, then agents, and so on.
"""

from __future__ import annotations

from array import array
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from token_actor.core.blocks import Segment, Tree, numbered
from token_actor.core.columns import Int32s, Int64s, grown
from token_actor.core.usage import DIMENSIONS, RESERVED_PREFIX, SEPARATOR, check_series_key
from token_actor.errors import InvalidQuestion, InvalidValue

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

OTHER: Final = "__other__"
ROWS_MAX: Final = 1_000_000  # about 1 KB each with counters, frames, key and indexes: 1 GB at the most
ROWS_KEPT_FOR_OTHER: Final = 0.02  # the share of rows that only __other__ tuples may take
NAMES_MAX: Final = {  # per dimension; sessions are bounded by the rows alone
    "tenant": 10_000,
    "project": 100_000,
    "user": 200_000,
    "agent": 100_000,
    "session": ROWS_MAX,
    "provider": 1_000,
    "model": 10_000,
}
_FOLD_ORDER: Final = ("session", "agent", "user", "project", "model", "provider")  # the most numerous first
_FIRST_CAPACITY: Final = 1024
_SESSION: Final = DIMENSIONS.index("session")
_KEY_BITS: Final = 13  # 8192 keys, about half a mebibyte, are one segment of a snapshot
_BETWEEN_KEYS: Final = "\n"  # a control character, so it occurs in no name


class SeriesTable:
    """Intern series keys to rows, and find rows by names.

    ``codes`` has shape (7, capacity): the code of each name of each row, an index into
    ``names[dimension]``.
    """

    def __init__(self, *, rows_max: int = ROWS_MAX, names_max: Mapping[str, int] = NAMES_MAX) -> None:
        """Start empty."""
        self.keys: list[str] = []
        self._replaced = 0
        self.codes: Int32s = np.zeros((len(DIMENSIONS), _FIRST_CAPACITY), dtype=np.int32)
        self.names: list[list[str]] = [[] for _ in DIMENSIONS]
        self._rows_max = rows_max
        self._names_max = [names_max[dimension] for dimension in DIMENSIONS]
        self._row_of: dict[str, int] = {}
        self._row_of_other: dict[str, int] = {}  # keys with a name of our own, which no sender may use
        self._code_of: list[dict[str, int]] = [{} for _ in DIMENSIONS]
        self._rows_with: list[list[array[int]]] = [[] for _ in DIMENSIONS]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)

    def resolve(self, keys: Sequence[str]) -> tuple[Int64s, dict[int, InvalidValue]]:
        """Return the row of each key, adding rows for new ones, and what is wrong with bad keys.

        A bad key has the row -1 and its problem under its place in ``keys``.
        """
        rows = list(map(self._row_of.get, keys))
        problems: dict[int, InvalidValue] = {}
        if None in rows:
            for place, row in enumerate(rows):
                if row is None:
                    try:
                        rows[place] = self.row(keys[place])
                    except InvalidValue as problem:
                        rows[place] = -1
                        problems[place] = problem
        return np.array(rows, dtype=np.int64), problems

    def row(self, key: str) -> int:
        """Return the row of one key, adding it when it is new. Raises ``InvalidValue``."""
        known = self._row_of.get(key)
        if known is not None:
            return known
        return self._add(self._room_for(check_series_key(key).split(SEPARATOR)))

    def counted_as(self, key: str) -> list[str]:
        """Return the seven names that a canonical key would be counted under now; adds nothing."""
        names = key.split(SEPARATOR)
        return names if key in self._row_of else self._room_for(names)

    def _room_for(self, names: list[str]) -> list[str]:
        """Return the tuple that ``names`` is counted under, which is ``names`` while there is room."""
        for place, name in enumerate(names):
            codes = self._code_of[place]
            if name not in codes and len(codes) >= self._names_max[place]:
                names[place] = OTHER
        room = self._rows_max - int(self._rows_max * ROWS_KEPT_FOR_OTHER)
        for dimension in _FOLD_ORDER:
            key = SEPARATOR.join(names)
            if len(self.keys) < room or key in self._rows_like(key):
                break
            names[DIMENSIONS.index(dimension)] = OTHER
            room = self._rows_max
        return names

    def _add(self, names: list[str]) -> int:
        key = SEPARATOR.join(names)
        row_of = self._rows_like(key)
        known = row_of.get(key)
        if known is not None:
            return known
        row = len(self.keys)
        if row == self.codes.shape[1]:
            self.codes = grown(self.codes, row * 2)
        for place, name in enumerate(names):
            code = self._code_of[place].get(name)
            if code is None:
                code = len(self.names[place])
                self._code_of[place][name] = code
                self.names[place].append(name)
                self._rows_with[place].append(array("i"))
            self.codes[place, row] = code
            self._rows_with[place][code].append(row)
        self.keys.append(key)
        row_of[key] = row
        return row

    def _rows_like(self, key: str) -> dict[str, int]:
        """Return the rows by key that a key belongs to."""
        return self._row_of_other if _has_reserved_name(key) else self._row_of

    def select(self, selector: Mapping[str, str]) -> Int64s | None:
        """Return the rows that match every name of ``selector``; ``None`` means all of them.

        The cost follows the rarest name, not the size of the fleet.
        """
        if not selector:
            return None
        lists = []
        for dimension, name in selector.items():
            code = self._code_of[DIMENSIONS.index(dimension)].get(name)
            if code is None:
                return np.empty(0, dtype=np.int64)
            lists.append((dimension, code, self._rows_with[DIMENSIONS.index(dimension)][code]))
        lists.sort(key=lambda found: len(found[2]))
        rows = np.array(lists[0][2], dtype=np.int64)
        for dimension, code, _ in lists[1:]:
            rows = rows[self.codes[DIMENSIONS.index(dimension), rows] == code]
        return rows

    def group(self, rows: Int64s | None, dimensions: Sequence[str]) -> tuple[Int64s, list[tuple[str, ...]]]:
        """Return the group of each row, and the names of each group in the order of ``dimensions``.

        ``rows`` ``None`` means all rows.
        """
        span: Int64s | slice = slice(len(self)) if rows is None else rows
        groups = np.zeros(len(self) if rows is None else len(rows), dtype=np.int64)
        for dimension in dimensions:
            place = DIMENSIONS.index(dimension)
            groups = groups * len(self.names[place]) + self.codes[place, span]
            _, groups = np.unique(groups, return_inverse=True)  # dense again, so the next product fits
        count = int(groups.max()) + 1 if len(groups) else 0
        example = np.zeros(count, dtype=np.int64)
        example[groups] = np.arange(len(groups)) if rows is None else rows
        places = [DIMENSIONS.index(dimension) for dimension in dimensions]
        return groups, [tuple(self.names[p][self.codes[p, row]] for p in places) for row in example]

    def names_of(self, row: int) -> dict[str, str]:
        """Return the seven names of a row by dimension; an absent one is ``""``."""
        return dict(zip(DIMENSIONS, self.keys[row].split(SEPARATOR), strict=True))

    def code(self, dimension: str, name: str) -> int | None:
        """Return the code of a name, ``None`` when no row has it."""
        return self._code_of[DIMENSIONS.index(dimension)].get(name)

    def capture(self) -> list[Segment]:
        """Return the segments of the keys, in row order."""
        return [
            Segment(f"series/{block}", (self._replaced, stop), partial(_joined, self.keys, start, stop))
            for block, start, stop in numbered(0, len(self.keys), _KEY_BITS)
        ]

    def restore(self, trees: Iterable[Tree]) -> None:
        """Take over what ``capture`` made."""
        self.replace([key for tree in trees for key in tree["keys"].split(_BETWEEN_KEYS)])

    def replace(self, keys: Sequence[str]) -> None:
        """Forget everything and take over distinct, checked keys, in row order."""
        self._take_keys(keys)
        columns = zip(*(key.split(SEPARATOR) for key in keys), strict=True) if keys else ((),) * len(DIMENSIONS)
        for place, column in enumerate(columns):
            names = list(dict.fromkeys(column))
            code_of = dict(zip(names, range(len(names)), strict=True))
            codes = np.fromiter(map(code_of.__getitem__, column), dtype=np.int32, count=len(keys))
            self._take_names(place, names, code_of, codes)

    def fold_sessions(self, rows: Int64s) -> Int64s:
        """Count ``rows`` under the session ``__other__``; return the new row of each old one.

        Only their keys are taken apart; the rest of the work is done on codes.
        """
        keys = list(self.keys)
        for row in rows.tolist():
            names = keys[row].split(SEPARATOR)
            names[_SESSION] = OTHER
            keys[row] = SEPARATOR.join(names)
        kept = list(dict.fromkeys(keys))
        row_of = dict(zip(kept, range(len(kept)), strict=True))
        new_rows = np.fromiter(map(row_of.__getitem__, keys), dtype=np.int64, count=len(keys))
        first = np.empty(len(kept), dtype=np.int64)
        first[new_rows[::-1]] = np.arange(len(keys))[
            ::-1
        ]  # the last assignment wins: the first old row of each new one
        codes, all_names = self.codes[:, : len(keys)].copy(), [*self.names]
        all_names[_SESSION] = [*all_names[_SESSION], OTHER]
        codes[_SESSION, rows] = self._code_of[_SESSION].get(OTHER, len(all_names[_SESSION]) - 1)
        self._take_keys(kept)
        for place, column in enumerate(codes[:, first]):
            used, firsts, inverse = np.unique(column, return_index=True, return_inverse=True)
            order = np.argsort(firsts)  # codes in the order in which their names come, as ``replace`` gives them
            names = [all_names[place][code] for code in used[order].tolist()]
            rank = np.empty(len(order), dtype=np.int32)
            rank[order] = np.arange(len(order), dtype=np.int32)
            self._take_names(place, names, dict(zip(names, range(len(names)), strict=True)), rank[inverse])
        return new_rows

    def _take_keys(self, keys: Sequence[str]) -> None:
        self.keys = list(keys)  # a new list: a picture refers to the old one
        self._replaced += 1
        self._row_of = dict(zip(self.keys, range(len(keys)), strict=True))
        self._row_of_other = {key: self._row_of.pop(key) for key in filter(_has_reserved_name, keys)}
        self.codes = np.zeros((len(DIMENSIONS), max(_FIRST_CAPACITY, len(keys))), dtype=np.int32)

    def _take_names(self, place: int, names: list[str], code_of: dict[str, int], codes: Int32s) -> None:
        """Take over the names of one dimension, and the code of each row."""
        by_code = np.argsort(codes, kind="stable").astype(np.int32)
        starts = np.searchsorted(codes[by_code], np.arange(len(names) + 1)).tolist()
        self.codes[place, : len(codes)] = codes
        self.names[place] = names
        self._code_of[place] = code_of
        rows = array("i", by_code.tobytes())
        self._rows_with[place] = [rows[start:stop] for start, stop in pairwise(starts)]


def _joined(keys: list[str], start: int, stop: int) -> Iterator[Tree]:
    yield {"keys": _BETWEEN_KEYS.join(keys[start:stop])}


def _has_reserved_name(key: str) -> bool:
    return SEPARATOR + RESERVED_PREFIX in key or key.startswith(RESERVED_PREFIX)


def check_selector(selector: object) -> dict[str, str]:
    """Return ``selector`` if it maps dimensions to names. Raises ``InvalidQuestion`` naming the field."""
    if not isinstance(selector, dict):
        raise InvalidQuestion("selector", "must map dimensions to names", reason="type")
    for dimension, name in selector.items():
        if dimension not in DIMENSIONS:
            raise InvalidQuestion(str(dimension), f"is not a dimension; there are {', '.join(DIMENSIONS)}")
        if not isinstance(name, str):
            raise InvalidQuestion(dimension, "must be a name", reason="type")
    return selector
