"""The documents say what is so: examples run, and every command, setting, key and reason occurs in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from token_actor import TokenClient
from token_actor.client.settings import ClientSettings
from token_actor.core.commands import COMMANDS
from token_actor.core.queries import QUESTIONS
from token_actor.service import ENVIRONMENT
from token_actor.wire.events import EVENT_FIELDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
WIRE = (ROOT / "docs/wire.md").read_text()
LIMITS = (ROOT / "docs/limits.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()


class Used(NamedTuple):
    input_tokens: int
    output_tokens: int


def blocks(text):
    """Return the examples in Python."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_python_of_the_readme_runs_and_prints_what_it_says(capsys):
    block, _ = blocks(README)
    exec(compile(block, "README.md", "exec"), {})
    expected = re.findall(r"# (\d+|True|\(False, [\d.]+\))$", block, re.MULTILINE)
    assert capsys.readouterr().out.split("\n")[:-1] == expected


def test_its_reservation_counts_what_the_call_used():
    _, block = blocks(README)
    with TokenClient("memory://readme") as client:
        exec(compile(block, "README.md", "exec"), {"client": client, "call_the_model": lambda: Used(70, 7)})
        assert client.analytics()["total_tokens"] == 77


def test_the_reservation_of_the_page_on_limits_is_refused_as_it_says(capsys):
    (block,) = blocks(LIMITS.split("## Reserve, wait, settle\n")[1].split("\n## ")[0])
    exec(compile(block, "limits.md", "exec"), {})
    name, remaining, retry_after_s = capsys.readouterr().out.rsplit(maxsplit=2)
    assert (name, remaining) == ("each agent", "7100")
    assert 55 < float(retry_after_s) <= 61


@pytest.mark.parametrize("document", sorted(path.relative_to(ROOT) for path in ROOT.glob("docs/**/*.md")))
def test_every_link_of_a_document_leads_somewhere(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), target


def test_every_link_of_the_readme_leads_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert ROOT.joinpath(target).exists(), target


@pytest.mark.parametrize("name", sorted(EVENT_FIELDS))
def test_every_field_of_an_event_is_in_the_wire_contract(name):
    assert f"`{name}`" in WIRE


@pytest.mark.parametrize("kind", [*QUESTIONS, *COMMANDS])
def test_every_question_and_command_is_in_the_wire_contract(kind):
    assert f"`{kind}`" in WIRE


@pytest.mark.parametrize("setting", sorted(set(ClientSettings.__dataclass_fields__) - {"names"}))
def test_every_setting_of_a_client_is_in_the_operations_guide(setting):
    assert f"`{setting}`" in OPERATIONS


@pytest.mark.parametrize("variable", ENVIRONMENT)
def test_every_environment_variable_is_in_the_operations_guide(variable):
    assert f"`{variable}`" in OPERATIONS


CODE = "".join(
    path.read_text() for part in ("actor", "client", "cli") for path in (ROOT / "token_actor" / part).glob("*.py")
)


@pytest.mark.parametrize(
    "action", sorted(set(re.findall(r'(?:"action": |action = |else |warn\()"([a-z]+_\w+)"', CODE)))
)
def test_every_action_of_a_line_of_the_log_is_in_the_operations_guide(action):
    assert f"`{action}`" in OPERATIONS


def test_the_architecture_can_be_read_in_one_sitting():
    assert len((ROOT / "docs/ARCHITECTURE.md").read_text().splitlines()) <= 150


def test_every_module_of_the_package_is_in_the_code_map_by_its_layer():
    architecture = (ROOT / "docs/ARCHITECTURE.md").read_text()
    for path in (ROOT / "token_actor").iterdir():
        if path.name.startswith("__") or path.suffix not in {"", ".py"}:
            continue
        assert f"`{path.name}{'/' if path.is_dir() else ''}`" in architecture, path.name
