"""Facts about the life of a reservation: every cell of its table, visited."""

from __future__ import annotations

import pytest

from tests.core.quota import NOW_MS, Quota
from token_actor.core.reservation_states import EXPIRED, NONE, OPEN, RELEASED, SETTLED, STATES, STEPS, TRANSITIONS


def bring_to(quota, state):
    """Return a reservation of 40 in a state."""
    if state == NONE:
        return "c:0"
    reservation = quota.reserve(40, ttl_ms=100)["reservation"]
    if state == SETTLED:
        quota.settle(reservation, 30)
    elif state == RELEASED:
        quota.run("release", {"reservation": reservation})
    elif state == EXPIRED:
        quota.at(NOW_MS + 100)
    return reservation


def take(quota, step, reservation):
    if step == "expire":
        quota.at(NOW_MS + 100)
    elif step == "settle":
        quota.settle(reservation, 25)
    else:
        quota.run(step, {"reservation": reservation})


# What is used and what is reserved after a step. The limit charges what expires.
TAKEN = {
    (NONE, "settle"): (25, 0),
    (OPEN, "settle"): (25, 0),
    (OPEN, "extend"): (0, 40),
    (OPEN, "release"): (0, 0),
    (OPEN, "expire"): (40, 0),
    **{(SETTLED, step): (30, 0) for step in STEPS},
    (RELEASED, "settle"): (25, 0),
    (EXPIRED, "settle"): (25, 0),
    **{(EXPIRED, step): (40, 0) for step in STEPS if step != "settle"},
}


def test_the_table_has_every_cell_and_no_other():
    assert set(TRANSITIONS) == {(state, step) for state in STATES for step in STEPS}


@pytest.mark.parametrize(("state", "step"), sorted(TRANSITIONS))
def test_a_step_leads_where_the_table_says_and_takes_what_it_must(state, step):
    quota = Quota(amount=100)
    reservation = bring_to(quota, state)
    assert quota.ledger.reservations.state_of(reservation) == state
    take(quota, step, reservation)
    assert quota.ledger.reservations.state_of(reservation) == TRANSITIONS[state, step][0]
    assert quota.taken() == TAKEN.get((state, step), (0, 0))
