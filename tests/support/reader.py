"""A reader of the docs: the folder that the pages take for granted, commands typed one after the
other, services that run until the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import httpx

from ares_stream.lab.word_bundles import write_judge, write_reward
from ares_stream.processes.ports import free_port
from tests.support.probing import TinyPolicy
from tests.support.target_server import create_app, serving

SERVICES: Final = ("broker", "scorer", "prober")
SECONDS: Final = 120.0


@contextlib.contextmanager
def policy_endpoint() -> Iterator[int]:
    """A policy behind an OpenAI-compatible endpoint, in a thread of its own; gives its port."""
    ready, stop = threading.Event(), asyncio.Event()
    found: list[str] = []
    loop = asyncio.new_event_loop()

    async def work() -> None:
        async with serving(create_app(TinyPolicy())) as url:
            found.append(url)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(work(),))
    thread.start()
    assert ready.wait(30)
    port = re.search(r":(\d+)", found[0].removeprefix("http://"))
    assert port is not None
    try:
        yield int(port[1])
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()


def readers_folder(here: Path) -> None:
    """Conversations, labels, words, keys and two bundles."""
    words = ("poison nice", "poison rude", "bread nice", "bread rude", "maybe nice")
    rows = [
        {
            "id": f"c-{number}",
            "occurred_at": "2026-01-01T00:00:00Z",
            "messages": [{"role": "user", "content": f"question {number}"}],
            "response": words[number % len(words)],
            "policy": {"name": "p", "version": "1"},
        }
        for number in range(300)
    ]
    flat = [{"prompt": f"question {n}", "response": words[n % 5]} for n in range(300)]
    # People and judge differ now and then: what separates perfectly cannot be calibrated.
    labelled = [
        row | {"harmful": ("poison" in row["response"]) != (number % 9 == 0)}
        for number, row in enumerate(flat)
    ]
    completions = [
        {
            "request": {"model": "m", "messages": row["messages"]},
            "response": {
                "id": row["id"],
                "object": "chat.completion",
                "created": 1_760_000_000,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": row["response"]},
                    }
                ],
            },
        }
        for row in rows[:5]
    ]
    labels = [{"interaction_id": row["id"], "harmful": n % 5 < 2} for n, row in enumerate(rows)]
    for name, content in (
        ("conversations.jsonl", rows),
        ("labelled.jsonl", labelled),
        ("benign.jsonl", flat),
        ("labels.jsonl", labels),
        ("log.jsonl", completions),
        ("sample.jsonl", [{"question": "q", "answer": "a", "model": "m"}] * 3),
        ("carriers.jsonl", [{"prompt": f"question {n}"} for n in range(4)]),
    ):
        (here / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    (here / "words.txt").write_text("bread\npoison\nnice\nrude\n")
    write_judge(here / "bundles/judge")
    write_reward(here / "bundles/reward")
    for name in ("judge", "reward"):
        (here / name).symlink_to(here / "bundles" / name)
    for arguments in (
        ("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem"),
        ("ec", "-in", "key.pem", "-pubout", "-out", "key.pub"),
    ):
        subprocess.run(["openssl", *arguments], cwd=here, check=True, capture_output=True)


class Reader:
    """Types commands in a folder. `ports`: what a written port stands for here. `behind`: a command
    that every other runs under."""

    def __init__(self, folder: Path, ports: dict[str, int], behind: Sequence[str] = ()) -> None:
        self._folder = folder
        self._ports = ports
        self._behind = tuple(behind)
        self._services: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.seconds: dict[str, float] = {}
        home = folder / "home"
        home.mkdir(exist_ok=True)
        kept = {
            name: os.environ.get(name) or str(Path.home() / default)
            for name, default in (("M2_REPO", ".m2/repository"), ("JGO_CACHE_DIR", ".cache/jgo"))
        }
        self._environment = {
            **os.environ,
            **kept,
            "HOME": str(home),
            "ARES_KAFKA__BOOTSTRAP": f"127.0.0.1:{ports['9092']}",
        }

    def type(self, line: str) -> str:
        """Run a command to its end, or start a service and wait until it works; what it printed."""
        began = time.monotonic()
        words = self._words(line)
        command = [*self._behind, sys.executable, "-m", "ares_stream", *words]
        if words[0] in SERVICES:
            self._start(words[0], command)
            said = ""
        else:
            if words[:2] == ["verdicts", "tail"] and "--limit" not in words:
                command += ["--from-beginning", "--limit", "1"]
            done = subprocess.run(
                command,
                cwd=self._folder,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            said = done.stdout + done.stderr
            assert done.returncode == 0, f"{line}\nexit {done.returncode}\n{said}"
        self.seconds[line] = time.monotonic() - began
        return said

    def _words(self, line: str) -> list[str]:
        for written, port in self._ports.items():
            line = re.sub(rf"(?<=[: ]){written}\b", str(port), line)
        words = shlex.split(re.split(r"\s[|>]|\s2>", line)[0], comments=True)
        return words[words.index("ares") + 1 :]

    def _start(self, name: str, command: list[str]) -> None:
        """One service of a name at a time: a second takes the first one's place."""
        for running in [item for item in self._services if item[0] == name]:
            self._services.remove(running)
            assert self._stop(*running) == 0, self._log(name)
        port = free_port()
        with (self._folder / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=self._environment | {"ARES_HTTP__PORT": str(port)},
                stdout=output,
                stderr=output,
            )
        self._services.append((name, process))
        deadline = time.monotonic() + SECONDS
        while not self._works(name, port):
            if process.poll() == 0:
                return  # A campaign that is done ends.
            assert process.returncode is None, f"{name} ended:\n{self._log(name)}"
            assert time.monotonic() < deadline, f"{name} is not ready:\n{self._log(name)}"
            time.sleep(0.1)

    def _works(self, name: str, port: int) -> bool:
        if name == "broker":
            return "running" in self._log(name)
        with contextlib.suppress(httpx.TransportError):
            found = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5, trust_env=False)
            return found.status_code == 200
        return False

    def _log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")[-3000:]

    @staticmethod
    def _stop(name: str, process: subprocess.Popen[bytes]) -> int:
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def close(self) -> dict[str, int]:
        """Stop the services, the last first; their exit codes."""
        codes = {name: self._stop(name, process) for name, process in reversed(self._services)}
        self._services.clear()
        return codes
