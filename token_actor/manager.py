"""``TokenManager``: one session's tokens, counted in this process, with the real clock and the real log."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from token_actor.core import manager as core

if TYPE_CHECKING:
    from token_actor.core.manager import MetricsEngine

_log = logging.getLogger("token_actor.manager")


class TokenManager(core.TokenManager):
    """Count the tokens of one session, once per message id, and answer questions about them."""

    def __init__(
        self,
        context_window_limit: int = 200_000,
        history_size: int = 100,
        overflow_warning_threshold: float = 80.0,
        metrics_engine: MetricsEngine | None = None,
    ) -> None:
        """Start a session with nothing used.

        ``context_window_limit`` is tokens, ``history_size`` requests (0 keeps none), and the
        threshold per cent of the window. The engine's ``record_token_usage`` hears of every update
        that counts. Raises ``InvalidValue``, a ``ValueError``, naming the argument.
        """
        super().__init__(
            context_window_limit,
            history_size,
            overflow_warning_threshold,
            metrics_engine,
            clock=_now_s,
            warn=_log_overflow,
            engine_failed=_log_engine_failed,
        )


def _now_s() -> float:
    return time.time()  # looked up at each call, so that tests of our users that freeze time reach it


def _log_overflow(usage_pct: float, used_tokens: int, context_window_limit: int) -> None:
    _log.warning(
        "Context window usage at %.1f%% (%d of %d tokens)",
        usage_pct,
        used_tokens,
        context_window_limit,
        extra={"action": "context_overflow_warning"},
    )


def _log_engine_failed(problem: Exception) -> None:
    _log.warning(
        "The metrics engine failed; the tokens are counted", exc_info=problem, extra={"action": "metrics_engine_failed"}
    )
