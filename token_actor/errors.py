"""The one tree of errors.

::

    TokenActorError
    ├── TokenManagerException           what existing users of TokenManager catch
    │   └── RateLimitExceeded
    ├── InvalidValue (ValueError)       the caller's: an argument is out of range
    │   └── InvalidQuestion             the caller's: a question names something unknown
    ├── BadEntry                        the sender's: bytes in a stream that cannot be applied
    ├── ActorUnavailable                the deployment's: no answer within the deadline
    │   ├── LogUnavailable              the deployment's: not in the log within the deadline
    │   └── ClientBusy                  the caller's: too much is under way in this client
    ├── RateLimited                     nobody's: a limit has no room for this call now
    ├── BufferFull                      the deployment's: the log has been away for too long
    │   └── SpoolFull                   the deployment's: the spool on disk has no room
    ├── SpoolError                      the disk's: a spool could not be read or written
    ├── TransportError                  the server's
    │   ├── ServerUnavailable           no connection, or it broke: the outcome is unknown
    │   └── ServerRefused               the server answered with an error: nothing was done
    ├── LeadershipLost                  nobody's: another actor leads the partition now
    ├── SnapshotError                   the state's: no snapshot fits the log, or it is damaged
    ├── SetupError                      the operator's: settings or server cannot be used
    └── ClosedError                     the caller's: used after close()

Errors carry fields, so that programs need not parse sentences. They can be pickled, so that they
reach the parent of a process that failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class TokenActorError(Exception):
    """Be the root of every error this package raises on purpose."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle message and fields; by default the message would be passed as the first field."""
        return _unpickled, (type(self), self.args, self.__dict__)


def _unpickled(kind: type[TokenActorError], args: tuple[Any, ...], fields: dict[str, Any]) -> TokenActorError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class TokenManagerException(TokenActorError):  # noqa: N818 - the name is part of the public contract
    """Be the root of the errors an in-process TokenManager raises."""


class RateLimitExceeded(TokenManagerException):
    """Say that a call would exceed a rate limit."""


class InvalidValue(TokenActorError, ValueError):  # noqa: N818 - reads as a sentence where it is raised
    """Say which argument is wrong, and why.

    ``field`` names the argument, ``problem`` says what is wrong with it, and ``reason`` is the
    word under which the same value would be quarantined on the wire (``range``, ``type``, ...).
    """

    def __init__(self, field: str, problem: str, *, reason: str = "range") -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem
        self.reason = reason


class InvalidQuestion(InvalidValue):
    """Say which part of a question the actor cannot answer."""


class BadEntry(TokenActorError):  # noqa: N818 - reads as a sentence where it is raised
    """Say why bytes read from a stream cannot be applied.

    ``reason`` is one stable word (``decode``, ``version``, ``range``, ``type``, ``bad_name``,
    ``too_large``, ``id_conflict``, ...), ``detail`` one line for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class ActorUnavailable(TokenActorError):  # noqa: N818 - the name is part of the public contract
    """Say that no actor answered within ``timeout_s`` seconds, and what to do."""

    def __init__(self, message: str, *, timeout_s: float) -> None:
        super().__init__(message)
        self.timeout_s = timeout_s


class ClientBusy(ActorUnavailable):
    """Say that so much is under way in this client that nobody was asked in time; of the actor it says nothing."""


class LogUnavailable(ActorUnavailable):
    """Say that ``pending`` recorded events are not in the log yet; they are kept and retried."""

    def __init__(self, message: str, *, timeout_s: float, pending: int) -> None:
        super().__init__(message, timeout_s=timeout_s)
        self.pending = pending


class RateLimited(TokenActorError):  # noqa: N818 - the name is part of the public contract
    """Say that ``limit`` has no room for a call now, and when to try again.

    ``retry_after_s`` is how long to wait if nobody else uses or gives back anything, ``None`` when the
    call can never fit. ``used``, ``reserved`` and ``remaining`` are in the unit of the limit. ``degraded``
    says that the actor could not be reached, and the figures are those of what this process may grant.
    """

    def __init__(  # noqa: PLR0913 - the figures of a decision
        self,
        message: str,
        *,
        retry_after_s: float | None,
        limit: str,
        used: int,
        reserved: int,
        remaining: int,
        degraded: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.limit = limit
        self.used = used
        self.reserved = reserved
        self.remaining = remaining
        self.degraded = degraded


class BufferFull(TokenActorError):  # noqa: N818 - reads as a sentence where it is raised
    """Say that ``pending`` events already wait for the log; this event was not taken."""

    def __init__(self, message: str, *, pending: int) -> None:
        super().__init__(message)
        self.pending = pending


class SpoolFull(BufferFull):
    """Say that the spool has no room, ``pending`` events are not in the log, and this one was not taken."""


class SpoolError(TokenActorError):
    """Say that a spool could not be written or read; nothing was changed, and the same may be tried again."""


class TransportError(TokenActorError):
    """Be the root of what goes wrong between this process and the server."""


class ServerUnavailable(TransportError):  # noqa: N818 - reads as a sentence where it is raised
    """Say that the server cannot be reached, or the connection broke in the middle.

    Whether a command that was under way took effect is unknown.
    """


class ServerRefused(TransportError):  # noqa: N818 - reads as a sentence where it is raised
    """Say that the server answered with an error; ``code`` is its first word (``OOM``, ...)."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = message.split(" ", 1)[0] if message else ""


class LeadershipLost(TokenActorError):  # noqa: N818 - reads as a sentence where it is raised
    """Say that this actor no longer leads its partition; what it was about to write was not written."""


class SnapshotError(TokenActorError):
    """Say that the state cannot be restored without losing or inventing numbers."""


class SetupError(TokenActorError):
    """Say which setting, or which property of the server, has to change first."""


class ClosedError(TokenActorError):
    """Say that the client was used after ``close()``."""
