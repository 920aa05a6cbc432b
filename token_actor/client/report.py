"""A summary of the fleet as text, from the answers to a few questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from token_actor.core.usage import TOKEN_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping


def fleet_summary(groups: Mapping[str, Mapping[str, Any]], selector: Mapping[str, str]) -> str:
    """Return a page for people: the totals, and for each dimension its largest groups.

    ``groups`` has one answer to ``analytics`` per dimension; all of them have the same totals.
    """
    total = next(iter(groups.values()))
    scope = ", ".join(f"{dimension}={name}" for dimension, name in selector.items()) or "everything"
    lines = [f"=== Fleet Summary: {scope} ===", f"Requests: {total['requests']:,}"]
    lines += [f"{kind.replace('_', ' ').capitalize()}: {total[kind]:,}" for kind in TOKEN_KINDS]
    lines += [f"Total tokens: {total['total_tokens']:,}", f"Cost: {cost_text(total)}"]
    for dimension, answer in groups.items():
        named = [group for group in answer["groups"] if group[dimension] is not None]
        if named:
            lines += ["", f"Largest by {dimension}:"]
            lines += [
                f"  {group[dimension]}: {group['total_tokens']:,} tokens in {group['requests']:,} requests"
                for group in named
            ]
    return "\n".join(lines)


def cost_text(sums: Mapping[str, Any]) -> str:
    """Return a cost for people; what has no price is said, never shown as free."""
    unpriced = sums.get("unpriced", 0)
    if unpriced and unpriced == sums["requests"]:
        return "unpriced"
    cost = f"${sums['cost_usd']:,.4f}"
    return f"{cost} + {unpriced:,} unpriced requests" if unpriced else cost
