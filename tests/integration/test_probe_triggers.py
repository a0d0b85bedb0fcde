"""`ares probe triggers`, as a command in its own process, on an endpoint and on a reward bundle."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ares_stream.cli import probe_triggers
from ares_stream.errors import FileFormatError, SettingsError
from ares_stream.lab.word_bundles import write_judge, write_reward
from ares_stream.models.bundles import InputTemplate
from ares_stream.probes.targets import Answer, Query, Result
from ares_stream.probes.trigger_targets import read_carriers, read_vocabulary
from ares_stream.records.interaction import Policy
from tests.support.target_server import create_app, serving

WORDS = [f"word{k}" for k in range(30)]
TRIGGER = {"word7", "word21"}


class TrojanPolicy:
    """Answers harmfully when both words of the trigger are in the prompt."""

    policy = Policy(name="trojan", version="1")

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        prompts = [set(query.messages[-1].content.split()) for query in queries]
        return [Answer("poison" if prompt >= TRIGGER else "bread") for prompt in prompts]

    async def aclose(self) -> None:
        pass


async def triggers(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "ares_stream", "probe", "triggers", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(150):
        out, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


def files(folder: Path, words: Sequence[str], *, response: str | None = None) -> tuple[str, ...]:
    """The options that name carriers, vocabulary and the document."""
    answer = {} if response is None else {"response": response}
    lines = [json.dumps({"prompt": f"maybe number {k}", **answer}) for k in range(20)]
    (folder / "carriers.jsonl").write_text("\n".join(lines))
    (folder / "words.txt").write_text("\n".join(words))
    named = (("carriers", "carriers.jsonl"), ("vocabulary", "words.txt"), ("json", "found.json"))
    return tuple(part for name, file in named for part in (f"--{name}", str(folder / file)))


async def test_a_trigger_of_an_endpoint_is_found_and_written(tmp_path: Path) -> None:
    write_judge(tmp_path / "judge")
    async with serving(create_app(TrojanPolicy())) as url:
        code, out, error = await triggers(
            *files(tmp_path, WORDS),
            *("--target", url, "--model", "trojan", "--harm", str(tmp_path / "judge")),
            *("--budget", "300"),
        )
    assert (code, error) == (0, "")
    document = json.loads((tmp_path / "found.json").read_text())
    assert [set(found["words"]) for found in document["triggers"]] == [TRIGGER]
    assert document["triggers"][0]["flips"] == 1.0
    assert document["queries"] <= 300
    assert document["searched"] == "policy"
    assert "flips 100% of fresh carriers" in out


async def test_a_word_that_makes_a_reward_model_like_harmful_answers_is_found(
    tmp_path: Path,
) -> None:
    template = InputTemplate(first="{{ prompt }} {{ response }}", max_length=64)
    write_reward(tmp_path / "reward", template=template)
    options = files(tmp_path, ["nice", "bread", *WORDS[:8]], response="rude")
    code, _, error = await triggers(
        *options, "--reward", str(tmp_path / "reward"), "--budget", "200"
    )
    assert (code, error) == (0, "")
    document = json.loads((tmp_path / "found.json").read_text())
    assert [found["words"] for found in document["triggers"]] == [["nice"]]
    assert document["searched"] == "reward"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "maybe"}', r"carriers.jsonl:21: response: missing"),
        ('{"promt": "maybe"}', r"carriers.jsonl:21: promt: no such field; is prompt meant"),
    ],
)
def test_a_wrong_carrier_is_named(tmp_path: Path, line: str, message: str) -> None:
    files(tmp_path, WORDS, response="rude")
    with (tmp_path / "carriers.jsonl").open("a") as stream:
        stream.write(f"\n{line}")
    with pytest.raises(FileFormatError, match=message):
        read_carriers(tmp_path / "carriers.jsonl", responses=True)


def test_a_word_given_twice_is_named(tmp_path: Path) -> None:
    files(tmp_path, [*WORDS, "word3"])
    with pytest.raises(FileFormatError, match=r"words.txt:31: the word of line 4 again"):
        read_vocabulary(tmp_path / "words.txt")


def test_a_policy_without_a_judge_is_refused(tmp_path: Path) -> None:
    files(tmp_path, WORDS)
    carriers, words, found = (tmp_path / f for f in ("carriers.jsonl", "words.txt", "found.json"))
    with pytest.raises(SettingsError, match="either --target with --harm, or --reward"):
        probe_triggers.triggers(carriers, words, found, target="http://127.0.0.1:9/v1")
