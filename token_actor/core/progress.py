"""Progress: what a client asks about its own batches, to know which of them it may forget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from token_actor.core.dedupe import PRODUCER_BYTES
from token_actor.errors import InvalidQuestion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from token_actor.core.ledger import Ledger

SEEN_RANGES_MAX: Final = 64  # in one answer, the lowest first: those above wait for the holes below to be closed


def producer_progress(ledger: Ledger, arguments: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """Say which sequence numbers of a producer have been seen, for each of its epochs that is asked for."""
    del now_ms
    producer = arguments.get("producer")
    if type(producer) is not bytes or len(producer) != PRODUCER_BYTES:
        raise InvalidQuestion("producer", f"must be {PRODUCER_BYTES} bytes", reason="type")
    epochs = arguments.get("epochs")
    if type(epochs) is not list or set(map(type, epochs)) - {int}:
        raise InvalidQuestion("epochs", "must be a list of ints", reason="type")
    marks = {epoch: ledger.producers.mark(producer, epoch) for epoch in epochs}
    return {
        "epochs": {
            str(epoch): {
                "next_seq": mark.next_seq,
                "ranges": [list(span) for span in mark.ranges[:SEEN_RANGES_MAX]],
                "missing": mark.missing,
            }
            for epoch, mark in marks.items()
        }
    }
