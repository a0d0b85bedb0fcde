"""Proofs hold for the one-file verifier, and no altered proof does."""

from __future__ import annotations

import ast
import base64
import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ares_stream.audit import verify_proof
from ares_stream.audit.notes import NoteKey, NoteSigner, TreeHead, open_head
from ares_stream.audit.proofs import prove
from ares_stream.errors import InputError, IntegrityError, SettingsError
from tests.support.notarised import NAME, SIGNER, Notarised, notarise, records_of

SOURCE = Path(str(verify_proof.__file__))
KEY = verify_proof.parse_key(str(SIGNER.key))


def proof_of(signed: Notarised, number: int, *, with_record: bool = True) -> dict[str, Any]:
    record = signed.records[number]
    return prove(
        record.offset, [item for _, item in signed.checkpoints],
        record=record if with_record else None,
        salt=signed.salts.get(record.offset) if with_record else None,
    )  # fmt: skip


def holds(proof: dict[str, Any], known: list[Any] | None = None) -> bool:
    try:
        verify_proof.check(proof, [KEY], known or [])
    except verify_proof.Wrong:
        return False
    return True


@pytest.mark.parametrize(("salted", "keyed"), [(False, False), (True, False), (False, True)])
def test_every_record_of_a_topic_is_proven(salted: bool, keyed: bool) -> None:
    signed = notarise(records_of(37), every=8, salted=salted, keyed=keyed)
    for number in range(37):
        assert holds(proof_of(signed, number)), number


@pytest.mark.parametrize(
    "forged",
    [
        {"leaves": b"\x00" * 20},
        {"note": "nothing"},
        {"end": 2**40},
        {"end": 2**40, "leaves": b""},
        {"size": 1, "end": 2**40},
    ],
    ids=["leaves cut", "no note", "another end", "no leaves", "another size"],
)
@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_checkpoint_that_continues_nothing_takes_no_part_in_a_proof(
    forged: dict[str, Any], at: int
) -> None:
    signed = notarise(records_of(37), every=8)
    of = signed.checkpoints[-1][1]
    signed.checkpoints.insert(at, (99, of.model_copy(update=forged)))
    for number in (0, 17, 30):
        assert holds(proof_of(signed, number)), number
    cut = replace(signed, checkpoints=[(0, of.model_copy(update={"note": "nothing"}))])
    with pytest.raises(InputError, match="1 of 1 do not: `ares audit verify` names them"):
        proof_of(cut, 3)


def test_an_erased_text_is_proven_by_its_leaf_alone() -> None:
    signed = notarise(records_of(20), salted=True)
    proof = proof_of(signed, 4, with_record=False)
    assert proof["record"] is None
    assert b"value-4" not in json.dumps(proof).encode()
    assert holds(proof)


def leaves_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves_of(item, (*path, name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from leaves_of(item, (*path, number))
    else:
        yield path


@pytest.mark.parametrize(("salted", "keyed"), [(False, False), (True, False), (False, True)])
def test_a_proof_with_any_field_altered_does_not_hold(salted: bool, keyed: bool) -> None:
    proof = proof_of(notarise(records_of(37), every=8, salted=salted, keyed=keyed), 11)
    for path in leaves_of(proof):
        for alter in (_other, lambda value: None):
            if path == ("salt",) and not salted and alter is not _other:
                continue  # None is what stands there.
            changed = copy.deepcopy(proof)
            at: Any = changed
            for name in path[:-1]:
                at = at[name]
            at[path[-1]] = alter(at[path[-1]])
            assert not holds(changed), path


def _other(value: Any) -> Any:
    if isinstance(value, int):
        return value + 1
    if value is None:
        return ""
    return ("0" if value[:1] != "0" else "1") + value[1:]


def test_a_proof_of_another_notary_or_against_another_kept_head_does_not_hold() -> None:
    stranger = NoteSigner.generate(NAME)
    assert not holds(proof_of(notarise(records_of(20), signers=[stranger]), 3))
    signed = notarise(records_of(37), every=8)
    proof = proof_of(signed, 3)
    last = verify_proof.open_head(signed.checkpoints[-1][1].note, [KEY])
    assert holds(proof, [last])
    assert not holds(proof, [(last[0], last[1], bytes(32))])
    # Two that differ, of which the file shows none, are of a notary that says one thing to one
    # auditor and another to the other.
    kept = [(last[0], 99, bytes(32)), (last[0], 99, bytes([1]) * 32)]
    with pytest.raises(verify_proof.Wrong, match="two heads that you kept, of 99 leaves, differ"):
        verify_proof.check(proof, [KEY], kept)
    with pytest.raises(verify_proof.Wrong, match="nothing leads to a head that you kept, of 99"):
        verify_proof.check(proof, [KEY], kept[:1])


def test_what_the_notary_has_not_seen_is_told() -> None:
    signed = notarise(records_of(20))
    checkpoints = [item for _, item in signed.checkpoints]
    with pytest.raises(InputError, match="no checkpoint yet"):
        prove(10_000, checkpoints, record=None, salt=None)
    with pytest.raises(InputError, match="offset 7: the notary saw no record"):
        prove(7, checkpoints, record=None, salt=None)
    with pytest.raises(InputError, match="the record is gone"):
        prove(3, checkpoints, record=None, salt=None)
    changed = replace(signed.records[3], value=b"another")
    with pytest.raises(
        IntegrityError, match=r"offset 3: the record is not the one that was signed"
    ):
        prove(changed.offset, checkpoints, record=changed, salt=None)


STRANGE: list[Any] = [
    None, True, -1, 1 << 70, 1.5, float("inf"), float("nan"), "", "x", "\ud800", "0" * 5000,
    [], {}, [1], [[1, 2]], {"a": 1}, "— a b", "a\n1\nb\n\n— x y\n", "\x1b[31m",
]  # fmt: skip


def places_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else ()
    for name, item in enumerate(value) if isinstance(value, list) else items:
        yield from places_of(item, (*path, name))


def test_whatever_stands_in_a_file_the_verifier_ends_with_a_code_and_a_line_for_each_proof(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {
        "schema": "ares.proof/1",
        "proofs": [proof_of(notarise(records_of(20), salted=True, keyed=True), 3)],
    }
    file = tmp_path / "proof.json"
    texts = ["[" * 100_000, '{"a":' * 100_000, "", "1", "null", "[]", "\x1b"]
    for place in places_of(document):
        for value in STRANGE:
            changed = copy.deepcopy(document)
            at: Any = changed
            for name in place[:-1]:
                at = at[name]
            at[place[-1]] = value
            texts.append(json.dumps(changed))
    for text in texts:
        file.write_text(text)
        code = verify_proof.main([str(file), "--key", str(SIGNER.key)])
        said = capsys.readouterr()
        assert code in (0, 1, 2), text[:200]
        lines = [line for line in (said.out + said.err).splitlines() if line]
        assert len(lines) == 1, text[:200]
        assert "\x1b" not in lines[0]


@pytest.mark.parametrize("kept", [b"\xff", b"", b"x", b"a\n1\nb\n\n\xe2\x80\x94 a\n"])
def test_a_kept_head_that_is_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: bytes
) -> None:
    file, head = tmp_path / "proof.json", tmp_path / "head.txt"
    proof = proof_of(notarise(records_of(20)), 3)
    file.write_text(json.dumps({"schema": "ares.proof/1", "proofs": [proof]}))
    head.write_bytes(kept)
    asked = [str(file), "--key", str(SIGNER.key), "--known", str(head)]
    assert verify_proof.main(asked) == 2
    assert capsys.readouterr().err.startswith(f"--known {head}: ")


def test_the_verifier_imports_the_standard_library_and_cryptography_alone() -> None:
    tree = ast.parse(SOURCE.read_text())
    roots = {
        (item.module or "" if isinstance(item, ast.ImportFrom) else item.names[0].name).split(".")[
            0
        ]
        for item in ast.walk(tree)
        if isinstance(item, (ast.Import, ast.ImportFrom))
    }
    assert roots - set(sys.stdlib_module_names) == {"cryptography"}


def test_the_file_runs_alone_and_its_exit_code_says_whether_proofs_hold(tmp_path: Path) -> None:
    script = tmp_path / "verify.py"
    script.write_bytes(SOURCE.read_bytes())
    proof = proof_of(notarise(records_of(20)), 3)
    file = tmp_path / "proof.json"

    def run(document: Any, key: str = str(SIGNER.key)) -> tuple[int, str]:
        file.write_text(json.dumps(document))
        done = subprocess.run(
            [sys.executable, "-I", str(script), str(file), "--key", key],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    code, said = run({"schema": "ares.proof/1", "proofs": [proof]})
    assert (code, "offset 3: holds" in said) == (0, True)
    code, said = run({"schema": "ares.proof/1", "proofs": [proof, proof | {"index": 4}]})
    assert (code, "DOES NOT HOLD" in said) == (1, True)
    assert run({"schema": "other"})[0] == 2
    assert run({"schema": "ares.proof/1", "proofs": [proof]}, "nonsense")[0] == 2


def heads_of(signed: Notarised) -> list[tuple[str, TreeHead]]:
    return [(item.note, open_head(item.note, [SIGNER.key])[0]) for _, item in signed.checkpoints]


@pytest.mark.parametrize("number", [0, 17, 36])
def test_a_proof_leads_to_every_head_that_the_auditor_kept(number: int) -> None:
    signed = notarise(records_of(37), every=5)
    kept = heads_of(signed)
    record = signed.records[number]
    checkpoints = [item for _, item in signed.checkpoints]
    proof = prove(record.offset, checkpoints, record=record, salt=None, kept=kept)
    known = [verify_proof.open_head(note, [KEY]) for note, _ in kept]
    said = verify_proof.check(proof, [KEY], known)
    assert said.endswith(f"latest head 37, kept heads compared: {len(kept)}")
    assert len(proof["later"]) + len(proof.get("earlier", ())) == len(kept) - 1
    for row in ("later", "earlier"):
        for entry in range(len(proof.get(row, ()))):
            cut = copy.deepcopy(proof)
            del cut[row][entry]
            assert not holds(cut, known), (row, entry)


def test_a_head_of_another_tree_is_refused_before_a_proof_is_written() -> None:
    signed = notarise(records_of(37), every=5)
    other = notarise([replace(item, value=b"x") for item in signed.records], every=5)
    record, checkpoints = signed.records[3], [item for _, item in signed.checkpoints]
    with pytest.raises(IntegrityError, match="head of 10 leaves that was kept is not of the tree"):
        prove(record.offset, checkpoints, record=record, salt=None, kept=heads_of(other)[1:2])
    with pytest.raises(IntegrityError, match="head of 37 leaves that was kept is later"):
        prove(record.offset, checkpoints[:4], record=record, salt=None, kept=heads_of(signed)[-1:])
    # A head of another log has nothing to do with it.
    apart = notarise(records_of(20, topic="ares.repair"))
    proof = prove(record.offset, checkpoints, record=record, salt=None, kept=heads_of(apart))
    known = [verify_proof.open_head(note, [KEY]) for note, _ in heads_of(apart)]
    assert verify_proof.check(proof, [KEY], known).endswith("kept heads compared: 0")


def test_with_keys_a_checkpoint_that_nobody_trusted_signed_takes_no_part_in_a_proof() -> None:
    """One that continues the true ones, made by who may write to the topic, would take the place
    of the next true one."""
    signed = notarise(records_of(37), every=8)
    stranger = NoteSigner.generate(NAME)
    forged = notarise(
        [*signed.records[:8], *(replace(item, value=b"x") for item in signed.records[8:16])],
        every=8, signers=[stranger],
    )  # fmt: skip
    signed.checkpoints.insert(1, forged.checkpoints[1])
    record, checkpoints = signed.records[9], [item for _, item in signed.checkpoints]
    with pytest.raises(IntegrityError, match="is not the one that was signed"):
        prove(record.offset, checkpoints, record=record, salt=None)
    proof = prove(record.offset, checkpoints, record=record, salt=None, keys=[SIGNER.key])
    assert holds(proof)


def test_a_salt_of_another_record_or_another_length_is_refused() -> None:
    signed = notarise(records_of(20), salted=True)
    record, checkpoints = signed.records[4], [item for _, item in signed.checkpoints]
    with pytest.raises(IntegrityError, match="the record, or its salt, is not the one"):
        prove(record.offset, checkpoints, record=record, salt=signed.salts[5])
    proof = proof_of(signed, 4)
    raw = base64.b64decode(proof["salt"])
    # HMAC takes both for one key.
    longer = proof | {"salt": base64.b64encode(raw + b"\x00").decode()}
    with pytest.raises(verify_proof.Wrong, match="salt: not 16 bytes"):
        verify_proof.check(longer, [KEY], [])


def altered(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Put a value in a place of a proof."""

    def change(proof: dict[str, Any]) -> None:
        at: Any = proof
        *way, last = path.split(".")
        for name in way:
            at = at[int(name) if name.isdecimal() else name]
        at[int(last) if last.isdecimal() else last] = value

    return change


ATTACKS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "true for 1": (altered("partition", True), "partition: not a number from 0"),
    "a number with a point": (altered("offset", 11.0), "offset: not a number from 0"),
    "a negative index": (altered("index", -1), "index: not a number from 0"),
    "an index of true": (altered("index", True), "index: not a number from 0"),
    "a huge number": (altered("timestamp_ms", 1 << 63), "timestamp_ms: not a number"),
    "a number as text": (altered("flags", "0"), "flags: not a number from 0 to 7"),
    "an unknown flag": (altered("flags", 8), "flags: not a number from 0 to 7"),
    "upper-case digits": (altered("content", "A" * 64), "content: not 64 lower-case"),
    "spaces among digits": (altered("inclusion.0", "ab " * 21 + "a"), "inclusion: not 64"),
    "base64 without padding": (altered("record.value", "dmE"), "record.value: not base64"),
    "base64 of the URL alphabet": (altered("record.value", "-_-_"), "record.value: not base64"),
    "base64 with spare bits": (altered("record.value", "dmF="), "record.value: not base64"),
    "base64 over two lines": (altered("record.value", "dmFs\ndmFs"), "record.value: not base64"),
    "a salt of an unsalted leaf": (altered("salt", "AAAAAAAAAAAAAAAAAAAAAA=="), "salt: of a leaf"),
    "a key's hash of a leaf without": (altered("key_hash", "0" * 64), "key_hash: of a leaf"),
    "a topic with a slash": (altered("topic", "ares/ares.verdicts"), "topic: not a topic's name"),
    "a topic with an escape": (altered("topic", "ares\x1b[2J"), "topic: not a topic's name"),
    "another topic": (altered("topic", "ares.repair"), "of another topic or partition"),
    "another partition": (altered("partition", 1), "of another topic or partition"),
    "a field more": (altered("verdict", "harmless"), "holds a field that no proof has: 'verdict'"),
    "a field of the record more": (altered("record.topic", "x"), "record: holds a field"),
    "a field less": (lambda proof: proof.pop("later"), "the proof: later is missing"),
    "headers as an object": (altered("record.headers", {"ab": "c"}), "record.headers: not a list"),
    "a header as two letters": (altered("record.headers.0", "ab"), "record.headers: not a list"),
    "half a letter": (altered("record.headers.0.0", "\ud800"), "record.headers: not a text"),
    "no list of heads": (altered("later", {}), "later: not a list"),
    "a head twice": (
        lambda proof: proof["later"].append(proof["later"][0]),
        "two heads of one size differ",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_not_written_as_a_proof_is_refused_by_the_name_of_its_field(name: str) -> None:
    attack, why = ATTACKS[name]
    proof = proof_of(notarise(records_of(37), every=8), 11)
    attack(proof)
    with pytest.raises(verify_proof.Wrong) as told:
        verify_proof.check(proof, [KEY], [])
    assert why in str(told.value)
    assert "\x1b" not in str(told.value)


def test_two_later_heads_of_one_size_are_never_both_believed() -> None:
    """A notary that shows one tree to one auditor and another to the other: each is consistent
    with the head before it."""
    first = records_of(37)
    forked = [*first[:16], *(replace(item, value=b"x") for item in first[16:])]
    one, other = notarise(first, every=8), notarise(forked, every=8)
    proof, second = proof_of(one, 3), proof_of(other, 3)
    assert holds(proof)
    assert holds(second)
    assert proof["checkpoint"] == second["checkpoint"]
    proof["later"] += second["later"]
    with pytest.raises(verify_proof.Wrong, match="two heads of one size differ"):
        verify_proof.check(proof, [KEY], [])


def test_a_name_that_stands_twice_in_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof = proof_of(notarise(records_of(20)), 3)
    text = json.dumps({"schema": "ares.proof/1", "proofs": [proof]})
    file = tmp_path / "proof.json"
    twice = text.replace('"value": ', '"value": "aGFybWxlc3M=", "value": ', 1)
    for content, why in (
        (twice, "a name stands twice in one object: 'value'"),
        (text[:-1] + ', "proofs": []}', "a name stands twice in one object: 'proofs'"),
        (text[:-1] + ', "note": 1}', "holds more than a schema and proofs"),
    ):
        file.write_text(content)
        assert verify_proof.main([str(file), "--key", str(SIGNER.key)]) == 2
        assert why in capsys.readouterr().err


def test_a_line_says_which_record_does_not_hold_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof = proof_of(notarise(records_of(20)), 3)
    file = tmp_path / "proof.json"
    proofs = [proof, proof | {"index": 4}, proof | {"offset": -1}]
    file.write_text(json.dumps({"schema": "ares.proof/1", "proofs": proofs}))
    assert verify_proof.main([str(file), "--key", str(SIGNER.key)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ares.verdicts 2 offset 3: holds: the record is leaf 3 of ")
    assert lines[1:] == [
        "ares.verdicts 2 offset 3: DOES NOT HOLD: the leaf is not in the signed tree",
        "proof 3: DOES NOT HOLD: offset: not a number from 0 to 9223372036854775807",
    ]


OTHER = NoteSigner.generate("notary.example/b")
LOG = f"{NAME}/ares.verdicts/2\n17\n{base64.b64encode(bytes(32)).decode()}\n"
PIECES = [
    SIGNER.sign(LOG), OTHER.sign(LOG), SIGNER.sign("x\n"), "\n", "\n\n", " ", "\u2014 ",
    "\u2014 a AAAAAAAA\n", "\u2014 a AAAA\n", "\r", "\x85", "\u2028", "\ufeff", "0", "a", "=",
    "an extension\n",
]  # fmt: skip
TEXTS = [LOG, LOG.replace("17", "017"), LOG.replace("17", "1" * 20), LOG.replace("17", "\u0661"),
         LOG.replace("AA=", "AB="), "a\n1\nx\n", LOG.replace("/ares.", "/b/ares.")]  # fmt: skip


def opened(open_with: Callable[[], Any]) -> tuple[str, int, bytes] | None:
    try:
        head = open_with()
    except (verify_proof.Wrong, IntegrityError):
        return None
    if isinstance(head, tuple) and isinstance(head[0], TreeHead):
        return head[0].origin, head[0].size, head[0].root
    return tuple(head)


@given(
    st.sampled_from(TEXTS),
    st.lists(st.sampled_from([SIGNER, OTHER]), max_size=3),
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 3), st.sampled_from(PIECES)), max_size=3
    ),
    st.sampled_from([[SIGNER.key], [OTHER.key], [SIGNER.key, OTHER.key]]),
)
@settings(max_examples=400, deadline=None)
def test_the_one_file_and_the_product_open_the_same_notes(
    text: str, signers: list[NoteSigner], cuts: list[tuple[int, int, str]], keys: list[NoteKey]
) -> None:
    note = text + "\n" + "".join(signer.sign(text) for signer in signers)
    for at, gone, piece in cuts:
        note = note[:at] + piece + note[at + gone :]
    theirs = [verify_proof.parse_key(str(key)) for key in keys]
    assert opened(lambda: open_head(note, keys)) == opened(
        lambda: verify_proof.open_head(note, theirs)
    )


@given(st.integers(0, 80), st.integers(0, 2), st.sampled_from(["", *PIECES[3:], "+", "b"]))
@settings(max_examples=200, deadline=None)
def test_the_one_file_and_the_product_read_the_same_keys(at: int, gone: int, piece: str) -> None:
    text = str(SIGNER.key)
    text = text[:at] + piece + text[at + gone :]
    try:
        ours = str(NoteKey.parse(text))
    except SettingsError:
        ours = ""
    try:
        name, key_id, public = verify_proof.parse_key(text)
        theirs = str(NoteKey(name, public.public_bytes_raw()))
        assert NoteKey.parse(theirs).key_id == key_id
    except ValueError:
        theirs = ""
    assert ours == theirs
