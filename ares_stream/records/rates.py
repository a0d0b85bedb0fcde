"""What the monitor knows: one record per slice and per anchor set, and the offsets that they cover.

All records of one topic, `rates`, are written in transactions: whoever reads it committed sees
figures that belong together. Every sum is an integer, so that the order in which partitions were
read changes no figure.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias, get_args

from pydantic import Field

from ares_stream.errors import DecodeError
from ares_stream.records.base import (
    Identifier,
    Instant,
    Integer,
    Interval,
    Offset,
    OffsetRange,
    Part,
    PartitionNumber,
    Record,
    Slice,
    canonical_json,
    decode_one_of,
)
from ares_stream.records.interaction import Lane, Policy
from ares_stream.records.verdict import FailureClass

Decision = Literal["flagged", "contested", "unflagged"]


class RateSlice(Part):
    """Whose rates: a lane, a policy's version, the reward model's release (first digits of its
    digest), and where `attribute` is not empty a value of it."""

    lane: Lane
    policy: Policy
    reward: Slice = ""
    attribute: Slice = ""
    value: Slice = ""

    @property
    def key(self) -> bytes:
        """Kafka's key."""
        names = [self.lane, self.policy.name, self.policy.version, self.reward]
        return canonical_json(["rates", *names, self.attribute, self.value])


class Window(Part):
    """Counts of the verdicts whose time lies in one window. `hits` are offsets of coupled
    failures among the verdicts, as (partition, offset), the first few of the window."""

    start: Integer = Field(description="Unix seconds")
    total: Integer = 0
    coupled: Integer = 0
    contested: Integer = 0
    harmful: Integer = 0
    hits: tuple[tuple[Integer, Integer], ...] = ()


class Watch(Part):
    """The evidence of one alarm over what lies before the windows: log wealth per bet.

    Windows before `since` (Unix seconds) do not count: the alarm was acknowledged then.
    """

    baseline: float | None = None
    log_wealth: tuple[float, ...] = ()
    since: Integer = 0
    alarm: str = ""
    """Id of the alarm that it raised and nobody has acknowledged yet."""


class WeightSums(Part):
    """Sums over draws of known probability, in units of 1e-9."""

    draws: Integer = 0
    weight: Integer = 0
    weight_squared: Integer = 0
    hit_weight: Integer = 0
    hit_weight_squared: Integer = 0


class Tallies(Part):
    """Counts since the slice's first verdict. Histograms have ten bins of equal width.

    `liked`, `harmful` and `both` are of verdicts that are not contested; `cells` counts verdicts
    by decision and liking, keyed "flagged,liked"; `clusters` holds [verdicts, coupled failures]
    of each group of clusters, and `cluster_cells` its liked contested and unflagged ones.
    """

    classes: dict[FailureClass, Integer] = Field(default_factory=dict)
    harmful: Integer = 0
    liked: Integer = 0
    both: Integer = 0
    outliers: Integer = 0
    outlier_known: Integer = 0
    cells: dict[str, Integer] = Field(default_factory=dict)
    harm_histogram: tuple[Integer, ...] = ()
    reward_histogram: tuple[Integer, ...] = ()
    weights: WeightSums = WeightSums()
    clusters: tuple[tuple[Integer, Integer], ...] = ()
    cluster_cells: tuple[tuple[Integer, Integer], ...] = ()


class CorrectedFigure(Part):
    """The coupled-failure rate with the judge's error taken out, or why not."""

    corrected: bool
    reason: str
    labels: Integer
    rate: Interval | None = None
    rate_clustered: Interval | None = None
    """With the interval between groups of clusters, where a cluster is named."""
    contested_harmful: Interval
    sensitivity_liked: Interval | None = None
    specificity_liked: Interval | None = None
    sensitivity_disliked: Interval | None = None
    specificity_disliked: Interval | None = None


class Figures(Part):
    """What the tallies say. Intervals hold however often one looks, unless their name says
    `clustered` or `lift`."""

    total: Integer
    cfr: Interval
    cfr_clustered: Interval | None = None
    cfr_weighted: Interval | None = None
    classes: dict[FailureClass, Interval]
    harmful: Interval
    scored_high: Interval
    reward_blind: Interval
    """Of harmful answers, the share that the reward model likes."""
    lift: Interval | None = None
    outliers: Interval | None = None
    recent: Interval
    """The coupled-failure rate of the last hour of the slice's windows, fixed-n Wilson."""
    day: Interval
    correction: CorrectedFigure


class Rates(Record):
    """One slice: what was counted, and the figures that follow from it."""

    SCHEMA: ClassVar[str] = "ares.rates/1"
    schema_: Literal["ares.rates/1"] = Field("ares.rates/1", alias="schema")
    slice: RateSlice
    since: Instant
    until: Instant
    tallies: Tallies
    windows: tuple[Window, ...]
    late: Integer = 0
    """Verdicts older than every window: in the tallies, in no alarm."""
    watches: dict[str, Watch] = Field(default_factory=dict)
    figures: Figures

    @property
    def key(self) -> bytes:
        """Kafka's key."""
        return self.slice.key

    def as_report(self) -> dict[str, Any]:
        """JSON-ready: whose rates, since when, and the figures, without the state."""
        return {
            "slice": self.slice.model_dump(),
            "since": self.since.isoformat(),
            "until": self.until.isoformat(),
            "late": self.late,
            "figures": self.figures.model_dump(mode="json"),
        }


class AnchorModel(Part):
    """How one reward release scores the anchors, against the scores when the set was made. Sums
    in units of 1e-6 and 1e-12."""

    count: Integer = 0
    shift: Integer = 0
    shift_squared: Integer = 0
    reference: Integer = 0
    reference_squared: Integer = 0


class AnchorWindow(Part):
    """Different anchors of one window: how many, and of how many most answers were otherwise than
    when the set was made; the same of those that were not flagged then."""

    start: Integer
    total: Integer = 0
    changed: Integer = 0
    unflagged: Integer = 0
    unflagged_changed: Integer = 0


class AnchorFigures(Record):
    """What one anchor set says of the judge and of each reward release."""

    SCHEMA: ClassVar[str] = "ares.anchor-figures/1"
    schema_: Literal["ares.anchor-figures/1"] = Field("ares.anchor-figures/1", alias="schema")
    set: Identifier
    decisions: dict[str, Integer]
    """Verdicts by truth and decision, keyed "harmful,flagged"."""
    windows: tuple[AnchorWindow, ...]
    watch: Watch
    rewards: dict[Slice, AnchorModel]
    drifted: tuple[Slice, ...] = ()
    """Reward releases whose drift an alarm has told."""

    @property
    def key(self) -> bytes:
        """Kafka's key."""
        return canonical_json(["anchors", self.set])


class AnchorAnswers(Record):
    """What was said of each anchor of a set in one window: state. `answers` holds, by a digest of
    the anchor's id, how often it was asked, how often it was decided otherwise than when the set
    was made, and whether it had been flagged then."""

    SCHEMA: ClassVar[str] = "ares.anchor-answers/1"
    schema_: Literal["ares.anchor-answers/1"] = Field("ares.anchor-answers/1", alias="schema")
    set: Identifier
    start: Integer = Field(description="Unix seconds")
    answers: dict[str, tuple[Integer, Integer, bool]]

    @property
    def key(self) -> bytes:
        """Kafka's key."""
        return canonical_json(["anchors", self.set, self.start])


class SampledVerdict(Record):
    """A verdict of the review sample, waiting for labels, with those it has: the state from
    which the judge's error is known. No text."""

    SCHEMA: ClassVar[str] = "ares.sampled-verdict/1"
    schema_: Literal["ares.sampled-verdict/1"] = Field("ares.sampled-verdict/1", alias="schema")
    id: Identifier
    interaction_id: Identifier
    slice: RateSlice
    attributes: dict[Slice, Slice]
    decision: Decision
    liked: bool
    cluster: Integer | None = None
    """Its group of clusters, where a cluster is named."""

    @property
    def key(self) -> bytes:
        """Kafka's key."""
        return canonical_json(["sampled", self.id])


class Position(Part):
    """How far one partition was followed; `log` says of which log the offset is."""

    topic: Identifier
    partition: PartitionNumber
    offset: Offset
    log: str = ""


class MonitorState(Record):
    """What the figures cover. Key: "state".

    `gaps` are offsets that were deleted before they were read: the figures lack them.
    `unreadable` counts records by topic, `unmatched` labels whose verdict is not in the sample,
    `folded` verdicts by attribute whose value was counted as another.
    """

    SCHEMA: ClassVar[str] = "ares.monitor-state/1"
    schema_: Literal["ares.monitor-state/1"] = Field("ares.monitor-state/1", alias="schema")
    positions: tuple[Position, ...]
    records: Integer | None = None
    """Other records that belong to this state: fewer are a topic that lost some."""
    gaps: tuple[OffsetRange, ...] = ()
    unreadable: dict[str, Integer] = Field(default_factory=dict)
    folded: dict[str, Integer] = Field(default_factory=dict)
    unmatched: Integer = 0
    lanes: dict[str, Instant] = Field(default_factory=dict)
    """Time of each lane's last verdict."""
    deadletters: tuple[Window, ...] = ()
    watches: dict[str, Watch] = Field(default_factory=dict)
    updated_at: Instant
    review_shares: dict[str, float] = Field(default_factory=dict)
    """Share of each cell that people should see, keyed "flagged,liked": the scorer's setting
    that would narrow the corrected rate most for the same number of labels."""

    @property
    def key(self) -> bytes:
        """Kafka's key."""
        return STATE_KEY


STATE_KEY = canonical_json(["state"])

Held: TypeAlias = Rates | SampledVerdict | AnchorFigures | AnchorAnswers | MonitorState
"""What the rates topic holds."""


def decode_held(key: bytes | None, raw: bytes | None) -> Held:
    """A record of the rates topic. Raises DecodeError, also where its key is another one's."""
    item: Held = decode_one_of(raw, get_args(Held))
    if key != item.key:
        raise DecodeError("is not that of the state", field="key")
    return item
