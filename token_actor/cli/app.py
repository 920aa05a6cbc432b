"""The command line as a whole: its commands, and what becomes of errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from token_actor import __version__
from token_actor.cli.checks import doctor, verify
from token_actor.cli.dead import dead
from token_actor.cli.demo import demo
from token_actor.cli.export import export
from token_actor.cli.killing import kill, revive
from token_actor.cli.limits import limits
from token_actor.cli.notify import notify
from token_actor.cli.options import Namespace, Redis
from token_actor.cli.output import complain, survive_any_name
from token_actor.cli.questions import analytics, history, summary
from token_actor.cli.replay import replay
from token_actor.cli.serve import serve
from token_actor.errors import InvalidValue, TokenActorError

FAILED = 1
WRONG_USAGE = 2

app = typer.Typer(
    name="token-actor",
    help="Meter the LLM tokens of a fleet of agents: every call counted exactly once, by one actor.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Run": (demo, serve, notify, replay),
    "Ask": (summary, analytics, history, export),
    "Look after": (kill, revive, verify, doctor),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
groups = {"limits": limits, "dead": dead}
for name, group in groups.items():
    app.add_typer(group, name=name, rich_help_panel="Look after")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)  # noqa: T201 - what was asked for
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    redis: Redis = None,
    namespace: Namespace = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the connection before the command, too: it is the default of every command's own."""
    del version
    given: dict[str, Any] = {"redis": redis, "namespace": namespace}
    defaults = {name: value for name, value in given.items() if value is not None}
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    inner = {
        name: dict.fromkeys((command.name for command in group.registered_commands), defaults)
        for name, group in groups.items()
    }
    context.default_map = {**dict.fromkeys(names, defaults), **inner}


def main() -> None:
    """Run the command line, and end the program with its exit code: 0 fine, 1 failed, 2 wrong usage."""
    survive_any_name()
    try:
        app()
    except InvalidValue as error:
        complain(error)
        sys.exit(WRONG_USAGE)
    except (TokenActorError, OSError) as error:
        complain(error)
        sys.exit(FAILED)
