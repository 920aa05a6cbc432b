"""Snapshot: the whole state of a ledger as a tree of plain values and arrays, and back.

What a ledger does not need to remember does not belong here: two ledgers that folded the same log
give equal trees, however the log was cut into reads.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from token_actor.core.ledger import Baseline, Bounds, Ledger
from token_actor.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Mapping

STATE_VERSION: Final = 1
_BETWEEN_KEYS: Final = "\n"  # a control character, so it occurs in no name
_ROW_ARRAYS: Final = ("counters", "first_ms", "last_ms", "peak_tokens")


def dump(ledger: Ledger) -> dict[str, Any]:
    """Return the state of a ledger; nothing in it changes when the ledger goes on."""
    rows = len(ledger.series)
    return {
        "version": STATE_VERSION,
        "log_ms": ledger.log_ms,
        "series": _BETWEEN_KEYS.join(ledger.series.keys),
        **{name: getattr(ledger, name)[..., :rows].copy() for name in _ROW_ARRAYS},
        "producers": ledger.producers.dump(),
        "message_ids": ledger.message_ids.dump(),
        "frames": ledger.frames.dump(),
        "recent": ledger.recent.dump(rows),
        "dead": dict(sorted(ledger.dead.items())),
        "resets": [[*key, base.place, base.log_ms, list(base.sums)] for key, base in ledger.resets.items()],
        "answers": [[*key, answer] for key, answer in ledger.answers.items()],
    }


def restore(state: Mapping[str, Any], bounds: Bounds | None = None) -> Ledger:
    """Return a ledger with a state that ``dump`` returned. Raises ``SnapshotError`` for another version."""
    if state.get("version") != STATE_VERSION:
        message = f"the snapshot has version {state.get('version')!r}, this program reads {STATE_VERSION}"
        raise SnapshotError(message)
    ledger = Ledger(bounds)
    ledger.log_ms = state["log_ms"]
    ledger.series.replace(state["series"].split(_BETWEEN_KEYS) if state["series"] else [])
    for name in _ROW_ARRAYS:
        setattr(ledger, name, state[name].copy())
    ledger.producers.restore(state["producers"])
    ledger.message_ids.restore(state["message_ids"])
    ledger.frames.restore(state["frames"])
    ledger.recent.restore(state["recent"])
    ledger.dead = dict(state["dead"])
    ledger.resets = {
        (tenant, session): Baseline(place, log_ms, tuple(sums))
        for tenant, session, place, log_ms, sums in state["resets"]
    }
    ledger.answers = OrderedDict(((client, request), answer) for client, request, answer in state["answers"])
    return ledger
