"""The life of a reservation: a table of states and steps, and what is kept of each state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NONE, OPEN, SETTLED, RELEASED, EXPIRED = "unknown", "open", "settled", "released", "expired"
STATES: Final = (NONE, OPEN, SETTLED, RELEASED, EXPIRED)
STEPS: Final = ("settle", "extend", "release", "expire")
TRANSITIONS: Final[Mapping[tuple[str, str], tuple[str, str]]] = {
    (NONE, "settle"): (SETTLED, "count"),
    (NONE, "extend"): (NONE, "nothing"),
    (NONE, "release"): (NONE, "nothing"),
    (NONE, "expire"): (NONE, "nothing"),
    (OPEN, "settle"): (SETTLED, "correct"),
    (OPEN, "extend"): (OPEN, "prolong"),
    (OPEN, "release"): (RELEASED, "give back"),
    (OPEN, "expire"): (EXPIRED, "charge or refund"),
    (SETTLED, "settle"): (SETTLED, "repeat"),
    (SETTLED, "extend"): (SETTLED, "nothing"),
    (SETTLED, "release"): (SETTLED, "nothing"),
    (SETTLED, "expire"): (SETTLED, "nothing"),
    (RELEASED, "settle"): (SETTLED, "count"),
    (RELEASED, "extend"): (RELEASED, "nothing"),
    (RELEASED, "release"): (RELEASED, "nothing"),
    (RELEASED, "expire"): (RELEASED, "nothing"),
    (EXPIRED, "settle"): (SETTLED, "correct"),
    (EXPIRED, "extend"): (EXPIRED, "nothing"),
    (EXPIRED, "release"): (EXPIRED, "nothing"),
    (EXPIRED, "expire"): (EXPIRED, "nothing"),
}


class Hold(NamedTuple):
    """Say what a reservation holds of one limit: the number of its meter, value of ``by``, place, amount."""

    meter: int
    scope: str
    place: int
    amount: int


class Open(NamedTuple):
    """Hold an open reservation: what it holds, and the log time at which it expires."""

    holds: tuple[Hold, ...]
    expires_ms: int


class Closed(NamedTuple):
    """Hold what is remembered of a closed reservation: how it ended, what its expiry charged, what was told."""

    state: str
    charged: tuple[Hold, ...] = ()
    answer: dict[str, Any] | None = None


def holds_of(dumped: Sequence[Sequence[Any]]) -> tuple[Hold, ...]:
    """Return the holds that a snapshot has as plain values."""
    return tuple(Hold(*hold) for hold in dumped)
