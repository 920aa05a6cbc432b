"""How large the next block is, and what becomes of one at its end; without an actor."""

from __future__ import annotations

from fractions import Fraction
from math import inf

import pytest

from token_actor.client.deadline import Deadline
from token_actor.client.lease_blocks import GROWTH, NOTHING, Amount, Block, Demand, fitting
from token_actor.client.lease_lender import Lender, Terms
from token_actor.core.limits import Limit
from token_actor.core.usage import TOKENS_MAX
from token_actor.errors import ActorUnavailable, RateLimited

CALL = Amount(10, 1)


def calls(number):
    return Amount(10 * number, number)


def blocks_of(*taken_per_second):
    """Return the sizes in calls of blocks that live for a second, each asked for a second after the last."""
    demand, total, sizes = Demand(1.0), NOTHING, []
    for second, taken in enumerate([0, *taken_per_second]):
        total += calls(taken)
        block = demand.next_block(CALL, total, float(second))
        assert block.tokens == 10 * block.calls
        demand.granted(block)
        sizes.append(block.calls)
    return sizes


class TestDemand:
    def test_the_first_block_is_what_is_asked_for(self):
        assert blocks_of() == [1]

    def test_blocks_grow_fourfold_up_to_what_is_taken_per_life(self):
        assert blocks_of(*[1_000] * 12)[:4] == [1, GROWTH, GROWTH**2, GROWTH**3]
        assert 990 <= blocks_of(*[1_000] * 12)[-1] <= 1_000

    def test_blocks_shrink_when_less_is_taken(self):
        sizes = blocks_of(*[1_000] * 12, *[10] * 12)
        assert sizes[12:] == sorted(sizes[12:], reverse=True)
        assert sizes[-1] <= 11

    def test_what_was_taken_long_ago_is_forgotten(self):
        demand = Demand(1.0)
        demand.next_block(CALL, NOTHING, 0.0)
        demand.granted(calls(1_000))
        demand.next_block(CALL, calls(1_000), 1.0)
        assert demand.next_block(CALL, calls(1_000), 100.0) == CALL

    def test_a_block_is_never_smaller_than_what_is_asked_for(self):
        demand = Demand(1.0)
        demand.next_block(CALL, NOTHING, 0.0)
        demand.granted(calls(100))
        assert demand.next_block(Amount(10**6, 1, 5), calls(4), 1.0) == Amount(10**6, 2, 5)

    def test_a_block_is_never_larger_than_a_reservation_may_be(self):
        demand = Demand(1.0)
        demand.next_block(CALL, NOTHING, 0.0)
        demand.granted(Amount(TOKENS_MAX, 100))
        assert demand.next_block(CALL, Amount(TOKENS_MAX, 100), 0.001).tokens == TOKENS_MAX

    def test_costs_are_learned_as_tokens_are(self):
        demand = Demand(1.0)
        demand.next_block(Amount(0, 1, 7), NOTHING, 0.0)
        demand.granted(Amount(0, 8, 56))
        assert demand.next_block(NOTHING, Amount(0, 8, 56), 1.0) == Amount(0, 4, 28)

    def test_two_blocks_in_the_same_moment_are_no_fault(self):
        demand = Demand(1.0)
        demand.next_block(CALL, NOTHING, 5.0)
        demand.granted(CALL)
        assert demand.next_block(CALL, CALL, 5.0) == calls(GROWTH)


class TestFitting:
    @pytest.mark.parametrize(("limit", "left", "fit"), [
        (Limit("l", 1_000), Fraction(1), 50),
        (Limit("l", 1_000), Fraction(1, 5), 10),
        (Limit("l", 1_000, weights={"output_tokens": 2}), Fraction(1), 25),
        (Limit("l", 60, unit="requests"), Fraction(1), 30),
        (Limit("l", 10**9, unit="cost_nanousd"), Fraction(0), 100),
        (Limit("l", 1_000, kind="bucket", burst=100), Fraction(1), 5),
    ])  # fmt: skip
    def test_it_takes_at_most_half_of_what_is_left(self, limit, left, fit):
        assert fitting(calls(100), CALL, [limit], left) == calls(fit)

    def test_of_several_limits_the_tightest_counts(self):
        limits = [Limit("l", 1_000), Limit("r", 10, unit="requests")]
        assert fitting(calls(100), NOTHING, limits, Fraction(1)) == calls(5)

    def test_where_little_is_left_it_is_what_is_asked_for_or_nothing(self):
        assert fitting(calls(100), CALL, [Limit("l", 19)], Fraction(1)) == CALL
        assert fitting(calls(100), NOTHING, [Limit("l", 19)], Fraction(1)) == NOTHING

    def test_without_limits_it_is_as_much_as_wanted(self):
        assert fitting(calls(100), CALL, [], Fraction(0)) == calls(100)


class Face:
    """A client that notes what it is asked, and refuses on demand."""

    def __init__(self, *, refuse=False, degraded=False):
        self.said = []
        self.refuse, self.degraded = refuse, degraded

    def reserve(self, tokens, requests, timeout_s, **names):
        self.said.append(("reserve", tokens, requests, names))
        if self.refuse:
            raise RateLimited("no", retry_after_s=1, limit="l", used=1, reserved=0, remaining=0)
        return Held("kept", self, self.degraded)

    def settle_estimate(self, reservation, timeout_s):
        self.said.append(("settle_estimate", reservation.id))

    def release(self, reservation, timeout_s):
        self.said.append(("release", reservation.id))

    def extend(self, reservation, held_s):
        self.said.append(("extend", reservation.id, held_s))
        return reservation.id != "expired"


class Held:
    """A reservation of that client."""

    def __init__(self, name, face, degraded=False):
        self.id, self.face, self.degraded = name, face, degraded

    def release(self):
        self.face.said.append(("release", self.id))


def ended(face, left=NOTHING):
    lender = Lender(face, Terms({"agent": "a"}, 1.0, 60.0, 5.0))
    block = Block(Held("block", face), calls(10), 0.0, 1.0, 60.0)
    block.left = left
    try:
        lender.end(block, 1.0)
    finally:
        face.left = block.left
    return face.said


class TestEndOfABlock:
    def test_a_block_of_which_all_was_told_is_given_back(self):
        assert ended(Face()) == [("release", "block")]

    def test_a_block_that_was_left_whole_is_charged(self):
        assert ended(Face(), calls(10)) == [("settle_estimate", "block")]

    def test_what_was_left_is_charged_before_the_block_is_given_back(self):
        said = ended(Face(), calls(3))
        assert said == [("reserve", 30, 3, {"agent": "a"}), ("settle_estimate", "kept"), ("release", "block")]

    def test_a_block_is_charged_as_a_whole_where_what_was_left_finds_no_room(self):
        assert ended(Face(refuse=True), calls(3))[1:] == [("settle_estimate", "block")]

    def test_what_was_left_is_not_charged_here_instead_of_by_the_actor(self):
        face = Face(degraded=True)
        with pytest.raises(ActorUnavailable):
            ended(face, calls(3))
        assert (face.said[1:], face.left) == ([("release", "kept")], calls(3))

    @pytest.mark.parametrize(("name", "gone"), [("block", False), ("expired", True)])
    def test_a_block_that_was_not_extended_is_gone_and_not_extended_again(self, name, gone):
        face = Face()
        block = Block(Held(name, face), calls(10), 0.0, 1.0, 60.0)
        Lender(face, Terms({}, 1.0, 60.0, 5.0)).extend(block)
        assert (block.gone, block.held_until == inf) == (gone, gone)


def test_a_deadline_that_has_passed_is_no_time_left():
    asked = []

    class Client(Face):
        def reserve(self, tokens, requests, timeout_s, **names):
            asked.append(timeout_s)
            raise ActorUnavailable("away", timeout_s=timeout_s)

    with pytest.raises(ActorUnavailable):
        Lender(Client(), Terms({}, 1.0, 60.0, 5.0)).grant(CALL, Deadline(0.0, 1.0))
    assert asked == [0.0]
