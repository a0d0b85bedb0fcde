"""`ares bench victim`: a weakened policy's conversations and the models that score them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def victim(
    out: Annotated[Path, typer.Option(help="Folder to write: harm, reward, conversations.jsonl.")],
    seed: Annotated[int, typer.Option(help="Seed of the synthetic world.")] = 7,
    conversations: Annotated[int, typer.Option(min=1, help="How many.")] = 2000,
    cache: Annotated[Path, typer.Option(help="Where trained victims lie.")] = Path("build/testbed"),
) -> None:
    """Write a made victim's judge, reward model and traffic, to stream or to scan.

    Exits 0; 2 when the folder cannot be written.
    """
    import shutil

    from ares_stream.files import written_whole
    from ares_stream.lab.victims.traffic import export_victim_bundles, traffic
    from ares_stream.lab.victims.victim import make_victim

    made = make_victim(seed, cache=cache)
    for name, bundle in zip(("harm", "reward"), export_victim_bundles(made, cache), strict=True):
        if not (out / name).exists():
            shutil.copytree(bundle, out / name)
    with written_whole(out / "conversations.jsonl") as file:
        for item in traffic(made, conversations, seed):
            file.write(item.encode() + b"\n")
    typer.echo(f"{out}: harm, reward, {conversations:,} conversations")
