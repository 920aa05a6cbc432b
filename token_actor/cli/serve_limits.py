"""The limits of a file, put in force while an actor starts."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import typer

from token_actor.cli.options import TIMEOUT_S, open_client
from token_actor.errors import ActorUnavailable, SetupError, TokenActorError
from token_actor.operations.limit_files import limits_of_partition, put_limits, read_limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from token_actor.cli.options import Target
    from token_actor.core.limits import Limit
    from token_actor.operations.limit_files import Change

AGAIN_S: Final = 1.0  # between two tries while no actor answers
JOIN_S: Final = TIMEOUT_S + 1  # an actor that ends leaves nobody to wait for

log = logging.getLogger(__name__)


def wanted_limits(path: Path | None, partition: int, partitions: int, *, exact: bool) -> list[Limit]:
    """Return the limits of a file that a partition holds. Raises ``SetupError`` saying what is wrong with it."""
    if path is None:
        if exact:
            raise typer.BadParameter("--limits-exact is about the file that --limits names")
        return []
    limits = read_limits(path)
    if exact and not limits:
        raise SetupError(f"{path} has no limits, and --limits-exact would delete all that are in force; leave it out")
    return limits_of_partition(limits, partition, partitions)


@contextmanager
def keep_putting(target: Target, limits: Sequence[Limit], *, exact: bool) -> Iterator[None]:
    """Put limits in force beside what the block runs, as soon as an actor answers."""
    if not limits:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_put, args=(target, limits, exact, stop), name="limits", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(JOIN_S)


def _put(target: Target, limits: Sequence[Limit], exact: bool, stop: threading.Event) -> None:
    try:
        with open_client(target.url, target.namespace, TIMEOUT_S) as client:
            while not stop.is_set():
                try:
                    _tell(put_limits(client, limits, exact=exact))
                except ActorUnavailable:  # the server or the actor still starts, and says so itself
                    stop.wait(AGAIN_S)
                else:
                    return
    except TokenActorError as error:
        extra = {"action": "limits_refused", "problem": str(error)}
        log.error("The limits of the file are not all in force", extra=extra)  # noqa: TRY400 - the problem says it all


def _tell(changes: Sequence[Change]) -> None:
    """Log what changed, one line each, and how many are in force."""
    for change in changes:
        if change.what != "same":
            extra = {"limit": change.limit.name, "change": change.what, "amount": change.limit.amount}
            log.info("A limit has changed", extra={"action": "limit_changed", **extra, "was": dict(change.was)})
    kept = sum(change.what != "deleted" for change in changes)
    log.info("The limits of the file are in force", extra={"action": "limits_put", "limits": kept})
