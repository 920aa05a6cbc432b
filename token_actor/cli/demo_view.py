"""The demo as a person sees it: live while it runs, and a summary at the end."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from token_actor.cli.output import answers, note, notes, number
from token_actor.cli.questions import group_columns
from token_actor.cli.tables import fitting, print_table, table_of
from token_actor.cli.totals import print_sent_and_counted, total_tokens
from token_actor.client.report import usd_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console, RenderableType

    from token_actor.cli.demo import Outcome, Plan

LINE_EVERY_S: Final = 2.0
BAR_WIDTH: Final = 24


@dataclass(slots=True)
class Picture:
    """Hold what is known of a running demo at one moment."""

    plan: Plan
    url: str
    actor: int | None
    window_s: float
    elapsed_s: float = 0.0
    total: Mapping[str, Any] | None = None
    by_model: Sequence[Mapping[str, Any]] = ()
    by_agent: Sequence[Mapping[str, Any]] = ()
    in_window: int = 0
    window_max: int = 0


class View(Protocol):
    """Show a picture as it changes."""

    def draw(self) -> None:
        """Show the picture as it is now."""

    def note(self, text: str) -> None:
        """Tell a person something in between."""


class _Lines:
    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._due_at = time.monotonic() + LINE_EVERY_S

    def draw(self) -> None:
        if time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + LINE_EVERY_S
            note(f"{self._picture.elapsed_s:5.1f} s  {_so_far(self._picture)}")

    def note(self, text: str) -> None:
        note(text)


class _Screen:
    def __init__(self, picture: Picture, live: Live) -> None:
        self._picture = picture
        self._live = live

    def draw(self) -> None:
        self._live.update(drawn(self._picture, self._live.console), refresh=True)

    def note(self, text: str) -> None:
        self._live.console.print(text, style="yellow")


@contextmanager
def view(picture: Picture) -> Iterator[View]:
    """Lend what shows a picture on stderr: drawn on a terminal, a line now and then elsewhere."""
    console = notes()
    if not console.is_terminal:
        yield _Lines(picture)
        return
    with Live(drawn(picture, console), console=console, transient=True, auto_refresh=False) as live:
        yield _Screen(picture, live)


def drawn(picture: Picture, console: Console) -> RenderableType:
    """Return the picture, no wider than the console."""
    plan = picture.plan
    heading = Text.assemble(
        ("token-actor demo", "bold"),
        (f"  {plan.workers} workers, {plan.agents} agents, {picture.url}", "dim"),
        (f", actor {picture.actor}" if picture.actor else "", "dim"),
        no_wrap=True,
        overflow="ellipsis",
    )
    bars = Table.grid(padding=(0, 2, 0, 0))
    seconds = min(picture.elapsed_s, plan.seconds)
    bars.add_row("time", _bar(seconds, plan.seconds, "cyan"), f"{seconds:.0f} of {plan.seconds:.0f} s")
    over = picture.in_window > plan.limit_tokens
    bars.add_row(
        "soft limit",
        _bar(min(picture.in_window, plan.limit_tokens), plan.limit_tokens, "red" if over else "green"),
        f"{number(picture.in_window)} of {number(plan.limit_tokens)} tokens in {picture.window_s:.0f} s",
    )
    parts: list[RenderableType] = [heading, "", bars, Text(_so_far(picture), style="bold"), ""]
    for dimension, groups in (("model", picture.by_model), ("agent", picture.by_agent)):
        if groups:
            columns = fitting(group_columns([dimension], groups), console.width)
            parts += [table_of(columns, console), ""]
    return Group(*parts)


def _bar(done: float, total: float, style: str) -> ProgressBar:
    return ProgressBar(total=total, completed=done, width=BAR_WIDTH, complete_style=style, finished_style=style)


def _so_far(picture: Picture) -> str:
    total = picture.total
    if total is None:
        return "nothing counted yet"
    return (
        f"{number(total['requests'])} calls, {number(total['total_tokens'])} tokens, {usd_text(total['cost_nanousd'])}"
    )


def print_summary(outcome: Outcome, window_s: float) -> None:
    """Print what the fleet used, and that what was counted is what was sent."""
    console = answers()
    plan, counted = outcome.plan, outcome.counted
    console.print(
        f"{number(counted['events'])} calls of {plan.agents} agents in {plan.workers} worker processes: "
        f"{number(total_tokens(counted))} tokens, {usd_text(counted['cost_nanousd'])}",
        style="bold",
    )
    console.print()
    print_table(console, group_columns(["model"], outcome.by_model))
    console.print()
    print_table(console, group_columns(["agent"], outcome.by_agent))
    console.print()
    print_sent_and_counted(console, outcome.sent, counted)
    console.print()
    for line in _closing_lines(outcome, window_s):
        console.print(line)


def _closing_lines(outcome: Outcome, window_s: float) -> Iterator[str]:
    retries, checks, held = (int(outcome.tally(name)) for name in ("retries", "checks", "held_back"))
    yield (
        f"Duplicates: {number(outcome.counted['duplicates'])} events came again, as after lost replies and in "
        f"{number(retries)} retries, and were counted once. Dead letters: {number(outcome.dead)}."
    )
    yield (
        f"Soft limit: {number(outcome.plan.limit_tokens)} tokens of the fleet in {window_s:.0f} s; looked at "
        f"{number(checks)} times, {number(held)} calls held back for {outcome.tally('held_back_s'):.1f} s in all; "
        f"at most {number(outcome.window_max)} tokens were seen. Looking reserves nothing, so workers that look at the "
        "same moment can all go ahead."
    )
    if outcome.books["differences"]:
        yield "Books: they do NOT balance."
    else:
        yield f"Books: added up in {outcome.books['ways']} ways, all equal."
    if not outcome.wrong:
        yield "✓ What the actor counted is exactly what the workers sent."
