"""One session's tokens, counted in this process: no server, no clock of its own, no log.

Rules of this file: time is read through the ``clock`` that the constructor is given, and what a
session has to say to the world (a warning, a broken metrics engine) goes to the effects ``warn``
and ``engine_failed``. ``token_actor.manager`` binds all three to the real ones.

Locking: everything that reads or changes more than one number does so under one lock, and nothing
of the caller's ever runs under it. ``warn`` and the metrics engine are called after it is released:
an engine may ask the manager again, may do so from another thread and wait for that thread, and a
log handler may take locks of its own; with ours held, each of these could wait for ever. The price
is that engines may see the calls of two threads in another order than the history shows. The lock
is re-entrant because a signal handler or a finaliser may run in the middle of a method of ours, in
the thread that holds it, and ask too.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from operator import index
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, SupportsIndex

from token_actor.core import analytics as formulas
from token_actor.core.export import export_metrics, summary_text
from token_actor.core.usage import check_count
from token_actor.core.window import SteadyTime, TrailingWindow
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_actor.core.analytics import Analytics, HistoryEntry

MESSAGE_IDS_MAX: Final = 10_000  # retries come within seconds; a session that calls each second remembers hours
WARNING_INTERVAL_S: Final = 60.0  # a session stays above the threshold once it is; one line a minute is enough to see


class MetricsEngine(Protocol):
    """Whatever wants to hear of every update that counted."""

    def record_token_usage(self, *, input_tokens: int, output_tokens: int, cache_read: int, cache_write: int) -> object:
        """Take the tokens of one update; what it returns is ignored."""


class _Request(NamedTuple):
    """One line of history, as small as it gets; the names are the arguments of ``history_entry``."""

    timestamp_s: float
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    message_id: str | None
    cumulative_input: int
    cumulative_output: int
    context_window_limit: int


class TokenManager:
    """Count the tokens of one session, once per message id, and answer questions about them.

    Safe to share between threads. ``context_window_limit`` (tokens), ``overflow_warning_threshold``
    (per cent), ``metrics_engine``, ``history_size`` and the four counters may be assigned at any time.
    ``processed_message_ids`` are the ids that a repetition is recognised by.
    """

    def __init__(  # noqa: PLR0913 - four arguments of the public contract, a clock and two effects
        self,
        context_window_limit: int = 200_000,
        history_size: int = 100,
        overflow_warning_threshold: float = 80.0,
        metrics_engine: MetricsEngine | None = None,
        *,
        clock: Callable[[], float],
        warn: Callable[[float, int, int], object],
        engine_failed: Callable[[Exception], object],
    ) -> None:
        """Start a session with nothing used.

        ``clock`` returns unix seconds. ``warn`` is called with the usage in per cent, the tokens
        used and the limit; ``engine_failed`` with what the metrics engine raised. Raises
        ``InvalidValue``, a ``ValueError``, naming the argument.
        """
        self.context_window_limit: int = _plain(context_window_limit)
        self.overflow_warning_threshold = overflow_warning_threshold
        self.metrics_engine = metrics_engine
        self._history_size: int = _plain(history_size)
        self._rules()  # checks the three numbers above
        self._clock = clock
        self._warn_effect = warn
        self._engine_failed_effect = engine_failed
        self._lock = threading.RLock()
        self.processed_message_ids: set[str] = set()
        self._message_ids: deque[str] = deque()  # the same ids, oldest first: neither set nor dict can drop its oldest
        self._history: deque[_Request] = deque(maxlen=self._history_size)
        self._recent_totals: deque[int] = deque(maxlen=formulas.TREND_REQUESTS)
        self._window = TrailingWindow()
        self.reset()

    def reset(self) -> None:
        """Start the session anew: everything to zero, ids and history forgotten, uptime from now on."""
        with self._lock:
            self.input_tokens = 0
            self.output_tokens = 0
            self.cache_read_tokens = 0
            self.cache_write_tokens = 0
            self.processed_message_ids.clear()
            self._message_ids.clear()
            self._history.clear()
            self._recent_totals.clear()
            self._window.clear()
            self._requests = 0
            self._peak_tokens = 0
            self._warned_s: float | None = None
            self._started_s = self._clock()
            self._steady = SteadyTime(self._started_s)

    @property
    def history_size(self) -> int:
        """Return how many requests the history keeps; assigning a smaller number drops the oldest."""
        return self._history_size

    @history_size.setter
    def history_size(self, entries: int) -> None:
        size = check_count("history_size", _plain(entries))
        with self._lock:
            self._history_size = size
            self._history = deque(self._history, maxlen=size)

    def update_tokens(
        self,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read: int = 0,
        cache_write: int = 0,
        message_id: str | None = None,
    ) -> bool:
        """Count one request; return ``False``, and change nothing, when its id was seen before.

        ``message_id`` ``None`` or ``""`` means that nothing tells a repetition. Integers of other
        libraries count as ints. Raises ``InvalidValue``, a ``ValueError``, naming the argument that
        is negative, above 10**12, or no int (a bool is none), before anything is changed.
        """
        counts = (
            check_count("input_tokens", _plain(input_tokens)),
            check_count("output_tokens", _plain(output_tokens)),
            check_count("cache_read", _plain(cache_read)),
            check_count("cache_write", _plain(cache_write)),
        )
        message_id = _check_id(message_id)
        with self._lock:
            if message_id is not None and not self._remember(message_id):
                return False
            warning = self._count(counts, message_id)
        if warning is not None:
            self._warn_effect(*warning)
        if self.metrics_engine is not None:
            self._report(self.metrics_engine, counts)
        return True

    def get_context_usage_pct(self) -> float:
        """Return how much of the context window is used, in per cent, unrounded."""
        with self._lock:
            return formulas.context_usage_pct(self.input_tokens, self.output_tokens, self.context_window_limit)

    def predict_overflow(self, estimated_tokens: float) -> tuple[bool, float]:
        """Return whether ``estimated_tokens`` more would overflow the window, and the usage in per cent then.

        Raises ``InvalidValue`` when the estimate is negative, above 10**12, or no number.
        """
        with self._lock:
            used, limit = self.input_tokens + self.output_tokens, self.context_window_limit
        return formulas.predict_overflow(used, _plain(estimated_tokens), limit)

    def get_usage_history(self, limit: int = 10) -> list[HistoryEntry]:
        """Return the last ``limit`` requests, newest first. Raises ``InvalidValue`` when it is not a positive int."""
        count = _plain(limit)
        if type(count) is not int or count <= 0:
            raise InvalidValue("limit", f"must be a positive int, not {limit!r}")
        with self._lock:
            requests = list(islice(reversed(self._history), min(count, self._history_size)))
        return _entries(requests)

    def check_rate_limit(self, window_seconds: float, max_tokens: float) -> bool:
        """Tell whether at most ``max_tokens`` of all four kinds were used in the last ``window_seconds``.

        Exact while the window holds at most 65,536 requests, with more of them never too lenient.
        Raises ``InvalidValue`` naming the argument that is not a number above 0; it may be infinite.
        """
        window_s = _check_positive("window_seconds", window_seconds)
        allowed = _check_positive("max_tokens", max_tokens)
        with self._lock:
            return self._window.sum(window_s, self._steady.at(self._clock())) <= allowed

    def get_analytics(self) -> Analytics:
        """Return the figures of the session by name; see ``core.analytics.session_analytics``."""
        with self._lock:
            figures, rules = self._figures(self._clock()), self._rules()
        return formulas.session_analytics(figures, rules)

    def export_metrics(self, export_format: str = "json") -> str:
        """Return analytics and history, oldest first, as ``json``, ``csv`` or ``prometheus`` text.

        Raises ``InvalidValue`` naming the formats when it is none of them.
        """
        with self._lock:
            now_s = self._clock()
            figures, rules = self._figures(now_s), self._rules()
            requests = list(self._history)
        return export_metrics(formulas.session_analytics(figures, rules), _entries(requests), export_format, now_s)

    def get_summary(self) -> str:
        """Return a few lines for people."""
        return summary_text(self.get_analytics())

    def __repr__(self) -> str:
        """Return how much was used, in one line."""
        with self._lock:
            requests, tokens = self._requests, self.input_tokens + self.output_tokens
            usage_pct = self.get_context_usage_pct()
        return f"TokenManager(requests={requests}, tokens={tokens}, usage={usage_pct:.1f}%)"

    def _remember(self, message_id: str) -> bool:
        """Return whether an id is new, and remember it in the place of the oldest."""
        if message_id in self.processed_message_ids:
            return False
        if len(self._message_ids) == MESSAGE_IDS_MAX:
            self.processed_message_ids.discard(self._message_ids.popleft())
        self.processed_message_ids.add(message_id)
        self._message_ids.append(message_id)
        return True

    def _count(self, counts: tuple[int, int, int, int], message_id: str | None) -> tuple[float, int, int] | None:
        """Count one request; return the warning that is due, as the arguments of ``warn``."""
        input_tokens, output_tokens, cache_read, cache_write = counts
        now_s = self._clock()
        steady_s = self._steady.at(now_s)
        total = sum(counts)
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self.cache_read_tokens += cache_read
        self.cache_write_tokens += cache_write
        self._requests += 1
        self._peak_tokens = max(self._peak_tokens, self.input_tokens + self.output_tokens)
        self._recent_totals.append(total)
        self._window.add(total, steady_s)
        limit = self.context_window_limit
        self._history.append(_Request(now_s, *counts, message_id, self.input_tokens, self.output_tokens, limit))
        return self._warning_due(steady_s)

    def _warning_due(self, steady_s: float) -> tuple[float, int, int] | None:
        used, limit = self.input_tokens + self.output_tokens, self.context_window_limit
        usage_pct = formulas.context_usage_pct(used, 0, limit)
        if usage_pct < self.overflow_warning_threshold:
            return None
        if self._warned_s is not None and steady_s - self._warned_s < WARNING_INTERVAL_S:
            return None
        self._warned_s = steady_s
        return usage_pct, used, limit

    def _report(self, engine: MetricsEngine, counts: tuple[int, int, int, int]) -> None:
        input_tokens, output_tokens, cache_read, cache_write = counts
        try:
            engine.record_token_usage(
                input_tokens=input_tokens, output_tokens=output_tokens, cache_read=cache_read, cache_write=cache_write
            )
        except Exception as problem:  # noqa: BLE001 - foreign code; the update has counted, whatever it does
            self._engine_failed_effect(problem)

    def _figures(self, now_s: float) -> formulas.SessionFigures:
        return formulas.SessionFigures(
            requests=self._requests,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cache_read_tokens=self.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens,
            peak_tokens=self._peak_tokens,
            uptime_s=max(0.0, self._steady.at(now_s) - self._started_s),
            recent_totals=tuple(self._recent_totals),
            current_history_size=len(self._history),
        )

    def _rules(self) -> formulas.SessionRules:
        return formulas.SessionRules(
            context_window_limit=self.context_window_limit,
            overflow_warning_threshold=self.overflow_warning_threshold,
            history_size=self._history_size,
        )


def _entries(requests: list[_Request]) -> list[HistoryEntry]:
    return [formulas.history_entry(**request._asdict()) for request in requests]


def _plain(number: Any) -> Any:  # noqa: ANN401 - takes whatever a caller passes; the checks judge what comes back
    """Return an integer of another library (numpy has eight) as an int, and anything else as it is."""
    if type(number) is int or isinstance(number, (bool, float)) or not isinstance(number, SupportsIndex):
        return number
    try:
        return index(number)
    except TypeError:  # numpy's bool has __index__ and refuses to answer
        return number


def _check_id(message_id: object) -> str | None:
    """Return an id of any length, or ``None`` for none; unlike on the wire, nobody else has to store it."""
    if message_id is None or message_id == "":
        return None
    if not isinstance(message_id, str):
        raise InvalidValue("message_id", f"must be a string, not {type(message_id).__name__}", reason="type")
    return message_id


def _check_positive(field: str, value: object) -> int | float:
    number = formulas.check_number(field, _plain(value))
    if number <= 0:
        raise InvalidValue(field, f"must be positive, not {number}")
    return number
