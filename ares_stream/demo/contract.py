"""What the demo is asked, what it shows while it runs, and what it ends with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from ares_stream.audit.accounting import Account
from ares_stream.demo.proof import Proven
from ares_stream.lab.streams import Watcher
from ares_stream.records.base import Interval
from ares_stream.records.repair import RepairReport
from ares_stream.services.rounds import Round


class View(Watcher, Protocol):
    """What a person watches. Calls are quick and never raise."""

    def step(self, text: str) -> None:
        """A new step began."""

    def invites(self, url: str, token: str) -> None:
        """The review console is served there, and this token lets a person in."""

    def expect(self, conversations: int) -> None:
        """How many records will be sent."""

    def part(self, name: str, done: int, total: int) -> None:
        """How far this step is in what it does now."""

    def round(self, found: Round) -> None:
        """A round of probes ended."""

    def repaired(self, report: RepairReport) -> None:
        """A repair was decided."""


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
    console_port: int | None = None
    """Where the review console is served meanwhile; None: nowhere."""
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
    proven: Proven | None = None
    """The proof of one verdict and the replay of all; None without a verdict."""

    @property
    def holds(self) -> bool:
        """Every record was settled once and says the same in a replay, and no repair broke off
        (one may be rejected)."""
        states = [found.repair.state for found in self.rounds if found.repair is not None]
        replayed = self.proven is None or self.proven.holds
        return self.account.exactly_once and replayed and "failed" not in states

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
            "proven": None if self.proven is None else self.proven.as_json(),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "report": str(self.report),
        }
