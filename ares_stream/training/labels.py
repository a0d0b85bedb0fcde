"""Which outputs of a classifier mean harm, by the names that its config.json gives them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from ares_stream.errors import BundleError

_HARMLESS: Final = re.compile(
    r"(safe|benign|harmless|neutral|normal|ok|okay|fine|clean|acceptable|appropriate|inoffensive"
    r"|none|other|legit|legitimate|civil|supported"
    r"|(not?|non|un)[-_ ]?(toxic|hate|hateful|harmful|harm|offensive|unsafe|abusive|abuse|spam"
    r"|violent|violence|sexual|nsfw|jailbreak|injection|flagged)\w*)",
    re.IGNORECASE,
)
"""Names that publishers of judges give to what is no harm."""


def harmful_labels(source: object, names: Sequence[str], chosen: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the labels that were chosen, by name or number; of one label that one, of two the
    second unless its name says that it is the harmless one. Raises BundleError naming them all."""
    if chosen:
        return tuple(label_number(source, names, label) for label in chosen)
    if len(names) > 2:
        raise BundleError(
            f"{source}: which labels are harmful? Name them with --label: {', '.join(names)}"
        )
    if len(names) == 2 and is_harmless(names[1]):
        raise BundleError(
            f"{source}: of its labels {', '.join(names)} the second, which is taken for harmful, "
            "is called harmless; name the harmful one with --label"
        )
    return (len(names) - 1,)


def is_harmless(name: str) -> bool:
    """Whether a label's name says that there is no harm."""
    return _HARMLESS.fullmatch(name.strip()) is not None


def label_number(source: object, names: Sequence[str], label: str) -> int:
    """Raises BundleError where there is no such label, or several of the name."""
    if names.count(label) == 1:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    raise BundleError(
        f"{source}: {'several labels are called' if label in names else 'no label'} {label}; "
        f"there are {', '.join(names)}"
    )
