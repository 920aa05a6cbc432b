"""Dead letters: list them, show one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from token_actor.cli.options import AsJson, Namespace, Redis, open_connection, target_of
from token_actor.cli.output import answers, local_time, number, print_json
from token_actor.cli.tables import Column, print_figures, print_table
from token_actor.errors import TokenActorError
from token_actor.operations.dead import find_dead, list_dead

if TYPE_CHECKING:
    from collections.abc import Sequence

dead = typer.Typer(help="Look at the entries of the log that could not be counted.", no_args_is_help=True)

LISTED = 100
RAW_SHOWN = 2_000  # characters; --json has all of it


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
