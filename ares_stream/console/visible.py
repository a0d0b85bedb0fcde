"""Text of conversations as a person may safely look at it.

HTML is escaped by the templates. What a browser or a terminal would act on, or what makes a text
look like another (Unicode's Trojan Source, CVE-2021-42574), is written out as ⟨U+XXXX⟩.
"""

from __future__ import annotations

import unicodedata
from typing import Final

MAX_CHARACTERS: Final = 100_000
"""Shown of one text: a browser stands still at megabytes."""
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_KEPT: Final = frozenset("\n\t")


def visible(text: str) -> str:
    """The text with every character that is not seen, or moves others, written out."""
    cut = text[:MAX_CHARACTERS]
    shown = "".join(
        letter
        if letter in _KEPT or unicodedata.category(letter) not in _HIDDEN
        else f"⟨U+{ord(letter):04X}⟩"
        for letter in cut
    )
    left = len(text) - len(cut)
    return shown + (f"\n⟨{left:,} more characters are not shown⟩" if left else "")
