"""Verification finds what was done to a topic or its checkpoints, at the offset, and only that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ares_stream.audit.leaves import Hasher, Leaf, content_hash, unpack
from ares_stream.audit.notes import NoteKey, NoteSigner, TreeHead, open_head, open_note
from ares_stream.audit.verifying import Chain, Comparison, check_chain, compare
from ares_stream.errors import IntegrityError
from ares_stream.records.checkpoint import Checkpoint, Salt
from ares_stream.streaming.records import InboundRecord
from tests.support.notarised import NAME, SIGNER, Notarised, notarise, records_of

KEYS = [SIGNER.key]


def checked(
    signed: Notarised,
    known: list[TreeHead] | None = None,
    stamped_at: Callable[[str, bytes], datetime] | None = None,
) -> Chain:
    first = signed.records[0]
    return check_chain(
        first.topic, first.partition, signed.checkpoints, name=NAME, keys=KEYS,
        known=known or (), stamped_at=stamped_at,
    )  # fmt: skip


def compared(
    chain: Chain, records: list[InboundRecord], signed: Notarised, **options: object
) -> Comparison:
    arguments = {"salts": signed.salts, "first": 0, "compacted": False} | options
    return compare(chain, records, **arguments)  # type: ignore[arg-type]


def found(comparison: Comparison) -> list[tuple[str, int]]:
    return [(item.kind, item.start) for item in comparison.differences]


@pytest.mark.parametrize("salted", [False, True])
def test_what_is_as_it_was_signed_shows_no_difference(salted: bool) -> None:
    signed = notarise(records_of(95), salted=salted)
    chain = checked(signed)
    done = compared(chain, signed.records, signed)
    assert (chain.differences, done.differences, done.equal) == ([], [], 95)
    assert (chain.size, chain.checkpoints) == (95, 10)


def test_a_changed_value_key_header_or_time_is_found_at_its_offset() -> None:
    signed = notarise(records_of(40))
    chain = checked(signed)
    record = signed.records[17]
    for other in (
        replace(record, value=b"x"),
        replace(record, value=None),
        replace(record, key=None),
        replace(record, key=b""),
        replace(record, headers=()),
        replace(record, headers=(("trace", None),)),
        replace(record, timestamp_ms=record.timestamp_ms + 1),
    ):
        records = [*signed.records[:17], other, *signed.records[18:]]
        assert found(compared(chain, records, signed)) == [("changed", record.offset)]


def test_dropped_inserted_and_exchanged_records_are_found_at_their_offsets() -> None:
    signed = notarise(records_of(40))
    chain = checked(signed)
    a, b = signed.records[9], signed.records[30]
    dropped = [item for item in signed.records if item is not a]
    assert found(compared(chain, dropped, signed)) == [("dropped", a.offset)]
    hole = InboundRecord("ares.verdicts", 2, 7, 0, b"k", b"v")
    assert found(
        compared(chain, sorted([*signed.records, hole], key=lambda item: item.offset), signed)
    ) == [("inserted", 7)]
    exchanged = [
        replace(b, offset=a.offset) if item is a else
        replace(a, offset=b.offset) if item is b else item for item in signed.records
    ]  # fmt: skip
    assert found(compared(chain, exchanged, signed)) == [("moved", a.offset), ("moved", b.offset)]
    assert [item[1] for item in found(compared(chain, signed.records[:-3], signed))] == [
        item.offset for item in signed.records[-3:]
    ]


def test_records_after_the_last_checkpoint_are_counted_and_no_difference() -> None:
    signed = notarise(records_of(40))
    later = [replace(signed.records[0], offset=1000 + k) for k in range(3)]
    done = compared(checked(signed), [*signed.records, *later], signed)
    assert (done.later, done.differences) == (3, [])


def test_what_retention_deleted_is_expired_unless_it_was_too_young() -> None:
    signed = notarise(records_of(40))
    chain, kept = checked(signed), signed.records[10:]
    done = compared(chain, kept, signed, first=kept[0].offset)
    assert (done.expired, done.equal, done.differences) == (10, 30, [])
    young = compared(
        chain, kept, signed, first=kept[0].offset,
        deleted_before_ms=signed.records[8].timestamp_ms,
    )  # fmt: skip
    assert found(young) == [("dropped", signed.records[k].offset) for k in (8, 9)]


def test_compaction_may_take_what_has_a_later_record_and_no_other() -> None:
    records = records_of(40, topic="ares.labels")
    records[-1] = replace(records[-1], value=None)
    signed = notarise(records, keyed=True)
    chain = checked(signed)
    kept = records[-5:-1]  # The newest of four keys; the fifth key's newest is a deletion.
    done = compared(chain, kept, signed, compacted=True)
    assert (done.equal, done.compacted, done.differences) == (4, 36, [])
    lost = compared(chain, kept[1:], signed, compacted=True)
    assert found(lost) == [("dropped", kept[0].offset)]


def test_an_erased_salt_hides_the_text_and_keeps_the_tree() -> None:
    signed = notarise(records_of(20), salted=True)
    chain = checked(signed)
    offset = signed.records[3].offset
    known = signed.salts.pop(offset)
    assert found(compared(chain, signed.records, signed)) == [("no_salt", offset)]
    signed.salts[offset] = Salt(
        topic=known.topic, partition=known.partition, offset=offset,
        erased_at=datetime(2026, 1, 1, tzinfo=UTC), erased_by="ann",
    )  # fmt: skip
    done = compared(chain, signed.records, signed)
    assert (done.erased, done.equal, done.differences) == (1, 19, [])


def altered(item: Checkpoint, **fields: object) -> Checkpoint:
    return item.model_copy(update=fields)


def test_a_forged_checkpoint_is_found_and_the_others_still_prove() -> None:
    signed = notarise(records_of(50))
    place, item = signed.checkpoints[2]
    stranger = notarise(records_of(30), signers=[NoteSigner.generate(NAME)]).checkpoints[2][1]
    other = notarise(records_of(50, topic="ares.repair")).checkpoints[2][1]
    for forged in (
        altered(item, note="nothing"),
        altered(item, note=other.note),
        altered(item, leaves=item.leaves[:-49]),
        altered(item, leaves=item.leaves[:-1]),
        altered(item, leaves=item.leaves[49:] + item.leaves[:49]),
        altered(item, leaves=b"\x00" * len(item.leaves)),
        altered(item, peaks=item.peaks[::-1][1:] + item.peaks[:0]),
        altered(item, size=item.size + 1),
        stranger,
    ):
        chain = checked(replace_checkpoint(signed, 2, forged))
        assert [(x.kind, x.start) for x in chain.differences] == [("forged", item.start)]
        done = compared(chain, signed.records, signed)
        assert (done.equal, done.unproven, done.differences) == (40, 10, [])
    assert place == 4


def test_no_letter_of_a_note_can_be_another() -> None:
    signed = notarise(records_of(50))
    item = signed.checkpoints[2][1]
    for place, letter in enumerate(item.note):
        for other in {"A", "B", "\n", chr(ord(letter) ^ 1)} - {letter}:
            note = item.note[:place] + other + item.note[place + 1 :]
            chain = checked(replace_checkpoint(signed, 2, altered(item, note=note)))
            assert [(x.kind, x.start) for x in chain.differences] == [("forged", item.start)], place


def replace_checkpoint(signed: Notarised, number: int, forged: Checkpoint) -> Notarised:
    made = list(signed.checkpoints)
    made[number] = (made[number][0], forged)
    return Notarised(signed.records, made, signed.salts)


def test_a_missing_a_repeated_and_a_rewritten_checkpoint_are_found() -> None:
    signed = notarise(records_of(50))
    missing = Notarised(signed.records, signed.checkpoints[:2] + signed.checkpoints[3:], {})
    (gap,) = checked(missing).differences
    assert (gap.kind, gap.start) == ("missing_checkpoint", signed.checkpoints[2][1].start)
    twice = Notarised(signed.records, signed.checkpoints[:3] + signed.checkpoints[2:], {})
    assert [item.kind for item in checked(twice).differences] == ["inconsistent"]
    changed = [replace(item, value=b"x") if k == 4 else item
               for k, item in enumerate(signed.records)]  # fmt: skip
    rewritten = notarise(changed)
    forked = Notarised(signed.records, signed.checkpoints[:2] + rewritten.checkpoints[2:], {})
    assert [(item.kind, item.start) for item in checked(forked).differences] == [
        ("inconsistent", signed.checkpoints[2][1].start)
    ]


def test_a_chain_that_unknown_keys_signed_names_its_offsets_and_proves_nothing() -> None:
    forged = notarise(records_of(50), signers=[NoteSigner.generate(NAME)])
    chain = checked(forged)
    assert [(x.kind, x.start, x.end) for x in chain.differences] == [
        ("forged", item.start, item.end) for _, item in forged.checkpoints
    ]
    done = compared(chain, forged.records, forged)
    assert (done.equal, done.unproven, done.later) == (0, 50, 0)


def test_records_that_a_signed_tree_was_grown_past_are_named() -> None:
    records = records_of(50)
    signed, without = notarise(records), notarise(records[:20] + records[30:])
    skipped = Notarised(records, without.checkpoints[:2] + [
        (place, altered(item, start=records[30].offset) if number == 2 else item)
        for number, (place, item) in enumerate(without.checkpoints) if number >= 2
    ], {})  # fmt: skip
    chain = checked(skipped)
    end = signed.checkpoints[1][1].end
    assert [(x.kind, x.start, x.end) for x in chain.differences] == [
        ("skipped", end, records[30].offset)
    ]
    # So they are when retention has deleted them, and nothing else would tell.
    gone = compared(chain, records[30:], skipped, first=records[30].offset)
    assert (gone.equal, gone.expired, gone.differences) == (20, 20, [])
    done = compared(chain, records, skipped)
    assert (done.equal, done.unproven, done.differences) == (40, 10, [])


def test_records_that_were_signed_twice_are_named() -> None:
    records = records_of(40)
    twice = notarise([*records[:20], *records[10:]])
    place, item = twice.checkpoints[2]
    repeated = replace_checkpoint(twice, 2, altered(item, start=records[10].offset))
    (found_there,) = checked(repeated).differences
    assert (found_there.kind, found_there.start) == ("inconsistent", records[10].offset)
    assert found_there.detail.startswith(
        f"checkpoint at offset {place}: signs offset {records[10].offset} again"
    )


def test_an_auditors_own_head_tells_that_everything_was_signed_anew() -> None:
    signed = notarise(records_of(50))
    heads = [TreeHead.parse(open_note(item.note, KEYS)[0]) for _, item in signed.checkpoints]
    assert checked(signed, known=heads).differences == []
    anew = notarise([replace(item, value=b"x") for item in signed.records])
    assert checked(anew).differences == []
    assert [x.kind for x in checked(anew, known=heads[:1]).differences] == ["unknown_head"]
    cut = Notarised(signed.records, signed.checkpoints[:3], {})
    assert [x.kind for x in checked(cut, known=heads[4:]).differences] == ["unknown_head"]


@given(
    st.lists(
        st.tuples(
            st.none() | st.binary(max_size=4),
            st.none() | st.binary(max_size=4),
            st.lists(st.tuples(st.text(max_size=2), st.none() | st.binary(max_size=2)), max_size=2),
        ),
        min_size=2,
        max_size=2,
    )
)
@settings(max_examples=200, deadline=None)
def test_different_records_have_different_contents(
    pair: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]],
) -> None:
    one, two = (content_hash(*item, None) for item in pair)
    assert (one == two) == (pair[0] == pair[1])


@given(
    st.lists(
        st.builds(
            Leaf,
            st.integers(0, 2**63),
            st.integers(-1, 2**62),
            st.sampled_from([0, 1, 4, 5]),
            st.binary(min_size=32, max_size=32),
        )
        | st.builds(
            Leaf,
            st.integers(0, 2**63),
            st.integers(-1, 2**62),
            st.sampled_from([2, 3, 6, 7]),
            st.binary(min_size=32, max_size=32),
            st.binary(min_size=32, max_size=32),
        ),
        max_size=5,
    ),
    st.integers(0, 50),
)
@settings(max_examples=100, deadline=None)
def test_packed_leaves_read_back_and_cut_ones_are_refused(leaves: list[Leaf], cut: int) -> None:
    raw = b"".join(leaf.pack() for leaf in leaves)
    assert list(unpack(raw)) == leaves
    assert len({Hasher("t", 0).data(leaf) for leaf in leaves}) == len(set(leaves))
    short = raw[: max(0, len(raw) - cut)]
    try:
        assert list(unpack(short)) == leaves[: len(list(unpack(short)))]
    except ValueError:
        assert cut > 0


def test_a_time_stamp_says_how_many_leaves_stood_and_a_bad_one_is_found() -> None:
    signed = notarise(records_of(50))
    for number, token in ((1, b"good"), (3, b"good")):
        place, item = signed.checkpoints[number]
        signed.checkpoints[number] = (place, altered(item, timestamp_token=token))
    hours = iter((1, 2))

    def stamped_at(note: str, token: bytes) -> datetime:
        if token != b"good":
            raise IntegrityError("the time stamp does not hold")
        return datetime(2026, 1, 1, next(hours), tzinfo=UTC)

    counted = checked(signed)
    assert (counted.stamps, counted.stamped_at, counted.differences) == (2, None, [])
    chain = checked(signed, stamped_at=stamped_at)
    assert (chain.stamped_size, chain.stamped_at) == (40, datetime(2026, 1, 1, 2, tzinfo=UTC))
    place, item = signed.checkpoints[4]
    signed.checkpoints[4] = (place, altered(item, timestamp_token=b"bad"))
    hours = iter((1, 2))
    chain = checked(signed, stamped_at=stamped_at)
    assert [(x.kind, x.start) for x in chain.differences] == [("bad_stamp", item.start)]
    assert chain.stamped_size == 40


def test_a_notary_of_another_name_is_passed_over_where_its_key_is_trusted() -> None:
    """As the notary tells whose topic was made anew: it goes on under another name."""
    other = NoteSigner.generate("notary.example/ares-2")
    before, after = (
        notarise(records_of(30)),
        notarise(records_of(50), signers=[other], name=other.key.name),
    )
    both = [*before.checkpoints, *((100 + at, item) for at, item in after.checkpoints)]
    first = records_of(1)[0]

    def chain(*keys: NoteKey) -> Chain:
        return check_chain(first.topic, first.partition, both, name=keys[0].name, keys=keys)

    new, old = chain(other.key, SIGNER.key), chain(SIGNER.key, other.key)
    assert (new.size, new.others, new.differences) == (50, 3, [])
    assert (old.size, old.others, old.differences) == (30, 5, [])
    # Nobody's word is taken for it.
    assert {item.kind for item in chain(other.key).differences} == {"forged"}
    # Nor is a trusted key's word for a name that is not its own.
    strange = notarise(records_of(50), signers=[other])
    alone = check_chain(
        first.topic, first.partition, strange.checkpoints, name=NAME, keys=[SIGNER.key, other.key]
    )
    assert {item.kind for item in alone.differences} == {"forged"}


def heads(signed: Notarised) -> list[TreeHead]:
    return [open_head(item.note, KEYS)[0] for _, item in signed.checkpoints]


def fork(signed: Notarised, at: int) -> Notarised:
    """The same notary's other story of what came from record `at` on."""
    told = [*signed.records[:at], *(replace(item, value=b"x") for item in signed.records[at:])]
    return notarise(told)


def test_of_two_kept_heads_of_one_size_the_one_that_is_not_there_is_named() -> None:
    """Two auditors who show each other their heads find out a notary that tells two stories, in
    whichever order they name them."""
    signed = notarise(records_of(50))
    mine, theirs = heads(signed), heads(fork(signed, 20))
    assert mine[0] == theirs[0]
    for known in ([mine[3], theirs[3]], [theirs[3], mine[3]]):
        assert [x.kind for x in checked(signed, known=known).differences] == ["unknown_head"]
    chain = checked(signed, known=[*mine, *mine])
    assert (chain.kept, chain.differences) == (5, [])


OLD, NEW = NoteSigner.generate(NAME), NoteSigner.generate(NAME)


def signed_by(*signers: list[NoteSigner]) -> Notarised:
    """One history of 10 records a head, each head with the signatures of its time."""
    whole = [notarise(records_of(10 * len(signers)), signers=keys) for keys in signers]
    picked = [item.checkpoints[number] for number, item in enumerate(whole)]
    return Notarised(whole[0].records, picked, {})


@pytest.mark.parametrize(
    ("history", "bad"),
    [
        ([[OLD], [OLD, NEW], [NEW], [NEW]], []),
        ([[OLD], [OLD, NEW], [OLD], [OLD, NEW], [NEW]], []),
        ([[OLD], [OLD, NEW], [NEW], [OLD], [NEW]], [3]),
        ([[OLD], [NEW], [NEW]], [1, 2]),
    ],
    ids=["exchanged", "taken back", "the old key once more", "never named together"],
)
def test_a_key_that_was_exchanged_signs_nothing_more(
    history: list[list[NoteSigner]], bad: list[int]
) -> None:
    signed = signed_by(*history)
    first = signed.records[0]
    chain = check_chain(
        first.topic, first.partition, signed.checkpoints, name=NAME, keys=[OLD.key, NEW.key]
    )
    assert [x.kind for x in chain.differences if x.kind == "forged"] == ["forged"] * len(bad)
    for number, told in zip(bad, chain.differences, strict=False):
        assert told.start == signed.checkpoints[number][1].start
        assert "which did not sign the head before it" in told.detail


def test_a_tree_that_shrinks_is_named_and_the_true_one_goes_on() -> None:
    signed = notarise(records_of(50))
    earlier = signed.checkpoints[1]
    signed.checkpoints.insert(3, (99, earlier[1]))
    chain = checked(signed)
    assert [(x.kind, x.start) for x in chain.differences] == [("inconsistent", earlier[1].start)]
    assert (chain.size, chain.note) == (50, signed.checkpoints[-1][1].note)


def test_rubbish_between_checkpoints_hides_neither_a_fork_nor_an_inserted_record() -> None:
    signed = notarise(records_of(50))
    rubbish = (99, altered(signed.checkpoints[2][1], note="nothing", end=2**40))
    other = fork(signed, 20)
    told = [*signed.checkpoints[:3], rubbish, *other.checkpoints[3:]]
    kinds = [x.kind for x in checked(Notarised(signed.records, told, {})).differences]
    assert kinds == ["forged", "inconsistent"]
    through = Notarised(
        signed.records, [*signed.checkpoints[:3], rubbish, *signed.checkpoints[3:]], {}
    )
    chain = checked(through)
    assert [x.kind for x in chain.differences] == ["forged"]
    hole = next(
        number for number in range(30, 55)
        if number not in {item.offset for item in signed.records}
    )  # fmt: skip
    more = sorted(
        [*signed.records, replace(signed.records[0], offset=hole)], key=lambda item: item.offset
    )
    assert found(compared(chain, more, through)) == [("moved", hole)]
