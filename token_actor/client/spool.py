"""The spool: a folder in which batches outlive the process, the server, and a torn file.

Every client owns a slot of the folder, made with its first batch. What dead ones left is adopted: it is
sent under the numbers that it has, from the file in which it lies, and the file goes when it is empty.

Each opening is a producer of its own. So there is no counter whose loss, or whose return from a
backup, could number two events alike.
"""

from __future__ import annotations

import logging
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from token_actor.client.slots import LOCK, SPOOL, Slot, digest_of
from token_actor.errors import SetupError, SpoolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from token_actor.client.store import Batch

_FILE_KEPT_BYTES: Final = 1024 * 1024  # a larger file is dropped as soon as it is empty, a smaller one used again

log = logging.getLogger("token_actor.client")


class SpoolFolder:
    """Be a store in a folder that the clients of one host share."""

    def __init__(self, folder: Path, slots: str) -> None:
        """Use ``folder``, which is there; see ``open_spool``. ``slots`` is how the names of its slots begin."""
        self.producer = uuid.uuid4().bytes
        self._folder = folder
        self._slots = slots
        self._own: Slot | None = None
        self._adopted: list[Slot] = []

    def commit(self, *, added: Sequence[Batch], acknowledged: Sequence[Batch], removed: Sequence[Batch]) -> None:
        """Store new batches, note acknowledgements, forget batches. Raises ``SpoolError``.

        New batches are stored first. When that fails nothing has changed; when it is the rest that
        fails, repeating all of it is harmless.
        """
        own = self._own_slot() if added else self._own
        slots = [*([own] if own else []), *self._adopted]
        for slot in slots:
            mine = added if slot is own else ()
            noted = [batch for batch in acknowledged if batch.key in slot.keys]
            gone = [batch for batch in removed if batch.key in slot.keys]
            if gone and not mine and len(gone) == len(slot.keys):
                self._empty(slot, gone)
            elif mine or noted or gone:
                slot.commit(added=mine, acknowledged=noted, removed=gone)

    def _empty(self, slot: Slot, batches: Sequence[Batch]) -> None:
        """Remove the last batches of a slot: as a file, unless it is one's own, is small, and can be written to."""
        if slot is not self._own:
            self._adopted.remove(slot)
            slot.drop()
            return
        if slot.file_bytes < _FILE_KEPT_BYTES:
            with suppress(SpoolError):  # a full disk, say: then to delete the file is what makes room
                slot.commit(added=(), acknowledged=(), removed=batches)
                return
        self._own = None
        slot.drop()

    def _own_slot(self) -> Slot:
        if self._own is None:
            slot = Slot.claim(self._folder / f"{self._slots}{uuid.uuid4().hex}{SPOOL}")
            if slot is None:
                raise SpoolError(f"the spool {self._folder}: no file can be locked there")
            try:
                slot.create()
            except SpoolError:
                slot.drop()
                raise
            self._own = slot
        return self._own

    def read(self, batch: Batch) -> bytes | None:
        """Return the data of a batch; ``None`` when it is not there as it was written. Raises ``SpoolError``."""
        slots = [*([self._own] if self._own else []), *self._adopted]
        slot = next((slot for slot in slots if batch.key in slot.keys), None)
        return None if slot is None else slot.read(batch)

    def adopt(self) -> list[Batch]:
        """Take over every slot that nobody owns any more, and return its batches. Raises ``SpoolError``."""
        found: list[Batch] = []
        known = {slot.path for slot in [*([self._own] if self._own else []), *self._adopted]}
        try:
            for path in sorted(self._folder.glob(f"{self._slots}*{LOCK}")):
                if path.with_suffix(SPOOL) not in known:
                    found += self._adopt(path.with_suffix(SPOOL))
        except OSError as error:
            raise SpoolError(f"the spool {self._folder}: {error}") from error
        return found

    def _adopt(self, path: Path) -> list[Batch]:
        slot = Slot.claim(path)
        if slot is None:
            return []
        if not path.exists() and not Path(f"{path}-wal").exists():
            slot.drop()
            return []
        try:
            contents = slot.load()
            if contents.problem is not None:
                self._salvage(slot, contents.batches, contents.problem)
            elif contents.batches:
                self._adopted.append(slot)
            else:
                slot.drop()
        except SpoolError as error:  # a full disk, say: it stays as it is, for the next time
            slot.close()
            log.warning("A spool waits", extra={"action": "spool_waits", "path": str(path), "problem": str(error)})
            return []
        return contents.batches

    def _salvage(self, damaged: Slot, batches: list[Batch], problem: str) -> None:
        """Store what was readable in a slot of its own; only then put the damaged file aside."""
        if batches:
            fresh = Slot.claim(self._folder / f"{self._slots}{uuid.uuid4().hex}{SPOOL}")
            if fresh is None:
                raise SpoolError(f"the spool {self._folder}: no file can be locked there")
            try:
                fresh.create()
                fresh.commit(added=batches, acknowledged=(), removed=())
            except SpoolError:
                fresh.drop()
                raise
            self._adopted.append(fresh)
            for batch in batches:
                batch.data = None
        aside = damaged.put_aside()
        damaged.drop()
        log.error(
            "A spool file was damaged; what was readable is sent",
            extra={
                "action": "spool_damaged",
                "path": str(aside),
                "problem": problem,
                "events": sum(batch.events for batch in batches),
            },
        )

    def close(self) -> None:
        """Let go of all slots, and delete those in which nothing is left."""
        for slot in [*([self._own] if self._own else []), *self._adopted]:
            if slot.keys:
                slot.close()
            else:
                slot.drop()
        self._own, self._adopted = None, []


def open_spool(folder: str, *, namespace: str, address: str) -> SpoolFolder:
    """Return the spool in ``folder`` for one namespace of one server. Raises ``SetupError``.

    The folder is made if need be, for this user only.
    """
    path = Path(folder).absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"spool_dir {folder!r} cannot be made: {error}") from None
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise SetupError(f"spool_dir {folder!r} is not to be written to; change its owner, or name another one")
    return SpoolFolder(path, f"{namespace}.{digest_of(address)}.")
