"""Numbers in sentences: one event, two events."""

from __future__ import annotations

import pytest

from token_actor.core.texts import counted


@pytest.mark.parametrize(
    ("count", "nouns", "text"),
    [
        (0, ("event",), "0 events"),
        (1, ("event",), "1 event"),
        (1_000, ("event",), "1,000 events"),
        (1, ("entry", "entries"), "1 entry"),
        (2, ("entry", "entries"), "2 entries"),
    ],
)
def test_a_number_agrees_with_its_noun(count, nouns, text):
    assert counted(count, *nouns) == text
