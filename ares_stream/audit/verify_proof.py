#!/usr/bin/env python3
"""Check a proof of `ares audit prove`, offline, with nothing of ares-stream.

    python verify_proof.py proof.json --key 'example.com/ares+1a2b3c4d+AQ...'
    python verify_proof.py proof.json --key KEY --known head.txt

Needs Python 3.9 or later and the package `cryptography`. A proof holds if the record that it
shows is the leaf it claims to be (RFC 9162 inclusion) of a tree whose head a key you name has
signed (C2SP signed note), and if that tree is the beginning of every later head in the file and
of the heads you kept (--known; RFC 9162 consistency needs the same size or a proof in the file).

Exit code 0: every proof holds. 1: one does not. 2: a file or key cannot be read.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import struct
import sys
from collections.abc import Sequence
from typing import Any, Tuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Key = Tuple[str, bytes, Ed25519PublicKey]
Head = Tuple[str, int, bytes]
TOMBSTONE, KEYED, SALTED = 1, 2, 4


class Wrong(Exception):
    """A proof that does not hold; the text says why."""


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def unbase64(text: str) -> bytes:
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise ValueError("not base64 in its canonical form")
    return raw


def parse_key(text: str) -> Key:
    """Of name+id+base64: name, id and public key."""
    name, shown, encoded = text.strip().split("+", 2)
    raw = unbase64(encoded)
    expected = sha256(name.encode() + b"\n" + raw)[:4]
    if len(raw) != 33 or raw[0] != 1 or expected.hex() != shown:
        raise ValueError("not an Ed25519 key, or damaged")
    return name, expected, Ed25519PublicKey.from_public_bytes(raw[1:])


def open_head(note: str, keys: Sequence[Key]) -> Head:
    """Origin, size and root of a checkpoint that a known key signed."""
    text, gap, lines = note.rpartition("\n\n")
    text += "\n"
    if not gap:
        raise Wrong("the checkpoint is no signed note")
    good = False
    for line in lines.rstrip("\n").split("\n"):
        dash, name, encoded = line.split(" ", 2)
        raw = unbase64(encoded)
        if dash != "\u2014":
            raise Wrong("the checkpoint is no signed note")
        for known_name, known_id, public in keys:
            if (name, raw[:4]) == (known_name, known_id):
                try:
                    public.verify(raw[4:], text.encode())
                except InvalidSignature:
                    raise Wrong("the signature of the checkpoint is wrong") from None
                good = True
    if not good:
        raise Wrong("none of the keys has signed the checkpoint")
    origin, size, root = text.split("\n")[:3]
    raw = unbase64(root)
    if not size.isascii() or not size.isdigit() or len(raw) != 32:
        raise Wrong("the checkpoint says no size and root")
    return origin, int(size), raw


def field(data: bytes | None) -> bytes:
    return b"\xff\xff\xff\xff" if data is None else struct.pack(">I", len(data)) + data


def optional(text: str | None) -> bytes | None:
    return None if text is None else unbase64(text)


def leaf_hash(proof: dict[str, Any]) -> tuple[bytes, str]:
    """The hash of the leaf that commits to the record in the proof, and what is shown of it."""
    flags, content = proof["flags"], bytes.fromhex(proof["content"])
    record, salt = proof.get("record"), optional(proof.get("salt"))
    key_hash = bytes.fromhex(proof.get("key_hash") or "")
    shown = "the record"
    if record is None:
        shown = "a record whose text was erased"
        if not flags & SALTED:
            raise Wrong("no record is shown, and its leaf has no salt that could be erased")
    else:
        key, value = optional(record["key"]), optional(record["value"])
        raw = field(key) + field(value)
        for name, data in record["headers"]:
            raw += field(name.encode()) + field(optional(data))
        if flags & SALTED:
            if salt is None:
                raise Wrong("the salt is missing")
            actual = hmac.new(salt, raw, "sha256").digest()
        else:
            actual = sha256(raw)
        if actual != content:
            raise Wrong("the record is not the one that the leaf commits to")
        if bool(flags & TOMBSTONE) != (value is None):
            raise Wrong("the leaf says otherwise whether there is a value")
        if flags & KEYED and key_hash != sha256(key or b""):
            raise Wrong("the leaf commits to another key")
    if len(content) != 32 or len(key_hash) != (32 if flags & KEYED else 0):
        raise Wrong("the leaf is malformed")
    topic = proof["topic"].encode()
    data = b"ares-leaf/1\x00" + struct.pack(">I", len(topic)) + topic
    data += struct.pack(">IQqB", proof["partition"], proof["offset"], proof["timestamp_ms"], flags)
    return sha256(b"\x00" + data + content + key_hash), shown


def climb(start: bytes, number: int, last: int, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    """RFC 9162, 2.1.3.2 and 2.1.4.2: the root that the path leads to, and that of the part to the
    left alone."""
    left_only = whole = start
    if any(len(part) != 32 for part in (start, *path)):
        raise Wrong("a hash is not 32 bytes long")
    for part in path:
        if last == 0:
            raise Wrong("a path is too long")
        if number & 1 or number == last:
            left_only = sha256(b"\x01" + part + left_only)
            whole = sha256(b"\x01" + part + whole)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            whole = sha256(b"\x01" + whole + part)
        number, last = number >> 1, last >> 1
    if last != 0:
        raise Wrong("a path is too short")
    return left_only, whole


def check_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    if not 0 <= index < size:
        raise Wrong("the leaf's index lies outside of the tree")
    if climb(leaf, index, size - 1, path)[1] != root:
        raise Wrong("the leaf is not in the signed tree")


def check_consistency(
    first: int, first_root: bytes, second: int, second_root: bytes, path: Sequence[bytes]
) -> None:
    if not 0 < first <= second:
        raise Wrong("the later head is of a smaller tree")
    if first == second:
        if path or first_root != second_root:
            raise Wrong("two heads of one size differ")
        return
    parts = list(path)
    if first & (first - 1) == 0:
        parts.insert(0, first_root)
    if not parts:
        raise Wrong("a path is too short")
    number, last = first - 1, second - 1
    while number & 1:
        number, last = number >> 1, last >> 1
    old, new = climb(parts[0], number, last, parts[1:])
    if old != first_root or new != second_root:
        raise Wrong("the later tree does not begin with the earlier one")


def check(proof: dict[str, Any], keys: Sequence[Key], known: Sequence[Head]) -> str:
    """One line on a proof that holds. Raises Wrong."""
    origin, size, root = open_head(proof["checkpoint"], keys)
    if not origin.endswith("/%s/%d" % (proof["topic"], proof["partition"])):
        raise Wrong("the checkpoint is of another topic or partition")
    leaf, shown = leaf_hash(proof)
    check_inclusion(
        leaf, proof["index"], size, [bytes.fromhex(x) for x in proof["inclusion"]], root
    )
    heads = {size: root}
    for later in proof.get("later", []):
        other, other_size, other_root = open_head(later["checkpoint"], keys)
        if other != origin:
            raise Wrong("a later checkpoint is of another log")
        path = [bytes.fromhex(x) for x in later["consistency"]]
        check_consistency(size, root, other_size, other_root, path)
        heads[other_size] = other_root
    for other, other_size, other_root in known:
        if other == origin and heads.get(other_size, other_root) != other_root:
            raise Wrong("a head that you kept, of %d leaves, is another one" % other_size)
    return "%s is leaf %d of %d, %s, latest head %d" % (
        shown, proof["index"], size, origin, max(heads),
    )  # fmt: skip


def proofs_of(document: Any) -> list[Any]:
    """Of a file's content. Raises ValueError."""
    proofs = document.get("proofs") if isinstance(document, dict) else None
    if not isinstance(proofs, list) or not proofs or document.get("schema") != "ares.proof/1":
        raise ValueError("not a proof of ares.proof/1")
    return proofs


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check a proof of ares audit prove, offline.")
    parser.add_argument("proof")
    parser.add_argument("--key", action="append", required=True, help="name+id+base64")
    parser.add_argument("--known", action="append", default=[], help="a file with a head you kept")
    asked = parser.parse_args(words)
    try:
        keys = [parse_key(text) for text in asked.key]
    except ValueError as error:
        print("--key: %s" % error, file=sys.stderr)
        return 2
    known = []
    for name in asked.known:
        try:
            with open(name, encoding="utf-8") as file:
                known.append(open_head(file.read(), keys))
        except (OSError, ValueError, Wrong) as error:
            print("--known %s: %s" % (name, error), file=sys.stderr)
            return 2
    try:
        with open(asked.proof, encoding="utf-8") as file:
            proofs = proofs_of(json.load(file))
    except (OSError, ValueError, RecursionError) as error:
        print("%s: %s" % (asked.proof, error), file=sys.stderr)
        return 2
    bad = 0
    for proof in proofs:
        try:
            where = "%s %d offset %d" % (proof["topic"], proof["partition"], proof["offset"])
            print("%s: holds: %s" % (where, check(proof, keys, known)))
        except Exception as error:  # Whatever stands there in the place of a number or a text.
            bad += 1
            print("DOES NOT HOLD: %s" % (error if isinstance(error, Wrong) else repr(error)))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
