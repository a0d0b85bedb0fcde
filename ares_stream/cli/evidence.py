"""`ares evidence`: what happened in a period, as one signed report that anybody can make again."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ares_stream.cli.options import SettingsFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ares_stream.audit.evidence import Evidence, Period
    from ares_stream.audit.notes import NoteKey
    from ares_stream.audit.ranges import RangeReader
    from ares_stream.records.base import OffsetRange
    from ares_stream.services.settings import Settings

JSON_FILE = "evidence.json"
PAGE_FILE = "evidence.html"
NOTE_FILE = "evidence.note"


def command(
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Records from this time: ISO 8601, else UTC.")
    ],
    until: Annotated[str, typer.Option(metavar="TIME", help="Records before this time.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write; new or empty: evidence.json, evidence.html, .note."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="A folder that somebody else wrote: is it what these topics give?"),
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            metavar="KEY",
            help="Public key of the notary, name+id+base64, that tree heads and --compare's note "
            "must be signed by; repeat for several. [with --out: the public halves of notary.keys]",
        ),
    ] = None,
    archive: Annotated[
        str | None, typer.Option(metavar="URL", help="Read `ares archive`'s files, not topics.")
    ] = None,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="Name what retention deleted in the report.")
    ] = False,
    settings_file: SettingsFile = None,
) -> None:
    """Write figures, releases, repairs, alarms and what was done, incidents and proofs of a period,
    each mapped to articles of the EU AI Act and subcategories of the NIST AI RMF, signed with
    `notary.keys`. Evidence, not advice.

    The same topics, registry and settings give the same bytes. Exits 0; 1 where --compare finds
    another content or signature; 2 for wrong options; 3 where a range cannot be read whole.
    """
    import asyncio

    from ares_stream.audit.archive import ArchiveReader
    from ares_stream.audit.evidence import Evidence, Period, encoded, note_text
    from ares_stream.audit.evidence_page import evidence_page
    from ares_stream.audit.ranges import TopicReader
    from ares_stream.errors import ReadError, SettingsError
    from ares_stream.files import check_new_folder
    from ares_stream.services.monitor import ledger_policy
    from ares_stream.services.settings import load_settings

    if (out is None) == (compare is None):
        raise SettingsError("name --out or --compare, and not both")
    period = Period(_time("--since", since), _time("--until", until))
    if period.since >= period.until:
        raise SettingsError("--until: is not after --since")
    if period.until > datetime.now(UTC):
        typer.echo(
            "--until lies in the future: what comes until then will be of the period and is not in "
            "this report",
            err=True,
        )
    if out is not None:
        check_new_folder("--out", out)
    kept = {}
    if compare is not None:
        kept = {name: _kept(compare, name) for name in (JSON_FILE, PAGE_FILE, NOTE_FILE)}
    settings = load_settings(settings_file)
    reader = TopicReader(settings.kafka) if archive is None else ArchiveReader(archive)
    trusted = _keys(keys)
    heads_by = _own_keys(settings, trusted) if out is not None else _named_keys(kept[JSON_FILE])
    evidence = Evidence(
        period, ledger_policy(settings), settings.scorer.detection.scored_high_when, heads_by
    )
    missing = asyncio.run(_read(settings, reader, period, evidence, archived=archive is not None))
    if missing and not allow_gaps:
        first = missing[0]
        if first.start == first.end:
            raise ReadError(
                f"{first.topic}: is not in the archive {archive}, or was archived before --until; "
                "archive it too (`ares archive write`; one that holds nothing has a file that says "
                "so), or name the gap in the report (--allow-gaps)"
            )
        if first.start:
            raise ReadError(
                f"{first.topic} {first.partition}: offsets {first.start} to {first.end} were "
                "signed in this period and lie behind the topic's end: it was cut, or deleted and "
                "made anew; read an archive that has them (--archive), or name the gap in the "
                "report (--allow-gaps)"
            )
        raise ReadError(
            f"{first.topic} {first.partition}: offsets below {first.end} are deleted and may be of "
            "this period; begin later, read an archive that has them (--archive), or name the gap "
            "in the report (--allow-gaps)"
        )
    store = settings.registry.store()
    document = evidence.document(store.log(), missing, store.gate_report)
    files = {JSON_FILE: encoded(document), PAGE_FILE: evidence_page(document)}
    text = note_text(period, files)
    if out is not None:
        _write(out, files, text, settings)
        return
    assert compare is not None  # noqa: S101 - one of the two, as was looked at above
    same = _same(compare, kept, files, text, trusted)
    if not (_are_signed(compare, document, trusted) and same):
        raise typer.Exit(1)


def _time(option: str, text: str) -> datetime:
    from ares_stream.errors import SettingsError

    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{option} {text}: expected a time such as 2026-11-01T00:00Z") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


async def _read(
    settings: Settings,
    reader: RangeReader,
    period: Period,
    evidence: Evidence,
    *,
    archived: bool,
) -> list[OffsetRange]:
    """Feed the evidence; what may be missing. A range without offsets is of a topic that the
    archive lacks, or lacks the end of."""
    from rich.progress import Progress

    from ares_stream.audit.archive import ArchiveReader
    from ares_stream.audit.evidence import TOPICS, gaps
    from ares_stream.cli.terminal import Console
    from ares_stream.errors import TopicError
    from ares_stream.records.base import OffsetRange
    from ares_stream.records.topics import ALARMS, topic_name

    names = {topic_name(settings.topic_prefix, name): name for name in TOPICS}
    absent: list[OffsetRange] = []
    whole: list[OffsetRange] = []
    inside: list[OffsetRange] = []
    wanted: list[OffsetRange] = []
    for name, short in names.items():
        try:
            everything = await reader.snapshot([name])
            since = await reader.snapshot([name], since_ms=period.since_ms)
        except TopicError as error:
            if not archived:
                raise
            typer.echo(f"not read: {error}", err=True)
            absent.append(OffsetRange(topic=name, partition=0, start=0, end=0))
            continue
        if isinstance(reader, ArchiveReader):
            taken_ms = reader.taken_ms(name)
            if taken_ms is not None and taken_ms < period.until_ms:
                end = max(item.end for item in everything)
                absent.append(OffsetRange(topic=name, partition=0, start=end, end=end))
        whole += everything
        inside += since
        # An alarm that nobody has taken note of may be older than the period.
        wanted += everything if short == ALARMS else since
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=sum(item.end - item.start for item in wanted))
        async for record in reader.read(wanted):
            evidence.take(names[record.topic], record)
            bar.advance(task)
        # Markers of transactions take offsets too.
        bar.update(task, completed=sum(item.end - item.start for item in wanted))
    return [*absent, *evidence.shortened(whole), *gaps(names, whole, inside)]


def _write(out: Path, files: dict[str, bytes], text: str, settings: Settings) -> None:
    from ares_stream.audit.notes import NoteSigner, sign_note
    from ares_stream.files import written_folder

    notary = settings.notary
    signers = [NoteSigner.read(notary.name, file) for file in notary.keys]
    with written_folder(out) as folder:
        for name, raw in files.items():
            (folder / name).write_bytes(raw)
        (folder / NOTE_FILE).write_text(
            sign_note(text, signers) if signers else text, encoding="utf-8"
        )
    typer.echo(f"{out}: {', '.join(files)}, {NOTE_FILE}")
    if not signers:
        typer.echo("not signed: notary.keys names no key (`ares audit key` makes one)", err=True)


def _keys(texts: Iterable[str] | None) -> list[NoteKey]:
    from ares_stream.audit.notes import NoteKey

    return [NoteKey.parse(text) for text in texts or ()]


def _own_keys(settings: Settings, named: list[NoteKey]) -> list[NoteKey]:
    """Those that were named, else the public halves of the notary's."""
    from ares_stream.audit.notes import NoteSigner

    notary = settings.notary
    return named or [NoteSigner.read(notary.name, file).key for file in notary.keys]


def _named_keys(raw: bytes) -> list[NoteKey]:
    """The keys that a report says its heads were checked by; none of what is no such report, which
    is then another one."""
    from ares_stream.errors import AresError
    from ares_stream.files.rows import parse_json

    try:
        return _keys(map(str, parse_json(raw)["covers"]["notary_keys"]))
    except (AresError, KeyError, TypeError):
        return []


def _are_signed(folder: Path, document: Mapping[str, Any], trusted: list[NoteKey]) -> bool:
    """Whether each head of the report is signed by a key that was named, if any was."""
    names = set(map(str, trusted))
    wrong = [
        f"{row['topic']} {row['partition']}"
        for row in document["proofs"]
        if trusted and names.isdisjoint(row.get("signed_by", ()))
    ]
    for place in wrong:
        typer.echo(f"{folder / JSON_FILE}: the head of {place} is signed by no key that you named")
    return not wrong


def _kept(folder: Path, name: str) -> bytes:
    """A file of --compare's folder. Raises SettingsError."""
    from ares_stream.errors import SettingsError
    from ares_stream.files import said

    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise SettingsError(f"--compare {folder / name}: cannot be read: {said(error)}") from None


def _same(
    folder: Path,
    kept: dict[str, bytes],
    files: dict[str, bytes],
    text: str,
    keys: list[NoteKey],
) -> bool:
    """Whether a folder, of which `kept` is what it holds, has these files, and a note of them that
    the keys signed."""
    from ares_stream.audit.notes import open_note
    from ares_stream.errors import IntegrityError

    same = True
    for name, raw in files.items():
        if kept[name] != raw:
            same = False
            typer.echo(f"{folder / name}: is not what these topics and this registry give")
    note = kept[NOTE_FILE].decode(errors="replace")
    try:
        if keys:
            said, signed = open_note(note, keys)
            typer.echo(f"{NOTE_FILE}: signed by {', '.join(key.name for key in signed)}")
        else:
            said = note.split("\n\n")[0].rstrip("\n") + "\n"
    except IntegrityError as error:
        typer.echo(f"{folder / NOTE_FILE}: {error}")
        return False
    if said != text:
        typer.echo(f"{folder / NOTE_FILE}: names other files or another period")
        same = False
    if same:
        typer.echo("the same, to the byte")
    return same
