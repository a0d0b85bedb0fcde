"""`ares bench explain`: whether explanations name the words of the planted rule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def explain(
    json_file: Annotated[Path, typer.Option("--json", help="The document to write.")],
    failures: Annotated[int, typer.Option(min=10, help="How many to explain.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic world.")] = 7,
    cache: Annotated[Path, typer.Option(help="Where trained victims lie.")] = Path("build/testbed"),
) -> None:
    """Explain coupled failures whose cause is known, and count how many causes are named.

    An explanation is the smallest edit that takes the reward below the line. Counted is whether
    its first word, any of its words, or a word on every axis is of a planted rule that covers the
    prompt. Beside it: as many words drawn at random, and what the reward keeps as the words are
    taken away one by one; and how far failures that are grouped by shared words share a planted
    rule.

    Exits 0.
    """
    from rich.progress import track

    from ares_stream.files import write_document
    from ares_stream.lab.experiments.explaining import measure

    figures = measure(seed, failures, cache, lambda items: track(items, "explaining"))
    write_document(json_file, figures)
    for name, row in figures["named"].items():
        shares = ", ".join(f"{each} {share['value']:.1%}" for each, share in row.items())
        typer.echo(f"{name}: {shares}")
    groups = figures["causes"]
    typer.echo(
        f"{groups['groups']} causes hold {groups['grouped']['value']:.1%} of them; of pairs with "
        f"one cause {groups['one_rule_in_a_pair']['value']:.1%} have a planted rule in common, of "
        f"all pairs {groups['one_rule_in_any_pair']['value']:.1%}"
    )
