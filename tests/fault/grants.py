"""What was granted, found out from the log alone: every entry is read anew, and every window added up by brute force.

Nothing here uses the ledger. A decision is computed from all that was taken before it, and then compared with
what anybody was told; what callers were told to have is what counts as taken.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgpack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

SUB_BUCKETS: Final = 60  # of a window, the oldest counted whole: refusals may come that much too early
NOTHING: Final = "unknown"


@dataclass(slots=True)
class Taken:
    """Hold what counts under the window limit since ``at_ms``; ``tokens`` become fewer when it is made right."""

    at_ms: int
    tokens: int


@dataclass(slots=True)
class Life:
    """Hold one reservation: what it takes, when it expires, and what became of it."""

    taken: Taken
    expires_ms: int
    state: str = "open"
    told: dict[str, Any] = field(default_factory=dict)


class GrantBook:
    """Follow one window limit and one concurrency limit through the log.

    ``granted`` answers for a request of (client, id, key) whether anybody was told that it was granted, ``None``
    for nobody knows. ``over`` are the grants that did not fit.
    """

    def __init__(self, granted: Callable[[tuple[str, str], str], bool | None]) -> None:
        """Start before the first entry."""
        self.answers: dict[tuple[str, str], Any] = {}
        self.keys: dict[tuple[str, str], tuple[str, str]] = {}  # request: operation, and key of the caller
        self.over: list[str] = []
        self.wrong: list[str] = []
        self.grants = self.refusals = self.repeated = self.expired = self.fullest = 0
        self.usage: Counter[str] = Counter()  # tokens by agent
        self.requests = 0
        self._granted = granted
        self._now_ms = 0
        self._amount = self._window_ms = self._calls = 0
        self._taken: list[Taken] = []
        self._lives: dict[str, Life] = {}
        self._open: dict[str, Life] = {}
        self._key_of: dict[str, str] = {}

    def take(self, entry_id: bytes, fields: list[bytes]) -> None:
        """Take the next entry of the log."""
        at_ms = max(self._now_ms, int(entry_id.partition(b"-")[0]))
        if fields[0] == b"j":
            self._advance(at_ms)
            event = json.loads(fields[1])
            self._use(event["agent"], event["input_tokens"])
        elif fields[0] == b"c":
            command = msgpack.unpackb(fields[1])
            request = (command["client"], command["id"])
            if request in self.answers:
                self.repeated += 1  # it must change nothing, not even the time
                return
            self._advance(at_ms)
            operation = getattr(self, f"_{command['op']}")
            self.answers[request] = operation(request, command["args"], command.get("event"))

    def _advance(self, at_ms: int) -> None:
        self._now_ms = at_ms
        for name in [name for name, life in self._open.items() if life.expires_ms <= at_ms]:
            self._open.pop(name).state = "expired"
            self.expired += 1
        self._taken = [each for each in self._taken if each.at_ms >= at_ms - 2 * self._window_ms]

    def _use(self, agent: str, tokens: int) -> None:
        self.usage[agent] += tokens
        self.requests += 1
        self._taken.append(Taken(self._now_ms, tokens))

    def _put_limit(self, request: tuple[str, str], arguments: Mapping[str, Any], event: Any) -> dict[str, Any]:
        del request, event
        limit = arguments["limit"]
        if limit["kind"] == "window":
            self._amount, self._window_ms = limit["amount"], round(limit["seconds"] * 1000)
        else:
            self._calls = limit["amount"]
        return {}

    def _reserve(self, request: tuple[str, str], arguments: Mapping[str, Any], event: Any) -> dict[str, Any]:
        del event
        key, tokens = arguments["session"], arguments["tokens"]
        self.keys[request] = ("reserve", key)
        width_ms = -(-self._window_ms // SUB_BUCKETS)
        first = self._now_ms // width_ms - SUB_BUCKETS
        counted = sum(each.tokens for each in self._taken if each.at_ms // width_ms >= first)
        fits = counted + tokens <= self._amount and len(self._open) < self._calls
        told = self._granted(request, key)
        if told is not None and told != fits:
            self.wrong.append(f"{key}: {tokens} with {counted} taken and {len(self._open)} open: granted {told}")
        granted = fits if told is None else told
        if not granted:
            self.refusals += 1
            return {"granted": False}
        self.grants += 1
        self._look_for_over_grant(key, tokens)
        name = ":".join(request)
        life = Life(Taken(self._now_ms, tokens), self._now_ms + arguments["ttl_ms"])
        self._lives[name] = self._open[name] = life
        self._key_of[name] = key
        self._taken.append(life.taken)
        return {"granted": True, "reservation": name, "expires_ms": life.expires_ms}

    def _look_for_over_grant(self, key: str, tokens: int) -> None:
        """Add up the window that ends with this grant, to the millisecond."""
        taken = tokens + sum(each.tokens for each in self._taken if each.at_ms > self._now_ms - self._window_ms)
        self.fullest = max(self.fullest, taken)
        if taken > self._amount:
            self.over.append(f"{key}: {taken} of {self._amount} tokens in a window")
        if len(self._open) + 1 > self._calls:
            self.over.append(f"{key}: {len(self._open) + 1} of {self._calls} reservations open")

    def _settle(self, request: tuple[str, str], arguments: Mapping[str, Any], event: Any) -> dict[str, Any]:
        name = arguments["reservation"]
        self.keys[request] = ("settle", self._key_of.get(name, NOTHING))
        life = self._lives.setdefault(name, Life(Taken(self._now_ms, 0), 0, NOTHING))
        if life.state != "settled":
            used, held = event["input_tokens"], life.taken.tokens if life.state in {"open", "expired"} else 0
            life.taken.tokens = min(held, used)
            self._use(event["agent"], used)
            self._taken[-1].tokens = max(0, used - held)
            life.told = {
                "counted": True,
                "unknown": life.state == NOTHING,
                "late": life.state in {"expired", "released"},
                "debt": used - held if held and used > held else 0,
            }
            life.state = "settled"
            self._open.pop(name, None)
        return life.told

    def _release(self, request: tuple[str, str], arguments: Mapping[str, Any], event: Any) -> dict[str, Any]:
        del event
        name = arguments["reservation"]
        self.keys[request] = ("release", self._key_of.get(name, NOTHING))
        life = self._open.pop(name, None)
        if life is not None:
            life.taken.tokens, life.state = 0, "released"
        return {"released": life is not None}


def read_diary(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of callers; half a line at the end is none."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]
