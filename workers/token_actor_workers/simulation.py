"""Simulation: a fleet of agents as it looks to a meter, from a seed and without a clock.

Every agent has a role, and works in sessions. A session's context grows with each call: what was said
so far is sent again, mostly read from the provider's prompt cache; the new part is uncached input, or
is written to the cache by providers that charge for that. When its task is done a session ends, and near
the end of the context window it is compacted or ends. Calls come in bursts, as when an agent uses tools.

Prices are list prices of 2025, in nano-USD per token; they illustrate, and nobody is charged by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from random import Random

NANO_PER_USD: Final = 10**9
CACHE_LIFE_CALLS: Final = 0.97  # share of the calls that come before the provider has forgotten the prefix
BURST_SHARE: Final = 0.08
BURST_CALLS: Final = (4, 12)
BURST_PAUSE: Final = 0.1  # of the usual pause
DONE_SHARE: Final = 0.03  # of the calls are the last of their task, and so of their session
FULL: Final = 0.8  # of the context window: time to compact, or to begin anew
COMPACTED: Final = 0.15
COMPACTING_SHARE: Final = 0.6  # of the sessions that are full are compacted, the others end


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Hold a model: prices per token in nano-USD (``None`` where nobody knows them), window, habits."""

    name: str
    provider: str
    window: int
    prices: tuple[int, int, int, int] | None  # input, output, cache read, cache write
    reasoning_share: float = 0.0
    writes_cache: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """Hold how agents of one kind work: typical new input and output per call, and their models."""

    name: str
    prompt_tokens: int  # system prompt and tools, the same in every session
    input_tokens: int
    output_tokens: int
    pause_s: float
    models: tuple[str, ...]


MODELS: Final = {
    model.name: model
    for model in (
        Model(
            name="claude-sonnet-4-5",
            provider="anthropic",
            window=200_000,
            prices=(3_000, 15_000, 300, 3_750),
            writes_cache=True,
        ),
        Model(
            name="claude-haiku-4-5",
            provider="anthropic",
            window=200_000,
            prices=(1_000, 5_000, 100, 1_250),
            writes_cache=True,
        ),
        Model(
            name="gpt-5",
            provider="openai",
            window=272_000,
            prices=(1_250, 10_000, 125, 0),
            reasoning_share=0.45,
        ),
        Model(
            name="gemini-2.5-flash",
            provider="google",
            window=1_000_000,
            prices=(300, 2_500, 30, 0),
            reasoning_share=0.2,
        ),
        Model(name="qwen3-coder-local", provider="vllm", window=128_000, prices=None),
    )
}

ROLES: Final = (
    Role(
        name="planner",
        prompt_tokens=6_000,
        input_tokens=900,
        output_tokens=1_400,
        pause_s=0.5,
        models=("gpt-5", "claude-sonnet-4-5"),
    ),
    Role(
        name="coder",
        prompt_tokens=14_000,
        input_tokens=2_600,
        output_tokens=900,
        pause_s=0.25,
        models=("claude-sonnet-4-5", "qwen3-coder-local"),
    ),
    Role(
        name="researcher",
        prompt_tokens=4_000,
        input_tokens=9_000,
        output_tokens=700,
        pause_s=0.4,
        models=("gemini-2.5-flash", "gpt-5"),
    ),
    Role(
        name="reviewer",
        prompt_tokens=9_000,
        input_tokens=4_500,
        output_tokens=350,
        pause_s=0.5,
        models=("claude-sonnet-4-5", "gpt-5"),
    ),
    Role(
        name="tester",
        prompt_tokens=3_000,
        input_tokens=1_800,
        output_tokens=250,
        pause_s=0.2,
        models=("claude-haiku-4-5", "qwen3-coder-local"),
    ),
)

PROJECTS: Final = ("checkout", "search", "mobile-app", "data-platform")
USERS: Final = ("ada", "grace", "linus", "margaret", "edsger", "barbara")


class Agent:
    """Be one agent of the fleet; ``next_call`` is what it uses next."""

    def __init__(self, number: int, random: Random) -> None:
        """Give the agent with this number its role, its project and its user."""
        self.role = ROLES[number % len(ROLES)]
        self.name = f"{self.role.name}-{number // len(ROLES) + 1}"
        self.sessions = 0
        self._random = random
        self._names = {"agent": self.name, "project": random.choice(PROJECTS), "user": random.choice(USERS)}
        self._burst = 0
        self._begin()

    def _begin(self) -> None:
        self.sessions += 1
        self._model = MODELS[self._random.choice(self.role.models)]
        self._session = f"{self.name}-{self.sessions}"
        self._context = self.role.prompt_tokens
        self._cached = 0

    def next_call(self) -> dict[str, Any]:
        """Return the keywords of ``record`` for the next call of this agent."""
        if self._random.random() < DONE_SHARE:
            self._begin()
        elif self._context > FULL * self._model.window:
            self._make_room()
        random, model = self._random, self._model
        new = self._around(self.role.input_tokens)
        output = self._around(self.role.output_tokens)
        cached = self._cached if random.random() < CACHE_LIFE_CALLS else 0
        uncached = self._context - cached + new
        written = uncached - min(uncached, new // 4) if model.writes_cache else 0
        self._context += new + output
        self._cached = self._context - output
        counts = {
            "input_tokens": uncached - written,
            "output_tokens": output,
            "cache_read_tokens": cached,
            "cache_write_tokens": written,
        }
        return {
            **self._names,
            **counts,
            "reasoning_tokens": int(output * model.reasoning_share * random.random() * 2) if output else 0,
            "session": self._session,
            "provider": model.provider,
            "model": model.name,
            "cost_usd": cost_usd(counts, model),
        }

    def _make_room(self) -> None:
        if self._random.random() < COMPACTING_SHARE:
            self._context = int(COMPACTED * self._model.window)
            self._cached = self.role.prompt_tokens
        else:
            self._begin()

    def _around(self, tokens: int) -> int:
        return max(1, int(self._random.lognormvariate(0, 0.6) * tokens))

    def next_pause_s(self) -> float:
        """Return how long this agent does something else before its next call."""
        if self._burst:
            self._burst -= 1
            return self.role.pause_s * BURST_PAUSE
        if self._random.random() < BURST_SHARE:
            self._burst = self._random.randint(*BURST_CALLS)
        return self.role.pause_s * self._random.expovariate(1.0)


def cost_usd(counts: dict[str, int], model: Model) -> str | None:
    """Return what a call costs as an exact decimal, ``None`` where nobody knows the price."""
    if model.prices is None:
        return None
    nano = sum(count * price for count, price in zip(counts.values(), model.prices, strict=True))
    return f"{nano // NANO_PER_USD}.{nano % NANO_PER_USD:09d}"
