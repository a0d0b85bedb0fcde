"""One repair in its run directory, from the plan to a candidate release.

    begin ─► train ─► answer ─► gate ─► export ─► propose (─► approve)

Every step's result appears whole in the directory, which is the state: a restart does what is
missing and repeats nothing. What the gate compares, and with which limits, is written
by `begin`, before anything is trained.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from ares_stream.errors import AresError, RegistryError, RepairError
from ares_stream.models.adapters import check_adapter
from ares_stream.models.bundles import load_bundle
from ares_stream.models.registry import Registry
from ares_stream.models.releases import Author, Log
from ares_stream.models.store import Artefact
from ares_stream.processes.child import Limits, Progress, run_child
from ares_stream.records.base import OffsetRange, digest
from ares_stream.records.release import ReleaseState
from ares_stream.records.repair import CoupledFailure, RepairReport
from ares_stream.repair.gate import (
    CANARIES,
    LABELLED,
    LABELLED_MIN,
    GatePolicy,
    GateVerdict,
    Rule,
    Table,
    decide,
)
from ares_stream.repair.plan import Plan
from ares_stream.repair.recipe import Recipe
from ares_stream.repair.resampling import prompt_digest
from ares_stream.repair.rundirectory import Job, RunDirectory, Side, Workspace, tables
from ares_stream.repair.scorecard import as_markdown, score_card
from ares_stream.repair.suites import Suite, figures, prompts

AUTHOR: Final = "repairer"
Clock = Callable[[], datetime]
State = Literal["promoted", "awaiting_approval", "rejected", "failed"]


@dataclass(frozen=True, slots=True)
class Commands:
    """Programs that take a run directory as their last argument, so that a team may bring its
    own trainer. rundirectory.py says what each finds and must leave there."""

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

    def gate_of(self, plan: Plan) -> GatePolicy:
        """What the repair of a plan must show: with a rule on what people called harmless, where
        there is enough of it, the trainer is ours and so measures it, and no rule is on it."""
        policy = self.gate_policy
        measured = self.commands.train == Commands().train
        named = any(rule.figure == LABELLED.figure for rule in policy.rules)
        if len(plan.labelled) < LABELLED_MIN or not measured or named:
            return policy
        rules: tuple[Rule, ...] = (*policy.rules, LABELLED)
        return policy.model_copy(update={"rules": rules})

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
        self._workspace = Workspace(configuration.work)
        self._registry = registry
        self._clock = clock
        self.reward_model = load_bundle(configuration.incumbent, "reward").manifest.name
        if configuration.policy_model == self.reward_model:
            raise RepairError(f"{self.reward_model}: policy and reward model need different names")

    async def adopt(self) -> None:
        """Enter the incumbent reward bundle as the active release where there is none, so that
        there is something to go back to."""
        if (await self._registry.log()).active(self.reward_model) is not None:
            return
        author = Author(AUTHOR, self._clock(), "adopted: in use before the first repair")
        artefact = Artefact(self.reward_model, "reward", self._configuration.incumbent)
        (release,) = await self._registry.propose([artefact], author)
        if release.state is ReleaseState.CANDIDATE:
            await self._registry.approve(release.digest, author)

    async def context(self) -> str:
        """Digest of all that a plan's outcome depends on besides the plan: the same failures
        with another recipe, gate or incumbent are another repair."""
        log = await self._registry.log()
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

    def unfinished(self) -> list[RunDirectory]:
        """Repairs that were begun and not settled, oldest first."""
        return self._workspace.unfinished()

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
        turns = {prompt_digest(f.interaction.messages): f.interaction.messages for f in failures}
        if not turns:
            return {}
        directory = self._workspace.questions(context)
        known = directory.known.read() if directory.known.exists else {}
        missing = {name: turns[name] for name in turns if name not in known}
        if missing:
            policy = self._policy(await self._registry.log())
            recipe = self._configuration.recipe.model_copy(update={"policy": policy})
            directory.ask(recipe, missing, self._configuration.samples)
            command, limits = self._configuration.commands.resample, self._configuration.limits
            await run_child(command, directory.path, limits, directory.log, progress)
            found = directory.answers.read()
            known |= {name: found.get(name) for name in missing}
            directory.known.write(known)
        answers = {
            failure.interaction.id: known[prompt_digest(failure.interaction.messages)]
            for failure in failures
        }
        return {name: answer for name, answer in answers.items() if answer}

    async def begin(
        self, plan: Plan, batch: Sequence[OffsetRange], notes: Sequence[str] = ()
    ) -> RunDirectory:
        """Write down all that the repair will read.

        Raises RepairError where the active release's repaired model is not there, and where the
        policy server would refuse the new adapter on top of the active one.
        """
        configuration, log = self._configuration, await self._registry.log()
        policy, reward = self._policy(log), configuration.recipe.reward
        incumbent, previous = configuration.incumbent, None
        names = (configuration.policy_model, self.reward_model)
        against = {name: item.digest if (item := log.active(name)) else None for name in names}
        active = log.active(configuration.policy_model)
        cache = self._workspace.released
        if active is not None:
            previous = await self._registry.fetch(active, cache)
            self._refuse_rank(previous)
        active = log.active(self.reward_model)
        if active is not None:
            incumbent = await self._registry.fetch(active, cache)
            if active.plan_id is not None:
                reward = self._merged(active.plan_id, "reward", self.reward_model)
        recipe = configuration.recipe.model_copy(
            update={"policy": policy, "reward": reward, "reward_bundle": incumbent}
        )
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
        run = self._workspace.run(plan.id)
        write = partial(run.begin, job, plan, recipe, configuration.gate_of(plan))
        await asyncio.to_thread(write, configuration.suites)
        return run

    def _refuse_rank(self, active: Path) -> None:
        """Adapters are released relative to the policy server's base: their ranks add up. Said
        before hours of training, not after."""
        limit, new = self._registry.max_rank, self._configuration.recipe.policy_lora.rank
        present = check_adapter(active, max_rank=limit).rank
        if present + new > limit:
            raise RepairError(
                f"recipe.policy_lora.rank: {new} on top of the active adapter's {present} is over "
                f"registry.max_lora_rank {limit}, which the policy server would refuse; start it "
                "with a larger --max-lora-rank and set registry.max_lora_rank to it, or train with "
                "a smaller rank"
            )

    def _policy(self, log: Log) -> Path:
        """The checkpoint of the policy as it is served now."""
        active = log.active(self._configuration.policy_model)
        if active is None:
            return self._configuration.recipe.policy
        return self._merged(active.plan_id, "policy", self._configuration.policy_model)

    def _merged(self, plan_id: str | None, side: Side, model: str) -> Path:
        path = self._workspace.run(plan_id or "-").merged(side)
        if not path.is_dir():
            raise RepairError(
                f"{model}: its active release was made by plan {plan_id}, whose {path} is not "
                "there; a repair starts from the repaired model: restore it, or roll back"
            )
        return path

    async def carry(self, run: RunDirectory, progress: Progress) -> RepairReport:
        """Do what is missing of a repair that was begun; returns how it ended.

        A step that fails ends it as `failed`, with its reason. Raises only what says nothing
        of the repair: cancellation, and a directory that cannot be read or written.
        """
        if run.report.exists:
            return run.report.read()
        job, plan = run.job.read(), run.plan.read()
        before = after = Table(overall={})
        state: State
        try:
            before, after, verdict = await self._measured(run, progress)
            state, reasons, releases = await self._ended(run, job, verdict, progress)
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
        run.write_score_card(json.dumps(card, indent=1).encode(), as_markdown(card))
        run.report.write(report)
        return report

    async def _measured(
        self, run: RunDirectory, progress: Progress
    ) -> tuple[Table, Table, GateVerdict]:
        """Train where that is to do, and ask the gate."""
        commands, limits = self._configuration.commands, self._configuration.limits
        if not run.is_trained:
            await run_child(commands.train, run.path, limits, run.log("train"), progress)
        before, after = tables(run.figures)
        suites = run.suites.read()
        if suites:
            if not run.answers.exists:
                await run_child(commands.answer, run.path, limits, run.log("answer"), progress)
            answers, asked = run.answers.read(), len(prompts(suites))
            for when, given in (("before", answers.before), ("after", answers.after)):
                if len(given) != asked:
                    raise RepairError(
                        f"{run.answers.path}: {when}: {len(given)} answers to {asked} cases"
                    )
            before = _with(before, figures(suites, answers.before))
            after = _with(after, figures(suites, answers.after))
        verdict = decide(before, after, run.gate.read())
        run.verdict.write(verdict)
        return before, after, verdict

    async def _ended(
        self, run: RunDirectory, job: Job, verdict: GateVerdict, progress: Progress
    ) -> tuple[State, tuple[str, ...], dict[str, str]]:
        if not verdict.passed:
            # The directory of a run is the repairer's own; the report is for everybody.
            await self._registry.keep_gate_report(verdict.document)
            return "rejected", verdict.reasons, {}
        configuration = self._configuration
        if not run.is_exported:
            command, limits = configuration.commands.export, configuration.limits
            await run_child(command, run.path, limits, run.log("export"), progress)
        author = Author(AUTHOR, self._clock(), "passed the gate")
        proposed = await self._registry.propose(
            [
                Artefact(job.policy_model, "policy", run.adapter),
                Artefact(job.reward_model, "reward", run.bundle),
            ],
            author,
            plan_id=job.plan_id,
            gate_report=verdict.document,
            against=job.against,
        )
        releases = {item.model: item.digest for item in proposed}
        waiting = any(item.state is ReleaseState.CANDIDATE for item in proposed)
        if waiting and configuration.automatic:
            try:
                await self._registry.approve(job.plan_id, author)
            except RegistryError as error:
                # Another repair was promoted meanwhile: this one was gated against the past.
                await self._registry.reject(job.plan_id, author)
                return "rejected", (str(error),), releases
        return await self.decided(job.plan_id) or "awaiting_approval", verdict.reasons, releases

    async def decided(self, plan_id: str) -> Literal["promoted", "rejected"] | None:
        """What a person decided on a repair that awaited approval; None while they have not."""
        log = await self._registry.log()
        states = {item.state for item in log.releases if item.plan_id == plan_id}
        if not states or ReleaseState.CANDIDATE in states:
            return None
        return "rejected" if ReleaseState.REJECTED in states else "promoted"

    async def is_proposed(self, plan_id: str) -> bool:
        """Whether the registry holds a release of a repair."""
        log = await self._registry.log()
        return any(item.plan_id == plan_id for item in log.releases)


def _with(table: Table, more: dict[str, Any]) -> Table:
    return table.model_copy(update={"overall": table.overall | more})
