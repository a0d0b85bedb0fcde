#!/usr/bin/env python3
"""Check a proof of `ares audit prove`, offline, with nothing of ares-stream.

    python verify_proof.py proof.json --key 'example.com/ares+1a2b3c4d+AQ...'
    python verify_proof.py proof.json --key KEY --known head.txt

Needs Python 3.9 or later and the package `cryptography`. A proof holds if the record that it
shows is the leaf it claims to be (RFC 9162 inclusion) of a tree whose head a key you name has
signed under its own name (C2SP signed note), and if all heads in the file and those you kept
(--known) are of one tree that only grew: heads of one size are equal, and those of different sizes
have a proof in the file (RFC 9162 consistency; `ares audit prove --known` writes it).

Exit code 0: every proof holds. 1: one does not. 2: a file or key cannot be read.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import re
import struct
import sys
from collections.abc import Sequence
from typing import Any, TextIO, Tuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Key = Tuple[str, bytes, Ed25519PublicKey]
Head = Tuple[str, int, bytes]
TOMBSTONE, KEYED, SALTED = 1, 2, 4
FIELDS = (
    "topic", "partition", "offset", "timestamp_ms", "flags", "content", "key_hash", "record",
    "salt", "index", "inclusion", "checkpoint", "later",
)  # fmt: skip
EARLIER = ("earlier",)
TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
NAME = re.compile(r"[^\s+\x00-\x1f]+")
SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
MOST_LETTERS, MOST_SIGNATURES = 1 << 20, 64


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
    """Of name+id+base64: name, id and public key. Raises ValueError."""
    parts = text.strip().split("+", 2)
    if len(parts) != 3 or not NAME.fullmatch(parts[0]):
        raise ValueError("not a key of the form name+id+base64")
    name, shown, encoded = parts
    raw = unbase64(encoded)
    expected = sha256(name.encode() + b"\n" + raw)[:4]
    if len(raw) != 33 or raw[0] != 1 or expected.hex() != shown:
        raise ValueError("not an Ed25519 key, or damaged")
    return name, expected, Ed25519PublicKey.from_public_bytes(raw[1:])


def note_of(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """The text of a signed note, and of each signature the key's name and its bytes."""
    text, gap, lines = note.rpartition("\n\n")
    if not gap or not lines.endswith("\n") or len(note) > MOST_LETTERS:
        raise Wrong("the checkpoint is no signed note")
    if any(letter < " " and letter != "\n" for letter in note):
        raise Wrong("the checkpoint is no signed note: it holds control characters")
    signatures = []
    for line in lines[:-1].split("\n"):
        dash, name, encoded = [*line.split(" ", 2), "", ""][:3]
        try:
            raw = unbase64(encoded)
        except ValueError:
            raw = b""
        if dash != "\u2014" or not NAME.fullmatch(name) or len(raw) < 5:
            raise Wrong("the checkpoint is no signed note: a signature line is malformed")
        signatures.append((name, raw))
    if len(signatures) > MOST_SIGNATURES:
        raise Wrong("the checkpoint has more than %d signatures" % MOST_SIGNATURES)
    return text + "\n", signatures


def open_head(note: str, keys: Sequence[Key]) -> Head:
    """Origin, size and root of a checkpoint that a known key signed under its own name."""
    text, signatures = note_of(note)
    signed = set()
    for name, raw in signatures:
        for known_name, known_id, public in keys:
            if (name, raw[:4]) == (known_name, known_id):
                try:
                    public.verify(raw[4:], text.encode())
                except (InvalidSignature, ValueError):
                    raise Wrong("the signature of the checkpoint is wrong") from None
                signed.add(name)
    if not signed:
        raise Wrong("none of the keys has signed the checkpoint")
    said = text.split("\n")
    if len(said) < 4 or not said[0] or not SIZE.fullmatch(said[1]):
        raise Wrong("the checkpoint says no origin and size")
    try:
        root = unbase64(said[2])
    except ValueError:
        root = b""
    if len(root) != 32:
        raise Wrong("the checkpoint says no root of 32 bytes")
    if said[0].rsplit("/", 2)[0] not in signed:
        raise Wrong("the key that signed the checkpoint is of another name than its log")
    return said[0], int(said[1]), root


def members(value: Any, where: str, names: Sequence[str], more: Sequence[str] = ()) -> Any:
    """An object with these names, and perhaps with `more`, and no others."""
    if not isinstance(value, dict):
        raise Wrong("%s: not an object" % where)
    for name in names:
        if name not in value:
            raise Wrong("%s: %s is missing" % (where, name))
    for name in value:
        if name not in names and name not in more:
            raise Wrong("%s: holds a field that no proof has: %s" % (where, ascii(name)[:40]))
    return value


def number(value: Any, where: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise Wrong("%s: not a number from %d to %d" % (where, least, most))
    return value


def string(value: Any, where: str) -> str:
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Wrong("%s: not a text" % where)
    return value


def items(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise Wrong("%s: not a list" % where)
    return value


def hashed(value: Any, where: str) -> bytes:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise Wrong("%s: not 64 lower-case hexadecimal digits" % where)
    return bytes.fromhex(value)


def path_of(value: Any, where: str) -> list[bytes]:
    return [hashed(item, where) for item in items(value, where)]


def field(data: bytes | None) -> bytes:
    return b"\xff\xff\xff\xff" if data is None else struct.pack(">I", len(data)) + data


def optional(value: Any, where: str) -> bytes | None:
    if value is None:
        return None
    try:
        return unbase64(string(value, where))
    except ValueError:
        raise Wrong("%s: not base64 in its canonical form" % where) from None


def raw_record(value: Any) -> tuple[bytes | None, bytes | None, bytes]:
    """Key, value, and all that the leaf commits to."""
    members(value, "record", ("key", "value", "headers"))
    key, content = optional(value["key"], "record.key"), optional(value["value"], "record.value")
    raw = field(key) + field(content)
    for pair in items(value["headers"], "record.headers"):
        if len(items(pair, "record.headers")) != 2:
            raise Wrong("record.headers: not a pair of name and value")
        raw += field(string(pair[0], "record.headers").encode())
        raw += field(optional(pair[1], "record.headers"))
    return key, content, raw


def leaf_hash(proof: dict[str, Any]) -> tuple[bytes, str]:
    """The hash of the leaf that commits to the record in the proof, and what is shown of it."""
    flags = number(proof["flags"], "flags", 0, 7)
    content = hashed(proof["content"], "content")
    key_hash = hashed(proof["key_hash"], "key_hash") if flags & KEYED else b""
    if not flags & KEYED and proof["key_hash"] != "":
        raise Wrong("key_hash: of a leaf that has none")
    salt = optional(proof["salt"], "salt")
    if salt is not None and (not flags & SALTED or proof["record"] is None):
        raise Wrong("salt: of a leaf or a record that has none here")
    shown = "the record"
    if proof["record"] is None:
        shown = "a record that is not shown (its text was erased, or is kept back)"
        if not flags & SALTED:
            raise Wrong("no record is shown, and its leaf has no salt that could be erased")
    else:
        key, value, raw = raw_record(proof["record"])
        if flags & SALTED:
            # HMAC takes a shorter key and the same with zeros behind it for one.
            if salt is None or len(salt) != 16:
                raise Wrong("salt: not 16 bytes")
            actual = hmac.new(salt, raw, "sha256").digest()
        else:
            actual = sha256(raw)
        if actual != content:
            raise Wrong(
                "the record, or its salt, is not the one that the leaf commits to"
                if flags & SALTED
                else "the record is not the one that the leaf commits to"
            )
        if bool(flags & TOMBSTONE) != (value is None):
            raise Wrong("the leaf says otherwise whether there is a value")
        if flags & KEYED and key_hash != sha256(key or b""):
            raise Wrong("the leaf commits to another key")
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


def place_of(proof: Any) -> str:
    """Which record a proof is of, for people."""
    members(proof, "the proof", FIELDS, EARLIER)
    topic = proof["topic"]
    if not isinstance(topic, str) or not TOPIC.fullmatch(topic):
        raise Wrong("topic: not a topic's name")
    number(proof["partition"], "partition", 0, (1 << 31) - 1)
    number(proof["offset"], "offset", 0, (1 << 63) - 1)
    return "%s %d offset %d" % (topic, proof["partition"], proof["offset"])


def heads_of(
    entries: Any, where: str, origin: str, keys: Sequence[Key]
) -> list[tuple[int, bytes, list[bytes]]]:
    """Size, root and proof of each head in a list of the file."""
    found = []
    for entry in items(entries, where):
        members(entry, where, ("checkpoint", "consistency"))
        other, size, root = open_head(string(entry["checkpoint"], "%s.checkpoint" % where), keys)
        if other != origin:
            raise Wrong("%s: a checkpoint is of another log" % where)
        found.append((size, root, path_of(entry["consistency"], "%s.consistency" % where)))
    return found


def check(proof: Any, keys: Sequence[Key], known: Sequence[Head]) -> str:
    """One line on a proof that holds. Raises Wrong."""
    place_of(proof)
    number(proof["timestamp_ms"], "timestamp_ms", -(1 << 63), (1 << 63) - 1)
    index = number(proof["index"], "index", 0, 10**19)
    origin, size, root = open_head(string(proof["checkpoint"], "checkpoint"), keys)
    if origin.split("/")[-2:] != [proof["topic"], str(proof["partition"])]:
        raise Wrong("the checkpoint is of another topic or partition")
    leaf, shown = leaf_hash(proof)
    check_inclusion(leaf, index, size, path_of(proof["inclusion"], "inclusion"), root)
    heads = {size: root}
    # Each later head grew out of the one before it, and each earlier one into the one after it:
    # all of them are of one tree.
    before = (size, root)
    for later_size, later_root, path in heads_of(proof["later"], "later", origin, keys):
        check_consistency(*before, later_size, later_root, path)
        before = (later_size, later_root)
        heads[later_size] = later_root
    after = (size, root)
    for early_size, early_root, path in heads_of(proof.get("earlier", []), "earlier", origin, keys):
        check_consistency(early_size, early_root, *after, path)
        after = (early_size, early_root)
        heads[early_size] = early_root
    kept: dict[int, bytes] = {}
    for other, other_size, other_root in known:
        if other != origin:
            continue
        if heads.get(other_size, other_root) != other_root:
            raise Wrong("a head that you kept, of %d leaves, is another one" % other_size)
        if kept.setdefault(other_size, other_root) != other_root:
            raise Wrong("two heads that you kept, of %d leaves, differ" % other_size)
    apart = [other_size for other_size in kept if other_size and other_size not in heads]
    if apart:
        raise Wrong(
            "nothing leads to a head that you kept, of %d leaves; `ares audit prove --known` "
            "writes a proof of it" % apart[0]
        )
    compared = ", kept heads compared: %d" % len(kept) if known else ""
    return "%s is leaf %d of %d, %s, latest head %d%s" % (
        shown, index, size, origin, max(heads), compared,
    )  # fmt: skip


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Of a name that stands twice, one reader takes the first value and another
    the last. Raises ValueError."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError("a name stands twice in one object: %s" % ascii(twice)[:40])
    return found


def say(text: str, file: TextIO) -> None:
    """In ASCII: a name may hold letters that a terminal lacks or obeys."""
    print(text.encode("ascii", "backslashreplace").decode(), file=file)


def proofs_of(document: Any) -> list[Any]:
    """Of a file's content. Raises ValueError."""
    proofs = document.get("proofs") if isinstance(document, dict) else None
    if not isinstance(proofs, list) or not proofs or document.get("schema") != "ares.proof/1":
        raise ValueError("not a proof of ares.proof/1")
    if len(document) != 2:
        raise ValueError("holds more than a schema and proofs")
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
        say("--key: %s" % error, sys.stderr)
        return 2
    known = []
    for name in asked.known:
        try:
            with open(name, encoding="utf-8") as file:
                known.append(open_head(file.read(), keys))
        except (OSError, ValueError, Wrong) as error:
            say("--known %s: %s" % (name, error), sys.stderr)
            return 2
    try:
        with open(asked.proof, encoding="utf-8") as file:
            proofs = proofs_of(json.load(file, object_pairs_hook=without_doubles))
    except (OSError, ValueError, RecursionError) as error:
        say("%s: %s" % (asked.proof, error), sys.stderr)
        return 2
    bad = 0
    for count, proof in enumerate(proofs, 1):
        where = "proof %d" % count
        try:
            where = place_of(proof)
            say("%s: holds: %s" % (where, check(proof, keys, known)), sys.stdout)
        except Wrong as error:
            bad += 1
            say("%s: DOES NOT HOLD: %s" % (where, error), sys.stdout)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
