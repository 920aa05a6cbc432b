"""Real clients while a real actor, or the whole server, is gone: what they grant, and that all of it is counted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from tests.client.harness import ROOT, wait_until
from token_actor import Limit, TokenClient
from token_actor.embedded import EmbeddedServer

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

CLIENTS = 3
TOKENS = 7
AMOUNT = 10_000
SHARE = 100  # a hundredth of it
OUTAGE_S = 3
TIMEOUT_S = 0.5
CALLER = """
import json, sys, time
from token_actor import ActorUnavailable, RateLimited, TokenClient
url, agent, spool = sys.argv[1:4]
OUTAGE_S, TIMEOUT_S = map(float, sys.argv[4:])
client = TokenClient(url, agent=agent, spool_dir=spool, timeout_s=TIMEOUT_S)
client.reserve(7, timeout_s=30).settle(7, timeout_s=30)
print("ready", flush=True)
sys.stdin.readline()
told = {"granted": 0, "as_ever": 0, "refused": 0, "away": 0}
end = time.monotonic() + OUTAGE_S
while time.monotonic() < end:
    try:
        call = client.reserve(7)
    except RateLimited as refused:
        told["refused" if refused.degraded else "as_ever"] += 1
        time.sleep(0.01)
    except ActorUnavailable:
        told["away"] += 1
    else:
        told["granted" if call.degraded else "as_ever"] += 7
        call.settle(7)
        time.sleep(0.01)
time.sleep(0.2)  # until it is on the disk
print(json.dumps(told), flush=True)
sys.stdin.readline()
"""


class World:
    """A server with its data, an actor process, and callers with spools."""

    def __init__(self, folder, stack):
        self.folder = folder
        self.stack = stack
        self.server = stack.enter_context(EmbeddedServer(folder / "data"))
        self.url, self.port = self.server.url, self.server.port
        self.actor = self.start_actor()

    def start_actor(self):
        actor = subprocess.Popen(
            [sys.executable, "-m", "token_actor", "serve", "--redis", self.url],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.stack.callback(self.end, actor)
        return actor

    @staticmethod
    def end(process):
        process.kill()
        process.communicate()

    def callers(self):
        """Start the callers; each has been granted something by the actor when this returns."""
        spool = str(self.folder / "spool")
        callers = []
        for number in range(CLIENTS):
            callers.append(
                subprocess.Popen(
                    [sys.executable, "-c", CALLER, self.url, f"a{number}", spool, str(OUTAGE_S), str(TIMEOUT_S)],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            self.stack.callback(self.end, callers[-1])
        for caller in callers:
            assert caller.stdout.readline() == "ready\n"
        return callers

    def fail(self, what):
        self.actor.kill()
        self.actor.wait()
        if what == "server":
            self.server.stop()

    def mend(self, what):
        if what == "server":
            self.server = self.stack.enter_context(EmbeddedServer(self.folder / "data", port=self.port))
        self.actor = self.start_actor()


def tell(callers):
    for caller in callers:
        caller.stdin.write("go\n")
        caller.stdin.flush()


@pytest.mark.parametrize("what", ["actor", "server"])
@pytest.mark.parametrize("rule", ["closed", "open", "safe"])
def test_an_outage_grants_what_the_limit_says_and_all_of_it_is_counted(tmp_path, rule, what):
    with ExitStack() as stack:
        world = World(tmp_path, stack)
        with TokenClient(world.url, timeout_s=30) as client:
            client.put_limit(Limit("l", AMOUNT, seconds=3_600, on_outage=rule))
            callers = world.callers()
        world.fail(what)
        tell(callers)
        told = [json.loads(caller.stdout.readline()) for caller in callers]
        for caller in callers:
            caller.send_signal(signal.SIGKILL)
            caller.wait()

        granted = [each["granted"] for each in told]
        assert [each["as_ever"] for each in told] == [0] * CLIENTS
        if rule == "closed":
            assert granted == [0] * CLIENTS
            assert all(each["away"] for each in told)
        elif rule == "safe":
            assert granted == [SHARE // TOKENS * TOKENS] * CLIENTS  # the bound of the fleet: CLIENTS times SHARE
            assert all(each["refused"] for each in told)
        else:
            assert all(each > SHARE for each in granted)

        world.mend(what)
        after = stack.enter_context(TokenClient(world.url, spool_dir=str(tmp_path / "spool"), timeout_s=30))
        expected = CLIENTS * TOKENS + sum(granted)
        wait_until(lambda: after.analytics()["total_tokens"] >= expected)
        analytics = after.analytics()
        assert (analytics["total_tokens"], analytics["requests"]) == (expected, expected // TOKENS)
        (limit,) = after.limits()
        assert limit["top"][0]["used"] == expected
        asked = int(OUTAGE_S / TIMEOUT_S) * CLIENTS if what == "actor" else 0
        assert limit["top"][0]["reserved"] <= asked * TOKENS  # they are in the log, were carried out late, and expire
