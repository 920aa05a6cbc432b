"""Answers: what commands were answered, so that the same request id gets the same answer again."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from token_actor.core.blocks import Oldest, Segment, Tree, numbered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Request: TypeAlias = "tuple[str, str]"  # client, request id
_ANSWER_BITS: Final = 12  # 4096 answers are one segment of a snapshot


class Answers:
    """Remember answers, the oldest first. Every answer has a number, counted from the first one ever."""

    def __init__(self) -> None:
        """Start with none."""
        self._first = 0
        self._answers: dict[Request, Any] = {}
        self._oldest = Oldest(self._answers)

    def __len__(self) -> int:
        """Return how many are remembered."""
        return len(self._answers)

    def get(self, request: Request) -> Any:  # noqa: ANN401 - an answer is a map of plain values
        """Return the answer to a request, ``None`` when it is not known. It must not be changed."""
        return self._answers.get(request)

    def add(self, request: Request, answer: dict[str, Any], answers_max: int) -> None:
        """Remember the answer to a new request, and no more than ``answers_max``."""
        self._answers[request] = answer
        while len(self._answers) > answers_max:
            self._oldest.drop()
            self._first += 1

    def capture(self) -> list[Segment]:
        """Return the segments of the answers."""
        answers = self._answers.copy()
        return [
            Segment(f"answers/{block}", (start, stop), partial(_listed, answers, self._first, start, stop))
            for block, start, stop in numbered(self._first, self._first + len(self), _ANSWER_BITS)
        ]

    def restore(self, trees: Iterable[Tree]) -> None:
        """Take over what ``capture`` made."""
        for tree in trees:
            self._first = self._first if self._answers else tree["first"]
            self._answers.update(((client, request), answer) for client, request, answer in tree["answers"])


def _listed(answers: dict[Request, Any], first: int, start: int, stop: int) -> Iterator[Tree]:
    items = islice(answers.items(), start - first, stop - first)
    yield {"first": start, "answers": [[*request, answer] for request, answer in items]}
