"""Answers read well: numbers, money and times for people, one line for a failure, a file whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from token_actor.cli.export import replace_file
from token_actor.cli.output import complain, cost, duration, number, print_json, survive_any_name
from token_actor.client.report import usd_text
from token_actor.errors import ServerUnavailable, SetupError


def test_numbers_have_separators_and_none_is_a_dash():
    assert (number(18_059_974), number(0), number(None)) == ("18,059,974", "0", "-")


@pytest.mark.parametrize(
    ("nanousd", "text"),
    [
        (0, "$0.00"),
        (1_000, "$0.0000010"),
        (1, "$0.000000001"),
        (123_400_000, "$0.1234"),
        (1_234_567_890_000, "$1,234.57"),
    ],
)
def test_small_amounts_have_more_places(nanousd, text):
    assert usd_text(nanousd) == text


@pytest.mark.parametrize(
    ("sums", "text"),
    [
        ({"requests": 2, "unpriced": 2, "cost_nanousd": 0}, "unpriced"),
        ({"requests": 2, "unpriced": 1, "cost_nanousd": 2 * 10**9}, "$2.00 + ?"),
        ({"requests": 2, "unpriced": 0, "cost_nanousd": 0}, "$0.00"),
        ({"requests": 0, "unpriced": 0, "cost_nanousd": 0}, "$0.00"),
    ],
)
def test_what_has_no_price_is_never_shown_as_free(sums, text):
    assert cost(sums) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59, "59 s"), (-3_700, "1 h 1 min"), (400 * 86_400, "1 y 35 d"), (86_400, "1 d")],
)
def test_a_duration_has_its_two_largest_units(seconds, text):
    assert duration(seconds) == text


def test_a_failure_is_one_line_that_says_what_to_do(capsys):
    complain(ServerUnavailable("redis://here:1/0 cannot be\nused"))
    printed, said = capsys.readouterr()
    assert printed == ""
    assert said.count("\n") == 1
    assert said.startswith("token-actor: redis://here:1/0 cannot be used; check that the server runs, ")


def test_of_a_long_failure_the_beginning_and_the_end_are_told(capsys):
    complain(SetupError("the server ended; it said:\n" + "noise\n" * 20 + "port in use\naborting"))
    said = capsys.readouterr().err
    assert said == "token-actor: the server ended; it said: ... port in use aborting\n"


def test_json_is_plain_ascii(capsys):
    print_json({"model": "é"})
    assert capsys.readouterr().out == '{\n  "model": "\\u00e9"\n}\n'


def test_streams_that_are_no_files_are_left_alone(capsys):
    survive_any_name()


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path):
    path = tmp_path / "usage.json"
    path.write_text("old")
    path.chmod(0o640)
    replace_file(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_file_has_the_mode_that_everything_gets(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    replace_file(tmp_path / "usage.json", "new")
    assert (tmp_path / "usage.json").stat().st_mode == plain.stat().st_mode


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    replace_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    replace_file(tmp_path / "pipe", "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_nothing_is_left_behind_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "usage.json"
    path.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
