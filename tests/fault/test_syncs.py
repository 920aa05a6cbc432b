"""What strace wrote is read as what it means for a power loss."""

from __future__ import annotations

import pytest

from tests.fault.syncs import promises, replies

ATTEMPT = r'1 write(5</a/p.truth>, "\1\0\0\0"..., 32) = 32'
PROMISE = r'1 write(5</a/p.truth>, "\2\0\0\0"..., 32) = 32'
SPOOLED = r'2 pwrite64(6</a/x.spool-wal>, "\0\0\0\1"..., 24, 32) = 24'
SYNCED = "2 fdatasync(6</a/x.spool-wal>) = 0"
AOF = r'3 write(9</a/appendonly.aof.1.incr.aof>, "*5"..., 50) = 50'
AOF_SYNCED = "3 fdatasync(9</a/appendonly.aof.1.incr.aof>) = 0"
REPLY = r'3 write(11<socket:[123]>, "$15\r"..., 20) = 20'


@pytest.fixture
def trace(tmp_path):
    def written(*lines):
        (tmp_path / "trace").write_text("\n".join(lines))
        return tmp_path / "trace"

    return written


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ((ATTEMPT, SPOOLED, SYNCED, PROMISE), (1, 1)),
        ((ATTEMPT, SPOOLED, PROMISE), (1, 0)),
        ((ATTEMPT, SYNCED, SPOOLED, PROMISE), (1, 0)),
        ((ATTEMPT, SPOOLED, PROMISE, SYNCED), (1, 0)),
        ((ATTEMPT, SPOOLED, SYNCED, PROMISE, ATTEMPT, PROMISE), (2, 1)),
        ((), (0, 0)),
    ],
)
def test_a_promise_counts_when_its_spool_was_written_and_then_synced(trace, lines, found):
    assert promises(trace(*lines)) == found


def test_a_sync_is_done_when_it_returns(trace):
    begun, done = "2 fdatasync(6</a/x.spool-wal> <unfinished ...>", "2 <... fdatasync resumed>) = 0"
    assert promises(trace(ATTEMPT, SPOOLED, begun, PROMISE, done)) == (1, 0)
    assert promises(trace(ATTEMPT, SPOOLED, begun, done, PROMISE)) == (1, 1)


def test_a_reply_counts_when_the_file_was_synced_before_it(trace):
    assert replies(trace(AOF, AOF_SYNCED, REPLY)) == (1, 1)
    assert replies(trace(AOF, REPLY, AOF_SYNCED)) == (1, 0)
    assert replies(trace(REPLY)) == (0, 0)
