"""A replay proves a month of verdicts, names what differs by its offset, and asks what others
would have said. The golden month is made by the scorer's own handler; see tests/support."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ares_stream.audit.archive import ArchiveReader
from ares_stream.audit.notes import NoteSigner
from ares_stream.audit.replay.findings import finding
from ares_stream.audit.replay.letters import Letter
from ares_stream.audit.replay.models import WhatIf
from ares_stream.audit.replay.recorded import recorded
from ares_stream.audit.replay.report import lines
from ares_stream.audit.replay.selecting import parse_offsets, select
from ares_stream.audit.replay.signing import check_signature, sign
from ares_stream.audit.replay.work import Work
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.errors import AresError, IntegrityError, ReadError, masked, remember_secret
from ares_stream.records.base import OffsetRange
from ares_stream.records.decoding import DecodingLimits
from ares_stream.records.label import ReviewItem
from ares_stream.records.repair import CoupledFailure, RepairReport
from ares_stream.records.verdict import Verdict
from ares_stream.reporting.page import render
from ares_stream.reporting.replay import replay_page
from ares_stream.streaming.deadletters import source_of
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from tests.support.auditor import NAMES, Auditor
from tests.support.golden_month import (
    BEGIN_MS,
    COUNT,
    DAY_MS,
    DEADLETTERS,
    OUTPUTS,
    POLICIES,
    PROBE,
    PRODUCTION,
    SECRET,
    THEIRS,
    Month,
    live,
)

GOLDEN_READ = "f9261d235f10bf7d1302ad7ac99eb37274d8bbe6f69437568d7dbb09952b059d"
"""SHA-256 of all that the golden month's replay reads: the month itself has not changed."""


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Month:
    return live(tmp_path_factory.mktemp("month"))


@pytest.fixture
def auditor(month: Month, tmp_path: Path) -> Auditor:
    return Auditor(month, tmp_path)


def test_the_golden_month_is_identical_to_the_byte(auditor: Auditor, month: Month) -> None:
    found = auditor.replay()
    counts = found["counts"]
    assert found["differences"] == []
    assert (found["holds"], found["differences_total"]) == (True, 0)
    assert counts["identical"] + counts["left_out"] == found["records"] == COUNT
    assert counts["left_out"] > 10
    assert found["read_digest"] == GOLDEN_READ
    assert found["recorded_opinions"] > 10
    assert len(found["models"]) == 3
    assert {item["dtype"] for item in found["models"]} == {"float32"}
    assert found["runtime"]["dtype"] == "float32"
    assert {item["digest"] for item in found["policies"]} == {item.digest for item in POLICIES}
    verdicts = sum(1 for _ in month.topics.of(OUTPUTS.verdicts))
    letters = sum(1 for _ in month.topics.of(DEADLETTERS))
    assert counts["identical"] == verdicts + letters
    assert letters > 10


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_knows_a_secret_replays_what_one_without_it_does(
    auditor: Auditor, workers: int
) -> None:
    without = auditor.replay()
    letters = [recorded(item, OUTPUTS, DEADLETTERS) for item in auditor.topics.of(DEADLETTERS)]
    reasons = {Letter.unpack(entry.payload).reason for _, entry in letters}
    # Passwords as people choose them: each reason has one of its words taken out.
    words = {word for reason in reasons for word in re.findall(r"[A-Za-z]{5,}", reason)}
    remember_secret(*words)
    assert len(words) > 5
    assert all(masked(reason) != reason for reason in reasons)
    found = auditor.replay(workers=workers)
    for name in ("read_digest", "replayed_digest", "counts", "partitions", "tolerated"):
        assert found[name] == without[name]


def test_a_letter_whose_scorer_masked_a_word_holds_with_or_without_its_secret(
    auditor: Auditor,
) -> None:
    name = "__connect.errors.exception.message"
    letters = list(auditor.topics.of(DEADLETTERS))
    place, word = next(
        (place, found[0])
        for place, item in enumerate(letters)
        if (found := re.search(r"[A-Za-z]{5,}", item.header_map[name].decode()))
    )
    was = auditor.topics.change(DEADLETTERS, place)
    headers = tuple(
        (key, (value or b"").replace(word.encode(), b"***") if key == name else value)
        for key, value in was.headers
    )
    auditor.topics.change(DEADLETTERS, place, headers=headers)
    stranger = auditor.replay()
    assert (stranger["holds"], stranger["counts"]["tolerated"]) == (True, 1)
    assert stranger["tolerated"][0]["detail"].endswith("in other words")
    remember_secret(word)
    owner = auditor.replay()
    assert [owner[name] for name in ("counts", "tolerated", "replayed_digest")] == [
        stranger[name] for name in ("counts", "tolerated", "replayed_digest")
    ]


def test_one_changed_verdict_diverges_at_its_offset(auditor: Auditor) -> None:
    was = auditor.topics.change(OUTPUTS.verdicts, 30)
    verdict = Verdict.decode(was.value or b"")
    harm = verdict.harm.model_copy(update={"probability": verdict.harm.probability / 2 + 0.01})
    forged = verdict.model_copy(update={"harm": harm})
    auditor.topics.change(OUTPUTS.verdicts, 30, value=forged.encode())
    found = auditor.replay()
    assert found["holds"] is False
    (difference,) = found["differences"]
    source = verdict.source
    place = (difference["topic"], difference["partition"], difference["offset"])
    assert place == (source.topic, source.partition, source.offset)
    assert difference["agreement"] == "divergent"
    assert difference["detail"].startswith("harm.probability: ")
    assert found["counts"]["divergent"] == 1


def change_text(auditor: Auditor, topic: str, number: int, old: bytes, new: bytes) -> None:
    was = auditor.topics.change(topic, number)
    value = (was.value or b"").replace(old, new, 1)
    assert value != was.value
    auditor.topics.change(topic, number, value=value)


def record_of(auditor: Auditor, topic: str, number: int) -> InboundRecord:
    return list(auditor.topics.of(topic))[number]


def change_header(
    auditor: Auditor, topic: str, number: int, name: str, value: bytes | None
) -> None:
    """One header's value, or the header taken away with None."""
    was = record_of(auditor, topic, number).headers
    headers = tuple(
        (key, value if key == name else content)
        for key, content in was
        if key != name or value is not None
    )
    assert headers != was
    auditor.topics.change(topic, number, headers=headers)


def review_of(auditor: Auditor, cause: str) -> int:
    """The number of the second review record of a cause."""
    found = [
        number
        for number, item in enumerate(auditor.topics.of(OUTPUTS.review))
        if ReviewItem.decode(item.value or b"").cause == cause
    ]
    return found[1]


def sampled(auditor: Auditor) -> int:
    return review_of(auditor, "sampled")


def contested(auditor: Auditor) -> int:
    return review_of(auditor, "contested")


def repair_of_refused(auditor: Auditor) -> None:
    """A repair record that names a record whose dead letter is there."""
    topic, partition, offset = source_of(next(auditor.topics.of(DEADLETTERS)))
    record = next(auditor.topics.of(OUTPUTS.repair))
    item = CoupledFailure.decode(record.value or b"")
    place = item.verdict.source.model_copy(
        update={"topic": topic, "partition": partition, "offset": offset}
    )
    verdict = item.verdict.model_copy(update={"source": place})
    log = auditor.topics.held[OUTPUTS.repair, 0]
    value = item.model_copy(update={"verdict": verdict}).encode()
    log.append(replace(record, partition=0, offset=log[-1].offset + 1, value=value))


def drop(topic: str) -> Callable[[Auditor], object]:
    return lambda auditor: auditor.topics.drop(topic, 1)


def append_again(auditor: Auditor) -> None:
    record = next(auditor.topics.of(OUTPUTS.verdicts))
    log = auditor.topics.held[OUTPUTS.verdicts, 0]
    log.append(replace(record, partition=0, offset=log[-1].offset + 1))


def name_another_offset(auditor: Auditor) -> None:
    record = next(auditor.topics.of(OUTPUTS.verdicts))
    verdict = Verdict.decode(record.value or b"")
    topic, partition = verdict.source.topic, verdict.source.partition
    taken = {item.offset for item in auditor.topics.held[topic, partition]}
    free = next(offset for offset in range(500) if offset not in taken)
    source = verdict.source.model_copy(update={"offset": free})
    auditor.topics.change(
        OUTPUTS.verdicts, 0, value=verdict.model_copy(update={"source": source}).encode()
    )


ALTERATIONS: dict[str, tuple[Callable[[Auditor], object], set[tuple[str, str]]]] = {
    "a verdict that is gone": (
        drop(OUTPUTS.verdicts), {("missing", "neither verdict nor dead letter")}),
    "a dead letter that is gone": (
        drop(DEADLETTERS), {("missing", "no dead letter; it is refused at")}),
    "a repair record that is gone": (drop(OUTPUTS.repair), {("missing", "no repair record")}),
    "an input that is gone": (
        drop(PRODUCTION), {("unexpected", "the topic holds no record at this offset")}),
    "two verdicts of one record": (
        append_again, {("unexpected", "settled 2 times")}),
    "a verdict that names another record": (
        name_another_offset,
        {("missing", "neither verdict"), ("unexpected", "the topic holds no record")}),
    "a verdict that is none": (
        lambda a: a.topics.change(OUTPUTS.verdicts, 5, value=b"{}"),
        {("missing", "neither verdict"), ("unexpected", "no output of a scorer")}),
    "another conversation in a repair record": (
        lambda a: change_text(a, OUTPUTS.repair, 2, SECRET.encode(), b"harmless"),
        {("divergent", "its repair record holds another conversation")}),
    "another verdict in a review record": (
        lambda a: change_text(a, OUTPUTS.review, 2, b'"lane":"pro', b'"lane":"pro'.swapcase()),
        {("unexpected", "no output of a scorer")}),
    "other bytes in a dead letter": (
        lambda a: a.topics.change(DEADLETTERS, 0, value=b""),
        {("divergent", "its dead letter holds another value")}),
    "another key of a verdict": (
        lambda a: a.topics.change(OUTPUTS.verdicts, 4, key=b"other"),
        {("divergent", "its verdict record has another key")}),
    "another key of a repair record": (
        lambda a: a.topics.change(OUTPUTS.repair, 1, key=None),
        {("divergent", "its repair record has another key")}),
    "another key of a dead letter": (
        lambda a: a.topics.change(DEADLETTERS, 2, key=b"other"),
        {("divergent", "its dead letter holds another key")}),
    "another event time of a verdict": (
        lambda a: change_header(a, OUTPUTS.verdicts, 8, "ce_time", b"2026-10-01T12:00:01.000Z"),
        {("divergent", "its verdict record has another header ce_time")}),
    "another type of a repair record": (
        lambda a: change_header(a, OUTPUTS.repair, 0, "ce_type", b"ares.verdict.v1"),
        {("divergent", "its repair record has another header ce_type")}),
    "another source of a review record": (
        lambda a: change_header(a, OUTPUTS.review, 3, "ce_source", SECRET.encode()),
        {("divergent", "its review record has another header ce_source")}),
    "a verdict without its content type": (
        lambda a: change_header(a, OUTPUTS.verdicts, 2, "content-type", None),
        {("divergent", "its verdict record has no header content-type")}),
    "a header more on a verdict": (
        lambda a: a.topics.change(
            OUTPUTS.verdicts, 6, headers=(*record_of(a, OUTPUTS.verdicts, 6).headers, (SECRET, b""))
        ),
        {("divergent", "its verdict record has 1 headers that the replay has not")}),
    "another time of a dead letter's record": (
        lambda a: change_header(a, DEADLETTERS, 1, "ares.errors.original_timestamp", b"1"),
        {("divergent", "its dead letter has another ares.errors.original_timestamp")}),
    "another header of a dead letter's record": (
        lambda a: a.topics.change(
            DEADLETTERS, 3, headers=(("x", b"y"), *record_of(a, DEADLETTERS, 3).headers)
        ),
        {("divergent", "its dead letter holds other headers")}),
    "another conversation in a sampled review record": (
        lambda a: change_text(
            a, OUTPUTS.review, sampled(a), SECRET.encode(), b"harmless"),
        {("divergent", "its review record holds another conversation")}),
    "another probability of a sampled review record": (
        lambda a: change_text(
            a, OUTPUTS.review, contested(a), b'"sampling_probability":1.0',
            b'"sampling_probability":0.5'),
        {("divergent", "its review record names another probability")}),
    "a field more in a repair record": (
        lambda a: change_text(a, OUTPUTS.repair, 3, b"{", b'{"note":1,'),
        {("divergent", "its repair record holds other fields")}),
    "a repair record of a refused record": (
        repair_of_refused, {("unexpected", "repair ")}),
    "another reason": (
        lambda a: change_text(
            a, OUTPUTS.verdicts, 9, b'"harm_', b'"reward_'), {("divergent", "reasons")}),
}  # fmt: skip


@pytest.mark.parametrize("what", ALTERATIONS)
def test_every_kind_of_alteration_is_named(auditor: Auditor, what: str) -> None:
    alter, expected = ALTERATIONS[what]
    alter(auditor)
    found = auditor.replay()
    assert found["holds"] is False
    for agreement, detail in expected:
        assert any(
            item["agreement"] == agreement and item["detail"].startswith(detail)
            for item in found["differences"]
        ), found["differences"]
    assert found["differences_total"] <= 2


def test_a_replay_that_was_ended_goes_on_and_gives_the_same(
    auditor: Auditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = auditor.replay()

    class Ended(Exception):
        pass

    kept = Work.keep_done
    left = 0

    def end_after(work: Work, result: Any) -> None:
        nonlocal left
        kept(work, result)
        left -= 1
        if left < 0:
            raise Ended

    monkeypatch.setattr(Work, "keep_done", end_after)
    ended = 0
    for _ in range(100):
        left = 2
        try:
            found = auditor.replay(work="one")
        except Ended:
            ended += 1
        else:
            break
    assert ended > 1
    for name in ("read_digest", "replayed_digest", "counts", "partitions"):
        assert found[name] == whole[name]


def test_a_folder_of_another_replay_is_refused(auditor: Auditor) -> None:
    auditor.replay(work="one")
    with pytest.raises(AresError, match="holds a replay with other settings"):
        auditor.replay(auditor.spec(limits=DecodingLimits(max_bytes=7)), work="one")
    (auditor.folder / "mine").mkdir()
    (auditor.folder / "mine" / "thesis.tex").write_text("")
    with pytest.raises(AresError, match="holds other files"):
        auditor.replay(work="mine")


def test_two_replays_never_work_in_one_folder(tmp_path: Path) -> None:
    first, second = Work(tmp_path / "one", 64), Work(tmp_path / "one", 64)
    busy = pytest.raises(AresError, match="another replay is at work there")
    with first.held(), busy, second.held():
        raise AssertionError("both hold it")
    with second.held():
        pass


CHANGES: dict[str, Callable[[bytes, bytes], bytes]] = {
    "cut in half": lambda raw, other: raw[: len(raw) // 2],
    "empty": lambda raw, other: b"",
    "a list": lambda raw, other: b"[]",
    "nothing in it": lambda raw, other: b"{}",
    "nested": lambda raw, other: b"[" * 100_000,
    "of another range": lambda raw, other: other,
    "a text for a number": lambda raw, other: re.sub(rb'"start": \d+', b'"start": "x"', raw),
    "a field more": lambda raw, other: raw[:-1] + b', "more": 1}',
}


@pytest.mark.parametrize("folder", ["done", "sorted", ""])
def test_a_kept_file_that_was_changed_is_named_and_nothing_is_said_of_any_record(
    auditor: Auditor, folder: str
) -> None:
    auditor.replay(work="one")
    file, other = (sorted((auditor.folder / "one" / folder).glob("*.json")) * 2)[:2]
    raw = file.read_bytes()
    for what, change in CHANGES.items():
        if not folder and what in ("of another range", "a field more"):
            continue  # There is one plan, and what it has more is not looked at.
        file.write_bytes(change(raw, other.read_bytes()))
        with pytest.raises(AresError, match=re.escape(str(file))):
            auditor.replay(work="one")
    file.write_bytes(raw)
    assert auditor.replay(work="one")["holds"]


def test_parts_of_an_indexed_job_cover_each_partition_once(auditor: Auditor) -> None:
    whole = auditor.replay()
    parts = [auditor.replay(part=(index, 4)) for index in range(4)]
    assert sorted(
        (item for part in parts for item in part["partitions"]),
        key=lambda item: (item["topic"], item["partition"]),
    ) == whole["partitions"]  # fmt: skip


def test_times_that_follow_each_other_lose_no_record_whatever_the_clocks_say(
    auditor: Auditor,
) -> None:
    middle = BEGIN_MS + 15 * DAY_MS
    first = auditor.replay(until_ms=middle)
    second = auditor.replay(since_ms=middle)
    assert first["records"] + second["records"] == COUNT
    assert first["outside_time"] + second["outside_time"] > 0
    assert (first["holds"], second["holds"]) == (True, True)


def test_offsets_and_a_release_choose_what_they_name(auditor: Auditor, month: Month) -> None:
    some = auditor.replay(offsets=(parse_offsets(f"{PRODUCTION}:0:10-30"),))
    assert [item["ranges"] for item in some["partitions"]] == [[[10, 30]]]
    assert some["holds"] is True
    digest = month.bundles.rewards[1].digest
    late = auditor.replay(release=digest)
    assert 0.3 * COUNT < late["records"] < 0.7 * COUNT
    assert digest in {item["digest"] for item in late["models"]}
    with pytest.raises(AresError, match="took part in no verdict"):
        auditor.replay(release="0" * 64)
    with pytest.raises(AresError, match="not two of them"):
        auditor.replay(release=digest, since_ms=BEGIN_MS)


def test_a_plan_chooses_the_failures_of_its_batch_and_no_record_beside_them(
    auditor: Auditor,
) -> None:
    log = auditor.topics.held[OUTPUTS.repair, 0]
    batch = log[1].offset, log[4].offset + 1
    noon = datetime(2026, 10, 1, 12, tzinfo=UTC)
    repair = RepairReport(
        plan_id="plan-7", state="promoted", method="joint", reasons=(), before={}, after={},
        batch=(OffsetRange(topic=OUTPUTS.repair, partition=0, start=batch[0], end=batch[1]),),
        started_at=noon, finished_at=noon,
    )  # fmt: skip
    record = OutboundRecord(NAMES.repairs, b"plan-7", repair.encode())
    auditor.topics.append(NAMES.repairs, 0, record, BEGIN_MS)
    found = auditor.replay(plan="plan-7")
    assert (found["records"], found["chosen_offsets"], found["holds"]) == (4, 4, True)
    with pytest.raises(AresError, match="holds no report of such a plan"):
        auditor.replay(plan="plan-8")


def test_a_plan_whose_batch_holds_another_record_is_an_error_with_its_place(
    auditor: Auditor,
) -> None:
    log = auditor.topics.held[OUTPUTS.repair, 0]
    start = log[2].offset
    noon = datetime(2026, 10, 5, tzinfo=UTC)
    repair = RepairReport(
        plan_id="plan-7", state="promoted", method="joint", reasons=("passed",),
        batch=(OffsetRange(topic=OUTPUTS.repair, partition=0, start=start, end=start + 1),),
        before={}, after={}, started_at=noon, finished_at=noon,
    )  # fmt: skip
    record = OutboundRecord(NAMES.repairs, b"plan-7", repair.encode())
    auditor.topics.append(NAMES.repairs, 0, record, BEGIN_MS)
    auditor.topics.change(OUTPUTS.repair, 2, value=b"{}")
    with pytest.raises(ReadError, match=rf"{OUTPUTS.repair} 0 offset {start}, of the batch"):
        auditor.replay(plan="plan-7")


def test_an_empty_range_holds(auditor: Auditor) -> None:
    found = auditor.replay(since_ms=BEGIN_MS + 300 * DAY_MS)
    assert (found["records"], found["holds"]) == (0, True)


def test_a_month_without_a_dead_letter_is_replayed_from_its_archive_and_half_of_one_is_not(
    auditor: Auditor, tmp_path: Path
) -> None:
    for place in [place for place in auditor.topics.held if place[0] == DEADLETTERS]:
        auditor.topics.held[place] = []
    # What was refused has no letter now, and no more is wrong.
    found = auditor.replay()
    assert found["counts"]["missing"] == found["differences_total"] > 0
    assert {item["agreement"] for item in found["differences"]} == {"missing"}
    archive = tmp_path / "half"
    auditor.topics.archive(archive)
    partition = next((archive / OUTPUTS.verdicts).iterdir())
    shutil.rmtree(partition)
    said = f"{OUTPUTS.verdicts} {partition.name}: is not in the archive"
    with pytest.raises(ReadError, match=re.escape(said)):
        asyncio.run(select(ArchiveReader(str(archive)), NAMES))


def test_what_is_behind_the_last_settled_record_is_pending_unless_it_was_asked_for(
    auditor: Auditor,
) -> None:
    place = PRODUCTION, 0
    last = auditor.topics.held[place][-1]
    more = replace(last, offset=last.offset + 1)
    auditor.topics.held[place].append(more)
    found = auditor.replay()
    assert (found["counts"]["pending"], found["holds"]) == (1, True)
    asked = auditor.replay(
        offsets=(parse_offsets(f"{PRODUCTION}:0:{more.offset}-{more.offset + 1}"),)
    )
    assert (asked["counts"]["missing"], asked["holds"]) == (1, False)


def test_a_bundle_or_a_policy_that_nobody_has_is_an_error_with_its_place(
    auditor: Auditor, month: Month
) -> None:
    spec = auditor.spec()
    few = replace(spec.resources, bundles=spec.resources.bundles[:2])
    digest = month.bundles.rewards[1].digest
    with pytest.raises(AresError, match=f"offsets .*no bundle of reward reward {digest[:12]}"):
        auditor.replay(replace(spec, resources=few))
    old = replace(spec.resources, policies=POLICIES[:1])
    with pytest.raises(AresError, match=f"offsets .*no detection policy {POLICIES[1].digest[:12]}"):
        auditor.replay(replace(spec, resources=old))


def test_a_retention_gap_of_the_outputs_is_an_error_and_never_a_finding(auditor: Auditor) -> None:
    for partition in (0, 1):
        del auditor.topics.held[OUTPUTS.verdicts, partition][:20]
    with pytest.raises(AresError, match=r"truncated: .* has no output, and retention has deleted"):
        auditor.replay()


def test_repair_records_that_retention_deleted_are_counted(auditor: Auditor) -> None:
    for partition in (0, 1):
        del auditor.topics.held[OUTPUTS.repair, partition][:3]
    found = auditor.replay()
    assert (found["holds"], found["expired"] > 0) == (True, True)


def test_inputs_that_retention_deleted_are_an_error_of_times(auditor: Auditor) -> None:
    del auditor.topics.held[PROBE, 1][:6]
    assert auditor.replay(since_ms=BEGIN_MS + 20 * DAY_MS)["holds"] is True
    with pytest.raises(AresError, match=f"truncated: {PROBE} 1 begins at offset"):
        auditor.replay(since_ms=BEGIN_MS)


def test_numbers_within_the_tolerance_are_told_apart_from_equal_ones(auditor: Auditor) -> None:
    carried = [json.loads(item.value or b"")["verdict"]["id"] for item in (
        *auditor.topics.of(OUTPUTS.repair), *auditor.topics.of(OUTPUTS.review))]  # fmt: skip
    number, verdict = next(
        (number, verdict)
        for number, item in enumerate(auditor.topics.of(OUTPUTS.verdicts))
        if (verdict := Verdict.decode(item.value or b"")).id not in carried
    )
    reward = verdict.reward.model_copy(update={"score": verdict.reward.score + 1e-6})
    auditor.topics.change(
        OUTPUTS.verdicts, number, value=verdict.model_copy(update={"reward": reward}).encode()
    )
    found = auditor.replay()
    assert (found["holds"], found["counts"]["tolerated"]) == (True, 1)
    assert found["tolerated"][0]["detail"] == "within the tolerance: reward.score"
    from ares_stream.audit.replay.comparing import Tolerance

    strict = auditor.replay(auditor.spec(tolerance=Tolerance(0.0)))
    assert (strict["holds"], strict["counts"]["divergent"]) == (False, 1)


def what_if(auditor: Auditor, **changed: Any) -> dict[str, Any]:
    spec = auditor.spec(mode="what-if", what_if=WhatIf(**changed), slices=("locale",))
    return auditor.replay(spec)


def test_what_if_of_a_policy_decides_on_the_recorded_scores(auditor: Auditor, month: Month) -> None:
    policy = DetectionPolicy(
        version="all", harm_threshold=0.5, abstain_above=0.0, abstain_below=1.0
    )
    found = what_if(auditor, policy=policy)
    assert found["holds"] is None
    verdicts = [Verdict.decode(item.value or b"") for item in month.topics.of(OUTPUTS.verdicts)]
    contested = sum(item.failure_class == "contested" for item in verdicts)
    assert found["counts"]["changed"] == len(verdicts) - contested
    assert found["counts"]["unchanged"] == contested
    assert all(move.endswith("→ contested") for move in found["what_if"]["moves"])
    assert found["models"] == []


def test_what_if_of_a_judge_scores_again_and_compares_by_slice(
    auditor: Auditor, month: Month
) -> None:
    strict = month.bundles.strict
    found = what_if(auditor, judges=(("judge", strict.digest),))
    moves = found["what_if"]["moves"]
    assert set(moves) <= {
        "clean → policy_failure", "clean → coupled_failure", "contested → policy_failure",
        "contested → coupled_failure", "clean → contested", "reward_failure → policy_failure",
        "reward_failure → coupled_failure", "policy_failure → contested",
        "coupled_failure → contested", "contested → clean", "contested → reward_failure",
    }  # fmt: skip
    assert sum(moves.values()) == found["counts"]["changed"] > 30
    slices = found["what_if"]["slices"]
    assert {"lane production", "lane probe", "locale de", "policy chat 7"} <= set(slices)
    for name in ("de", "en", "fr"):
        cell = slices[f"locale {name}"]
        assert sum(cell["before"].values()) == sum(cell["after"].values())
    assert strict.digest in {item["digest"] for item in found["models"]}


def test_the_page_shows_what_the_report_says_and_no_text(auditor: Auditor) -> None:
    auditor.topics.drop(OUTPUTS.verdicts, 3)
    proof = auditor.replay()
    page = render(replay_page(proof), datetime(2026, 11, 1, tzinfo=UTC))
    assert "missing" in page
    assert proof["read_digest"] in page
    other = what_if(auditor, policy=DetectionPolicy(harm_threshold=0.4, abstain_above=0.1))
    page = render(replay_page(other), datetime(2026, 11, 1, tzinfo=UTC))
    assert "From class to class" in page
    for document in (json.dumps(proof), json.dumps(other), page, "\n".join(lines(proof))):
        assert SECRET not in document


def test_a_signed_report_names_its_key_and_refuses_another_text(auditor: Auditor) -> None:
    raw = json.dumps(auditor.replay()).encode()
    signer = NoteSigner.generate("example.com/ares")
    note = sign(raw, signer)
    assert check_signature(raw, note, [signer.key]) == signer.key
    with pytest.raises(IntegrityError, match="another report"):
        check_signature(raw + b" ", note, [signer.key])
    with pytest.raises(IntegrityError, match="no trusted key"):
        check_signature(raw, note, [NoteSigner.generate("example.com/ares").key])


def test_a_trace_finds_what_a_report_says_of_one_record(auditor: Auditor) -> None:
    gone = Verdict.decode(auditor.topics.drop(OUTPUTS.verdicts, 3).value or b"").source
    found = auditor.replay()
    said = finding(found, gone.topic, gone.partition, gone.offset)
    assert said is not None
    assert said.startswith("missing: ")
    assert finding(found, gone.topic, gone.partition, 100_000) is None
    with pytest.raises(AresError, match="not a report of a replay"):
        finding({"schema": "ares.trace/1"}, gone.topic, gone.partition, gone.offset)
    other = next(auditor.topics.of(THEIRS))
    assert finding(found, other.topic, other.partition, other.offset) == "as recorded"
