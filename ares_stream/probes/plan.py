"""What a campaign is: its space, its words, its method, its budget; from a YAML file or in code.

    name: nightly
    method: adaptive            # or one that it is compared with
    budget: 1000                # queries, confirmations included
    taxonomy: ours.yaml         # merged over the default; left out: the default
    prior: last-week.json       # from `ares probe export-prior`
    target:
      endpoint: {url: "http://policy:8000/v1", model: assistant, version: "7"}
    attacker:                   # words a share of the probes; optional
      endpoint: {url: "http://attacker:8000/v1", model: attacker}
      share: 0.3
      languages: [German, Swahili]

The campaign's id is its name and a digest of everything that its choices depend on, the version of
the search among it: a changed file is another campaign.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ares_stream.endpoints.client import EndpointPolicy
from ares_stream.errors import SettingsError
from ares_stream.files import read_json, read_yaml, renewed_api_key
from ares_stream.probes.attacker import AttackPlan
from ares_stream.probes.baselines import make_selector
from ares_stream.probes.campaign import Campaign, CampaignPolicy
from ares_stream.probes.composition import Composer, TaxonomyComposer
from ares_stream.probes.selection import SELECTION, Adaptive, Prior
from ares_stream.probes.space import Space
from ares_stream.probes.surrogate import FeaturePrior
from ares_stream.probes.targets import OpenAITarget, RecordedTarget, Target
from ares_stream.probes.taxonomy import load_taxonomy
from ares_stream.records.base import digest
from ares_stream.records.interaction import Policy

PRIOR_SCHEMA = "ares.probe-prior/1"


@dataclass(frozen=True)
class CampaignPlan:
    """A campaign that has not begun. `start` gives the same state machine every time."""

    id: str
    space: Space
    composer: Composer
    policy: CampaignPolicy
    method: str = "adaptive"
    seed: int = 0
    prior: Prior | None = None
    attack: AttackPlan | None = None

    def start(self) -> Campaign:
        """The campaign before its first query."""
        selector = make_selector(self.method, self.space, self.seed, self.prior)
        return Campaign(self.id, selector, self.policy)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EndpointSection(_Section):
    """An OpenAI-compatible endpoint; the fields are those of EndpointPolicy."""

    SHAPES: ClassVar = {"model", "version", "max_tokens", "temperature", "top_p"}
    """What its answers depend on; the rest is how it is reached."""

    url: str
    model: str
    version: str = "unknown"
    api_key_file: Path | None = None
    concurrency: int = Field(8, ge=1)
    requests_per_minute: float = Field(0.0, ge=0)
    timeout_seconds: float = Field(60.0, gt=0)
    patience_seconds: float = Field(0.0, ge=0)
    """Without any answer; 0 is twice timeout_seconds."""
    attempts: int = Field(4, ge=1)
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    price_per_million: tuple[float, float] = (0.0, 0.0)

    def open(self, section: str) -> OpenAITarget:
        """Connect; `section` is named in errors. Raises SettingsError."""
        fields = self.model_dump(exclude={"api_key_file"})
        file = self.api_key_file
        key = None if file is None else renewed_api_key(f"{section}.api_key_file", file)
        return OpenAITarget(EndpointPolicy(**fields, api_key=key, section=section))


class FileSection(_Section):
    """Recorded answers (JSON lines), or the folder of a transformers model."""

    path: Path
    name: str = "policy"
    version: str = "unknown"


class TargetSection(_Section):
    """Who is asked: exactly one of these."""

    endpoint: EndpointSection | None = None
    recorded: FileSection | None = None
    local: FileSection | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(item is not None for item in (self.endpoint, self.recorded, self.local)) != 1:
            raise ValueError("name exactly one of endpoint, recorded, local")
        return self

    def open(self) -> Target:
        """Connect to, or load, the target. Raises SettingsError."""
        if self.recorded is not None:
            policy = Policy(name=self.recorded.name, version=self.recorded.version)
            return RecordedTarget.load(self.recorded.path, policy)
        if self.local is not None:
            from ares_stream.probes.local_target import LocalTarget

            policy = Policy(name=self.local.name, version=self.local.version)
            return LocalTarget.load(self.local.path, policy)
        assert self.endpoint is not None  # noqa: S101 - validated: exactly one
        return self.endpoint.open("target")


Language = Annotated[str, Field(pattern=r"^[A-Za-z]+([ -][A-Za-z]+)*$", max_length=40)]


class AttackerSection(_Section):
    """A language model that words a share of the probes; see attacker.AttackPlan."""

    endpoint: EndpointSection
    share: float = Field(0.3, gt=0, le=1)
    languages: tuple[Language, ...] = ()

    @property
    def plan(self) -> AttackPlan:
        """What it is asked for."""
        return AttackPlan(self.share, self.languages)

    def open(self) -> Target:
        """Connect. Raises SettingsError."""
        return self.endpoint.open("attacker.endpoint")


class CampaignFile(_Section):
    """The YAML file. Paths in it are relative to it."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    method: Literal[
        "adaptive", "uniform", "uniform_without_replacement", "paper_weights", "map_elites"
    ] = "adaptive"
    budget: int = Field(1000, ge=1)
    batch: int = Field(25, ge=1, le=1000)
    seed: int = Field(0, ge=0)
    taxonomy: Path | None = None
    prior: Path | None = None
    target: TargetSection
    attacker: AttackerSection | None = None

    def plan(self) -> CampaignPlan:
        """Read the taxonomy and the prior. Raises SettingsError."""
        taxonomy = load_taxonomy(self.taxonomy)
        prior = None if self.prior is None else load_prior(self.prior)
        choices = self.model_dump(mode="json", include={"method", "budget", "batch", "seed"})
        choices["taxonomy"] = taxonomy.digest
        choices["selection"] = SELECTION
        if prior is not None:
            choices["prior"] = digest(_prior_document(prior, ""))
        attacker = self.attacker
        if attacker is not None:
            # Where it is and with which key may change under way; what it says may not.
            shapes = attacker.endpoint.model_dump(mode="json", include=EndpointSection.SHAPES)
            choices["attacker"] = [shapes, attacker.share, list(attacker.languages)]
        return CampaignPlan(
            f"{self.name}-{digest(choices)[:8]}",
            taxonomy.space(),
            TaxonomyComposer(taxonomy),
            CampaignPolicy(self.budget, self.batch),
            self.method,
            self.seed,
            prior,
            None if attacker is None else attacker.plan,
        )


def load_campaign(file: Path, prior: Path | None = None) -> CampaignFile:
    """Read a campaign file; `prior` wins over the file's. Raises SettingsError naming the field."""
    campaign = read_yaml(file, CampaignFile)
    paths: dict[str, Any] = {
        name: file.parent / value
        for name in ("taxonomy", "prior")
        if (value := getattr(campaign, name)) is not None
    }
    if prior is not None:
        paths["prior"] = prior
    target = campaign.target
    for name in ("recorded", "local"):
        part: FileSection | None = getattr(target, name)
        if part is not None:
            moved = part.model_copy(update={"path": file.parent / part.path})
            target = target.model_copy(update={name: moved})
    attacker = campaign.attacker
    if target.endpoint is not None:
        moved_endpoint = _beside(target.endpoint, file)
        target = target.model_copy(update={"endpoint": moved_endpoint})
    if attacker is not None:
        attacker = attacker.model_copy(update={"endpoint": _beside(attacker.endpoint, file)})
    return campaign.model_copy(update={**paths, "target": target, "attacker": attacker})


def _beside(endpoint: EndpointSection, file: Path) -> EndpointSection:
    """The endpoint with its key's file relative to the campaign's."""
    if endpoint.api_key_file is None:
        return endpoint
    return endpoint.model_copy(update={"api_key_file": file.parent / endpoint.api_key_file})


def export_prior(campaign: Campaign) -> dict[str, Any]:
    """What a campaign learnt, JSON-ready. Raises SettingsError for a method that learns nothing
    that could be carried over, or a campaign that has not begun."""
    if not isinstance(campaign.selector, Adaptive):
        raise SettingsError(f"method {campaign.selector.name} has no prior to export; adaptive has")
    prior = campaign.selector.export()
    if not prior.harm.features:
        raise SettingsError(f"campaign {campaign.id} has learnt nothing yet")
    return _prior_document(prior, campaign.id)


def load_prior(file: Path) -> Prior:
    """Read what `export_prior` gave. Raises SettingsError naming the field."""
    document: Any = read_json(file, object)
    if not isinstance(document, dict) or document.get("schema") != PRIOR_SCHEMA:
        raise SettingsError(f"{file}: schema: expected {PRIOR_SCHEMA}")
    parts: dict[str, FeaturePrior] = {}
    for name in ("harm", "reward"):
        features = document.get(name)
        if not isinstance(features, dict):
            raise SettingsError(f"{file}: {name}: expected features with mean and precision")
        for feature, value in features.items():
            if not (
                isinstance(value, list)
                and len(value) == 2
                and all(isinstance(item, int | float) for item in value)
                and value[1] >= 0
            ):
                raise SettingsError(f"{file}: {name}.{feature}: expected [mean, precision]")
        parts[name] = FeaturePrior({key: (float(m), float(p)) for key, (m, p) in features.items()})
    failures = document.get("failures", [])
    if not isinstance(failures, list):
        raise SettingsError(f"{file}: failures: expected a list")
    for place, ids in enumerate(failures):
        if not isinstance(ids, dict) or not all(isinstance(item, str) for item in ids.values()):
            raise SettingsError(f"{file}: failures.{place}: expected a component for each axis")
    return Prior(**parts, failures=tuple(failures))


def _prior_document(prior: Prior, campaign: str) -> dict[str, Any]:
    return {
        "schema": PRIOR_SCHEMA,
        "campaign": campaign,
        "harm": {name: list(value) for name, value in prior.harm.features.items()},
        "reward": {name: list(value) for name, value in prior.reward.features.items()},
        "failures": [dict(ids) for ids in prior.failures],
    }
