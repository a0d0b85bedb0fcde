"""The count of what was settled: every way in which exactly once can fail is seen."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ares_stream.audit.accounting import Account, account
from ares_stream.errors import DecodeError
from ares_stream.records.interaction import Policy
from ares_stream.records.verdict import (
    FailureClass,
    Harm,
    Reward,
    ScoredHigh,
    SourceCoordinates,
    Verdict,
    verdict_id,
)
from ares_stream.streaming.deadletters import dead_letter, reason_of, source_of
from ares_stream.streaming.records import InboundRecord, Rejection

DIGEST = "0" * 64


def came_in(offset: int) -> InboundRecord:
    return InboundRecord("in", 0, offset, 0, b"key", b"value")


def verdict(offset: int, *, coupled: bool = False, key: str = "a") -> Verdict:
    return Verdict(
        id=verdict_id("in", 0, offset, {"harm": DIGEST}, DIGEST),
        interaction_id=key,
        lane="production",
        source=SourceCoordinates(topic="in", partition=0, offset=offset, timestamp_ms=0),
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
        policy=Policy(name="p", version="1"),
        harm=Harm(probability=0.9, judges={"harm": 0.9}),
        reward=Reward(score=1.0, quantile=0.9),
        scored_high=ScoredHigh(above_quantile=True),
        failure_class=FailureClass.COUPLED_FAILURE if coupled else FailureClass.CLEAN,
        reasons=(),
        releases={"harm": DIGEST},
        detection_policy=DIGEST,
    )


def letter(offset: int) -> InboundRecord:
    made = dead_letter(
        came_in(offset),
        Rejection.of("decode", DecodeError("not JSON")),
        "dead",
        service="scorer",
        failed_at_ms=0,
    )
    return InboundRecord("dead", 0, 0, 0, made.key, made.value, made.headers)


INPUTS = [came_in(offset) for offset in range(4)]
VERDICTS = [verdict(0), verdict(1, coupled=True), verdict(3)]
LETTERS = [letter(2)]


def counted(
    verdicts: Sequence[Verdict] = VERDICTS,
    letters: Sequence[InboundRecord] = LETTERS,
    repair: Sequence[Verdict] = (VERDICTS[1],),
) -> Account:
    return account(INPUTS, verdicts, letters, repair)


def test_each_record_settled_once_by_a_verdict_or_a_dead_letter_is_exactly_once() -> None:
    assert counted().exactly_once
    assert counted() == Account(
        sent=4,
        verdicts=3,
        dead_letters=1,
        coupled=1,
        repair=1,
        lost=0,
        doubled=0,
        foreign=0,
        disordered=0,
        unmatched=0,
    )


@pytest.mark.parametrize(
    ("found", "field"),
    [
        (counted(verdicts=VERDICTS[:2]), "lost"),
        (counted(letters=[]), "lost"),
        (counted(verdicts=[*VERDICTS, VERDICTS[0]]), "doubled"),
        (counted(letters=[*LETTERS, letter(0)]), "doubled"),
        (counted(verdicts=[*VERDICTS, verdict(9)]), "foreign"),
        (counted(verdicts=VERDICTS[::-1]), "disordered"),
        (counted(repair=[]), "unmatched"),
        (counted(repair=[VERDICTS[1], VERDICTS[1]]), "unmatched"),
        (counted(repair=[VERDICTS[1], VERDICTS[0]]), "unmatched"),
    ],
)
def test_anything_else_is_not_and_the_field_says_what(found: Account, field: str) -> None:
    assert getattr(found, field) > 0
    assert not found.exactly_once


def test_records_of_other_keys_may_overtake_each_other() -> None:
    assert counted(verdicts=[VERDICTS[0], verdict(3, key="b"), VERDICTS[1]]).exactly_once


def test_a_dead_letter_tells_its_source_and_reason() -> None:
    assert source_of(letter(2)) == ("in", 0, 2)
    assert reason_of(letter(2)) == ("decode", "not JSON")


def test_a_record_that_is_no_dead_letter_is_refused_with_its_place() -> None:
    with pytest.raises(DecodeError, match="dead 0 offset 0 is no dead letter"):
        source_of(replace(letter(2), headers=()))
