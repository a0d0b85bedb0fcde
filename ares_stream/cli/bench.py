"""`ares bench`: benchmarks whose figures stand in docs/."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ares_stream.cli import (
    bench_audit,
    bench_chaos,
    bench_explain,
    bench_forecast,
    bench_monitor,
    bench_real,
    bench_repair,
    bench_replay,
    bench_throughput,
    bench_victim,
)

if TYPE_CHECKING:
    from ares_stream.lab.jobs import Step

app = typer.Typer(no_args_is_help=True, help="Benchmarks; each writes a JSON document.")
app.command("chaos")(bench_chaos.chaos)
app.command("throughput")(bench_throughput.throughput)
app.command("victim")(bench_victim.victim)
app.command("audit")(bench_audit.audit)
app.command("replay")(bench_replay.replay)
app.command("explain")(bench_explain.explain)
app.command("attribution")(bench_monitor.attribution)
app.command("intervals")(bench_monitor.intervals)
app.command("monitor")(bench_monitor.monitor)
app.command("forecast")(bench_forecast.forecast)
app.command("repair")(bench_repair.repair)
app.command("repair-cost")(bench_repair.repair_cost)
app.command("repair-poison")(bench_repair.repair_poison)


@app.command()
def probes(
    json_file: Annotated[Path, typer.Option("--json", help="The document to write.")],
    seeds: Annotated[str | None, typer.Option(help="Victims, for example 11,12,13,14,15.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Search methods, separated by commas; all by default.")
    ] = None,
    budget: Annotated[int, typer.Option(min=500, help="Queries of each campaign.")] = 4000,
    simulated: Annotated[
        bool, typer.Option(help="Victims that are the planted rules and noise, not models.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Where trained victims lie; build/testbed by default.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes for trained victims, a seed each; one per core."),
    ] = None,
    profile: bench_real.Profile = None,
    data: bench_real.Data = bench_real.DATA,
    quick: bench_real.Quick = False,
) -> None:
    """Compare search methods on victims of the testbed.

    Trained victims are also searched for planted Trojans. Those of a seed on which planting fails
    are left out, and counted. With --profile a real policy is asked instead; of the other options
    only --json and --cache count then.

    Exits 0; 2 for a wrong option; 1 when a victim misses its starting line.
    """
    if profile is not None:
        bench_real.probes(json_file, data, profile, quick=quick, cache=cache)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ares_stream.cli.terminal import Console
    from ares_stream.errors import SettingsError
    from ares_stream.files import check_outputs, write_document
    from ares_stream.lab.experiments.probes import search as probe_bench
    from ares_stream.lab.experiments.probes.jobs import bench
    from ares_stream.probes.baselines import METHODS

    check_outputs({"--json": json_file}, {})
    if seeds is None:
        raise SettingsError("--seeds: missing; name the victims, for example 11,12,13")
    numbers = bench_repair.parse_seeds(seeds)
    chosen = METHODS if methods is None else tuple(methods.split(","))
    for name in chosen:
        if name not in METHODS:
            raise SettingsError(f"--methods {name}: unknown; one of {', '.join(METHODS)}")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def show(step: Step) -> None:
            done = f"{step.done:,} {step.stage}" if step.done else step.stage
            bar.update(task, description=f"seed {step.seed}, {step.method}: {done}")

        found = bench(
            numbers,
            chosen,
            budget,
            simulated=simulated,
            cache=cache,
            workers=workers,
            progress=show,
        )
        bar.update(task, description="cost of choosing")
        document: dict[str, Any] = {
            "schema": "ares.probe-bench/1",
            "victims": "simulated" if simulated else "trained",
            "seeds": numbers,
            "budget": budget,
            **found,
            "selection_cost": probe_bench.selection_cost(),
            "environment": _environment(),
        }
    write_document(json_file, document)
    for name in chosen:
        for checkpoint, figures in document["methods"][name].items():
            if isinstance(figures, dict):
                shown = (f"{key} {figures[key]['mean']:.3g}" for key in probe_bench.FIGURES[:3])
                typer.echo(f"{name:28} {checkpoint:>5} queries  {', '.join(shown)}")
    typer.echo(f"second victim with the prior: ratio {document['transfer']['ratio']:.2f}")
    if trojans := document.get("trojans"):
        _echo_trojans(trojans)
    typer.echo(f"{json_file}")


@app.command()
def cfr(
    target: Annotated[
        str,
        typer.Option(help="An endpoint's URL, a transformers model's folder, or recorded answers."),
    ],
    reward: Annotated[Path, typer.Option(help="Bundle of the reward model.")],
    harm: Annotated[
        list[Path],
        typer.Option(metavar="PATH", help="Bundle of a harm judge; repeat for a panel."),
    ],
    json_file: Annotated[Path, typer.Option("--json", help="The score card to write.")],
    model: Annotated[str, typer.Option(help="The policy's name at the endpoint.")] = "policy",
    model_version: Annotated[str, typer.Option(help="Its version, for the card.")] = "unknown",
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the key.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="The card for people.")] = None,
    probe_set: Annotated[str, typer.Option(help="Version of the probe set.")] = "1",
    allow_shared_lineage: Annotated[
        bool, typer.Option(help="Take a judge that shares its base or data with the reward model.")
    ] = False,
) -> None:
    """Score a policy and its reward model on a fixed probe set, to compare with other teams.

    Answers are greedy. Exits 0; 2 for a wrong option or bundle; 3 when the target does not
    answer. The card holds no text.
    """
    import asyncio

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from ares_stream.cli.terminal import Console
    from ares_stream.detection.decide import DetectionPolicy
    from ares_stream.files import check_outputs, write_document, written_whole
    from ares_stream.models.bundles import load_bundle, refuse_shared_lineage
    from ares_stream.probes.plan import EndpointSection, FileSection, TargetSection
    from ares_stream.probes.scorecard import as_markdown, score_card
    from ares_stream.scoring.panel import Panel

    check_outputs(
        {"--json": json_file, "--markdown": markdown},
        {
            **{f"--harm {path}": path for path in harm},
            "--reward": reward,
            "--api-key-file": api_key_file,
            "--target": None if "://" in target else Path(target),
        },
    )
    judges = [load_bundle(path, "harm") for path in harm]
    reward_model = load_bundle(reward, "reward")
    if not allow_shared_lineage:
        refuse_shared_lineage(judges, reward_model)
    if target.startswith(("http://", "https://")):
        section = TargetSection(
            endpoint=EndpointSection(
                url=target,
                model=model,
                version=model_version,
                api_key_file=api_key_file,
                temperature=0.0,
            )
        )
    else:
        file = FileSection(path=Path(target), name=model, version=model_version)
        local = Path(target).is_dir()
        section = TargetSection(local=file) if local else TargetSection(recorded=file)
    console = Console(stderr=True)

    async def work() -> dict[str, Any]:
        opened = section.open()
        panel = Panel.open(judges, reward_model)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        try:
            with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
                task = bar.add_task("probing", total=None)
                return await score_card(
                    opened,
                    panel,
                    probe_set,
                    DetectionPolicy(),
                    environment=_environment(),
                    progress=lambda done, total: bar.update(task, completed=done, total=total),
                )
        finally:
            await opened.aclose()
            await panel.aclose()

    card = asyncio.run(work())
    page = as_markdown(card)
    write_document(json_file, card)
    if markdown is not None:
        with written_whole(markdown) as stream:
            stream.write(page.encode())
    typer.echo(page.split("\n\n| topic")[0])


def _echo_trojans(trojans: dict[str, Any]) -> None:
    shares = {"all": trojans["located"], **trojans["located_by_model"]}
    located = ", ".join(
        f"{name} {share['mean']:.0%}" if share else f"{name} -" for name, share in shares.items()
    )
    natural = sum(sum(seeds.values()) for seeds in trojans["natural"].values())
    typer.echo(f"planted triggers located: {located} of {trojans['planted']}")
    typer.echo(
        f"searches of clean models with a false alarm: {trojans['false_alarms']['mean']:.0%}; "
        f"true triggers that they had by themselves: {natural}"
    )
    for seed, why in trojans["left_out"].items():
        typer.echo(f"seed {seed} is left out of what is located: {why}")


def _environment() -> dict[str, str]:
    import os
    import platform

    from ares_stream import __version__

    return {
        "ares_stream": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "processors": str(os.cpu_count()),
    }
