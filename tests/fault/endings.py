"""How requests and reservations ended: each request in one answer, each reservation in one way.

Both are counted from what people were told, not from the state of anybody.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

TELLS: Final = frozenset({"granted", "refused", "answer"})  # a line of a diary with one of these is an answer


def without_answer(lines: Iterable[Mapping[str, Any]], killed: Collection[str]) -> list[tuple[str, str]]:
    """Return the requests (operation, key) that their callers wrote down and nobody answered.

    Only the last request of a caller whose process is among the ``killed`` may have none.
    """
    answered: dict[tuple[str, str], bool] = {}
    last: dict[str, tuple[str, str]] = {}
    for line in lines:
        request = (line["op"], line["key"])
        if "asked" in line:
            answered.setdefault(request, False)
            last[line["key"].rpartition("/")[0]] = request
        elif line.keys() & TELLS:
            answered[request] = True
    excused = {request for caller, request in last.items() if caller.rpartition(".")[0] in killed}
    return sorted(request for request, told in answered.items() if not told and request not in excused)


@dataclass(slots=True)
class Endings:
    """Hold how what was granted ended, and what ended in two ways or without having been granted."""

    settled: int = 0
    released: int = 0
    expired: int = 0
    wrong: list[str] = field(default_factory=list)


def endings(requests: Mapping[tuple[str, str], tuple[str, str]], answers: Mapping[tuple[str, str], Any]) -> Endings:
    """Return how reservations ended, going by the answers to the ``requests`` (operation, key of the reservation).

    One that nobody was told to have settled in time or released has expired; only such a one is settled late.
    """
    granted: set[str] = set()
    ends: Counter[tuple[str, str]] = Counter()
    late: set[str] = set()
    for request, (operation, key) in requests.items():
        answer = answers[request]
        if operation == "reserve" and answer["granted"]:
            granted.add(key)
        elif operation == "release" and answer["released"]:
            ends["released", key] += 1
        elif operation == "settle" and answer["late"]:
            late.add(key)
        elif operation == "settle" and not answer["unknown"]:
            ends["settled", key] += 1
    times = Counter(dict.fromkeys(granted, 0))
    for (_, key), count in ends.items():
        times[key] += count
    released = {key for end, key in ends if end == "released"}
    return Endings(
        settled=sum(count for (end, _), count in ends.items() if end == "settled"),
        released=len(released),
        expired=sum(1 for key in granted if not times[key]),
        wrong=[
            *(f"{key} ended {count} times" for key, count in times.items() if count > 1),
            *(f"{key} ended, and was never granted" for key in sorted(times.keys() - granted)),
            *(f"{key} was settled late, and had been settled" for key in sorted(late) if ends["settled", key]),
        ],
    )
