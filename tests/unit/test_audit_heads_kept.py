"""Heads that an auditor keeps: none is written over, none is passed over without a word."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ares_stream.audit import verify_proof
from ares_stream.audit.archive import ArchiveReader
from ares_stream.audit.checking import (
    Report,
    config_of_archived,
    keep_heads,
    read_heads,
    verify_topics,
)
from ares_stream.audit.notes import NoteSigner, TreeHead, sign_note
from ares_stream.cli.main import app
from ares_stream.errors import SettingsError
from ares_stream.streaming.records import InboundRecord
from tests.support.golden_month import Topics
from tests.support.notarised import NAME, NOON, SIGNER, Notarised, notarise, records_of

PREFIX = "ares."
VERDICTS = "ares.verdicts"
KEYS = [SIGNER.key]


def held(signed: Notarised) -> Topics:
    """The records with their checkpoints, and a salts topic without any."""
    heads = [
        InboundRecord("ares.checkpoints", 0, place, 0, item.key, item.encode(), ())
        for place, item in signed.checkpoints
    ]
    first = signed.records[0]
    return Topics(
        {
            (first.topic, first.partition): signed.records,
            ("ares.checkpoints", 0): heads,
            ("ares.salts", 0): [],
        }
    )


def verified(topics: Topics, folder: Path, known: list[TreeHead] | None = None) -> Report:
    number = len(list(folder.glob("archive-*")))
    reader = ArchiveReader(topics.archive(folder / f"archive-{number}"))
    return asyncio.run(verify_topics(reader, PREFIX, [VERDICTS], KEYS, {}, known=known or ()))


def test_the_newest_good_head_is_kept_and_no_forged_one_of_its_size(tmp_path: Path) -> None:
    signed = notarise(records_of(20))
    last = signed.checkpoints[-1][1]
    forged = last.model_copy(update={"note": last.note.replace("A", "B").replace("a", "b")})
    signed.checkpoints.append((99, forged))
    report = verified(held(signed), tmp_path)
    assert [item.kind for item in report.differences] == ["forged"]
    keep_heads(report, tmp_path, KEYS)
    (file,) = tmp_path.glob("*.txt")
    assert file.read_text() == last.note


def test_a_kept_head_is_never_written_over_and_another_of_its_size_is_a_difference(
    tmp_path: Path,
) -> None:
    """Who signs everything anew may come to the same number of leaves."""
    signed = notarise(records_of(20))
    keep_heads(verified(held(signed), tmp_path), tmp_path, KEYS)
    (file,) = tmp_path.glob("*.txt")
    before = file.read_bytes()
    anew = held(notarise([replace(item, value=b"x") for item in signed.records]))
    report = verified(anew, tmp_path)
    assert report.document()["holds"]
    keep_heads(report, tmp_path, KEYS)
    assert not report.document()["holds"]
    assert f"{file} holds another head of 20 leaves" in str(report.differences[0])
    assert file.read_bytes() == before
    # Night after night, with what was kept: the difference stays.
    known = [head for _, head in read_heads([tmp_path], KEYS)]
    for _ in range(2):
        report = verified(anew, tmp_path, known)
        assert [item.kind for item in report.differences] == ["unknown_head"]
    keep_heads(verified(held(signed), tmp_path), tmp_path, KEYS)
    assert file.read_bytes() == before


def test_a_kept_head_of_a_partition_that_is_gone_is_a_difference_and_others_are_counted(
    tmp_path: Path,
) -> None:
    signed = notarise(records_of(20))
    gone = TreeHead(f"{NAME}/{VERDICTS}/7", 3, bytes(32))
    apart = TreeHead(f"{NAME}/ares.repair/0", 3, bytes(32))
    stranger = TreeHead(f"other.example/{VERDICTS}/2", 3, bytes(32))
    report = verified(held(signed), tmp_path, [gone, apart, stranger])
    assert [(item.kind, item.partition) for item in report.differences] == [("unknown_head", 7)]
    assert "2 kept heads are of other topics or notaries: not looked at" in list(report.lines())


def test_records_without_any_checkpoint_are_not_as_signed(tmp_path: Path) -> None:
    signed = notarise(records_of(20))
    report = verified(held(replace(signed, checkpoints=[])), tmp_path)
    assert (report.differences, report.holds, report.document()["holds"]) == ([], False, False)
    assert list(report.lines())[-1].startswith("nothing is signed")
    empty = held(signed)
    empty.held[VERDICTS, 2] = []
    empty.held["ares.checkpoints", 0] = []
    assert verified(empty, tmp_path).holds


def test_a_head_that_is_none_is_named_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "head.txt"
    text = TreeHead(f"{NAME}/{VERDICTS}/2", 3, bytes(32)).text()
    other = NoteSigner.generate("other.example/ares")
    for content, why in (
        ("nothing", "not a signed note"),
        (sign_note(text, [NoteSigner.generate(NAME)]), "signed by no trusted key"),
        (sign_note(text, [other]), "signed by other.example/ares, which is not the notary of"),
    ):
        file.write_text(content)
        with pytest.raises(SettingsError, match=f"^{file}: {why}"):
            read_heads([file], [*KEYS, other.key])
    file.unlink()
    with pytest.raises(SettingsError, match="holds no head"):
        read_heads([tmp_path], KEYS)
    assert read_heads([tmp_path], KEYS, may_be_empty=tmp_path) == []


def test_an_archive_is_verified_and_proven_as_topics_are_when_retention_has_taken_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    signed = notarise(records_of(20))
    archive = held(signed).archive(tmp_path / "kept")

    def ares(*words: str) -> Result:
        key = str(SIGNER.key)
        return CliRunner().invoke(app, ["audit", *words, "--archive", archive, "--key", key])

    done = ares("verify", "--topic", "verdicts", "--keep", "heads")
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "all as signed")
    done = ares("prove", "--at", "2:3", "--known", "heads", "--out", "proof.json")
    assert done.exit_code == 0, done.output
    (head,) = (tmp_path / "heads").iterdir()
    asked = ["proof.json", "--key", str(SIGNER.key), "--known", str(head)]
    assert verify_proof.main(asked) == 0
    topics = held(signed)
    topics.change(VERDICTS, 3, value=b"another")
    archive = topics.archive(tmp_path / "bent")
    done = ares("verify", "--topic", "verdicts")
    assert (done.exit_code, "offset 3: changed" in done.output) == (1, True)
    done = ares("prove", "--at", "2:3", "--out", "none.json")
    assert (done.exit_code, (tmp_path / "none.json").exists()) == (2, False)
    archive = str(tmp_path / "nothing")
    assert ares("verify", "--topic", "verdicts").exit_code == 2


def test_an_archived_compacted_topic_may_lack_what_gave_way_to_a_later_record(
    tmp_path: Path,
) -> None:
    signed = notarise(records_of(20, topic="ares.labels"), keyed=True)
    topics = held(signed)
    # Of five keys the latest records are the last five.
    topics.held["ares.labels", 2] = signed.records[12:]
    reader = ArchiveReader(topics.archive(tmp_path / "kept"))
    config = config_of_archived(PREFIX)
    report = asyncio.run(verify_topics(reader, PREFIX, ["ares.labels"], KEYS, config))
    assert (report.holds, report.partitions[0].compacted) == (True, 12)
    topics.held["ares.labels", 2] = signed.records[:-1]
    reader = ArchiveReader(topics.archive(tmp_path / "cut"))
    report = asyncio.run(verify_topics(reader, PREFIX, ["ares.labels"], KEYS, config))
    assert [item.kind for item in report.differences] == ["dropped"]


@pytest.mark.parametrize("topic_id", ["first", None, "second"])
def test_what_was_erased_stays_so_but_in_a_topic_that_was_made_anew(
    tmp_path: Path, topic_id: str | None
) -> None:
    signed = notarise(records_of(20), salted=True)
    topics = held(signed)
    salts = [item.model_copy(update={"topic_id": "first"}) for item in signed.salts.values()]
    gone = salts[4].model_copy(
        update={"salt": None, "subject": None, "erased_at": NOON, "erased_by": "ann"}
    )
    back = salts[4].model_copy(update={"topic_id": topic_id})
    topics.held["ares.salts", 0] = [
        InboundRecord("ares.salts", 0, place, 0, item.key, item.encode(), ())
        for place, item in enumerate([*salts, gone, back])
    ]
    (part,) = verified(topics, tmp_path).partitions
    is_back = topic_id == "second"
    assert (part.equal, part.erased, part.differences) == (19 + is_back, 1 - is_back, ())


@pytest.mark.parametrize(
    ("hours", "runs"),
    [(-1, 3), (0, 3), (2, 3), (9, 3), (9, 0)],
    ids=["later", "just now", "hours ago", "before the notary", "notary just started"],
)
def test_a_partition_whose_checkpoints_were_taken_away_is_named(
    tmp_path: Path, hours: int, runs: int
) -> None:
    signed = notarise(records_of(20))
    place, first = signed.checkpoints[0]
    began = NOON - timedelta(hours=runs)
    signed.checkpoints[0] = place, first.model_copy(update={"issued_at": began})
    topics = held(signed)
    signed_at = int(NOON.timestamp() * 1000)
    topics.held[VERDICTS, 5] = [
        replace(item, partition=5, timestamp_ms=signed_at - hours * 3_600_000)
        for item in signed.records
    ]
    report = verified(topics, tmp_path)
    found = [(item.kind, item.partition, item.end) for item in report.differences]
    end = signed.records[-1].offset + 1
    assert found == ([("missing_checkpoint", 5, end)] if hours > 0 and runs else [])
