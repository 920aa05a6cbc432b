"""Callers in a process of their own: threads with a client each that reserve, then settle, release or forget.

They write all of it down: every request is in the process's file, on the disk, before it is made, and its answer
right after it came.
A request is named by a key of its own, which travels as the session of what is reserved. Callers at the same ``tills``
share these few names instead, so that quota is set aside for them: a key says of which ``reserve`` of its client it
is, and they use at most what they reserved.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from contextlib import suppress
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final

from tests.fault.planted import ENVIRONMENT, planted
from token_actor.cli.logs import start_logging
from token_actor.errors import ActorUnavailable, RateLimited
from token_actor.service import TokenClient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from token_actor.client.limits import Reservation

WORK_S: Final = (0.0, 0.002, 0.01)  # between two requests of one caller
REFUSED_S_MAX: Final = 0.05  # then it tries again, however long it was told to wait: this is a storm
TTLS_S: Final = (0.1, 0.5, 1.0)  # the shortest are over before everybody settles
TOKENS_MAX: Final = 60
FORGETFUL_EVERY: Final = 100  # requests of a caller at a till
FORGETFUL: Final = 30  # of them, in a row: much is left open then
GREEDY_S: Final = 0.7  # between two requests of a greedy caller
GREED: Final = 0.8  # of what is left in a window: then there is room only if nothing is set aside
TIMEOUT_S: Final = 30.0  # longer than any takeover: who gives up has got no answer, and that is a broken promise


class Diary:
    """Write one process's file of requests and answers, a JSON object per line."""

    def __init__(self, path: str | Path) -> None:
        """Open the file, and create it."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, **line: Any) -> None:
        """Write a line, durably; any thread may."""
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fdatasync(self._file)


class Caller:
    """Be one of the threads."""

    def __init__(
        self, client: TokenClient, diary: Diary, name: str, stop: threading.Event, tills: Sequence[str] = ()
    ) -> None:
        """``name`` is unique, also among the threads of earlier processes with the same file."""
        self._client = client
        self._diary = diary
        self._name = name
        self._stop = stop
        self._tills = tills
        self._random = Random(name)
        self._requests = 0

    def run(self) -> None:
        """Go on until asked to stop."""
        self._diary.note(key=self._name, op="begin", client=self._client._engine._lines._client)
        while not self._stop.is_set():
            tokens, ttl_s = self._tokens(), self._random.choice(TTLS_S)
            key = f"{self._name}/{self._requests}"
            self._requests += 1
            request = partial(self._reserve, key, tokens, ttl_s)
            reservation: Reservation | None = self._ask("reserve", key, request, tokens=tokens)
            self._stop.wait(self._random.choice(WORK_S))
            if reservation is not None:
                self._end(key, reservation, self._random.randint(0, tokens))

    def _reserve(self, key: str, tokens: int, ttl_s: float) -> Reservation:
        reservation = self._client.reserve(tokens, ttl_s=ttl_s, **self._names(key))
        told = {"expires_ms": reservation.decision["expires_ms"], "drawn": reservation.decision.get("drawn")}
        self._diary.note(key=key, op="reserve", granted=reservation.id, **told)
        return reservation

    def _tokens(self) -> int:
        return self._random.randint(1, TOKENS_MAX)

    def _names(self, key: str) -> dict[str, Any]:
        return {"agent": self._random.choice(self._tills)} if self._tills else {"agent": "storm", "session": key}

    def _end(self, key: str, reservation: Reservation, used: int) -> None:
        """Settle, release, or forget what was reserved."""
        match self._random.randrange(6):
            case 0:
                return
            case 2 | 3 if self._is_forgetful:
                return
            case 1:
                self._ask("release", key, lambda: self._told("release", key, reservation.release()))
            case 2 if used and not self._tills:  # used more than was reserved
                self._ask("settle", key, lambda: self._settle(key, reservation, used + TOKENS_MAX))
            case _:
                self._ask("settle", key, lambda: self._settle(key, reservation, used))

    @property
    def _is_forgetful(self) -> bool:
        """Tell whether this is a time at which callers at tills forget half of what they reserve."""
        return bool(self._tills) and self._requests % FORGETFUL_EVERY >= FORGETFUL_EVERY - FORGETFUL

    def _settle(self, key: str, reservation: Reservation, used: int) -> None:
        self._told("settle", key, reservation.settle(used))

    def _told(self, operation: str, key: str, answer: Any) -> None:
        self._diary.note(key=key, op=operation, answer=answer)

    def _ask(self, operation: str, key: str, request: Callable[[], Any], **what: Any) -> Any:
        self._diary.note(key=key, op=operation, asked=True, **what)
        try:
            return request()
        except RateLimited as refused:
            figures = {name: getattr(refused, name) for name in ("limit", "used", "reserved", "remaining")}
            self._diary.note(key=key, op=operation, refused=figures)
            self._stop.wait(min(refused.retry_after_s or REFUSED_S_MAX, REFUSED_S_MAX))
        except ActorUnavailable:
            self._diary.note(key=key, op=operation, unanswered=True)
        return None


class Greedy(Caller):
    """Ask for most of what is left now and then, and give it back: what is set aside for others is in the way."""

    def _tokens(self) -> int:
        self._stop.wait(GREEDY_S)
        left = [
            top["remaining"] for limit in self._client.limits() if limit["unit"] == "tokens" for top in limit["top"]
        ]
        return max(1, int(GREED * min(left)))

    def _names(self, key: str) -> dict[str, Any]:
        del key
        return {"agent": "greedy"}

    def _end(self, key: str, reservation: Reservation, used: int) -> None:
        del used
        self._ask("release", key, lambda: self._told("release", key, reservation.release()))


def main(spec: Mapping[str, Any]) -> int:
    """Call until SIGTERM. ``spec``: ``url``, ``namespace``, ``number``, ``life``, ``journal``, ``threads``, ``tills``.

    Without ``tills`` every request has names of its own.
    """
    start_logging(as_json=True)
    with planted(os.environ.get(ENVIRONMENT)):
        threads: int = spec["threads"]
        diary, stop = Diary(spec["journal"]), threading.Event()
        clients = [TokenClient(spec["url"], namespace=spec["namespace"], timeout_s=TIMEOUT_S) for _ in range(threads)]
        tills = spec.get("tills", ())
        callers = [
            (Greedy if tills and not number else Caller)(
                client, diary, f"{spec['number']}.{spec['life']}.{number}", stop, tills
            )
            for number, client in enumerate(clients)
        ]
        running = [threading.Thread(target=caller.run, name=f"caller-{n}") for n, caller in enumerate(callers)]
        for thread in running:
            thread.start()
        while signal.sigwait([signal.SIGTERM, signal.SIGUSR1]) != signal.SIGTERM:
            pass
        stop.set()
        for thread in running:
            thread.join()
        for client in clients:
            with suppress(ActorUnavailable):
                client.close()
    return 0
