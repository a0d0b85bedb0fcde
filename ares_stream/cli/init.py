"""`ares init`: a settings file for one's own topic, from a sample of its records."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ares_stream.records.mapping import Mapping

SAMPLE = 100
MESSAGES = (
    "messages",
    "request.messages",
    "body.messages",
    "input.messages",
    "request.body.messages",
)
PROMPTS = (
    "prompt", "request.prompt", "request.text", "question", "query", "instruction", "input",
    "inputs", "request.input", "user_message", "q", "text",
)  # fmt: skip
RESPONSES = (
    "response", "answer", "completion", "output", "reply", "response.text", "response.content",
    "output.text", "generated_text", "assistant_message", "a",
)  # fmt: skip
CHOICES = (
    "choices[0].message.content", "response.choices[0].message.content",
    "response.body.choices[0].message.content", "choices[0].text",
)  # fmt: skip
"""Of records without a model, which no preset takes; a preset reads more of all others."""
IDS = ("id", "request_id", "request.id", "response.id", "trace_id", "uuid")
TIMES = ("occurred_at", "created", "created_at", "timestamp", "time", "ts", "response.created")
OBSERVED = ("traceId", "trace_id", "observations", "batch")
"""By which Langfuse's records are known."""
MODELS = ("model", "request.model", "response.model", "policy.name", "model_name")
"""Where records of chat services usually have these, most usual first."""


def command(
    topic: Annotated[str, typer.Option(help="The topic that holds your conversations.")],
    sample: Annotated[
        Path | None,
        typer.Option(help="Its records as JSON lines; without it the topic is read."),
    ] = None,
    bootstrap: Annotated[str, typer.Option(help="host:port,... of your Kafka.")] = "127.0.0.1:9092",
    out: Annotated[Path, typer.Option(help="Settings file to write; must not exist.")] = Path(
        "ares.yaml"
    ),
    harm: Annotated[Path, typer.Option(help="Bundle of the harm judge.")] = Path("bundles/judge"),
    reward: Annotated[Path, typer.Option(help="Bundle of the reward model.")] = Path(
        "bundles/reward"
    ),
) -> None:
    """Find out how your records are to be read, and write a settings file for them.

    Looks at up to 100 records. Exits 0; 1 when no usual form fits, with the fields that there are;
    2 for a wrong option; 3 without a broker.
    """
    import yaml

    from ares_stream.errors import SettingsError
    from ares_stream.files import written_whole

    if out.exists():
        raise SettingsError(f"--out {out}: exists; name another, or remove it")
    records = sampled(sample) if sample else asyncio.run(_of_topic(topic, bootstrap))
    if not records:
        raise SettingsError(f"{sample or topic}: holds no records; send some, or give --sample")
    read, mapping = usual_mapping(records)
    if not read:
        typer.echo(f"none of {len(records)} records is of a usual form; its fields:", err=True)
        for name in _fields(records):
            typer.echo(f"  {name}", err=True)
        typer.echo("write a mapping of them and try it with `ares map try`", err=True)
        raise typer.Exit(1)
    entry: dict[str, Any] = {"topic": topic, "lane": "production"}
    if mapping:
        entry["map"] = mapping
    settings = {
        "kafka": {"bootstrap": bootstrap},
        "scorer": {"harm": [str(harm)], "reward": str(reward), "inputs": [entry]},
    }
    text = f"# {read} of {len(records)} sampled records are read with this map.\n"
    with written_whole(out) as stream:
        stream.write((text + yaml.safe_dump(settings, sort_keys=False)).encode())
    typer.echo(
        f"{out}: {read} of {len(records)} records are read; next: `ares doctor --settings {out}`"
    )


def sampled(path: Path) -> list[bytes]:
    """The first records of a file. Raises InputError where it cannot be read."""
    from ares_stream.files import open_lines

    with open_lines(path) as lines:
        return [line for line, _ in zip((line for _, line in lines), range(SAMPLE), strict=False)]


async def _of_topic(topic: str, bootstrap: str) -> list[bytes]:
    """The last records, as many from each partition."""
    from ares_stream.cli.topics import connect
    from ares_stream.streaming.reader import read, snapshot

    _, connection = connect(None, bootstrap)
    ranges = await snapshot(connection, [topic])
    each = max(1, SAMPLE // len(ranges))
    last = [item.model_copy(update={"start": max(item.start, item.end - each)}) for item in ranges]
    return [record.value async for record in read(connection, last) if record.value]


def usual_mapping(records: Sequence[bytes]) -> tuple[int, dict[str, Any] | str | None]:
    """How many records are read by the mapping that reads most, and the mapping; None where the
    records are Interactions already."""
    best: tuple[int, dict[str, Any] | str | None] = (_count(records, None), None)
    if best[0] == len(records):
        return best
    for candidate in _candidates(records):
        count = _count(records, candidate)
        if count > best[0]:
            best = (count, candidate)
        if count == len(records):
            break
    return best


def _candidates(records: Sequence[bytes]) -> Iterator[dict[str, Any] | str]:
    """Mappings of which every part finds something in the first record of JSON, and presets."""
    import jmespath

    first = next((found for record in records if (found := _document(record)) is not None), None)
    if first is None:
        return

    def present(names: Sequence[str], kind: type | tuple[type, ...]) -> list[str]:
        return [name for name in names if isinstance(jmespath.search(name, first), kind)]

    prompts = [("messages", name) for name in present(MESSAGES, list)]
    prompts += [("prompt", name) for name in present(PROMPTS, str)]
    extra: dict[str, Any] = {}
    for field, names, kind in (
        ("id", IDS, str),
        ("occurred_at", TIMES, (str, int, float)),
    ):
        if found := present(names, kind):
            extra[field] = found[0]
    models = present(MODELS, str)
    extra["policy"] = {"name": models[0] if models else "'policy'", "version": "'unknown'"}
    for responses in (RESPONSES, CHOICES):
        for (field, prompt), response in product(prompts, present(responses, str)):
            if prompt != response:
                yield {field: prompt, "response": response, **extra}
                yield {field: prompt, "response": response, "policy": extra["policy"]}
        if responses is RESPONSES:
            yield from _presets(first)


def _presets(first: Any) -> Iterator[str]:
    """The most particular first: each reads some of the others' records, and less of them."""
    from ares_stream.records.presets import PRESETS

    traced = isinstance(first, dict) and any(name in first for name in OBSERVED)
    order = (*(["langfuse"] if traced else []), "otel-genai", "litellm", "anthropic", "openai")
    yield from dict.fromkeys((*order, *PRESETS))


def _document(record: bytes) -> Any:
    """None for what is no JSON."""
    from ares_stream.errors import DecodeError
    from ares_stream.files import parse_json

    try:
        return parse_json(record)
    except DecodeError:
        return None


def _count(records: Sequence[bytes], mapping: dict[str, Any] | str | None) -> int:
    from ares_stream.errors import InputError
    from ares_stream.records.decoding import DecodingLimits, decode_interaction
    from ares_stream.records.mapping import Mapping

    rules: Mapping | None = Mapping.model_validate(mapping) if mapping else None
    count = 0
    for record in records:
        try:
            decode_interaction(b"sample", record, (), DecodingLimits(), rules, timestamp_ms=0)
        except InputError:
            continue
        count += 1
    return count


def _fields(records: Sequence[bytes]) -> list[str]:
    """Names of the first record's fields, two levels deep. Never a value."""
    first = _document(records[0])
    if first is None:
        return ["(not JSON)"]
    if not isinstance(first, dict):
        return [f"(a {type(first).__name__}, no object)"]
    names = []
    for name, value in first.items():
        names.append(str(name))
        if isinstance(value, dict):
            names += [f"{name}.{inner}" for inner in value]
    return names
