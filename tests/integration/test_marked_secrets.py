"""Secrets of every kind are set to a marker, and all that every command and service says and serves
is searched for it: also where a server answers with what it was sent."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import typer.main
import yaml
from typer.core import TyperGroup
from typer.testing import CliRunner

from ares_stream.audit.notes import NoteSigner
from ares_stream.cli.examples import EXAMPLES
from ares_stream.cli.main import app
from ares_stream.lab.word_bundles import write_judge, write_reward
from ares_stream.records.topics import specs
from ares_stream.services import logs
from ares_stream.services.repairer import Repairer
from ares_stream.services.scorer import Scorer
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import OutboundRecord
from tests.integration.test_tracing import conversations
from tests.support.probing import campaign_file
from tests.support.served import Served, repairer_settings

MARK: Final = "plugh"
SECONDS: Final = 150.0
WITHOUT: Final = {"demo", "broker", "schemas", "bench"}
"""Commands that read no settings; their help is searched all the same."""


def secret(folder: Path, kind: str) -> str:
    """The path of a file with a secret of that kind."""
    file = folder / f"{kind}.secret"
    file.write_text(f'{MARK}-{kind}-"7\n' if kind == "password" else f"{MARK}-{kind}-7\n")
    return str(file)


def settings_of(folder: Path, bootstrap: str, url: str) -> dict[str, Any]:
    """Every secret that settings may name. `url` ends without a path."""
    judge, reward = write_judge(folder / "judge"), write_reward(folder / "reward")
    (folder / "principles.txt").write_text("Be kind.")
    (folder / "notary.pem").write_bytes(NoteSigner.generate("ares-stream").pem())
    (folder / "tokens.json").write_text(json.dumps({"ada": "0" * 64}))
    return {
        "kafka": {"bootstrap": bootstrap},
        "patience_seconds": 0.3,
        "http": {"port": 0},
        "tracing": {
            "endpoint": f"{url}/v1/traces?key={MARK}-of-query",
            "token_file": secret(folder, "trace"),
            "batch_seconds": 0.1,
        },
        "scorer": {
            "harm": [str(judge.path)],
            "reward": str(reward.path),
            "threads": 1,
            "constitution": {
                "url": f"{url}/v1",
                "model": "judge",
                "file": str(folder / "principles.txt"),
                "api_key_file": secret(folder, "constitution"),
                "seconds": 2.0,
            },
        },
        "registry": {
            "root": str(folder / "registry"),
            "max_lora_rank": 64,
            "policy_server": {
                "kind": "webhook",
                "url": f"{url}/hook?key={MARK}-of-query",
                "token_file": secret(folder, "policy"),
                "seconds": 2.0,
            },
        },
        "console": {
            "port": 0,
            "session_key_file": secret(folder, "session"),
            "identity": {"tokens": str(folder / "tokens.json")},
        },
        "notary": {"keys": [str(folder / "notary.pem")]},
    }


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(command, TyperGroup):
        context = command.make_context("ares", [], resilient_parsing=True)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from leaves(child, (*path, name))
    else:
        yield path, command


COMMANDS: Final = dict(leaves(typer.main.get_command(app)))


def words_for(path: tuple[str, ...], folder: Path) -> list[str]:
    """The words of the command's example; files that it names are there."""
    words = shlex.split(EXAMPLES[" ".join(path)])[1:]
    if "--settings" in words:
        place = words.index("--settings")
        del words[place : place + 2]
    for word in words:
        if word.endswith((".jsonl", ".json", ".yaml", ".pem", ".pub")):
            (folder / word).parent.mkdir(parents=True, exist_ok=True)
            (folder / word).write_text("{}\n")
    return words


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_command_shows_a_secret_where_kafka_is_away(
    path: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARES_KAFKA__PASSWORD_FILE", secret(tmp_path, "password"))
    monkeypatch.setenv("ARES_KAFKA__PROTOCOL", "SASL_PLAINTEXT")
    monkeypatch.setenv("ARES_KAFKA__MECHANISM", "PLAIN")
    monkeypatch.setenv("ARES_KAFKA__USERNAME", "ares")
    command = COMMANDS[path]
    said = CliRunner().invoke(app, [*path, "--help"])
    assert said.exit_code == 0
    assert MARK not in said.output
    options = {name for item in command.params for name in item.opts}
    if path[0] in WITHOUT or not options & {"--settings", "--bootstrap"}:
        return
    # Nothing listens on the discard port.
    settings = settings_of(tmp_path, "127.0.0.1:9", f"http://user:{MARK}-of-url@127.0.0.1:9")
    file = tmp_path / "ares.yaml"
    file.write_text(yaml.safe_dump(settings))
    words = words_for(path, tmp_path)
    if "--settings" in options:
        words += ["--settings", str(file)]
    elif "--bootstrap" not in words:
        words += ["--bootstrap", "127.0.0.1:9"]
    try:
        said = CliRunner().invoke(app, words)
    finally:
        logging.basicConfig(force=True)
    pem = (tmp_path / "notary.pem").read_text().splitlines()[1]
    for text in (said.output, repr(said.exception)):
        assert MARK not in text, text
        assert pem not in text, text
    assert said.exit_code in (0, 1, 2, 3), said.exception


class Echo:
    """A server that refuses everything, and says what it was sent. `status`: its answer."""

    def __init__(self, status: int) -> None:
        self.seen: list[str] = []
        echo = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"] or 0))
                sent = f"{self.path} {self.headers['authorization']}"
                echo.seen.append(sent)
                body = json.dumps({"message": sent, "error": {"message": sent, "code": sent}})
                self.send_response(status, "no")
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(body.encode())
                assert raw is not None

            do_GET = answer  # noqa: N815
            do_POST = answer  # noqa: N815

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Echo:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def saw(self, *kinds: str) -> bool:
        """Whether secrets of all these kinds came here."""
        return all(any(f"{MARK}-{kind}" in sent for sent in self.seen) for kind in kinds)


def doubtful(prefix: str) -> list[OutboundRecord]:
    """Conversations that lead to a repair, and doubtful ones for the constitution."""
    made = []
    for number, record in enumerate(conversations(prefix)):
        value = json.loads(record.value or b"")
        if number % 4 == 3:
            value["response"] = "maybe nice"
        made.append(OutboundRecord(record.topic, record.key, json.dumps(value).encode()))
    return made


@pytest.mark.kafka
@pytest.mark.timeout(200)
async def test_no_service_shows_a_secret_that_a_server_says_back(
    kafka: str, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(level="debug")
    connection = KafkaConnection(bootstrap=kafka)
    await create_topics(connection, specs(prefix, partitions=1, replication=1))
    with Echo(400) as echo, Echo(401) as guarded:
        base = settings_of(tmp_path, kafka, echo.url) | {
            "topic_prefix": prefix,
            "patience_seconds": 60.0,
        }
        base["scorer"] |= {"group": f"{prefix}scorer"}
        base["repairer"] = repairer_settings(
            prefix, tmp_path / "repairs", write_reward(tmp_path / "incumbent")
        )
        texts = []
        async with AsyncExitStack() as stack:
            served = Served(stack, base)
            await served.start("scorer", Scorer)
            await served.start("repairer", Repairer)
            async with Publisher(connection) as publisher:
                await publisher.publish(doubtful(prefix))
            async with asyncio.timeout(SECONDS), httpx.AsyncClient() as client:
                while not echo.saw("constitution", "policy"):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                await asyncio.sleep(1)
                for port in served.ports.values():
                    for page in ("metrics", "readyz", "livez"):
                        answer = await client.get(f"http://127.0.0.1:{port}/{page}")
                        texts.append(answer.text)
        file = campaign_file(tmp_path, f"{guarded.url}/v1?key={MARK}-of-query")
        campaign = yaml.safe_load(file.read_text())
        campaign["target"]["endpoint"]["api_key_file"] = secret(tmp_path, "target")
        file.write_text(yaml.safe_dump(campaign))
        whole = tmp_path / "whole.yaml"
        whole.write_text(yaml.safe_dump(base))
        for words in (["doctor"], ["probe", "run", str(file)]):
            words += ["--settings", str(whole)]
            said = await asyncio.to_thread(CliRunner().invoke, app, words)
            texts += [said.output, repr(said.exception)]
            assert isinstance(said.exception, SystemExit | None), said.exception
        assert guarded.saw("target")
    captured = capsys.readouterr()
    texts += [captured.out, captured.err]
    assert "refused" in captured.err
    for text in texts:
        assert MARK not in text, text[max(0, text.find(MARK) - 300) : text.find(MARK) + 100]
