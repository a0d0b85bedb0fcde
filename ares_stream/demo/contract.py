"""What the demo is asked, what it shows while it runs, and what it ends with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ares_stream.audit.accounting import Account
from ares_stream.probes.rounds import Round
from ares_stream.records.base import Interval
from ares_stream.records.interaction import Interaction
from ares_stream.records.mapping import Mapping
from ares_stream.records.repair import CoupledFailure
from ares_stream.records.verdict import Verdict

PREFIX: Final = "demo."
"""Of every topic of the demo's broker."""


class View(Protocol):
    """What a person watches. Calls are quick and never raise."""

    def step(self, text: str) -> None:
        """A new step began."""

    def expect(self, conversations: int) -> None:
        """How many records will be sent."""

    def sent(self, conversations: int) -> None:
        """So many more were sent."""

    def verdict(self, verdict: Verdict) -> None:
        """A verdict was read back from Kafka."""

    def failure(self, failure: CoupledFailure) -> None:
        """A coupled failure was read back from the repair topic."""

    def refused(self) -> None:
        """A dead letter was read back."""

    def round(self, found: Round) -> None:
        """A round of probes ended."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to stream and where results go. `input_file` needs `harm` and `reward`.

    `rounds` of `queries` probes each follow the stream, with a repair between each two; none
    with `input_file`, which comes without a policy to ask.
    """

    out: Path
    conversations: int = 2000
    seed: int = 7
    input_file: Path | None = None
    harm: tuple[Path, ...] = ()
    reward: Path | None = None
    map_file: Path | None = None
    rounds: int = 2
    queries: int = 300
    cache: Path = Path("build/testbed")


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What the demo found; `as_json` is build/demo/summary.json."""

    synthetic: bool
    rate: Interval
    account: Account
    rounds: tuple[Round, ...]
    releases: dict[str, str]
    seconds: dict[str, float]
    report: Path
    monitored: dict[str, Any]
    """The monitor's rates and alarms."""

    def as_json(self) -> dict[str, Any]:
        """JSON-ready, without any text of the conversations."""
        return {
            "schema": "ares.demo-summary/1",
            "synthetic": self.synthetic,
            "coupled_failure_rate": self.rate.model_dump(),
            "exactly_once": self.account.exactly_once,
            **asdict(self.account),
            "rounds": [item.as_json() for item in self.rounds],
            "releases": self.releases,
            "monitor": self.monitored,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "report": str(self.report),
        }


@dataclass(frozen=True, slots=True)
class Stream:
    """What goes in: values with keys, and the bundles and mapping to score them with."""

    records: tuple[tuple[bytes, bytes], ...]
    harm: tuple[Path, ...]
    reward: Path
    mapping: Mapping | None
    victim: Any = None
    """The testbed's Victim, whose policy can be asked; None for conversations of a file."""
    anchors: tuple[Interaction, ...] = ()
    """Conversations of known truth, for the monitor; none for conversations of a file."""
