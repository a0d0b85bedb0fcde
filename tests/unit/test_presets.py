"""Records of widespread tools go in as they are written: no answer is lost, none made up."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.errors import InputError, MappingError
from ares_stream.records.decoding import DecodingLimits, decode_interaction, decode_interactions
from ares_stream.records.interaction import Interaction
from ares_stream.records.mapping import Mapping, load_mapping
from ares_stream.records.presets import PRESETS

SECRET = "the words of a user"
KEY = b"key-1"


def read(name: str, document: Any, **more: Any) -> tuple[Interaction, ...]:
    rules = Mapping.model_validate({"preset": name, **more})
    raw = json.dumps(document).encode()
    return decode_interactions(
        KEY, raw, (), DecodingLimits(), rules, timestamp_ms=1_700_000_000_000
    )


def one(name: str, document: Any) -> Interaction:
    [interaction] = read(name, document)
    return interaction


def said(interaction: Interaction) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in interaction.messages]


REQUEST = {"model": "gpt-x", "messages": [{"role": "user", "content": SECRET}]}


def completion(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    choices = [
        {"index": place, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
        for place, message in enumerate(messages)
    ]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "gpt-x-2026-01",
        "choices": choices,
        **more,
    }


@pytest.mark.parametrize(
    "document",
    [
        {"request": REQUEST, "response": completion({"content": "yes"})},
        {"request": {"body": REQUEST}, "response": {"status_code": 200,
                                                     "body": completion({"content": "yes"})}},
        {"body": REQUEST, "response": completion({"content": "yes"})},
        {**REQUEST, **completion({"content": "yes"})},
        {"request": json.dumps(REQUEST), "response": json.dumps(completion({"content": "yes"}))},
    ],
    ids=["side by side", "bodies", "batch joined", "one object", "as text"],
)  # fmt: skip
def test_a_completion_with_its_request_in_every_arrangement(document: Any) -> None:
    found = one("openai", document)
    assert said(found) == [("user", SECRET)]
    assert found.response == "yes"
    assert found.id == "chatcmpl-1"
    assert found.occurred_at.year == 2025
    # In one object the answer's model stands in the place of the one that was asked for.
    assert found.policy.name == ("gpt-x" if "request" in document or "body" in document
                                 else "gpt-x-2026-01")  # fmt: skip
    assert found.policy.version == "gpt-x-2026-01"
    assert found.attributes == {}


def test_each_choice_is_a_conversation_of_its_own() -> None:
    answers: list[dict[str, Any]] = [
        {"content": "a"},
        {"content": "b"},
        {"content": None, "refusal": "no"},
    ]
    found = read("openai", {"request": REQUEST, "response": completion(*answers)})
    assert [item.response for item in found] == ["a", "b", "no"]
    assert [item.id for item in found] == ["chatcmpl-1/1", "chatcmpl-1/2", "chatcmpl-1/3"]


def test_a_record_of_a_topic_with_several_answers_is_refused_with_their_number() -> None:
    raw = json.dumps({"request": REQUEST, "response": completion(*[{"content": "a"}] * 3)})
    with pytest.raises(MappingError, match=r"^3 conversations in one record") as caught:
        decode_interaction(KEY, raw.encode(), (), DecodingLimits(), Mapping(preset="openai"))
    assert SECRET not in str(caught.value)


def test_parts_calls_refusals_and_functions_are_read_and_what_is_no_text_is_named() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text",
                                                                      "text": "two"},
                                     {"type": "image_url", "image_url": {"url": "data:x"}}]},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "out"}]},
        {"role": "assistant", "function_call": {"name": "g", "arguments": "{}"}},
        {"role": "function", "name": "g", "content": "older"},
    ]  # fmt: skip
    answer = {"content": [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]}
    found = one("openai", {"request": {"model": "m", "messages": messages},
                           "response": completion(answer)})  # fmt: skip
    assert said(found) == [
        ("developer", "Be brief."), ("user", "one\ntwo"), ("assistant", ""), ("tool", "out"),
        ("assistant", ""), ("tool", "older"),
    ]  # fmt: skip
    assert found.response == "hello"
    assert found.attributes == {"left_out": "image_url,tool_calls"}


def test_an_answer_that_calls_a_tool_is_empty_and_says_why() -> None:
    response = completion({"content": None, "tool_calls": [{"id": "1"}]})
    response["choices"][0]["finish_reason"] = "tool_calls"
    found = one("openai", {"request": REQUEST, "response": response})
    assert found.response == ""
    assert found.attributes == {"finish": "tool_calls", "left_out": "tool_calls"}


def test_older_completions_responses_and_training_files_are_read_too() -> None:
    old = {"model": "m", "prompt": "p", "choices": [{"text": "a"}, {"text": "b"}], "id": "c"}
    assert [item.response for item in read("openai", old)] == ["a", "b"]
    responses = {
        "request": {"model": "m", "instructions": "Be kind.", "input": "hello"},
        "response": {
            "id": "resp_1", "created_at": 1_760_000_000, "model": "m-1", "status": "completed",
            "error": None,
            "output": [
                {"type": "reasoning", "summary": []},
                {"type": "function_call", "name": "f", "arguments": "{}"},
                {"type": "message", "role": "assistant",
                 "content": [{"type": "output_text", "text": "hi"}]},
            ],
        },
    }  # fmt: skip
    found = one("openai", responses)
    assert said(found) == [("system", "Be kind."), ("user", "hello")]
    assert (found.response, found.attributes) == ("hi", {"left_out": "function_call"})
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    trained = one("openai", {"messages": turns, "model": "m"})
    assert (said(trained), trained.response, trained.id) == ([("user", "q")], "a", "key-1")


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"response": completion({"content": "x"})}, "messages: missing; of a batch, join"),
        ({"request": REQUEST, "response": {"error": {"message": "x"}}}, "an error in the place"),
        ({"request": REQUEST, "response": completion()}, "choices: is empty"),
        ({"request": REQUEST, "response": {"choices": [{"delta": {"content": "x"}}]}},
         r"choices\[0\]: a piece of a stream"),
        ({"request": REQUEST, "response": {"choices": [{}]}}, r"choices\[0\].message: missing"),
        ({"request": REQUEST}, "the last message is not one either"),
        ({"request": {"messages": REQUEST["messages"]}, "response": {"choices": [{"text": "x"}]}},
         "model: missing"),
        ({"request": {"model": "m", "messages": [{"role": "king", "content": "x"}]},
          "response": completion({"content": "x"})}, r"messages\[0\].role: expected one of"),
        ({"request": {"model": "m", "messages": [{"role": "user", "content": 3}]},
          "response": completion({"content": "x"})}, r"messages\[0\].content: expected text"),
        ([], "messages"),
        (3, "openai: expected an object"),
    ],
)  # fmt: skip
def test_what_holds_no_conversation_is_refused_with_the_place(document: Any, reason: str) -> None:
    with pytest.raises(MappingError, match=reason) as caught:
        read("openai", document)
    assert SECRET not in str(caught.value)


LITELLM = {
    "id": "call-1",
    "trace_id": "t",
    "call_type": "acompletion",
    "status": "success",
    "startTime": 1_760_000_000.5,
    "endTime": 1_760_000_001.5,
    "model": "azure/gpt-x",
    "model_group": "gpt-x",
    "messages": [{"role": "user", "content": SECRET}],
    "response": completion({"content": "yes"}),
}


def test_litellm_payloads_are_read() -> None:
    found = one("litellm", LITELLM)
    assert (said(found), found.response) == ([("user", SECRET)], "yes")
    assert (found.id, found.policy.name, found.policy.version) == ("call-1", "gpt-x",
                                                                   "gpt-x-2026-01")  # fmt: skip
    assert found.occurred_at.isoformat() == "2025-10-09T08:53:20.500000+00:00"
    assert one("litellm", {"kwargs": {"standard_logging_object": LITELLM}}).id == "call-1"
    assert one("litellm", LITELLM | {"messages": "hi", "response": "yo"}).response == "yo"
    several = LITELLM | {"response": completion({"content": "a"}, {"content": "b"})}
    assert [item.id for item in read("litellm", several)] == ["call-1/1", "call-1/2"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "failure"}, "status: the call failed"),
        ({"call_type": "aembedding", "response": {"data": []}}, "the kind aembedding"),
        ({"messages": [{"role": "user", "content": "redacted-by-litellm"}]}, "redacted"),
        ({"messages": None}, "messages: expected messages"),
        ({"model": None, "model_group": None}, "model: missing"),
    ],
)
def test_litellm_calls_without_a_conversation_are_refused(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MappingError, match=reason):
        read("litellm", LITELLM | change)


GENERATION = {
    "id": "obs-1",
    "traceId": "tr-1",
    "type": "GENERATION",
    "startTime": "2026-01-02T03:04:05.678Z",
    "model": "gpt-x",
    "input": [{"role": "user", "content": SECRET}],
    "output": {"role": "assistant", "content": "yes"},
}
SPAN = {"id": "span-1", "type": "SPAN", "input": "x", "output": "y"}


def test_langfuse_observations_are_read_in_both_spellings() -> None:
    found = one("langfuse", GENERATION)
    assert (found.id, found.response, found.policy.name) == ("obs-1", "yes", "gpt-x")
    blob = {
        "id": "obs-1", "trace_id": "tr-1", "type": "GENERATION", "provided_model_name": "gpt-x",
        "start_time": "2026-01-02 03:04:05.678000", "end_time": "2026-01-02 03:04:06.000000",
        "input": json.dumps({"messages": GENERATION["input"]}), "output": json.dumps("yes"),
    }  # fmt: skip
    other = one("langfuse", blob | {"output": json.dumps(GENERATION["output"])})
    assert said(other) == said(found)
    assert (other.response, other.occurred_at.isoformat()) == ("yes", "2026-01-02T03:04:06+00:00")


@pytest.mark.parametrize(
    "arrange",
    [
        lambda rows: {"id": "tr-1", "input": "q", "output": "a", "observations": rows},
        lambda rows: {"data": rows, "meta": {"page": 1}},
        lambda rows: rows,
        lambda rows: {"batch": [{"id": "e", "timestamp": "2026-01-01T00:00:00Z",
                                 "type": f"{row['type'].lower()}-create", "body": row}
                                for row in rows]},
    ],
    ids=["trace", "page", "array", "ingestion"],
)  # fmt: skip
def test_every_generation_of_a_record_is_a_conversation_and_no_span_is(arrange: Any) -> None:
    second = GENERATION | {"id": "obs-2", "output": "second"}
    found = read("langfuse", arrange([SPAN, GENERATION, second]))
    assert [(item.id, item.response) for item in found] == [("obs-1", "yes"), ("obs-2", "second")]
    with pytest.raises(MappingError, match="none of 1 observations is a generation"):
        read("langfuse", arrange([SPAN]))


def test_a_generation_without_an_output_refuses_the_record_instead_of_being_left_out() -> None:
    bad = GENERATION | {"id": "obs-2", "output": None}
    with pytest.raises(MappingError, match=r"observations\[1\]\.output: missing"):
        read("langfuse", {"observations": [GENERATION, bad]})


def test_the_turns_of_an_output_stay_turns() -> None:
    output = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "it is 42"},
    ]
    found = one("langfuse", GENERATION | {"output": output})
    assert said(found)[1:] == [("assistant", ""), ("tool", "42")]
    assert found.response == "it is 42"


def otlp(**attributes: Any) -> list[dict[str, Any]]:
    return [
        {"key": name, "value": {"stringValue": value if isinstance(value, str)
                                else json.dumps(value)}}
        for name, value in attributes.items()
    ]  # fmt: skip


def span(number: int = 1, change: dict[str, Any] | None = None) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-x",
        "gen_ai.response.model": "gpt-x-2026-01",
        "gen_ai.system_instructions": [{"type": "text", "content": "Be brief."}],
        "gen_ai.input.messages": [
            {"role": "user", "parts": [{"type": "text", "content": SECRET}]},
            {"role": "assistant", "parts": [{"type": "tool_call", "id": "1", "name": "f"}]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1",
                                        "response": "out"}]},
        ],
        "gen_ai.output.messages": [
            {"role": "assistant", "parts": [{"type": "text", "content": "yes"}],
             "finish_reason": "stop"},
        ],
        **(change or {}),
    }  # fmt: skip
    kept = {name: value for name, value in attributes.items() if value is not None}
    return {
        "traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": f"eee19b7ec3c1b17{number}",
        "endTimeUnixNano": "1760000000500000000",
        "attributes": otlp(**kept),
    }


def export(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {"attributes": []},
                               "scopeSpans": [{"scope": {}, "spans": list(spans)}]}]}  # fmt: skip


HTTP = {"traceId": "1", "spanId": "2", "attributes": otlp(**{"http.method": "POST"})}
AGENT = {"traceId": "1", "spanId": "3",
         "attributes": otlp(**{"gen_ai.operation.name": "invoke_agent"})}  # fmt: skip


def test_spans_of_opentelemetry_are_read_each() -> None:
    found = read("otel-genai", export(HTTP, span(1), AGENT, span(2)))
    assert len({item.id for item in found}) == 2
    assert said(found[0]) == [
        ("system", "Be brief."), ("user", SECRET), ("assistant", ""), ("tool", "out"),
    ]  # fmt: skip
    assert found[0].response == "yes"
    assert (found[0].policy.name, found[0].policy.version) == ("gpt-x", "gpt-x-2026-01")
    assert found[0].occurred_at.isoformat() == "2025-10-09T08:53:20.500000+00:00"
    assert found[0].attributes == {"left_out": "tool_call"}


def test_each_output_message_is_an_answer_of_its_own() -> None:
    outputs = [{"role": "assistant", "parts": [{"type": "text", "content": text}]}
               for text in "ab"]  # fmt: skip
    found = read("otel-genai", span(1, {"gen_ai.output.messages": outputs}))
    assert [item.response for item in found] == ["a", "b"]


def test_a_span_without_content_refuses_the_record_and_says_what_to_set() -> None:
    with pytest.raises(MappingError, match=r"spans\[1\].*CAPTURE_MESSAGE_CONTENT"):
        read("otel-genai", export(span(1), span(2, {"gen_ai.output.messages": None})))
    with pytest.raises(MappingError, match="none of 2 spans asks a model"):
        read("otel-genai", export(HTTP, AGENT))


@pytest.mark.parametrize(
    "document",
    [
        {"context": {"trace_id": "0x1", "span_id": "0x2"}, "end_time": "2026-01-02T03:04:05Z",
         "attributes": {"gen_ai.request.model": "m"},
         "events": [
             {"name": "gen_ai.content.prompt",
              "attributes": {"gen_ai.prompt": json.dumps([{"role": "user", "content": "q"}])}},
             {"name": "gen_ai.content.completion",
              "attributes": {"gen_ai.completion": json.dumps([{"role": "assistant",
                                                               "content": "a"}])}},
         ]},
        {"attributes": {"gen_ai.request.model": "m", "gen_ai.prompt.0.role": "user",
                        "gen_ai.prompt.0.content": "q", "gen_ai.completion.0.content": "a",
                        "gen_ai.completion.0.role": "assistant"}},
        {"timeUnixNano": "1760000000500000000", "eventName":
         "gen_ai.client.inference.operation.details",
         "attributes": [
             {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
             {"key": "gen_ai.request.model", "value": {"stringValue": "m"}},
             {"key": "gen_ai.input.messages", "value": {"arrayValue": {"values": [
                 {"kvlistValue": {"values": [
                     {"key": "role", "value": {"stringValue": "user"}},
                     {"key": "parts", "value": {"arrayValue": {"values": [
                         {"kvlistValue": {"values": [
                             {"key": "type", "value": {"stringValue": "text"}},
                             {"key": "content", "value": {"stringValue": "q"}}]}}]}}}]}}]}}},
             {"key": "gen_ai.output.messages", "value": {"stringValue": json.dumps(
                 [{"role": "assistant", "parts": [{"type": "text", "content": "a"}]}])}},
         ]},
    ],
    ids=["events", "numbered", "structured event"],
)  # fmt: skip
def test_older_and_structured_forms_of_opentelemetry_are_read(document: Any) -> None:
    found = one("otel-genai", document)
    assert (said(found), found.response) == ([("user", "q")], "a")


def test_a_preset_is_named_in_settings_in_a_file_and_on_the_command_line(tmp_path: Path) -> None:
    assert Mapping.model_validate("openai").preset == "openai"
    assert load_mapping(Path("otel-genai")).preset == "otel-genai"
    file = tmp_path / "map.yaml"
    file.write_text("preset: openai\nattributes: {tenant: request.user}\n")
    [found] = load_mapping(file).apply_all(
        {"request": REQUEST | {"user": "acme"}, "response": completion({"content": "yes"})}
    )
    assert found.attributes == {"tenant": "acme"}
    file.write_text("preset: openai\nresponse: x\n")
    with pytest.raises(MappingError, match="response: the preset openai maps it"):
        load_mapping(file)
    file.write_text("preset: opnai\n")
    with pytest.raises(MappingError, match=r"preset: expected 'openai', 'anthropic'"):
        load_mapping(file)
    file.write_text("prompt: a\n")
    with pytest.raises(MappingError, match="response: missing; or name a preset"):
        load_mapping(file)


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x-2026",
    "content": [
        {"type": "thinking", "thinking": "nobody sees this"},
        {"type": "text", "text": "ye"},
        {"type": "text", "text": "s"},
    ],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
ASKED = {"model": "claude-x", "max_tokens": 9, "messages": REQUEST["messages"]}


@pytest.mark.parametrize(
    "document",
    [
        {"request": ASKED, "response": MESSAGE},
        {"request": {"body": ASKED}, "response": {"body": MESSAGE}},
        {"request": json.dumps(ASKED), "response": json.dumps(MESSAGE)},
        {"custom_id": "r-1", "params": ASKED, "result": {"type": "succeeded", "message": MESSAGE}},
        {**ASKED, "response": MESSAGE},
    ],
    ids=["side by side", "bodies", "as text", "batch joined", "in the request"],
)  # fmt: skip
def test_anthropics_messages_are_read_in_every_arrangement(document: Any) -> None:
    found = one("anthropic", document)
    assert said(found) == [("user", SECRET)]
    assert (found.response, found.id) == ("yes", "msg_1")
    assert (found.policy.name, found.policy.version) == ("claude-x", "claude-x-2026")
    assert found.attributes == {}


def test_what_anthropics_messages_hold_beside_text_is_read_or_named() -> None:
    request = {
        "model": "claude-x",
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "look"},
                                         {"type": "image", "source": {"type": "base64"}}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f",
                                               "input": {}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t",
                 "content": [{"type": "text", "text": "sunny"}, {"type": "image"}]},
                {"type": "tool_result", "tool_use_id": "u", "content": "cold"}]},
        ],
    }  # fmt: skip
    found = one("anthropic", {"request": request, "response": MESSAGE})
    assert said(found) == [
        ("system", "Be brief."), ("user", "look"), ("assistant", ""), ("user", "sunny\ncold"),
    ]  # fmt: skip
    assert found.attributes == {"left_out": "image,tool_use"}


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("max_tokens", "length"), ("tool_use", "tool_calls"), ("refusal", "content_filter"),
     ("stop_sequence", None), ("pause_turn", "pause_turn"), (None, None), (3, "3")],
)  # fmt: skip
def test_why_anthropics_answer_ended_is_said_in_the_words_of_the_others(
    reason: Any, finish: str | None
) -> None:
    answer = {**MESSAGE, "stop_reason": reason}
    found = one("anthropic", {"request": ASKED, "response": answer})
    assert found.attributes.get("finish") == finish


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"request": ASKED, "response": {"type": "error", "error": {"type": "overloaded_error"}}},
         "response: an error"),
        ({"params": ASKED, "result": {"type": "errored", "error": {}}}, "response: an error"),
        ({"params": ASKED, "result": {"type": "expired"}}, "response: an error"),
        ({"result": {"type": "succeeded", "message": MESSAGE}}, "messages: missing; of a message"),
        ({"request": ASKED, "response": {"type": "message"}}, "content: missing"),
        ({"request": ASKED, "response": {**MESSAGE, "content": 3}}, "response.content: expected"),
        ({"request": {"messages": ASKED["messages"]}, "response": {"content": "x"}}, "model: miss"),
    ],
)  # fmt: skip
def test_what_holds_no_message_of_anthropics_is_refused(document: Any, reason: str) -> None:
    with pytest.raises(MappingError, match=f"^{reason}"):
        one("anthropic", document)


@pytest.mark.parametrize("at", [10**400, -(10**400), float("inf"), True, [1], "9" * 400, "soon"],
                         ids=["huge", "low", "inf", "true", "list", "digits", "word"])  # fmt: skip
@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_a_time_that_is_none_is_refused_by_its_field(name: str, at: Any) -> None:
    answer: dict[str, Any] = MESSAGE if name == "anthropic" else completion({"content": "yes"})
    document = {"request": ASKED, "response": {**answer, "created": None}, "timestamp": at}
    with pytest.raises(MappingError, match=r"^occurred_at: "):
        Mapping(preset=name).apply_all(document, key=KEY, timestamp_ms=1)  # type: ignore[arg-type]


WHOLE: list[tuple[str, Any]] = [
    ("anthropic", {"request": {**ASKED, "system": "x"}, "response": MESSAGE}),
    ("openai", {"request": REQUEST, "response": completion({"content": "yes"})}),
    ("litellm", LITELLM),
    ("langfuse", {"observations": [SPAN, GENERATION]}),
    ("otel-genai", export(HTTP, span(1))),
]


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(document, dict):
        for name, inner in document.items():
            found += places(inner, (*path, name))
    elif isinstance(document, list):
        for number, inner in enumerate(document):
            found += places(inner, (*path, number))
    return found


PLACES = [(name, path) for name, document in WHOLE for path in places(document) if path]
NAMES = st.text(max_size=4) | st.sampled_from(
    ["content", "text", "type", "role", "values", "arrayValue", "kvlistValue", "intValue", "key",
     "value", "events", "attributes", "gen_ai.prompt.\u00b2.content", "error", "message"]
)  # fmt: skip
ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from([10**400, -(10**400), 10**4000, "\u00b2", "--1", "9" * 5000, "{", "[]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(PLACES), ODD)
def test_whatever_stands_in_a_field_is_conversations_or_one_reason(
    place: tuple[str, tuple[Any, ...]], odd: Any
) -> None:
    name, path = place
    document = copy.deepcopy(dict(WHOLE)[name])
    inside = document
    for part in path[:-1]:
        inside = inside[part]
    inside[path[-1]] = odd
    try:
        found = Mapping(preset=name).apply_all(document, key=KEY, timestamp_ms=1)  # type: ignore[arg-type]
    except InputError as error:
        text = str(error)
    else:
        text = ""
        assert found
        assert len({item.id for item in found}) == len(found)
        assert all(Interaction.decode(item.encode()) == item for item in found)
    assert SECRET not in text


@given(st.sampled_from(PRESETS), ODD)
def test_any_document_is_conversations_or_one_reason(name: str, document: Any) -> None:
    try:
        Mapping(preset=name).apply_all(document, key=KEY, timestamp_ms=1)  # type: ignore[arg-type]
    except InputError:
        return
