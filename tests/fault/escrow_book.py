"""What was taken, found out from the log and from what callers were told, where quota is set aside.

Nothing here uses the ledger, and nothing that is set aside counts: only what somebody has. The window is longer than
the run, so everything counts that was taken so far, and is added up as it comes.

Rules:

* A counter of escrow is what the log says: opened calls, less every ``reserve`` that names it, until it is recalled.
  Who finds a call there has it from that entry on, whatever else is in the way.
* Any other grant was decided at its entry, or some time later when it had to wait for a recall. Its answer says in
  which millisecond of log time (``expires_ms`` less ``ttl_ms``). It counts from the end of that millisecond, or from
  the first entry of its caller about it. So sums are never larger than what callers have at that place of the log:
  what is found to be over is over. What was over and given back within one millisecond is not found.
* A refusal is wrong when there was room at every place from its entry to the millisecond of its answer, even counting
  all that was decided in that millisecond.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from tests.fault.grants import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.fault.storms import Request


class Decision(NamedTuple):
    """Say what a reserve came to, as its caller was told, or would have been."""

    granted: bool
    expires_ms: int | None = None
    drawn: str | None = None
    waited_ms: int = 0


@dataclass(slots=True)
class Life:
    """Hold one reservation: the tokens that it takes, when it expires, and what became of it."""

    name: str
    key: str
    tokens: int
    expires_ms: int
    state: str = "decided"


class Refusal(NamedTuple):
    """Hold a refusal for which no reason was seen yet."""

    key: str
    tokens: int
    until_ms: int


class EscrowBook:
    """Follow one window limit, one concurrency limit and all counters of escrow through the log.

    ``decision`` says what a request of (client, id) came to, ``None`` where nobody knows; ``key`` what its caller calls
    it. ``over`` are the grants that did not fit, ``wrong`` the answers that cannot be.
    """

    def __init__(self, decision: Callable[[Request, str], Decision | None], key: Callable[[Request], str]) -> None:
        """Start before the first entry."""
        self.answers: dict[Request, Any] = {}
        self.keys: dict[Request, tuple[str, str]] = {}
        self.over: list[str] = []
        self.wrong: list[str] = []
        self.usage: Counter[str] = Counter()
        self.requests = self.expired = 0
        self.drawn = self.decided = self.waited = self.refusals = self.repeated = self.forfeited = 0
        self.recalled = 0  # calls that were left in counters
        self.fullest = 0.0  # share of the window's amount that was taken at most
        self.most_open = 0
        self.span_ms = 0
        self._decision, self._key = decision, key
        self._began_ms = self._now_ms = 0
        self._amount = self.window_ms = self.calls = 0
        self._tokens = 0
        self._counters: Counter[str] = Counter()
        self._lives: dict[str, Life] = {}
        self._open: dict[str, Life] = {}
        self._due: list[tuple[int, str]] = []
        self._pending: list[tuple[int, str]] = []  # decided in which millisecond, and not counted yet
        self._unexplained: list[Refusal] = []

    def take(self, entry_id: bytes, fields: list[bytes]) -> None:
        """Take the next entry of the log."""
        self._advance(max(self._now_ms, int(entry_id.partition(b"-")[0])))
        if fields[0] == b"j":
            event = json.loads(fields[1])
            self._use(event["agent"], event["input_tokens"])
        elif fields[0] == b"c":
            command = msgpack.unpackb(fields[1])
            request = (command["client"], command["id"])
            found = command["op"] == "reserve" and self._draws(command["args"])
            if request in self.answers:
                self.repeated += 1
                self.forfeited += found
            elif command["op"] == "reserve":
                self.answers[request] = self._reserve(request, command["args"], found=found)
            else:
                operation = getattr(self, f"_{command['op']}")
                self.answers[request] = operation(request, command["args"], command.get("event"))
        self._explain()

    # --- time ------------------------------------------------------------------------------------

    def _advance(self, at_ms: int) -> None:
        """Let happen what happens before the first entry of a millisecond, in the order of time."""
        self._began_ms = self._began_ms or at_ms
        while self._pending and self._pending[0][0] < at_ms:
            decided_ms, name = heappop(self._pending)
            self._expire(decided_ms)
            if self._lives[name].state == "decided":
                self._hold(self._lives[name])
        self._expire(at_ms)
        for refusal in [each for each in self._unexplained if each.until_ms < at_ms]:
            self._unexplained.remove(refusal)
            self.wrong.append(f"{refusal.key}: refused, and there was room for its {refusal.tokens} all the time")
        self._now_ms, self.span_ms = at_ms, at_ms - self._began_ms

    def _expire(self, at_ms: int) -> None:
        while self._due and self._due[0][0] <= at_ms:
            life = self._open.pop(heappop(self._due)[1], None)
            if life is not None:
                life.state = "expired"  # its tokens are charged
                self.expired += 1
        self._explain()

    def _explain(self) -> None:
        """Let go of refusals that may have a reason in what is taken now."""
        if self._unexplained:
            decided = [self._lives[name] for at_ms, name in self._pending if at_ms <= self._now_ms]
            decided = [life for life in decided if life.state == "decided"]
            tokens = self._tokens + sum(life.tokens for life in decided)
            is_full = len(self._open) + len(decided) >= self.calls
            self._unexplained = [
                each for each in self._unexplained if tokens + each.tokens <= self._amount and not is_full
            ]

    # --- what is set aside -----------------------------------------------------------------------

    def _draws(self, arguments: Mapping[str, Any]) -> bool:
        """Count down as the counter on the server did; tell whether it had a call."""
        number = arguments.get("escrow")
        if number is None:
            return False
        self._counters[number] -= 1
        return self._counters[number] >= 0

    def _set_aside(self, *_: Any) -> dict[str, Any]:
        return {}

    def _open_escrow(self, request: Request, arguments: Mapping[str, Any], event: Any) -> dict[str, Any]:
        del request, event
        self._counters[arguments["number"]] += arguments["calls"]
        return {}

    def _recall_escrows(self, request: Request, arguments: Mapping[str, Any], event: Any) -> dict[str, Any]:
        del request, event
        self.recalled += sum(max(0, self._counters.pop(number, 0)) for number in arguments["numbers"])
        return {}

    @property
    def left(self) -> int:
        """Return how many calls are in counters."""
        return sum(max(0, calls) for calls in self._counters.values())

    # --- what callers do ---------------------------------------------------------------------------

    def _put_limit(self, request: Request, arguments: Mapping[str, Any], event: Any) -> dict[str, Any]:
        del request, event
        limit = arguments["limit"]
        if limit["kind"] == "window":
            self._amount, self.window_ms = limit["amount"], round(limit["seconds"] * 1000)
        else:
            self.calls = limit["amount"]
        return {}

    def _reserve(self, request: Request, arguments: Mapping[str, Any], *, found: bool) -> dict[str, Any]:
        key, name, tokens = self._key(request), ":".join(request), arguments["tokens"]
        self.keys[request] = ("reserve", key)
        told = self._decision(request, key)
        number = arguments["escrow"] if found else None
        if told is None:
            self.wrong.append(f"{key}: nobody knows what it came to")
            return {}
        if told.drawn != number:
            self.wrong.append(f"{key}: taken from {told.drawn}, it was told, by the counters from {number}")
        if not told.granted:
            self.refusals += 1
            self._unexplained.append(Refusal(key, tokens, self._now_ms + told.waited_ms))
            return {"granted": False}
        assert told.expires_ms is not None, "what is granted expires"
        life = self._lives[name] = Life(name, key, tokens, told.expires_ms)
        decided_ms = told.expires_ms - arguments["ttl_ms"]
        if decided_ms < self._now_ms or (number and decided_ms != self._now_ms):
            self.wrong.append(f"{key}: came at {self._now_ms} and was decided at {decided_ms}")
        if told.drawn or number:
            self.drawn += 1
            self._hold(life)
        else:
            self.decided += 1
            self.waited += decided_ms > self._now_ms
            heappush(self._pending, (decided_ms, name))
        return {"granted": True, "reservation": name, "expires_ms": life.expires_ms}

    def _hold(self, life: Life) -> None:
        """Let a reservation have its tokens from here on, and look whether there was room."""
        life.state = "open"
        self._open[life.name] = life
        heappush(self._due, (life.expires_ms, life.name))
        self._tokens += life.tokens
        self.fullest = max(self.fullest, self._tokens / max(1, self._amount))
        self.most_open = max(self.most_open, len(self._open))
        if self._tokens > self._amount:
            self.over.append(f"{life.key}: {self._tokens} of {self._amount} tokens are taken")
        if len(self._open) > self.calls:
            self.over.append(f"{life.key}: {len(self._open)} of {self.calls} reservations are open")

    def _life(self, name: str) -> Life | None:
        """Return a reservation about which somebody says something: it has been granted by now."""
        life = self._lives.get(name)
        if life is not None and life.state == "decided":
            self._hold(life)
        return life

    def _use(self, agent: str, tokens: int) -> None:
        self.usage[agent] += tokens
        self.requests += 1
        self._tokens += tokens

    def _settle(self, request: Request, arguments: Mapping[str, Any], event: Any) -> dict[str, Any]:
        life = self._life(arguments["reservation"])
        self.keys[request] = ("settle", NOTHING if life is None else life.key)
        used = event["input_tokens"]
        if life is None or life.state == "settled":
            self.wrong.append(f"{arguments['reservation']} was settled, and is {life and life.state}")
            return {}
        self._use(event["agent"], used)
        self._tokens -= life.tokens
        told = {"counted": True, "unknown": False, "late": life.state == "expired", "debt": max(0, used - life.tokens)}
        self._open.pop(life.name, None)
        life.state = "settled"
        return told

    def _release(self, request: Request, arguments: Mapping[str, Any], event: Any) -> dict[str, Any]:
        del event
        life = self._life(arguments["reservation"])
        self.keys[request] = ("release", NOTHING if life is None else life.key)
        if life is None or life.state != "open":
            return {"released": False}
        self._tokens -= life.tokens
        self._open.pop(life.name)
        life.state = "released"
        return {"released": True}
