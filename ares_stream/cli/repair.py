"""`ares repair`: look at a repair, take its batch elsewhere, ask the gate again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look at repairs and take their batches elsewhere.")

Run = Annotated[Path, typer.Argument(help="A repair's directory: <repairer.work>/<plan id>.")]


@app.command()
def show(
    run: Run, as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False
) -> None:
    """The score card: every figure before and after with its interval, and the forecast where one
    was made. Exits 0, 1 or 2."""
    from ares_stream.audit.forecast import forecast_lines
    from ares_stream.repair.rundirectory import RunDirectory

    directory = RunDirectory(run)
    card = directory.read_score_card(as_json=as_json)
    forecast = directory.forecast.read() if directory.forecast.exists else None
    if forecast is not None and as_json:
        said = forecast.model_dump(mode="json", exclude_none=True)
        card = json.dumps(json.loads(card) | {"forecast": said}, indent=1)
    typer.echo(card)
    if forecast is not None and not as_json:
        for line in forecast_lines(forecast):
            typer.echo(line)


@app.command()
def export(
    plan: Annotated[Path, typer.Argument(help="A repair's directory, or its plan.json.")],
    out: Annotated[Path, typer.Option(help="Directory to write; new or empty.")],
    form: Annotated[
        str, typer.Option("--format", help="trl-preference, trl-unpaired or alignment-handbook.")
    ] = "trl-preference",
) -> None:
    """Write a repair's batch in another trainer's format. Exits 0, 1 or 2.

    The files hold the text of conversations.
    """
    from ares_stream.errors import SettingsError
    from ares_stream.repair.export import FORMATS, export_plan
    from ares_stream.repair.rundirectory import RunDirectory, plan_document

    if form not in FORMATS:
        raise SettingsError(f"--format {form}: expected {', '.join(FORMATS)}")
    document = RunDirectory(plan).plan if plan.is_dir() else plan_document(plan)
    for file in export_plan(document.read(), form, out):
        typer.echo(str(file))


@app.command()
def gate(
    figures: Annotated[Path, typer.Argument(help="figures.json of a training process.")],
    policy: Annotated[
        Path | None, typer.Option(help="A gate policy, YAML; the default rules otherwise.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Ask the gate about any pair of figure tables. Exits 0 when it passes, 1 when not."""
    from ares_stream.files import read_yaml
    from ares_stream.repair.gate import GatePolicy, decide
    from ares_stream.repair.rundirectory import figures_document, tables

    rules = GatePolicy() if policy is None else read_yaml(policy, GatePolicy)
    verdict = decide(*tables(figures_document(figures)), rules)
    if as_json:
        typer.echo(json.dumps(verdict.model_dump(mode="json"), indent=2))
    else:
        for check in verdict.checks:
            typer.echo(f"{'pass' if check.passed else 'FAIL'} {check.reason}")
        typer.echo("passed" if verdict.passed else "rejected")
    if not verdict.passed:
        raise typer.Exit(1)
