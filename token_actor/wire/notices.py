"""Notices: what thresholds of budgets one entry of the log has reached, and their bytes.

They are JSON, so that whatever can read a stream can show them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from token_actor.errors import BadEntry, InvalidValue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from token_actor.core.thresholds import Notice

NOTICES_FIELD: Final = b"n"
NOTICES_VERSION: Final = 1
NOTICES_MAX: Final = 1_000  # of one entry, 0.4 KB each; only a limit that was lowered reaches so many at once
_NOTICE_ID: Final = re.compile(r"(\d{1,20}-\d{1,20})(?::(\d{1,6}))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeEntry:
    """Hold what one entry of the log has reached: maps as ``notice_map`` makes them.

    ``source`` is its id. ``left_out`` counts those beyond the bound of one entry.
    """

    source: bytes
    notices: Sequence[dict[str, Any]]
    left_out: int = 0

    @classmethod
    def of(cls, source: bytes, notices: Sequence[Notice]) -> NoticeEntry:
        """Return what an entry of the log has reached."""
        kept = [notice_map(notice) for notice in notices[:NOTICES_MAX]]
        return cls(source=source, notices=kept, left_out=len(notices) - len(kept))

    def fields(self) -> list[bytes]:
        """Return the fields of its entry in the stream of notices."""
        message = {"v": NOTICES_VERSION, "notices": list(self.notices), "left_out": self.left_out}
        return [NOTICES_FIELD, json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()]

    @classmethod
    def read(cls, entry_id: bytes, fields: Sequence[bytes]) -> NoticeEntry:
        """Return what an entry of the stream of notices holds. Raises ``BadEntry``."""
        try:
            message = json.loads(dict(zip(fields[::2], fields[1::2], strict=False))[NOTICES_FIELD])
            version, notices, left_out = message["v"], message["notices"], message["left_out"]
        except (KeyError, TypeError, ValueError, RecursionError) as missing:
            raise BadEntry("decode", f"not a notice: {missing}") from None
        if version != NOTICES_VERSION:
            raise BadEntry("version", f"notice version {version!r}; this program reads {NOTICES_VERSION}")
        if not (isinstance(notices, list) and all(isinstance(notice, dict) for notice in notices)):
            raise BadEntry("decode", "not a notice: 'notices' must be a list of maps")
        return cls(source=entry_id, notices=notices, left_out=left_out)

    def documents(self, after: int = -1) -> list[dict[str, Any]]:
        """Return each notice behind the place ``after`` with its ``id``, as clients see it."""
        source = self.source.decode()
        return [{"id": f"{source}:{place}", **notice} for place, notice in enumerate(self.notices) if place > after]


def notice_map(notice: Notice) -> dict[str, Any]:
    """Return a notice as a map of plain values."""
    return {
        "limit": notice.limit,
        "scope": dict(notice.scope),
        "threshold_pct": notice.per_cent,
        "unit": notice.unit,
        "mode": notice.mode,
        "amount": notice.amount,
        "used": notice.used,
        "period_start_ms": notice.start_ms,
        "period_end_ms": notice.end_ms,
        "log_ms": notice.log_ms,
    }


def place_of(notice_id: object) -> tuple[bytes, int]:
    """Return the entry that the id of a notice names, and its place there; an entry's own id is behind all of it.

    Raises ``InvalidValue``.
    """
    found = _NOTICE_ID.fullmatch(notice_id) if isinstance(notice_id, str) else None
    if found is None:
        raise InvalidValue("after", f"must be the id of a notice, such as 1700000000000-0:0, not {notice_id!r}")
    return found[1].encode(), NOTICES_MAX if found[2] is None else int(found[2])
