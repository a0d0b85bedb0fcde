"""Proofs hold for the one-file verifier, and no altered proof does."""

from __future__ import annotations

import ast
import copy
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ares_stream.audit import verify_proof
from ares_stream.audit.notes import NoteSigner
from ares_stream.audit.proofs import prove
from ares_stream.errors import InputError
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
    except (verify_proof.Wrong, ValueError, KeyError, TypeError, AttributeError, struct.error):
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
        if path == ("salt",) and not salted:
            continue  # Nothing is based on it.
        if path == ("key_hash",) and not keyed:
            continue
        for alter in (_other, lambda value: None):
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
    assert not holds(prove(changed.offset, checkpoints, record=changed, salt=None))


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
