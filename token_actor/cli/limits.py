"""Limits: list those in force and how full they are, put them, delete them, explain what a call would be told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from token_actor.cli.limit_tables import (
    change_sentences,
    explained_columns,
    limit_columns,
    limit_rows,
    verdict,
)
from token_actor.cli.options import (
    TIMEOUT_S,
    Agent,
    AsJson,
    Model,
    Namespace,
    Project,
    Provider,
    Redis,
    Session,
    Tenant,
    Timeout,
    User,
    names_of,
    open_client,
    pairs_of,
    selector_of,
)
from token_actor.cli.output import answers, number, print_json
from token_actor.cli.tables import print_table
from token_actor.core.calendars import PERIODS
from token_actor.core.limits import KINDS, LIMIT_FIELDS, MODES, ON_EXPIRE, ON_OUTAGE, UNITS, limit_of
from token_actor.core.texts import counted
from token_actor.errors import InvalidValue, TokenActorError
from token_actor.operations.limit_files import fields_of, put_limits, read_limits

if TYPE_CHECKING:
    from token_actor.core.limits import Limit

limits = typer.Typer(help="Put limits in force for the whole fleet, and look at them.", no_args_is_help=True)

FULLEST = 3
_WHAT = "What is limited"
_HOW = "How"

Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Names, as 'limits list' shows them.")]


def _option(metavar: str, help_text: str, panel: str = _HOW) -> Any:  # noqa: ANN401 - what typer.Option returns
    return typer.Option(metavar=metavar, help=help_text, rich_help_panel=panel, show_default=False)


def _choice(words: tuple[str, ...], help_text: str) -> Any:  # noqa: ANN401 - what typer.Option returns
    return _option("WORD", f"{help_text}: {', '.join(words)}.")


@limits.command("list")
def list_limits(
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    timeout: Timeout = TIMEOUT_S,
    tenant: Tenant = None,
    top: Annotated[int, typer.Option(min=0, metavar="N", help="How many values of each --by, the fullest.")] = FULLEST,
    as_json: AsJson = False,
) -> None:
    """List the limits in force, and what is taken of them."""
    with open_client(redis, namespace, timeout) as client:
        found = client.limits(top=top, tenant=tenant)
    if as_json:
        print_json({"limits": found})
        return
    console = answers()
    if not found:
        console.print("no limits; put one: token-actor limits put NAME --amount N")
        return
    print_table(console, limit_columns(limit_rows(found)))
    hidden = sum(limit["scopes"] - len(limit["top"]) for limit in found)
    if hidden:
        console.print(f"  and {counted(hidden, 'more value')}, with less taken; --top shows more", style="dim")


@limits.command("put")
def put_limit(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Its name; one that exists is replaced.")] = None,
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    timeout: Timeout = TIMEOUT_S,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put all limits of a TOML file.", dir_okay=False)
    ] = None,
    amount: Annotated[int | None, _option("N", "How much may be used.", _WHAT)] = None,
    amount_usd: Annotated[str | None, _option("USD", "How many dollars may be used.", _WHAT)] = None,
    unit: Annotated[str | None, _option("WORD", f"Of what: {', '.join(UNITS)}.", _WHAT)] = None,
    selector: Annotated[
        list[str] | None, _option("DIM=NAME", "Only these calls, as in agent=a. Several: repeat, or commas.", _WHAT)
    ] = None,
    by: Annotated[list[str] | None, _option("DIM", "Each value of these dimensions has its own.", _WHAT)] = None,
    weights: Annotated[
        list[str] | None, _option("KIND=W", "What a token of a kind counts, as in cache_read_tokens=0.", _WHAT)
    ] = None,
    kind: Annotated[str | None, _choice((*KINDS, "calendar"), "Kind")] = None,
    seconds: Annotated[str | None, _option("TIME", "In which time: 60, or 90s, 15m, 1h, 7d.")] = None,
    burst: Annotated[int | None, _option("N", "At most so much at once, of a bucket.")] = None,
    period: Annotated[str | None, _choice(PERIODS, "Of a calendar")] = None,
    tz: Annotated[str | None, _option("ZONE", "Its time zone, as in Europe/Zurich.")] = None,
    week_start: Annotated[str | None, _option("DAY", "On which its weeks begin.")] = None,
    mode: Annotated[str | None, _choice(MODES, "shadow counts and refuses nothing")] = None,
    on_outage: Annotated[str | None, _choice(ON_OUTAGE, "What clients decide without an actor")] = None,
    safe_share: Annotated[float | None, _option("SHARE", "Of the amount, that safe grants: 0 to 1.")] = None,
    on_expire: Annotated[str | None, _choice(ON_EXPIRE, "What becomes of a reservation nobody settled")] = None,
    thresholds: Annotated[list[str] | None, _option("PCT", "Per cent at which it is told, as in 50,80,100.")] = None,
    fair_by: Annotated[list[str] | None, _option("DIM", "Whose values take turns in waiting.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put a limit in force at once, or all limits of a file; what is not said is as in a new limit."""
    plain = {"amount": amount, "amount_usd": amount_usd, "unit": unit, "kind": kind, "seconds": seconds, "burst": burst,
             "mode": mode, "on_expire": on_expire, "period": period, "tz": tz, "week_start": week_start,
             "on_outage": on_outage, "safe_share": safe_share}  # fmt: skip
    given: dict[str, Any] = {
        **plain,
        "selector": pairs_of("--selector", selector),
        "by": names_of(by),
        "weights": _numbers("--weights", pairs_of("--weights", weights)),
        "thresholds": _whole("--thresholds", names_of(thresholds)),
        "fair_by": names_of(fair_by),
    }
    wanted = _wanted(name, file, {option: value for option, value in given.items() if value is not None})
    with open_client(redis, namespace, timeout) as client:
        changes = put_limits(client, wanted)
    if as_json:
        print_json({"put": [change.document() for change in changes]})
        return
    for sentence in change_sentences(changes):
        answers().print(sentence)


def _wanted(name: str | None, file: Path | None, given: dict[str, Any]) -> list[Limit]:
    """Return the limits that were meant. Raises ``InvalidValue`` naming the option that is wrong or missing."""
    if file is not None:
        if name is not None or given:
            raise InvalidValue("--file", "says all there is to say; leave out the name and the other options")
        found = read_limits(file)
        if not found:
            raise TokenActorError(f"{file} has no limits; each begins with a line [[limit]]")
        return found
    if name is None:
        raise InvalidValue("NAME", "is missing: which limit, or --file FILE for all of a file")
    if not {"amount", "amount_usd"} & given.keys():
        raise InvalidValue("--amount", "is missing: how much may be used (or --amount-usd)")
    seconds = given.get("seconds", "")
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", seconds):
        given["seconds"] = float(seconds)
    try:
        return [limit_of(fields_of({"name": name, **given}))]
    except InvalidValue as problem:
        if problem.field in given or problem.field in LIMIT_FIELDS - {"name"}:
            raise InvalidValue(f"--{problem.field.replace('_', '-')}", problem.problem) from None
        raise


def _numbers(option: str, texts: dict[str, str] | None) -> dict[str, float] | None:
    try:
        return None if texts is None else {name: float(text) for name, text in texts.items()}
    except ValueError:
        raise InvalidValue(option, "takes numbers, as in cache_read_tokens=0") from None


def _whole(option: str, texts: list[str] | None) -> list[int] | None:
    try:
        return None if texts is None else [int(text) for text in texts]
    except ValueError:
        raise InvalidValue(option, "takes whole numbers, as in 50,80,100") from None


@limits.command("delete")
def delete_limits(
    names: Names,
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    timeout: Timeout = TIMEOUT_S,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Let go of limits, and of what was counted against them."""
    with open_client(redis, namespace, timeout) as client:
        deleted = {name: client.delete_limit(name, tenant=tenant) for name in dict.fromkeys(names)}
    gone, missing = ([name for name, was_there in deleted.items() if was_there is wanted] for wanted in (True, False))
    if as_json:
        print_json({"deleted": gone, "missing": missing})
    elif gone:
        answers().print(f"{number(len(gone))} deleted")
    if missing:
        raise TokenActorError(f"there is no such limit: {', '.join(missing)}; see: token-actor limits list")


@limits.command("explain")
def explain(
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    timeout: Timeout = TIMEOUT_S,
    tokens: Annotated[int | None, _option("N", "Tokens it may use, of any kind.", _WHAT)] = None,
    input_tokens: Annotated[int | None, _option("N", "Input tokens.", _WHAT)] = None,
    output_tokens: Annotated[int | None, _option("N", "Output tokens.", _WHAT)] = None,
    cache_read_tokens: Annotated[int | None, _option("N", "Tokens read from a cache.", _WHAT)] = None,
    cache_write_tokens: Annotated[int | None, _option("N", "Tokens written to a cache.", _WHAT)] = None,
    cost_usd: Annotated[str | None, _option("USD", "What it may cost.", _WHAT)] = None,
    tenant: Tenant = None,
    project: Project = None,
    user: User = None,
    agent: Agent = None,
    session: Session = None,
    provider: Provider = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Say what a call would be told if it asked now, and by which limit. Takes nothing."""
    call = selector_of(
        tenant=tenant, project=project, user=user, agent=agent, session=session, provider=provider, model=model
    )
    counts: dict[str, Any] = {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cache_read_tokens": cache_read_tokens,
        "cache_write_tokens": cache_write_tokens,
        "cost_usd": cost_usd,
    }
    with open_client(redis, namespace, timeout) as client:
        told = client.explain(tokens, **counts, **call)
        units = {limit["name"]: limit["unit"] for limit in client.limits(top=0, tenant=tenant)}
    if as_json:
        print_json(told)
        return
    console = answers()
    console.print(verdict(told, units), style="green" if told["granted"] else "red")
    if told["limits"]:
        console.print()
        print_table(console, explained_columns(told["limits"], units))
