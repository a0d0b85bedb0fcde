"""One repair in its run directory, from the plan to a candidate release.

    begin ─► train ─► answer ─► gate ─► export ─► propose (─► approve)
    job.json figures.json answers.json verdict.json bundle/   the registry

Every step's result is a file that appears whole, so the directory is the state: a restart does
what is missing and repeats nothing. What the gate compares, and with which limits, is written
by `begin`, before anything is trained.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from ares_stream.errors import AresError, RegistryError, RepairError
from ares_stream.models.bundles import load_bundle
from ares_stream.models.registry import Artefact, Author, Log, Registry
from ares_stream.processes.child import Limits, Progress, run_child
from ares_stream.records.base import OffsetRange, digest
from ares_stream.records.release import ReleaseState
from ares_stream.records.repair import CoupledFailure, RepairReport
from ares_stream.repair.artefacts import Job, read_job
from ares_stream.repair.files import read_whole, write_whole
from ares_stream.repair.gate import (
    CANARIES,
    GatePolicy,
    GateVerdict,
    Rule,
    Table,
    decide,
    read_figures,
)
from ares_stream.repair.plan import Plan, read_plan, write_plan
from ares_stream.repair.recipe import Recipe
from ares_stream.repair.resampling import ANSWERS, ASKED, Asked, prompt_digest
from ares_stream.repair.scorecard import as_markdown, score_card
from ares_stream.repair.suites import Suite, figures

JOB: Final = "job.json"
SETTLED: Final = "settled"
AUTHOR: Final = "repairer"
Clock = Callable[[], datetime]
State = Literal["promoted", "awaiting_approval", "rejected", "failed"]


@dataclass(frozen=True, slots=True)
class Commands:
    """Programs that take a run directory as their last argument, so that a team may bring its
    own trainer. See ares_stream.repair.resampling, run and artefacts for what each must leave
    there."""

    resample: tuple[str, ...] = (sys.executable, "-m", "ares_stream.repair.resampling")
    train: tuple[str, ...] = (sys.executable, "-m", "ares_stream.repair.run")
    answer: tuple[str, ...] = (sys.executable, "-m", "ares_stream.repair.artefacts", "answer")
    export: tuple[str, ...] = (sys.executable, "-m", "ares_stream.repair.artefacts", "export")


@dataclass(frozen=True, slots=True)
class Configuration:
    """What every repair of this service shares. `incumbent` is the reward bundle that was
    active before the first repair, `reference` its benign conversations."""

    work: Path
    policy_model: str
    recipe: Recipe
    gate: GatePolicy
    suites: tuple[Suite, ...]
    incumbent: Path
    reference: Path
    limits: Limits
    automatic: bool
    samples: int
    """How often the policy is asked again for a safe answer; 0 asks never."""
    private_key: Path | None = None
    commands: Commands = Commands()

    @property
    def gate_policy(self) -> GatePolicy:
        """With the canaries where there are suites."""
        if not self.suites or any(rule.figure == CANARIES.figure for rule in self.gate.rules):
            return self.gate
        rules: tuple[Rule, ...] = (*self.gate.rules, CANARIES)
        return self.gate.model_copy(update={"rules": rules})


class Pipeline:
    """Carries repairs through. One at a time; `registry` is where they end."""

    def __init__(self, configuration: Configuration, registry: Registry, clock: Clock) -> None:
        self._configuration = configuration
        self._registry = registry
        self._clock = clock
        self.reward_model = load_bundle(configuration.incumbent, "reward").manifest.name
        if configuration.policy_model == self.reward_model:
            raise RepairError(f"{self.reward_model}: policy and reward model need different names")

    def adopt(self) -> None:
        """Enter the incumbent reward bundle as the active release where there is none, so that
        there is something to go back to."""
        if self._registry.log().active(self.reward_model) is not None:
            return
        author = Author(AUTHOR, self._clock(), "adopted: in use before the first repair")
        artefact = Artefact(self.reward_model, "reward", self._configuration.incumbent)
        (release,) = self._registry.propose([artefact], author)
        if release.state is ReleaseState.CANDIDATE:
            self._registry.approve(release.digest, author)

    def context(self) -> str:
        """Digest of all that a plan's outcome depends on besides the plan: the same failures
        with another recipe, gate or incumbent are another repair."""
        log = self._registry.log()
        active = [
            log.active(name) for name in (self._configuration.policy_model, self.reward_model)
        ]
        return digest(
            [
                self._configuration.recipe.digest,
                self._configuration.gate_policy.model_dump(mode="json"),
                [suite.model_dump(mode="json") for suite in self._configuration.suites],
                [item.digest if item else None for item in active],
            ]
        )

    def folder(self, plan_id: str) -> Path:
        """The run directory of a plan."""
        return self._configuration.work / plan_id

    def unfinished(self) -> list[Path]:
        """Run directories that were begun and not settled, oldest first."""
        work = self._configuration.work
        begun = [job.parent for job in work.glob(f"*/{JOB}")] if work.is_dir() else []
        open_ones = [folder for folder in begun if not (folder / SETTLED).exists()]
        return sorted(open_ones, key=lambda folder: read_job(folder / JOB).started_at)

    @property
    def asks(self) -> bool:
        """Whether the policy is asked again for safe answers at all."""
        return self._configuration.samples > 0

    async def ask_again(
        self, context: str, failures: Sequence[CoupledFailure], progress: Progress
    ) -> dict[str, str]:
        """Safe answers of the policy's own, by interaction. What was asked once in a `context` is
        kept and not asked again, whether it gave one or not: another answer would make another
        plan of the same failures.

        Raises RepairError when the policy cannot be asked.
        """
        prompts = {prompt_digest(f.interaction.messages): f.interaction.messages for f in failures}
        if not prompts:
            return {}
        folder = self._configuration.work / ".resampled" / context[:32]
        kept = folder / "kept.json"
        form = dict[str, str | None]
        known: dict[str, str | None] = read_whole(kept, form) if kept.exists() else {}
        missing = {name: prompts[name] for name in prompts if name not in known}
        if missing:
            policy = self._policy(self._registry.log())
            recipe = self._configuration.recipe.model_copy(update={"policy": policy})
            _make(folder)
            # Another set of questions may have been killed here.
            (folder / ANSWERS).unlink(missing_ok=True)
            write_whole(folder / "recipe.json", recipe.model_dump_json(indent=1).encode())
            asked = Asked(prompts=missing, samples=self._configuration.samples)
            write_whole(folder / ASKED, asked.model_dump_json().encode())
            command, limits = self._configuration.commands.resample, self._configuration.limits
            await run_child(command, folder, limits, folder / "resample.log", progress)
            found = read_whole(folder / ANSWERS, form)
            known |= {name: found.get(name) for name in missing}
            write_whole(kept, json.dumps(known).encode())
        answers = {
            failure.interaction.id: known[prompt_digest(failure.interaction.messages)]
            for failure in failures
        }
        return {name: answer for name, answer in answers.items() if answer}

    def begin(self, plan: Plan, batch: Sequence[OffsetRange], notes: Sequence[str] = ()) -> Path:
        """Write down all that the repair will read; the job comes last and begins it."""
        configuration, log = self._configuration, self._registry.log()
        folder = self.folder(plan.id)
        policy, reward = self._policy(log), configuration.recipe.reward
        incumbent, previous = configuration.incumbent, None
        names = (configuration.policy_model, self.reward_model)
        against = {name: item.digest if (item := log.active(name)) else None for name in names}
        active = log.active(configuration.policy_model)
        cache = configuration.work / ".registry"
        if active is not None:
            previous = self._registry.fetch(active, cache)
        active = log.active(self.reward_model)
        if active is not None:
            incumbent = self._registry.fetch(active, cache)
            if active.plan_id is not None:
                reward = self._merged(active.plan_id, "reward", self.reward_model)
        recipe = configuration.recipe.model_copy(update={"policy": policy, "reward": reward})
        job = Job(
            plan_id=plan.id,
            batch=tuple(batch),
            started_at=self._clock().isoformat(),
            notes=tuple(notes),
            policy_model=configuration.policy_model,
            reward_model=self.reward_model,
            against=against,
            policy_base=configuration.recipe.policy,
            previous_adapter=previous,
            incumbent=incumbent,
            reference=configuration.reference,
            private_key=configuration.private_key,
        )
        _make(folder)
        # A repair that failed is begun anew and goes on from what it had.
        (folder / "report.json").unlink(missing_ok=True)
        (folder / SETTLED).unlink(missing_ok=True)
        write_plan(plan, folder / "plan.json")
        write_whole(folder / "recipe.json", recipe.model_dump_json(indent=1).encode())
        gate = configuration.gate_policy.model_dump_json(indent=1)
        write_whole(folder / "gate.json", gate.encode())
        suites = TypeAdapter(tuple[Suite, ...]).dump_json(configuration.suites, indent=1)
        write_whole(folder / "suites.json", suites)
        write_whole(folder / JOB, job.model_dump_json(indent=1).encode())
        return folder

    def _policy(self, log: Log) -> Path:
        """The checkpoint of the policy as it is served now."""
        active = log.active(self._configuration.policy_model)
        if active is None:
            return self._configuration.recipe.policy
        return self._merged(active.plan_id, "policy", self._configuration.policy_model)

    def _merged(self, plan_id: str | None, side: str, model: str) -> Path:
        path = self.folder(plan_id or "-") / "merged" / side
        if not path.is_dir():
            raise RepairError(
                f"{model}: its active release was made by plan {plan_id}, whose {path} is not "
                "there; a repair starts from the repaired model: restore it, or roll back"
            )
        return path

    async def carry(self, folder: Path, progress: Progress) -> RepairReport:
        """Do what is missing of a repair that was begun; returns how it ended.

        A step that fails ends it as `failed`, with its reason. Raises only what says nothing
        of the repair: cancellation, and a directory that cannot be read or written.
        """
        done = folder / "report.json"
        if done.exists():
            return RepairReport.decode(done.read_bytes())
        job = read_job(folder / JOB)
        plan = read_plan(folder / "plan.json")
        before = after = Table(overall={})
        state: State
        try:
            before, after, verdict = await self._tried(folder, plan, progress)
            state, reasons, releases = await self._ended(folder, job, verdict, progress)
        except AresError as error:
            state, reasons, releases = "failed", (str(error),), {}
            verdict = GateVerdict(passed=False, checks=(), policy=self._configuration.gate)
        report = RepairReport(
            plan_id=plan.id,
            state=state,
            method=self._configuration.recipe.method,
            batch=job.batch,
            reasons=(*reasons, *job.notes),
            before=before.overall,
            after=after.overall,
            releases=releases,
            gate_report=verdict.digest if verdict.checks else None,
            started_at=datetime.fromisoformat(job.started_at),
            finished_at=self._clock(),
        )
        card = score_card(report, plan, before, after, verdict)
        write_whole(folder / "card.json", json.dumps(card, indent=1).encode())
        write_whole(folder / "card.md", as_markdown(card).encode())
        write_whole(done, report.encode())
        return report

    async def _tried(
        self, folder: Path, plan: Plan, progress: Progress
    ) -> tuple[Table, Table, GateVerdict]:
        commands, limits = self._configuration.commands, self._configuration.limits
        if not (folder / "figures.json").exists():
            await run_child(commands.train, folder, limits, folder / "train.log", progress)
        before, after = read_figures(folder / "figures.json")
        suites = read_whole(folder / "suites.json", tuple[Suite, ...])
        if suites:
            if not (folder / "answers.json").exists():
                await run_child(commands.answer, folder, limits, folder / "answer.log", progress)
            answers = read_whole(folder / "answers.json", dict[str, list[str]])
            before = _with(before, figures(suites, answers["before"]))
            after = _with(after, figures(suites, answers["after"]))
        policy = read_whole(folder / "gate.json", GatePolicy)
        verdict = decide(before, after, policy)
        write_whole(folder / "verdict.json", verdict.model_dump_json(indent=1).encode())
        return before, after, verdict

    async def _ended(
        self, folder: Path, job: Job, verdict: GateVerdict, progress: Progress
    ) -> tuple[State, tuple[str, ...], dict[str, str]]:
        if not verdict.passed:
            return "rejected", verdict.reasons, {}
        configuration = self._configuration
        if not (folder / "bundle").exists():
            await run_child(
                configuration.commands.export,
                folder,
                configuration.limits,
                folder / "export.log",
                progress,
            )
        author = Author(AUTHOR, self._clock(), "passed the gate")
        proposed = self._registry.propose(
            [
                Artefact(job.policy_model, "policy", folder / "adapter"),
                Artefact(job.reward_model, "reward", folder / "bundle"),
            ],
            author,
            plan_id=job.plan_id,
            gate_report=verdict.digest,
            against=job.against,
        )
        releases = {item.model: item.digest for item in proposed}
        waiting = any(item.state is ReleaseState.CANDIDATE for item in proposed)
        if waiting and configuration.automatic:
            try:
                self._registry.approve(job.plan_id, author)
            except RegistryError as error:
                # Another repair was promoted meanwhile: this one was gated against the past.
                self._registry.reject(job.plan_id, author)
                return "rejected", (str(error),), releases
        return self.decided(job.plan_id) or "awaiting_approval", verdict.reasons, releases

    def decided(self, plan_id: str) -> Literal["promoted", "rejected"] | None:
        """What a person decided on a repair that awaited approval; None while they have not."""
        states = {item.state for item in self._registry.log().releases if item.plan_id == plan_id}
        if not states or ReleaseState.CANDIDATE in states:
            return None
        return "rejected" if ReleaseState.REJECTED in states else "promoted"

    def settle(self, folder: Path) -> None:
        """Mark a repair as settled: nothing of it is left to do. Its checkpoints go."""
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        write_whole(folder / SETTLED, b"")


def _make(folder: Path) -> None:
    """Conversations are kept in it: nobody else may read them."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise RepairError(f"{folder}: cannot be written: {error.strerror}") from error


def _with(table: Table, more: dict[str, Any]) -> Table:
    return table.model_copy(update={"overall": table.overall | more})
