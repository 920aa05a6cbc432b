"""Fold idle sessions: rows come and go for ever, but there is a bound of them.

When three quarters of the rows are taken, the sessions that were idle longest are counted under the
same tuple with the session ``__other__``, until half of the rows are left. Sums stay exact in
counters, frames and recent events; what is lost is the name of a session nobody has used lately.

It happens where the log enters a new hour, which is a place in the log and not in a read, so whoever
folds the same log folds the same sessions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from token_actor.core.series import OTHER
from token_actor.core.usage import DIMENSIONS

if TYPE_CHECKING:
    from token_actor.core.columns import Int64s
    from token_actor.core.ledger import Ledger

FOLD_ABOVE: Final = 0.75  # the share of the rows above which idle sessions are folded
FOLD_DOWN_TO: Final = 0.5  # so that folding, which looks at every row, is rare
_TENANT: Final = DIMENSIONS.index("tenant")
_SESSION: Final = DIMENSIONS.index("session")


def fold_idle_sessions(ledger: Ledger, rows_kept: int) -> None:
    """Fold the sessions idle longest until about ``rows_kept`` rows are left."""
    ledger.requests.forget_rows()
    new_rows = ledger.series.fold_sessions(_longest_idle(ledger, len(ledger.series) - rows_kept))
    _move_counters(ledger, new_rows, len(ledger.series))
    ledger.frames.renumber(new_rows)
    ledger.recent.renumber(new_rows)
    ledger.limits.forget_rows()
    ledger.resets = {scope: base for scope, base in ledger.resets.items() if _has_rows(ledger, *scope)}


def _has_rows(ledger: Ledger, tenant: str, session: str) -> bool:
    rows = ledger.series.select({"tenant": tenant, "session": session})
    return rows is not None and len(rows) > 0


def _longest_idle(ledger: Ledger, count: int) -> Int64s:
    """Return about ``count`` rows that have a session, the longest idle sessions first.

    A session goes as a whole: the rest of one would be shown with too little, less than at its reset.
    """
    codes = ledger.series.codes[_SESSION, : len(ledger.series)]
    unnamed = [ledger.series.code("session", name) for name in ("", OTHER)]
    rows = np.flatnonzero(~np.isin(codes, [code for code in unnamed if code is not None]))
    tenants = ledger.series.codes[_TENANT, rows].astype(np.int64)
    _, sessions = np.unique(tenants * len(ledger.series.names[_SESSION]) + codes[rows], return_inverse=True)
    last_ms = np.zeros(len(rows), dtype=np.int64)
    np.maximum.at(last_ms, sessions, ledger.last_ms[rows])
    order = np.lexsort((sessions, last_ms[sessions]))
    ends = np.flatnonzero(np.diff(sessions[order], append=-1)) + 1
    return rows[order[: ends[ends >= count].min(initial=len(rows))]]


def _move_counters(ledger: Ledger, new_rows: Int64s, count: int) -> None:
    old = len(new_rows)
    counters = np.zeros((len(ledger.counters), count), dtype=np.int64)
    for target, counter in zip(counters, ledger.counters, strict=True):
        np.add.at(target, new_rows, counter[:old])
    used = ledger.last_ms[:old] > 0  # a row that never counted anything has no times
    first_ms = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first_ms, new_rows[used], ledger.first_ms[:old][used])
    last_ms, peak_tokens = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    np.maximum.at(last_ms, new_rows, ledger.last_ms[:old])
    np.maximum.at(peak_tokens, new_rows, ledger.peak_tokens[:old])
    ledger.counters, ledger.last_ms, ledger.peak_tokens = counters, last_ms, peak_tokens
    ledger.first_ms = np.where(last_ms > 0, first_ms, 0)
    ledger.row_blocks.exchange()
