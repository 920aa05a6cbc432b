"""The checks of `make check` find what they are there to find."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import check_sizes, check_texts


def function_of(lines: int) -> str:
    return "def long():\n" + "    x = 1\n" * (lines - 1)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_function_may_have_sixty_lines_and_no_more(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(function_of(60))
    assert list(check_sizes.offenders(path)) == []
    path.write_text(function_of(61))
    assert list(check_sizes.offenders(path)) == [f"{path}:1: long: 61 lines; a function has at most 60"]


def test_a_module_may_have_350_lines_and_no_more(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("\n" * 350)
    assert check_sizes.main([str(tmp_path)]) == 0
    path.write_text("\n" * 351)
    assert check_sizes.main([str(tmp_path)]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "see https://" + "pypi" + ".org/project/x",
        "--extra-index" + "-url https://example.test",
        "--index" + "-url https://example.test",
        "cd /" + "work/main",
        "open('/" + "root/.netrc')",
        "file:///" + "root/x",
    ],
)
def test_a_text_that_names_an_index_or_a_machine_is_found(checkout, text):
    (checkout / "notes.md").write_text(f"fine\n{text}\n")
    assert [line.split(" names ")[0] for line in check_texts.offenders(Path("notes.md"))] == ["notes.md:2:"]
    assert check_texts.main() == 1


@pytest.mark.parametrize("text", ["docs/work/plan.md", "the network/", "PyPI", "https://example.test/work/a"])
def test_a_text_that_only_looks_similar_is_fine(checkout, text):
    (checkout / "notes.md").write_text(text)
    assert check_texts.main() == 0


def test_files_that_git_ignores_are_not_read(checkout):
    (checkout / ".gitignore").write_text("made/\n")
    (checkout / "made").mkdir()
    (checkout / "made" / "notes.md").write_text("/" + "work/main")
    assert check_texts.main() == 0
