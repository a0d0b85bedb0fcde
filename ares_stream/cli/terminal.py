"""Tables and lines for people, whose cells may hold what others wrote."""

from __future__ import annotations

from typing import Any

import rich.console
from rich.text import Text

from ares_stream.visible import visible


class Console(rich.console.Console):
    """Rich's, which takes no string for markup unless asked to, and writes out what a terminal
    would act on (`visible`)."""

    def __init__(
        self,
        *,
        stderr: bool = False,
        width: int | None = None,
        markup: bool = False,
        record: bool = False,
    ) -> None:
        super().__init__(
            stderr=stderr, width=width, markup=markup, record=record, highlight=False, emoji=False
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """A string of a cell, a title or a line."""
        return super().render_str(visible(text), **options)
