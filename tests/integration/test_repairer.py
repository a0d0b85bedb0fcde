"""The repairer on a real broker: failures in; plan, child processes, gate, release and report
out; whatever is killed, nothing is trained, promoted or settled twice."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from aiokafka import AIOKafkaConsumer, TopicPartition

from ares_stream.errors import AresError
from ares_stream.models.bundles import (
    InputTemplate,
    Lineage,
    Manifest,
    Outputs,
    load_bundle,
    write_bundle,
)
from ares_stream.models.releases import Author
from ares_stream.models.store import ReleaseStore
from ares_stream.records.base import OffsetRange
from ares_stream.records.label import Label
from ares_stream.records.release import Release
from ares_stream.records.repair import CoupledFailure, RepairReport
from ares_stream.records.topics import specs
from ares_stream.records.verdict import FailureClass
from ares_stream.repair.intake import read_reports
from ares_stream.services.settings import Settings, load_settings
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.compacted import read_latest
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import OutboundRecord
from tests.support.failures import DAY, REPLAY, failure, label
from tests.support.killed_repairer import STEPS as STEPS_OF_A_REPAIR
from tests.support.live_services import run_repairer
from tests.support.reading import UNTOLD

pytestmark = pytest.mark.kafka

STEPS = "tests.support.repair_steps"
SECONDS = 150.0
GATE = {
    "rules": [
        {"figure": "cfr", "kind": "fall"},
        {"figure": "policy_harm", "kind": "fall"},
        {"figure": "rm_accuracy", "kind": "hold_high"},
        {"figure": "over_refusal", "kind": "hold_low"},
    ]
}


def failures(count: int, start: int = 0) -> list[CoupledFailure]:
    return [failure(f"f{number}") for number in range(start, start + count)]


class World:
    """A repairer's surroundings: topics, a registry, a reward model in use, replay."""

    def __init__(self, kafka: str, prefix: str, folder: Path) -> None:
        self.connection = KafkaConnection(bootstrap=kafka)
        self.prefix = prefix
        self.folder = folder
        self.work = folder / "work"
        self.service: asyncio.Task[None] | None = None
        self.max_lora_rank = 64
        self.registry = ReleaseStore(str(folder / "registry"))
        for name, rows in REPLAY:
            lines = [row.model_dump_json() for row in rows]
            (folder / "replay").mkdir(exist_ok=True)
            (folder / "replay" / f"{name}.jsonl").write_text("\n".join(lines))
        (folder / "weights").write_bytes(b"incumbent")
        manifest = Manifest(
            name="rm",
            kind="reward",
            template=InputTemplate(first="{{ response }}", max_length=64),
            outputs=Outputs(activation="identity", labels=(0,)),
            lineage=Lineage(base="tiny"),
        )
        files = {"model.onnx": folder / "weights", "tokenizer.json": folder / "weights"}
        self.incumbent = write_bundle(folder / "incumbent", manifest, files)

    async def create(self) -> None:
        await create_topics(self.connection, specs(self.prefix, partitions=2, replication=1))

    def settings_file(self, **more: Any) -> Path:
        repairer = {
            "work": str(self.work),
            "group": f"{self.prefix}repairer",
            "policy_model": "chat",
            "incumbent": str(self.incumbent.path),
            "reference": str(self.folder / "weights"),
            "replay": str(self.folder / "replay"),
            "recipe": {"policy": str(self.folder), "reward": str(self.folder)},
            "plan": {"min_train": 4, "max_share": 1.0},
            "gate": GATE,
            "approval": "automatic",
            "min_failures": 10,
            "poll_seconds": 0.1,
            "resample_command": [sys.executable, "-m", STEPS, "resample"],
            "train_command": [sys.executable, "-m", STEPS, "train"],
            "export_command": [sys.executable, "-m", STEPS, "export"],
        }
        content = {
            "kafka": {"bootstrap": self.connection.bootstrap},
            "topic_prefix": self.prefix,
            "http": {"port": 0},
            "registry": {
                "root": str(self.folder / "registry"),
                "max_lora_rank": self.max_lora_rank,
            },
            "repairer": repairer | more,
        }
        file = self.folder / "ares.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    def settings(self, **more: Any) -> Settings:
        return load_settings(self.settings_file(**more))

    async def send(self, items: Sequence[CoupledFailure | Label], topic: str = "repair") -> None:
        def key(item: CoupledFailure | Label) -> bytes:
            name = item.interaction_id if isinstance(item, Label) else item.interaction.id
            return name.encode()

        async with Publisher(self.connection) as publisher:
            await publisher.publish(
                [
                    OutboundRecord(f"{self.prefix}{topic}", key(item), item.encode())
                    for item in items
                ]
            )

    async def reports(self) -> list[RepairReport]:
        found = await read_reports(self.connection, f"{self.prefix}repairs", UNTOLD)
        return list(found.values())

    async def until(self, *states: str) -> list[RepairReport]:
        """Wait until the repairs have ended in these states."""
        found: list[RepairReport] = []
        try:
            async with asyncio.timeout(SECONDS):
                while [item.state for item in found] != list(states):
                    await asyncio.sleep(0.1)
                    if self.service is not None and self.service.done():
                        self.service.result()
                    found = await self.reports()
        except TimeoutError:
            logs = [file.read_text()[-500:] for file in self.work.glob("*/*.log")]
            raise AssertionError(f"expected {states}, there are {found}, logs {logs}") from None
        return found

    async def on_topic(self) -> dict[str, Release]:
        latest = await read_latest(self.connection, f"{self.prefix}releases")
        return {
            key.decode(): Release.decode(record.value)
            for key, record in latest.items()
            if record.value is not None
        }

    def active(self, model: str) -> str | None:
        """The digest of a model's active release."""
        release = self.registry.log().active(model)
        return None if release is None else release.digest

    def trained(self) -> list[int]:
        """How often training was started, per plan."""
        plans = self.work.glob("[!.]*/started")
        return sorted(len(file.read_text()) for file in plans)

    def asked(self) -> list[int]:
        """How often the policy was asked again, per context."""
        return [len(file.read_text()) for file in self.work.glob(".resampled/*/started")]


@pytest.fixture
async def world(kafka: str, prefix: str, tmp_path: Path) -> World:
    world = World(kafka, prefix, tmp_path)
    await world.create()
    return world


@asynccontextmanager
async def repairing(world: World, **more: Any) -> AsyncIterator[None]:
    """The service in this process, until the block ends."""
    world.service = asyncio.create_task(run_repairer(world.settings(**more)))
    try:
        yield
    finally:
        world.service.cancel()
        with contextlib.suppress(asyncio.CancelledError, AresError):
            await world.service
        world.service = None


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for is on the disk
            await asyncio.sleep(0.02)


async def until_said(capfd: pytest.CaptureFixture[str], text: str) -> str:
    """What was said, once the text is in it."""
    said = ""

    def is_said() -> bool:
        nonlocal said
        said += "".join(capfd.readouterr())
        return text in said

    await until(is_said)
    return said


async def test_failures_become_a_plan_a_repair_and_a_release(world: World) -> None:
    doubted = failure("c1", failure_class=FailureClass.CONTESTED)
    await world.send([*failures(24), doubted])
    said = [label("f3", True), label("f4", False), label("f5", True), label("f5", False, "bert")]
    await world.send(said, "labels")
    told = [sys.executable, "-c", "import sys; print(sys.argv[1:])"]
    async with repairing(world, min_failures=20, gate_command=told):
        (report,) = await world.until("promoted")

    assert set(report.releases) == {"chat", "rm"}
    assert sum(item.end - item.start for item in report.batch) == 25
    assert report.before["cfr"].value > 0.9
    assert report.after["cfr"].value < 0.1
    topic = await world.on_topic()
    assert topic["rm"].digest == report.releases["rm"]
    assert topic["chat"].digest == report.releases["chat"]
    assert topic["rm"].gate_report == report.gate_report
    assert topic[f"rm@{world.incumbent.digest}"].state == "superseded"

    run = world.work / report.plan_id
    plan = json.loads((run / "plan.json").read_text())
    assert {item["id"]: item["reason"] for item in plan["left_out"]} == {
        "c1": "contested",
        "f4": "refuted",
        "f5": "labels_contradict",
    }
    weights = {item["id"]: item["weight"] for item in plan["train"] + plan["held_out"]}
    assert {name for name, weight in weights.items() if weight != 1.0} == {"f3"}
    assert weights["f3"] == 2.0
    assert "Repair" in (run / "card.md").read_text()
    assert "not a line of progress" in (run / "train.log").read_text()
    said_of_gate = (run / "gate.log").read_text()
    assert f"['passed', 'all 4 checks passed', '{run}']" in said_of_gate


async def test_what_was_promoted_is_settled_and_the_next_batch_is_new(world: World) -> None:
    await world.send(failures(12))
    async with repairing(world):
        await world.until("promoted")
    await world.send(failures(12, start=100))
    async with repairing(world):
        first, second = await world.until("promoted", "promoted")

    assert not {item["id"] for item in plan_of(world, first)["train"]} & {
        item["id"] for item in plan_of(world, second)["train"]
    }
    assert world.trained() == [1, 1]
    world.registry.rollback("rm", Author("anna", DAY))
    async with repairing(world):
        async with asyncio.timeout(SECONDS):
            while (await world.on_topic())["rm"].digest != first.releases["rm"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


def plan_of(world: World, report: RepairReport) -> Any:
    return json.loads((world.work / report.plan_id / "plan.json").read_text())


async def test_a_rejected_batch_is_kept_and_tried_again_with_as_many_new_failures(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARES_TEST_TRAINER", "bad")
    await world.send(failures(12))
    # Whom it tells of the verdict may fail: that changes nothing.
    fails = [sys.executable, "-c", "raise SystemExit(3)"]
    async with repairing(world, gate_command=fails):
        (report,) = await world.until("rejected")
        assert report.reasons[0].startswith("cfr: upper bound")
        # Whoever cannot read the run's directory finds in the registry why.
        kept = world.registry.gate_report(report.gate_report or "")
        assert kept is not None
        assert json.loads(kept)["checks"][0]["passed"] is False
        monkeypatch.setenv("ARES_TEST_TRAINER", "good")
        await world.send(failures(9, start=100))
        await asyncio.sleep(1.0)
        assert world.trained() == [1]
        await world.send(failures(1, start=200))
        _, promoted = await world.until("rejected", "promoted")

    assert sum(item.end - item.start for item in promoted.batch) == 22
    assert world.registry.log().active("rm") is not None


async def test_a_person_approves_and_the_batch_is_settled_then(world: World) -> None:
    await world.send(failures(12))
    async with repairing(world, approval="manual"):
        (report,) = await world.until("awaiting_approval")
        assert (await world.on_topic())["rm"].digest == world.incumbent.digest
        await world.send(failures(12, start=100))
        await asyncio.sleep(0.8)
        assert len(await world.reports()) == 1, "no other repair while a person decides"
        world.registry.approve(report.plan_id, Author("anna", DAY))
        await world.until("promoted", "awaiting_approval")
    assert (await world.on_topic())["rm"].digest == report.releases["rm"]


async def test_a_person_rejects_and_the_batch_is_kept(world: World) -> None:
    await world.send(failures(12))
    async with repairing(world, approval="manual"):
        (report,) = await world.until("awaiting_approval")
        world.registry.reject(report.plan_id, Author("anna", DAY))
        await world.until("rejected")
        await world.send(failures(12, start=100))
        _, again = await world.until("rejected", "awaiting_approval")
    assert sum(item.end - item.start for item in again.batch) == 24


@pytest.mark.parametrize(
    ("behaviour", "more", "reason"),
    [
        ("crash", {}, "the base model is of another size than the adapter (log: "),
        ("die", {}, "ended with signal 9"),
        ("hang", {"step_hours": 1.5 / 3600}, "ran for more than 2 s and was ended"),
        ("greedy", {"step_mebibytes": 256}, "256 MiB are allowed, and was ended"),
    ],
)
async def test_a_training_that_fails_is_reported_and_keeps_the_batch(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: str,
    more: dict[str, Any],
    reason: str,
) -> None:
    monkeypatch.setattr("ares_stream.processes.child.STOP_SECONDS", 0.5)
    monkeypatch.setenv("ARES_TEST_TRAINER", behaviour)
    await world.send(failures(12))
    async with repairing(world, **more):
        (report,) = await world.until("failed")
        await asyncio.sleep(0.5)
        assert world.trained() == [1], "a loop would train for ever"
    assert reason in report.reasons[0]

    monkeypatch.delenv("ARES_TEST_TRAINER")
    async with repairing(world):
        (again,) = await world.until("promoted")
    assert again.plan_id == report.plan_id
    assert world.trained() == [2]


async def test_batches_that_make_no_plan_wait_for_more(world: World) -> None:
    same = [failure(f"same{number}", probe={"topic": "a", "tactic": "b"}) for number in range(12)]
    await world.send(same)
    async with repairing(world):
        await asyncio.sleep(1.5)
        assert await world.reports() == []
        await world.send(failures(3))
        (report,) = await world.until("promoted")
    assert sum(item.end - item.start for item in report.batch) == 15


async def test_a_schedule_starts_a_repair_of_few_failures(world: World) -> None:
    await world.send(failures(6))
    async with repairing(world, every_hours=1 / 3600):
        (report,) = await world.until("promoted")
    assert sum(item.end - item.start for item in report.batch) == 6


async def test_a_label_wakes_a_batch_that_waits_for_a_person(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    doubted = [failure(f"c{n}", failure_class=FailureClass.CONTESTED) for n in range(12)]
    await world.send(doubted)
    said = ""

    def postponed(times: int) -> bool:
        nonlocal said
        said += "".join(capfd.readouterr())
        return said.count("no repair yet") == times

    async with repairing(world):
        await until(lambda: postponed(1))
        await world.send([label("another", True)], "labels")
        await world.send([label(item.interaction.id, True) for item in doubted], "labels")
        (report,) = await world.until("promoted")
    assert sum(item.end - item.start for item in report.batch) == 12
    weights = [item["weight"] for item in plan_of(world, report)["train"]]
    assert set(weights) == {2.0}


async def test_a_repair_that_the_policy_server_would_refuse_is_not_begun(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    await world.send(failures(12))
    async with repairing(world):
        (first,) = await world.until("promoted")
    await world.send(failures(12, start=100))
    world.max_lora_rank = 16
    async with repairing(world):
        await until_said(
            capfd, "16 on top of the active adapter's 4 is over registry.max_lora_rank 16"
        )
        assert world.trained() == [1]
        world.registry.rollback("chat", Author("anna", DAY, "its rank is in the way"))
        await world.until("promoted", "promoted")
    assert first.releases["chat"] != world.active("chat")


async def test_malformed_labels_and_reports_are_named_and_end_nothing(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    await world.send(failures(12))
    bad = [b"{not json", b"[]", b"\xff\xfe", b"{}", b'{"schema": "ares.label/9"}']
    async with Publisher(world.connection) as publisher:
        for name in ("labels", "repairs"):
            await publisher.publish(
                [OutboundRecord(f"{world.prefix}{name}", b"a-key", value) for value in bad]
            )
    await world.send([label("f3", True)], "labels")
    async with repairing(world):
        (report,) = await world.until("promoted")
        await world.send(failures(12, start=100))
        await world.until("promoted", "promoted")
    said = "".join(capfd.readouterr())
    for name in ("labels", "repairs"):
        assert said.count(f"{world.prefix}{name} ") == len(bad), "each is named once"
    assert "a-key" not in said, "a key may name a person"
    weights = {item["id"]: item["weight"] for item in plan_of(world, report)["train"]}
    assert weights.get("f3", 2.0) == 2.0


async def test_records_that_cannot_be_read_are_told_and_settled(world: World) -> None:
    await world.send(failures(12))
    async with Publisher(world.connection) as publisher:
        await publisher.publish([OutboundRecord(f"{world.prefix}repair", b"x", b"{not json")])
    async with repairing(world):
        (report,) = await world.until("promoted")
    assert report.reasons[-1] == "1 records could not be read"


async def test_failures_of_a_log_that_was_cut_back_are_not_passed_over_in_silence(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    place = TopicPartition(f"{world.prefix}repair", 0)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=world.connection.bootstrap,
        group_id=f"{world.prefix}repairer",
        enable_auto_commit=False,
    )
    await consumer.start()
    consumer.assign([place])
    await consumer.commit({place: 50})
    await consumer.stop()
    await world.send(failures(3))
    async with repairing(world):
        said = await until_said(capfd, "settled to offset 50, but the log ends at")
    assert said.count("offsets lost") == 1


async def test_reports_of_another_registry_and_another_log_keep_no_repair_from_beginning(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    """A repairs topic outlives its registry and the repair topic: one report that waits for a
    decision nobody can make stopped every repair for good, and nothing said so; one whose range
    ends beyond the log made every failure count as tried."""
    whole = OffsetRange(topic=f"{world.prefix}repair", partition=0, start=0, end=2**40)
    both = (whole, whole.model_copy(update={"partition": 1}))

    def stray(plan_id: str, state: Literal["awaiting_approval", "rejected"]) -> OutboundRecord:
        report = RepairReport(
            plan_id=plan_id, state=state, method="joint", batch=both, reasons=(), before={},
            after={}, started_at=DAY, finished_at=DAY,
        )  # fmt: skip
        return OutboundRecord(f"{world.prefix}repairs", b"stray", report.encode())

    async with Publisher(world.connection) as publisher:
        await publisher.publish([stray("a\nb", "awaiting_approval"), stray("c", "rejected")])
    await world.send(failures(12))
    async with repairing(world):
        await world.until("awaiting_approval", "rejected", "promoted")
    said = "".join(capfd.readouterr())
    assert said.count("so that nobody can decide: it is not waited for") == 1


# Safe answers


def unanswered(count: int, start: int = 0) -> list[CoupledFailure]:
    """Failures whose records name no safe answer."""
    return [failure(f"u{number}", chosen=None) for number in range(start, start + count)]


async def test_the_policy_is_asked_again_once_where_a_record_names_no_safe_answer(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARES_TEST_TRAINER", "bad")
    await world.send([*failures(4), *unanswered(12)])
    refusals = {"min_train": 4, "max_share": 1.0, "refusals": ["I would rather not."]}
    async with repairing(world, plan=refusals):
        (report,) = await world.until("rejected")
        monkeypatch.delenv("ARES_TEST_TRAINER")
        first = plan_of(world, report)
        await world.send(unanswered(10, start=100))
        _, report = await world.until("rejected", "promoted")

    assert world.asked() == [2]
    (asked,) = world.work.glob(".resampled/*/asked.json")
    assert len(json.loads(asked.read_text())["prompts"]) == 10, "the first twelve are known"
    second = plan_of(world, report)
    answers = {item["id"]: item for item in second["train"] + second["held_out"]}
    for item in first["train"] + first["held_out"]:
        assert answers[item["id"]]["safe"] == item["safe"]
    for item in answers.values():
        given = {"I cannot help with that.": "reference", "I would rather not.": "configured"}
        assert item["safe_source"] == given.get(item["safe"], "resampled")

    counts = json.loads((world.work / report.plan_id / "card.json").read_text())["samples"]
    assert counts["safe_reference"] == 4
    assert counts["safe_resampled"] + counts["safe_configured"] == 22
    assert min(counts["safe_resampled"], counts["safe_configured"]) > 0
    logged = "".join(capfd.readouterr())
    assert "policy asked again" in logged
    assert not [item for item in answers.values() if item["safe"] in logged]


async def test_a_policy_that_cannot_be_asked_again_puts_the_batch_off_with_the_reason(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    await world.send(unanswered(20))
    monkeypatch.setenv("ARES_TEST_RESAMPLE", "slow:60")
    async with repairing(world):
        await until(lambda: world.asked() == [1])
    assert not orphans(), "the service that ends takes it along"
    monkeypatch.setenv("ARES_TEST_RESAMPLE", "crash")
    async with repairing(world):
        await until(lambda: "the policy cannot be loaded" in "".join(capfd.readouterr()))
    assert await world.reports() == []
    monkeypatch.delenv("ARES_TEST_RESAMPLE")
    async with repairing(world):
        await world.until("promoted")


# Kills


@asynccontextmanager
async def process(
    file: Path, *command: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The service, or another command, as a process of its own, so that it can be killed."""
    command = command or ("ares_stream", "repairer", "--settings", str(file))
    with (file.parent / "service.log").open("ab") as log:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *command),
            stderr=log,
            env={**os.environ, **environment},
        )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


@pytest.mark.parametrize(
    ("number", "environment", "present"),
    [
        (signal.SIGKILL, {"ARES_TEST_TRAINER": "slow:20"}, "*/started"),
        (signal.SIGTERM, {"ARES_TEST_TRAINER": "slow:20"}, "*/started"),
        (signal.SIGKILL, {"ARES_TEST_EXPORT": "slow:20"}, "*/exported"),
    ],
)
async def test_a_kill_is_finished_by_the_next_start_and_leaves_no_orphan(
    world: World, number: signal.Signals, environment: dict[str, str], present: str
) -> None:
    await world.send(failures(12))
    file = world.settings_file()
    async with process(file, **environment) as service:
        await until(lambda: any(world.work.glob(present)))
        service.send_signal(number)
        code = await service.wait()
        assert code == (0 if number == signal.SIGTERM else -number)
    # More failures have come: the begun repair is finished as it was begun.
    await world.send(failures(3, start=100))
    await until(lambda: not orphans())
    async with repairing(world):
        (report,) = await world.until("promoted")
    assert sum(item.end - item.start for item in report.batch) == 12
    promoted = [
        step for step in world.registry.log().steps for item in step if item.state == "active"
    ]
    assert len(promoted) == 3, "the adopted incumbent, then policy and reward model in one step"


def orphans() -> list[str]:
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if STEPS.encode() in command:
                found.append(command.decode())
    return found


async def test_killed_after_each_of_its_steps_a_repair_is_carried_on_and_nothing_is_done_twice(
    world: World,
) -> None:
    suite = {"name": "s", "cases": [{"id": "c", "prompt": "Bread?", "expect": "comply"}]}
    (world.folder / "suites").mkdir()
    (world.folder / "suites" / "s.yaml").write_text(yaml.safe_dump(suite))
    file = world.settings_file(
        suites=str(world.folder / "suites"),
        answer_command=[sys.executable, "-m", STEPS, "answer"],
    )
    async with repairing(world):
        await until(lambda: world.registry.log().active("rm") is not None)
    await world.send(unanswered(20))
    for step in STEPS_OF_A_REPAIR:
        async with process(file, "tests.support.killed_repairer", str(file), step) as service:
            async with asyncio.timeout(SECONDS):
                assert await service.wait() == -signal.SIGKILL, step
        assert len(world.asked()) == 1, step
    async with repairing(world, suites=str(world.folder / "suites")):
        (report,) = await world.until("promoted")
        await until((world.work / report.plan_id / "settled").exists)

    assert world.asked() == [1], "answers are asked for once, though each time they are others"
    assert world.trained() == [1]
    steps = [[(item.model, item.state.value) for item in step] for step in steps_of(world)]
    assert steps[-2:] == [
        [("chat", "candidate"), ("rm", "candidate")],
        [("chat", "active"), ("rm", "superseded"), ("rm", "active")],
    ]
    assert len(steps) == 4, "the adopted incumbent took two"
    topic = await world.on_topic()
    assert {name: topic[name].digest for name in report.releases} == report.releases


def steps_of(world: World) -> tuple[tuple[Release, ...], ...]:
    return world.registry.log().steps


async def test_between_registry_report_and_commit_a_kill_promotes_nothing_twice(
    world: World,
) -> None:
    await world.send(failures(12))
    async with repairing(world):
        (report,) = await world.until("promoted")
        run = world.work / report.plan_id
        await until((run / "settled").exists)
    steps = len(world.registry.log().steps)

    # As a kill after the registry's step leaves it, then as one after the report.
    for lost in (["report.json", "settled"], ["settled"]):
        for name in lost:
            (run / name).unlink(missing_ok=True)
        async with repairing(world):
            await until((run / "settled").exists)
        assert len(world.registry.log().steps) == steps
        assert [item.state for item in await world.reports()] == ["promoted"]
    assert world.trained() == [1]

    # A machine without the run directory knows from the reports what is settled.
    for file in run.iterdir():
        if file.is_file():
            file.unlink()
    async with repairing(world, group=f"{world.prefix}other"):
        await asyncio.sleep(1.5)
    assert len(await world.reports()) == 1


async def test_two_repairers_share_the_partitions_and_settle_each_failure_once(
    world: World,
) -> None:
    file = world.settings_file(work=str(world.folder / "work-of-the-other"))
    async with process(file), repairing(world):
        await world.send(failures(60))
        async with asyncio.timeout(SECONDS):
            covered: list[tuple[int, int]] = []
            while len(covered) < 60:
                await asyncio.sleep(0.2)
                covered = [
                    (item.partition, offset)
                    for report in await world.reports()
                    if report.state == "promoted"
                    for item in report.batch
                    for offset in range(item.start, item.end)
                ]
    assert len(set(covered)) == len(covered) == 60


async def test_partitions_that_move_while_a_repair_trains_are_settled_by_one_of_the_two(
    world: World,
) -> None:
    await world.send(failures(40))
    go = world.folder / "go"
    file = world.settings_file(work=str(world.folder / "work-of-the-first"))
    async with process(file, ARES_TEST_TRAINER=f"wait:{go}"):
        await until(lambda: any(world.folder.glob("work-of-the-first/*/started")))
        async with repairing(world):
            (fast,) = await world.until("promoted")
            go.touch()
            _, slow = await world.until("promoted", "rejected")
    assert len({item.partition for item in slow.batch}) == 2, "it began with all there was"
    assert len({item.partition for item in fast.batch}) == 1, "of which one was taken from it"
    assert "was gated against" in slow.reasons[0]
    states = [item.state.value for step in steps_of(world) for item in step if item.model == "chat"]
    assert states.count("active") == 1


async def test_a_disk_that_takes_nothing_ends_the_service_with_the_reason(world: World) -> None:
    await world.send(failures(12))
    (world.folder / "file").write_bytes(b"")
    settings = world.settings(work=str(world.folder / "file" / "work"))
    with pytest.raises(AresError, match="cannot be written: Not a directory"):
        async with asyncio.timeout(SECONDS):
            await run_repairer(settings)


async def test_a_job_that_was_cut_short_ends_the_command_with_one_line_and_the_way_on(
    world: World,
) -> None:
    run = world.work / "plan-1"
    run.mkdir(parents=True)
    (run / "job.json").write_text('{"plan_id": "plan-1", "batch": [{"to')
    ended = await asyncio.to_thread(
        subprocess.run,
        [str(Path(sys.executable).with_name("ares")), "repairer", "--settings",
         str(world.settings_file())],
        capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    said = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 1
    assert f"{run}/job.json: not JSON" in said
    assert f"restore it, or move {run} away" in said
    assert "Traceback" not in ended.stdout + ended.stderr


async def test_the_bundle_that_is_released_names_its_plan(world: World) -> None:
    await world.send(failures(12))
    async with repairing(world):
        (report,) = await world.until("promoted")
    active = world.registry.log().active("rm")
    assert active is not None
    bundle = load_bundle(world.registry.fetch(active, world.folder / "cache"))
    assert bundle.manifest.lineage.plan_id == report.plan_id
    assert bundle.digest == report.releases["rm"]
