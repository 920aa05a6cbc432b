"""Spools: what waits in the folder of a spool, whose it is, and what was damaged."""

from __future__ import annotations

import fcntl
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from token_actor.client.slots import DAMAGED, LOCK, SPOOL, Contents, digest_of, examine
from token_actor.core.texts import counted
from token_actor.errors import SpoolError
from token_actor.operations.server import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OLD_MS: Final = 10 * 60_000  # ten times as long as an actor takes from one snapshot to the next


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotState:
    """Hold what is known of one file: ``owned`` by a process that lives, or left behind.

    ``here`` tells whether it is for the server and the namespace that were asked about, ``oldest_ms``
    since when its oldest batch is there (unix ms), ``problem`` what is wrong with it; ``None`` is nothing.
    """

    file: str
    here: bool
    owned: bool
    batches: int
    events: int
    bytes: int
    oldest_ms: int | None
    problem: str | None

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolState:
    """Hold what there is in a folder; ``damaged`` are files that were put aside."""

    slots: Sequence[SlotState]
    damaged: Sequence[str]

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"slots": [slot.document() for slot in self.slots], "damaged": list(self.damaged)}


def look_into(folder: str, *, namespace: str, address: str) -> SpoolState:
    """Return what there is in a folder; changes nothing in it. Raises ``OSError``."""
    names = sorted(os.listdir(folder))  # noqa: PTH208 - raises, where glob takes a folder that is not there for an empty one
    ours = f"{namespace}.{digest_of(address)}."
    paths = [Path(folder, name) for name in names if name.endswith(SPOOL)]
    slots = [_slot(path, here=path.name.startswith(ours)) for path in paths]
    damaged = [name for name in names if DAMAGED in name and not name.endswith(("-wal", "-shm"))]
    return SpoolState(slots=slots, damaged=damaged)


def _slot(path: Path, *, here: bool) -> SlotState:
    try:
        contents = examine(path, 0)
    except SpoolError as error:
        contents = Contents([], str(error))
    return SlotState(
        file=path.name,
        here=here,
        owned=_is_owned(path.with_suffix(LOCK)),
        batches=len(contents.batches),
        events=sum(batch.events for batch in contents.batches),
        bytes=sum(batch.data_bytes for batch in contents.batches),
        oldest_ms=contents.oldest_ms,
        problem=contents.problem,
    )


def _is_owned(lock_path: Path) -> bool:
    """Tell whether somebody holds a lock; a look that an owner cannot notice."""
    try:
        lock = os.open(lock_path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def spool_findings(state: SpoolState, *, now_ms: int) -> Iterator[Finding]:
    """Yield what there is to say about a spool."""
    for slot in state.slots:
        yield _slot_finding(slot, now_ms)
    if not state.slots:
        yield Finding(level="ok", subject="spool", found="nothing waits in it")
    for name in state.damaged:
        yield Finding(
            level="warning",
            subject="spool",
            found=f"{name} was damaged; what was readable in it has been sent",
            advice="look at the disk; delete the file when nobody needs it any more",
        )


def _slot_finding(slot: SlotState, now_ms: int) -> Finding:
    age_s = 0 if slot.oldest_ms is None else max(0, now_ms - slot.oldest_ms) // 1000
    owner = "in use" if slot.owned else "left behind"
    found = (
        f"{slot.file}: {owner}, {counted(slot.events, 'event')} in {counted(slot.batches, 'batch', 'batches')}, "
        f"{slot.bytes:,} bytes, "
        f"the oldest {age_s:,} s old"
    )
    if slot.problem is not None:
        advice = "the next client that opens the spool sends what is readable, and puts the file aside"
        return Finding(level="warning", subject="spool", found=f"{found}; {slot.problem}", advice=advice)
    if slot.batches and not slot.owned:
        whose = "a client of this namespace" if slot.here else "one for the server and namespace that it is for"
        advice = f"start {whose} with this spool_dir: it sends what was left"
        return Finding(level="warning", subject="spool", found=found, advice=advice)
    if age_s * 1000 > OLD_MS:
        advice = "look whether the actor takes snapshots: nothing is deleted before it is in one"
        return Finding(level="warning", subject="spool", found=found, advice=advice)
    return Finding(level="ok", subject="spool", found=found)
