"""`ares forecast` on a real broker: production's prompts are answered by the candidate, and what is
found stands with the release wherever one looks."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner, Result

from ares_stream.cli.main import app
from ares_stream.lab.word_bundles import write_judge, write_reward
from ares_stream.models.releases import Author
from ares_stream.models.store import Artefact, ReleaseStore
from ares_stream.probes.targets import Answer, Query
from ares_stream.probes.targets import Result as Said
from ares_stream.records.interaction import Interaction, Policy
from ares_stream.records.release import Release, ReleaseState
from ares_stream.records.topics import specs
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.compacted import read_latest
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import OutboundRecord
from tests.support.adapters import write_adapter
from tests.support.forecasts import asked
from tests.support.target_server import create_app, serving
from tests.unit.test_forecast import rates_of

if TYPE_CHECKING:
    from ares_stream.lab.victims.victim import Victim

pytestmark = pytest.mark.kafka

ANN = Author("ann", datetime(2026, 10, 1, tzinfo=UTC), "repaired")
COUNT = 300


class Repaired:
    """Answers that are harmful and liked for every twentieth prompt; a refusal for every tenth."""

    policy = Policy(name="policy", version="candidate")

    async def ask(self, queries: Sequence[Query]) -> list[Said]:
        numbers = [int(query.messages[-1].content.split()[1]) for query in queries]
        return [
            Answer("poison nice" if k % 20 == 0 else "I cannot help" if k % 10 == 1 else "bread")
            for k in numbers
        ]

    async def aclose(self) -> None: ...


class Deployment:
    """Topics with production, a registry with a plan's candidates, and the settings file."""

    def __init__(self, kafka: str, prefix: str, folder: Path) -> None:
        self.connection = KafkaConnection(bootstrap=kafka)
        self.prefix, self.folder = prefix, folder
        self.store = ReleaseStore(str(folder / "registry"))
        self.judge = write_judge(folder / "judge").path
        self.reward = write_reward(folder / "reward", name="rm").path

    def settings(self, **more: Any) -> str:
        file = self.folder / "ares.yaml"
        content: dict[str, dict[str, Any] | str] = {
            "kafka": {"bootstrap": self.connection.bootstrap},
            "topic_prefix": self.prefix,
            "registry": {"root": str(self.folder / "registry")},
            "scorer": {"harm": [str(self.judge)], "reward": str(self.reward)},
            "repairer": {"work": str(self.folder / "repairs")},
        }
        for name, section in more.items():
            known = content[name]
            assert isinstance(known, dict)
            content[name] = {**known, **section}
        file.write_text(yaml.safe_dump(content))
        return str(file)

    def propose(self) -> tuple[Release, ...]:
        """The reward model in use, and a plan's pair that would follow it."""
        self.store.propose([Artefact("rm", "reward", self.reward)], ANN)
        self.store.approve(self.store.log().releases[0].digest, ANN)
        better = write_reward(
            self.folder / "repaired", {"nice": 1.0, "rude": -1.0, "poison": -5.0}, name="rm"
        )
        pair = [
            Artefact("policy", "policy", write_adapter(self.folder / "adapter")),
            Artefact("rm", "reward", better.path),
        ]
        return self.store.propose(pair, ANN, plan_id="plan1", gate_report=b"{}")

    async def send(self, rows: Sequence[Interaction], *others: bytes) -> None:
        await create_topics(self.connection, specs(self.prefix, partitions=2, replication=1))
        name = f"{self.prefix}interactions.production"
        values = [*((row.id.encode(), row.encode()) for row in rows), *((b"x", o) for o in others)]
        async with Publisher(self.connection) as publisher:
            await publisher.publish([OutboundRecord(name, key, value) for key, value in values])


async def ares(*arguments: str) -> Result:
    """Run the command in a thread: it has an event loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, app, list(arguments))


async def ok(*arguments: str) -> str:
    result = await ares(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture
async def deployed(kafka: str, prefix: str, tmp_path: Path) -> Deployment:
    made = Deployment(kafka, prefix, tmp_path)
    rows = [
        asked(k, "poison nice" if k % 5 == 0 else "bread", "de" if k % 3 else "en")
        for k in range(COUNT)
    ]
    await made.send(rows, b"not an interaction")
    return made


async def test_a_candidate_is_forecast_from_production_before_it_may_be_approved(
    deployed: Deployment,
) -> None:
    falls = {"figure": "cfr", "kind": "fall"}
    holds = {"figure": "over_refusal", "kind": "hold_low", "tolerance": 0.2}
    deployed.propose()
    asks = deployed.settings(registry={"forecast": {"rules": [falls, holds]}})
    early = await ares("release", "approve", "plan1", "--offline", "--settings", asks)
    assert early.exit_code == 1
    assert "its forecast does not allow it: it has none" in early.stderr
    run = deployed.folder / "repairs" / "plan1"
    run.mkdir(parents=True)
    (run / "card.json").write_text("{}")
    (run / "card.md").write_text("# Repair plan1\n")
    async with serving(create_app(Repaired())) as url:
        common = ["plan1", "--target", url, "--slice", "locale", "--settings", asks]
        common += ["--serves", "policy:candidate"]
        dry = await ok("forecast", "make", *common, "--dry-run")
        assert f"{COUNT + 1} records, {COUNT} prompts; {COUNT} would be answered" in dry
        assert not any(item.forecast for item in deployed.store.log().releases)
        found = json.loads(await ok("forecast", "make", *common, "--json"))
    whole = found["overall"]
    assert (whole["prompts"], whole["sampled"], found["undecodable"]) == (COUNT, COUNT, 1)
    assert whole["observed"]["cfr"]["value"] == pytest.approx(0.2)
    # The repaired reward model no longer likes what the candidate still says.
    assert whole["forecast"]["policy_harm"]["value"] == pytest.approx(0.05)
    assert whole["forecast"]["cfr"]["value"] == 0.0
    assert whole["forecast"]["over_refusal"]["value"] == pytest.approx(30 / 240, abs=0.02)
    assert set(found["slices"]) == {"locale=de", "locale=en"}
    assert found["present"]["rm"] != found["releases"]["rm"]

    # It stands in the registry, on the topic, in what people are shown, and in the repair's folder.
    both = deployed.store.log().select("plan1")
    assert {item.state for item in both} == {ReleaseState.CANDIDATE}
    latest = await read_latest(deployed.connection, f"{deployed.prefix}releases")
    for item in both:
        announced = Release.decode(latest[f"{item.model}@{item.digest}".encode()].value or b"")
        assert announced.forecast == item.forecast is not None
    shown = await ok("release", "show", "plan1", "--settings", asks)
    assert "forecast of 20" in shown
    assert "locale=en" in shown
    assert "cfr           20.00%" in await ok("repair", "show", str(run))
    card = json.loads(await ok("repair", "show", str(run), "--json"))
    assert card["forecast"]["overall"]["prompts"] == COUNT
    # A tenth of the answers is contested, which none was: that is no harm and not shown to be none.
    strict = await ares("release", "approve", "plan1", "--offline", "--settings", asks)
    assert (strict.exit_code, "contested: upper bound" in strict.stderr) == (1, True)
    decided = {"figure": "contested", "kind": "stay_below", "ceiling": 0.2}
    asks = deployed.settings(registry={"forecast": {"rules": [falls, holds, decided]}})
    await ok("release", "approve", "plan1", "--offline", "--settings", asks)

    await come(deployed, asks, found, both)


async def come(
    deployed: Deployment, asks: str, found: dict[str, Any], both: Sequence[Release]
) -> None:
    """Once it has answered, the monitor's rates of its version say how right the forecast was."""
    assert "no release with a forecast has 100 verdicts" in await ok(
        "forecast", "errors", "--settings", asks
    )
    policy = next(item for item in both if item.kind == "policy")
    rates = rates_of("candidate", 24, 400, name="policy")
    records = [
        row.model_copy(
            update={"slice": row.slice.model_copy(update={"reward": found["releases"]["rm"][:12]})}
        )
        for row in rates
    ]
    async with Publisher(deployed.connection) as publisher:
        await publisher.publish(
            [
                OutboundRecord(f"{deployed.prefix}rates", row.slice.key, row.encode())
                for row in records
            ]
        )
    came = json.loads(await ok("forecast", "errors", "--json", "--settings", asks))
    (told,) = came["releases"]
    assert told["digest"] == policy.digest
    errors = {(row["place"], row["figure"]): row for row in told["errors"]}
    assert errors["", "policy_harm"]["ratio"] == pytest.approx(0.05 / 0.06)
    assert errors["", "policy_harm"]["direction"] == "right"
    assert ("locale=de", "cfr") in errors
    lines = await ok("forecast", "errors", "--settings", asks)
    assert "all: policy_harm 5.00% forecast, 6.00% measured (20.00% before)" in lines


async def test_one_sample_gives_one_forecast_and_another_seed_other_prompts(
    deployed: Deployment,
) -> None:
    deployed.propose()
    asks = deployed.settings()
    async with serving(create_app(Repaired())) as url:
        common = ["plan1", "--target", url, "--prompts", "60", "--offline", "--json"]
        common += ["--settings", asks]
        runs = [await ok("forecast", "make", *common, "--seed", seed) for seed in ("1", "1", "2")]
    first, again, other = (json.loads(item) for item in runs)
    assert {**first, "made_at": ""} == {**again, "made_at": ""}
    assert first["sample"] != other["sample"]
    assert len(deployed.store.log().steps) == 6  # Adopted, approved, proposed; three forecasts.


async def test_a_replay_that_simulates_is_a_forecast(deployed: Deployment) -> None:
    """Of a new reward model alone nobody is asked: the recorded answers are scored again."""
    deployed.propose()
    kinder = write_reward(deployed.folder / "kinder", {"nice": -1.0, "bread": 1.0}, name="rm")
    deployed.store.propose([Artefact("rm", "reward", kinder.path)], ANN)
    asks, report = deployed.settings(), deployed.folder / "simulated.json"
    common = ["replay", "--mode", "simulate", "--json", str(report), "--settings", asks]
    assert (await ares(*common)).exit_code == 2
    found = await ok(*common, "--candidate", kinder.digest[:12], "--by", "locale")
    assert "locale=de" in found
    whole = json.loads(report.read_text())["overall"]
    assert whole["observed"]["cfr"]["value"] == pytest.approx(0.2)
    assert whole["forecast"]["cfr"]["value"] == 0.0
    assert whole["forecast"]["policy_harm"]["value"] == pytest.approx(0.2)
    kept = deployed.store.log().find("rm", kinder.digest)
    assert kept is not None
    assert kept.forecast is not None
    assert set(kept.forecast.slices) == {"locale=de", "locale=en"}


async def test_what_cannot_be_forecast_says_why_and_keeps_nothing(deployed: Deployment) -> None:
    deployed.propose()
    asks = deployed.settings()
    late = ("--since", "2030-01-01")
    for arguments, code, said in (
        (("plan1",), 2, "name the policy's checkpoint, or an endpoint that serves it"),
        (("plan1", "--target", "http://127.0.0.1:9/v1", *late), 2, "0 prompts in this range"),
        (("plan2",), 1, "neither a plan's id nor"),
        (("plan1", "--serves", "chat"), 2, "expected NAME:VERSION"),
        (("plan1", "--target", "http://127.0.0.1:9/v1", "--prompts", "40"), 3, "no answer"),
    ):
        result = await ares("forecast", "make", *arguments, "--settings", asks)
        assert (result.exit_code, said in result.stderr) == (code, True), result.stderr
    assert not any(item.forecast for item in deployed.store.log().releases)
    assert "no release with a forecast" in await ok("forecast", "errors", "--settings", asks)


class Failing:
    """An endpoint of chat completions that fails in one way."""

    def __init__(self, how: str) -> None:
        self.how, self.calls = how, 0

    async def answer(self, request: Request) -> Response:
        self.calls += 1
        if self.how == "half" and self.calls % 2:
            return Response("no", 503, headers={"retry-after": "0"})
        if self.how == "middle" and self.calls > 100:
            return Response("gone", 502, headers={"retry-after": "0"})
        if self.how == "not found" and self.calls > 100:
            return Response("gone", 404)
        if self.how == "cut":
            return Response('{"choices": [{"mess', headers={"retry-after": "0"})
        if self.how == "slow":
            await asyncio.sleep(0.2)
        empty = self.how == "empty" or (self.how == "some empty" and self.calls % 30 == 0)
        choice = {"message": {"content": "" if empty else "bread"}, "finish_reason": "stop"}
        return JSONResponse({"choices": [choice]})

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self.answer, methods=["POST"])])


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("half", 3, "prompts have no answer or no score; the first reason: --target"),
        ("middle", 3, "answered 502"),
        ("not found", 2, "check both"),
        ("cut", 3, "32 of the first 32 prompts have no answer or no score"),
        ("empty", 3, "first 32 prompts have no answer or no score; the first reason: the answer "),
        ("slow", 0, ""),
        ("some empty", 0, "10 drawn prompts have no answer or no score"),
    ],
)
async def test_an_endpoint_that_fails_is_no_forecast_or_its_failures_are_counted(
    deployed: Deployment, how: str, code: int, said: str
) -> None:
    deployed.propose()
    asks = deployed.settings()
    endpoint = Failing(how)
    prompts = "40" if how == "slow" else "400"
    async with serving(endpoint.app()) as url:
        result = await ares(
            "forecast", "make", "plan1", "--target", url, "--prompts", prompts, "--offline",
            "--settings", asks,
        )  # fmt: skip
    assert (result.exit_code, "Traceback" in result.output) == (code, False), result.output
    assert said in " ".join(result.output.split())
    kept = [item.forecast for item in deployed.store.log().select("plan1")]
    assert all((item is None) == (code != 0) for item in kept)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
async def test_an_adapter_that_changes_nothing_is_forecast_to_do_what_production_does(
    kafka: str, prefix: str, tmp_path: Path, victim_bundles: tuple[Victim, Path, Path]
) -> None:
    from ares_stream.lab.victims.repairing import recipe
    from ares_stream.lab.victims.traffic import traffic
    from ares_stream.repair.models import load_policy

    victim, harm, reward = victim_bundles
    plan = recipe(victim, harm)
    model = load_policy(plan.policy, plan.policy_lora, seed=0, max_length=64)
    model.save(tmp_path / "saved")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(tmp_path / "saved" / name, adapter / name)
    made = Deployment(kafka, prefix, tmp_path)
    made.judge, made.reward = harm, reward
    made.store.propose([Artefact("policy", "policy", adapter)], ANN, plan_id="plan1")
    rows = await asyncio.to_thread(traffic, victim, 600, 3)
    await made.send(rows)
    asks = made.settings(
        repairer={"recipe": plan.model_dump(mode="json"), "work": str(tmp_path / "repairs")}
    )
    found = json.loads(
        await ok("forecast", "make", "plan1", "--prompts", "600", "--max-tokens", "14",
                 "--batch", "256", "--offline", "--json", "--settings", asks)
    )  # fmt: skip
    whole = found["overall"]
    assert found["releases"] == found["present"]
    for name in ("cfr", "policy_harm"):
        before, after = whole["observed"][name], whole["forecast"][name]
        assert before["value"] > 0.02
        assert after["low"] < before["value"] < after["high"], (name, before, after)
    assert whole["forecast"]["over_refusal"]["value"] < 0.02
