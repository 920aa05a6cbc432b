"""Texts: what every layer needs to say a number in a sentence."""

from __future__ import annotations


def counted(count: int, one: str, several: str | None = None) -> str:
    """Return a number and what it counts: ``1 event``, ``1,000 events``.

    ``several`` is the plural; ``None`` means that it ends in s.
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"
