"""The interpreter of input templates: jinja in a sandbox, with what transformers adds to it, and
with bounds, since a template is a program of whoever made the model.

Imported with the first template that needs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ares_stream.errors import BundleError, ScoringError
from ares_stream.records.interaction import Interaction, Message

REFUSED = "the model's input template refuses this conversation: perhaps its roles"
ENDLESS = "the model's input template does not end within {:,} steps"
MAX_CHARACTERS: Final = 256 << 10
"""The longest chat templates have a tenth of this."""
MAX_STEPS: Final = 3_000_000
"""Turns of loops and calls in one rendering. A template that looks back from each of 1,024 messages
takes half a million."""
MAX_PRODUCT: Final = 1 << 20
"""Characters of a repeated text, or bits of a number: `'x' * 10**9` fills the memory."""
_LEFT: Final = "_steps_left"
_COUNTED: Final = "_counted"


class _Endless(Exception):
    """Too many steps."""


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
    if len(source) > MAX_CHARACTERS:
        raise BundleError(
            f"its input template has {len(source):,} characters; the limit is {MAX_CHARACTERS:,}"
        )
    environment = _environment()
    try:
        parsed = environment.parse(source)
        for loop in parsed.find_all(nodes.For):
            counted = nodes.Call(nodes.Name(_COUNTED, "load"), [loop.iter], [], None, None)
            loop.iter = counted.set_lineno(loop.lineno)
        parsed.set_environment(environment)
        template = environment.from_string(parsed)
    except TemplateError as error:
        raise BundleError(f"its input template is wrong: {error}") from None
    except (RecursionError, SyntaxError):  # Of the Python that jinja makes of it.
        raise BundleError("its input template is wrong: nested too deep") from None

    def render(interaction: Interaction, answer: str) -> str:
        # A template is a program, and fails as programs do. Its error may quote the conversation:
        # it must not become the context of ours.
        left = [MAX_STEPS]
        with suppress(Exception):
            return template.render(_variables(interaction, answer), **{_LEFT: left})
        raise ScoringError(ENDLESS.format(MAX_STEPS) if left[0] < 0 else REFUSED)

    return render


class _Bounded(ImmutableSandboxedEnvironment):
    """A sandbox of bounded steps, and of products that fit into memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        _step(__context)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if not _fits(operator, left, right):
            raise OverflowError
        return super().call_binop(context, operator, left, right)


def _fits(operator: str, left: Any, right: Any) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        bits, more = left.bit_length(), abs(right) if operator == "**" else 0
        return bits * more + bits + right.bit_length() <= MAX_PRODUCT
    for several, times in ((left, right), (right, left)):
        if isinstance(several, str | list | tuple) and isinstance(times, int):
            return len(several) * times <= MAX_PRODUCT
    return True


def _step(context: Context) -> None:
    left = context[_LEFT]
    left[0] -= 1
    if left[0] < 0:
        raise _Endless


@pass_context
def _counted(context: Context, several: Iterable[Any]) -> Iterator[Any]:
    for item in several:
        _step(context)
        yield item


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Bounded(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals[_COUNTED] = _counted
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
