"""Tables that fit the terminal: columns go by rank, then names are cut; a number is never cut.

Rich would shorten numbers like any other cell, and a shortened number is a wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from token_actor.cli.output import show

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

PADDING: Final = 2  # between two columns
NAME_WIDTH_MIN: Final = 12  # a name cut shorter tells nothing
BAR_CELLS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Hold one column. Rank 0 stays; the higher the rank, the sooner it goes when there is no room.

    ``name`` columns are left-aligned and may be cut, to ``least`` cells; the others are right-aligned and
    never are.
    """

    title: str
    cells: Sequence[str]
    rank: int = 0
    name: bool = False
    least: int = NAME_WIDTH_MIN
    style: str = ""

    @property
    def width(self) -> int:
        """Return the width of the widest cell."""
        return max(cell_len(self.title), *map(cell_len, self.cells), 0)

    @property
    def width_min(self) -> int:
        """Return the width below which the column is of no use."""
        return min(self.width, self.least) if self.name else self.width


def print_table(console: Console, columns: Sequence[Column], *, title: str | None = None) -> None:
    """Print a table; on a terminal, say what was left out."""
    kept = fitting(columns, console.width)
    show(console, table_of(kept, console, title=title))
    gone = [column.title for column in columns if column.title not in {k.title for k in kept}]
    if gone:
        console.print(f"  not shown, for want of room: {', '.join(gone)}", style="dim")


def table_of(columns: Sequence[Column], console: Console, *, title: str | None = None) -> Table:
    """Return the table of columns that fit already, with lines on a terminal and without elsewhere."""
    lines = console.is_terminal  # with lines, one cell of the padding is theirs
    table = Table(
        box=box.SIMPLE_HEAD if lines else None,
        show_edge=False,
        title=title,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        padding=(0, PADDING - lines, 0, 0),
        header_style="bold" if lines else "",
    )
    for column in columns:
        table.add_column(column.title, justify="left" if column.name else "right", no_wrap=True, style=column.style)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, row))
    return table


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns that fit into ``width``, their names cut where that makes the difference."""
    kept = list(columns)
    while len(kept) > 1 and _total(column.width_min for column in kept) > width:
        dropped = max(kept, key=lambda column: column.rank)
        if dropped.rank == 0:
            break
        kept.remove(dropped)
    return _shortened(kept, _total(column.width for column in kept) - width)


def _shortened(columns: list[Column], excess: int) -> list[Column]:
    """Return the columns with ``excess`` cells cut off their names, from the widest first."""
    widths = {place: column.width for place, column in enumerate(columns) if column.name}
    while excess > 0:
        place = max(widths, key=lambda place: widths[place] - columns[place].width_min, default=None)
        if place is None or widths[place] <= columns[place].width_min:
            break
        widths[place] -= 1
        excess -= 1
    return [
        replace(column, cells=[cut(cell, widths[place]) for cell in column.cells]) if place in widths else column
        for place, column in enumerate(columns)
    ]


def _total(widths: Iterable[int]) -> int:
    found = list(widths)
    return sum(found) + PADDING * len(found)


def cut(text: str, width: int) -> str:
    """Return a text of at most ``width`` cells, with an ellipsis where it was cut."""
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def bar(share: float) -> str:
    """Return how full something is, as a bar and in per cent; more than full is a full bar."""
    filled = min(BAR_CELLS, max(0, round(share * BAR_CELLS)))
    return f"{'█' * filled}{'░' * (BAR_CELLS - filled)} {share:4.0%}"


def print_figures(console: Console, figures: Sequence[tuple[str, str]], *, right: bool = True) -> None:
    """Print names and values, one pair on a line."""
    grid = Table.grid(padding=(0, PADDING, 0, 0))
    grid.add_column(style="dim")
    grid.add_column(justify="right" if right else "left")
    for name, value in figures:
        grid.add_row(Text(name), Text(value))
    show(console, grid)
