"""Set back: what becomes of a ledger when a leader says that it is earlier than the log believed.

Whatever the ledger took note of later than that happened now, so nothing in it lies in the future:
windows go on, and nothing ages before its time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from token_actor.core.ledger import Ledger


def set_back(ledger: Ledger) -> None:
    """Move the log time of a ledger back to what its clock says."""
    log_ms = ledger.log_ms = ledger.time.now_ms
    late = np.flatnonzero(ledger.last_ms > log_ms)
    if len(late):
        ledger.row_blocks.change(late)
        for times in (ledger.first_ms, ledger.last_ms):
            times[late] = np.minimum(times[late], log_ms)
    ledger.recent.not_after(log_ms)
    ledger.admission.set_back(log_ms)
    ledger.resets = {scope: replace(base, log_ms=min(base.log_ms, log_ms)) for scope, base in ledger.resets.items()}
    ledger.frames.advance(log_ms)
