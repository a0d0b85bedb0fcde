"""Dead letters carry the record as it was, and say why; the breaker stops a bad deploy."""

from hypothesis import given
from hypothesis import strategies as st

from ares_stream.errors import DecodeError
from ares_stream.streaming.deadletters import Breaker, BreakerPolicy, dead_letter
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Rejection

BYTES = st.none() | st.binary(max_size=200)


def letter(record: InboundRecord, error: Exception, stage: str = "decode") -> OutboundRecord:
    return dead_letter(
        record, Rejection(stage, error), "x.deadletters", service="scorer", failed_at_ms=7
    )


@given(key=BYTES, value=BYTES, header=st.binary(max_size=50))
def test_key_value_and_headers_are_kept_byte_for_byte(
    key: bytes | None, value: bytes | None, header: bytes
) -> None:
    record = InboundRecord("in", 3, 41, 1_700_000_000_000, key, value, (("h", header),) * 2)

    got = letter(record, ValueError("no"))

    assert (got.topic, got.key, got.value) == ("x.deadletters", key, value)
    assert got.headers[:2] == record.headers


def test_the_reason_is_told_in_kafka_connects_headers() -> None:
    record = InboundRecord("in", 3, 41, 1_700_000_000_000, b"k", b"{", ())
    try:
        raise DecodeError("is not JSON", field="messages.0")
    except DecodeError as raised:
        headers = dict(letter(record, raised).headers)

    stack = headers.pop("__connect.errors.exception.stacktrace").decode()
    assert headers == {
        "__connect.errors.topic": b"in",
        "__connect.errors.partition": b"3",
        "__connect.errors.offset": b"41",
        "__connect.errors.stage": b"decode",
        "__connect.errors.class.name": b"scorer",
        "__connect.errors.exception.class.name": b"ares_stream.errors.DecodeError",
        "__connect.errors.exception.message": b"messages.0: is not JSON",
        "ares.errors.attempt": b"1",
        "ares.errors.first_failed_at": b"7",
        "ares.errors.original_timestamp": b"1700000000000",
    }
    assert "test_streaming_deadletters.py" in stack
    assert "raise DecodeError" not in stack, "a source line may hold text of a conversation"


def test_a_long_reason_is_cut_and_a_strange_one_is_still_a_header() -> None:
    record = InboundRecord("in", 0, 0, -1, None, None, ())
    headers = dict(letter(record, ValueError("\ud800" + "x" * 10_000)).headers)
    assert len(headers["__connect.errors.exception.message"]) <= 600


def test_a_run_of_refusals_opens_the_breaker_and_one_good_record_resets_the_run() -> None:
    breaker = Breaker(BreakerPolicy(window=1000, share=1.0, consecutive=3))
    assert [breaker.count(True), breaker.count(True), breaker.count(False)] == [None] * 3
    assert [breaker.count(True), breaker.count(True)] == [None] * 2
    assert breaker.count(True) == "3 records in a row were refused"


def test_a_share_is_judged_on_a_full_window_only() -> None:
    breaker = Breaker(BreakerPolicy(window=4, share=0.5, consecutive=100))
    assert [breaker.count(refused) for refused in (True, True, False)] == [None] * 3
    assert breaker.count(False) == "2 of the last 4 records were refused"
    assert breaker.count(False) is None


@given(
    outcomes=st.lists(st.booleans(), max_size=80),
    window=st.integers(1, 20),
    share=st.floats(0.1, 1.0),
    consecutive=st.integers(1, 20),
)
def test_the_breaker_agrees_with_counting_by_hand(
    outcomes: list[bool], window: int, share: float, consecutive: int
) -> None:
    breaker = Breaker(BreakerPolicy(window=window, share=share, consecutive=consecutive))
    for end in range(1, len(outcomes) + 1):
        last = outcomes[max(0, end - window) : end]
        run = outcomes[:end][-consecutive:]
        by_hand = (len(run) == consecutive and all(run)) or (
            len(last) == window and sum(last) >= share * window
        )
        assert (breaker.count(outcomes[end - 1]) is not None) == by_hand
