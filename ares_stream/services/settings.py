"""Settings of the services: a YAML file, then the environment over it.

    ares scorer --settings ares.yaml
    ARES_SCORER__REWARD=/models/reward ares scorer

A nested field's variable joins the names with two underscores. Secrets are read from files
and masked wherever settings are printed. Settings end at the services: a library function
receives its own small frozen policy.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as UnreadableSettings

from ares_stream.console.policy import IdentityPolicy, QueuePolicy
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.errors import SettingsError, remember_secrets_of
from ares_stream.files import fault, parse_yaml, read_text
from ares_stream.models.policy_server import PolicyServer
from ares_stream.records.base import Probability
from ares_stream.records.decoding import DecodingLimits
from ares_stream.records.forecast import FIGURES
from ares_stream.records.interaction import Lane
from ares_stream.records.mapping import Mapping
from ares_stream.repair.gate import GatePolicy
from ares_stream.repair.plan_policy import PlanPolicy
from ares_stream.repair.recipe import Recipe
from ares_stream.services.paths import Location, anchored
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.patience import PATIENCE_SECONDS
from ares_stream.streaming.resume import OffsetReset

if TYPE_CHECKING:
    from ares_stream.models.store import ReleaseStore

PREFIX: Final = "ARES_"


class Section(BaseModel):
    """A part of the settings; an unknown field is an error, so that a typo is seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")


ReviewCell = Literal[
    "flagged,liked",
    "flagged,disliked",
    "contested,liked",
    "contested,disliked",
    "unflagged,liked",
    "unflagged,disliked",
]


class HttpSettings(Section):
    """Where /livez, /readyz and /metrics are served."""

    host: str = "127.0.0.1"
    """`::` listens on every address, of IPv4 and IPv6."""
    port: int = Field(9464, ge=0, le=65535)


class InputSettings(Section):
    """A topic to read. `map` turns any JSON into an Interaction; without it the topic's
    values are Interactions already."""

    topic: str = Field(min_length=1)
    lane: Lane
    map: Mapping | None = None


class ProcessingSettings(Section):
    """How much is in flight and how often it is committed."""

    window_records: int = Field(128, ge=1, le=4096, description="records handled together")
    inflight_records: int = Field(2048, ge=1)
    inflight_mebibytes: int = Field(64, ge=1)
    commit_records: int = Field(250, ge=1)
    commit_milliseconds: int = Field(250, ge=10)
    drain_seconds: float = Field(25.0, gt=0)
    session_seconds: float = Field(9.0, ge=6.0)
    """A process that is silent this long loses its partitions."""
    metadata_seconds: float = Field(30.0, ge=1.0)
    stall_seconds: float = Field(60.0, ge=1.0)
    offset_reset: OffsetReset = "earliest"
    record_mebibytes: int = Field(32, ge=1, description="a larger record is never held in memory")
    batch_mebibytes: int = Field(64, ge=1, description="a compressed batch may hold this much")


class BreakerSettings(Section):
    """When a topic is no longer read, because too much of it is refused: a share of its last
    `window` records, or a run without a gap."""

    window: int = Field(500, ge=1)
    share: float = Field(0.5, gt=0, le=1)
    consecutive: int = Field(100, ge=1)
    accept_dead_letters: bool = False
    """Go on however much is refused: every refused record is in the dead-letter topic."""


class ConstitutionSettings(Section):
    """A language model that is asked about what the other judges doubt."""

    url: str
    """Of an OpenAI-compatible endpoint, up to and with /v1."""
    model: str
    file: Path
    """The principles, plain text."""
    api_key_file: Path | None = None
    doubt: tuple[float, float] = (0.35, 0.65)
    """Asked where the panel's probability lies in this range."""
    seconds: float = Field(10.0, gt=0)
    concurrency: int = Field(4, ge=1)
    per_minute: int = Field(120, ge=1)


class ScorerSettings(Section):
    """The scorer service."""

    group: str = "ares-scorer"
    inputs: tuple[InputSettings, ...] = ()
    """Empty means the three interaction topics of the prefix."""
    harm: tuple[Path, ...] = ()
    reward: Path | None = None
    phrases: Path | None = None
    """YAML of phrases and weights: one more judge."""
    constitution: ConstitutionSettings | None = None
    provider: Literal["cpu", "cuda"] = "cpu"
    tf32: bool = False
    """On a GPU: multiply with 10 bits of mantissa, two to three times as fast; scores then depend
    on the batch by some thousandths."""
    threads: int = Field(0, ge=0, description="0 means one per core")
    allow_shared_lineage: bool = False
    public_key: Path | None = None
    """Elliptic-curve key, PEM: then only bundles signed by its owner are loaded."""
    detection: DetectionPolicy = DetectionPolicy()
    limits: DecodingLimits = DecodingLimits()
    review_sample: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """Share of verdicts that people also see, whatever the verdict: the labels that
    correct the judge's error come from these."""
    review_split: dict[ReviewCell, Probability] = {}
    """Shares of single cells in the place of `review_sample`; `ares rates --sampling` prints
    those that would help the labels most."""
    follow_releases: bool = True
    release_cache: Path = Path("releases")
    """Where releases from an object store are kept; may be emptied at any time."""
    processing: ProcessingSettings = ProcessingSettings()
    breaker: BreakerSettings = BreakerSettings()
    instance: str | None = None
    """Kafka's group.instance.id: a restarted pod gets its partitions back without a rebalance."""


class AlarmSettings(Section):
    """What is bearable; null watches nothing. See detection/alarming.py."""

    coupled: float | None = Field(None, gt=0.0, lt=1.0)
    """Coupled-failure rate of production and probe lane. A version is compared with the one
    before whatever this is."""
    contested: float | None = Field(0.3, gt=0.0, lt=1.0)
    dead_letters: float | None = Field(0.01, gt=0.0, lt=1.0)
    judge_changed: float | None = Field(0.01, gt=0.0, lt=1.0)
    """Share of anchors that a steady judge may decide otherwise than when the set was made."""
    reward_drift: float | None = Field(0.25, gt=0.0)
    """Shift of the anchors' rewards, in standard deviations (root mean square)."""
    false_alarm_days: float = Field(30.0, gt=0.0)
    """Days between two false alarms of one kind for one policy, on average, at least."""
    silent_seconds: dict[Lane, float] = {}
    """After how long without a verdict a lane counts as silent."""


class AnchorSettings(Section):
    """Anchors that the monitor sends again and again."""

    file: Path
    """Of `ares anchors make`."""
    per_minute: float = Field(2.0, gt=0.0, le=600.0)


class ProberSettings(Section):
    """The prober service, and every command that runs a campaign."""

    scorer_groups: dict[Literal["production", "probe"], str] = {}
    """Consumer group by lane, where lanes have scorers of their own; scorer.group elsewhere. A
    campaign waits while these groups are far behind."""


class MonitorSettings(Section):
    """The monitor service."""

    group: str = "ares-monitor"
    slices: tuple[str, ...] = Field((), max_length=8)
    """Attributes to slice by."""
    cluster: str | None = None
    """An attribute whose values are not independent inside, such as a user."""
    max_values: int = Field(50, ge=1, le=1000)
    max_versions: int = Field(100, ge=2, le=1000)
    max_samples: int = Field(20_000, ge=100)
    publish_seconds: float = Field(5.0, gt=0.0)
    alarms: AlarmSettings = AlarmSettings()
    anchors: AnchorSettings | None = None


NotarisedTopic = Literal[
    "interactions.production",
    "interactions.probe",
    "interactions.anchor",
    "verdicts",
    "repair",
    "review",
    "labels",
    "releases",
    "repairs",
    "deadletters",
]


class StampSettings(Section):
    """The authority that puts times on checkpoints (RFC 3161)."""

    url: str = Field(pattern="^https?://")
    roots: Path
    """PEM: the root certificates that its answers must lead to."""
    every_seconds: float = Field(3600.0, ge=1.0)
    """Between two time stamps of a partition's heads."""
    timeout_seconds: float = Field(5.0, gt=0.0, le=60.0)


class NotarySettings(Section):
    """The notary service."""

    group: str = "ares-notary"
    name: str = Field("ares-stream", pattern=r"^[^\s+]+$")
    """What its signatures are made under, such as example.com/ares: the name of its keys."""
    keys: tuple[Path, ...] = ()
    """Private keys of `ares audit key`. Each signs each head: to change keys, name the new one
    beside the old one until every auditor has its public half."""
    topics: tuple[NotarisedTopic, ...] = Field(
        ("verdicts", "repair", "labels", "releases", "repairs", "deadletters"), min_length=1
    )
    checkpoint_seconds: float = Field(10.0, gt=0.0)
    """Between two heads of a partition that grows; a release is signed at once."""
    stamps: StampSettings | None = None
    """An authority that says when heads stood (RFC 3161). While it does not answer, heads are
    signed without."""


class ConsoleSettings(Section):
    """The review console. See docs/review.md."""

    host: str = "127.0.0.1"
    port: int = Field(9470, ge=0, le=65535)
    """Of the pages; /metrics and the probes are at `http`."""
    path: str = Field("", pattern=r"^(/[A-Za-z0-9._~-]+)*$", max_length=200)
    """Under which a proxy serves the pages, such as /review; none where they have a host alone."""
    identity: IdentityPolicy = IdentityPolicy()
    session_key_file: Path | None = None
    """Signs sessions and forms; without it both end with the process."""
    reference: Path | None = None
    """Benign conversations, JSON lines of Interactions, that a failure is compared with."""
    queue: QueuePolicy = QueuePolicy()


class TracingSettings(Section):
    """Spans by OTLP over HTTP. Nothing is sent unless an endpoint is named."""

    endpoint: str | None = Field(None, pattern="^https?://")
    """Of the collector, whole: http://collector:4318/v1/traces."""
    token_file: Path | None = None
    """Sent as a bearer token."""
    ca_file: Path | None = None
    batch_seconds: float = Field(5.0, gt=0.0, le=60.0)


class RegistrySettings(Section):
    """Where releases are kept, and who is told besides the releases topic."""

    root: Annotated[str, Location] = Field(
        "registry", min_length=1, description="a path or an fsspec URL"
    )
    max_lora_rank: int = Field(16, ge=1)
    """Adapters of a larger rank are refused: the policy server's own --max-lora-rank."""
    policy_server: PolicyServer | None = None
    forecast: GatePolicy | None = None
    """Rules that a candidate's forecast must clear before it may be approved; null asks for no
    forecast. Figures: cfr, policy_harm, contested, over_refusal."""

    @model_validator(mode="after")
    def _forecast_figures(self) -> Self:
        rules = () if self.forecast is None else self.forecast.rules
        if odd := sorted({rule.figure for rule in rules} - set(FIGURES)):
            raise ValueError(
                f"registry.forecast.rules: {odd[0]}: not a forecast's figure; there are "
                + ", ".join(FIGURES)
            )
        return self

    def store(self) -> ReleaseStore:
        """Where they are kept. Raises RegistryError for a place that is none."""
        from ares_stream.models.store import ReleaseStore

        if self.forecast is None:
            return ReleaseStore(self.root, max_rank=self.max_lora_rank)
        from ares_stream.audit.forecast import objections

        against = partial(objections, rules=self.forecast)
        return ReleaseStore(self.root, max_rank=self.max_lora_rank, objections=against)


class RepairerSettings(Section):
    """The repairer service. Paths are on the machine that trains."""

    group: str = "ares-repairer"
    work: Path = Path("repairs")
    """One directory per repair; at least the active release's must be kept."""
    policy_model: str = "policy"
    """The name under which the policy's adapters are released and served."""
    incumbent: Path | None = None
    """The reward bundle in use before the first repair."""
    reference: Path | None = None
    """Benign conversations, JSON lines of Interactions: the reward's quantiles."""
    replay: Path | None = None
    """A directory of benign.jsonl, over_refusal.jsonl ({messages, response}) and
    validated.jsonl ({messages, chosen, rejected})."""
    suites: Path | None = None
    """A directory of evaluation suites."""
    recipe: Recipe | None = None
    plan: PlanPolicy = PlanPolicy()
    gate: GatePolicy = GatePolicy()
    approval: Literal["manual", "automatic"] = "manual"
    private_key: Path | None = None
    """Elliptic-curve key, PEM: signs repaired bundles."""
    min_failures: int = Field(64, ge=2)
    """New failures that start a repair."""
    max_failures: int = Field(4096, ge=2)
    every_hours: float | None = Field(None, gt=0)
    """Also start one when the oldest new failure has waited for this long."""
    poll_seconds: float = Field(5.0, gt=0)
    step_hours: float = Field(6.0, gt=0)
    """For each step of a repair; what takes longer is ended."""
    step_mebibytes: int = Field(16_384, ge=64)
    resample: int = Field(4, ge=0)
    """How often the policy is asked again where a failure has no safe answer; 0 asks never."""
    resample_prompts: int = Field(512, ge=1)
    """How many failures of a batch it is asked about."""
    resample_command: tuple[str, ...] = ()
    train_command: tuple[str, ...] = ()
    """Programs of your own in the place of ours; empty means ours."""
    answer_command: tuple[str, ...] = ()
    export_command: tuple[str, ...] = ()
    gate_command: tuple[str, ...] = ()
    """Called with passed or rejected, the first reason and the repair's folder once the gate has
    decided; what it does changes nothing. The chart writes the verdict on the repair's Jobs."""


class Settings(BaseSettings):
    """Everything a service reads from outside."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )
    kafka: KafkaConnection = KafkaConnection()
    topic_prefix: str = "ares."
    patience_seconds: float = Field(PATIENCE_SECONDS, gt=0)
    """How long a service waits for Kafka without any progress before it ends with code 3; at the
    start too."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    http: HttpSettings = HttpSettings()
    tracing: TracingSettings = TracingSettings()
    scorer: ScorerSettings = ScorerSettings()
    registry: RegistrySettings = RegistrySettings()
    repairer: RepairerSettings = RepairerSettings()
    prober: ProberSettings = ProberSettings()
    monitor: MonitorSettings = MonitorSettings()
    notary: NotarySettings = NotarySettings()
    console: ConsoleSettings = ConsoleSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, whose content arrives as init values."""
        return (env_settings, init_settings)

    @property
    def scorer_groups(self) -> dict[str, str]:
        """The group that scores each lane a campaign looks at."""
        lanes = ("production", "probe")
        return dict.fromkeys(lanes, self.scorer.group) | dict(self.prober.scorer_groups)

    @model_validator(mode="after")
    def _forecast_comes_after_the_repair(self) -> Self:
        if self.registry.forecast is not None and self.repairer.approval == "automatic":
            raise ValueError(
                "repairer.approval: automatic would approve before a forecast is made, which "
                "registry.forecast asks for; set manual"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _mask_urls(cls, values: object) -> object:
        """A password or key in a URL is no file of its own, and is shown nowhere all the same."""
        remember_secrets_of(str(values))
        return values

    @model_validator(mode="after")
    def _topics_once(self) -> Self:
        topics = [item.topic for item in self.scorer.inputs]
        if len(set(topics)) != len(topics):
            raise ValueError("scorer.inputs: a topic is named twice; give each topic one lane")
        return self


def load_settings(file: Path | None = None) -> Settings:
    """Read the file, if one is given, and the environment. Raises SettingsError.

    Paths in the file are relative to the file; paths in the environment, and defaults, to where
    the process was started.
    """
    content: dict[str, Any] = {}
    if file is not None:
        content = anchored(Settings, _read_yaml(file), file.resolve().parent)
    _refuse_stray_variables(os.environ)
    try:
        return Settings(**content)
    except ValidationError as error:
        raise SettingsError(_explained(error, file)) from None
    except UnreadableSettings as error:
        unread = getattr(error.__cause__, "doc", None)
        where = (name for name, value in os.environ.items() if value == unread)
        variable = next((name for name in where if name.startswith(PREFIX)), str(error))
        raise SettingsError(
            f"{variable}: not JSON, which a list and a section are written in: "
            f"""{PREFIX}SCORER__HARM='["/models/judge"]'"""
        ) from None


def _explained(error: ValidationError, file: Path | None) -> str:
    """The first thing that is wrong, where, and both places to mend it."""
    wrong = fault(error, Settings)
    reason = wrong.reason.replace("no such field", "no such setting", 1)
    place = str(file or "a settings file")
    if not wrong.field:
        return f"{reason} (in {place})"
    # A variable names a field; what lies inside a list is part of that list's JSON.
    fields = itertools.takewhile(lambda part: not part.isdigit(), wrong.field.split("."))
    variable = PREFIX + "__".join(str(name).upper() for name in fields)
    return f"{wrong.field}: {reason} (set it in {place} or as {variable})"


def _refuse_stray_variables(environment: Iterable[str]) -> None:
    """Of a variable whose section does not exist nothing would ever be heard."""
    for name in environment:
        section, nested, _ = name.removeprefix(PREFIX).partition("__")
        if name.startswith(PREFIX) and nested and section.lower() not in Settings.model_fields:
            known = ", ".join(field.upper() for field in Settings.model_fields)
            raise SettingsError(f"{name}: no such section {section}; there are {known}")


def _read_yaml(file: Path) -> dict[str, Any]:
    content = parse_yaml(read_text(file), file, error=SettingsError).content
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise SettingsError(f"{file}: not a mapping of names to values, such as `topic_prefix: x.`")
    return content
