"""A summary of the fleet as text, from the answers to a few questions."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from token_actor.core.limits import CONCURRENCY, MONEY
from token_actor.core.texts import counted
from token_actor.core.usage import NANO_PER_USD, TOKEN_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


LIMITS_SHOWN: Final = 5
CENTS_FROM_USD: Final = 1  # below it, cents are too coarse
_PLACES_MAX: Final = 9  # a nano-dollar


def fleet_summary(
    groups: Mapping[str, Mapping[str, Any]], selector: Mapping[str, str], limits: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return a page for people: the totals, for each dimension its largest groups, and the fullest limits.

    ``groups`` has one answer to ``analytics`` per dimension; all of them have the same totals. ``limits`` are
    those in force, with the values of ``by`` of which most is taken.
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
                f"  {group[dimension]}: {group['total_tokens']:,} tokens in {counted(group['requests'], 'request')}"
                for group in named
            ]
    taken = _limit_lines(limits, selector)
    return "\n".join([*lines, *(["", "Limits:", *taken] if taken else [])])


def _limit_lines(limits: Sequence[Mapping[str, Any]], selector: Mapping[str, str]) -> list[str]:
    """Return a line for each of the fullest limits that a selector does not leave out."""
    found = [
        (top["remaining"] / max(1, top["amount"]), limit, top)
        for limit in limits
        for top in limit["top"]
        if all({**limit["selector"], **top["scope"]}.get(name, value) == value for name, value in selector.items())
    ]
    return [_limit_line(limit, top) for _, limit, top in sorted(found, key=lambda each: each[0])[:LIMITS_SHOWN]]


def _limit_line(limit: Mapping[str, Any], top: Mapping[str, Any]) -> str:
    scope = ", ".join(value or "-" for value in top["scope"].values())
    name = f"{limit['name']} ({scope})" if scope else limit["name"]
    used, reserved, remaining, amount = (
        amount_text(top[part], limit["unit"]) for part in ("used", "reserved", "remaining", "amount")
    )
    return f"  {name}: {used} used, {reserved} reserved, {remaining} of {amount}{unit_text(limit['unit'])} remaining"


def amount_text(value: int, unit: str) -> str:
    """Return an amount of a limit's unit for people: dollars for money, a whole number for anything else."""
    return usd_text(value) if unit == MONEY else f"{value:,}"


def unit_text(unit: str) -> str:
    """Return the word for a limit's unit, a space before it; none for money, whose amounts name it."""
    return "" if unit == MONEY else " at once" if unit == CONCURRENCY else f" {unit.replace('_', ' ')}"


def usd_text(nanousd: int) -> str:
    """Return nano-dollars as dollars, with as many places as it needs to be told from nothing."""
    amount = Decimal(nanousd) / NANO_PER_USD
    if not nanousd or abs(amount) >= CENTS_FROM_USD:
        return f"${amount:,.2f}"
    places = max(4, min(_PLACES_MAX, 1 - amount.adjusted()))  # two figures that count
    return f"${amount:,.{places}f}"


def cost_text(sums: Mapping[str, Any]) -> str:
    """Return a cost for people; what has no price is said, never shown as free."""
    unpriced = sums.get("unpriced", 0)
    if unpriced and unpriced == sums["requests"]:
        return "unpriced"
    cost = f"${sums['cost_usd']:,.4f}"
    return f"{cost} + {counted(unpriced, 'unpriced request')}" if unpriced else cost
