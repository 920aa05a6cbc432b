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


LESSEE = """
import os, sys, threading
from token_actor import ActorUnavailable, RateLimited, TokenClient
client = TokenClient(sys.argv[1], agent=sys.argv[2], timeout_s=20.0)
lease = client.lease(ttl_s=0.3, held_s=2.0)
print("ready", flush=True)
sys.stdin.readline()
while True:
    try:
        call = lease.reserve(7)
    except RateLimited:
        break
    os.write(1, b"7\\n")  # granted
    threading.Event().wait(0.001)
    call.settle(7)
    os.write(1, b"s\\n")  # settled
client.flush()
if sys.argv[2] == "a0":
    threading.Event().wait()  # to be killed
client.close()
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

    def start(self, script, *arguments):
        """Start a process that is told things, and tells."""
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.stack.callback(self.end, process)
        return process

    def callers(self):
        """Start the callers; each has been granted something by the actor when this returns."""
        spool = str(self.folder / "spool")
        terms = (spool, str(OUTAGE_S), str(TIMEOUT_S))
        callers = [self.start(CALLER, self.url, f"a{number}", *terms) for number in range(CLIENTS)]
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
        assert limit["top"][0]["reserved"] == 0  # what the log took of it was carried out late, and given back


def test_leases_grant_no_more_than_the_limit_when_clients_and_the_leader_are_killed(tmp_path):
    with ExitStack() as stack:
        world = World(tmp_path, stack)
        client = stack.enter_context(TokenClient(world.url, timeout_s=30))
        client.put_limit(Limit("l", 35_000, seconds=3_600))
        world.start_actor()
        lessees = [world.start(LESSEE, world.url, f"a{number}") for number in range(CLIENTS)]
        for lessee in lessees:
            assert lessee.stdout.readline() == "ready\n"
        tell(lessees)
        begun = ["".join(lessee.stdout.readline() for _ in range(100)) for lessee in lessees]
        world.fail("actor")
        ends = [lessee.stdout.readline() for lessee in lessees]  # they go on, with what they hold and with another
        lessees[0].send_signal(signal.SIGKILL)
        said = [b + e + lessee.stdout.read() for b, e, lessee in zip(begun, ends, lessees, strict=True)]
        assert [lessee.wait() for lessee in lessees] == [-signal.SIGKILL, 0, 0]

        granted = 7 * sum(each.count("7") for each in said)
        assert 7 * 150 <= granted <= 35_000

        def at_rest():
            client.record()  # moves the time of the log
            (limit,) = client.limits()
            return limit["top"][0]["reserved"] == 0

        wait_until(at_rest)
        (limit,) = client.limits()
        assert granted <= limit["top"][0]["used"] <= 35_000
        groups = {group["agent"]: group["requests"] for group in client.analytics(group_by=["agent"])["groups"]}
        assert [groups["a1"], groups["a2"]] == [said[1].count("s"), said[2].count("s")]
        assert groups["a0"] <= said[0].count("7")
