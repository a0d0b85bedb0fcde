"""Signed notes over the reports of replays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ares_stream.audit.notes import NoteKey, NoteSigner, open_note, sign_note
from ares_stream.errors import IntegrityError


def sign(document: bytes, signer: NoteSigner) -> str:
    """A signed note over the bytes of a report's file."""
    text = f"{signer.key.name}/replay\n{hashlib.sha256(document).hexdigest()}\n"
    return sign_note(text, [signer])


def check_signature(document: bytes, note: str, keys: Sequence[NoteKey]) -> NoteKey:
    """The key that signed these bytes. Raises IntegrityError."""
    text, signers = open_note(note, keys)
    said = text.split("\n")
    if len(said) != 3 or said[0] != f"{signers[0].name}/replay":
        raise IntegrityError("a signed note, but none of a replay's report")
    if said[1] != hashlib.sha256(document).hexdigest():
        raise IntegrityError("signed for another report, or the report was changed")
    return signers[0]
