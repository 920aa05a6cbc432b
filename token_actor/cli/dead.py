"""Dead letters: list them, show one, send them once more, drop them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from token_actor.cli.options import AsJson, Namespace, Redis, moment, open_connection, target_of
from token_actor.cli.output import answers, local_time, number, print_json
from token_actor.cli.tables import Column, print_figures, print_table
from token_actor.core.texts import counted
from token_actor.errors import InvalidValue, TokenActorError
from token_actor.operations.dead import Selection, drop_dead, find_dead, list_dead, selected_dead
from token_actor.operations.retry import Retried, retry_dead

if TYPE_CHECKING:
    from collections.abc import Sequence

dead = typer.Typer(help="Look after the entries of the log that could not be counted.", no_args_is_help=True)

LISTED = 100
RAW_SHOWN = 2_000  # characters; --json has all of it

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids, as 'dead list' shows them.")]
Reason = Annotated[str | None, typer.Option(metavar="REASON", help="Only those of this reason.")]
Before = Annotated[float | None, typer.Option(metavar="TIME", parser=moment, help="Only those from before then.")]
Everything = Annotated[bool, typer.Option("--all", help="All of them.")]


@dead.command("list")
def list_letters(
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many, the newest.")] = LISTED,
    as_json: AsJson = False,
) -> None:
    """List the newest dead letters, with the reason of each."""
    target = target_of(redis, namespace)
    with open_connection(target) as connection:
        found, total = list_dead(connection, target.namespace, limit=limit)
    letters = [quarantined.document() for quarantined in found]
    if as_json:
        print_json({"dead": letters, "total": total})
        return
    console = answers()
    if not letters:
        console.print("no dead letters")
        return
    print_table(console, _columns(letters))
    if total > len(letters):
        console.print(f"  and {total - len(letters):,} older; --limit shows more", style="dim")
    console.print("  one of them in full: token-actor dead show ID", style="dim")


def _columns(letters: Sequence[dict[str, Any]]) -> list[Column]:
    events = [number(len(letter["events"])) if letter["events"] else "all" for letter in letters]
    return [
        Column(title="id", cells=[letter["id"] for letter in letters]),
        Column(title="time", cells=[local_time(letter["time"]) for letter in letters], rank=2),
        Column(title="field", cells=[letter["field"] or "-" for letter in letters], rank=3, name=True),
        Column(title="events", cells=events, rank=4),
        Column(title="reason", cells=[letter["reason"] for letter in letters], name=True, style="red"),
        Column(title="detail", cells=[letter["detail"] for letter in letters], name=True, least=40),
    ]


def _selection(ids: list[str] | None, reason: str | None, before: float | None, everything: bool) -> Selection:
    """Return what was meant. Raises ``InvalidValue`` when nothing was, so that nobody means all by mistake."""
    if not (ids or reason or before is not None or everything):
        raise InvalidValue("what", "must be said: ids, conditions, or --all")
    if ids and everything:
        raise InvalidValue("--all", "means all, and so no ids")
    before_ms = None if before is None else round(before * 1000)
    return Selection(ids=tuple(dict.fromkeys(ids or ())), reason=reason, before_ms=before_ms)


@dead.command("retry")
def retry_letters(
    ids: Ids = None,
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    reason: Reason = None,
    before: Before = None,
    everything: Everything = False,
    force: Annotated[bool, typer.Option(help="Also those that this program would refuse again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Also those that could count twice if this is cut off.")] = False,
    as_json: AsJson = False,
) -> None:
    """Append what was put aside to the log again, and drop the letters whose entries are in it."""
    target = target_of(redis, namespace)
    selection = _selection(ids, reason, before, everything)
    with open_connection(target) as connection:
        retried = retry_dead(connection, target.namespace, selection, hopeless=force, unidentified=yes)
    missing = _missing(selection, [outcome.letter_id for outcome in retried.outcomes])
    if as_json:
        told = {name: [outcome.document() for outcome in getattr(retried, name)] for name in ("done", "kept")}
        print_json({"retried": told["done"], "kept": told["kept"], "missing": missing})
    else:
        _print_retried(retried)
    _fail_for(missing, kept=len(retried.kept))


def _print_retried(retried: Retried) -> None:
    console = answers()
    for outcome in retried.kept:
        console.print(f"{outcome.letter_id} is kept: {outcome.why}", markup=False, highlight=False)
    console.print(f"{number(len(retried.done))} sent once more, {number(len(retried.kept))} kept")
    if retried.done:
        console.print("  what cannot be counted now either comes back under a new id: dead list", style="dim")


def _missing(selection: Selection, found: Sequence[str]) -> list[str]:
    return [entry_id for entry_id in selection.ids if entry_id not in found]


def _fail_for(missing: Sequence[str], *, kept: int = 0) -> None:
    """Raise ``TokenActorError`` when something that was meant has not been done."""
    if missing:
        raise TokenActorError(f"there is no such dead letter: {', '.join(missing)}")
    if kept:
        raise TokenActorError(f"not sent once more: {counted(kept, 'dead letter')}; what is said of each tells why")


@dead.command("drop")
def drop_letters(
    ids: Ids = None,
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    reason: Reason = None,
    before: Before = None,
    everything: Everything = False,
    yes: Annotated[bool, typer.Option("--yes", help="Really: nothing brings them back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters for good; what is counted does not change."""
    target = target_of(redis, namespace)
    selection = _selection(ids, reason, before, everything)
    with open_connection(target) as connection:
        if not yes:
            meant = sum(len(page) for page in selected_dead(connection, target.namespace, selection))
            raise InvalidValue("--yes", f"must be said: this would delete {number(meant)} dead letters for good")
        gone = [
            quarantined.letter.source.decode() for quarantined in drop_dead(connection, target.namespace, selection)
        ]
    missing = _missing(selection, gone)
    if as_json:
        print_json({"dropped": gone, "missing": missing})
    else:
        answers().print(f"{number(len(gone))} dropped")
    _fail_for(missing)


@dead.command("show")
def show_letter(
    entry_id: Annotated[str, typer.Argument(metavar="ID", help="Id, as 'dead list' shows it.")],
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter in full."""
    target = target_of(redis, namespace)
    with open_connection(target) as connection:
        found = find_dead(connection, target.namespace, entry_id)
    if found is None:
        raise TokenActorError(f"there is no dead letter {entry_id}; see which there are with: token-actor dead list")
    letter = found.document()
    if as_json:
        print_json(letter)
        return
    console = answers()
    print_figures(
        console,
        [
            ("id", letter["id"]),
            ("time", local_time(letter["time"])),
            ("partition", number(letter["partition"])),
            ("reason", letter["reason"]),
            ("field", letter["field"] or "-"),
            ("bytes", number(letter["raw_bytes"])),
        ],
        right=False,
    )
    console.print(letter["detail"], style="red")
    if letter["events"]:
        print_table(console, _event_columns(letter["events"]))
    console.print()
    console.print(f"what was sent, as {letter['raw_form']}:", style="dim")
    console.print(letter["raw"][:RAW_SHOWN])
    if len(letter["raw"]) > RAW_SHOWN:
        console.print("  and more; --json shows all of it", style="dim")


def _event_columns(events: Sequence[dict[str, Any]]) -> list[Column]:
    return [
        Column(title="event", cells=[number(event["position"]) for event in events]),
        Column(title="reason", cells=[event["reason"] for event in events], name=True, style="red"),
        Column(title="detail", cells=[event["detail"] for event in events], name=True),
    ]
