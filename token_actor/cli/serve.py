"""Serve: an actor until a signal says that it is enough, with a server of its own if asked for."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Final

import typer

from token_actor.cli.logs import start_logging
from token_actor.cli.options import CONNECTION, Namespace, Redis, target_of
from token_actor.cli.serve_limits import keep_putting, wanted_limits
from token_actor.embedded import EmbeddedServer
from token_actor.errors import ServerUnavailable, TokenActorError
from token_actor.operations.server import check_server
from token_actor.service import actor_settings, connector_of, run_actor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from token_actor.actor.settings import ActorSettings
    from token_actor.transport.ports import Connector

ENDED: Final = "ended"
TOGETHER_S: Final = 0.5  # who signals a process and its group asks twice, and means one
AWAY_S: Final = 1.0  # between two looks for a server that is not there yet
_EMBEDDED: Final = "The embedded server"
# Of Python's cycle collector. What an actor remembers has no cycles, and grows for hours: with the usual (700, 10, 10)
# the loop stood still for 300 ms at 150,000 decisions, to find five objects. Now one look is at 10,000 new ones, 3 ms.
COLLECTOR_THRESHOLDS: Final = (10_000, 1_000, 1_000)

log = logging.getLogger(__name__)


def serve(
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    partition: Annotated[
        int, typer.Option(min=0, metavar="P", help="Which partition.", rich_help_panel=CONNECTION)
    ] = 0,
    partitions: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="How many there are; fixed by the first actor.", rich_help_panel=CONNECTION
        ),
    ] = 1,
    embedded: Annotated[bool, typer.Option(help="Run the server too.", rich_help_panel=_EMBEDDED)] = False,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Its data, kept.", rich_help_panel=_EMBEDDED, file_okay=False)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, metavar="N", help="Its port; else a free one.", rich_help_panel=_EMBEDDED),
    ] = None,
    accept_data_loss: Annotated[
        bool, typer.Option("--accept-data-loss", help="Start on a server that can lose the log.")
    ] = False,
    limits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put the limits of a TOML file in force.", dir_okay=False)
    ] = None,
    limits_exact: Annotated[bool, typer.Option("--limits-exact", help="And delete those not in it.")] = False,
    log_json: Annotated[bool, typer.Option(help="Log as JSON lines.")] = False,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Run an actor, leading or standing by, until SIGTERM or Ctrl-C."""
    if embedded and redis is not None:
        raise typer.BadParameter("--embedded runs a server, so --redis names one too many")
    if not embedded and (data is not None or port is not None):
        raise typer.BadParameter("--data and --port are for the server that --embedded runs")
    if partition >= partitions:
        raise typer.BadParameter(f"--partition must be below --partitions, which is {partitions}")
    wanted = wanted_limits(limits, partition, partitions, exact=limits_exact)
    start_logging(as_json=log_json)
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    with stop_requests(supervised=supervised) as requests, ExitStack() as stack:
        if embedded:
            server = stack.enter_context(EmbeddedServer(data, port))
            redis = server.url
            print(redis, flush=True)  # noqa: T201 - the one thing on stdout, for scripts to read
            log.info("The embedded server runs", extra={"action": "embedded_server", "url": redis})
            if data is None:
                kept = "Its data goes when it ends; --data DIR keeps it"
                log.warning(kept, extra={"action": "temporary_data"})
        target = target_of(redis, namespace)
        settings = actor_settings(target.namespace, partition=partition, partitions=partitions)
        connector = connector_of(target.url, target.namespace)

        def check(facts: Mapping[str, str]) -> None:
            if not embedded:  # whose settings are ours
                examine(facts, with_password=target.has_password, accept_data_loss=accept_data_loss)

        with keep_putting(target, wanted, exact=limits_exact):
            run_until_asked(connector, settings, requests, check)


def examine(facts: Mapping[str, str], *, with_password: bool, accept_data_loss: bool) -> None:
    """Log what is to be said about a server. Raises ``SetupError`` when the log would not be safe there."""
    for finding in check_server(facts, with_password=with_password, accept_data_loss=accept_data_loss):
        extra = {"subject": finding.subject, "found": finding.found, "advice": finding.advice}
        log.warning("The server can lose usage", extra={"action": "server_unsafe", **extra})


def facts_of(connector: Connector, stop: threading.Event) -> Mapping[str, str] | None:
    """Return what a server says of itself, once there is one; ``None`` when asked to stop before.

    Raises ``ServerRefused`` when it does not let this process in.
    """
    connection, told = connector.connect(), False
    try:
        while not stop.is_set():
            try:
                return connection.server_facts()
            except ServerUnavailable as error:
                if not told:
                    log.warning("The server is away", extra={"action": "server_away", "problem": str(error)})
                told = True
                stop.wait(AWAY_S)
    finally:
        connection.close()
    return None


def run_until_asked(
    connector: Connector,
    settings: ActorSettings,
    requests: SimpleQueue[str],
    check: Callable[[Mapping[str, str]], None],
) -> None:
    """Run an actor until the first request to stop; waits then until it has given the lease back.

    ``check`` raises when the server, by what it says of itself, must not be worked on. A second request
    ends the actor where it is, and so loses nothing either: the next start reads the log again.
    """

    def run(stop: threading.Event) -> None:
        facts = facts_of(connector, stop)
        if facts is not None:
            check(facts)
            run_actor(connector, settings, stop)

    log.info("Starting", extra={"action": "starting", "server": connector.address, "holder": settings.holder})
    until_asked(run, requests)


def until_asked(run: Callable[[threading.Event], None], requests: SimpleQueue[str]) -> None:
    """Run something in a thread until the first request to stop, and wait until it has.

    Raises what it raises, and ``TokenActorError`` at a second request, later than ``TOGETHER_S`` after the first.
    """
    stop, again_at = threading.Event(), 0.0
    failures: list[BaseException] = []

    def run_and_tell() -> None:
        try:
            run(stop)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that waits
            failures.append(error)
        requests.put(ENDED)

    threading.Thread(target=run_and_tell, name="token-actor", daemon=True).start()
    while (request := requests.get()) != ENDED:
        if stop.is_set() and time.monotonic() < again_at:
            continue
        if stop.is_set():
            raise TokenActorError(f"ended at once, by a second request ({request}); nothing is lost")
        log.info("Stopping", extra={"action": "stopping", "request": request})
        stop.set()
        again_at = time.monotonic() + TOGETHER_S
    if failures:
        raise failures[0]


@contextmanager
def stop_requests(*, supervised: bool) -> Iterator[SimpleQueue[str]]:
    """Lend a queue of what asks this program to stop: signals, and with ``supervised`` the end of stdin.

    A queue and no ``threading.Event``: a signal's handler may not take a lock that the interrupted
    thread holds.
    """
    requests: SimpleQueue[str] = SimpleQueue()

    def take(number: int, _frame: object) -> None:
        requests.put(signal.Signals(number).name)

    before = {number: signal.signal(number, take) for number in (signal.SIGTERM, signal.SIGINT)}
    if supervised:
        threading.Thread(target=_until_stdin_ends, args=(requests,), name="stdin", daemon=True).start()
    try:
        yield requests
    finally:
        for number, action in before.items():
            signal.signal(number, action or signal.SIG_DFL)


def _until_stdin_ends(requests: SimpleQueue[str]) -> None:
    """Wait until whoever started this program is gone, however it went."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    requests.put("end of stdin")
