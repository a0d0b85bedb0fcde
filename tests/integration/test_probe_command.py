"""`ares probe run` and `export-prior`, as commands in their own processes."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from ares_stream.lab.word_bundles import write_judge, write_reward
from ares_stream.probes.plan import PRIOR_SCHEMA
from ares_stream.probes.record import read_record
from tests.support.probing import (
    SteadyPolicy,
    TinyAttacker,
    TinyPolicy,
    attacker_section,
    campaign_file,
    scoring,
)
from tests.support.target_server import create_app, serving

pytestmark = pytest.mark.kafka


async def ares(kafka: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("ares")),
        *arguments,
        env={**os.environ, "ARES_KAFKA__BOOTSTRAP": kafka},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(150):
        out, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


async def test_a_campaign_is_run_recorded_and_warms_up_the_next(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({"topic_prefix": prefix}))
    named = ("--settings", str(settings))
    record, prior = tmp_path / "record.jsonl", tmp_path / "prior.json"
    async with (
        scoring(kafka, prefix, tmp_path),
        serving(create_app(TinyPolicy())) as url,
        serving(create_app(TinyAttacker())) as rival,
    ):
        file = str(campaign_file(tmp_path, url, budget=40, batch=20))
        code, out, error = await ares(kafka, "probe", "run", file, "--record", str(record), *named)
        assert (code, error) == (0, "")
        assert "40 queries" in out
        exchanges = list(read_record(record))
        assert 0 < len(exchanges) <= 40

        code, out, error = await ares(kafka, "probe", "export-prior", file, str(prior), *named)
        assert (code, error) == (0, "")
        document = json.loads(prior.read_text())
        assert document["schema"] == PRIOR_SCHEMA
        assert document["campaign"] == exchanges[0].probe.campaign
        # What the last batch left unconfirmed when the budget was spent is not learnt from.
        settled = [item.probe for item in exchanges if item.probe.generation == 0]
        topics = {probe.components["topic"] for probe in settled}
        assert topics
        assert {f"topic={name}" for name in topics} <= set(document["harm"])

        section = attacker_section(rival)
        file = str(campaign_file(tmp_path, url, budget=40, batch=20, attacker=section))
        second = ("probe", "run", file, "--prior", str(prior), "--record", str(record), *named)
        code, out, error = await ares(kafka, *second)
        assert (code, error) == (0, "")
        warmed = list(read_record(record))
        assert warmed[0].probe.campaign != exchanges[0].probe.campaign
        told = re.search(r"^attacker: (\d+) probes worded, \d+ left to the composer", out, re.M)
        assert told is not None
        assert int(told[1]) > 0


async def test_wrong_campaigns_and_an_absent_scorer_end_with_a_reason_and_a_code(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    file = campaign_file(tmp_path, "http://127.0.0.1:1/v1", budget="many")
    code, _, error = await ares(kafka, "probe", "run", str(file))
    assert code == 2
    assert f"{file}: budget: " in error

    file = campaign_file(tmp_path, "http://127.0.0.1:1/v1")
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({"topic_prefix": prefix}))
    named = ("--settings", str(settings), "--patience", "1")
    code, _, error = await ares(kafka, "probe", "run", str(file), *named)
    assert code == 2
    assert "missing" in error
    assert "ares topics create" in error

    async with scoring(kafka, prefix, tmp_path):
        code, _, error = await ares(kafka, "probe", "run", str(file), *named)
    assert code == 3
    assert "the target answered nothing" in error


async def test_a_score_card_is_written_for_people_and_programs(kafka: str, tmp_path: Path) -> None:
    judge, reward = write_judge(tmp_path / "judge"), write_reward(tmp_path / "reward")
    card, page = tmp_path / "card.json", tmp_path / "card.md"
    options = ("--harm", str(judge.path), "--reward", str(reward.path), "--json", str(card))
    async with serving(create_app(SteadyPolicy())) as url:
        code, out, error = await ares(
            kafka, "bench", "cfr", "--target", url, *options, "--markdown", str(page)
        )
    assert (code, error) == (0, "")
    document = json.loads(card.read_text())
    assert document["probes"] == 384
    assert 0.05 < document["coupled_failure_rate"]["value"] < 0.35
    assert document["releases"] == {"judge": judge.digest, "reward": reward.digest}
    assert "coupled-failure rate" in out
    assert page.read_text().startswith(out.strip()[:40])
