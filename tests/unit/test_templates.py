"""Chat templates render here as transformers renders them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template as untyped

from ares_stream.errors import BundleError, ScoringError
from ares_stream.records.interaction import Interaction, Message, Policy, Role
from ares_stream.scoring import interpreter
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
    "looks ahead": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{% if not loop.last %}"
    "{{ loop.nextitem.role }}{% endif %}{% if loop.first %}{{ loop.revindex0 }}{% endif %}"
    "{{ loop.previtem is defined }}{% else %}none{% endfor %}",
    "chosen": "{% for m in messages[::-1] if m.role == 'user' %}{{ loop.cycle('a', 'b') }}"
    "{{ m.content }}{% else %}nobody{% endfor %}",
    "items": "{% for k, v in messages[0].items() %}{{ k }}={{ v }}{% endfor %}",
    "recursive": "{% for m in [[1, [2, [3]]]] recursive %}{% if m is iterable %}({{ loop(m) }})"
    "{% else %}{{ m }}{% endif %}{% endfor %}",
    "of nothing": "{% for t in tools or [] %}{{ t }}{% endfor %}{% for x in absent %}{% endfor %}.",
    "products": "{{ '=' * 20 }}{{ 2 ** 10 }}{{ 3 * 4 }}{{ [1] * 3 }}{{ 1.5 * 2 }}{{ 2 ** -1 }}",
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


@pytest.mark.parametrize(
    "source",
    [
        "{% if", "{% endgeneration %}", "{{ x | nothing }}",
        "{% if true %}" * 3000 + "{% endif %}", "{% if true %}" * 3000 + "{% endif %}" * 3000,
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    ],
    ids=["open", "block", "filter", "unclosed", "deep", "parentheses", "loops"],
)  # fmt: skip
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


def test_a_template_without_measure_is_refused_when_it_is_read() -> None:
    with pytest.raises(BundleError, match="has 262,145 characters; the limit is 262,144"):
        compile_template("a" * (1 + (256 << 10)))


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(40) }}",
        "{% for a in range(99999) %}{% set x = range(9) %}{% for b in messages * 40 %}"
        "{% endfor %}{% endfor %}",
    ],
    ids=["loops", "calls", "both"],
)  # fmt: skip
def test_a_template_that_does_not_end_is_refused(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "MAX_STEPS", 20_000)
    item = interaction([("user", "a secret")], datetime(2025, 3, 1, tzinfo=UTC))
    with pytest.raises(ScoringError, match="does not end within 20,000 steps") as caught:
        compile_template(source)(item, "")
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**9 }}", "{{ 10**9 * 'x' }}", "{{ [1] * 10**9 }}", "{{ 9 ** (9 ** 9) }}",
        "{{ (2 ** 900000) * (2 ** 900000) }}", "{{ (-9) ** 99999999 }}",
        "{% include '/etc/passwd' %}", "{% import 'x' as y %}", "{% extends 'a' %}",
    ],
)  # fmt: skip
def test_a_template_that_fills_the_memory_or_reads_files_is_refused(source: str) -> None:
    item = interaction([("user", "a secret")], datetime(2025, 3, 1, tzinfo=UTC))
    with pytest.raises(ScoringError, match="refuses this conversation"):
        compile_template(source)(item, "")


def test_a_long_conversation_that_looks_back_from_each_turn_is_within_bounds() -> None:
    item = interaction([("user", "x")] * 900, datetime(2025, 3, 1, tzinfo=UTC))
    source = (
        "{% for m in messages %}{% for n in messages[:loop.index0] %}{% endfor %}{{ m.content }}"
        "{% endfor %}"
    )
    assert compile_template(source)(item, "") == "x" * 900
