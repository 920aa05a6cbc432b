"""Lines: read a recorded trace, whatever its format, one line at a time and without ever raising.

``azure-llm`` is the public trace of Azure's LLM service, ``TIMESTAMP,ContextTokens,GeneratedTokens``,
with times in UTC. ``jsonl`` and ``csv`` use the names of an event (docs/wire.md).
"""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from token_actor_workers.report import COUNTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

NAMES: Final = ("tenant", "project", "user", "agent", "session", "provider", "model")
EVENT_FIELDS: Final = (*COUNTS, *NAMES, "message_id", "timestamp", "cost_usd", "tags", "exactness")
AZURE_COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
SESSION_MINUTES: Final = 15  # the Azure trace names no sessions


class Line(NamedTuple):
    """Hold one line: its number in the file, from 1, and either its event or what is wrong with it."""

    number: int
    event: dict[str, Any]
    problem: str | None = None


class NotATrace(Exception):  # noqa: N818 - reads as a sentence where it is raised
    """Say that a file as a whole is not of the format."""


def read_lines(path: Path, trace_format: str) -> Iterator[Line]:
    """Yield the events of a file in order. Raises ``NotATrace``, and ``OSError`` when it cannot be read."""
    return FORMATS[trace_format](path)


def _read_azure(path: Path) -> Iterator[Line]:
    return _read_table(path, _azure_event, required=AZURE_COLUMNS, known=AZURE_COLUMNS)


def _azure_event(cells: Mapping[str, str]) -> dict[str, Any]:
    moment = datetime.fromisoformat(cells["TIMESTAMP"])
    moment = moment.replace(tzinfo=moment.tzinfo or UTC)
    quarter = moment.replace(minute=moment.minute // SESSION_MINUTES * SESSION_MINUTES)
    return {
        "input_tokens": _whole("ContextTokens", cells["ContextTokens"]),
        "output_tokens": _whole("GeneratedTokens", cells["GeneratedTokens"]),
        "provider": "azure",
        "model": "azure-llm",
        "session": f"{quarter:%Y-%m-%dT%H:%M}",
        "timestamp": moment.timestamp(),
    }


def _read_csv(path: Path) -> Iterator[Line]:
    return _read_table(path, _csv_event, required=(), known=EVENT_FIELDS)


def _csv_event(cells: Mapping[str, str]) -> dict[str, Any]:
    event: dict[str, Any] = {name: cell for name, cell in cells.items() if cell != ""}
    for name in COUNTS:
        if name in event:
            event[name] = _whole(name, event[name])
    if "tags" in event:
        event["tags"] = json.loads(event["tags"])
    if "timestamp" in event:
        event["timestamp"] = unix_seconds(event["timestamp"])
    return event


def _read_table(
    path: Path,
    event_of: Callable[[Mapping[str, str]], dict[str, Any]],
    *,
    required: Sequence[str],
    known: Sequence[str],
) -> Iterator[Line]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        _check_header(header, required, known)
        while True:
            try:
                row = next(rows)
                if row:
                    yield Line(rows.line_num, event_of(_cells(header, row)))
            except StopIteration:
                return
            except (ValueError, csv.Error) as error:
                yield Line(rows.line_num, {}, str(error))


def _cells(header: Sequence[str], row: Sequence[str]) -> dict[str, str]:
    if len(row) != len(header):
        raise ValueError(f"must have {len(header)} cells, not {len(row)}")
    return dict(zip(header, row, strict=True))


def _check_header(header: Sequence[str], required: Sequence[str], known: Sequence[str]) -> None:
    missing = [name for name in required if name not in header]
    unknown = [name for name in header if name not in known]
    if missing or unknown or not header:
        wrong = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}" if unknown else "is empty"
        raise NotATrace(f"its first line must name columns among {', '.join(known)}, and {wrong}")
    if len(set(header)) != len(header):
        raise NotATrace("its first line names a column twice")


def _read_jsonl(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                event = json.loads(text)
            except (ValueError, RecursionError) as error:
                yield Line(number, {}, f"must be JSON: {error}")
                continue
            if not isinstance(event, dict):
                yield Line(number, {}, f"must be a JSON object, not {type(event).__name__}")
                continue
            yield _checked_names(number, event)


def _checked_names(number: int, event: dict[str, Any]) -> Line:
    unknown = [name for name in event if name not in EVENT_FIELDS]
    if unknown:
        return Line(number, {}, f"has the unknown field {unknown[0]!r}; there are {', '.join(EVENT_FIELDS)}")
    try:
        if event.get("timestamp") is not None:
            event["timestamp"] = unix_seconds(event["timestamp"])
    except ValueError as error:
        return Line(number, {}, str(error))
    return Line(number, event)


def unix_seconds(value: object) -> float:
    """Return unix seconds, or ISO 8601 with a zone, as unix seconds. Raises ``ValueError``."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                raise ValueError("timestamp must name its zone, as in 2026-01-31T12:00:00Z") from None
            return moment.timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"timestamp must be unix seconds or ISO 8601, not {value!r}")  # noqa: TRY004 - one ladder
    return float(value)


def _whole(name: str, cell: str) -> int:
    if not (cell.isascii() and cell.isdecimal()):
        raise ValueError(f"{name} must be a whole number, not {cell[:40]!r}")
    return int(cell)


FORMATS: Final[Mapping[str, Callable[[Path], Iterator[Line]]]] = {
    "azure-llm": _read_azure,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
}
