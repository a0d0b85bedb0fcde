"""What an encoded answer says once it is decoded. Pure.

A judge that reads letters sees no harm in base64. Each way to hide text has a cheap sign, and a
decoded view is given only where it reads like text: a judge reads it beside the answer itself.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import unquote

DEPTH: Final = 2
"""An encoding inside another is decoded, one inside that is not."""
MOST_VIEWS: Final = 4
MOST_CHARACTERS: Final = 65_536
"""Of an answer so many are looked through: some of the signs cost microseconds a kilobyte."""
READABLE: Final = 0.85
"""Share of letters, spaces and common marks from which bytes are taken for text."""
SIGNS: Final = 3
"""So many signs of an encoding before the whole answer is decoded: one %20 hides nothing."""

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{20,}={0,2}")
_WRAPPED = re.compile(r"(?<=[A-Za-z0-9+/]{48})\r?\n(?=[A-Za-z0-9+/])")
_HEX = re.compile(r"(?:(?:0x|\\x)?[0-9a-fA-F]{2}[ :,]?){10,}")
_BINARY = re.compile(r"(?:[01]{8}\s?){6,}")
_PERCENT = re.compile(r"%[0-9a-fA-F]{2}")
_ENTITY = re.compile(r"&#?\w{2,8};")
_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{4}")
_SPACED = re.compile(r"\b(?:\w ){5,}\w\b")
_LEET_SIGN = re.compile(r"[A-Za-z][013457@$][A-Za-z]")
_LEET_WORD = re.compile(r"(?<![\w@$])[A-Za-z013457@$]{2,24}(?![\w@$])")
_LEET = str.maketrans("013457@$", "oieastas")
_INVISIBLE = dict.fromkeys((0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), 0x2060, 0xFEFF))
_COMMON = re.compile(r"\b(?:the|and|to|of|you|for|with|your|is|in|that|it|this|are|on|be)\b", re.I)
_HINTS: Final = {
    "rot13": (" gur ", " naq ", " gb ", " bs ", " lbh ", "Gur ", " lbhe "),
    "reversed": (" eht ", " dna ", " ot ", " fo ", " uoy ", " ruoy "),
}

ENCODINGS: Final = (
    "base64", "hex", "binary", "url", "html", "escapes", "unicode", "leet", "spaced", *_HINTS,
)  # fmt: skip
"""Every name that `hidden_texts` gives."""


def hidden_texts(text: str) -> list[tuple[str, str]]:
    """(encoding, decoded text) of what is encoded in the text; most answers hold nothing."""
    found: list[tuple[str, str]] = []
    level = [text[:MOST_CHARACTERS]]
    for _ in range(DEPTH):
        level = [view for item in level for view in _add(item, found)]
        if not level or len(found) >= MOST_VIEWS:
            break
    return found[:MOST_VIEWS]


def _add(text: str, found: list[tuple[str, str]]) -> Iterator[str]:
    for name, view in _views(text):
        if view != text and all(view != known for _, known in found):
            found.append((name, view))
            yield view


def _views(text: str) -> Iterator[tuple[str, str]]:
    # Counts first: ordinary text has no long words and few digits, and is done with in no time.
    sizes = list(map(len, text.split()))
    digits = sum(map(text.count, "0123456789"))
    if max(sizes, default=0) >= 20:
        yield from _decoded("base64", _base64(text))
    if digits >= 10:  # Half of the digits of a letter in hexadecimal are decimal ones.
        yield from _decoded("hex", _hex(text))
        yield from _decoded("binary", _binary(text))
    if "%" in text and len(_PERCENT.findall(text)) >= SIGNS:
        yield "url", unquote(text, errors="replace")
    if "&" in text and len(_ENTITY.findall(text)) >= SIGNS:
        yield "html", html.unescape(text)
    if "\\u" in text and len(_ESCAPE.findall(text)) >= SIGNS:
        yield "escapes", _ESCAPE.sub(lambda match: chr(int(match[0][2:], 16)), text)
    if not text.isascii():
        plain = unicodedata.normalize("NFKC", text).translate(_INVISIBLE)
        if sum(a != b for a, b in zip(text, plain, strict=False)) >= SIGNS and plain != text:
            yield "unicode", plain
    for name, turn in _TURNS.items():
        if sum(text.count(hint) for hint in _HINTS[name]) >= SIGNS:
            turned = turn(text)
            if len(_COMMON.findall(turned)) > len(_COMMON.findall(text)):
                yield name, turned
    if digits + text.count("@") + text.count("$") >= SIGNS and (
        len(_LEET_SIGN.findall(text)) >= SIGNS
    ):
        words = [word for word in _LEET_WORD.findall(text) if _is_leet(word)]
        if len(words) >= SIGNS and len(words) >= 0.15 * (text.count(" ") + 1) and " " in text:
            yield "leet", _LEET_WORD.sub(_from_leet, text)
    if sizes.count(1) >= 6 and _SPACED.search(text):
        yield "spaced", _SPACED.sub(lambda match: match[0].replace(" ", ""), text)


def _decoded(name: str, parts: Iterator[str]) -> Iterator[tuple[str, str]]:
    if text := " ".join(parts):
        yield name, text


def _is_leet(word: str) -> bool:
    return not word.isalpha() and sum(map(str.isalpha, word)) >= max(1, len(word) // 3)


def _from_leet(match: re.Match[str]) -> str:
    return match[0].translate(_LEET) if _is_leet(match[0]) else match[0]


def _base64(text: str) -> Iterator[str]:
    for match in _BASE64.finditer(_WRAPPED.sub("", text)):
        letters = match[0].rstrip("=").replace("-", "+").replace("_", "/")
        letters = letters[: len(letters) - (len(letters) % 4 == 1)]
        yield from _readable(lambda: base64.b64decode(letters + "=" * (-len(letters) % 4)))  # noqa: B023


def _hex(text: str) -> Iterator[str]:
    for match in _HEX.finditer(text):
        digits = re.sub(r"0x|\\x|[ :,]", "", match[0])
        yield from _readable(lambda: bytes.fromhex(digits))  # noqa: B023


def _binary(text: str) -> Iterator[str]:
    for match in _BINARY.finditer(text):
        digits = re.sub(r"\s", "", match[0])
        yield from _readable(
            lambda: bytes(int(digits[at : at + 8], 2) for at in range(0, len(digits), 8))  # noqa: B023
        )


def _readable(decode: Callable[[], bytes]) -> Iterator[str]:
    try:
        text = decode().decode()
    except (binascii.Error, ValueError):
        return
    marks = sum(char.isalpha() or char in " .,;:!?'\"-()\n" for char in text)
    if len(text) >= 6 and marks >= READABLE * len(text):
        yield text


_TURNS: Final[dict[str, Callable[[str], str]]] = {
    "rot13": lambda text: codecs.encode(text, "rot13"),
    "reversed": lambda text: text[::-1],
}
