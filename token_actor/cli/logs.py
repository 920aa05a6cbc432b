"""Logs on stderr: one line per event of the log, for people or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

PACKAGE: Final = "token_actor"
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_STYLES: Final = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[31m"}
_RESET: Final = "\x1b[0m"


def start_logging(*, as_json: bool = False, level: int = logging.INFO) -> None:
    """Send what the package logs to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else HumanLines(colour=sys.stderr.isatty()))
    logger = logging.getLogger(PACKAGE)
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what the record was given as ``extra``, its action first."""
    fields = {name: value for name, value in vars(record).items() if name not in _OWN}
    return {"action": fields.pop("action", None), **fields}


class HumanLines(logging.Formatter):
    """Write ``12:00:00.123  Leading  epoch=3``."""

    def __init__(self, *, colour: bool = False) -> None:
        """Colour warnings and errors when asked to."""
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        moment = datetime.fromtimestamp(record.created, UTC).astimezone()
        fields = _fields(record)
        fields.pop("action")
        shown = "  ".join(f"{name}={_one_line(value)}" for name, value in fields.items())
        line = f"{moment:%H:%M:%S}.{int(record.msecs):03d}  {_one_line(record.getMessage())}  {shown}".rstrip()
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        style = _STYLES.get(record.levelno) if self._colour else None
        return f"{style}{line}{_RESET}" if style else line


class JsonLines(logging.Formatter):
    """Write one JSON object per line: time, level, action, message, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        moment = datetime.fromtimestamp(record.created, UTC)
        document = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def _one_line(value: object) -> str:
    return " ".join(str(value).split())
