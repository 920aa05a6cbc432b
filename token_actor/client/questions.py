"""What a client can ask, whichever face it shows: each question waits for its answer.

A new question of ``core.queries`` gets a method here, and the same name in the two faces.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from token_actor.client.deadline import Deadline
from token_actor.client.report import fleet_summary
from token_actor.core.analytics import check_number, predict_overflow
from token_actor.core.export import export_csv, export_json
from token_actor.core.queries import HISTORY_MAX, WINDOW_MS_MAX
from token_actor.core.series import check_selector
from token_actor.core.usage import COUNTS, DEFAULT_TENANT, DIMENSIONS, check_count
from token_actor.errors import InvalidQuestion, InvalidValue
from token_actor.wire.events import timestamp_to_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from token_actor.client.engine import Engine

Moment: TypeAlias = "float | str | datetime | None"  # unix seconds, ISO 8601 with a zone, or aware; None: no bound
WINDOW_S_MAX: Final = WINDOW_MS_MAX // 1000
EXPORT_FORMATS: Final = ("json", "csv")
HISTORY_CELLS: Final = (
    "timestamp", *DIMENSIONS, *COUNTS, "total_tokens", "cost_usd", "message_id", "exactness", "clamped", "inconsistent",
)  # fmt: skip


class Questions:
    """Ask the actor through an engine, and shape what it answers.

    ``selector`` is dimensions by name (``agent="planner"``); none means the whole namespace. Every
    method raises ``ActorUnavailable`` at its deadline, and ``InvalidQuestion`` naming a wrong field.
    """

    def __init__(self, engine: Engine) -> None:
        """Use ``engine`` for everything."""
        self._engine = engine
        self.client_names = engine.settings.names

    def analytics(
        self,
        group_by: Sequence[str] = (),
        since: Moment = None,
        until: Moment = None,
        *,
        limit: int | None = None,
        stale_ok: bool = False,
        timeout_s: float | None = None,
        **selector: str,
    ) -> dict[str, Any]:
        """Return what was used: sums over everything selected, and one entry of ``groups`` per group.

        ``group_by`` is one dimension or several; ``limit`` keeps the largest groups. ``since`` and
        ``until`` are widened to whole minutes (hours, days for times long past); the answer says so.
        """
        arguments: dict[str, Any] = {
            "group_by": [group_by] if isinstance(group_by, str) else list(group_by),
            "since_ms": _ms("since", since),
            "until_ms": _ms("until", until),
        }
        if limit is not None:
            arguments["limit"] = limit
        return self._analytics(arguments, selector, stale_ok=stale_ok, timeout_s=timeout_s)

    def _analytics(
        self,
        arguments: Mapping[str, Any],
        selector: Mapping[str, str],
        *,
        stale_ok: bool = False,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        arguments = {"selector": selector, **arguments}
        return self._ask("analytics", arguments, selector, stale_ok=stale_ok, timeout_s=timeout_s)

    def history(
        self, limit: int = 10, *, stale_ok: bool = False, timeout_s: float | None = None, **selector: str
    ) -> list[dict[str, Any]]:
        """Return the last ``limit`` events, newest first, as far as the actor still holds them."""
        left = self._time_left(timeout_s)
        pages = self._pages(check_count("limit", limit), selector, stale_ok=stale_ok, left_s=left)
        return [entry for page in pages for entry in page]

    def pages(self, limit: int | None = None, **selector: str) -> Iterator[list[dict[str, Any]]]:
        """Yield the events the actor still holds, newest first, a page at a time; ``None`` means all.

        The deadline is that of each page.
        """
        return self._pages(limit, selector, stale_ok=False, left_s=lambda: None)

    def _pages(
        self, limit: int | None, selector: Mapping[str, str], *, stale_ok: bool, left_s: Callable[[], float | None]
    ) -> Iterator[list[dict[str, Any]]]:
        before: int | None = None
        while limit is None or limit > 0:
            arguments = {
                "selector": selector,
                "limit": HISTORY_MAX if limit is None else min(limit, HISTORY_MAX),
                "before": before,
            }
            answer = self._ask("history", arguments, selector, stale_ok=stale_ok, timeout_s=left_s())
            if answer["history"]:
                yield answer["history"]
            before = answer["next_before"]
            if before is None:
                return
            if limit is not None:
                limit -= len(answer["history"])

    def window_usage(
        self, window_seconds: float, *, stale_ok: bool = False, timeout_s: float | None = None, **selector: str
    ) -> dict[str, Any]:
        """Return the ``tokens`` of all four kinds of the last ``window_seconds``, and the ``source`` of that.

        By the server's clock and exact while the actor holds every event of the window (``recent``); beyond
        that by the times that events claim, in whole minutes, or hours for times long past (``frames``). The
        window has at most 35 days; nothing that was used is older than that when it is reported.
        """
        if not 0 < check_number("window_seconds", window_seconds) <= WINDOW_S_MAX:
            raise InvalidQuestion("window_seconds", f"must be above 0, at most {WINDOW_S_MAX}, not {window_seconds!r}")
        arguments = {"selector": selector, "window_ms": max(1, round(window_seconds * 1000))}
        return self._ask("window", arguments, selector, stale_ok=stale_ok, timeout_s=timeout_s)

    def tokens_in_window(self, window_seconds: float, **more: Any) -> int:  # noqa: ANN401 - those of ``window_usage``
        """Return the tokens of ``window_usage`` of the same arguments."""
        tokens: int = self.window_usage(window_seconds, **more)["tokens"]
        return tokens

    def check_rate_limit(
        self,
        window_seconds: float,
        max_tokens: float,
        *,
        stale_ok: bool = False,
        timeout_s: float | None = None,
        **selector: str,
    ) -> bool:
        """Tell whether what was selected used at most ``max_tokens`` in the last ``window_seconds``.

        A view of the past: it does not reserve anything.
        """
        check_number("max_tokens", max_tokens)
        used = self.tokens_in_window(window_seconds, stale_ok=stale_ok, timeout_s=timeout_s, **selector)
        return used <= max_tokens

    def session(
        self,
        session: str,
        *,
        tenant: str | None = None,
        history_limit: int = 0,
        stale_ok: bool = False,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Return the figures of one session since its last reset, and its newest events."""
        selector = {"tenant": tenant_of(self.client_names, tenant), "session": session}
        arguments = {"selector": selector, "limit": min(history_limit, HISTORY_MAX)}
        return self._ask("session", arguments, selector, stale_ok=stale_ok, timeout_s=timeout_s)

    def predict_overflow(
        self,
        session: str,
        estimated_tokens: float,
        *,
        context_window_limit: int = 200_000,
        tenant: str | None = None,
        timeout_s: float | None = None,
    ) -> tuple[bool, float]:
        """Return whether a session would overflow its context window, and its usage in per cent then."""
        figures = self.session(session, tenant=tenant, timeout_s=timeout_s)["figures"]
        used = figures["input_tokens"] + figures["output_tokens"]
        return predict_overflow(used, estimated_tokens, context_window_limit)

    def export(self, export_format: str = "json", *, limit: int | None = None, **selector: str) -> str:
        """Return analytics and events as one text: ``json`` or ``csv``, whatever the case of the name.

        ``limit`` bounds the events; ``None`` means all that the actor still holds.
        """
        wanted = str(export_format).lower()
        if wanted not in EXPORT_FORMATS:
            raise InvalidValue("export_format", f"must be one of {', '.join(EXPORT_FORMATS)}, not {export_format!r}")
        analytics = self._analytics({}, selector)
        newest_first = [entry for page in self.pages(limit, **selector) for entry in page]
        oldest_first = newest_first[::-1]
        if wanted == "json":
            return export_json(analytics, oldest_first, time.time(), indent=2)
        plain = {name: value for name, value in analytics.items() if not isinstance(value, list)}
        return export_csv(plain, oldest_first, HISTORY_CELLS)

    def summary(self, **selector: str) -> str:
        """Return a page of text for people: totals, the largest models, agents and sessions, the fullest limits."""
        left_s = self._time_left(None)
        groups = {
            dimension: self._analytics({"group_by": [dimension], "limit": 5}, selector, timeout_s=left_s())
            for dimension in ("model", "agent", "session")
        }
        where = self._only_tenant(selector.get("tenant"))
        limits = self._ask("limits", {"top": 100}, where, stale_ok=False, timeout_s=left_s())
        return fleet_summary(groups, selector, limits["limits"])

    def status(self, *, tenant: str | None = None, timeout_s: float | None = None) -> dict[str, Any]:
        """Return what the actor says of itself: epoch, position in the log, duplicates, dead letters, sizes."""
        return self._ask("status", {}, self._only_tenant(tenant), stale_ok=False, timeout_s=timeout_s)

    def books(self, *, tenant: str | None = None, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the totals added up in every way there is, and the differences, of which there are none."""
        return self._ask("books", {}, self._only_tenant(tenant), stale_ok=False, timeout_s=timeout_s)

    def _time_left(self, timeout_s: float | None) -> Callable[[], float]:
        """Return what tells the seconds left of one deadline, for calls that ask more than once."""
        deadline = Deadline.after(self._engine.settings.timeout_s if timeout_s is None else timeout_s)
        return lambda: max(0.0, deadline.left_s)

    def _only_tenant(self, tenant: str | None) -> dict[str, str]:
        return {"tenant": tenant_of(self.client_names, tenant)}

    def _ask(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        selector: Mapping[str, str],
        *,
        stale_ok: bool,
        timeout_s: float | None,
    ) -> dict[str, Any]:
        tenant = check_selector(dict(selector)).get("tenant")
        return dict(self._engine.ask(kind, arguments, tenant=tenant, stale_ok=stale_ok, timeout_s=timeout_s))


def tenant_of(client_names: Mapping[str, str], tenant: str | None) -> str:
    """Return the tenant meant: the one named, else the client's, else the default."""
    return tenant or client_names.get("tenant") or DEFAULT_TENANT


def _ms(field: str, moment: Moment) -> int | None:
    """Return a moment as unix milliseconds. Raises ``InvalidQuestion`` naming ``field``."""
    if isinstance(moment, datetime):
        moment = moment.isoformat()
    try:
        return timestamp_to_ms(moment)
    except InvalidValue as problem:
        raise InvalidQuestion(field, problem.problem, reason=problem.reason) from None
