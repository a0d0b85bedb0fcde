"""Logs: one JSON object a line, and never a conversation."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from ares_stream.services import logs


@pytest.fixture(autouse=True)
def configuration_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_line_is_one_json_object_with_service_event_level_and_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure()
    logs.get("scorer").info("ready", port=9464)
    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"service": "scorer", "event": "ready", "level": "info", "port": 9464}


def test_a_text_with_line_breaks_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logs.get("scorer").error("refused", error='one\ntwo\n{"event": "forged"}')
    (line,) = lines(capsys)
    assert line["event"] == "refused"


def test_a_string_as_long_as_a_conversation_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logs.get("scorer").error("refused", error="a" * 600 + "secret")
    (line,) = lines(capsys)
    assert line["error"] == "a" * 512 + "… (606 characters)"


def test_what_is_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(level="warning")
    logs.get("scorer").info("ready")
    logs.get("scorer").warning("waiting")
    assert [line["event"] for line in lines(capsys)] == ["waiting"]


def test_libraries_log_in_the_same_form_from_warning_up_without_tracebacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure()
    library = logging.getLogger("aiokafka.consumer")
    library.info("Joined group")
    try:
        raise ValueError("a word of a conversation")
    except ValueError:
        library.exception("Heartbeat failed: %s", "b" * 600)
    (line,) = lines(capsys)
    assert line["library"] == "aiokafka.consumer"
    assert line["level"] == "error"
    assert line["error"] == "ValueError"
    assert line["event"].startswith("Heartbeat failed: bbb")
    assert len(line["event"]) < 600
    assert "conversation" not in json.dumps(line)
