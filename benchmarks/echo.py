"""The floor under a decision: the same exchange over the same streams, with an actor that decides nothing.

It reads each request from a log and writes as many bytes back as an answer has, as the real one does. What a
decision takes beyond this is the client's, the actor's and the ledger's own work.
"""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from benchmarks.limiters import Deciding
from token_actor.errors import ServerUnavailable
from token_actor.service import connector_of
from token_actor.transport.ports import FIRST, Append, Expire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.limiters import Rule
    from token_actor.transport.ports import Operation

LOG: Final = b"{echo}:log"
INBOX: Final = b"{echo}:inbox"
REQUEST: Final = [b"c", bytes(125)]
ANSWER: Final = [b"r", bytes(231)]
INBOX_LENGTH_MAX: Final = 1_000
INBOX_TTL_MS: Final = 60_000
_fork = multiprocessing.get_context("fork")


def _answer_all(url: str) -> None:
    connection, after = connector_of(url).connect(), FIRST
    with suppress(ServerUnavailable):
        while True:
            for entry_id, _ in connection.read({LOG: after}, count=100, block_ms=250).get(LOG, []):
                after = entry_id
                answer = Append(key=INBOX, fields=ANSWER, length_max=INBOX_LENGTH_MAX)
                operations: list[Operation] = [answer, Expire(key=INBOX, ttl_ms=INBOX_TTL_MS)]
                connection.write(operations)


def echo(url: str, rules: Sequence[Rule]) -> Deciding:
    """Send a request, and read the answer of an actor that decides nothing."""
    del rules
    process = _fork.Process(target=_answer_all, args=(url,), daemon=True)
    process.start()
    connection, after = connector_of(url).connect(), FIRST

    def decide(scope: str) -> bool:
        nonlocal after
        del scope
        request = Append(key=LOG, fields=REQUEST, length_max=INBOX_LENGTH_MAX)
        _, answers = connection.exchange(request, inbox=INBOX, after=after, block_ms=2_000)
        after = answers[-1][0]
        return True

    def close() -> None:
        connection.close()
        process.kill()
        process.join()

    return Deciding(decide, close)
