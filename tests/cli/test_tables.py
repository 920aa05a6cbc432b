"""Tables fit the terminal without ever cutting a number."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from token_actor.cli.tables import Column, bar, cut, fitting, print_figures, print_table

NUMBERS = ["1,234,567", "9", "12,345"]
NAMES = ["a-name-of-some-length", "b", "another-name-of-even-more-length"]


def columns():
    return [
        Column(title="model", cells=NAMES, name=True),
        Column(title="agent", cells=NAMES[::-1], name=True),
        Column(title="input", cells=NUMBERS, rank=2),
        Column(title="cache", cells=NUMBERS, rank=3),
        Column(title="total", cells=NUMBERS),
    ]


def printed(width, *, terminal=True):
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None, legacy_windows=False)
    print_table(console, columns(), title="T")
    return file.getvalue().splitlines()


def test_with_room_for_everything_nothing_is_left_out():
    lines = printed(200)
    assert "not shown" not in "\n".join(lines)
    assert all(number in "\n".join(lines) for number in NUMBERS)


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_no_line_is_wider_than_the_terminal(width):
    assert max(map(cell_len, printed(width))) <= width


def test_the_least_important_column_goes_first_and_is_named():
    kept = [column.title for column in fitting(columns(), 55)]
    assert kept == ["model", "agent", "input", "total"]
    assert "not shown, for want of room: cache" in "\n".join(printed(55))


def test_names_are_cut_and_numbers_are_not():
    kept = fitting(columns(), 50)
    assert any(cell.endswith("…") for cell in kept[0].cells)
    assert list(kept[-1].cells) == NUMBERS


@given(st.integers(20, 140))
def test_a_number_is_shown_whole_or_its_column_is_gone(width):
    for column in fitting(columns(), width):
        assert column.name or list(column.cells) == NUMBERS


def test_a_table_for_a_pipe_has_no_lines_and_no_spaces_at_the_end():
    lines = printed(2_000, terminal=False)
    assert lines[1].split() == ["model", "agent", "input", "cache", "total"]
    assert not any("─" in line or line.endswith(" ") for line in lines)


def test_wide_characters_are_counted_as_two():
    assert cut("漢字漢字", 5) == "漢字…"
    assert cut("short", 5) == "short"


def test_figures_are_aligned():
    file = io.StringIO()
    console = Console(file=file, width=80, color_system=None)
    print_figures(console, [("a", "1"), ("bbb", "1,000")])
    assert file.getvalue() == "a        1\nbbb  1,000\n"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "░░░░░░░░░░   0%"), (0.5, "█████░░░░░  50%"), (1, "██████████ 100%"), (2.5, "██████████ 250%")],
)
def test_a_bar_says_how_full_and_is_never_longer(share, text):
    assert bar(share) == text
