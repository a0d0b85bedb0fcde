"""`ares probe triggers`: search a policy or a reward model for Trojans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ares_stream.probes.triggers import Trial


def triggers(
    carriers: Annotated[
        Path,
        typer.Option(help="JSON lines with prompt and, for a reward model, a harmful response."),
    ],
    vocabulary: Annotated[Path, typer.Option(help="Words or phrases to try, one a line.")],
    json_file: Annotated[Path, typer.Option("--json", help="The document to write.")],
    target: Annotated[
        str | None, typer.Option(help="The policy: an endpoint's URL or a model's folder.")
    ] = None,
    harm: Annotated[Path | None, typer.Option(help="Bundle that judges its answers.")] = None,
    reward: Annotated[
        Path | None, typer.Option(help="Bundle of the reward model to search instead.")
    ] = None,
    model: Annotated[str, typer.Option(help="The policy's name at the endpoint.")] = "policy",
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the key.")] = None,
    budget: Annotated[int, typer.Option(min=100, help="Queries in all.")] = 4000,
    pool: Annotated[int, typer.Option(min=2, help="Words of the vocabulary per query.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Another seed asks other pools.")] = 0,
) -> None:
    """Search for short word sequences that flip answers, or scores, wherever they stand.

    Give --target with --harm, or --reward. Answers are greedy. Exits 0 whether triggers are found
    or not; 2 for a wrong option, file or bundle; 3 when the target does not answer.
    """
    import asyncio
    import json
    from concurrent.futures import ThreadPoolExecutor

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from ares_stream.cli.terminal import Console
    from ares_stream.errors import SettingsError
    from ares_stream.files import check_outputs, written_whole
    from ares_stream.models.bundles import load_bundle
    from ares_stream.probes.plan import EndpointSection, FileSection, TargetSection
    from ares_stream.probes.trigger_targets import Asked, read_carriers, read_vocabulary
    from ares_stream.probes.triggers import TriggerPolicy, find_triggers
    from ares_stream.scoring.model import ScoringModel

    check_outputs(
        {"--json": json_file},
        {
            "--carriers": carriers,
            "--vocabulary": vocabulary,
            "--harm": harm,
            "--reward": reward,
            "--api-key-file": api_key_file,
        },
    )
    if reward is not None and target is None and harm is None:
        bundle = load_bundle(reward, "reward")
    elif reward is None and target is not None and harm is not None:
        bundle = load_bundle(harm, "harm")
    else:
        raise SettingsError("give either --target with --harm, or --reward")
    asked = read_carriers(carriers, responses=reward is not None)
    words = read_vocabulary(vocabulary)
    section = None
    if target is not None and target.startswith(("http://", "https://")):
        endpoint = EndpointSection(
            url=target, model=model, api_key_file=api_key_file, temperature=0.0
        )
        section = TargetSection(endpoint=endpoint)
    elif target is not None:
        section = TargetSection(local=FileSection(path=Path(target), name=model))
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        asyncio.Runner() as runner,
        ThreadPoolExecutor(1) as executor,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("trying words", total=budget)
        opened = section.open() if section is not None else None
        source = Asked(asked, ScoringModel(bundle, "cpu"), executor, opened)

        def effects(trials: Sequence[Trial]) -> list[float]:
            found = runner.run(source.effects(trials))
            bar.advance(task, len(trials))
            return found

        try:
            policy = TriggerPolicy(budget=budget, pool=pool)
            found, queries = find_triggers(effects, words, len(asked), policy, seed)
        finally:
            if opened is not None:
                runner.run(opened.aclose())
    document: dict[str, Any] = {
        "schema": "ares.triggers/1",
        "searched": "policy" if opened is not None else "reward",
        "bundle": {"name": bundle.manifest.name, "sha256": bundle.digest},
        "policy": opened.policy.model_dump() if opened is not None else None,
        "vocabulary": len(words),
        "carriers": len(asked),
        "budget": budget,
        "queries": queries,
        "triggers": [
            {"words": list(item.words), "flips": item.flips, "queries": item.queries}
            for item in found
        ],
    }
    with written_whole(json_file) as stream:
        stream.write(json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")
    for item in found:
        typer.echo(f"{' '.join(item.words)}: flips {item.flips:.0%} of fresh carriers")
    typer.echo(f"{len(found)} triggers in {queries:,} queries: {json_file}")
