"""An actor in a process of its own: the product's own way of running one, with settings and faults of a test.

``TOKEN_ACTOR_TESTS_PLANTED`` names a bug of ``planted.py`` to run with. Only this process and
``producer_process`` read it; the product knows nothing of it.
"""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.fault.failpoints import FailingConnector, Failpoint
from tests.fault.planted import ENVIRONMENT, planted
from token_actor.cli.logs import start_logging
from token_actor.cli.serve import examine, run_until_asked, stop_requests
from token_actor.core.ledger import Bounds
from token_actor.errors import TokenActorError
from token_actor.service import actor_settings, connector_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from token_actor.transport.ports import Connector


def main(spec: Mapping[str, Any]) -> int:
    """Serve until SIGTERM. ``spec``: ``url``, ``namespace``, ``settings``, ``bounds``, ``failpoint``."""
    start_logging(as_json=True)
    with planted(os.environ.get(ENVIRONMENT)), stop_requests(supervised=False) as requests:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # a request that came early is taken now
        settings = actor_settings(spec["namespace"])
        if spec.get("bounds"):
            settings = replace(settings, bounds=Bounds(**spec["bounds"]))
        settings = replace(settings, **spec.get("settings", {}))
        connector: Connector = connector_of(spec["url"], spec["namespace"])
        if spec.get("failpoint"):
            connector = FailingConnector(connector, Failpoint(**spec["failpoint"]))

        def check(facts: Mapping[str, str]) -> None:
            examine(facts, with_password=False, accept_data_loss=settings.accept_data_loss)

        try:
            run_until_asked(connector, settings, requests, check)
        except TokenActorError as error:
            log = logging.getLogger("token_actor.fault")
            log.error("Ended", extra={"action": "ended", "error": type(error).__name__, "problem": str(error)})  # noqa: TRY400
            return 1
    return 0
