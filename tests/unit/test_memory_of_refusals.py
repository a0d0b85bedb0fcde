"""What is kept of a refused record is words: never its window, its frames or the error itself."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Callable, Sequence

import psutil
import pytest

from ares_stream.detection.decide import DetectionPolicy
from ares_stream.errors import AresError, ScoringError
from ares_stream.records.decoding import DecodingLimits, decode_interaction
from ares_stream.records.interaction import Interaction
from ares_stream.records.label import Label
from ares_stream.records.mapping import Mapping
from ares_stream.records.release import Release
from ares_stream.scoring.handler import Input, Outputs, ScoringHandler
from ares_stream.scoring.panel import Scores
from ares_stream.streaming.records import InboundRecord, Rejection

MIB = 1 << 20
GOOD = {
    "schema": Interaction.SCHEMA,
    "id": "i",
    "occurred_at": "2026-01-01T00:00:00Z",
    "messages": [{"role": "user", "content": "hello"}],
    "response": "r",
    "policy": {"name": "p", "version": "1"},
}
MAPPING = Mapping.model_validate(
    {"prompt": "ask", "response": "answer", "policy": {"name": "'p'", "version": "'1'"}}
)
JOINED = Mapping.model_validate(
    {"prompt": "join('', ask)", "response": "a", "policy": {"name": "'p'", "version": "'1'"}}
)


def raw(**change: object) -> bytes:
    return json.dumps({**GOOD, **change}).encode()


REFUSED: dict[str, tuple[bytes, Mapping | None]] = {
    "a blank message": (raw(messages=[{"role": "user", "content": " "}]), None),
    "a time before 1970": (raw(occurred_at="1960-01-01T00:00:00Z"), None),
    "a field of another type": (raw(response=7), None),
    "an unknown role": (raw(messages=[{"role": "x", "content": "y"}]), None),
    "another schema": (raw(schema="other/1"), None),
    "no JSON": (b"{", None),
    "no UTF-8": (b'{"a": "\xff"}', None),
    "a mapping that finds nothing": (b"{}", MAPPING),
    "a mapping of a blank message": (b'{"ask": " ", "answer": "b"}', MAPPING),
    "a mapping that fails": (b'{"ask": 7, "a": "b"}', JOINED),
}


class Window:
    """Stands for the records of a window: its end is seen."""


def held(refuse: Callable[[], object]) -> bool:
    """Whether a frame that keeps the error of `refuse` in a local is alive after it returned."""

    def frame() -> weakref.ref[Window]:
        window, errors = Window(), []
        try:
            refuse()
        except AresError as error:
            errors.append(error)
        assert errors, "nothing was refused"
        return weakref.ref(window)

    seen = frame()
    gc.collect()
    return seen() is not None


@pytest.mark.parametrize("what", REFUSED)
def test_an_error_of_decoding_that_is_kept_frees_the_frames_it_passed(what: str) -> None:
    value, mapping = REFUSED[what]
    limits = DecodingLimits()
    assert not held(lambda: decode_interaction(b"k", value, (), limits, mapping, timestamp_ms=1))


@pytest.mark.parametrize("record", [Label, Release])
def test_every_records_decode_frees_the_frames_it_passed(
    record: type[Label] | type[Release],
) -> None:
    assert not held(lambda: record.decode(b'{"schema": "x"}'))


@pytest.mark.parametrize("what", REFUSED)
def test_an_error_of_decoding_holds_no_other_error(what: str) -> None:
    value, mapping = REFUSED[what]
    with pytest.raises(AresError) as raised:
        decode_interaction(b"k", value, (), DecodingLimits(), mapping, timestamp_ms=1)
    assert raised.value.__context__ is None
    assert raised.value.__cause__ is None


def test_a_rejection_holds_words_alone() -> None:
    try:
        raise ValueError("no")
    except ValueError as error:
        rejection = Rejection.of("decode", error)
    fields = (rejection.stage, rejection.kind, rejection.reason, rejection.places)
    assert all(isinstance(field, str) for field in fields)


class Silent:
    """Gives no score."""

    async def score(self, interactions: Sequence[Interaction]) -> list[Scores | ScoringError]:
        return [ScoringError("model x gave nan for this conversation") for _ in interactions]


def test_memory_is_flat_over_windows_of_which_one_in_a_hundred_is_refused() -> None:
    """The issue's case at a unit test's size: 20 windows of 8 MB, all let go."""
    handler = ScoringHandler(
        Silent(),
        inputs=[Input("t", "production")],
        outputs=Outputs("v", "r", "w"),
        policy=DetectionPolicy(),
        limits=DecodingLimits(max_bytes=MIB),
        review_sample=0,
    )
    large = raw(response="x" * 80_000)
    blank = raw(messages=[{"role": "user", "content": " "}])
    process = psutil.Process()

    async def windows(count: int) -> None:
        for number in range(count):
            values = [bytes(bytearray(large)) for _ in range(99)] + [blank]
            records = [
                InboundRecord("t", 0, number * 100 + n, 1, b"k", value)
                for n, value in enumerate(values)
            ]
            outcomes = await handler.handle(records)
            assert all(isinstance(outcome, Rejection) for outcome in outcomes)

    asyncio.run(windows(4))
    before = process.memory_info().rss
    asyncio.run(windows(20))
    assert process.memory_info().rss - before < 32 * MIB
