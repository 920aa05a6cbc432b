"""How requests and reservations ended: what ended in no way, or in two, is named."""

from __future__ import annotations

import pytest

from tests.fault.endings import endings, without_answer


def asked(key, op="reserve"):
    return {"key": key, "op": op, "asked": True}


def told(key, op="reserve", **answer):
    return {"key": key, "op": op, **answer}


@pytest.mark.parametrize("answer", [{"granted": "r"}, {"refused": {}}, {"answer": False}])
def test_a_request_with_an_answer_of_any_kind_has_ended(answer):
    assert without_answer([asked("1.0.5/0"), told("1.0.5/0", **answer)], killed=()) == []


def test_a_request_without_an_answer_is_named():
    assert without_answer([asked("1.0.5/0")], killed=()) == [("reserve", "1.0.5/0")]


def test_a_request_whose_caller_gave_up_has_no_answer():
    lines = [asked("1.0.5/0"), told("1.0.5/0", unanswered=True)]
    assert without_answer(lines, killed=()) == [("reserve", "1.0.5/0")]


def test_an_answer_to_another_operation_on_the_same_key_is_none():
    lines = [asked("1.0.5/0"), told("1.0.5/0", granted="r"), asked("1.0.5/0", "settle")]
    assert without_answer(lines, killed=()) == [("settle", "1.0.5/0")]


def test_only_the_last_request_of_a_killed_caller_may_have_no_answer():
    lines = [asked("1.0.5/0"), asked("1.0.5/1"), asked("2.0.5/0")]
    assert without_answer(lines, killed={"1.0"}) == [("reserve", "1.0.5/0"), ("reserve", "2.0.5/0")]


def ended(*told):
    """Return how one reservation ended that was granted, and about which this was told."""
    requests = {("c", "0"): ("reserve", "k")} | {("c", str(n)): (op, "k") for n, (op, _) in enumerate(told, 1)}
    answers = {("c", "0"): {"granted": True}} | {("c", str(n)): answer for n, (_, answer) in enumerate(told, 1)}
    return endings(requests, answers)


SETTLED = ("settle", {"late": False, "unknown": False})
LATE = ("settle", {"late": True, "unknown": False})
UNKNOWN = ("settle", {"late": False, "unknown": True})
RELEASED = ("release", {"released": True})
NOT_RELEASED = ("release", {"released": False})


@pytest.mark.parametrize(
    ("about", "ends"),
    [
        ([SETTLED], (1, 0, 0)),
        ([RELEASED], (0, 1, 0)),
        ([], (0, 0, 1)),
        ([LATE], (0, 0, 1)),
        ([UNKNOWN], (0, 0, 1)),
        ([NOT_RELEASED], (0, 0, 1)),
        ([SETTLED, NOT_RELEASED], (1, 0, 0)),
    ],
)
def test_a_reservation_ends_in_one_way(about, ends):
    found = ended(*about)
    assert ((found.settled, found.released, found.expired), found.wrong) == (ends, [])


def test_a_reservation_that_was_settled_and_released_is_named():
    assert ended(SETTLED, RELEASED).wrong == ["k ended 2 times"]


def test_a_reservation_that_was_settled_in_time_and_late_is_named():
    assert ended(SETTLED, LATE).wrong == ["k was settled late, and had been settled"]


def test_what_was_refused_must_not_end():
    requests = {("c", "0"): ("reserve", "k"), ("c", "1"): ("release", "k")}
    answers = {("c", "0"): {"granted": False}, ("c", "1"): {"released": True}}
    assert endings(requests, answers).wrong == ["k ended, and was never granted"]
