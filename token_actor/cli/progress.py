"""Progress of long work on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from token_actor.cli.output import note, notes

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE_EVERY_S: Final = 2.0


class Ticker(Protocol):
    """Show how far something has come."""

    def show(self, done: int) -> None:
        """Show that so many are done."""

    def note(self, text: str) -> None:
        """Tell a person something in between."""


class _Bar:
    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=total)

    def show(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def note(self, text: str) -> None:
        self._progress.console.print(text, style="yellow")


class _Lines:
    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._due_at = time.monotonic() + LINE_EVERY_S

    def show(self, done: int) -> None:
        if time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + LINE_EVERY_S
            self.note(f"{self._what} {done:,} of {self._total:,}")

    def note(self, text: str) -> None:
        note(text)


@contextmanager
def ticker(what: str, total: int) -> Iterator[Ticker]:
    """Lend what shows the progress of one piece of work."""
    console = notes()
    if not console.is_terminal:
        yield _Lines(what, total)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress, what, total)
