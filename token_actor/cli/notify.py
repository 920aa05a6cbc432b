"""Notify: post what budgets have reached to a webhook, until a signal says that it is enough."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from token_actor.cli.logs import start_logging
from token_actor.cli.options import Namespace, Redis, open_connection, target_of
from token_actor.cli.serve import stop_requests, until_asked
from token_actor.operations.webhooks import Notifier, Webhook

if TYPE_CHECKING:
    import threading

log = logging.getLogger(__name__)


def notify(
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    webhook: Annotated[str, typer.Option(metavar="URL", help="Where to post each notice, as JSON.")],
    secret_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Sign with what is in it (HMAC-SHA256).", exists=True, dir_okay=False),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Go on behind this notice, 0: with the oldest. Else where it was left."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose place to remember. Else that of the URL.")
    ] = None,
    log_json: Annotated[bool, typer.Option(help="Log as JSON lines.")] = False,
) -> None:
    """Post what budgets have reached to a webhook, until SIGTERM or Ctrl-C."""
    start_logging(as_json=log_json)
    secret = None if secret_file is None else secret_file.read_bytes().strip()
    target = target_of(redis, namespace)
    with stop_requests(supervised=False) as requests, open_connection(target) as connection:
        hook = Webhook(url=webhook, secret=secret)
        notifier = Notifier(connection, target.namespace, hook, consumer=name, since=since)

        def run(stop: threading.Event) -> None:
            log.info("Notifying", extra={"action": "notifying", "namespace": target.namespace})
            notifier.run(stop)

        until_asked(run, requests)
