"""Signed notes (c2sp.org/signed-note) with Ed25519, and checkpoints (c2sp.org/tlog-checkpoint).

A key has a name. Its public half travels as `name+<key id>+<base64>`, the form that Go's and
other tools of transparency logs read; its private half is a PEM file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from ares_stream.errors import IntegrityError, SettingsError
from ares_stream.files import read_text

ED25519: Final = b"\x01"
MAX_NOTE_BYTES: Final = 1 << 20
"""A note is small; the rest of a larger one is not read."""
MAX_SIGNATURES: Final = 64
_NAME = re.compile(r"[^\s+\x00-\x1f]+")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


def _decoded(text: str) -> bytes:
    """The bytes of base64 in its one canonical form, none of anything else: two notes that differ
    in the spare bits of a last letter would otherwise both stand."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return raw if base64.b64encode(raw).decode() == text else b""


@dataclass(frozen=True, slots=True)
class NoteKey:
    """The public half: who may sign."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """Four bytes that say which key a signature is of."""
        return hashlib.sha256(self.name.encode() + b"\n" + ED25519 + self.public).digest()[:4]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of `name+id+base64`. Raises SettingsError."""
        name, _, rest = text.strip().partition("+")
        shown, _, encoded = rest.partition("+")
        raw = _decoded(encoded)
        if not _NAME.fullmatch(name) or len(raw) != 33 or raw[:1] != ED25519:
            raise SettingsError("not a public key of the form name+id+base64 (Ed25519)")
        key = cls(name, raw[1:])
        if key.key_id.hex() != shown:
            raise SettingsError(f"the public key of {name} is damaged: its id is not {shown}")
        return key

    def __str__(self) -> str:
        encoded = base64.b64encode(ED25519 + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    def verifies(self, signature: bytes, text: str) -> bool:
        """Whether the signature is this key's over the text."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


class NoteSigner:
    """The private half."""

    def __init__(self, name: str, private: Ed25519PrivateKey) -> None:
        if not _NAME.fullmatch(name):
            raise SettingsError(f"{name!r}: the name of a key holds neither spaces nor +")
        self._private = private
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.key = NoteKey(name, public)

    @classmethod
    def generate(cls, name: str) -> Self:
        """A new key."""
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, name: str, file: Path) -> Self:
        """The key of a PEM file (PKCS #8, unencrypted). Raises SettingsError."""
        text = read_text(file, limit=1 << 16)
        try:
            private = load_pem_private_key(text.encode(), None)
        except (ValueError, TypeError):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise SettingsError(
                f"{file}: no Ed25519 private key in PEM; `ares audit key` makes one"
            ) from None
        return cls(name, private)

    def pem(self) -> bytes:
        """The private key as `read` reads it."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, text: str) -> str:
        """One signature line over a note's text."""
        raw = self.key.key_id + self._private.sign(text.encode())
        return f"— {self.key.name} {base64.b64encode(raw).decode()}\n"


def sign_note(text: str, signers: Sequence[NoteSigner]) -> str:
    """The text, which ends with a newline, with a signature of each key."""
    if not text.endswith("\n") or not signers:
        raise ValueError("a note ends with a newline and has a signer")
    return text + "\n" + "".join(signer.sign(text) for signer in signers)


def open_note(note: str, trusted: Sequence[NoteKey]) -> tuple[str, tuple[NoteKey, ...]]:
    """The note's text, and the trusted keys that signed it, one at least.

    Signatures of unknown keys are passed over. Raises IntegrityError for what is no note, for a
    wrong signature of a trusted key, and where no trusted key signed.
    """
    if len(note) > MAX_NOTE_BYTES or not note.endswith("\n"):
        raise IntegrityError("not a signed note")
    if any(letter < " " and letter != "\n" for letter in note):
        raise IntegrityError("not a signed note: it holds control characters")
    text, gap, lines = note.rpartition("\n\n")
    text += "\n"
    signatures = lines.removesuffix("\n").split("\n")
    if not gap or not 0 < len(signatures) <= MAX_SIGNATURES:
        raise IntegrityError("not a signed note: it has no signatures")
    known = {(key.name, key.key_id): key for key in trusted}
    signed: dict[NoteKey, None] = {}
    for line in signatures:
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        raw = _decoded(encoded)
        if dash != "—" or not _NAME.fullmatch(name) or len(raw) < 5:
            raise IntegrityError("not a signed note: a signature line is malformed")
        key = known.get((name, raw[:4]))
        if key is None:
            continue
        if not key.verifies(raw[4:], text):
            raise IntegrityError(f"the signature of {name} is not of this text")
        signed[key] = None
    if not signed:
        raise IntegrityError(
            "signed by no trusted key; name the notary's public key (`ares audit key` printed it)"
        )
    return text, tuple(signed)


def tree_origin(name: str, topic: str, partition: int) -> str:
    """What the log of one partition is called: the notary's name, topic and partition."""
    return f"{name}/{topic}/{partition}"


@dataclass(frozen=True, slots=True)
class TreeHead:
    """What a checkpoint says: the log's name, its number of leaves and its root, 32 bytes."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The note's text."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of a note's text; extension lines are passed over. Raises IntegrityError."""
        lines = text.split("\n")
        if len(lines) < 4 or not lines[0] or not _SIZE.fullmatch(lines[1]):
            raise IntegrityError("not a checkpoint: expected origin, size and root")
        root = _decoded(lines[2])
        if len(root) != 32:
            raise IntegrityError("not a checkpoint: its root is not 32 bytes in base64")
        return cls(lines[0], int(lines[1]), root)


def open_head(note: str, trusted: Sequence[NoteKey]) -> tuple[TreeHead, tuple[NoteKey, ...]]:
    """The head of a checkpoint, and the trusted keys that signed it under the name of its log.

    Raises IntegrityError as `open_note` and `TreeHead.parse` do, and where only keys of other names
    signed: a notary's word counts for its own logs alone.
    """
    text, signers = open_note(note, trusted)
    head = TreeHead.parse(text)
    name = head.origin.rsplit("/", 2)[0]
    own = tuple(key for key in signers if key.name == name)
    if not own:
        raise IntegrityError(f"signed by {signers[0].name}, which is not the notary of this log")
    return head, own


def check_rotation(before: Sequence[NoteKey], signers: Sequence[NoteKey]) -> None:
    """Heads on either side of an exchange of keys share one: a notary goes on from no head that
    none of its keys signed. So a key that was taken away signs nothing more, whoever has it.
    Raises IntegrityError."""
    if before and not set(before) & set(signers):
        shown = ", ".join(key.key_id.hex() for key in signers)
        raise IntegrityError(
            f"signed by {shown} alone, which did not sign the head before it: a key that was "
            "exchanged, or one that never was named beside the other"
        )
