"""What others wrote does nothing to the terminal at which somebody looks at it."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from ares_stream.cli.streams import Terminal
from ares_stream.cli.terminal import Console
from ares_stream.visible import visible

HOSTILE = "a\x1b[2Jb\x1b]0;title\x07c\x9b31m\u202etxt\u2066\x00\r\ud800[bold]d[/]"
ACTED_ON = ("\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\x00", "\r", "\ud800")


def seen_at_a_terminal(*arguments: str) -> str:
    """What `ares` writes when its output and its errors are a terminal."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "ares_stream", *arguments],
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "dumb"},
    ) as process:
        os.close(slave)
        parts = []
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:
                break
            if not part:
                break
            parts.append(part)
        process.wait()
    os.close(master)
    return b"".join(parts).decode().replace("\r\n", "\n")


@given(st.text())
def test_nothing_that_moves_or_hides_is_left_and_plain_text_stays(text: str) -> None:
    shown = visible(text)
    assert not [letter for letter in shown if unicodedata.category(letter) in ("Cc", "Cf", "Cs")
                and letter not in "\n\t"]  # fmt: skip
    assert visible(shown) == shown
    if text.isascii() and text.isprintable():
        assert shown == text


def test_a_terminal_is_written_what_people_see_and_our_own_red() -> None:
    written = io.StringIO()
    terminal = Terminal(written)
    terminal.write(f"\x1b[31mares: {HOSTILE}\x1b[0m\n")
    shown = written.getvalue()
    assert shown.startswith("\x1b[31mares: a⟨U+001B⟩[2Jb")
    assert shown.endswith("\x1b[0m\n")
    inner = shown.removeprefix("\x1b[31m").removesuffix("\x1b[0m\n")
    assert not [act for act in ACTED_ON if act in inner]


def test_a_table_shows_brackets_as_brackets_and_no_escape(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    Console(width=400).print(table)
    Console(width=400).print(HOSTILE)
    shown = capsys.readouterr().out
    assert shown.count("[bold]d[/]") == 4
    assert not [act for act in ACTED_ON if act in shown]


def test_a_command_at_a_terminal_writes_out_what_a_record_a_line_and_a_name_hide(
    tmp_path: Path,
) -> None:
    hostile = HOSTILE.replace("\x00", "").replace("\ud800", "")
    row = {
        "request": {"model": "m", "messages": [{"role": "user", "content": hostile}]},
        "response": {
            "id": hostile,
            "model": hostile,
            "created": 1,
            "choices": [{"message": {"role": "assistant", "content": hostile}}],
        },
    }
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    said = seen_at_a_terminal("map", "try", str(rows), "--map", "openai")
    assert "⟨U+001B⟩[2J" in said
    assert not [act for act in ACTED_ON if act in said]
    said = seen_at_a_terminal(
        "map", "try", str(tmp_path / "no\x1b[2J\u202efile"), "--map", "openai"
    )
    assert "⟨U+001B⟩[2J" in said
    ours = said.replace("\x1b[31m", "").replace("\x1b[0m", "")
    assert not [act for act in ACTED_ON if act in ours]
