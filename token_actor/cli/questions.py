"""Questions: what was used, by whom and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from token_actor.cli.limit_tables import fullest, limit_columns
from token_actor.cli.options import (
    TIMEOUT_S,
    Agent,
    AsJson,
    GroupBy,
    Model,
    Namespace,
    Project,
    Provider,
    Redis,
    Session,
    Since,
    Tenant,
    Timeout,
    Until,
    User,
    dimensions,
    open_client,
    selector_of,
)
from token_actor.cli.output import UNPRICED, answers, cost, local_time, number, print_json
from token_actor.cli.tables import Column, print_figures, print_table
from token_actor.client.report import usd_text
from token_actor.core.texts import counted
from token_actor.core.usage import DEFAULT_TENANT, DIMENSIONS, NANO_PER_USD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LARGEST_BY = ("model", "agent", "session")
LARGEST = 5
SCOPES_LOOKED_AT = 100  # of each limit, for those that are selected
LIMIT_FIGURES = ("name", "scope", "unit", "amount", "used", "reserved", "remaining", "refused", "mode")
NAMES_LEAST = 18  # cells: enough to tell most models and agents from each other
_COUNTERS = (  # title, counter, rank
    ("requests", "requests", 1),
    ("input", "input_tokens", 2),
    ("output", "output_tokens", 2),
    ("cache read", "cache_read_tokens", 3),
    ("cache write", "cache_write_tokens", 4),
    ("reasoning", "reasoning_tokens", 5),
    ("total", "total_tokens", 0),
)


def summary(
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    timeout: Timeout = TIMEOUT_S,
    tenant: Tenant = None,
    project: Project = None,
    user: User = None,
    agent: Agent = None,
    session: Session = None,
    provider: Provider = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Show totals, the largest models, agents and sessions, and the fullest limits."""
    selector = selector_of(
        tenant=tenant, project=project, user=user, agent=agent, session=session, provider=provider, model=model
    )
    with open_client(redis, namespace, timeout) as client:
        largest = {by: client.analytics([by], limit=LARGEST, **selector) for by in LARGEST_BY}
        limits = fullest(client.limits(top=SCOPES_LOOKED_AT, tenant=tenant), selector, LARGEST)
    total = {name: value for name, value in largest["model"].items() if not name.startswith("group")}
    if as_json:
        groups = {by: answer["groups"] for by, answer in largest.items()}
        told = [{name: row[name] for name in LIMIT_FIGURES} for row in limits]
        print_json({"selector": selector, "total": total, "largest": groups, "limits": told})
        return
    console = answers()
    console.print(_scope(selector), style="bold")
    print_figures(console, _figures(total))
    for by, answer in largest.items():
        named = [group for group in answer["groups"] if group[by] is not None]
        if named:
            console.print()
            print_table(console, group_columns([by], named))
            if answer["groups_omitted"]:
                console.print(f"  and {answer['groups_omitted']:,} more", style="dim")
    if limits:
        console.print("\nLimits", style="bold")
        print_table(console, limit_columns(limits))


def analytics(
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    timeout: Timeout = TIMEOUT_S,
    group_by: GroupBy = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only the N largest groups.")] = None,
    tenant: Tenant = None,
    project: Project = None,
    user: User = None,
    agent: Agent = None,
    session: Session = None,
    provider: Provider = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Show sums over what is selected, as a whole and by group."""
    groups = dimensions(group_by)
    selector = selector_of(
        tenant=tenant, project=project, user=user, agent=agent, session=session, provider=provider, model=model
    )
    with open_client(redis, namespace, timeout) as client:
        answer = client.analytics(groups, since, until, limit=limit, **selector)
    if as_json:
        print_json(answer)
        return
    console = answers()
    console.print(_scope(selector) + _span(answer), style="bold")
    print_figures(console, _figures(answer))
    if groups:
        console.print()
        print_table(console, group_columns(groups, answer["groups"]))
        if answer["groups_omitted"]:
            console.print(f"  and {answer['groups_omitted']:,} more groups", style="dim")


def history(
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    timeout: Timeout = TIMEOUT_S,
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="How many events.")] = 10,
    tenant: Tenant = None,
    project: Project = None,
    user: User = None,
    agent: Agent = None,
    session: Session = None,
    provider: Provider = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Show the last events, newest first."""
    selector = selector_of(
        tenant=tenant, project=project, user=user, agent=agent, session=session, provider=provider, model=model
    )
    with open_client(redis, namespace, timeout) as client:
        events = client.history(limit, **selector)
    if as_json:
        print_json({"history": events})
    elif events:
        print_table(answers(), _event_columns(events))
    else:
        answers().print("no events")


def group_columns(group_by: Sequence[str], groups: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return the columns of an answer by group: the names, then sums; those that are 0 throughout go first."""
    columns = [
        Column(title=by, cells=[group[by] or "-" for group in groups], name=True, least=NAMES_LEAST, style="cyan")
        for by in group_by
    ]
    for title, counter, rank in _COUNTERS:
        if any(group[counter] for group in groups) or rank < 2:  # noqa: PLR2004 - requests and total always stay
            columns.append(Column(title=title, cells=[number(group[counter]) for group in groups], rank=rank))
    columns.append(Column(title="cost", cells=[cost(group) for group in groups], rank=1))
    return columns


def _figures(total: Mapping[str, Any]) -> list[tuple[str, str]]:
    figures = [(title, number(total[counter])) for title, counter, _ in _COUNTERS]
    figures.append(("cost", _whole_cost(total)))
    if total.get("duplicates"):
        figures.append(("duplicates dropped", number(total["duplicates"])))
    if total.get("last_seen"):
        figures.append(("last event", local_time(total["last_seen"])))
    return figures


def _whole_cost(total: Mapping[str, Any]) -> str:
    unpriced = total["unpriced"]
    known = unpriced and unpriced < total["requests"]
    return f"{usd_text(total['cost_nanousd'])} + {counted(unpriced, 'request')} {UNPRICED}" if known else cost(total)


def _scope(selector: Mapping[str, str]) -> str:
    return ", ".join(f"{dimension} {name}" for dimension, name in selector.items()) or "Everything"


def _span(answer: Mapping[str, Any]) -> str:
    begin = "" if answer["since"] is None else f" from {local_time(answer['since'])}"
    end = "" if answer["until"] is None else f" until {local_time(answer['until'])}"
    return begin + end


def _event_columns(events: Sequence[Mapping[str, Any]]) -> list[Column]:
    columns = [Column(title="time", cells=[local_time(event["timestamp"]) for event in events], rank=1)]
    ranks = {"agent": 0, "model": 0, "session": 2, "project": 5, "user": 6, "provider": 7, "tenant": 8}
    for dimension in sorted(DIMENSIONS, key=ranks.__getitem__):
        if any(event[dimension] not in (None, DEFAULT_TENANT) for event in events):
            cells = [event[dimension] or "-" for event in events]
            columns.append(Column(title=dimension, cells=cells, rank=ranks[dimension], name=True, style="cyan"))
    for title, counter, rank in _COUNTERS[1:]:
        if any(event[counter] for event in events) or rank == 0:
            columns.append(Column(title=title, cells=[number(event[counter]) for event in events], rank=rank))
    columns.append(Column(title="cost", cells=[_event_cost(event) for event in events], rank=3))
    if any(event["message_id"] for event in events):
        cells = [event["message_id"] or "-" for event in events]
        columns.append(Column(title="message id", cells=cells, rank=4, name=True, style="dim"))
    return columns


def _event_cost(event: Mapping[str, Any]) -> str:
    known = event["cost_usd"]
    return UNPRICED if known is None else usd_text(round(known * NANO_PER_USD))
