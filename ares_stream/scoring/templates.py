"""Input templates: jinja source that renders a conversation as Hugging Face chat templates do.

A template sees what transformers shows to one: `messages`, `tools`, `documents` and
`add_generation_prompt`, the filter `tojson`, the functions `raise_exception` and `strftime_now`,
the blocks {% generation %}, {% break %} and {% continue %}, in a sandbox. Beside these it sees
`prompt` and `response`. The special tokens stand in the source itself (`with_special_tokens`), so
that a bundle needs no other file.

`strftime_now` gives the time at which the conversation took place, not that of the clock: a record
that is read again a year later is the same input.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final

from ares_stream.records.interaction import Interaction

Render = Callable[[Interaction, str], str]
"""The text of an interaction with this answer. Raises ScoringError, which quotes none of it."""


PLAIN: Final[dict[str, Render]] = {
    "{{ prompt }}": lambda interaction, answer: interaction.prompt,
    "{{ response }}": lambda interaction, answer: answer,
}
"""The templates of a plain pair, which most classifiers have, need no interpreter."""


def compile_template(source: str) -> Render:
    """Raises BundleError where the source is no template."""
    if source in PLAIN:
        return PLAIN[source]
    from ares_stream.scoring.interpreter import interpreted

    return interpreted(source)


def with_special_tokens(source: str, tokens: Mapping[str, str]) -> str:
    """The same template with its special tokens set (`bos_token` and so on)."""
    settings = "".join(
        f"{{% set {name} = {json.dumps(token, ensure_ascii=False)} %}}"
        for name, token in tokens.items()
    )
    # The line end after a block is dropped: the template begins a line, as it did before.
    return f"{settings}\n{source}" if settings else source
