"""Sessions: one conversation as a ``TokenManager`` sees it, read from the ledger.

A reset does not take anything out of the ledger, whose books always balance. It notes a baseline,
and the session is shown without what lies before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from token_actor.core.analytics import TREND_REQUESTS
from token_actor.core.ledger import Baseline, scoped_id

if TYPE_CHECKING:
    from token_actor.core.columns import Int64s
    from token_actor.core.ledger import Ledger

_SUMS: Final = 4  # the first four counters are the token kinds
_REQUESTS: Final = 5


_ZERO: Final = Baseline(0, 0, (0,) * (_REQUESTS + 1))


def session_rows(ledger: Ledger, tenant: str, session: str) -> Int64s:
    """Return the rows of a session: one per model, agent, ... that it used."""
    rows = ledger.series.select({"tenant": tenant, "session": session})
    assert rows is not None, "a selector with names never selects everything"
    return rows


def session_figures(ledger: Ledger, *, tenant: str, session: str, history_limit: int, now_ms: int) -> dict[str, Any]:
    """Return the figures of a session since its last reset, and its newest events.

    ``figures`` has the fields of ``analytics.SessionFigures`` but ``current_history_size``;
    ``history`` has one list per event, newest first: time in seconds, the four token kinds, message
    id, cumulative input and cumulative output. ``now_ms`` ends the uptime.
    """
    rows = session_rows(ledger, tenant, session)
    base = ledger.resets.get((tenant, session), _ZERO)
    sums = ledger.counters[: _REQUESTS + 1, rows].sum(axis=1) - np.array(base.sums, dtype=np.int64)
    places = ledger.recent.newest(rows, max(history_limit, TREND_REQUESTS))
    places = places[places >= base.place]
    counts = ledger.recent.column("counts", places)
    used_rows = rows[ledger.last_ms[rows] > 0]  # a row that never counted anything has no times
    started_ms = base.log_ms or int(ledger.first_ms[used_rows].min(initial=now_ms))
    used = sums.tolist()
    return {
        "figures": {
            "requests": used[_REQUESTS],
            "input_tokens": used[0],
            "output_tokens": used[1],
            "cache_read_tokens": used[2],
            "cache_write_tokens": used[3],
            "peak_tokens": used[0] + used[1],  # what a session used only grows
            "uptime_s": max(0, now_ms - started_ms) / 1000,
            "recent_totals": counts[:_SUMS, :TREND_REQUESTS].sum(axis=0)[::-1].tolist(),
        },
        "history": _history(ledger, places[:history_limit], counts[:, :history_limit], used),
    }


def _history(ledger: Ledger, places: Int64s, counts: Int64s, used: list[int]) -> list[list[Any]]:
    after = np.cumsum(counts[:2], axis=1) - counts[:2]  # what came later than each event
    times = ledger.recent.column("event_ms", places)
    ids = ledger.recent.column("message_id", places)
    return [
        [time / 1000, *kinds, message_id, used[0] - later_input, used[1] - later_output]
        for time, kinds, message_id, later_input, later_output in zip(
            times.tolist(), counts[:_SUMS].T.tolist(), ids.tolist(), *after.tolist(), strict=True
        )
    ]


def reset_session(ledger: Ledger, *, tenant: str, session: str) -> None:
    """Start the session anew: figures from zero, and its recent message ids forgotten."""
    rows = session_rows(ledger, tenant, session)
    if len(rows) == 0:  # nothing to forget, and nothing to remember: resets are bounded by the sessions there are
        return
    places = ledger.recent.newest(rows, len(ledger.recent))
    base = ledger.resets.get((tenant, session), _ZERO)
    ids = ledger.recent.column("message_id", places[places >= base.place])
    named = [message_id for message_id in ids.tolist() if message_id is not None]
    if named:
        ledger.message_ids.forget([scoped_id(tenant, message_id) for message_id in named])
    sums = tuple(ledger.counters[: _REQUESTS + 1, rows].sum(axis=1).tolist())
    ledger.resets[(tenant, session)] = Baseline(ledger.recent.next_place, ledger.log_ms, sums)
