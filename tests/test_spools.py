"""What the doctor says about a spool."""

from __future__ import annotations

from token_actor.client.slots import _connect
from token_actor.client.spool import open_spool
from token_actor.client.store import Batch, BatchKey
from token_actor.operations.spools import OLD_MS, look_into, spool_findings

WHERE = {"namespace": "ns", "address": "redis://somewhere"}


def leave(folder, **where):
    store = open_spool(folder, **{**WHERE, **where})
    store.commit(added=[Batch(BatchKey(0, b"p" * 16, 0, 0), 3, 4, b"data")], acknowledged=(), removed=())
    return store


def findings(folder, now_ms=None):
    state = look_into(folder, **WHERE)
    oldest_ms = max([slot.oldest_ms or 0 for slot in state.slots], default=0)
    return list(spool_findings(state, now_ms=oldest_ms if now_ms is None else oldest_ms + now_ms))


def test_one_in_use_is_fine_and_not_for_ever(tmp_path):
    store = leave(str(tmp_path))
    (fine,) = findings(str(tmp_path))
    (old,) = findings(str(tmp_path), OLD_MS + 1_000)
    store.close()
    assert fine.level == "ok"
    assert ": in use, 3 events in 1 batch, 4 bytes, the oldest 0 s old" in fine.found
    assert (old.level, old.advice) == (
        "warning",
        "look whether the actor takes snapshots: nothing is deleted before it is in one",
    )


def test_one_left_behind_is_a_warning_that_names_who_can_send_it(tmp_path):
    leave(str(tmp_path)).close()
    leave(str(tmp_path), namespace="other").close()
    here, elsewhere = findings(str(tmp_path))
    assert {here.level, elsewhere.level} == {"warning"}
    assert here.advice.startswith("start a client of this namespace")
    assert elsewhere.advice.startswith("start one for the server and namespace")


def test_a_damaged_one_is_a_warning_before_and_after_it_is_put_aside(tmp_path, caplog):
    leave(str(tmp_path)).close()
    (name,) = [path.name for path in tmp_path.glob("*.spool")]
    database = _connect(tmp_path / name)
    database.execute("UPDATE batches SET data = x'00'")
    database.close()
    (before,) = findings(str(tmp_path))
    assert "1 of its batches are not as they were written" in before.found
    open_spool(str(tmp_path), **WHERE).adopt()
    empty, after = findings(str(tmp_path))
    assert empty.found == "nothing waits in it"
    assert f"{name}.damaged-1 was damaged" in after.found


def test_one_that_cannot_be_looked_into_is_said(tmp_path):
    (tmp_path / "ns.x.y.spool").mkdir()
    (finding,) = findings(str(tmp_path))
    assert finding.level == "warning"
    assert "ns.x.y.spool" in finding.found
