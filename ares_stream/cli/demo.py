"""`ares demo`: watch coupled failures come out of a real Kafka, each exactly once."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer


def command(
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input", help="JSON lines of your own conversations; needs --harm and --reward."
        ),
    ] = None,
    harm: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Bundle of a harm judge; may be repeated."),
    ] = None,
    reward: Annotated[Path | None, typer.Option(help="Bundle of a reward model.")] = None,
    map_file: Annotated[
        Path | None, typer.Option("--map", help="Mapping for conversations of another shape.")
    ] = None,
    conversations: Annotated[
        int, typer.Option(min=1, help="How many synthetic conversations to stream.")
    ] = 2000,
    rounds: Annotated[
        int, typer.Option(min=0, max=9, help="Rounds of probes after the stream, repairs between.")
    ] = 2,
    queries: Annotated[int, typer.Option(min=25, help="Queries of each round.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic world.")] = 7,
    out: Annotated[Path, typer.Option(help="Where report.html and summary.json go.")] = Path(
        "build/demo"
    ),
    console_port: Annotated[
        int | None,
        typer.Option(
            "--console",
            metavar="PORT",
            min=0,
            max=65535,
            help="Serve the review console at this port of loopback (0: any), and stay up at the "
            "end until Ctrl-C.",
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also save the terminal's last picture as SVG.")
    ] = None,
) -> None:
    """Stream conversations through a real Kafka and watch coupled failures come out."""
    from ares_stream.cli.demo_view import TerminalView, conclude, make_console, save_picture
    from ares_stream.demo.contract import DemoOptions, DemoSummary
    from ares_stream.demo.run import run_demo
    from ares_stream.files import check_outputs

    check_outputs(
        {"--picture": picture},
        {"--input": input_file, "--map": map_file, "--reward": reward}
        | {f"--harm {path}": path for path in harm or ()},
    )
    check_outputs(
        {"--out": out / "report.html", "--out ": out / "summary.json"}, {"--input": input_file}
    )
    options = DemoOptions(
        out=out,
        conversations=conversations,
        rounds=rounds if input_file is None else 0,
        queries=queries,
        seed=seed,
        input_file=input_file,
        harm=tuple(harm or ()),
        reward=reward,
        map_file=map_file,
        console_port=console_port,
    )
    console = make_console(picture)
    with ExitStack() as drawn:
        view = drawn.enter_context(TerminalView(console, synthetic=input_file is None))

        async def linger(summary: DemoSummary) -> None:
            drawn.close()
            conclude(console, summary)
            if console_port is not None:
                console.print(f"{view.invitation}; Ctrl-C ends it")
                await _interrupted()

        summary = asyncio.run(run_demo(options, view, linger))
    if picture is not None:
        save_picture(console, picture)
    if sys.stdout.isatty():
        # Two hundred lines of JSON would push the conclusion off the screen.
        typer.echo(f"every figure: {out / 'summary.json'}")
    else:
        typer.echo(json.dumps(summary.as_json(), indent=2))
    if not summary.holds:
        raise typer.Exit(1)


async def _interrupted() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        await stop.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
