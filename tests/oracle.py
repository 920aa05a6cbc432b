"""What a ledger has to answer, in plain Python that keeps every event and computes every answer anew."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from token_actor.core.ledger import FUTURE_MS_MAX, PAST_MS_MAX
from token_actor.core.logtime import CLOCKS_AGREE_MS, LEAP_MS_MAX
from token_actor.core.message_ids import MESSAGE_ID_AGE_MS_MAX
from token_actor.core.usage import DIMENSIONS, TOKENS_MAX, Event


class Counted(NamedTuple):
    """One event that counts: when the log took it, when it happened, its names, its tokens, its id."""

    log_ms: int
    event_ms: int
    clamped: bool
    names: dict[str, str]
    counts: tuple[int, ...]
    message_id: str | None


class Oracle:
    """Know what a ledger without bounds knows."""

    def __init__(self) -> None:
        self.log_ms = 0
        self.id_ms = 0
        self.off_ms = 0  # what ids are off by, as a leader said
        self.held_ms = 0  # by how much leaps were cut since then
        self.epoch = 0
        self.events: list[Counted] = []
        self.numbers: dict[tuple[bytes, int], set[int]] = {}
        self.ids: dict[tuple[str, str], tuple[int, tuple[int, ...]]] = {}  # when they came, and with what
        self.newest_id_ms = 0  # ids age by this, which never moves back
        self.dead: Counter[str] = Counter()
        self.duplicates = 0
        self.reset_at: dict[tuple[str, str], int] = {}
        self.answers: dict[str, object] = {}

    def tick(self, id_ms: int) -> None:
        """Move on to the next entry: a leap counts as an hour."""
        self.held_ms += max(0, id_ms - (self.id_ms or id_ms) - LEAP_MS_MAX)
        self.id_ms = id_ms
        self.log_ms = max(self.log_ms, id_ms + self.off_ms - self.held_ms)

    def tell(self, id_ms: int, now_ms: int, epoch: int) -> None:
        """Take the time of a leader; where it moves back, nothing happened later than now."""
        if epoch < self.epoch:
            return
        self.epoch, self.id_ms, self.held_ms = epoch, id_ms, 0
        self.off_ms = 0 if abs(now_ms - id_ms) <= CLOCKS_AGREE_MS else now_ms - id_ms
        self.log_ms = id_ms + self.off_ms
        self.events = [each._replace(log_ms=min(each.log_ms, self.log_ms)) for each in self.events]

    def take_batch(self, id_ms: int, events: list[Event], producer: bytes, epoch: int, first_seq: int) -> None:
        """Take a batch; a number that was seen before is a duplicate, whatever comes with it."""
        seen = self.numbers.setdefault((producer, epoch), set())
        self.tick(id_ms)
        for number, event in enumerate(events, first_seq):
            if number not in seen:
                self.take(id_ms, event)
            elif len(event.series.split("\x1f")) == len(DIMENSIONS) and max(event[1:6]) <= TOKENS_MAX:
                self.duplicates += 1  # what could not be counted the first time is no duplicate now
            seen.add(number)

    def take(self, id_ms: int, event: Event) -> str | None:
        """Take one event; return why it does not count."""
        self.tick(id_ms)
        names = event.series.split("\x1f")
        counts = tuple(event[1:6])
        if len(names) != len(DIMENSIONS) or max(counts) > TOKENS_MAX:
            return self.reject("decode" if len(names) != len(DIMENSIONS) else "range")
        scoped = (names[0], event.message_id or "")
        if event.message_id:
            now_ms = max(self.log_ms, self.newest_id_ms)
            came_ms, with_counts = self.ids.get(scoped, (now_ms - MESSAGE_ID_AGE_MS_MAX - 1, ()))
            if now_ms - came_ms <= MESSAGE_ID_AGE_MS_MAX:
                if with_counts != counts:
                    return self.reject("id_conflict")
                self.duplicates += 1
                return "duplicate"
            self.ids[scoped] = (now_ms, counts)
            self.newest_id_ms = now_ms
        taken = id_ms + self.off_ms
        claimed = taken if event.timestamp_ms in {None, id_ms} else event.timestamp_ms
        event_ms = max(taken - PAST_MS_MAX, min(taken + FUTURE_MS_MAX, claimed))
        named = dict(zip(DIMENSIONS, names, strict=True))
        self.events.append(Counted(self.log_ms, event_ms, event_ms != claimed, named, counts, event.message_id))
        return None

    def reject(self, reason: str) -> str:
        self.dead[reason] += 1
        return reason

    def reset(self, id_ms: int, tenant: str, session: str) -> None:
        """Start a session anew and forget its ids."""
        self.tick(id_ms)
        for event in self.session(tenant, session):
            self.ids.pop((tenant, event.message_id or ""), None)
        self.reset_at[tenant, session] = len(self.events)

    def session(self, tenant: str, session: str) -> list[Counted]:
        since = self.events[self.reset_at.get((tenant, session), 0) :]
        return [event for event in since if (event.names["tenant"], event.names["session"]) == (tenant, session)]

    def missing(self) -> int:
        return sum(max(seen) + 1 - len(seen) for seen in self.numbers.values())

    def selected(self, since_ms: float = float("-inf"), until_ms: float = float("inf"), **names: str) -> list[Counted]:
        """Return the events that happened in [since, until) and have all these names."""
        in_time = [event for event in self.events if since_ms <= event.event_ms < until_ms]
        return [event for event in in_time if names.items() <= event.names.items()]

    def window(self, since_ms: int, **names: str) -> int:
        """Return the tokens of all four kinds that the log took since then."""
        events = [event for event in self.selected(**names) if event.log_ms >= since_ms]  # type: ignore[arg-type]
        return sum(sums(events)[:4])


def sums(events: list[Counted]) -> tuple[int, ...]:
    """Return the five sums of tokens, and the number of events."""
    return (*(sum(event.counts[kind] for event in events) for kind in range(5)), len(events))
