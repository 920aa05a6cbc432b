"""Options that several commands share, and what becomes of what was typed."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias
from urllib.parse import urlsplit

import typer

from token_actor import TokenClient
from token_actor.core.usage import DIMENSIONS
from token_actor.service import DEFAULT_URL, connector_of, default_namespace, default_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from token_actor.transport.ports import Connection

CONNECTION: Final = "Connection"
SELECTION: Final = "What is selected"
TIMEOUT_S: Final = 5.0
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_AGO: Final = re.compile(r"-?(\d+(?:\.\d+)?)([smhdw])")

_REDIS_HELP: Final = f"Address of the server. Else TOKEN_ACTOR_REDIS, else {DEFAULT_URL}."
_OWN_REDIS_HELP: Final = "Address of a server to work on. Else TOKEN_ACTOR_REDIS, else one is started for it."
_NAMESPACE_HELP: Final = "Namespace. Else TOKEN_ACTOR_NAMESPACE, else 'default'."


def _connection(help_text: str, metavar: str) -> Any:  # noqa: ANN401 - what typer.Option returns
    return typer.Option(metavar=metavar, help=help_text, rich_help_panel=CONNECTION)


def _name(dimension: str) -> Any:  # noqa: ANN401 - what typer.Option returns
    return typer.Option(metavar="NAME", help=f"Only this {dimension}.", rich_help_panel=SELECTION)


def moment(text: str) -> float:
    """Return a time as typed, in unix seconds: ``-1h`` or ``30m`` ago, ISO 8601, unix seconds, or ``now``.

    ISO 8601 without a zone is local time. Raises ``BadParameter``.
    """
    ago = _AGO.fullmatch(text)
    if ago:
        return time.time() - float(ago[1]) * _UNIT_S[ago[2]]
    if text == "now":
        return time.time()
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        message = f"{text!r} is no time: give ISO 8601, unix seconds, or how long ago as in 90s, 30m, 1h, 7d"
        raise typer.BadParameter(message) from None


def _moment(end: str) -> Any:  # noqa: ANN401 - what typer.Option returns
    help_text = f"{end} ISO 8601 (local time without a zone), unix seconds, or how long ago: 30m, -1h, 7d."
    return typer.Option(metavar="TIME", parser=moment, help=help_text, rich_help_panel=SELECTION)


def dimensions(given: list[str] | None) -> list[str]:
    """Return the dimensions of ``--group-by``, repeated or with commas. Raises ``BadParameter``."""
    names = [name.strip() for text in given or [] for name in text.split(",") if name.strip()]
    for name in names:
        if name not in DIMENSIONS:
            raise typer.BadParameter(f"{name!r} is not a dimension; there are {', '.join(DIMENSIONS)}")
    return list(dict.fromkeys(names))


Redis: TypeAlias = Annotated[str | None, _connection(_REDIS_HELP, "URL")]
AnyRedis: TypeAlias = Annotated[str | None, _connection(_OWN_REDIS_HELP, "URL")]
Namespace: TypeAlias = Annotated[str | None, _connection(_NAMESPACE_HELP, "NAME")]
Timeout: TypeAlias = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.01, help="How long to wait for an answer.", rich_help_panel=CONNECTION)
]
SpoolDir: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="A spool of clients to look into.  [env: TOKEN_ACTOR_SPOOL_DIR]"),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Tenant: TypeAlias = Annotated[str | None, _name("tenant")]
Project: TypeAlias = Annotated[str | None, _name("project")]
User: TypeAlias = Annotated[str | None, _name("user")]
Agent: TypeAlias = Annotated[str | None, _name("agent")]
Session: TypeAlias = Annotated[str | None, _name("session")]
Provider: TypeAlias = Annotated[str | None, _name("provider")]
Model: TypeAlias = Annotated[str | None, _name("model")]
Since: TypeAlias = Annotated[float | None, _moment("From then on:")]
Until: TypeAlias = Annotated[float | None, _moment("Before then:")]
GroupBy: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="DIMENSION", help=f"Sums for each of: {', '.join(DIMENSIONS)}. Several: repeat, or commas."),
]


def names_of(given: list[str] | None) -> list[str] | None:
    """Return what is given several times, or once with commas; ``None`` when nothing is."""
    return None if given is None else [name.strip() for text in given for name in text.split(",") if name.strip()]


def pairs_of(option: str, given: list[str] | None) -> dict[str, str] | None:
    """Return what is given as NAME=VALUE, several times or with commas; ``None`` when nothing is.

    Raises ``BadParameter`` naming the option.
    """
    pairs = [text.partition("=") for text in names_of(given) or []]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise typer.BadParameter(f"{option} takes NAME=VALUE, not {name + equals + value!r}")
    if len({name for name, *_ in pairs}) < len(pairs):
        raise typer.BadParameter(f"{option} names something twice")
    return None if given is None else {name: value for name, _, value in pairs}


def selector_of(**names: str | None) -> dict[str, Any]:
    """Return what was selected: the dimensions that were given."""
    return {dimension: name for dimension, name in names.items() if name is not None}


@dataclass(frozen=True, slots=True)
class Target:
    """Hold where to connect, once options and environment have been looked at."""

    url: str
    namespace: str

    @property
    def has_password(self) -> bool:
        """Tell whether the address names a password."""
        return urlsplit(self.url).password is not None


def target_of(redis: str | None, namespace: str | None) -> Target:
    """Return where to connect."""
    return Target(redis or default_url(), namespace or default_namespace())


@contextmanager
def open_client(redis: str | None, namespace: str | None, timeout_s: float) -> Iterator[TokenClient]:
    """Lend a client for one command."""
    target = target_of(redis, namespace)
    with TokenClient(target.url, namespace=target.namespace, timeout_s=timeout_s, spool_dir="") as client:
        yield client


@contextmanager
def open_connection(target: Target) -> Iterator[Connection]:
    """Lend a connection for one command."""
    connection = connector_of(target.url, target.namespace).connect()
    try:
        yield connection
    finally:
        connection.close()
