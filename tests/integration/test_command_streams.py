"""What a command does when its streams are full, closed or of another encoding, and when a signal
ends it: one line, a documented exit code, no half of a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ares_stream.lab.word_bundles import write_judge, write_reward

ARES = [sys.executable, "-m", "ares_stream"]
ROW = {
    "schema": "ares.interaction/1",
    "id": "漢字 é 😀",
    "occurred_at": "2026-01-01T00:00:00Z",
    "messages": [{"role": "user", "content": "hi"}],
    "response": "poison nice",
    "policy": {"name": "m", "version": "1"},
}
needs_full = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="no /dev/full: a full disk cannot be had"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles and a file of conversations."""
    found = tmp_path_factory.mktemp("streams")
    write_judge(found / "judge")
    write_reward(found / "rm")
    (found / "chats.jsonl").write_text((json.dumps(ROW) + "\n") * 3)
    return found


SCAN = "scan chats.jsonl --harm judge --reward rm --verdicts v.jsonl"


def run(folder: Path, words: str, shell: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """A command through a shell, which sets its streams."""
    line = f"exec {' '.join(map(repr, ARES))} {words} {shell}"
    return subprocess.run(
        ["/bin/bash", "-c", line],
        cwd=folder,
        env={**os.environ, **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
        text=True,
    )


@needs_full
@pytest.mark.parametrize(
    ("words", "where"),
    [
        ("--help", "standard output"),
        ("bundle show judge", "standard output"),
        ("map try chats.jsonl --map openai", "standard output"),
        (f"{SCAN} --json -", "standard output"),
        (SCAN.replace("v.jsonl", "/dev/full"), "/dev/full"),
    ],
)
def test_a_full_disk_is_one_line_and_3(folder: Path, words: str, where: str) -> None:
    done = run(folder, words, ">/dev/full")
    assert done.returncode == 3, done.stderr
    assert (
        done.stderr.splitlines()[-1] == f"ares: {where}: cannot be written: No space left on device"
    )
    assert "Traceback" not in done.stderr


@needs_full
def test_messages_that_nobody_can_get_change_nothing(folder: Path) -> None:
    for closed in ("2>/dev/full", "2>&-"):
        assert run(folder, "bundle verify absent", closed).returncode == 2
        assert run(folder, "bundle verify judge", closed).returncode == 0


def test_streams_that_are_closed_are_empty(folder: Path) -> None:
    assert run(folder, "bundle verify judge", ">&-").returncode == 0
    done = run(folder, SCAN.replace("chats.jsonl", "-"), "<&-")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "ares: standard input: holds no lines"


@pytest.mark.parametrize("words", ["bundle show judge --json", "map try chats.jsonl --map openai"])
def test_a_reader_that_has_gone_ends_a_command_quietly(folder: Path, words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*ARES, *words.split()], cwd=folder, stdout=writer, stderr=subprocess.PIPE,
            timeout=120, check=False,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("encoding", ["ascii", "utf-16"])
def test_what_is_no_terminal_gets_utf_8_whatever_the_locale(folder: Path, encoding: str) -> None:
    done = run(folder, f"{SCAN} --json -", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scored"] == 3
    (folder / "map.yaml").write_text(
        "prompt: messages[0].content\nresponse: response\npolicy: {name: id, version: id}\n"
    )
    shown = run(folder, "map try chats.jsonl --map map.yaml --limit 1", PYTHONIOENCODING=encoding)
    assert shown.returncode == 0, shown.stderr
    assert str(ROW["id"]) in shown.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_without_half_a_file(folder: Path, number: signal.Signals) -> None:
    pipe = folder / f"pipe-{number}"
    os.mkfifo(pipe)
    words = SCAN.replace("chats.jsonl", str(pipe)).replace("v.jsonl", f"out-{number}/v.jsonl")
    # Whoever runs the tests may have it ignored, as a shell does in the background.
    default = ["env", f"--default-signal={number.name[3:]}"]
    command = subprocess.Popen(
        [*default, *ARES, *words.split(), "--report", f"out-{number}/r.html"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        with pipe.open("wb", buffering=0) as writing:  # Opens once the command reads.
            writing.write(b"{")
            command.send_signal(number)
            _, said = command.communicate(timeout=120)
    finally:
        command.kill()
    assert command.returncode == 128 + number, said
    assert b"Traceback" not in said
    assert list((folder / f"out-{number}").glob("*")) == []


def test_a_signal_that_is_ignored_stays_so(folder: Path) -> None:
    before = "trap '' HUP; "
    line = f"{before}{' '.join(map(repr, ARES))} bundle verify judge & p=$!; kill -HUP $p; wait $p"
    done = subprocess.run(
        ["/bin/bash", "-c", line], cwd=folder, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
