"""Progress is drawn on a terminal and told in lines elsewhere, always on stderr."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from token_actor.cli import demo_view, progress
from token_actor.cli.demo import Plan
from token_actor.cli.demo_view import Picture, drawn, view
from token_actor.cli.progress import ticker

SUMS = {
    "requests": 1_204,
    "input_tokens": 1_000_000,
    "output_tokens": 200_000,
    "cache_read_tokens": 8_000_000,
    "cache_write_tokens": 612_331,
    "reasoning_tokens": 4_000,
    "total_tokens": 9_812_331,
    "cost_nanousd": 41_220_000_000,
    "unpriced": 0,
}


def picture():
    plan = Plan(seconds=20, workers=4, agents=24, limit_tokens=1_000_000, seed="a")
    models = [{**SUMS, "model": f"a-model-with-a-long-name-{number}"} for number in range(5)]
    agents = [{**SUMS, "agent": f"agent-{number}"} for number in range(8)]
    return Picture(
        plan=plan,
        url="redis://127.0.0.1:25000/0",
        actor=4_711,
        window_s=5,
        elapsed_s=12.4,
        total=SUMS,
        by_model=models,
        by_agent=agents,
        in_window=1_100_000,
    )


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns on stderr."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    for module in (progress, demo_view):
        monkeypatch.setattr(module, "notes", lambda: console)
    return console


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_demo_is_no_wider_than_the_terminal(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(drawn(picture(), console))
    lines = console.file.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width
    assert any("1,204 calls, 9,812,331 tokens, $41.22" in line for line in lines)
    assert len(lines) <= 27


def test_before_anything_is_counted_the_demo_says_so():
    console = Console(file=io.StringIO(), width=80)
    console.print(drawn(Picture(plan=picture().plan, url="redis://x/0", actor=None, window_s=5), console))
    assert "nothing counted yet" in console.file.getvalue()


def test_on_a_terminal_the_demo_is_drawn_and_notes_stay(terminal):
    with view(picture()) as shown:
        shown.draw()
        shown.note("started again")
    written = terminal.file.getvalue()
    assert "soft limit" in written
    assert "started again" in written


def test_elsewhere_the_demo_tells_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(demo_view, "LINE_EVERY_S", 0)
    with view(picture()) as shown:
        shown.draw()
        shown.note("started again")
    assert capsys.readouterr().err == " 12.4 s  1,204 calls, 9,812,331 tokens, $41.22\nstarted again\n"


def test_on_a_terminal_there_is_a_bar(terminal):
    with ticker("counted", 100) as shown:
        shown.show(50)
        shown.note("started again")
    assert "started again" in terminal.file.getvalue()


def test_elsewhere_there_are_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0)
    with ticker("counted", 8_819) as shown:
        shown.show(4_000)
    assert capsys.readouterr().err == "counted 4,000 of 8,819\n"
