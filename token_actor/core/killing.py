"""The kill switch: a limit of nothing, which refuses every reservation that it covers until it is deleted."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

from token_actor.core.limits import Limit
from token_actor.core.series import check_selector
from token_actor.core.usage import DIMENSIONS, NAME_BYTES_MAX
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIX: Final = "kill:"
_DIGITS: Final = 32  # of a digest: no two selectors meet


def kill_limit(selector: Mapping[str, str]) -> Limit:
    """Return the limit that kills whatever has all names of ``selector``.

    Raises ``InvalidValue`` when nothing is selected, so that nobody kills everything by mistake.
    """
    names = check_selector(dict(selector))
    if not names:
        raise InvalidValue("selector", f"must name at least one of {', '.join(DIMENSIONS)}")
    for dimension, name in names.items():
        if not name:
            raise InvalidValue(dimension, "must not be empty", reason="bad_name")
    return Limit(kill_name(names), 0, unit="requests", selector=names, on_outage="closed")


def kill_name(names: Mapping[str, str]) -> str:
    """Return the name of that limit; a digest where the names would be too long for one, or not told apart."""
    pairs = [f"{dimension}={names[dimension]}" for dimension in DIMENSIONS if dimension in names]
    name = _PREFIX + ",".join(pairs)
    if len(name.encode()) <= NAME_BYTES_MAX and not any(sign in each for each in names.values() for sign in ",="):
        return name
    return f"{_PREFIX}{sha256(repr(pairs).encode()).hexdigest()[:_DIGITS]}"


def is_killed(limit: object, amount: object) -> bool:
    """Tell whether a refusal by a limit of this name and amount was a kill."""
    return isinstance(limit, str) and limit.startswith(_PREFIX) and amount == 0
