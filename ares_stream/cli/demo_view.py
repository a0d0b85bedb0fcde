"""What `ares demo` draws in the terminal while it runs."""

from __future__ import annotations

import re
from collections import Counter, deque
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from ares_stream.cli.terminal import Console
from ares_stream.demo.contract import DemoSummary
from ares_stream.records.repair import CoupledFailure, RepairReport
from ares_stream.records.verdict import FailureClass, Verdict
from ares_stream.services.rounds import Round

ROWS = 8
"""Failures shown at a time."""

PICTURE_WIDTH = 100
ADDRESSES = re.compile(r"@font-face \{.*?\}\s*|<!--.*?-->", re.DOTALL)

STYLES = {
    FailureClass.CLEAN: "green",
    FailureClass.REWARD_FAILURE: "yellow",
    FailureClass.POLICY_FAILURE: "dark_orange",
    FailureClass.COUPLED_FAILURE: "bold red",
    FailureClass.CONTESTED: "cyan",
}


class TerminalView:
    """Draws the demo while it runs. On a pipe or in CI it prints one line per step."""

    def __init__(self, console: Console, *, synthetic: bool) -> None:
        self._console = console
        self._synthetic = synthetic
        self._classes: Counter[FailureClass] = Counter()
        self._failures: deque[CoupledFailure] = deque(maxlen=ROWS)
        self._refused = 0
        self.invitation = ""
        """Where a person may review, and with which token."""
        self._steps: list[str] = []
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._sent = self._bar("sent to Kafka")
        self._seen = self._bar("verdicts read back")
        self._part = self._bar("")
        self._live: Live | None = None

    def __enter__(self) -> TerminalView:
        self._live = Live(
            get_renderable=self.picture, console=self._console, refresh_per_second=8, transient=True
        )
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.update(self._part, visible=False)
        if self._live is not None and self._console.is_terminal:
            self._live.stop()
        if self._steps:
            self._console.print(self.picture())

    def _bar(self, name: str) -> TaskID:
        """A bar that is seen once it is known how long it gets."""
        return self._progress.add_task(name, total=None, start=False, visible=False)

    def step(self, text: str) -> None:
        """Name the step that begins."""
        self._progress.update(self._part, visible=False)
        self._steps.append(text)
        if not (self._console.is_terminal or self._console.record):
            self._console.print(f"· {text}")

    def invites(self, url: str, token: str) -> None:
        """Say where the review console is."""
        self.invitation = f"Review console: {url} with the token {token}"
        if not (self._console.is_terminal or self._console.record):
            self._console.print(self.invitation, soft_wrap=True)

    def expect(self, conversations: int) -> None:
        """Say how many conversations will be sent."""
        for bar in (self._sent, self._seen):
            self._progress.start_task(bar)
            self._progress.update(bar, total=conversations, visible=True)

    def sent(self, conversations: int) -> None:
        """Count what was sent since the last call."""
        self._progress.advance(self._sent, conversations)

    def verdict(self, verdict: Verdict) -> None:
        """Count a verdict."""
        self._classes[verdict.failure_class] += 1
        self._progress.advance(self._seen)

    def failure(self, failure: CoupledFailure) -> None:
        """Show a coupled failure: coordinates and scores, no text."""
        self._failures.appendleft(failure)

    def refused(self) -> None:
        """Count a dead letter."""
        self._refused += 1
        self._progress.advance(self._seen)

    def part(self, name: str, done: int, total: int) -> None:
        """Show how far the step is in what it does now."""
        bar = self._progress.tasks[self._part]
        if not bar.visible or bar.description != name:
            self._progress.reset(
                self._part, total=total, completed=done, visible=True, description=name
            )
        self._progress.update(self._part, completed=done)

    def round(self, found: Round) -> None:
        """Say what a round of probes found."""
        self._came_to(
            f"{found.failures} confirmed failures in {found.probes} probes, {found.unique} unlike"
        )

    def repaired(self, report: RepairReport) -> None:
        """Say what a repair came to."""
        self._came_to(report.state)

    def _came_to(self, result: str) -> None:
        self._steps[-1] += f": {result}"
        if not (self._console.is_terminal or self._console.record):
            self._console.print(f"  {self._steps[-1]}")

    def picture(self) -> Group:
        """What the terminal shows now."""
        stream = [self._counts(), self._table()] if self._classes else []
        invitation = [Text(self.invitation, style="bold cyan")] if self.invitation else []
        return Group(self._head(), self._steps_text(), *invitation, self._progress, *stream)

    def _head(self) -> Panel:
        if self._synthetic:
            text = (
                "Synthetic: the language is invented; policy, reward model and judge are tiny "
                "models made here, with weaknesses planted on purpose.\n"
                "Real: Apache Kafka, its transactions, ONNX Runtime, the scorer process, the count."
            )
        else:
            text = "Your conversations, through a real Apache Kafka, scored by your bundles."
        return Panel(text, title="ares demo", border_style="blue")

    def _steps_text(self) -> Text:
        done = "".join(f"✓ {step}\n" for step in self._steps[:-1])
        now = f"▸ {self._steps[-1]}" if self._steps else ""
        return Text(done, style="dim").append(now, style="bold")

    def _counts(self) -> Table:
        table = Table.grid(padding=(0, 3))
        cells = [
            (self._classes[name], name.value.replace("_", " "), STYLES[name])
            for name in FailureClass
        ]
        cells.append((self._refused, "dead letters", "magenta"))
        table.add_row(*(Text(f"{count:,}", style=style) for count, _, style in cells))
        table.add_row(*(Text(name, style=style) for _, name, style in cells))
        return table

    def _table(self) -> Table:
        table = Table(title="coupled failures: harmful, and the reward model likes it", expand=True)
        table.add_column("verdict", no_wrap=True)
        table.add_column("partition@offset", no_wrap=True)
        table.add_column("harm", justify="right", no_wrap=True)
        table.add_column("reward quantile", justify="right", no_wrap=True)
        table.add_column("labels", no_wrap=True, ratio=1)
        for failure in self._failures:
            verdict = failure.verdict
            table.add_row(
                verdict.id[:12],
                f"{verdict.source.partition}@{verdict.source.offset}",
                f"{verdict.harm.probability:.3f}",
                f"{verdict.reward.quantile:.3f}",
                " ".join(verdict.attributes.values()),
            )
        return table


def conclude(console: Console, summary: DemoSummary) -> None:
    """Say what was found and whether the count holds."""
    rate, counted = summary.rate, summary.account
    console.print(
        f"[bold]Coupled-failure rate {rate.value:.1%}[/] "
        f"(95 % confidence sequence {rate.low:.1%} to {rate.high:.1%}, {rate.count:,} verdicts)",
        markup=True,
    )
    verdict = "[green]holds[/]" if counted.exactly_once else "[red]does not hold[/]"
    console.print(
        f"Exactly once {verdict}: {counted.sent:,} sent = {counted.verdicts:,} verdicts + "
        f"{counted.dead_letters} dead letters; {counted.lost} lost, {counted.doubled} doubled; "
        f"{counted.repair} records to repair for {counted.coupled} coupled failures",
        markup=True,
    )
    for found in summary.rounds:
        repair = ""
        if found.repair is not None:
            why = "" if found.repair.state == "promoted" else f": {'; '.join(found.repair.reasons)}"
            repair = f"; repair {found.repair.state}{why}"
        console.print(
            f"Round {found.number}: {found.rate.value:.1%} of probes are confirmed failures "
            f"({found.rate.low:.1%} to {found.rate.high:.1%}){repair}"
        )
    if (proven := summary.proven) is not None:
        said = "[green]as recorded[/]" if proven.holds else "[red]differs, see replay.html[/]"
        console.print(
            f"Replayed {said}: {proven.counts['identical']:,} verdicts and dead letters identical "
            f"to the byte; proof of one verdict: {escape(proven.proof)}",
            markup=True,
        )
    console.print(f"Report: {summary.report}")


def make_console(picture: Path | None) -> Console:
    """A console on standard error that remembers what it draws where a picture is wanted."""
    width = None if picture is None else PICTURE_WIDTH
    return Console(stderr=True, record=picture is not None, width=width)


def save_picture(console: Console, picture: Path) -> None:
    """The terminal as SVG. It loads nothing: any monospaced font of the reader's will do."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    drawn = ADDRESSES.sub("", console.export_svg(title="make demo"))
    picture.write_text(drawn, encoding="utf-8")
