"""Estimates: what a call may use when its caller does not say, learned from the last calls of its kind.

Calls of one tenant, agent and model are a *group*. The last ``KEPT`` counted requests of each are
kept, and of each kind of token, and of the cost, a high quantile of them is the estimate: what is held
should be enough for nearly every call, and settling gives the rest back at once.

What comes in is only put aside, and sorted into the groups when somebody asks, a snapshot is taken, or
much is waiting: so its cost per request is small however small the reads are, and nobody can tell when
it was.

Bound: ``GROUPS_MAX`` groups, 1.3 KB each. Requests of all further ones share a group, ``__other__``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from token_actor.core.blocks import Segment, Tree, numbered
from token_actor.core.columns import grown
from token_actor.core.limits import MEASURES, Estimate
from token_actor.core.series import OTHER
from token_actor.core.usage import COST_NANOUSD_MAX, DIMENSIONS, SEPARATOR, TOKEN_KINDS, TOKENS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from token_actor.core.columns import Int64s
    from token_actor.core.series import SeriesTable

GROUPS_MAX: Final = 4_096  # 5 MB with all of them; with ``__other__``, their numbers fit 16 bits
KEPT: Final = 32  # requests of a group: the estimate is the second highest, about the 95th percentile
TOKENS_DEFAULT: Final = 4_096  # of any kind, where nothing was learned: a usual call of an agent with its context
COST_LEAST: Final = 1  # nano-USD of a call whose cost nobody knows: it does not fit into a budget that is used up
GIVEN, LEARNED, DEFAULT = "given", "learned", "default"  # where an estimate comes from
SOURCES: Final = (GIVEN, LEARNED, DEFAULT)
_MODEL_GROUPS_MAX: Final = 32  # groups of a model looked at for one of its agents that is new
_COLUMNS: Final = len(TOKEN_KINDS) + 1  # and the cost
_MAXIMA: Final = (*(TOKENS_MAX,) * len(TOKEN_KINDS), COST_NANOUSD_MAX)
_OF_GROUP: Final = tuple(map(DIMENSIONS.index, ("tenant", "agent", "model")))
_OF_MODEL: Final = tuple(map(DIMENSIONS.index, ("tenant", "model")))
_SHARED: Final = SEPARATOR.join([OTHER] * len(_OF_GROUP))
_WAITING_MAX: Final = 65_536  # requests put aside, 50 bytes each; to sort them in takes about a millisecond
_READS_MAX: Final = 1_024  # reads they came in, each of which is half a kilobyte of array headers
_FIRST_CAPACITY: Final = 64
_GROUP_BITS: Final = 9  # 512 groups, about 650 KB, are one segment of a snapshot


class Estimated(NamedTuple):
    """Say what a call is taken to use, and where that comes from."""

    estimate: Estimate
    source: str

    def as_map(self) -> dict[str, Any]:
        """Return what a decision shows: the source, and every measure that is not 0."""
        tokens, kinds, cost_nanousd, requests = self.estimate[1:]
        measures = dict(zip(MEASURES, (tokens, *kinds), strict=True))
        measures |= {"cost_nanousd": cost_nanousd, "requests": requests}
        return {"source": self.source, **{name: value for name, value in measures.items() if value}}


class RecentRequests:
    """Keep the last requests of each group, and estimate the next one.

    ``_ring`` has shape (groups, KEPT, 5): the four kinds of token and the cost in nano-USD. ``_seen`` is how
    many requests each group ever had, so number ``n`` is in slot ``n % KEPT``.
    """

    def __init__(self, series: SeriesTable) -> None:
        """Start with none; ``series`` is where the rows have their names."""
        self._series = series
        self._reads: list[tuple[Int64s, Int64s, Int64s]] = []
        self._waiting = 0
        self._groups: dict[str, int] = {}
        self._of_model: dict[str, list[int]] = {}
        self._seen: Int64s = np.zeros(_FIRST_CAPACITY, dtype=np.int64)
        self._ring: Int64s = np.zeros((_FIRST_CAPACITY, KEPT, _COLUMNS), dtype=np.int64)
        self._group_of_row: NDArray[np.int16] = np.zeros(0, dtype=np.int16)
        self._rows_known = 0

    def add(self, rows: Int64s, counts: Int64s, cost: Int64s) -> None:
        """Take requests in log order; ``counts`` has shape (5, n), ``cost`` is in nano-USD. Nobody may change them."""
        self._reads.append((rows, counts, cost))
        self._waiting += len(rows)
        if self._waiting >= _WAITING_MAX or len(self._reads) >= _READS_MAX:
            self._sort_in()

    def _sort_in(self) -> None:
        """Put what waits where it belongs."""
        self._know_rows()
        if not self._reads:
            return
        rows, counts, cost = self._reads[0] if len(self._reads) == 1 else map(_joined, zip(*self._reads, strict=True))
        self._reads, self._waiting = [], 0
        groups = self._group_of_row[rows]
        order = np.argsort(groups, kind="stable")  # of 16 bits: a radix sort
        ordered = groups[order]
        ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, len(ordered))
        starts = np.append(0, ends[:-1])
        self._seen[ordered[starts]] += ends - starts
        kept = np.minimum(ends - starts, KEPT)  # of each group the last ones
        back = np.repeat(np.cumsum(kept), kept) - np.arange(kept.sum())  # counted from the last one, which is 1
        places = np.repeat(ends, kept) - back
        of, events = ordered[places], order[places]
        slots = (self._seen[of] - back) % KEPT
        for column, values in enumerate((*counts[: len(TOKEN_KINDS)], cost)):
            self._ring[of, slots, column] = values[events]

    def _know_rows(self) -> None:
        """Learn of which group the new rows are; the groups are numbered in the order of their first rows."""
        known, count = self._rows_known, len(self._series)
        if known == count:
            return
        if count > len(self._group_of_row):
            self._group_of_row = grown(self._group_of_row, max(count, 2 * known))
        codes = np.zeros(count - known, dtype=np.int64)
        for place in _OF_GROUP:
            codes = codes * len(self._series.names[place]) + self._series.codes[place, known:count]
        _, first, each = np.unique(codes, return_index=True, return_inverse=True)
        groups = np.zeros(len(first), dtype=np.int16)
        for new in np.argsort(first).tolist():
            names = self._series.keys[known + int(first[new])].split(SEPARATOR)
            groups[new] = self._index(_named(_OF_GROUP, names))
        self._group_of_row[known:count] = groups[each]
        self._rows_known = count

    def _index(self, name: str) -> int:
        """Return the number of a group, a new one if there is room, else that of all others."""
        if name not in self._groups and len(self._groups) >= GROUPS_MAX:
            name = _SHARED
        if name not in self._groups:
            self._take(name)
        return self._groups[name]

    def _take(self, name: str) -> None:
        group = self._groups[name] = len(self._groups)
        tenant, _, model = name.split(SEPARATOR)
        self._of_model.setdefault(SEPARATOR.join([tenant, model]), []).append(group)
        if group == len(self._seen):
            more = np.zeros_like(self._ring)
            self._seen, self._ring = grown(self._seen, 2 * group), np.concatenate([self._ring, more])

    def forget_rows(self) -> None:
        """Forget which series is of which group: rows are about to be numbered anew."""
        self._sort_in()
        self._rows_known = 0

    def completed(
        self, names: Sequence[str], estimate: Estimate, given: Mapping[str, Any], *, for_money: bool = False
    ) -> Estimated:
        """Return ``estimate`` if ``given`` names any count or a cost, else what was learned of these seven names.

        ``for_money`` says that limits count money: then a cost that was not given is what was learned, and
        at least ``COST_LEAST``.
        """
        unpriced = given.get("cost_usd") is None
        if is_unmeasured(given):
            found = self.estimate(names, estimate)
            cost_nanousd = found.estimate.cost_nanousd
        else:
            found = Estimated(estimate, GIVEN)
            cost_nanousd = self.estimate(names, estimate).estimate.cost_nanousd if unpriced and for_money else 0
        if unpriced and for_money:
            cost_nanousd = max(cost_nanousd, min(COST_LEAST, estimate.requests))
            return found._replace(estimate=found.estimate._replace(cost_nanousd=cost_nanousd))
        return found

    def estimate(self, names: Sequence[str], asked: Estimate) -> Estimated:
        """Return what the calls asked for (``requests`` of them) may use, going by the last ones of their group.

        A group without requests is estimated as those of its model; of a model that is not known
        either, a call is taken to use ``TOKENS_DEFAULT``, and nothing of the cost.
        """
        self._sort_in()
        of_model = self._of_model.get(_named(_OF_MODEL, names), [])[-_MODEL_GROUPS_MAX:]
        shared = _SHARED if len(self._groups) >= GROUPS_MAX else ""
        high = (
            self._high(self._only(_named(_OF_GROUP, names))) or self._high(of_model) or self._high(self._only(shared))
        )
        if high is None:
            tokens = min(TOKENS_DEFAULT * asked.requests, TOKENS_MAX)
            return Estimated(asked._replace(tokens=tokens), DEFAULT)
        *kinds, cost_nanousd = [min(each * asked.requests, most) for each, most in zip(high, _MAXIMA, strict=True)]
        return Estimated(asked._replace(kinds=tuple(kinds), cost_nanousd=cost_nanousd), LEARNED)

    def _only(self, name: str) -> list[int]:
        return [self._groups[name]] if name in self._groups else []

    def _high(self, groups: Sequence[int]) -> list[int] | None:
        """Return the high quantile of each column: of ``KEPT`` requests the second highest, of fewer the highest.

        ``None`` when the groups have no requests.
        """
        filled = np.arange(KEPT) < self._seen[groups][:, np.newaxis]
        ordered = np.sort(self._ring[groups][filled], axis=0)
        if len(ordered) == 0:
            return None
        high: list[int] = ordered[len(ordered) - 1 - len(ordered) // KEPT].tolist()
        return high

    def capture(self) -> list[Segment]:
        """Return the segments of the groups. They are copied now, because nearly every read changes some."""
        self._sort_in()
        names = list(self._groups)
        seen, ring = self._seen[: len(names)].copy(), self._ring[: len(names)].copy()
        return [
            Segment(
                f"estimates/{block}",
                (int(seen[start:stop].sum()), stop),
                partial(_listed, names[start:stop], seen[start:stop], ring[start:stop]),
            )
            for block, start, stop in numbered(0, len(names), _GROUP_BITS)
        ]

    def restore(self, trees: Iterable[Tree]) -> None:
        """Take over what ``capture`` made."""
        for tree in trees:
            for name, seen, requests in zip(tree["groups"], tree["seen"], tree["requests"], strict=True):
                group = self._index(name)
                self._seen[group], self._ring[group] = seen, requests


def _listed(names: list[str], seen: Int64s, requests: Int64s) -> Iterator[Tree]:
    yield {"groups": names, "seen": seen, "requests": requests}


def _joined(columns: Sequence[Int64s]) -> Int64s:
    return np.concatenate(columns, axis=-1)


def _named(places: Sequence[int], names: Sequence[str]) -> str:
    return SEPARATOR.join([names[place] for place in places])


def is_unmeasured(given: Mapping[str, Any]) -> bool:
    """Tell whether a call says nothing of what it may use."""
    return given.get("cost_usd") is None and given.keys().isdisjoint(MEASURES)
