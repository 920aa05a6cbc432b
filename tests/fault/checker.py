"""The checker: what the system answers, against what the producers wrote down.

Numbers of the invariants as in the promises: I1 nothing lost, I2 nothing twice, I3 nothing invented,
I4 sums equal per tenant, model, agent and minute, I5 books balance, I7 no write of an older epoch
accepted, I9 serving again within the bound, I12 whoever folds the log has the same state.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.fault.truth import SUMMED, Sums, agent_of, block_sums, events_of_block, numbers
from token_actor.actor.manifests import list_manifests, newest_manifest
from token_actor.operations.verify import verify
from token_actor.wire.entries import id_pair

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.fault.stage import Stage
    from tests.fault.truth import Truth
    from token_actor.client.questions import Questions

SHOWN: Final = 8  # examples in one line of a report
DESCRIPTORS_MAX: Final = 32  # an actor has one connection, its log and what Python opens
RSS_BYTES_MAX: Final = 1 << 30  # a full ring of recent events takes a few hundred MiB
CHUNKS_MAX: Final = 400  # three snapshots and one under way, of few chunks each at this size,
SNAPSHOTS_MAX: Final = 4  # or, where the state is large, as many as that would be if they shared nothing
_UNREADABLE: Final = "cannot be told apart: the recent events are gone"


@dataclass(slots=True)
class Verdict:
    """Hold what the checker found: how many events, and in which way the promises were broken.

    ``over_granted`` is ``None`` where nobody reserves.
    """

    events: int = 0
    lost: int = 0
    twice: int = 0
    stale: int = 0  # manifests of leaders of the past that were accepted
    over_granted: int | None = None
    violations: list[str] = field(default_factory=list)
    forgiven: bool = False  # somebody has said what is lost

    def note(self, invariant: str, detail: str) -> None:
        """Note a broken promise."""
        self.violations.append(f"{invariant}: {detail}")


def check_counts(client: Questions, truths: Sequence[Truth], verdict: Verdict) -> None:
    """Compare every event: I1 to I4."""
    answered = _blocks(client)
    sums = Sums()
    for truth in truths:
        counted = np.zeros(truth.last + 1, dtype=np.int64)
        blocks = block_sums(truth)
        agent = agent_of(truth.producer)
        for session, (expected, _) in blocks.items():
            found = answered.pop((agent, session), None)
            ks = np.array([k for k in events_of_block(session) if 0 < k <= truth.last and truth.attempted[k]])
            if found == expected:
                counted[ks] = 1
            elif found is not None:
                _single_events(client, truth, session, found, counted, verdict)
        _compare(truth, counted, verdict)
        ks = np.flatnonzero(counted)
        sums.add(truth.producer, np.repeat(ks, counted[ks]), np.repeat(truth.at_ms[ks], counted[ks]))
        verdict.events += int(counted.sum())
    for place, found in answered.items():
        verdict.note("I3", f"{found['requests']} events of {place} were invented")
    _compare_sums(client, sums, verdict)


def _blocks(client: Questions) -> dict[tuple[str | None, str | None], dict[str, int]]:
    found = {}
    for agent in client.analytics("agent")["groups"]:
        answer = client.analytics("session", agent=agent["agent"])
        assert not answer["groups_omitted"], "more blocks than one answer holds"
        for group in answer["groups"]:
            if group["requests"]:
                found[agent["agent"], group["session"]] = {name: group[name] for name in SUMMED}
    return found


def _single_events(
    client: Questions, truth: Truth, session: str, found: Mapping[str, int], counted: np.ndarray, verdict: Verdict
) -> None:
    """Look at a block's events one by one, because its sums are not those of all that was tried."""
    listed: Counter[int] = Counter()
    sums = dict.fromkeys(SUMMED, 0)
    for page in client.pages(agent=agent_of(truth.producer), session=session):
        for event in page:
            k = event["input_tokens"]
            if not 0 < k <= truth.last or not truth.attempted[k] or not _is(event, truth.producer, k):
                verdict.note("I3", f"event {k} of {agent_of(truth.producer)} is not as it was recorded: {event}")
                continue
            listed[k] += 1
            sums["requests"] += 1
            for name in SUMMED[1:]:
                sums[name] += event[name]
    if sums["requests"] != found["requests"]:
        what = f"{found['requests']} counted, {sums['requests']} listed"
        verdict.note("I4", f"{agent_of(truth.producer)}/{session}: {what}; {_UNREADABLE}")
    elif sums != found:
        verdict.note("I4", f"{agent_of(truth.producer)}/{session}: sums are {found}, of its events {sums}")
    for k, times in listed.items():
        counted[k] = times


def _is(event: Mapping[str, Any], producer: int, k: int) -> bool:
    kinds = ("input_tokens", "output_tokens", "cache_read_tokens", "reasoning_tokens")
    return tuple(event[name] for name in kinds) == tuple(numbers(producer, k))


def _compare(truth: Truth, counted: np.ndarray, verdict: Verdict) -> None:
    lost = np.flatnonzero(truth.accepted & (counted == 0))
    twice = np.flatnonzero(counted > 1)
    verdict.lost += len(lost)
    verdict.twice += int((counted[twice] - 1).sum())
    if len(lost):
        verdict.note(
            "I1", f"{len(lost)} accepted events of {agent_of(truth.producer)} are lost: {_shown(lost.tolist())}"
        )
    if len(twice):
        verdict.note("I2", f"{len(twice)} events of {agent_of(truth.producer)} count twice: {_shown(twice.tolist())}")


def _compare_sums(client: Questions, sums: Sums, verdict: Verdict) -> None:
    for dimension in ("tenant", "agent", "model"):
        answer = client.analytics(dimension)
        found = {g[dimension]: {name: g[name] for name in SUMMED} for g in answer["groups"] if g["requests"]}
        _differ(dimension, sums.by[dimension], found, verdict)
        total = {name: answer[name] for name in SUMMED}
        if total != sums.total:
            verdict.note("I4", f"the total is {total}, of the events {sums.total}")
    found = {}
    for minute in sums.by["minute"]:
        answer = client.analytics(since=int(minute) * 60, until=int(minute) * 60 + 60)
        found[minute] = {name: answer[name] for name in SUMMED}
    _differ("minute", sums.by["minute"], found, verdict)


def _differ(what: str, expected: Mapping[str, Any], found: Mapping[str, Any], verdict: Verdict) -> None:
    wrong = [key for key in {*expected, *found} if expected.get(key) != found.get(key)]
    if wrong:
        key = wrong[0]
        example = f"{key!r} is {found.get(key)}, of the events {expected.get(key)}"
        verdict.note("I4", f"the sums of {len(wrong)} of {len(expected)} by {what} differ; {example}")


def check_state(stage: Stage, verdict: Verdict) -> None:
    """Compare the system with itself: I5, I7, I12, and what is quarantined though nobody sent anything bad."""
    for difference in stage.client.books()["differences"]:
        verdict.note("I5", f"the books do not balance: {difference}")
    status = stage.client.status()
    if status["dead"]:
        verdict.note("I3", f"good entries became dead letters: {status['dead']}")
    if status["missing"] and not verdict.lost:
        verdict.note("I2", f"{status['missing']} events are said to be missing, and none is")
    if verdict.lost and not status["missing"] and not verdict.forgiven:
        verdict.note("I1", "and the actor does not know of it: nothing is missing, it says")
    check_manifests(stage, verdict)
    for verification in verify(stage.client, stage.connection, stage.keys.namespace):
        if not verification.balanced:
            found = verification.problem or [str(each) for each in verification.differences[:SHOWN]]
            verdict.note("I12", f"a rebuild differs from the actor: {found}")


def check_manifests(stage: Stage, verdict: Verdict) -> None:
    """Check that the snapshots seen were written in the order of epochs, and that a later one is never of less."""
    for manifest in list_manifests(stage.connection, stage.keys):
        stage.manifests[manifest.snapshot_id] = manifest.position.offset
    top = int(stage.connection.get(stage.keys.epoch) or 0)
    seen = sorted(stage.manifests.items(), key=lambda item: id_pair(item[0]))
    for snapshot_id, _ in seen:
        if id_pair(snapshot_id)[0] > top:
            verdict.stale += 1
            verdict.note("I7", f"snapshot {snapshot_id!r} has an epoch that nobody was given; the last was {top}")
    for (older, older_end), (newer, newer_end) in pairwise(seen):
        if id_pair(newer_end) < id_pair(older_end):
            verdict.stale += 1
            verdict.note("I7", f"snapshot {newer!r} ends before {older!r}, which it follows")


def check_bounds(stage: Stage, verdict: Verdict) -> None:
    """Check that nothing grows without bound: I10. To be called while everything still runs."""
    for actor in stage.actors:
        if actor.alive:
            if (open_files := actor.descriptors()) > DESCRIPTORS_MAX:
                verdict.note("I10", f"an actor has {open_files} descriptors open")
            if (memory := actor.rss_bytes()) > RSS_BYTES_MAX:
                verdict.note("I10", f"an actor takes {memory >> 20} MiB of memory")
    chunks = sum(1 for _ in stage.server.keys_like(stage.keys.chunk(b"", 0).partition(b":chunk")[0] + b":chunk:*"))
    with closing(stage.server.connect()) as connection:  # the server may have ended since the stage last asked it
        newest = newest_manifest(connection, stage.keys)
    of_one = 0 if newest is None else len(newest.chunks)
    if chunks > max(CHUNKS_MAX, SNAPSHOTS_MAX * of_one):
        verdict.note("I10", f"there are {chunks} chunks of snapshots on the server")


def check_said(stage: Stage, actions: frozenset[str], verdict: Verdict) -> None:
    """Check that somebody logged each of the actions expected, and that nothing of ours broke: I11."""
    said = [line for child in (*stage.actors, *stage.producers.values()) for line in child.said()]
    logged = {action for child in (*stage.actors, *stage.producers.values()) for action in child.actions()}
    for missing in sorted(actions - logged):
        verdict.note("I11", f"nobody logged {missing!r}")
    for line in said:
        if line.startswith("Traceback"):
            verdict.note("I11", f"an unforeseen error: {said[-1]}")
            break


def check_loss_said(stage: Stage, action: str, verdict: Verdict) -> None:
    """Forgive losses for which somebody logged ``action``: the bytes were gone, and that was said."""
    if any(action in child.actions() for child in (*stage.actors, *stage.producers.values())):
        verdict.violations = [each for each in verdict.violations if not each.startswith("I1")]
        verdict.forgiven = verdict.lost > 0


def check_recovery(recovery_ms: Iterable[float], bound_ms: float, verdict: Verdict) -> None:
    """Check that somebody served again within the bound each time: I9."""
    slow = [each for each in recovery_ms if each > bound_ms]
    if slow:
        verdict.note("I9", f"{len(slow)} times nobody served for longer than {bound_ms:g} ms: {_shown(slow)}")


def _shown(found: Sequence[Any]) -> str:
    shown = ", ".join(f"{each:.0f}" for each in found[:SHOWN])
    return f"{shown}, …" if len(found) > SHOWN else shown
