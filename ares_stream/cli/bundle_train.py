"""`ares bundle train harm|reward`: a bundle from a person's own labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ares_stream.training.classifier import Report
    from ares_stream.training.examples import DataFile

_SHOWN = 10

app = typer.Typer(
    no_args_is_help=True,
    help="Fine-tune a small model on your own labels, calibrate it, and write it as a bundle. "
    "Rows are split by prompt family: what the bundle says of itself was measured on prompts "
    "it never saw. Needs the extra `repair`.",
)

Base = Annotated[str, typer.Option(help="Base model: a directory or a hub id; safetensors only.")]


def new_folder(out: Path) -> Path:
    """Told before a model is loaded or trained, not after."""
    from ares_stream.files import check_new_folder

    check_new_folder("--out", out)
    return out


Out = Annotated[
    Path, typer.Option(callback=new_folder, help="Bundle directory to write; must not exist.")
]
Name = Annotated[str, typer.Option(help="The model's name in releases and verdicts.")]
Layers = Annotated[
    int | None, typer.Option(min=1, help="Keep this many of the base's lowest layers. [all]")
]
Freeze = Annotated[
    int, typer.Option(min=0, help="Leave embeddings and this many of the lowest layers as is.")
]
MaxLength = Annotated[int, typer.Option(min=32, max=8192, help="Tokens the model reads.")]
Epochs = Annotated[float, typer.Option(min=0.001, help="Passes over the training part.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate; the new head takes 5 times it.")]
Batch = Annotated[int, typer.Option(min=1, help="Texts per step.")]
Holdout = Annotated[
    float,
    typer.Option(min=0.02, max=0.8, help="Share of prompts held out, half of it to calibrate."),
]
Seed = Annotated[int, typer.Option(help="Of split, order and initial head.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. [all cores]")]
Json = Annotated[
    Path | None, typer.Option("--json", help="Also write the figures to this file, as JSON.")
]


@app.command(help="A harm judge from labelled conversations.")
def harm(
    data: Annotated[
        list[Path],
        typer.Option(
            metavar="PATH",
            help="JSON lines (or .gz) of {prompt, response, harmful[, goal, source, weight]}, or "
            'Interactions with attributes.harmful "true" or "false". May be repeated.',
        ),
    ],
    base: Base,
    out: Out,
    name: Name = "harm",
    layers: Layers = None,
    freeze: Freeze = 0,
    max_length: MaxLength = 256,
    epochs: Epochs = 1.0,
    learning_rate: Rate = 2e-4,
    batch_size: Batch = 16,
    holdout: Holdout = 0.2,
    seed: Seed = 0,
    threads: Threads = None,
    figures: Json = None,
) -> None:
    """Train, calibrate, measure, export."""
    from ares_stream.training.examples import read_judgements

    _check(figures, data)
    rows, files = read_judgements(data)
    from ares_stream.training.classifier import Fitted, train_harm
    from ares_stream.training.encoder import Recipe, use_threads

    use_threads(threads)
    recipe = Recipe(
        epochs, learning_rate, batch_size=batch_size, layers=layers, frozen_layers=freeze, seed=seed
    )
    fitted = Fitted("harm", base, recipe, max_length=max_length)
    with _progress() as progress:
        report = train_harm(
            rows,
            files,
            fitted,
            out,
            name=name,
            holdout=holdout,
            progress=progress,
        )
    _tell(report, figures)


@app.command(help="A reward model from preference pairs.")
def reward(
    pairs: Annotated[
        list[Path],
        typer.Option(
            metavar="PATH",
            help="JSON lines (or .gz) of {prompt, chosen, rejected[, goal]}, texts or lists of "
            "turns as `ares repair export --format trl-preference` writes them. May be repeated.",
        ),
    ],
    base: Base,
    out: Out,
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Good answers to benign prompts, JSON lines of {prompt, response}: the scores "
            'that "scored high" is measured against. [chosen answers of held-out prompts]',
        ),
    ] = None,
    name: Name = "reward",
    layers: Layers = None,
    freeze: Freeze = 0,
    max_length: MaxLength = 256,
    epochs: Epochs = 1.0,
    learning_rate: Rate = 2e-4,
    batch_size: Batch = 16,
    holdout: Holdout = 0.2,
    seed: Seed = 0,
    threads: Threads = None,
    figures: Json = None,
) -> None:
    """Train, measure, score the reference set, export."""
    from ares_stream.training.examples import read_conversations, read_preferences

    _check(figures, pairs)
    rows, files = read_preferences(pairs)
    _tell_refused(files)
    benign, _ = read_conversations(reference or [])
    from ares_stream.training.classifier import Fitted, train_reward
    from ares_stream.training.encoder import Recipe, use_threads

    use_threads(threads)
    recipe = Recipe(
        epochs, learning_rate, batch_size=batch_size, layers=layers, frozen_layers=freeze, seed=seed
    )
    fitted = Fitted("reward", base, recipe, max_length=max_length)
    with _progress() as progress:
        report = train_reward(
            rows,
            files,
            fitted,
            out,
            name=name,
            reference=benign,
            holdout=holdout,
            progress=progress,
        )
    _tell(report, figures)


@contextmanager
def _progress() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """A bar on stderr for each stage."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from ares_stream.cli.terminal import Console

    with Progress(
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bars:

        def stage(name: str) -> Callable[[int, int], None]:
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield stage


def _check(figures: Path | None, data: list[Path]) -> None:
    from ares_stream.files import check_outputs

    check_outputs({"--json": figures}, {f"--data {file}": file for file in data})


def _tell_refused(files: Sequence[DataFile]) -> None:
    """Which rows were left out, by line; of many the first."""
    for file in files:
        for line, reason in file.refused[:_SHOWN]:
            typer.echo(f"{file.name}:{line}: {reason}; left out", err=True)
        if len(file.refused) > _SHOWN:
            typer.echo(f"{file.name}: {len(file.refused)} rows left out in all", err=True)


def _tell(report: Report, file: Path | None) -> None:
    from ares_stream.files import write_document

    figures = {
        "bundle": str(report.bundle.path),
        "name": report.bundle.manifest.name,
        "digest": report.bundle.digest,
        "rows": report.rows,
        "metrics": {
            name: {"value": item.value, "low": item.low, "high": item.high, "families": item.count}
            for name, item in report.metrics.items()
        },
    }
    if file is not None:
        write_document(file, figures)
    for name, item in report.metrics.items():
        typer.echo(f"{name:24} {item.value:.3f}  [{item.low:.3f}, {item.high:.3f}]")
    typer.echo(f"{report.bundle.path}: bundle {report.bundle.digest[:12]}")
