"""The commands of escrow: what a leader gives of them, and the part of a ``reserve`` that takes a call."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from token_actor.core.arguments import check_arguments, identifier, whole
from token_actor.core.escrow import CALLS_MAX, ESCROWS_MAX, MEASURED, Terms, measures_of
from token_actor.core.estimates import GIVEN, SOURCES, is_unmeasured
from token_actor.core.limits import RESERVE_ARGUMENTS, estimate_of
from token_actor.core.usage import check_count, check_series_key
from token_actor.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from token_actor.core.commands import Carried, Command
    from token_actor.core.ledger import Ledger
    from token_actor.core.waiting import Wish

LEADER: Final = "leader"  # the client that a leader is when it gives commands
ESCROW: Final = "escrow"  # the argument of a ``reserve`` that names what it has taken a call from
DRAWN: Final = "drawn"  # names the same in the answer
HINT: Final = "escrow"  # what a client has to know to do so, in the answer to one that was decided


def take(ledger: Ledger, arguments: dict[str, Any]) -> tuple[str, Terms] | None:
    """Return the escrow that a call was taken from, and its terms; ``None`` when it must be decided.

    The counter on the server counted whatever else is said, so this comes before everything that may be wrong.
    """
    if ESCROW not in arguments:
        return None
    with suppress(InvalidValue):  # it will be raised again, by who decides
        asked = estimate_of({name: value for name, value in arguments.items() if name in RESERVE_ARGUMENTS})
        number = str(arguments.pop(ESCROW))
        terms = ledger.admission.escrows.take(number, asked, is_given=not is_unmeasured(arguments))
        return None if terms is None else (number, terms)
    ledger.admission.escrows.skip(str(arguments.pop(ESCROW)))
    return None


def skip(ledger: Ledger, arguments: Mapping[str, Any]) -> None:
    """Let go of the call that these arguments of a known request have taken, if any; nobody is granted it.

    Time does not go on, but whoever waits for the room is looked at now: no state says later that it became free.
    """
    if ESCROW in arguments:
        with ledger.limits.watch.step(ledger.log_ms):
            ledger.admission.escrows.skip(str(arguments[ESCROW]))
            ledger.admission.serve(ledger.log_ms)


def note(ledger: Ledger, answer: dict[str, Any], wish: Wish) -> None:
    """Note a call that was granted by a decision, and tell its client from where it may take the next ones."""
    escrows, estimate = ledger.admission.escrows, wish.estimate
    if answer["granted"] and estimate.requests == 1:
        escrows.note(Terms(estimate.series, measures_of(estimate), wish.source))
    hint = escrows.hint(estimate.series, is_given=wish.source == GIVEN)
    if hint is not None:
        answer[HINT] = {**hint, "ahead_ms": ledger.log_ms - ledger.time.id_ms}


def _check_leader(command: Command, *arguments: str) -> None:
    """Refuse what nobody but a leader may do: whoever does it must change a counter with it."""
    if command.client != LEADER:
        raise InvalidValue("client", f"must be {LEADER!r} to set anything aside", reason="decode")
    check_arguments(command, *arguments)


def _set_aside(ledger: Ledger, command: Command) -> Carried:
    """Set quota aside for calls of one combination of names, if there is room for all of them."""
    _check_leader(command, "number", "series", "most", "source", "calls")
    most, source = command.arguments.get("most"), command.arguments.get("source")
    series = check_series_key(command.arguments.get("series"))
    if not isinstance(most, (list, tuple)) or len(most) != MEASURED:
        raise InvalidValue("most", f"must be {MEASURED} counts", reason="decode")
    if source not in SOURCES:
        raise InvalidValue("source", f"must be one of {', '.join(SOURCES)}", reason="decode")
    terms = Terms(series, tuple(check_count("most", each) for each in most), source)
    names, calls = ledger.series.counted_as(series), _calls(command)
    done = ledger.admission.escrows.set_aside(_number(command), terms, names, calls, ledger.log_ms)
    return {"set_aside": done}, []


def _open_escrow(ledger: Ledger, command: Command) -> Carried:
    """Count calls that were put into the counter on the server in the same transaction."""
    _check_leader(command, "number", "calls")
    return {"opened": ledger.admission.escrows.open(_number(command), _calls(command))}, []


def _recall_escrows(ledger: Ledger, command: Command) -> Carried:
    """Give back what is set aside; its counters were taken away in the same transaction."""
    _check_leader(command, "numbers")
    numbers = command.arguments.get("numbers")
    if not isinstance(numbers, (list, tuple)) or len(numbers) > ESCROWS_MAX:
        raise InvalidValue("numbers", f"must be at most {ESCROWS_MAX} ids of escrows", reason="decode")
    return {"recalled": ledger.admission.escrows.recall(map(str, numbers))}, []


def _number(command: Command) -> str:
    return identifier(command, "number", of="the id of an escrow")


def _calls(command: Command) -> int:
    return whole("calls", command.arguments.get("calls"), 1, CALLS_MAX)


ESCROW_COMMANDS: Final[Mapping[str, Callable[[Ledger, Command], Carried]]] = {
    "set_aside": _set_aside,
    "open_escrow": _open_escrow,
    "recall_escrows": _recall_escrows,
}
