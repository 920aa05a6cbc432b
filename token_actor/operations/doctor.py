"""Doctor: what endangers the numbers of a deployment, and what to do about it.

A *problem* loses or hides numbers, now or at the next crash; a *warning* may, or is unusual enough to
be looked at.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from token_actor.actor.manifests import list_manifests
from token_actor.core.texts import counted
from token_actor.errors import (
    ActorUnavailable,
    InvalidValue,
    ServerRefused,
    ServerUnavailable,
    SetupError,
    TransportError,
)
from token_actor.operations.places import leader_of, partition_count, tenant_in
from token_actor.operations.server import Finding, server_findings
from token_actor.wire.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from token_actor.client.questions import Questions
    from token_actor.transport.ports import Connection, StreamState

LAG_ENTRIES_MAX: Final = 10_000  # an actor folds as many in a fraction of a second
SNAPSHOT_AGE_MS_MAX: Final = 10 * 60_000  # one is taken every minute while there is anything new
ENTRIES_WITHOUT_SNAPSHOT_MAX: Final = 100_000  # to read more than that again makes a start slow


def diagnose(
    client: Questions, connection: Connection, namespace: str, *, with_password: bool, now_ms: int
) -> list[Finding]:
    """Return what there is to say about a server, a namespace and its actors, the server first.

    ``with_password`` tells whether the address names one. Waits for the actors, each up to the
    client's deadline; what does not answer is a finding, never an exception.
    """
    findings: list[Finding] = []
    try:
        findings += server_findings(connection.server_facts(), with_password=with_password)
        partitions = partition_count(connection, namespace)
        findings.append(_namespace(namespace, partitions))
        for partition in range(partitions or 1):
            tenant = tenant_in(partition, partitions or 1)
            found = partition_findings(client, connection, Keys(namespace, partition), tenant=tenant, now_ms=now_ms)
            many = (partitions or 1) > 1
            findings += [replace(f, subject=f"{f.subject} of {partition}") for f in found] if many else found
    except (TransportError, SetupError) as error:
        findings.append(_unusable(error))
    return findings


def _unusable(error: TransportError | SetupError) -> Finding:
    advice = {
        ServerUnavailable: "start it, or name another one with --redis or TOKEN_ACTOR_REDIS",
        ServerRefused: "check user, password and what the user may do",
    }.get(type(error))
    return Finding(level="problem", subject="server", found=str(error), advice=advice)


def _namespace(namespace: str, partitions: int | None) -> Finding:
    if partitions is not None:
        noun = "partition" if partitions == 1 else "partitions"
        return Finding(level="ok", subject="namespace", found=f"{namespace!r} has {partitions} {noun}")
    return Finding(
        level="warning",
        subject="namespace",
        found=f"no actor has ever served the namespace {namespace!r} here",
        advice="start 'token-actor serve', or check --redis and --namespace",
    )


def partition_findings(
    client: Questions, connection: Connection, keys: Keys, *, tenant: str, now_ms: int
) -> list[Finding]:
    """Return what there is to say about one partition: its leader, lag, snapshots, losses, dead letters."""
    leader = leader_of(connection, keys)
    stream = connection.stream_state(keys.log)
    try:
        status = client.status(tenant=tenant)
    except (ActorUnavailable, InvalidValue) as error:
        findings = [_silent(leader, error)]
    else:
        findings = [_answering(leader, status), _lag(stream, status), *_losses(status)]
    findings += [_snapshots(connection, keys, stream, now_ms), _dead(connection, keys)]
    return findings


def _silent(leader: str | None, error: Exception) -> Finding:
    if leader is None:
        return Finding(
            level="problem",
            subject="leader",
            found="no actor leads: usage is kept in the log, and no question is answered",
            advice="start 'token-actor serve'",
        )
    return Finding(
        level="problem",
        subject="leader",
        found=f"{leader} leads and does not answer: {error}",
        advice="look at its log; it may still be reading the log again after a start",
    )


def _answering(leader: str | None, status: Mapping[str, Any]) -> Finding:
    return Finding(level="ok", subject="leader", found=f"{leader or status['holder']} leads and answers")


def _lag(stream: StreamState | None, status: Mapping[str, Any]) -> Finding:
    """Compare how many entries the log had with how many the actor had counted a moment later."""
    behind = max(0, (0 if stream is None else stream.entries_added) - status["entries"])
    if behind <= LAG_ENTRIES_MAX:
        late = f"{counted(behind, 'entry', 'entries')} behind" if behind else "up to date"
        return Finding(level="ok", subject="lag", found=f"{late}, {counted(status['events'], 'event')} counted")
    return Finding(
        level="warning",
        subject="lag",
        found=f"the actor is {counted(behind, 'entry', 'entries')} of the log behind",
        advice="look again in a moment; if it does not shrink, the actor has too little CPU",
    )


def _losses(status: Mapping[str, Any]) -> Iterator[Finding]:
    if status["missing"]:
        yield Finding(
            level="warning",
            subject="missing",
            found=f"numbered by their senders and never arrived: {counted(status['missing'], 'event')}",
            advice="look for workers that were killed, and for a server that lost writes",
        )
    if status["folded_events"]:
        yield Finding(
            level="warning",
            subject="cardinality",
            found="a dimension has too many names; counted under '__other__': "
            + counted(status["folded_events"], "event"),
            advice="look for ids in names: 'token-actor analytics --group-by model' and so on",
        )


def _snapshots(connection: Connection, keys: Keys, stream: StreamState | None, now_ms: int) -> Finding:
    manifests = list_manifests(connection, keys)
    if not manifests:
        entries = 0 if stream is None else stream.length
        late = entries > ENTRIES_WITHOUT_SNAPSHOT_MAX
        return Finding(
            level="warning" if late else "ok",
            subject="snapshots",
            found=f"none yet; the log holds {counted(entries, 'entry', 'entries')}",
            advice="look at the actor's log: one is taken every minute" if late else None,
        )
    newest = manifests[0]
    age_s = max(0, now_ms - newest.taken_ms) // 1000
    behind = 0 if stream is None else max(0, stream.entries_added - newest.position.entries)
    late = age_s * 1000 > SNAPSHOT_AGE_MS_MAX and behind > 0
    return Finding(
        level="warning" if late else "ok",
        subject="snapshots",
        found=f"{len(manifests)} kept, the newest {newest.snapshot_id.decode()} is {age_s:,} s old, at "
        f"{newest.position.offset.decode()}, {counted(behind, 'entry', 'entries')} before the end of the log",
        advice="look at the actor's log: one is taken every minute while there is anything new" if late else None,
    )


def _dead(connection: Connection, keys: Keys) -> Finding:
    stream = connection.stream_state(keys.dead)
    if stream is None or stream.length == 0:
        return Finding(level="ok", subject="dead letters", found="none")
    return Finding(
        level="warning",
        subject="dead letters",
        found=f"could not be counted: {counted(stream.length, 'entry', 'entries')} of the log",
        advice="see what and why: token-actor dead list",
    )
