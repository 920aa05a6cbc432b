"""Children begin, speak, and end with whoever started them."""

from __future__ import annotations

import os
import signal

import pytest

from token_actor.cli.processes import Children, interruptible
from token_actor.cli.workers import Crew
from token_actor.errors import TokenActorError

ECHO = """
import sys
print('{"ready": {"lines": 1}}', flush=True)
for line in sys.stdin:
    print('{"sent": {"pending": 0}}', flush=True)
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Make modules that children can run."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    def make(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return make


def nothing() -> None:
    """Have nothing to check."""


def test_a_crew_begins_together_and_says_what_it_sent(modules):
    with Children() as children:
        crew = Crew(children, modules("echo", ECHO), [[], []])
        assert crew.until_ready(nothing) == [{"lines": 1}] * 2
        crew.begin({"go": True})
        assert crew.until_done(nothing, deadline=float("inf")) == [{"pending": 0}] * 2
        pids = [member.pid for member in crew.members]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_that_fails_is_named_with_what_it_said_last(modules):
    failing = modules("failing", "import sys; print('first', file=sys.stderr); sys.exit('token-actor: no room')")
    with Children() as children, pytest.raises(TokenActorError, match="worker 0 ended with status 1: no room"):
        Crew(children, failing, [[]]).until_ready(nothing)


def test_a_worker_that_is_killed_is_named_with_the_signal(modules):
    with Children() as children:
        crew = Crew(children, modules("echo", ECHO), [[]])
        crew.until_ready(nothing)
        os.kill(crew.members[0].pid, signal.SIGKILL)
        with pytest.raises(TokenActorError, match="worker 0 was ended by SIGKILL"):
            crew.until_done(nothing, deadline=float("inf"))
        crew.begin({"go": True})  # to one that has ended: nobody hears it


def test_a_crew_that_is_too_slow_is_given_up(modules):
    waiting = modules("waiting", "import sys; sys.stdin.read()")
    with Children() as children:
        crew = Crew(children, waiting, [[]])
        with pytest.raises(TokenActorError, match="not ready within 0 s"):
            crew.until_ready(nothing, timeout_s=0)
        with pytest.raises(TokenActorError, match="worker 0 did not get done in time"):
            crew.until_done(nothing, deadline=0)
        assert crew.members[0].end_text() == "worker 0 is running"


def test_a_child_that_does_not_end_in_time_is_killed(modules, monkeypatch):
    monkeypatch.setattr("token_actor.cli.processes.STOP_TIMEOUT_S", 0.1)
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('{}', flush=True)\ntime.sleep(60)"
    with Children() as children:
        child = children.start("deaf", modules("deaf", deaf), [])
        assert children.next_line(30) == (child, "{}\n")
    assert child.code == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_what_is_interruptible(number):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TokenActorError, match="interrupted"), interruptible():
        signal.raise_signal(number)
    assert signal.getsignal(signal.SIGTERM) is before
