"""`ares audit`: keys, verification, proofs, erasure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ares_stream.cli.options import Bootstrap, SettingsFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ares_stream.audit.notes import NoteKey
    from ares_stream.audit.ranges import RangeReader
    from ares_stream.streaming.connection import KafkaConnection

app = typer.Typer(no_args_is_help=True, help="Verify topics against what the notary signed.")

Keys = Annotated[
    list[str],
    typer.Option(
        "--key", metavar="KEY", help="Public key of the notary, name+id+base64; repeat for several."
    ),
]
Archive = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Read `ares archive`'s files, not topics."),
]
Topic = Annotated[str, typer.Option(help="Topic, without the prefix.")]


@app.callback()
def _group() -> None: ...


@app.command()
def key(
    name: Annotated[
        str, typer.Argument(help="The notary's name, such as example.com/ares; notary.name.")
    ],
    out: Annotated[Path, typer.Option(help="The file for the private key; must not exist.")],
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep a key that is there; print its public half.")
    ] = False,
) -> None:
    """Make a key for the notary: the private half to a file, the public half to stdout.

    Hand the public half to the auditors; they check signatures by it. Exits 0; 2 when the file
    exists, unless it is to be kept, or holds no key.
    """
    import os

    from ares_stream.audit.notes import NoteSigner

    if keep and out.exists():
        typer.echo(str(NoteSigner.read(name, out).key))
        return
    signer = NoteSigner.generate(name)
    with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(signer.pem())
    typer.echo(str(signer.key))


@app.command()
def verify(
    keys: Keys,
    topics: Annotated[
        list[str] | None,
        typer.Option(
            "--topic",
            metavar="NAME",
            help="Only this topic, without the prefix; repeat for several.",
        ),
    ] = None,
    known: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="A file with a head that you kept, or a folder of them; repeat for several.",
        ),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Write the newest heads here, a file each, to keep.")
    ] = None,
    stamp_roots: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="PEM: root certificates of the authority whose time stamps hold."
        ),
    ] = None,
    archive: Archive = None,
    settings_file: SettingsFile = None,
    bootstrap: Bootstrap = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Compare whole topics with what the notary signed, and name every difference's offset.

    Exits 0 when all is as signed; 1 for a difference, or where nothing is signed; 2 for a wrong
    key, file or topic; 3 where a range cannot be read whole.
    """
    import asyncio
    import json

    from ares_stream.audit.checking import (
        Report,
        config_of_archived,
        keep_heads,
        read_heads,
        verify_topics,
    )
    from ares_stream.audit.stamps import Stamps
    from ares_stream.cli.topics import connect
    from ares_stream.streaming.admin import describe_topics

    settings, connection = connect(settings_file, bootstrap)
    trusted = _keys(keys)
    stamps = None if stamp_roots is None else Stamps.of(stamp_roots)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    heads = [head for _, head in read_heads(known or (), trusted, may_be_empty=keep)]
    names = [f"{settings.topic_prefix}{name}" for name in topics or settings.notary.topics]

    async def work() -> Report:
        config: Mapping[str, Mapping[str, str]]
        if archive is None:
            topics_now = await describe_topics(connection, names)
            config = {name: topic.config for name, topic in topics_now.items()}
        else:
            config = config_of_archived(settings.topic_prefix)
        return await verify_topics(
            _reader(archive, connection), settings.topic_prefix, names, trusted, config,
            known=heads, stamps=stamps,
        )  # fmt: skip

    report = asyncio.run(work())
    if keep is not None:
        keep_heads(report, keep, trusted)
    if as_json:
        typer.echo(json.dumps(report.document(), indent=2))
    else:
        for line in report.lines():
            typer.echo(line)
    raise typer.Exit(0 if report.holds else 1)


@app.command()
def prove(
    selector: Annotated[
        str | None, typer.Argument(help="An interaction's or a verdict's id: the record's key.")
    ] = None,
    topic: Topic = "verdicts",
    at: Annotated[str | None, typer.Option(help="partition:offset in the place of an id.")] = None,
    out: Annotated[Path, typer.Option(help="The file for the proof.")] = Path("proof.json"),
    keys: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            metavar="KEY",
            help="Public key of the notary: only checkpoints that it signed take part; repeat for "
            "several.",
        ),
    ] = None,
    known: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="A file with a head that you kept, or a folder of them, that the proof is to lead "
            "to; needs --key; repeat for several.",
        ),
    ] = None,
    archive: Archive = None,
    settings_file: SettingsFile = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Write the proof of one interaction's records, which `verify_proof.py` checks offline.

    `ares audit verifier` writes that program. Exits 0; 2 where there is no such record, it is in no
    checkpoint yet, or it, its salt or a kept head is not as it was signed: nothing is written then.
    """
    import asyncio

    from ares_stream.audit.checking import prove_records, read_heads
    from ares_stream.cli.topics import connect
    from ares_stream.errors import SettingsError
    from ares_stream.files import check_outputs, write_document

    if (selector is None) == (at is None):
        raise SettingsError("name an id, or --at partition:offset, and not both")
    if known and not keys:
        raise SettingsError("--known: heads that you kept are checked by --key")
    check_outputs({"--out": out}, {})
    trusted = _keys(keys or [])
    kept = read_heads(known or (), trusted)
    settings, connection = connect(settings_file, bootstrap)
    document: dict[str, Any] = asyncio.run(
        prove_records(
            _reader(archive, connection), settings.topic_prefix, topic,
            selector=selector, place=None if at is None else _place(at), keys=trusted, kept=kept,
        )
    )  # fmt: skip
    write_document(out, document)
    typer.echo(f"{len(document['proofs'])} proofs in {out}")


@app.command()
def verifier(
    out: Annotated[Path, typer.Argument(help="Where the program goes.")] = Path("verify_proof.py"),
) -> None:
    """Write the program that checks proofs: one file, which needs Python and `cryptography`.

    Exits 0.
    """
    from ares_stream.audit import verify_proof
    from ares_stream.files import write_whole

    write_whole(out, Path(str(verify_proof.__file__)).read_bytes())
    typer.echo(str(out))


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="A report of `ares replay`.")],
    keys: Keys,
    note: Annotated[
        Path | None, typer.Option(help="Its signed note. [FILE.note, as `ares replay` wrote it]")
    ] = None,
) -> None:
    """Check who signed a replay's report, and that it was not changed since.

    Exits 0; 2 where no key that you name has signed these bytes.
    """
    from ares_stream.audit.replay.signing import check_signature
    from ares_stream.files import read_text

    signed = read_text(note or file.with_name(f"{file.name}.note"))
    key = check_signature(read_text(file).encode(), signed, _keys(keys))
    typer.echo(f"signed by {key}")


@app.command()
def merge(
    parts: Annotated[
        list[Path],
        typer.Argument(help="The reports of every part: `ares replay --index I --of N`."),
    ],
    out: Annotated[Path, typer.Option("--json", help="The report of all to write.")],
    page: Annotated[Path | None, typer.Option("--html", help="The same for people.")] = None,
    sign: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sign it with this private key.")
    ] = None,
    settings_file: SettingsFile = None,
) -> None:
    """Merge the reports of a replay's parts into one, as of a replay that was not split.

    Its digests are those of an unsplit replay of the same ranges; it names the SHA-256 of each
    part's report. Exits 0 when all is as recorded (and after what-if); 1 for a difference; 2 where
    a part is missing, is there twice or is of another replay.
    """
    from ares_stream.audit.replay.merging import merged
    from ares_stream.cli.replay import note_of, signer_of, write_report
    from ares_stream.files import check_outputs, read_text
    from ares_stream.services.settings import load_settings

    note = note_of(out)
    check_outputs(
        {"--json": out, "--html": page, "--sign's note": note if sign else None},
        {"--sign": sign, "--settings": settings_file, **{str(part): part for part in parts}},
    )
    signer = None if sign is None else signer_of(load_settings(settings_file), sign)
    document = merged([(str(part), read_text(part).encode()) for part in parts])
    raise typer.Exit(write_report(document, out, page, signer))


@app.command()
def erase(
    selector: Annotated[str, typer.Argument(help="The key of the records: an interaction's id.")],
    by: Annotated[str, typer.Option(help="Who decides.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the place of the salt.")],
    settings_file: SettingsFile = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Erase the salts of an interaction's records: no leaf then tells anything of its text.

    Proofs still hold; they show the leaf and no record. The records themselves go when their
    topic's retention has passed; those that are still there are named. Exits 0; 2 where no salt is
    of this id.
    """
    import asyncio

    from ares_stream.audit.checking import erase_salts
    from ares_stream.cli.topics import connect

    settings, connection = connect(settings_file, bootstrap)
    done = asyncio.run(erase_salts(connection, settings.topic_prefix, selector, by, reason))
    for item in done:
        typer.echo(f"{item.topic} {item.partition} offset {item.offset}: salt erased")


def _reader(archive: str | None, connection: KafkaConnection) -> RangeReader:
    from ares_stream.audit.archive import ArchiveReader
    from ares_stream.audit.ranges import TopicReader

    return TopicReader(connection) if archive is None else ArchiveReader(archive)


def _keys(texts: list[str]) -> list[NoteKey]:
    from ares_stream.audit.notes import NoteKey

    return [NoteKey.parse(text) for text in texts]


def _place(text: str) -> tuple[int, int]:
    from ares_stream.errors import SettingsError

    partition, _, offset = text.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise SettingsError("--at: expected partition:offset, such as 3:1412")
    return int(partition), int(offset)
