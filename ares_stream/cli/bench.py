"""`ares bench`: benchmarks whose figures stand in docs/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ares_stream.cli import bench_real, bench_repair

if TYPE_CHECKING:
    from ares_stream.testbed.probe_bench import BenchVictim
    from ares_stream.testbed.victim import Victim

_SIBLING = 1_000
"""What a seed and the number of its sibling differ by."""

app = typer.Typer(no_args_is_help=True, help="Benchmarks; each writes a JSON document.")
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
    profile: bench_real.Profile = None,
    data: bench_real.Data = bench_real.DATA,
    quick: bench_real.Quick = False,
) -> None:
    """Compare search methods on victims of the testbed.

    Trained victims are also searched for planted Trojans. With --profile a real policy is asked
    instead; of the other options only --json counts then.

    Exits 0; 2 for a wrong option; 1 when a victim misses its starting line or its Trojans fail.
    """
    if profile is not None:
        bench_real.probes(json_file, data, profile, quick=quick)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ares_stream.errors import SettingsError
    from ares_stream.lines import written_whole
    from ares_stream.probes.baselines import METHODS
    from ares_stream.testbed import probe_bench
    from ares_stream.testbed.world import Sibling, World

    if seeds is None:
        raise SettingsError("--seeds: missing; name the victims, for example 11,12,13")
    numbers = _seeds(seeds)
    chosen = METHODS if methods is None else tuple(methods.split(","))
    for name in chosen:
        if name not in METHODS:
            raise SettingsError(f"--methods {name}: unknown; one of {', '.join(METHODS)}")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def show(label: str, queries: int) -> None:
            bar.update(task, description=f"{label}: {queries:,} queries")

        victims: dict[int, BenchVictim] = {}
        siblings: dict[int, BenchVictim] = {}
        planted: dict[int, tuple[Victim, Victim]] = {}
        found: dict[str, Any] = {}
        for seed in numbers:

            def say(line: str, seed: int = seed) -> None:
                bar.update(task, description=f"victim {seed}: {line}")

            if simulated:
                victims[seed] = probe_bench.SimulatedVictim(World(seed))
                siblings[seed] = probe_bench.SimulatedVictim(Sibling(seed, seed + _SIBLING))
            else:
                from ares_stream.testbed.probed import TrainedVictim
                from ares_stream.testbed.trojan_bench import trojans
                from ares_stream.testbed.trojans import plant_trojans

                victims[seed] = trained = TrainedVictim(seed, cache, say)
                siblings[seed] = TrainedVictim(seed, cache, say, sibling=seed + _SIBLING)
                clean = trained.victim
                planted[seed] = (plant_trojans(clean, 2, progress=say), clean)
        if planted:
            found["trojans"] = trojans(planted, progress=show)
        document: dict[str, Any] = {
            "schema": "ares.probe-bench/1",
            "victims": "simulated" if simulated else "trained",
            "seeds": numbers,
            "budget": budget,
            "methods": probe_bench.compare(victims, methods=chosen, budget=budget, progress=show),
            "transfer": probe_bench.transfer(victims, siblings, progress=show),
            **found,
            "selection_cost": probe_bench.selection_cost(progress=show),
            "environment": _environment(),
        }
    with written_whole(json_file) as stream:
        stream.write(json.dumps(document, indent=1).encode() + b"\n")
    for name in chosen:
        for checkpoint, figures in document["methods"][name].items():
            if isinstance(figures, dict):
                shown = (f"{key} {figures[key]['mean']:.3g}" for key in probe_bench.FIGURES[:3])
                typer.echo(f"{name:28} {checkpoint:>5} queries  {', '.join(shown)}")
    typer.echo(f"second victim with the prior: ratio {document['transfer']['ratio']:.2f}")
    if found:
        share, alarms = (found["trojans"][key]["mean"] for key in ("located", "false_alarms"))
        typer.echo(
            f"planted triggers located: {share:.0%}, clean victims with an alarm: {alarms:.0%}"
        )
    typer.echo(f"{json_file}")


@app.command()
def cfr(
    target: Annotated[
        str,
        typer.Option(help="An endpoint's URL, a transformers model's folder, or recorded answers."),
    ],
    reward: Annotated[Path, typer.Option(help="Bundle of the reward model.")],
    harm: Annotated[list[Path], typer.Option(help="Bundle of a harm judge; repeat for a panel.")],
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

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from ares_stream.bundles import load_bundle, refuse_shared_lineage
    from ares_stream.detection import DetectionPolicy
    from ares_stream.lines import written_whole
    from ares_stream.probes.plan import EndpointSection, FileSection, TargetSection
    from ares_stream.probes.scorecard import as_markdown, score_card
    from ares_stream.scoring.panel import Panel

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
    with written_whole(json_file) as stream:
        stream.write(json.dumps(card, indent=1).encode() + b"\n")
    if markdown is not None:
        with written_whole(markdown) as stream:
            stream.write(page.encode())
    typer.echo(page.split("\n\n| topic")[0])


def _seeds(text: str) -> list[int]:
    from ares_stream.errors import SettingsError

    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise SettingsError(f"--seeds {text}: expected numbers such as 11,12,13") from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise SettingsError(f"--seeds {text}: each seed once, none below 0")
    return seeds


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
