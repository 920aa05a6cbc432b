"""Output: answers on stdout, everything else on stderr; for people on a terminal, plain everywhere else."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from token_actor.client.report import usd_text
from token_actor.errors import ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

PLAIN_WIDTH: Final = 2_000  # a pipe has no right margin: nothing is cut
LINES_TOLD: Final = 3
UNPRICED: Final = "unpriced"


def answers() -> Console:
    """Return the console of answers."""
    return _console(stderr=False)


def notes() -> Console:
    """Return the console of progress, notes and failures."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False)


def show(console: Console, content: RenderableType) -> None:
    """Print a table or grid, without the spaces that Rich leaves at the ends of lines where nobody sees them."""
    if console.is_terminal:
        console.print(content)
        return
    with console.capture() as captured:
        console.print(content)
    console.out("\n".join(line.rstrip() for line in captured.get().splitlines()))


def survive_any_name() -> None:
    """Let a terminal that cannot show a character show its code, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(document: Mapping[str, Any]) -> None:
    """Print the one document of a command."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def note(text: str, *, style: str = "dim") -> None:
    """Tell a person something that is no answer."""
    _tell(text, style)


def _tell(text: str, style: str) -> None:
    """Print on stderr: wrapped between words on a terminal, one line elsewhere, however long."""
    console = notes()
    console.print(text, style=style, soft_wrap=not console.is_terminal)


def complain(error: object) -> None:
    """Say on one line of stderr why a command failed, and what to do."""
    lines = str(error).splitlines()
    told = lines if len(lines) <= LINES_TOLD else [lines[0], "...", *lines[-2:]]  # a server's log tells it at its end
    text = " ".join(" ".join(told).split())
    _tell(f"token-actor: {text}{_advice(error)}", "red")


def _advice(error: object) -> str:
    if isinstance(error, ServerUnavailable):
        return (
            "; check that the server runs, name another with --redis, or start one there: "
            "token-actor serve --embedded --port PORT --data FOLDER"
        )
    return ""


def number(value: int | None) -> str:
    """Return a whole number with thousands separators, ``-`` for none."""
    return "-" if value is None else f"{value:,}"


def cost(sums: Mapping[str, Any]) -> str:
    """Return what something cost; ``unpriced`` where nobody knows, ``+ ?`` where it is more than is known."""
    unpriced, requests = sums["unpriced"], sums["requests"]
    if requests and unpriced == requests:
        return UNPRICED
    return usd_text(sums["cost_nanousd"]) + (" + ?" if unpriced else "")


def local_time(unix_s: float) -> str:
    """Return a time for people: local, to the second."""
    return datetime.fromtimestamp(unix_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """Return a length of time for people: the two largest units of it."""
    left = round(abs(seconds))
    parts = []
    for unit, size in (("y", 365 * 86_400), ("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2]) or "0 s"
