"""Deadlines: by when a call has to be over, and how long it was given."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_call = threading.local()  # ``begun``: when the call was made that this thread has just taken up


@dataclass(frozen=True, slots=True)
class Deadline:
    """Hold a moment of the monotonic clock, and the seconds that a caller gave until then."""

    at: float
    timeout_s: float

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        """Return the moment ``timeout_s`` seconds from now, or from when the call was made. Raises ``InvalidValue``."""
        begun = _call.__dict__.pop("begun", None)
        return cls((time.monotonic() if begun is None else begun) + check_timeout(timeout_s), timeout_s)

    def __str__(self) -> str:
        """Say how long a caller was ready to wait."""
        return f"{round(self.timeout_s, 2):g} s"

    @property
    def left_s(self) -> float:
        """Return how many seconds are left; not above 0 when it has passed."""
        return self.at - time.monotonic()


def made_at(begun: float, call: Callable[[], T]) -> T:
    """Return what ``call`` returns; its first deadline counts from ``begun``, when it was made in another thread."""
    _call.begun = begun
    try:
        return call()
    finally:
        _call.__dict__.clear()


def check_timeout(timeout_s: object) -> float:
    """Return ``timeout_s`` if somebody can wait for so long. Raises ``InvalidValue``."""
    is_number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool)
    if is_number and 0 <= float(timeout_s) <= threading.TIMEOUT_MAX:  # type: ignore[arg-type] # mypy forgets is_number
        return float(timeout_s)  # type: ignore[arg-type]
    raise InvalidValue("timeout_s", f"must be seconds, 0 or more, not {timeout_s!r}")
