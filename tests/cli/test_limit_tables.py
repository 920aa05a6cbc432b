"""What people see of limits: each figure where it belongs."""

from __future__ import annotations

from token_actor.cli.limit_tables import limit_columns, limit_rows
from token_actor.core.limits import Limit


def in_force(name: str, refused: int, *scopes: str) -> dict[str, object]:
    top = [{"scope": {"agent": scope}, "amount": 10, "used": 4, "reserved": 0, "remaining": 6} for scope in scopes]
    return {**Limit(name, 10, by=["agent"]).as_map(), "refused": refused, "debt": 0, "top": top}


def test_refusals_are_those_of_a_limit_and_shown_once():
    rows = limit_rows([in_force("each", 7, "a", "b"), in_force("other", 0, "a")])
    (refused,) = [column.cells for column in limit_columns(rows) if column.title == "refused"]
    assert refused == ["7", "", "0"]
