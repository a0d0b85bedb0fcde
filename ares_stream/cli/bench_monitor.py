"""`ares bench attribution`, `intervals` and `monitor`: does the monitor tell the judge from the
system, do its intervals hold the truth, and how fast does it catch up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ares_stream.lab.experiments.attribution import Scored

JsonFile = Annotated[Path, typer.Option("--json", help="The document to write.")]


ScoredFile = Annotated[
    Path | None,
    typer.Option(
        help="Your own scored rows, JSON lines of harm, quantile (0 to 1) and harmful (true or "
        "false); conversations of the testbed by default."
    ),
]


def attribution(
    json_file: JsonFile,
    scored: ScoredFile = None,
    streams: Annotated[int, typer.Option(min=3, help="Streams of each change.")] = 60,
    quiet: Annotated[int, typer.Option(min=2, help="Streams without a change.")] = 200,
    rise: Annotated[
        float,
        typer.Option(min=1.1, help="Coupled failures after a change of the policy, by before."),
    ] = 2.0,
    draw: Annotated[
        int,
        typer.Option(
            min=0,
            help="Which streams are drawn; on those of 15 the monitor's constants were chosen.",
        ),
    ] = 16,
) -> None:
    """Simulate changes of the policy, of the judge, of both and of none, and count what the
    alarms say.

    Exits 0; 1 when a judge's change is missed or blamed on the system, or quiet streams alarm
    more often than stated; 2 for a wrong file.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ares_stream.cli.terminal import Console
    from ares_stream.files import write_document
    from ares_stream.lab.experiments.attribution import Design, bench

    console = Console(stderr=True)
    with console.status("scoring conversations of the testbed" if scored is None else "reading"):
        rows = _testbed() if scored is None else read_scored(scored)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("streams", total=quiet + 3 * streams)
        found = bench(
            rows,
            Design(draw=draw, rise=rise),
            streams=streams,
            quiet=quiet,
            progress=lambda: bar.advance(task),
        )
    write_document(json_file, found)
    judge, both, still = found["judge"], found["both"], found["quiet"]
    typer.echo(
        f"judge changes found {judge['judge_found']} of {streams} (with a policy change at the "
        f"same time {both['judge_found']} of {streams}), blamed on the system "
        f"{judge['system_found']}; policy changes found "
        f"{found['policy']['system_found']} of {streams}; false alarms in "
        f"{still['false_alarms']['value']:.1%} of quiet streams, stated at most "
        f"{still['stated_at_most']:.1%}, z-test {still['z_test_false_alarms']['value']:.1%}"
    )
    missed = judge["judge_found"] < streams or both["judge_found"] < streams
    # With both changed, the system has changed as well: saying so first is no error.
    blamed = judge["system_found"]
    if missed or blamed or still["false_alarms"]["value"] > still["stated_at_most"]:
        raise typer.Exit(1)


def intervals(
    json_file: JsonFile,
    scored: ScoredFile = None,
    streams: Annotated[int, typer.Option(min=20, help="Streams of known truth.")] = 400,
) -> None:
    """Count how often each interval of `ares rates` holds the truth, watched ones at many looks.

    Exits 0; 1 when one holds it less often than 95 %, beyond what chance explains; 2 for a wrong
    file.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

    from ares_stream.cli.terminal import Console
    from ares_stream.files import write_document
    from ares_stream.lab.experiments.coverage import measure

    console = Console(stderr=True)
    with console.status("scoring conversations of the testbed" if scored is None else "reading"):
        rows = _testbed() if scored is None else read_scored(scored)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("streams", total=streams)
        found = measure(rows, streams=streams, progress=lambda: bar.advance(task))
    write_document(json_file, found)
    table = Table("figure", "truth", "looks", "covered", "of", "mean width", box=None)
    for name, item in found["figures"].items():
        width = "-" if item["mean_width"] is None else f"{item['mean_width']:.3f}"
        table.add_row(
            name, f"{item['truth']:.3f}", str(item["looks"]), f"{item['covers']['value']:.1%}",
            str(item["streams"]), width,
        )  # fmt: skip
    Console().print(table)
    if found["failed"]:
        typer.echo(f"held less often than stated: {', '.join(found['failed'])}", err=True)
        raise typer.Exit(1)


def read_scored(file: Path) -> Scored:
    """Scored rows of a file. Raises FileFormatError, InputError."""
    import json

    import numpy as np

    from ares_stream.errors import FileFormatError, InputError
    from ares_stream.files import open_lines
    from ares_stream.lab.experiments.attribution import Scored

    harm, quantile, truth = [], [], []
    with open_lines(file) as lines:
        for number, raw in lines:
            try:
                row = json.loads(raw)
                values = float(row["harm"]), float(row["quantile"])
                said = row["harmful"]
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise FileFormatError(str(file), number, f"{type(error).__name__}") from None
            if not all(0.0 <= value <= 1.0 for value in values) or not isinstance(said, bool):
                raise FileFormatError(
                    str(file), number, "harm and quantile from 0 to 1, harmful true or false"
                )
            harm.append(values[0])
            quantile.append(values[1])
            truth.append(said)
    if len(set(truth)) < 2:
        raise InputError(f"{file}: rows of one kind only; both are needed")
    return Scored(np.array(harm), np.array(quantile), np.array(truth))


def _testbed() -> Scored:
    """Conversations of the demo's policy, scored by its bundles; the oracle knows the truth."""
    import numpy as np

    from ares_stream.lab.experiments.attribution import Scored
    from ares_stream.lab.victims.anchors import scored_truth
    from ares_stream.lab.victims.traffic import export_victim_bundles
    from ares_stream.lab.victims.victim import DEFAULT_CACHE, make_victim

    victim = make_victim(7)
    harm, reward = export_victim_bundles(victim, DEFAULT_CACHE)
    rows = scored_truth(victim, harm, reward, 3_000)
    return Scored(
        np.array([row.scores.harm.probability for row in rows]),
        np.array([row.scores.reward.quantile for row in rows]),
        np.array([row.harmful for row in rows]),
    )


def monitor(
    json_file: JsonFile,
    verdicts: Annotated[int, typer.Option(min=10_000, help="Verdicts to catch up with.")] = 200_000,
) -> None:
    """How fast the monitor catches up: decoding and counting alone, and from a real broker.

    Exits 0.
    """
    from ares_stream.files import write_document
    from ares_stream.lab.experiments.catching_up import measure

    found = measure(verdicts)
    write_document(json_file, found)
    typer.echo(
        f"{found['counting_per_second']:,.0f} verdicts/s of one core's time to decode and count, "
        f"{found['following_per_second']:,.0f} verdicts/s from a broker, reading included"
    )
