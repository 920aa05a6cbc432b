"""Standing: what only the leading actor itself can add to an answer, beside what its ledger says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from token_actor.core.dedupe import UNKNOWN
from token_actor.core.progress import SEEN_RANGES_MAX
from token_actor.transport.ports import FIRST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from token_actor.actor.follower import Follower
    from token_actor.actor.leadership import Leadership
    from token_actor.actor.saving import Saving
    from token_actor.actor.settings import ActorSettings
    from token_actor.transport.ports import Connection
    from token_actor.wire.messages import Question

_EPOCHS_PER_GENERATION: Final = 1_000_000  # times the milliseconds since 1970, it fits into 64 bits

Standing: TypeAlias = "Mapping[str, Callable[[Question, dict[str, Any]], None]]"  # by kind, what adds to a result


def standing_of(
    connection: Connection, settings: ActorSettings, leadership: Leadership, follower: Follower, saving: Saving
) -> Standing:
    """Return what adds the actor's own part to the answers that have one."""

    def add_position(question: Question, result: dict[str, Any]) -> None:
        """Add who answers, and up to where the log was folded."""
        del question
        position = follower.position
        result |= {
            "epoch": leadership.epoch,
            "holder": settings.holder,
            "offset": position.offset.decode(),
            "entries": position.entries,
            "generation": position.generation,
            "lost_entries": position.lost,
            "snapshot_offset": saving.position.offset.decode(),
        }

    def add_durable(question: Question, result: dict[str, Any]) -> None:
        """Add which numbers of a producer a committed snapshot covers, and of which log that is true."""
        producer, durable = question.arguments["producer"], saving.durable
        for epoch, seen in result["epochs"].items():
            mark = durable.get((producer, int(epoch)), UNKNOWN)
            seen["durable"] = mark.next_seq
            seen["durable_ranges"] = [list(span) for span in mark.ranges[:SEEN_RANGES_MAX]]
        # Another leader may have recovered from less than was acknowledged; to a client that is another log as well.
        generation = follower.position.generation * _EPOCHS_PER_GENERATION + leadership.epoch % _EPOCHS_PER_GENERATION
        # The end of the log is looked up after the question came, so what was acknowledged above it was in another log.
        log = connection.stream_state(settings.keys.log)
        log_end = FIRST if log is None else log.last_id
        offset = follower.position.offset
        result |= {"generation": generation, "offset": offset.decode(), "log_end": log_end.decode()}

    return {"status": add_position, "books": add_position, "producer": add_durable}
