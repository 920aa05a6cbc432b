"""A lane numbers events without a hole, and forgets a batch only when it is in the log."""

from __future__ import annotations

import pytest

from token_actor.client.lanes import Lane
from token_actor.client.recording import make_event
from token_actor.wire.codec import BATCH_BYTES_MAX, unpack

PRODUCER = bytes(range(16))


def events(count, **more):
    return [make_event({}, input_tokens=n, **more) for n in range(count)]


def read(append):
    assert append.fields[0] == b"b"
    return unpack(append.fields[1], bytes_max=BATCH_BYTES_MAX)


@pytest.fixture
def lane():
    return Lane(b"log", producer=PRODUCER)


def test_batches_follow_each_other_without_a_hole(lane):
    for count in (3, 1, 7):
        lane.add(events(count))
    batches = [read(append) for append in lane.appends(10)]
    assert [(batch["q"], batch["n"]) for batch in batches] == [(0, 3), (3, 1), (4, 7)]
    assert {batch["p"] for batch in batches} == {PRODUCER}
    assert {append.key for append in lane.appends(10)} == {b"log"}


def test_a_retry_is_the_same_bytes(lane):
    lane.add(events(3))
    assert lane.appends(10) == lane.appends(10)


def test_only_so_many_batches_are_written_at_once(lane):
    for _ in range(5):
        lane.add(events(1))
    assert len(lane.appends(2)) == 2
    assert len(lane.waiting) == 5


def test_what_is_in_the_log_is_forgotten_in_order(lane):
    lane.add(events(3))
    lane.add(events(2))
    assert lane.acknowledged(b"7-1") is None
    assert lane.last_id == b"7-1"
    assert [read(append)["q"] for append in lane.appends(10)] == [3]


def test_a_batch_that_is_too_large_becomes_several_without_a_hole(lane):
    lane.add([make_event({}, message_id=f"{n:0256}") for n in range(1_000)])
    batches = [read(append) for append in lane.appends(100)]
    assert all(len(append.fields[1]) <= BATCH_BYTES_MAX for append in lane.appends(100))
    assert [(batch["q"], batch["n"]) for batch in batches] == [(0, 250), (250, 250), (500, 250), (750, 250)]


def test_the_largest_event_there_can_be_fits_into_a_batch(lane):
    names = dict.fromkeys(("tenant", "project", "user", "agent", "session", "provider", "model"), "x" * 128)
    tags = {f"{n:0128}": "v" * 128 for n in range(16)}
    lane.add([make_event(names, message_id="i" * 256, tags=tags, timestamp=-1e300, input_tokens=10**12)] * 2)
    assert sum(batch.events for batch in lane.waiting) == 2


@pytest.mark.parametrize(
    ("share", "repeated"), [(0.0, []), (1.0, [0, 1, 2, 3, 4, 5]), (0.5, [0, 2, 4]), (0.05, [0]), (0.3, [0, 4])]
)
def test_a_share_of_the_batches_is_repeated_the_first_among_them(share, repeated):
    lane = Lane(b"log", producer=PRODUCER, resend_share=share)
    for _ in range(6):
        lane.add(events(1))
    appends = lane.appends(6)
    repetitions = [lane.acknowledged(b"7-%d" % n) for n in range(6)]
    assert [n for n, repetition in enumerate(repetitions) if repetition is not None] == repeated
    assert all(repetitions[n] == appends[n] for n in repeated)
