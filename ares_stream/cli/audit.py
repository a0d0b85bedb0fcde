"""`ares audit`: keys, verification, proofs, erasure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Verify topics against what the notary signed.")


@app.callback()
def _group() -> None: ...


@app.command()
def key(
    name: Annotated[
        str, typer.Argument(help="The notary's name, such as example.com/ares; notary.name.")
    ],
    out: Annotated[Path, typer.Option(help="The file for the private key; must not exist.")],
) -> None:
    """Make a key for the notary: the private half to a file, the public half to stdout.

    Hand the public half to the auditors; they check signatures by it. Exits 0; 2 when the file
    exists.
    """
    import os

    from ares_stream.audit.notes import NoteSigner

    signer = NoteSigner.generate(name)
    with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(signer.pem())
    typer.echo(str(signer.key))
