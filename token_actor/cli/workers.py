"""Workers: start several, let them begin together, and collect what each says it sent."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

from token_actor.errors import TokenActorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from token_actor.cli.processes import Child, Children

READY_TIMEOUT_S: Final = 60.0  # to start, and to read a trace for the first time
TICK_S: Final = 0.25  # between two looks at the progress


class Crew:
    """Be the workers of one run, and know what each has said."""

    def __init__(self, children: Children, module: str, arguments: Sequence[Sequence[str]]) -> None:
        """Start one worker for each list of arguments."""
        count = len(arguments)
        self._children = children
        self._said: dict[Child, dict[str, Any]] = {}
        self.members = [
            children.start(f"worker {number}", module, [*own, "--worker", str(number), "--workers", str(count)])
            for number, own in enumerate(arguments)
        ]

    def until_ready(self, check: Callable[[], None], timeout_s: float = READY_TIMEOUT_S) -> list[dict[str, Any]]:
        """Wait until every worker is ready, and return what each says of itself.

        ``check`` is called now and then. Raises ``TokenActorError`` when a worker ends before, or is too slow.
        """
        deadline = time.monotonic() + timeout_s
        while not self._all_said("ready"):
            self._hear(check)
            if time.monotonic() >= deadline:
                raise TokenActorError(f"the workers were not ready within {timeout_s:.0f} s")
        return [self._said[member]["ready"] for member in self.members]

    def begin(self, order: Mapping[str, Any]) -> None:
        """Give all workers the order to begin."""
        for member in self.members:
            member.order(order)

    def until_done(self, check: Callable[[], None], deadline: float) -> list[dict[str, Any]]:
        """Wait until every worker has brought everything to the log, and return what each says it sent.

        Raises ``TokenActorError`` when one fails, or at the deadline by the monotonic clock.
        """
        while not self._all_said("sent"):
            self._hear(check)
            if time.monotonic() >= deadline:
                late = next(member.name for member in self.members if "sent" not in self._said.get(member, {}))
                raise TokenActorError(f"{late} did not get done in time; --timeout waits longer")
        return [self._said[member]["sent"] for member in self.members]

    def _all_said(self, kind: str) -> bool:
        return all(kind in self._said.get(member, {}) for member in self.members)

    def _hear(self, check: Callable[[], None]) -> None:
        heard = self._children.next_line(TICK_S)
        while heard is not None:
            child, line = heard
            said = self._said.setdefault(child, {})
            if line:
                said.update(json.loads(line))
            elif "sent" not in said or said["sent"]["pending"]:
                child.wait(0)
                raise TokenActorError(child.end_text())
            heard = self._children.next_line(0)
        check()
