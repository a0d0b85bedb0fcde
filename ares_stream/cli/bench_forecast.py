"""`ares bench forecast`: how right forecasts are, where what comes is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ares_stream.lab.jobs import Step


def forecast(
    json_file: Annotated[Path, typer.Option("--json", help="The document to write.")],
    seeds: Annotated[str, typer.Option(help="Seeds of synthetic worlds, by comma.")] = "7,11",
    cache: Annotated[Path, typer.Option(help="Where trained victims lie.")] = Path("build/testbed"),
    workers: Annotated[int, typer.Option(min=1, help="Processes, with a core each.")] = 1,
) -> None:
    """Forecast candidates from a month of production, and compare with the month that followed.

    Candidates are victims and their repairs by three methods, each from three trainings of their
    own at three strengths: 10 of a seed. Then a month whose mix has shifted. Minutes per seed on
    one core.

    Exits 0; 1 where a victim misses its starting line; 2 for wrong seeds.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ares_stream.cli.terminal import Console
    from ares_stream.errors import SettingsError
    from ares_stream.files import write_document
    from ares_stream.lab.experiments.forecast import run_bench

    try:
        numbers = [int(item) for item in seeds.split(",")]
    except ValueError:
        raise SettingsError(f"--seeds {seeds}: expected numbers, by comma") from None
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as bar:  # fmt: skip
        task = bar.add_task("forecast", total=None)

        def show(step: Step) -> None:
            what = f"seed {step.seed} {step.method}: {step.stage}"
            bar.update(task, description=what, completed=step.done, total=step.total)

        found = run_bench(numbers, cache=cache, workers=workers, progress=show)
    write_document(json_file, found)
    for part in ("whole", "slices"):
        for name, row in found[part].items():
            right = row["direction_right"]
            typer.echo(
                f"{part}: {name}: median factor {row['median_factor']:.2f} of {row['figures']} "
                f"({row['above_floor']} above the floor), direction right in {right['value']:.1%} "
                f"of {row['moved']} changes"
            )
    for name, row in found["shifted"].items():
        if row["above_floor"]:
            typer.echo(
                f"shifted: {name}: median factor {row['median_factor']:.2f} as forecast, "
                f"{row['median_factor_weighed_anew']:.2f} weighed anew by the mix that came"
            )
