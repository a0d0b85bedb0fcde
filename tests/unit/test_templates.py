"""Chat templates render here as transformers renders them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template as untyped

from ares_stream.errors import BundleError, ScoringError
from ares_stream.records.interaction import Interaction, Message, Policy, Role
from ares_stream.scoring.templates import compile_template, with_special_tokens

render_jinja_template: Any = untyped

TURNS: list[list[tuple[Role, str]]] = [
    [("user", "hello")],
    [("system", "be brief"), ("user", " two\nlines ")],
    [("user", "one"), ("assistant", "two"), ("user", "<b>three</b> & 'é' \U0001f600")],
]
TOKENS = {"bos_token": "<s>", "eos_token": '</"s">', "pad_token": "<pad>\U0001f600\\"}
TEMPLATES = {
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}",
    "set inside generation": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}"
    "{% endgeneration %}{{ x }}",
    "today": "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}",
    "today where it is known": "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}"
    "2024{% endif %}",
    "no tools": "{% if tools is none %}none{% endif %}{% if documents is not none %}some{% endif %}"
    "{{ tools is defined }}",
    "unknown token": "{{ unk_token }}|{{ unk_token is defined }}|{{ bos_token }}",
    "json": "{{ messages | tojson }}\n{{ messages[0] | tojson(indent=2, sort_keys=True) }}",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}"
    "{{ m.role }}{% endfor %}",
    "spaces first": "  \n\n  {% if true %}\n    {{ bos_token }}\n  {% endif %}\n{{ 'x' }}\n\n",
    "block first": "   {% if true %}   a{% endif %}",
    "line first": "\n{{- bos_token }}\n  b",
    "macro": "{% macro turn(m) %}{{ bos_token }}{{ m.content }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}",
    "trimmed": "{% for m in messages %}{{ m['content'] | trim }}{{ '\\n' }}{% endfor %}",
    "no prompt": "{% if add_generation_prompt %}x{% endif %}{{ messages | length }}",
}


def interaction(turns: list[tuple[Role, str]], at: datetime) -> Interaction:
    return Interaction(
        id="i",
        occurred_at=at,
        messages=tuple(Message(role=role, content=content) for role, content in turns),
        response="an answer ",
        policy=Policy(name="p", version="1"),
    )


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", TURNS, ids=["one turn", "a system prompt", "several turns"])
def test_a_chat_template_renders_as_in_transformers(
    name: str, turns: list[tuple[Role, str]]
) -> None:
    at = datetime.now().astimezone()  # What transformers calls today cannot be told to it.
    item = interaction(turns, at)
    messages = [{"role": m.role, "content": m.content} for m in item.messages]
    theirs, _ = render_jinja_template(
        conversations=[[*messages, {"role": "assistant", "content": item.response}]],
        chat_template=TEMPLATES[name],
        **TOKENS,
    )
    ours = compile_template(with_special_tokens(TEMPLATES[name], TOKENS))
    assert ours(item, item.response) == theirs[0]


def test_the_day_is_that_of_the_conversation_whenever_it_is_read() -> None:
    render = compile_template("{{ strftime_now('%Y-%m-%d') }}")
    item = interaction([("user", "hello")], datetime(2025, 3, 1, tzinfo=UTC))
    assert render(item, "") == "2025-03-01"


@pytest.mark.parametrize("source", ["{% if", "{% endgeneration %}", "{{ x | nothing }}"])
def test_what_is_no_template_is_refused_when_it_is_read(source: str) -> None:
    with pytest.raises(BundleError, match="input template is wrong"):
        compile_template(source)


@pytest.mark.parametrize(
    "source",
    ["{{ raise_exception(messages[0].content) }}", "{{ messages[9].content.x }}", "{{ 1 / 0 }}"],
)
def test_a_refusal_quotes_nothing_of_the_conversation(source: str) -> None:
    item = interaction([("user", "a secret")], datetime(2025, 3, 1, tzinfo=UTC))
    with pytest.raises(ScoringError, match="refuses this conversation") as caught:
        compile_template(source)(item, "")
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
