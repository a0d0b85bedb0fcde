"""Logs: one JSON object a line, and never a conversation."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import typer.core

from ares_stream.cli.main import app
from ares_stream.errors import TopicError
from ares_stream.services import logs


@pytest.fixture(autouse=True)
def configuration_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


@pytest.fixture(autouse=True)
def nothing_is_left() -> None:
    """What other tests left behind would be told to the log whenever it is collected."""
    gc.collect()


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


def test_what_a_library_repeats_is_written_once_and_then_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure()
    now = [0.0]
    handler = logs.FromLibraries(30.0, lambda: now[0])
    library = logging.getLogger("aiokafka.client.folded")
    library.propagate = False
    library.addHandler(handler)
    for second in range(70):
        now[0] = float(second)
        for _ in range(10):
            library.error("Unable to connect to node %s", second)
    library.error("Another line of code has a count of its own")
    handler.close()
    said = [(line["event"].rpartition(" ")[2], line.get("repeated")) for line in lines(capsys)]
    assert said == [("0", None), ("30", 300), ("60", 300), ("own", None), ("69", 99)]
    library.removeHandler(handler)


def test_a_log_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stderr", full)
        logs.configure()
        for _ in range(3):
            logs.get("scorer").error("the disk behind standard error is full", number="x" * 400)
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


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


def test_of_records_that_cannot_be_read_the_first_and_each_thousandth_have_a_line() -> None:
    assert [count for count in range(1, 3_001) if logs.is_told(count)] == [
        *range(1, logs.TOLD + 1), 1_000, 2_000, 3_000,
    ]  # fmt: skip


def test_the_reason_of_an_end_is_the_last_line_behind_what_was_only_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: object, **__: object) -> None:
        logs.configure()
        for _number in range(3):
            logging.getLogger("aiokafka.cluster").error("Topic is not there")
        raise TopicError("missing")

    monkeypatch.setattr(typer.core.TyperGroup, "main", ends)
    with pytest.raises(SystemExit) as ended:
        app()
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert '"repeated": 2' in said[1]
    assert said[2] == "ares: missing"
