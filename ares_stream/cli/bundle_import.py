"""`ares bundle import onnx`: a bundle from an ONNX classifier that exists already."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ares_stream.training.onnx_import import Candidate, Reading

app = typer.Typer(no_args_is_help=True, help="Models that another tool exported, checked.")


class Kind(StrEnum):
    """What the model is."""

    harm = "harm"
    reward = "reward"


class Activation(StrEnum):
    """What makes probabilities of a judge's outputs."""

    softmax = "softmax"
    sigmoid = "sigmoid"
    probability = "probability"


@app.callback()
def _group() -> None: ...


@app.command()
def onnx(
    model: Annotated[
        Path, typer.Argument(help="ONNX file, or a directory with model.onnx as Optimum writes it.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Bundle directory to write; must not exist.")
    ] = None,
    kind: Annotated[Kind, typer.Option(help="A judge, or a reward model.")] = Kind.harm,
    expected: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="What the model gave where it comes from, JSON lines of {prompt, response, "
            "logits} or {prompt, response, score}; the bundle must give the same. May be repeated.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="tokenizer.json, or its directory. [beside the model]"),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Name (of config.json) or number of a harmful label, or of the reward; repeat "
            "for several. Of two labels, the second if not given.",
        ),
    ] = None,
    activation: Annotated[
        Activation | None,
        typer.Option(help="`probability` where the model ends in one. [by config.json]"),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(
            help="Jinja file that makes the model's text. [the tokenizer's chat template, or the "
            "pair of prompt and answer]"
        ),
    ] = None,
    second: Annotated[
        Path | None, typer.Option(help="Jinja file of a pair's second text, with --template.")
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=9, max=32_768, help="Tokens the model reads.")
    ] = 512,
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Good answers to benign prompts, for a reward model. May be repeated.",
        ),
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Read an answer that does not fit in so many overlapping stretches at most, "
            "instead of cutting it. 32 are usual. [cut]",
        ),
    ] = None,
    domain: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Conversations like those that it was trained on, some hundreds: the bundle then "
            "tells which are unlike them. Needs a second output `pooled`, the mean of the tokens' "
            "last hidden states. May be repeated.",
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference from an expected number.")
    ] = 1e-3,
    name: Annotated[
        str | None, typer.Option(help="The model's name in releases and verdicts. [the kind]")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Checkpoint it was fine-tuned from. [the ONNX file's digest]"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it gives for a few conversations, and end.")
    ] = False,
) -> None:
    """Bring an existing ONNX classifier, with its tokenizer. Needs no torch."""
    from ares_stream.errors import SettingsError
    from ares_stream.models.bundles import Lineage, Windows
    from ares_stream.training.domain import DomainRows
    from ares_stream.training.examples import read_conversations, read_expected
    from ares_stream.training.onnx_import import OnnxSource, candidate, import_onnx, try_out

    if second is not None and template is None:
        raise SettingsError("--second: needs --template, the first text of the pair")
    if not dry_run and (out is None or not expected):
        raise SettingsError(
            f"{'--out' if out is None else '--expected'}: is needed; to see first what the model "
            "gives for a few conversations, add --dry-run"
        )
    rows = read_expected(expected or ())
    benign, _ = read_conversations(reference or ())
    known, _ = read_conversations(domain or ())
    found = candidate(
        OnnxSource.find(model, tokenizer),
        kind.value,
        labels=label or (),
        activation=None if activation is None else activation.value,
        template=_templates(template, second),
        max_length=max_length,
        windows=None if windows is None else Windows(most=windows, last="whole"),
    )
    if dry_run:
        _tell(found, try_out(found, [row.interaction for row in rows]))
        return
    assert out is not None  # noqa: S101 - refused above
    bundle = import_onnx(
        found,
        out,
        rows,
        name=name or kind.value,
        tolerance=tolerance,
        reference=benign,
        domain=DomainRows.split(known) if known else None,
        lineage=None if base is None else Lineage(base=base),
    )
    parity = bundle.manifest.parity
    assert parity is not None  # noqa: S101 - an import has one
    typer.echo(f"differs by at most {parity.max_abs_difference:.1e} over {parity.cases} rows")
    typer.echo(f"{bundle.path}: {bundle.manifest.kind} bundle {bundle.digest[:12]}")


def _templates(first: Path | None, second: Path | None) -> tuple[str, str | None] | None:
    from ares_stream.files import read_text

    if first is None:
        return None
    return read_text(first), None if second is None else read_text(second)


def _tell(found: Candidate, readings: Sequence[Reading]) -> None:
    import numpy as np

    from ares_stream.training.onnx_import import ENDS_IN_ONE, looks_like_probabilities

    outputs = found.outputs
    read = ", ".join(found.labels[number] for number in outputs.labels)
    pair = found.inputs.template.second is not None
    typer.echo(f"labels      {', '.join(found.labels)}; read: {read} by {outputs.activation}")
    typer.echo(f"reads       {'a pair' if pair else 'one text'} of {found.inputs.described}")
    for number, item in enumerate(readings, 1):
        given = ", ".join(f"{value:.4f}" for value in item.outputs)
        typer.echo(f"{number:>2}  {item.tokens:>5} tokens  [{given}]  {item.value:.4f}")
    if found.assumed and looks_like_probabilities(np.array([item.outputs for item in readings])):
        typer.echo(f"note        {ENDS_IN_ONE}")
    typer.echo("nothing was written")
