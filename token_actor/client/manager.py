"""One session of the fleet with the methods of a ``TokenManager``.

Every process that asks for the same session sees, and adds to, the same numbers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from token_actor.client.questions import WINDOW_S_MAX
from token_actor.client.recording import make_event
from token_actor.core.analytics import (
    Analytics,
    HistoryEntry,
    SessionFigures,
    SessionRules,
    check_number,
    context_usage_pct,
    history_entry,
    predict_overflow,
    session_analytics,
)
from token_actor.core.export import export_metrics, summary_text
from token_actor.core.usage import TOKEN_KINDS, check_count, check_message_id
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from token_actor.client.engine import Engine
    from token_actor.client.questions import Questions


class SharedTokenManager:
    """Be a ``TokenManager`` over the shared state of one session.

    The rules (context window, threshold, length of the history shown) are this object's, the
    numbers are the fleet's. Every method but ``update_tokens`` without a message id waits for the
    actor, and raises ``ActorUnavailable`` at the client's deadline.
    """

    def __init__(self, engine: Engine, questions: Questions, names: Mapping[str, str], rules: SessionRules) -> None:
        """Speak for the session ``names["session"]`` of the tenant ``names["tenant"]``."""
        self._engine = engine
        self._questions = questions
        self._names = names
        self._rules = rules

    @property
    def context_window_limit(self) -> int:
        """Return the size of the context window in tokens."""
        return self._rules.context_window_limit

    @property
    def overflow_warning_threshold(self) -> float:
        """Return the threshold in per cent that analytics report."""
        return self._rules.overflow_warning_threshold

    @property
    def history_size(self) -> int:
        """Return how many entries of history are shown at most."""
        return self._rules.history_size

    def update_tokens(
        self,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read: int = 0,
        cache_write: int = 0,
        message_id: str | None = None,
    ) -> bool:
        """Count one call; return ``False`` when the message id was seen, by whomever.

        Waits for the actor only when there is a message id. Raises ``InvalidValue``, a
        ``ValueError``, naming the argument.
        """
        counts = {
            "input_tokens": check_count("input_tokens", input_tokens),
            "output_tokens": check_count("output_tokens", output_tokens),
            "cache_read_tokens": check_count("cache_read", cache_read),
            "cache_write_tokens": check_count("cache_write", cache_write),
        }
        if check_message_id(message_id) is None:
            self._engine.record(make_event(self._names, **counts))  # type: ignore[arg-type] # mypy cannot see the keys
            return True
        event = {**self._names, **counts, "message_id": message_id, "timestamp": time.time()}
        answer = self._engine.command("record", {}, tenant=self._names["tenant"], event=event)
        counted: bool = answer["counted"]
        return counted

    def get_context_usage_pct(self) -> float:
        """Return how much of the context window is used, in per cent, unrounded."""
        figures = self._ask()["figures"]
        return context_usage_pct(figures["input_tokens"], figures["output_tokens"], self.context_window_limit)

    def predict_overflow(self, estimated_tokens: float) -> tuple[bool, float]:
        """Return whether ``estimated_tokens`` more would overflow, and the usage in per cent then."""
        figures = self._ask()["figures"]
        used = figures["input_tokens"] + figures["output_tokens"]
        return predict_overflow(used, estimated_tokens, self.context_window_limit)

    def get_usage_history(self, limit: int = 10) -> list[HistoryEntry]:
        """Return the last calls, newest first, at most ``limit`` and at most ``history_size``.

        Raises ``InvalidValue`` when ``limit`` is not a positive int.
        """
        count = int(_check_positive("limit", check_count("limit", limit)))
        return self._history(self._ask(history_limit=min(count, self.history_size)))

    def check_rate_limit(self, window_seconds: float, max_tokens: float) -> bool:
        """Tell whether the session used at most ``max_tokens`` in the last ``window_seconds``.

        What lies before a reset does not count. Raises ``InvalidValue`` naming the argument that is
        not a number above 0.
        """
        window_s = _check_positive("window_seconds", window_seconds)
        allowed = _check_positive("max_tokens", max_tokens)
        figures = self._ask()["figures"]
        if window_s >= figures["uptime_s"] or window_s > WINDOW_S_MAX:  # all since the start, or the last reset
            used: int = sum(figures[kind] for kind in TOKEN_KINDS)
            return used <= allowed
        return self._questions.check_rate_limit(
            window_s, allowed, tenant=self._names["tenant"], session=self._names["session"]
        )

    def get_analytics(self) -> Analytics:
        """Return every figure of the session by name."""
        return self._analytics(self._ask(history_limit=self.history_size))

    def export_metrics(self, export_format: str = "json") -> str:
        """Return analytics and history as ``json``, ``csv`` or ``prometheus``."""
        answer = self._ask(history_limit=self.history_size)
        history = self._history(answer)[::-1]
        return export_metrics(self._analytics(answer), history, export_format, time.time())

    def get_summary(self) -> str:
        """Return a few lines for people."""
        return summary_text(self.get_analytics())

    def reset(self) -> None:
        """Start the session anew for everybody: figures from zero, its message ids forgotten.

        What it used stays in the totals of the fleet.
        """
        scope = {"tenant": self._names["tenant"], "session": self._names["session"]}
        self._engine.command("reset", scope, tenant=scope["tenant"])

    def __repr__(self) -> str:
        """Name the session; asks nobody."""
        return f"SharedTokenManager(tenant={self._names['tenant']!r}, session={self._names['session']!r})"

    def _ask(self, *, history_limit: int = 0) -> dict[str, Any]:
        return self._questions.session(
            self._names["session"], tenant=self._names["tenant"], history_limit=history_limit
        )

    def _analytics(self, answer: Mapping[str, Any]) -> Analytics:
        figures = SessionFigures(**answer["figures"], current_history_size=len(answer["history"]))
        return session_analytics(figures, self._rules)

    def _history(self, answer: Mapping[str, Any]) -> list[HistoryEntry]:
        return [
            history_entry(
                timestamp_s=time_s,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                cache_read_tokens=cache_read,
                cache_write_tokens=cache_write,
                message_id=message_id,
                cumulative_input=cumulative_input,
                cumulative_output=cumulative_output,
                context_window_limit=self.context_window_limit,
            )
            for (
                time_s,
                input_tokens,
                output_tokens,
                cache_read,
                cache_write,
                message_id,
                cumulative_input,
                cumulative_output,
            ) in answer["history"]
        ]


def _check_positive(field: str, value: object) -> float:
    number = check_number(field, value)
    if number <= 0:
        raise InvalidValue(field, f"must be positive, not {number}")
    return number
