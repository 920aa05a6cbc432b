"""Totals: what the workers of a run say they sent, held against what the actor counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from token_actor.cli.output import number
from token_actor.cli.tables import Column, print_table
from token_actor.core.usage import COUNTS, TOKEN_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

FIGURES: Final = ("events", *COUNTS, "cost_nanousd", "unpriced")
_ALWAYS_SHOWN: Final = ("events", "input_tokens", "output_tokens")


def added_up(sent: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the sums over all workers of what they sent."""
    return {name: sum(one[name] for one in sent) for name in FIGURES}


def counted_of(answer: Mapping[str, Any]) -> dict[str, int]:
    """Return the same figures of an answer to ``analytics``, and the duplicates that were dropped."""
    named = {**answer, "events": answer["requests"]}
    return {name: named[name] for name in (*FIGURES, "duplicates")}


def less(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """Return what was added to each figure."""
    return {name: value - before[name] for name, value in after.items()}


def differences(sent: Mapping[str, int], counted: Mapping[str, int]) -> list[str]:
    """Return a sentence for each figure that was counted otherwise than it was sent."""
    return [
        f"{name.replace('_', ' ')}: workers sent {sent[name]:,}, actor counted {counted[name]:,} "
        f"({counted[name] - sent[name]:+,})"
        for name in FIGURES
        if sent[name] != counted[name]
    ]


def total_tokens(counted: Mapping[str, int]) -> int:
    """Return the tokens of all four kinds."""
    return sum(counted[kind] for kind in TOKEN_KINDS)


def print_sent_and_counted(console: Console, sent: Mapping[str, int], counted: Mapping[str, int]) -> None:
    """Print both sides of every figure that is not 0 on both."""
    shown = [name for name in FIGURES if sent[name] or counted[name] or name in _ALWAYS_SHOWN]
    print_table(
        console,
        [
            Column(title="", cells=[name.replace("_", " ") for name in shown], name=True),
            Column(title="workers sent", cells=[number(sent[name]) for name in shown]),
            Column(title="actor counted", cells=[number(counted[name]) for name in shown]),
            Column(title="", cells=["✓" if sent[name] == counted[name] else "✗" for name in shown]),
        ],
    )
