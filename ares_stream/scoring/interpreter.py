"""The interpreter of input templates: jinja in a sandbox, with what transformers adds to it.

Imported with the first template that needs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ares_stream.errors import BundleError, ScoringError
from ares_stream.records.interaction import Interaction, Message

REFUSED = "the model's input template refuses this conversation: perhaps its roles"


class _Generation(Extension):
    """{% generation %}: marks an assistant's words for training; renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 - jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block, as in transformers: what is set inside is not seen outside.
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


def interpreted(source: str) -> Callable[[Interaction, str], str]:
    """See `ares_stream.scoring.templates.compile_template`."""
    try:
        template = _environment().from_string(source)
    except TemplateError as error:
        raise BundleError(f"its input template is wrong: {error}") from None

    def render(interaction: Interaction, answer: str) -> str:
        # A template is a program, and fails as programs do. Its error may quote the conversation:
        # it must not become the context of ours.
        with suppress(Exception):
            return template.render(_variables(interaction, answer))
        raise ScoringError(REFUSED)

    return render


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment


def _variables(interaction: Interaction, answer: str) -> dict[str, Any]:
    turns = (*interaction.messages, Message(role="assistant", content=answer))
    return {
        "messages": [{"role": item.role, "content": item.content} for item in turns],
        "prompt": interaction.prompt,
        "response": answer,
        "tools": None,
        "documents": None,
        "add_generation_prompt": False,
        "strftime_now": interaction.occurred_at.strftime,
    }


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without jinja's escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise TemplateError(message)
