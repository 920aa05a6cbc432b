"""Stage: what ``demo`` and ``replay`` need around their workers: a server, an actor, and a look at both.

What is there already is used; what is missing is started, watched, and stopped in the end.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from token_actor import TokenClient
from token_actor.cli.options import Target, open_connection
from token_actor.cli.processes import RESTARTS_MAX, Children
from token_actor.cli.totals import counted_of
from token_actor.embedded import EmbeddedServer
from token_actor.errors import ActorUnavailable, ServerUnavailable, TokenActorError
from token_actor.operations.places import counted_up_to, end_of_log, leader_of
from token_actor.wire.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from token_actor.cli.processes import Child
    from token_actor.transport.ports import Connection

ASK_TIMEOUT_S: Final = 1.0  # of one question among many: the actor may be away for a moment
START_TIMEOUT_S: Final = 30.0  # until an actor answers for the first time
TICK_S: Final = 0.1


class ActorWatch:
    """Start an actor where there is none, and start it again when something kills it."""

    def __init__(
        self, children: Children, target: Target, note: Callable[[str], None], *, accept_data_loss: bool
    ) -> None:
        """Watch over the actor of a namespace's only partition; ``note`` tells a person what happens."""
        self._accepted = ["--accept-data-loss"] if accept_data_loss else []
        self._children = children
        self._target = target
        self.note = note
        self._actor: Child | None = None
        self._restarts = 0

    @property
    def pid(self) -> int | None:
        """Return the process id of the actor that was started here, ``None`` when there was one already."""
        return None if self._actor is None else self._actor.pid

    def start(self) -> None:
        """Start an actor."""
        arguments = ["serve", "--redis", self._target.url, "--namespace", self._target.namespace, "--supervised"]
        self._actor = self._children.start("the actor", "token_actor", [*arguments, *self._accepted])

    def check(self) -> None:
        """Start the actor again if it was killed. Raises ``TokenActorError`` when it gave up by itself."""
        actor = self._actor
        if actor is None or actor.code is None:
            return
        self._restarts += 1
        if actor.code >= 0 or self._restarts > RESTARTS_MAX:
            raise TokenActorError(actor.end_text())
        self.start()
        self.note(f"{actor.end_text()} (process {actor.pid}); started again as process {self.pid}")

    def stop(self) -> None:
        """Stop the actor that was started here, and wait until it has ended."""
        self._actor = None
        self._children.stop()


@dataclass(slots=True)
class Stage:
    """Hold what a run needs: where everything is, a client to ask, and the actor under watch."""

    target: Target
    client: TokenClient
    connection: Connection
    watch: ActorWatch
    embedded: bool
    note: Callable[[str], None]

    @property
    def keys(self) -> Keys:
        """Return the keys of the only partition."""
        return Keys(self.target.namespace)

    def ensure_server(self) -> None:
        """Look whether there is a server, before anything is done for it. Raises ``ServerUnavailable``.

        One of our own has no actor yet, and that may start while workers do.
        """
        leader_of(self.connection, self.keys)
        if self.embedded:
            self.watch.start()

    def ensure_actor(self) -> None:
        """Wait until an actor answers; starts one where there is none.

        Raises ``ActorUnavailable`` when none does within half a minute.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if leader_of(self.connection, self.keys) is None and self.watch.pid is None:
                self.watch.start()
            self.watch.check()
            try:
                self.client.status(timeout_s=ASK_TIMEOUT_S)
            except ActorUnavailable:
                if time.monotonic() >= deadline:
                    raise
            else:
                return

    def ask(self, question: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever was asked
        """Return an answer, or ``None`` while the actor or the server is away for a moment."""
        try:
            return question()
        except (ActorUnavailable, ServerUnavailable):
            return None

    def insist(self, question: Callable[[], Any], deadline: float) -> Any:  # noqa: ANN401 - whatever was asked
        """Return an answer, however long the actor is away. Raises ``ActorUnavailable`` at the deadline."""
        while time.monotonic() < deadline:
            self.watch.check()
            answer = self.ask(question)
            if answer is not None:
                return answer
            time.sleep(TICK_S)
        raise ActorUnavailable(
            "the actor did not answer in time; 'token-actor doctor' tells more, --timeout waits longer", timeout_s=0
        )

    def totals(self, deadline: float, **selector: Any) -> dict[str, int]:  # noqa: ANN401 - names of dimensions
        """Return the figures that the actor has counted, and the duplicates it has dropped."""
        return counted_of(self.insist(lambda: self.client.analytics(timeout_s=ASK_TIMEOUT_S, **selector), deadline))

    def dead(self, deadline: float) -> int:
        """Return how many events and entries the actor could not count."""
        status = self.insist(lambda: self.client.status(timeout_s=ASK_TIMEOUT_S), deadline)
        return sum(status["dead"].values())

    def wait_until_counted(self, deadline: float) -> None:
        """Wait until the actor has counted everything that is in the log now."""
        end = self.insist(lambda: end_of_log(self.connection, self.keys), deadline)
        self.insist(lambda: counted_up_to(self.client, end, timeout_s=ASK_TIMEOUT_S) or None, deadline)


@contextmanager
def open_stage(
    url: str | None, namespace: str, note: Callable[[str], None], *, accept_data_loss: bool = False
) -> Iterator[Stage]:
    """Lend a stage; ``url`` ``None`` means a server of its own, which goes with the stage.

    ``accept_data_loss`` is for what is shown and then removed: its actor starts on any server.
    """
    with ExitStack() as stack:
        server = None if url is not None else stack.enter_context(EmbeddedServer())
        target = Target(url if server is None else server.url, namespace)  # type: ignore[arg-type] # one of both is
        actors = stack.enter_context(Children())
        yield Stage(
            target=target,
            client=stack.enter_context(TokenClient(target.url, namespace=namespace)),
            connection=stack.enter_context(open_connection(target)),
            watch=ActorWatch(actors, target, note, accept_data_loss=accept_data_loss),
            embedded=server is not None,
            note=note,
        )
