"""Checks: whether the books balance, and whether the deployment is sound."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from token_actor.cli.options import (
    TIMEOUT_S,
    AsJson,
    Namespace,
    Redis,
    SpoolDir,
    Target,
    Timeout,
    open_client,
    open_connection,
    target_of,
)
from token_actor.cli.output import answers, complain, notes, print_json, show
from token_actor.cli.tables import Column, print_table
from token_actor.core.texts import counted
from token_actor.errors import TokenActorError
from token_actor.operations.doctor import diagnose
from token_actor.operations.spools import SpoolState, look_into, spool_findings
from token_actor.operations.verify import verify as verify_books
from token_actor.service import connector_of, default_spool_dir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from token_actor.operations.server import Finding
    from token_actor.operations.verify import Verification

DOCTOR_TIMEOUT_S = 2.0
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


def verify(
    *, redis: Redis = None, namespace: Namespace = None, timeout: Timeout = TIMEOUT_S, as_json: AsJson = False
) -> None:
    """Prove that the books balance: every way to add up agrees, and so does the log, counted again."""
    target = target_of(redis, namespace)
    with (
        open_client(target.url, target.namespace, timeout) as client,
        open_connection(target) as connection,
        notes().status("counting the log again"),
    ):
        found = verify_books(client, connection, target.namespace)
    if as_json:
        balanced = all(partition.balanced for partition in found)
        print_json({"balanced": balanced, "partitions": [partition.document() for partition in found]})
    else:
        for partition in found:
            _print_verification(answers(), partition)
    wrong = [partition for partition in found if not partition.balanced]
    if wrong:
        raise TokenActorError(_verdict(wrong))


def _verdict(wrong: Sequence[Verification]) -> str:
    first = wrong[0]
    if first.problem is not None:
        return f"the books cannot be proved: {first.problem}"
    figure = first.differences[0]
    return (
        f"the books do not balance: {figure.figure} is {figure.actor!r} to the actor and {figure.other!r} as "
        f"{figure.way}; has the log been changed by hand? The actor's own log and 'token-actor doctor' may tell more"
    )


def _print_verification(console: Console, found: Verification) -> None:
    total = found.total
    source = f"snapshot {found.snapshot}" if found.snapshot else "an empty state"
    if found.problem is None:
        again = f"counted again from {source} and {counted(found.replayed, 'entry', 'entries')} of the log"
    else:
        again = "not counted again"
    what = f"{counted(total['requests'], 'event')} in {counted(found.entries, 'entry', 'entries')}"
    console.print(f"partition {found.partition}: {what}, up to {found.offset}", style="bold")
    console.print(f"  added up in {found.ways} ways, {again}")
    if found.state_hash is None or found.state_hash_replayed is None:
        console.print(f"  state hash {found.state_hash or 'unknown'}; {found.state_source}")
    else:
        console.print(f"  state hash {found.state_hash}, and {found.state_hash_replayed} from {found.state_source}")
    if found.balanced:
        console.print("  ✓ everything agrees", style="green")
    elif found.differences:
        print_table(
            console,
            [
                Column(title="figure", cells=[d.figure for d in found.differences], name=True),
                Column(title="actor", cells=[str(d.actor) for d in found.differences], name=True),
                Column(title="other", cells=[str(d.other) for d in found.differences], name=True, style="red"),
                Column(title="way", cells=[d.way for d in found.differences], name=True, rank=1),
            ],
        )


def doctor(
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    timeout: Timeout = DOCTOR_TIMEOUT_S,
    spool_dir: SpoolDir = None,
    as_json: AsJson = False,
) -> None:
    """Look for what endangers the numbers: the server, its settings, the actor, snapshots, dead letters, spools."""
    target = target_of(redis, namespace)
    spool = _spool_of(spool_dir or default_spool_dir(), target)
    with open_client(target.url, target.namespace, timeout) as client, open_connection(target) as connection:
        now_ms = time.time_ns() // 1_000_000
        findings = diagnose(client, connection, target.namespace, with_password=target.has_password, now_ms=now_ms)
    if spool is not None:
        findings += spool_findings(spool, now_ms=now_ms)
    problems = [finding for finding in findings if finding.level == "problem"]
    if as_json:
        documents = [finding.document() for finding in findings]
        spools = {} if spool is None else {"spool": spool.document()}
        print_json({"sound": not problems, "findings": documents, **spools})
    else:
        _print_findings(answers(), findings)
    if problems:
        complain(f"{problems[0].found}; {problems[0].advice}")
        raise typer.Exit(1)


def _spool_of(folder: str | None, target: Target) -> SpoolState | None:
    """Return what there is in a spool. Raises ``BadParameter`` when there is no such folder."""
    if folder is None:
        return None
    try:
        address = connector_of(target.url, target.namespace).address
        return look_into(folder, namespace=target.namespace, address=address)
    except OSError as error:
        raise typer.BadParameter(f"{folder!r} cannot be read: {error}", param_hint="--spool-dir") from None


def _print_findings(console: Console, findings: Sequence[Finding]) -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.level]
        text = Text(finding.found)
        if finding.advice:
            text.append(f"\n→ {finding.advice}", style="cyan")
        grid.add_row(Text(mark, style=style), Text(finding.subject), text)
    show(console, grid)
