"""Text of others as a person may safely look at it, in a browser or at a terminal.

What either would act on, or what makes a text look like another (Unicode's Trojan Source,
CVE-2021-42574), is written out as ⟨U+XXXX⟩. HTML is escaped by the templates.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any, Final

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_KEPT: Final = frozenset("\n\t")
_PLAIN: Final = re.compile(r"[\n\t\x20-\x7e]*")


def visible(text: str) -> str:
    """The text with every character that is not seen, or moves others, written out."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(
        letter
        if letter in _KEPT or unicodedata.category(letter) not in _HIDDEN
        else f"⟨U+{ord(letter):04X}⟩"
        for letter in text
    )


def visible_value(value: Any) -> Any:
    """A template's value, `visible` where it is text and no markup of ours (`Environment`'s
    `finalize`)."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
