"""Logs are one line per event, for people or for programs."""

from __future__ import annotations

import json
import logging

import pytest

from token_actor.cli.logs import PACKAGE, HumanLines, JsonLines, start_logging


def record(level=logging.INFO, message="Snapshot taken", exc_info=None, **extra):
    made = logging.makeLogRecord({"name": "token_actor.x", "levelno": level, "levelname": logging.getLevelName(level)})
    made.msg, made.created, made.msecs, made.exc_info = message, 1_700_000_000.25, 250.0, exc_info
    vars(made).update(extra)
    return made


@pytest.fixture
def failure():
    try:
        int("gone")
    except ValueError as error:
        return type(error), error, error.__traceback__


def test_for_people_a_line_has_the_time_the_message_and_the_fields():
    line = HumanLines().format(record(action="snapshot", offset="1-1", problem="two\nlines"))
    assert line[2] == ":"
    assert line[8:] == ".250  Snapshot taken  offset=1-1  problem=two lines"


def test_warnings_are_coloured_on_a_terminal():
    assert HumanLines(colour=True).format(record(logging.WARNING)).startswith("\x1b[33m")
    assert "\x1b" not in HumanLines(colour=True).format(record())


def test_for_programs_a_line_is_an_object_with_an_action():
    assert json.loads(JsonLines().format(record(action="snapshot", offset="1-1"))) == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "info",
        "message": "Snapshot taken",
        "action": "snapshot",
        "offset": "1-1",
    }


def test_a_traceback_is_kept(failure):
    assert "ValueError: invalid literal" in HumanLines().format(record(exc_info=failure))
    assert "ValueError: invalid literal" in json.loads(JsonLines().format(record(exc_info=failure)))["exception"]


@pytest.mark.parametrize(("as_json", "formatter"), [(False, HumanLines), (True, JsonLines)])
def test_the_logs_of_the_package_go_to_stderr(capsys, as_json, formatter):
    logger = logging.getLogger(PACKAGE)
    before = (logger.handlers, logger.level, logger.propagate)
    try:
        start_logging(as_json=as_json)
        logging.getLogger("token_actor.actor.loop").info("Leading", extra={"action": "leading"})
        assert isinstance(logger.handlers[0].formatter, formatter)
    finally:
        logger.handlers, logger.level, logger.propagate = before
    assert "Leading" in capsys.readouterr().err
