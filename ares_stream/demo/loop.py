"""Rounds of probes of the made policy, with a repair between each two."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ares_stream.demo.contract import DemoOptions, View
from ares_stream.lab.streams import PREFIX, Stream
from ares_stream.models.registry import Registry
from ares_stream.models.store import ReleaseStore
from ares_stream.probes.campaign import CampaignPolicy
from ares_stream.probes.memory import Progress
from ares_stream.probes.plan import CampaignPlan
from ares_stream.probes.prober import ProberObserver, ProberPolicy
from ares_stream.probes.targets import Target
from ares_stream.processes.ports import free_port
from ares_stream.processes.service import (
    LOOK_SECONDS,
    READY_SECONDS,
    Service,
    service_process,
)
from ares_stream.records.interaction import Policy
from ares_stream.records.repair import RepairReport
from ares_stream.services.rounds import Round, next_report, run_rounds
from ares_stream.streaming.connection import KafkaConnection

POLICY_MODEL: Final = "demo-policy"
REPAIR_STEPS: Final = 80
MIN_FAILURES: Final = 40
MAX_LORA_RANK: Final = 256
"""Each round's adapter adds its rank to the one before; nothing here serves them but ourselves."""
REPAIR_SECONDS: Final = 600.0
PATIENCE_SECONDS: Final = 60.0


async def probe_and_repair(
    options: DemoOptions,
    connection: KafkaConnection,
    stream: Stream,
    scorer: Service,
    view: View,
    scratch: Path,
) -> list[Round]:
    """Probe the made policy, repair it and its reward model, probe again."""
    if stream.victim is None or options.rounds == 0:
        return []
    from ares_stream.lab.experiments.probes.search import probe_space
    from ares_stream.lab.victims.evaluate import load_policy
    from ares_stream.lab.victims.repairing import recipe, write_inputs
    from ares_stream.probes.local_target import LocalTarget

    victim = stream.victim
    registry = Registry(ReleaseStore(str(scratch / "registry")))
    inputs = await asyncio.to_thread(write_inputs, victim, scratch / "inputs")
    port = free_port()
    settings = {
        "kafka": {"bootstrap": connection.bootstrap},
        "topic_prefix": PREFIX,
        "http": {"port": port},
        "registry": {"root": str(scratch / "registry"), "max_lora_rank": MAX_LORA_RANK},
        "repairer": {
            "work": str(scratch / "repairs"),
            "policy_model": POLICY_MODEL,
            "incumbent": str(stream.reward.absolute()),
            "recipe": recipe(victim, stream.harm[0].absolute(), steps=REPAIR_STEPS).model_dump(
                mode="json"
            ),
            "approval": "automatic",
            "min_failures": MIN_FAILURES,
            "poll_seconds": 0.5,
            **inputs,
        },
    }
    reports: set[str] = set()

    async def open_round(number: int) -> tuple[CampaignPlan, Target, None]:
        view.step(
            f"round {number}: {options.queries} queries to the policy, where it may fail most"
        )
        release = (await registry.log()).active(POLICY_MODEL)
        adapter = None if release is None else await registry.fetch(release, scratch / "cache")
        version = victim.version if release is None else release.digest[:12]
        loaded = await asyncio.to_thread(load_policy, victim.policy_dir, adapter)
        plan = CampaignPlan(
            f"round-{number}",
            probe_space(victim.world),
            victim.world,
            CampaignPolicy(options.queries, batch=25),
            seed=options.seed,
        )
        policy = Policy(name=f"testbed-policy-{victim.seed}", version=version)
        target = LocalTarget(loaded.model, loaded.tokenizer, policy, max_new_tokens=14, batch=32)
        return plan, target, None

    async def repair(number: int) -> RepairReport:
        view.step(f"repair {number}: fine-tune policy and reward model together, then the gate")
        async with service_process("repairer", settings, scratch) as repairer:
            waiting = asyncio.create_task(
                next_report(connection, PREFIX, reports, REPAIR_SECONDS), name="report"
            )
            try:
                while not waiting.done():
                    repairer.check()
                    if (stage := await _stage(port)) is not None:
                        view.part(*stage)
                    await asyncio.wait({waiting}, timeout=LOOK_SECONDS)
            finally:
                waiting.cancel()
            report = waiting.result()
            await repairer.stop()
        reports.add(report.plan_id)
        view.repaired(report)
        for digest in report.releases.values() if report.state == "promoted" else ():
            if await _kind(registry, digest) == "reward":
                await scorer.said("release swapped", digest, READY_SECONDS)
        return report

    return await run_rounds(
        connection,
        PREFIX,
        options.rounds,
        open_round=open_round,
        repair=repair,
        policy=ProberPolicy(chunk=32, patience_seconds=PATIENCE_SECONDS),
        on_round=view.round,
        observer=_Queries(view, options.queries),
    )


class _Queries(ProberObserver):
    """Shows how many queries of a round are settled."""

    def __init__(self, view: View, total: int) -> None:
        self._view = view
        self._total = total

    def progress(self, progress: Progress, components: Counter[str]) -> None:
        """Something was settled."""
        self._view.part("queries", progress.queries, self._total)


async def _stage(port: int) -> tuple[str, int, int] | None:
    """The repairer's stage, and its progress in hundredths; None before the first."""
    try:
        async with httpx.AsyncClient(timeout=LOOK_SECONDS, trust_env=False) as client:
            page = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    except httpx.HTTPError:
        return None  # A figure to look at; what the repair comes to is read from its topic.
    stages = [
        sample
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "ares_repair_stage_progress"
    ]
    return (stages[-1].labels["stage"], round(100 * stages[-1].value), 100) if stages else None


async def _kind(registry: Registry, digest: str) -> str | None:
    """What kind of model a release is."""
    releases = (await registry.log()).releases
    return next((item.kind for item in releases if item.digest == digest), None)
