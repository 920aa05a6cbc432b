"""Links that lose, delay and swallow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tests.fault.cast import until
from tests.fault.scenario import Scale, Scenario

if TYPE_CHECKING:
    from tests.fault.link import Link
    from tests.fault.stage import Stage

SILENT_MS_MAX: Final = 20_000  # a reply is given up after 5 s, and a connection may have two of them to wait for


def _lost_replies(stage: Stage, scale: Scale) -> None:
    """Break connections after the server has done what it was asked, and before it could say so."""
    server = stage.serve()
    producers, actors = stage.link(server), stage.link(server)
    for number in (1, 2):
        stage.start_producer(number, url=producers.url, every_ms=1)
    stage.start_actor(url=actors.url)
    stage.await_serving(noted=False)
    producers.lost_replies, actors.lost_replies = 0.05, 0.01
    wanted, ends = scale.of(200, 5_000), time.monotonic() + scale.minutes * 60
    until(
        lambda: producers.replies_lost + actors.replies_lost >= wanted or time.monotonic() > ends,
        f"{wanted} lost replies",
        2 * scale.minutes * 60,
    )
    producers.lost_replies = actors.lost_replies = 0.0
    stage.faults += producers.replies_lost + actors.replies_lost


def _latency(stage: Stage, scale: Scale) -> None:
    """Let everything take 30 ms more each way, so that the actor works on what is long past, and kill it."""
    server = stage.serve()
    producers, actors = stage.link(server), stage.link(server)
    producers.latency_ms = actors.latency_ms = 30
    for number in (1, 2):
        stage.start_producer(number, url=producers.url)
    actor = stage.start_actor(url=actors.url)
    leader = stage.await_serving(noted=False)
    for _ in scale.turns(stage, 1, 50):
        stage.await_entries(20)
        actor.kill()
        killed = time.monotonic()
        actor = stage.start_actor(url=actors.url)
        leader = stage.await_serving(after=leader, since=killed)
        stage.faults += 1


def _silence(stage: Stage, scale: Scale, *, half_open: bool) -> None:
    """Cut the leader off without telling it; another one serves; then both can speak again."""
    server = stage.serve()
    first, second = stage.link(server), stage.link(server)
    stage.start_actor("one", url=first.url)
    leader = stage.await_serving(noted=False)
    stage.start_actor("two", url=second.url)
    for number in (1, 2):
        stage.start_producer(number)
    links = [first, second]
    for _ in scale.turns(stage, 3, 30):
        stage.await_entries(stage.random.randrange(10, 60))
        if half_open:
            links[0].half_open()
        else:
            links[0].black_hole()
        cut = time.monotonic()
        leader = stage.await_serving(after=leader, since=cut)
        stage.await_entries(20)
        links[0].heal()
        if half_open:
            links[0].cut()
        stage.faults += 1
        stage.await_entries(20)
        links.reverse()


def _black_hole(stage: Stage, scale: Scale) -> None:
    _silence(stage, scale, half_open=False)


def _half_open(stage: Stage, scale: Scale) -> None:
    _silence(stage, scale, half_open=True)


def _await_accepted_connection(link: Link) -> None:
    tried = link.accepted
    until(lambda: link.accepted > tried, "a producer that connects anew", SILENT_MS_MAX / 1000)


def _producers_cut_off(stage: Stage, scale: Scale) -> None:
    """Swallow what producers say for longer than they wait for a reply; they send again."""
    server = stage.serve()
    stage.start_actor()
    stage.await_serving(noted=False)
    link = stage.link(server)
    for number in (1, 2):
        stage.start_producer(number, url=link.url)
    for _ in scale.turns(stage, 1, 20):
        stage.await_entries(30)
        link.black_hole()
        _await_accepted_connection(link)
        link.heal()
        stage.faults += 1
        stage.await_accepted(1, 100)


SCENARIOS: Final = [
    Scenario(name="lost replies", injects="connections that break before the reply", play=_lost_replies),
    Scenario(name="latency", injects="30 ms each way, and kill -9 of the actor", play=_latency),
    Scenario(name="black hole", injects="a leader whose link swallows everything", play=_black_hole),
    Scenario(name="half-open", injects="a leader whose server closed a connection it believes in", play=_half_open),
    Scenario(name="producers cut off", injects="a link of producers that swallows everything", play=_producers_cut_off),
]
