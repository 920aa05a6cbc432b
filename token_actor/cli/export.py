"""Export: analytics and events as one text, to a file or to stdout."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from token_actor.cli.options import (
    TIMEOUT_S,
    Agent,
    Model,
    Namespace,
    Project,
    Provider,
    Redis,
    Session,
    Tenant,
    Timeout,
    User,
    open_client,
    selector_of,
)
from token_actor.cli.output import note, notes
from token_actor.client.questions import EXPORT_FORMATS
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from io import TextIOWrapper

STDOUT = Path("-")


def export(
    *,
    redis: Redis = None,
    namespace: Namespace = None,
    timeout: Timeout = TIMEOUT_S,
    export_format: Annotated[str, typer.Option("--format", metavar="|".join(EXPORT_FORMATS), help="Format.")] = "json",
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File; - is stdout.")] = STDOUT,
    limit: Annotated[int | None, typer.Option(min=0, metavar="N", help="At most N events, the newest.")] = None,
    tenant: Tenant = None,
    project: Project = None,
    user: User = None,
    agent: Agent = None,
    session: Session = None,
    provider: Provider = None,
    model: Model = None,
) -> None:
    """Write analytics and events to a file, which is there whole or not at all."""
    if export_format.lower() not in EXPORT_FORMATS:
        raise InvalidValue("--format", f"must be one of {', '.join(EXPORT_FORMATS)}, not {export_format!r}")
    selector = selector_of(
        tenant=tenant, project=project, user=user, agent=agent, session=session, provider=provider, model=model
    )
    with open_client(redis, namespace, timeout) as client, notes().status("asking for the events"):
        text = client.export(export_format, limit=limit, **selector)
    if output == STDOUT:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        return
    replace_file(output, text)
    note(f"{output}: {len(text.encode()):,} bytes")


def replace_file(path: Path, text: str) -> None:
    """Write a file by way of a temporary one beside it. Raises ``OSError``.

    What is there and no regular file (a device, a pipe) is written to as it is.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8", newline="")
        return
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
    made = tempfile.NamedTemporaryFile(  # noqa: SIM115 - it is renamed when it is complete
        "w", encoding="utf-8", newline="", dir=target.parent, prefix=f".{target.name}.", delete=False
    )
    try:
        with made:
            _write_through(made.file, text)  # type: ignore[arg-type] # opened in text mode
        Path(made.name).chmod(mode)
        Path(made.name).replace(target)
    except BaseException:
        Path(made.name).unlink(missing_ok=True)
        raise


def _write_through(file: TextIOWrapper, text: str) -> None:
    """Write, and wait until the disk has it: else a crash could leave an empty file under the new name."""
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
