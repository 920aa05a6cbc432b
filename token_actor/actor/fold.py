"""Fold a read of the log into the ledger: the one way in which entries become numbers.

The leader, a recovery and ``verify`` all go through here. Effects are returned, never performed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

from token_actor.core.columns import Columns
from token_actor.core.commands import execute, told_since
from token_actor.wire.messages import Answer, DeadLetter
from token_actor.wire.notices import NoticeEntry
from token_actor.wire.reads import PlacedClock, PlacedCommand, RefusedBatch, decode_read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from token_actor.core.columns import Rejection
    from token_actor.core.escrow import Terms
    from token_actor.core.ledger import Ledger
    from token_actor.transport.ports import Entry


@dataclass(slots=True)
class Folded:
    """Hold what a read came to: answers to commands by client, dead letters and notices in log order.

    ``decided`` says what calls may use that were granted by a decision, ``taken`` from which escrows others were
    taken. ``entries`` is how many entries were folded, ``events`` how many events are in them.
    """

    entries: int = 0
    events: int = 0
    answers: list[tuple[str, Answer]] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    notices: list[NoticeEntry] = field(default_factory=list)
    decided: list[Terms] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)


def fold(ledger: Ledger, entries: Sequence[Entry], *, epoch: int) -> Folded:
    """Apply entries in log order, as many as are a good piece of work, and return what to tell to whom."""
    read = decode_read(entries)
    folded = Folded(entries=read.entries, events=read.events)
    ledger.reject(read.rejections)
    rejections = list(read.rejections)
    for step in read.steps:
        if isinstance(step, Columns):
            rejections += ledger.apply(step)
        elif isinstance(step, RefusedBatch):
            rejections += ledger.refuse(step.numbers, step.rejection)
        elif isinstance(step, PlacedClock):
            ledger.limits.watch.at(step.entry)
            if step.clock.now_ms is None:
                ledger.tick(step.id_ms)
            else:
                ledger.tell(step.id_ms, step.clock.now_ms, step.clock.epoch)
        else:
            rejections += _execute(ledger, step, folded, epoch)
        for client, request_id, told in told_since(ledger):
            folded.answers.append((client, Answer(request_id=request_id, epoch=epoch, result=told)))
    for place, notices in groupby(ledger.limits.watch.take(), key=lambda notice: notice.entry):
        folded.notices.append(NoticeEntry.of(entries[place][0], list(notices)))
    folded.decided, folded.taken = ledger.admission.escrows.noted()
    rejections.sort(key=lambda rejection: rejection.entry)
    for place, of_entry in groupby(rejections, key=lambda rejection: rejection.entry):
        entry_id, fields = entries[place]
        folded.dead.append(DeadLetter.of(entry_id, fields, list(of_entry)))
    return folded


def _execute(ledger: Ledger, placed: PlacedCommand, folded: Folded, epoch: int) -> list[Rejection]:
    command = placed.command
    ledger.limits.watch.at(placed.entry)
    outcome = execute(ledger, command, placed.log_ms)
    if not outcome.is_silent and (outcome.answer is not None or outcome.problem is not None):
        answer = Answer(request_id=command.request_id, epoch=epoch, result=outcome.answer, problem=outcome.problem)
        folded.answers.append((command.client, answer))
    return [replace(rejection, entry=placed.entry, position=None) for rejection in outcome.rejections]
