"""`ares bundle`: make, inspect, verify and sign the models that a scorer runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ares_stream.cli import bundle_import, bundle_recalibrate, bundle_train

if TYPE_CHECKING:
    from ares_stream.models.bundles import Bundle, Kind
    from ares_stream.scoring.offline import Progress

app = typer.Typer(no_args_is_help=True, help="Models as verified directories.")
export = typer.Typer(
    no_args_is_help=True,
    help="A Hugging Face sequence classifier as a bundle: exported to ONNX, compared with "
    "PyTorch. Needs the extra `repair`.",
)
app.add_typer(export, name="export")
app.add_typer(bundle_import.app, name="import")
app.add_typer(bundle_train.app, name="train")
app.command("recalibrate")(bundle_recalibrate.recalibrate)

Directory = Annotated[Path, typer.Argument(help="Bundle directory.")]
Model = Annotated[str, typer.Argument(help="Directory or hub id, with safetensors.")]

Out = Annotated[
    Path,
    typer.Option(
        callback=bundle_train.new_folder, help="Bundle directory to write; must not exist."
    ),
]
Name = Annotated[str, typer.Option(help="The model's name in releases and verdicts.")]
MaxLength = Annotated[int, typer.Option(min=9, max=32_768, help="Tokens the model reads.")]
Base = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint it was fine-tuned from: a judge and a reward model of one base are "
        "refused. The model itself, if not given."
    ),
]
Data = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH", help="File it was trained on, for the same check. May be repeated."
    ),
]
Sample = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        help="Conversations like those that it will read, JSON lines of {prompt, response} or of "
        "Interactions: its tokenizer and its export are checked on them. English sentences of our "
        "own, if not given. May be repeated.",
    ),
]
WINDOWS_HELP = (
    "Read an answer that does not fit in so many overlapping stretches at most, instead of cutting "
    "it: of a judge the worst counts, of a reward model the mean. 32 are usual. [cut]"
)
DOMAIN_HELP = (
    "Conversations like those that the model was trained on, JSON lines of {prompt, response} or "
    "of Interactions, some hundreds: the bundle then tells which are unlike them. Every third only "
    "measures the limit. May be repeated."
)
Windows = Annotated[int | None, typer.Option(min=1, max=1024, help=WINDOWS_HELP)]
Domain = Annotated[list[Path] | None, typer.Option(metavar="PATH", help=DOMAIN_HELP)]


@export.command(help="A harm judge.")
def harm(
    model: Model,
    out: Out,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="Name or number of a harmful label; repeat for several. Of two labels, the "
            "second if not given.",
        ),
    ] = None,
    name: Name = "harm",
    max_length: MaxLength = 512,
    base: Base = None,
    data: Data = None,
    sample: Sample = None,
    windows: Windows = None,
    domain: Domain = None,
) -> None:
    """Export; its probabilities are the model's own until `ares bundle calibrate`."""
    from ares_stream.training.examples import read_conversations

    tried, _ = read_conversations(sample or ())
    _export(
        "harm",
        model,
        out,
        base,
        data,
        name=name,
        max_length=max_length,
        labels=label or (),
        sample=tried,
        windows=windows,
        domain=domain,
    )


@export.command(help="A reward model.")
def reward(
    model: Model,
    out: Out,
    reference: Annotated[
        list[Path],
        typer.Option(
            metavar="PATH",
            help="Good answers to benign prompts, JSON lines of {prompt, response} or of "
            'Interactions: "scored high" is measured against them. May be repeated.',
        ),
    ],
    name: Name = "reward",
    max_length: MaxLength = 512,
    base: Base = None,
    data: Data = None,
    windows: Windows = None,
    domain: Domain = None,
) -> None:
    """Export, and score the reference conversations."""
    from ares_stream.training.examples import read_conversations

    benign, _ = read_conversations(reference)
    _export(
        "reward",
        model,
        out,
        base,
        data,
        name=name,
        max_length=max_length,
        reference=benign,
        windows=windows,
        domain=domain,
    )


@app.command("reference")
def set_reference(
    bundle: Directory,
    file: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH", help="Good answers to benign prompts, as for `export reward`."
        ),
    ],
    out: Out,
) -> None:
    """Write a copy of a reward model whose reference scores come from your conversations."""
    from ares_stream.models.bundles import load_bundle
    from ares_stream.scoring.offline import reward_reference
    from ares_stream.training.examples import read_conversations

    old = load_bundle(bundle, "reward")
    benign, _ = read_conversations(file)
    with _bar("scoring the reference") as progress:
        table = reward_reference(old, benign, progress)
    _written(_copy(old, out, reference=table))


@app.command()
def calibrate(
    bundle: Directory,
    file: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH",
            help="Labelled conversations the model was not trained on, JSON lines of "
            "{prompt, response, harmful}, as for `train harm`.",
        ),
    ],
    out: Out,
) -> None:
    """Write a copy of a judge whose probabilities are fitted to your labels."""
    import numpy as np

    from ares_stream.models.bundles import Calibration, load_bundle
    from ares_stream.scoring.model import logit
    from ares_stream.scoring.offline import raw_scores
    from ares_stream.training.calibration import auroc, fit_calibration
    from ares_stream.training.examples import read_judgements

    old = load_bundle(bundle, "harm")
    rows, _ = read_judgements(file)
    with _bar("scoring the labelled conversations") as progress:
        raw = raw_scores(old, [row.interaction for row in rows], progress)
    logits, labels = logit(np.asarray(raw)), [row.harmful for row in rows]
    platt = fit_calibration(logits, labels)
    # What was measured of the old probabilities is not true of the new ones.
    kept = {
        name: value
        for name, value in old.manifest.metrics.items()
        if not name.startswith(("calibration_error", "brier"))
    }
    calibration = Calibration(slope=platt.slope, intercept=platt.intercept)
    fresh = _copy(old, out, calibration=calibration, metrics=kept)
    typer.echo(
        f"{len(rows)} conversations, AUROC {auroc(logits, labels):.3f}; "
        f"slope {platt.slope:.3f}, intercept {platt.intercept:.3f}"
    )
    _written(fresh)


@app.command()
def show(
    bundle: Directory,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Say what a bundle is. Every digest is checked first."""
    from ares_stream.models.bundles import SIGNATURE, load_bundle

    found = load_bundle(bundle)
    signed = (bundle / SIGNATURE).is_file()
    if as_json:
        content = {
            "path": str(bundle),
            "digest": found.digest,
            "signed": signed,
            "manifest": found.manifest.model_dump(mode="json", exclude_none=True),
        }
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    from rich.table import Table
    from rich.text import Text

    from ares_stream.cli.terminal import Console

    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _facts(found):
        table.add_row(name, Text(value))
    table.add_row("signed", "yes, see `ares bundle verify --public-key`" if signed else "no")
    Console().print(table)


@app.command()
def verify(
    bundle: Directory,
    public_key: Annotated[
        Path | None, typer.Option(help="PEM: also require a signature by its owner.")
    ] = None,
) -> None:
    """Check every byte against the manifest, and the signature where a key is given.

    Exit code 0: whole (and signed by the key's owner); 2: not, with the reason.
    """
    from ares_stream.models.bundles import load_bundle
    from ares_stream.models.signing import signed_by

    found = load_bundle(bundle, signed=signed_by(public_key))
    what = "whole and signed" if public_key else "whole"
    typer.echo(f"{bundle}: {what}, digest {found.digest}")


@app.command()
def sign(
    bundle: Directory,
    private_key: Annotated[
        Path, typer.Option(help="Elliptic-curve key, PEM: P-256, P-384 or P-521.")
    ],
) -> None:
    """Sign a bundle with your key (OpenSSF model signing)."""
    from ares_stream.models.signing import sign_bundle

    typer.echo(f"{sign_bundle(bundle, private_key)}: written")


def _facts(bundle: Bundle) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    outputs, lineage = manifest.outputs, manifest.lineage
    yield "name", manifest.name
    yield "kind", manifest.kind
    yield "digest", bundle.digest
    sizes = {name: (bundle.path / name).stat().st_size for name in sorted(manifest.files)}
    yield "files", ", ".join(f"{name} ({size / 1e6:.1f} MB)" for name, size in sizes.items())
    reading = manifest.template.windows
    windows = "" if reading is None else f", an answer in at most {reading.most} windows"
    yield "reads", f"{manifest.template.max_length} tokens{windows}"
    if manifest.domain is not None:
        covered = manifest.domain
        yield (
            "domain",
            f"of {covered.rows} conversations; {covered.share:.1%} of those like them are outside, "
            f"by {covered.held_out} held out; {', '.join(covered.scripts)}",
        )
    yield "output", f"{outputs.activation} of label {', '.join(map(str, outputs.labels))}"
    if manifest.kind == "harm":
        scaling = manifest.calibration
        yield "calibration", f"slope {scaling.slope:.3f}, intercept {scaling.intercept:.3f}"
    if manifest.reference is not None:
        scores = manifest.reference.scores
        middle, high = scores[len(scores) // 2], scores[int(len(scores) * 0.95)]
        yield (
            "reference",
            f"{manifest.reference.count} conversations, median {middle:.3f}, 95 % {high:.3f}",
        )
    yield "base", lineage.base
    if lineage.data:
        yield "data", ", ".join(item[:12] for item in lineage.data)
    if lineage.plan_id:
        yield "repair plan", lineage.plan_id
    if manifest.parity is not None:
        parity = manifest.parity
        yield "parity", f"{parity.max_abs_difference:.1e} from PyTorch over {parity.cases} inputs"
    for name, value in manifest.metrics.items():
        yield name, f"{value:.4f}"


def _export(
    kind: Kind,
    model: str,
    out: Path,
    base: str | None,
    data: list[Path] | None,
    *,
    windows: int | None,
    domain: list[Path] | None,
    **options: Any,
) -> None:
    from ares_stream.errors import SettingsError
    from ares_stream.models.bundles import Lineage, file_digest
    from ares_stream.models.bundles import Windows as Reading
    from ares_stream.training.domain import DomainRows
    from ares_stream.training.examples import read_conversations

    if windows is not None:
        options["windows"] = Reading(most=windows, last="whole")
    if domain:
        rows, _ = read_conversations(domain)
        options["domain"] = DomainRows.split(rows)

    digests: list[str] = []
    for file in data or ():
        try:
            digests.append(file_digest(file))
        except OSError as error:
            raise SettingsError(f"--data {file}: cannot be read: {error.strerror}") from None
    with _bar(f"exporting {options['name']}") as progress:
        try:
            from ares_stream.training.checkpoints import quiet_transformers
            from ares_stream.training.export import base_identity, export_bundle
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"{error.name} is not installed: exporting needs the extra `repair`"
            ) from None
        lineage = Lineage(base=base or base_identity(model), data=tuple(digests))
        with quiet_transformers():
            bundle = export_bundle(kind, model, out, lineage=lineage, progress=progress, **options)
    _written(bundle)


def _copy(bundle: Bundle, out: Path, **changes: Any) -> Bundle:
    from ares_stream.models.bundles import write_bundle

    files = {name: bundle.path / name for name in bundle.manifest.files}
    return write_bundle(out, bundle.manifest.model_copy(update=changes), files)


def _written(bundle: Bundle) -> None:
    typer.echo(f"{bundle.path}: {bundle.manifest.kind} bundle {bundle.digest[:12]}")


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    """A bar on stderr; without counts while a model loads and exports."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ares_stream.cli.terminal import Console

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as bars:
        task = bars.add_task(name, total=None)

        def count(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield count
