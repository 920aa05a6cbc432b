"""A ledger with limits, to reserve and settle in: what the tests of both share."""

from __future__ import annotations

from typing import Any

from tests.makers import START_MS, apply, ask, event
from token_actor.core.commands import Command, execute
from token_actor.core.ledger import Ledger
from token_actor.core.limits import Limit

NOW_MS = START_MS


def of_kind(kind: str) -> dict[str, Any]:
    """Return the fields that make a limit one of this kind."""
    return {"kind": kind, **({"period": "day"} if kind == "calendar" else {})}


class Quota:
    """A ledger, a clock that the test moves, and request ids of its own."""

    def __init__(self, *limits: Limit, amount: int | None = None) -> None:
        self.ledger = Ledger()
        self.now_ms = NOW_MS
        self._requests = 0
        for limit in [*limits, *([] if amount is None else [Limit("l", amount)])]:
            self.run("put_limit", {"limit": limit.as_map()})

    def run(self, operation: str, arguments: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Carry out a command; raise what it is refused with."""
        self._requests += 1
        command = Command(
            operation=operation, request_id=str(self._requests), client="c", arguments=arguments or {}, **more
        )
        outcome = execute(self.ledger, command, self.now_ms)
        if outcome.problem is not None:
            raise outcome.problem
        assert outcome.answer is not None
        return outcome.answer

    def reserve(self, tokens: int = 0, **more: Any) -> dict[str, Any]:
        return self.run("reserve", {"tokens": tokens, **more})

    def settle(self, reservation: str, tokens: int, **more: Any) -> dict[str, Any]:
        return self.run("settle", {"reservation": reservation}, event=event(tokens, **more))

    def use(self, tokens: int = 0, **more: Any) -> None:
        """Use without having reserved."""
        apply(self.ledger, event(tokens, **more), log_ms=self.now_ms)

    def at(self, now_ms: int) -> None:
        """Let the log come to a time."""
        self.now_ms = now_ms
        self.ledger.advance(now_ms)

    def taken(self, name: str = "l", **scope: str | None) -> tuple[int, int]:
        """Return what is used and what is reserved under a limit."""
        limits = ask(self.ledger, "limits", self.now_ms)["limits"]
        (top,) = [each["top"] for each in limits if each["name"] == name]
        found = [(each["used"], each["reserved"]) for each in top if each["scope"] == scope]
        return found[0] if found else (0, 0)
