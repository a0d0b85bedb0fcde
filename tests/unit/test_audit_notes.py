"""Signed notes: a published one opens, and what is altered does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ares_stream.audit.notes import NoteKey, NoteSigner, TreeHead, open_note, sign_note
from ares_stream.cli.main import app
from ares_stream.errors import IntegrityError, SettingsError

PUBLISHED_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PUBLISHED = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngot"
    "pRZb6KE6RyyBwJnAM=\n"
)
"""The example of golang.org/x/mod/sumdb/note."""
OLD, NEW = NoteSigner.generate("notary.example/a"), NoteSigner.generate("notary.example/a")
NOTE = sign_note("log\n3\nroot\n", [OLD])


def test_the_published_note_opens_and_its_key_reads_back() -> None:
    key = NoteKey.parse(PUBLISHED_KEY)
    text, signed = open_note(PUBLISHED, [key])
    assert text.startswith("If you think")
    assert signed == (key,)
    assert str(key) == PUBLISHED_KEY


def test_during_a_rotation_either_key_opens_a_note() -> None:
    both = sign_note("log\n3\nroot\n", [OLD, NEW])
    assert open_note(both, [OLD.key])[1] == (OLD.key,)
    assert open_note(both, [NEW.key])[1] == (NEW.key,)
    with pytest.raises(IntegrityError, match="no trusted key"):
        open_note(NOTE, [NEW.key])


@given(st.integers(0, len(NOTE) - 1), st.characters(codec="utf-8"))
@settings(max_examples=300, deadline=None)
def test_a_note_with_any_other_letter_does_not_open_as_something_else(
    place: int, letter: str
) -> None:
    changed = NOTE[:place] + letter + NOTE[place + 1 :]
    try:
        text, _ = open_note(changed, [OLD.key])
    except IntegrityError:
        return
    assert text == "log\n3\nroot\n"


@pytest.mark.parametrize("note", ["", "a", "a\n", "a\n\n", "a\n\n— \n", "a\n\n— x AAAA\n", "\n\n\n",
                                  "a\x00\n\n— x AAAAAAAA\n", "x" * (2 << 20) + "\n"])  # fmt: skip
def test_what_is_no_note_is_refused(note: str) -> None:
    with pytest.raises(IntegrityError):
        open_note(note, [OLD.key])


def test_a_checkpoint_says_what_was_put_in() -> None:
    head = TreeHead("notary.example/a/ares.verdicts/3", 12, bytes(range(32)))
    assert TreeHead.parse(head.text()) == head
    assert TreeHead.parse(head.text() + "an extension\n") == head
    for wrong in ("a\n1\n", "\n1\nAA==\n", "a\n01\nAA==\n", "a\n-1\nAA==\n", "a\n1\nAA==\n"):
        with pytest.raises(IntegrityError):
            TreeHead.parse(wrong)


def test_a_private_key_is_read_from_its_file_and_nothing_else_is(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(OLD.pem())
    assert NoteSigner.read("notary.example/a", file).sign("x\n") == OLD.sign("x\n")
    file.write_text("secret words")
    with pytest.raises(SettingsError) as told:
        NoteSigner.read("a", file)
    assert "secret" not in str(told.value).replace(str(file), "")
    with pytest.raises(SettingsError):
        NoteSigner.generate("a b")


@pytest.mark.parametrize("key", ["", "a", "a+b+c", PUBLISHED_KEY[:-4] + "AAAA",
                                 PUBLISHED_KEY.replace("c74f", "c74e")])  # fmt: skip
def test_a_damaged_public_key_is_refused(key: str) -> None:
    with pytest.raises(SettingsError):
        NoteKey.parse(key)


def test_a_key_is_made_once_and_its_public_half_is_printed_as_often_as_one_asks(
    tmp_path: Path,
) -> None:
    file = tmp_path / "notary.pem"
    words = ["audit", "key", "example.com/ares", "--out", str(file)]
    first = CliRunner().invoke(app, [*words, "--keep"])
    again = CliRunner().invoke(app, [*words, "--keep"])
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert first.stdout == again.stdout == f"{NoteSigner.read('example.com/ares', file).key}\n"
    assert file.stat().st_mode & 0o077 == 0
    before = file.read_bytes()
    assert CliRunner().invoke(app, words).exit_code != 0
    assert file.read_bytes() == before
    file.write_text("no key")
    assert CliRunner().invoke(app, [*words, "--keep"]).exit_code != 0
