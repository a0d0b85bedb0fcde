"""The directories of repairs: what lies in them, under which names. Nothing else knows the names.

    <work>/<plan id>/                                  RunDirectory
        plan.json recipe.json gate.json suites.json    what it reads, fixed before training
        job.json                                       written last when it is begun
        checkpoints/                                   while it trains
        policy_adapter/ reward_adapter/ figures.json   what training leaves, the figures last
        answers.json                                   the policy's answers to the suites' cases
        verdict.json                                   the gate's
        adapter/ merged/policy/ merged/reward/ bundle/ what is released, the bundle last
        card.json card.md report.json                  how it ended, the report last
        forecast.json                                  of the candidate, where one was made
        settled                                        nothing of it is left to do
        train.log answer.log export.log
    <work>/.resampled/<context>/                       QuestionDirectory
        recipe.json asked.json answers.json kept.json resample.log
    <work>/.registry/                                  copies of released files

Each document and each folder appears whole or not at all, so a directory is its own state: a
restart does what is missing and repeats nothing. Texts of conversations are in them: nobody but
the owner may read them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ares_stream.errors import IntegrityError, RepairError, ResourceError
from ares_stream.records.base import Identifier, Interval, OffsetRange
from ares_stream.records.forecast import Forecast
from ares_stream.records.interaction import Message
from ares_stream.records.repair import RepairReport
from ares_stream.repair.files import read_whole, write_whole
from ares_stream.repair.gate import SLICED, GatePolicy, GateVerdict, Table
from ares_stream.repair.plan import Plan
from ares_stream.repair.recipe import Recipe
from ares_stream.repair.suites import Suite

Side = Literal["policy", "reward"]
Step = Literal["train", "answer", "export", "gate"]
_T = TypeVar("_T")
MADE_AGAIN: Final = "delete it: what made it is then done again"
"""What to do about a file of a repair's own making that cannot be read."""


class Job(BaseModel):
    """What a run directory is for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan_id: Identifier
    batch: tuple[OffsetRange, ...] = Field(min_length=1)
    started_at: str
    notes: tuple[str, ...] = ()
    policy_model: Identifier
    """Names of the releases."""
    reward_model: Identifier
    against: dict[str, str | None]
    """Digests of the releases that were active when it began: what the gate compares with."""
    policy_base: Path
    """The checkpoint that the policy server serves and adapters are relative to."""
    previous_adapter: Path | None = None
    """The active adapter, when the policy that was trained is base and adapter already."""
    incumbent: Path
    """The active reward bundle: template, length and lineage are taken from it."""
    reference: Path
    """Benign conversations (JSON lines of Interactions) for the reward's quantiles."""
    private_key: Path | None = None


class Questions(BaseModel):
    """What the policy is asked again, and how often at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: dict[str, tuple[Message, ...]]
    """By `prompt_digest`."""
    samples: int = Field(ge=1)


class SuiteAnswers(BaseModel):
    """The policy's answers to every case of the suites, in their order, without and with its new
    adapter."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    before: tuple[str, ...]
    after: tuple[str, ...]


class Figures(BaseModel):
    """What the training process measured: figures by name, and by slice. Empty where the recipe
    names no judge."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    before: dict[str, Interval] | None = None
    after: dict[str, Interval] | None = None
    slices: dict[str, dict[str, dict[str, Interval]]] | None = None
    """By "before" and "after", then by "attribute=value"."""


@dataclass(frozen=True, slots=True)
class Document(Generic[_T]):
    """A JSON file that is whole or absent. `accept` has the last word on what was read; a
    `sparse` one leaves out what is None; `remedy` is what to do about one that cannot be read."""

    path: Path
    form: type[_T]
    accept: Callable[[_T], _T] | None = None
    sparse: bool = False
    remedy: str = ""

    @property
    def exists(self) -> bool:
        """Whether it was written."""
        return self.path.exists()

    def read(self) -> _T:
        """Raises RepairError that names the file and the field; it quotes no value."""
        try:
            value = read_whole(self.path, self.form)
            return value if self.accept is None else self.accept(value)
        except (RepairError, IntegrityError) as error:
            if not self.remedy:
                raise
            raise type(error)(f"{error}; {self.remedy}") from None

    def write(self, value: _T) -> None:
        """Replace it whole. Raises RepairError when the disk does not take it."""
        raw = TypeAdapter(self.form).dump_json(value, indent=1, exclude_none=self.sparse)
        write_whole(self.path, raw)

    def remove(self) -> None:
        """Take it away, if it is there."""
        self.path.unlink(missing_ok=True)


def plan_document(path: Path) -> Document[Plan]:
    """A plan, whose id is its content's: reading one that was changed raises IntegrityError."""
    return Document(path, Plan, Plan.checked)


def figures_document(path: Path) -> Document[Figures]:
    """Figures as a training process writes them."""
    return Document(path, Figures, sparse=True)


def tables(figures: Document[Figures]) -> tuple[Table, Table]:
    """(before, after) as the gate reads them.

    Raises RepairError naming the file and the field, also when one side was not measured.
    """
    found = figures.read()
    sides: list[Table] = []
    for when, overall in (("before", found.before), ("after", found.after)):
        if overall is None:
            raise RepairError(
                f"{figures.path}: {when}: missing; does the recipe name a judge to measure with?"
            )
        side = Table(overall=overall, slices=(found.slices or {}).get(when, {}))
        for place, row in side.slices.items():
            for name in set(SLICED) & set(row):
                if not 0.0 <= row[name].value <= 1.0:
                    raise RepairError(
                        f"{figures.path}: slices.{when}.{place}.{name}.value: is no share between "
                        "0 and 1"
                    )
        sides.append(side)
    return sides[0], sides[1]


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The directory of one repair."""

    path: Path

    # What it reads

    @property
    def _anew(self) -> str:
        return f"restore it, or move {self.path} away: what it repairs is then repaired anew"

    @property
    def job(self) -> Document[Job]:
        """What it is for."""
        return Document(self.path / "job.json", Job, remedy=self._anew)

    @property
    def plan(self) -> Document[Plan]:
        """What it trains on and is tested on."""
        return replace(plan_document(self.path / "plan.json"), remedy=self._anew)

    @property
    def recipe(self) -> Document[Recipe]:
        """How it trains."""
        return Document(self.path / "recipe.json", Recipe, remedy=self._anew)

    @property
    def gate(self) -> Document[GatePolicy]:
        """What it must show."""
        return Document(self.path / "gate.json", GatePolicy, remedy=self._anew)

    @property
    def suites(self) -> Document[tuple[Suite, ...]]:
        """What the policy is asked before and after."""
        return Document(self.path / "suites.json", tuple[Suite, ...], remedy=self._anew)

    # What it makes

    @property
    def checkpoints(self) -> Path:
        """State of a training that runs."""
        return self.path / "checkpoints"

    def trained_adapter(self, side: Side) -> Path:
        """The LoRA adapter that training left, relative to the checkpoint that it started from."""
        return self.path / f"{side}_adapter"

    @property
    def figures(self) -> Document[Figures]:
        """Measured before and after; the last thing that training leaves."""
        return replace(figures_document(self.path / "figures.json"), remedy=MADE_AGAIN)

    @property
    def answers(self) -> Document[SuiteAnswers]:
        """To the suites' cases."""
        return Document(self.path / "answers.json", SuiteAnswers, remedy=MADE_AGAIN)

    @property
    def verdict(self) -> Document[GateVerdict]:
        """The gate's."""
        return Document(self.path / "verdict.json", GateVerdict, remedy=MADE_AGAIN)

    @property
    def adapter(self) -> Path:
        """The policy's adapter to release, relative to the base that the policy server has."""
        return self.path / "adapter"

    def merged(self, side: Side) -> Path:
        """A repaired model in full: what the next repair starts from."""
        return self.path / "merged" / side

    @property
    def bundle(self) -> Path:
        """The reward model to release; the last thing that exporting leaves."""
        return self.path / "bundle"

    @property
    def report(self) -> Document[RepairReport]:
        """How it ended."""
        return Document(self.path / "report.json", RepairReport, remedy=MADE_AGAIN)

    def log(self, step: Step) -> Path:
        """The output of a step's process."""
        return self.path / f"{step}.log"

    @property
    def forecast(self) -> Document[Forecast]:
        """What the candidate is expected to do in production, where somebody asked."""
        return Document(self.path / "forecast.json", Forecast, sparse=True)

    # Score card

    def write_score_card(self, document: bytes, text: str) -> None:
        """For programs and for people."""
        write_whole(self.path / "card.json", document)
        write_whole(self.path / "card.md", text.encode())

    def read_score_card(self, *, as_json: bool) -> str:
        """Raises RepairError when it has not ended."""
        file = self.path / ("card.json" if as_json else "card.md")
        try:
            return file.read_text(encoding="utf-8")
        except OSError as error:
            raise RepairError(
                f"{file}: {error.strerror}; a repair that has not ended has no score card"
            ) from None

    # State

    @property
    def is_trained(self) -> bool:
        """Whether adapters and figures are there."""
        return self.figures.exists

    @property
    def is_exported(self) -> bool:
        """Whether all that is released is there."""
        return self.bundle.exists()

    @property
    def is_settled(self) -> bool:
        """Whether nothing of it is left to do."""
        return (self.path / "settled").exists()

    def begin(
        self, job: Job, plan: Plan, recipe: Recipe, gate: GatePolicy, suites: Sequence[Suite]
    ) -> None:
        """Write all that it reads; the job comes last and begins it. A repair that failed is begun
        anew and goes on from what it had."""
        make_private(self.path)
        self.report.remove()
        (self.path / "settled").unlink(missing_ok=True)
        self.plan.write(plan)
        self.recipe.write(recipe)
        self.gate.write(gate)
        self.suites.write(tuple(suites))
        self.job.write(job)

    def settle(self) -> None:
        """Mark it; its checkpoints go."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        write_whole(self.path / "settled", b"")


@dataclass(frozen=True, slots=True)
class QuestionDirectory:
    """Where the policy is asked again for safe answers, in one context."""

    path: Path

    @property
    def recipe(self) -> Document[Recipe]:
        """Which policy is asked, and which judge reads its answers."""
        return Document(self.path / "recipe.json", Recipe)

    @property
    def questions(self) -> Document[Questions]:
        """What is asked now."""
        return Document(self.path / "asked.json", Questions)

    @property
    def answers(self) -> Document[dict[str, str | None]]:
        """To what is asked now: by `prompt_digest`, None where no answer was safe."""
        return Document(self.path / "answers.json", dict[str, str | None])

    @property
    def known(self) -> Document[dict[str, str | None]]:
        """Every answer of this context until now."""
        return Document(self.path / "kept.json", dict[str, str | None], remedy=MADE_AGAIN)

    @property
    def log(self) -> Path:
        """The output of the process that asks."""
        return self.path / "resample.log"

    def ask(self, recipe: Recipe, prompts: Mapping[str, tuple[Message, ...]], samples: int) -> None:
        """Write down a set of questions. Answers of another set, cut short here, go first."""
        make_private(self.path)
        self.answers.remove()
        self.recipe.write(recipe)
        self.questions.write(Questions(prompts=dict(prompts), samples=samples))


@dataclass(frozen=True, slots=True)
class Workspace:
    """The directory of all repairs of a service."""

    path: Path

    def run(self, plan_id: str) -> RunDirectory:
        """A plan's run directory, begun or not."""
        return RunDirectory(self.path / plan_id)

    def unfinished(self) -> list[RunDirectory]:
        """What was begun and is not settled, oldest first."""
        if not self.path.is_dir():
            return []
        runs = [RunDirectory(folder) for folder in self.path.glob("[!.]*")]
        begun = [run for run in runs if run.job.exists and not run.is_settled]
        return sorted(begun, key=lambda run: run.job.read().started_at)

    def questions(self, context: str) -> QuestionDirectory:
        """Where the policy is asked again in a context (a digest)."""
        return QuestionDirectory(self.path / ".resampled" / context[:32])

    @property
    def released(self) -> Path:
        """Copies of released files that lie in an object store."""
        return self.path / ".registry"


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` at the end of the block; after an
    error `folder` is as it was."""
    staging = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    yield staging
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def make_private(folder: Path) -> None:
    """Make a folder that only its owner may read. Raises ResourceError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be written: {error.strerror}") from error
