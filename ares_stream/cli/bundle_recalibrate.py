"""`ares bundle recalibrate`: a judge's calibration from what people said of its own queue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ares_stream.cli import bundle_train
from ares_stream.cli.options import Bootstrap, SettingsFile

if TYPE_CHECKING:
    from ares_stream.records.label import ReviewItem
    from ares_stream.streaming.connection import KafkaConnection


def recalibrate(
    bundle: Annotated[Path, typer.Argument(help="Directory of the judge's bundle.")],
    out: Annotated[
        Path,
        typer.Option(
            callback=bundle_train.new_folder, help="Bundle directory to write; must not exist."
        ),
    ],
    private_key: Annotated[
        Path | None, typer.Option(help="Elliptic-curve key, PEM: signs the new bundle.")
    ] = None,
    settings_file: SettingsFile = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Fit a judge's probabilities to the labels of the review topic, and write a copy of it.

    Nothing but the calibration changes. Labels weigh by how likely their items were to be asked
    about; where reviewers contradict each other, neither counts. A calibration that is not better
    on labels that it was not fitted to is not written. Propose the copy with `ares release add`.

    Exits 0; 1 where the present calibration is as good; 2 for too few labels or a wrong bundle; 3
    where Kafka cannot be read.
    """
    import asyncio

    import numpy as np
    from rich.progress import Progress

    from ares_stream.cli.terminal import Console
    from ares_stream.cli.topics import connect
    from ares_stream.models.bundles import Calibration, load_bundle, write_bundle
    from ares_stream.models.signing import sign_bundle
    from ares_stream.records.base import digest
    from ares_stream.scoring.model import logit
    from ares_stream.scoring.offline import raw_scores
    from ares_stream.training.calibration import Platt
    from ares_stream.training.recalibration import recalibrate as fitted

    old = load_bundle(bundle, "harm")
    settings, connection = connect(settings_file, bootstrap)
    items, harmful, contradicting = asyncio.run(_labelled(connection, settings.topic_prefix))
    names = sorted(items)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("scoring the labelled conversations", total=len(names))
        raw = raw_scores(
            old,
            [items[name].interaction for name in names],
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    known = old.manifest.calibration
    found = fitted(
        names,
        logit(np.asarray(raw, np.float64)),
        [harmful[name] for name in names],
        [items[name].sampling_probability for name in names],
        Platt(known.slope, known.intercept),
    )
    typer.echo(
        f"{found.rows} labels ({found.harmful} harmful), worth {found.effective:.0f} of equal "
        f"weight; {contradicting} interactions whose labels contradict left out"
    )
    typer.echo(
        f"log loss {found.loss_before:.4f} as it is, {found.loss_after:.4f} recalibrated, on "
        "labels that were not fitted to"
    )
    if not found.better:
        typer.echo("the present calibration is as good: nothing is written")
        raise typer.Exit(1)
    manifest = old.manifest
    # What was measured of the old probabilities is not true of the new ones.
    metrics = {
        name: value
        for name, value in manifest.metrics.items()
        if not name.startswith(("calibration_error", "brier"))
    }
    used = digest([[name, harmful[name], items[name].sampling_probability] for name in names])
    fresh = write_bundle(
        out,
        manifest.model_copy(
            update={
                "calibration": Calibration(
                    slope=found.platt.slope, intercept=found.platt.intercept
                ),
                "metrics": metrics | {"recalibration_labels": float(found.rows)},
                "lineage": manifest.lineage.model_copy(
                    update={"data": (*manifest.lineage.data, used)}
                ),
            }
        ),
        {name: old.path / name for name in manifest.files},
    )
    if private_key is not None:
        sign_bundle(out, private_key)
    typer.echo(f"slope {found.platt.slope:.3f}, intercept {found.platt.intercept:.3f}")
    typer.echo(f"{fresh.path}: harm bundle {fresh.digest[:12]}")


async def _labelled(
    connection: KafkaConnection, prefix: str
) -> tuple[dict[str, ReviewItem], dict[str, bool], int]:
    """Items with a settled label, what people said of each, and how many contradict."""
    from ares_stream.cli.review import tell
    from ares_stream.interchange.review_topics import read_items, read_present_labels
    from ares_stream.repair.plan import settle_labels
    from ares_stream.streaming.unreadable import PassedOver

    passed_over = PassedOver(tell)
    labels = await read_present_labels(connection, prefix, passed_over)
    settled, contradicting = settle_labels(labels.values())
    harmful = {name: item.harmful for name, item in settled.items() if name not in contradicting}
    items: dict[str, ReviewItem] = {}

    def take(item: ReviewItem) -> None:
        if item.interaction.id in harmful:
            items[item.interaction.id] = item

    await read_items(connection, prefix, take, passed_over)
    return items, harmful, len(contradicting)
