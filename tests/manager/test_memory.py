from __future__ import annotations

import gc
import sys
import tracemalloc

import pytest

from token_actor.core.manager import MESSAGE_IDS_MAX, TokenManager
from token_actor.core.window import SAMPLES_MAX

HISTORY = 100
UPDATES = 100_000

ID_BYTES = sys.getsizeof("message-000000") + 8  # the text and its place in the queue
SET_BYTES = 2**16 * 16  # the hash table of up to 10,000 ids that come and go
SAMPLE_BYTES = 16 * 17 // 16  # a time and a running total, in arrays that grow by a sixteenth
REQUEST_BYTES = 600  # a tuple of nine, its numbers, and the id it may be the last to hold
FIXED_BYTES = 32_768  # the object itself, its lock, its empty containers

BOUND = (
    MESSAGE_IDS_MAX * ID_BYTES + SET_BYTES + SAMPLES_MAX * SAMPLE_BYTES + HISTORY * REQUEST_BYTES + FIXED_BYTES
)  # 4.1 MB


@pytest.fixture(scope="module")
def held_bytes():
    """Return the bytes that a manager holds after 100,000 updates with ids, and after 100,000 more."""
    ticks = iter(range(10**9))
    tracemalloc.start()
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    manager = TokenManager(
        10**12, HISTORY, clock=lambda: 1.7e9 + next(ticks), warn=print, engine_failed=lambda problem: None
    )
    held = []
    for number in range(2 * UPDATES):
        manager.update_tokens(1000, 500, 20, 10, f"message-{number:06}")
        if (number + 1) % UPDATES == 0:
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0] - before)
    tracemalloc.stop()
    assert len(manager.processed_message_ids) == MESSAGE_IDS_MAX
    return held


def test_a_manager_stays_below_its_bound_after_100_000_updates(held_bytes):
    assert held_bytes[0] <= BOUND


def test_a_hundred_thousand_more_updates_do_not_make_it_grow(held_bytes):
    window_breathes = SAMPLES_MAX // 4 * SAMPLE_BYTES  # between one merge of its older half and the next
    assert held_bytes[1] <= BOUND
    assert held_bytes[1] - held_bytes[0] <= window_breathes


def test_the_bound_is_what_the_documentation_says():
    assert BOUND < 4.1e6


def test_an_idle_manager_is_small():
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    managers = [TokenManager(clock=lambda: 0.0, warn=print, engine_failed=print) for _ in range(100)]
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used / len(managers) < 8_000
