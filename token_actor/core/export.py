"""Figures as text for other programs: JSON, CSV, Prometheus, and a summary for people.

The writers take any analytics and any columns, so a session and a whole fleet share them.
"""

from __future__ import annotations

import csv
import json
from io import StringIO
from typing import TYPE_CHECKING, Final

from token_actor.core.analytics import HISTORY_COLUMNS, iso_utc
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FORMATS: Final = ("json", "csv", "prometheus")

# A spreadsheet takes a cell that starts with one of these for a formula, and message ids are whatever a caller says.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")

_COUNTERS: Final = {  # figure: (metric, help)
    "total_requests": ("token_actor_requests_total", "Requests counted."),
    "total_input_tokens": ("token_actor_input_tokens_total", "Uncached input tokens."),
    "total_output_tokens": ("token_actor_output_tokens_total", "Output tokens."),
    "total_cache_read_tokens": ("token_actor_cache_read_tokens_total", "Input tokens read from a prompt cache."),
    "total_cache_write_tokens": ("token_actor_cache_write_tokens_total", "Input tokens written to a prompt cache."),
}
_GAUGES: Final = {  # rates and averages are missing on purpose: whoever scrapes counters computes better ones
    "context_usage_pct": ("token_actor_context_usage_percent", "Share of the context window in use."),
    "peak_usage_pct": ("token_actor_context_usage_peak_percent", "Highest share of the context window so far."),
    "context_window_limit": ("token_actor_context_window_tokens", "Size of the context window."),
    "uptime_seconds": ("token_actor_session_uptime_seconds", "Time since the session started or was reset."),
}


def export_metrics(
    analytics: Mapping[str, object], history: Sequence[Mapping[str, object]], export_format: str, now_s: float
) -> str:
    """Return one session as text in ``json``, ``csv`` or ``prometheus``, whatever the case of the name.

    ``history`` is oldest first, ``now_s`` unix seconds. Raises ``InvalidValue`` naming the formats.
    """
    wanted = str(export_format).lower()
    if wanted == "json":
        return export_json(analytics, history, now_s, indent=2)
    if wanted == "csv":
        return export_csv(analytics, history, HISTORY_COLUMNS)
    if wanted == "prometheus":
        return export_prometheus([({}, analytics)])
    raise InvalidValue("export_format", f"must be one of {', '.join(FORMATS)}, not {export_format!r}")


def export_json(
    analytics: object, history: Sequence[Mapping[str, object]], now_s: float, *, indent: int | None = None
) -> str:
    """Return analytics and history as one JSON object, with the time of the export as text and as number.

    ``indent`` is for people; without it, all is one line, written several times faster.
    """
    document = {
        "analytics": analytics,
        "history": list(history),
        "export_timestamp": iso_utc(now_s),
        "export_unix_time": now_s,
    }
    return json.dumps(document, indent=indent, allow_nan=False)


def export_csv(analytics: Mapping[str, object], history: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Return a section of analytics and a section of history, as RFC 4180 rows.

    ``columns`` names the cells of a history row in order; one that a row lacks stays empty. Text
    that a spreadsheet would run as a formula is disarmed with a leading ``'`` and quoted.
    """
    out = StringIO()
    titles = csv.writer(out)  # the section titles start with "=", and are ours
    titles.writerow(["=== Token Manager Analytics ==="])
    _write_rows(out, [("Metric", "Value"), *analytics.items()])
    titles.writerow([])
    titles.writerow(["=== Usage History ==="])
    if history:
        _write_rows(out, [columns])
        _write_rows(out, ([row.get(column) for column in columns] for row in history))
    else:
        titles.writerow(["No history available"])
    return out.getvalue()


def export_prometheus(groups: Sequence[tuple[Mapping[str, str], Mapping[str, object]]]) -> str:
    """Return the text exposition format 0.0.4, one sample of each metric for each group.

    A group is its labels and its analytics; figures that it lacks are left out.
    """
    lines: list[str] = []
    for kind, metrics in (("counter", _COUNTERS), ("gauge", _GAUGES)):
        for figure, (metric, meaning) in metrics.items():
            samples = [f"{metric}{_labels(names)} {figures[figure]}" for names, figures in groups if figure in figures]
            if samples:
                lines += [f"# HELP {metric} {meaning}", f"# TYPE {metric} {kind}", *samples]
    return "".join(f"{line}\n" for line in lines)


def summary_text(analytics: Mapping[str, object]) -> str:
    """Return a few lines for people: the figures of one session that matter most."""
    figure = analytics.__getitem__
    return "\n".join(
        (
            "=== Token Manager Summary ===",
            f"Total Requests: {figure('total_requests')}",
            f"Input Tokens: {figure('total_input_tokens'):,}",
            f"Output Tokens: {figure('total_output_tokens'):,}",
            f"Total Tokens: {figure('total_tokens'):,}",
            f"Context Usage: {figure('context_usage_pct'):.1f}%",
            f"Avg Tokens/Request: {figure('avg_total_per_request'):.1f}",
            f"Trend: {str(figure('trend')).capitalize()}",
            f"Uptime: {figure('uptime_seconds'):.0f}s",
        )
    )


def _write_rows(out: StringIO, rows: Iterable[Sequence[object]]) -> None:
    plain = csv.writer(out)
    quoted = csv.writer(out, quoting=csv.QUOTE_ALL)
    for row in rows:
        cells = [_disarmed(cell) for cell in row]
        writer = plain if cells == list(row) else quoted
        writer.writerow(cells)


def _disarmed(cell: object) -> object:
    if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS):
        return f"'{cell}"
    return cell


def _labels(names: Mapping[str, str]) -> str:
    if not names:
        return ""
    escaped = (
        (label, value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")) for label, value in names.items()
    )
    return "{" + ",".join(f'{label}="{value}"' for label, value in escaped) + "}"
