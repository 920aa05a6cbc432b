"""The keeper of a client's leases: one thread that asks for blocks ahead of need, and gives them back.

The thread runs only while something is held.
"""

from __future__ import annotations

import os
import threading
import weakref
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from token_actor.client.deadline import Deadline

if TYPE_CHECKING:
    from token_actor.client.leases import Lease

_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()


class Keeper:
    """Look after the leases of one client."""

    def __init__(self) -> None:
        """Start with none."""
        self._leases: weakref.WeakSet[Lease] = weakref.WeakSet()
        self._begin()
        _keepers.add(self)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._holding: set[Lease] = set()
        self._thread: threading.Thread | None = None
        self._woken = False

    def begin_in_child(self) -> None:
        """Start anew after a fork: what the leases hold is the parent's."""
        self._begin()
        for lease in list(self._leases):
            lease.begin()

    def add(self, lease: Lease) -> None:
        """Know a lease, which holds nothing yet."""
        self._leases.add(lease)

    def look_after(self, lease: Lease) -> None:
        """Look after a lease that holds something now."""
        with self._changed:
            self._holding.add(lease)
            self._wake()

    def wake(self) -> None:
        """Look now whether anything is due."""
        with self._changed:
            if self._holding:
                self._wake()

    def _wake(self) -> None:
        self._woken = True
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="token-actor-leases", daemon=True)
            thread.start()  # the system may refuse; then the next one tries again
            self._thread = thread
        self._changed.notify_all()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException:
            with self._changed:
                self._thread = None  # the next one that holds something starts another
            raise

    def _turn(self) -> bool:
        """Do what is due, and wait for more; tell whether anything is held."""
        with self._changed:
            self._woken = False
            holding = list(self._holding)
        due_at = {lease: lease.tend() for lease in holding}
        with self._changed:
            if self._woken:
                return True
            self._holding -= {lease for lease, at in due_at.items() if at == inf}
            if not self._holding:
                self._thread = None
                return False
            wait_s = min(due_at[lease] for lease in self._holding) - monotonic()
            if wait_s > 0:
                self._changed.wait(wait_s)
            return True

    def close(self, timeout_s: float) -> None:
        """Give back what every lease holds, as far as no call is open."""
        deadline = Deadline.after(timeout_s)
        for lease in list(self._leases):
            lease.close(max(0.0, deadline.left_s))


def _after_fork() -> None:
    for keeper in list(_keepers):
        keeper.begin_in_child()


os.register_at_fork(after_in_child=_after_fork)
