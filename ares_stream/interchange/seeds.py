"""Prompts and answers that other red-teaming tools collected.

A file becomes seeds. Seeds become a taxonomy (each seed is a topic, said as it is; the search
varies who asks and how) or, where the tool kept the policy's answer, conversations that
`ares scan` reads. Formats:

| name | file | read |
|---|---|---|
| garak | hit log or report, JSON lines | goal, prompt, output or outputs, probe, detector |
| pyrit | seed dataset, YAML | seeds[].value, harm_categories (older files: prompts[]) |
| harmbench | behaviours, CSV | Behavior, SemanticCategory, ContextString, BehaviorID |
| jailbreakbench | artefact, JSON | jailbreaks[].goal, prompt, response, category |
| evals | openai/evals samples or log, JSON lines | input, or the sampling events |
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml

from ares_stream.errors import FileFormatError, SettingsError
from ares_stream.probes.taxonomy import load_taxonomy
from ares_stream.records.base import digest
from ares_stream.records.interaction import Interaction, Message, Policy

MAX_FILE_BYTES: Final = 512 << 20
"""Seed files are small; a file of another kind, given by mistake, must not fill the memory."""
_ROLES: Final = {"system", "developer", "user", "assistant", "tool"}


@dataclass(frozen=True, slots=True)
class Seed:
    """One prompt. `id` is made of its content, so equal prompts are one seed."""

    id: str
    messages: tuple[Message, ...]
    category: str = ""
    response: str | None = None
    line: int = 0

    @property
    def request(self) -> str:
        """The last user turn."""
        return next(turn.content for turn in reversed(self.messages) if turn.role == "user")


def read_seeds(file: Path, form: str) -> tuple[Seed, ...]:
    """Every usable entry of a file, in order; an entry without any prompt (a null in
    JailbreakBench) is left out as that format means it.

    Raises FileFormatError with line and field, SettingsError for an unknown format or a file
    that cannot be read or holds no seed.
    """
    reader = _READERS.get(form)
    if reader is None:
        raise SettingsError(f"format {form}: unknown; one of {', '.join(FORMATS)}")
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise SettingsError(f"{file}: larger than {MAX_FILE_BYTES >> 20} MiB; split it")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise FileFormatError(str(file), line, "not UTF-8") from None
    seeds = tuple(reader(_Source(str(file)), text))
    if not seeds:
        raise SettingsError(f"{file}: holds no prompt in the format {form}")
    return seeds


def as_taxonomy(seeds: Sequence[Seed]) -> dict[str, Any]:
    """A taxonomy file's content, to merge over the default one: topics are the seeds, goals
    say them as they are; personas, tactics and transforms stay."""
    default = load_taxonomy()
    # A tactic that names the topic in a sentence of its own cannot take a whole request there.
    about = [
        name
        for name, tactic in default.tactics.items()
        if any("{topic}" in turn.content for turns in tactic.phrases for turn in turns)
    ]
    return {
        "disable": {
            "topics": list(default.topics),
            "goals": list(default.goals),
            "tactics": about,
        },
        "topics": {seed.id: {"phrases": [seed.request]} for seed in seeds},
        "goals": {"as_given": {"phrases": ["{topic}"]}},
    }


def as_interactions(seeds: Sequence[Seed], form: str, at: datetime) -> Iterator[Interaction]:
    """The seeds that were answered, as conversations to score. They are of the production
    lane: nobody recorded with which probability they were drawn."""
    for place, seed in enumerate(seeds):
        if seed.response is not None:
            attributes = {"source": form}
            if seed.category:
                attributes["category"] = seed.category
            yield Interaction(
                id=f"{form}-{place:06d}-{seed.id}",
                occurred_at=at,
                messages=seed.messages,
                response=seed.response,
                policy=Policy(name="imported", version=form),
                attributes=attributes,
            )


@dataclass(frozen=True, slots=True)
class _Source:
    """The file, for messages that name it."""

    name: str

    def bad(self, line: int, reason: str) -> FileFormatError:
        return FileFormatError(self.name, line, reason)

    def text(self, row: dict[str, Any], field: str, line: int) -> str:
        value = row.get(field)
        if not isinstance(value, str) or not value.strip():
            raise self.bad(line, f"{field}: expected text")
        return value

    def seed(
        self, line: int, field: str, turns: Any, category: Any = "", response: Any = None
    ) -> Seed:
        """`turns`: text, or a list of role and content."""
        if isinstance(turns, str):
            turns = [{"role": "user", "content": turns}]
        messages = []
        for place, turn in enumerate(turns if isinstance(turns, list) else []):
            role = turn.get("role") if isinstance(turn, dict) else None
            content = turn.get("content") if isinstance(turn, dict) else None
            if isinstance(content, dict):  # garak: content.text
                content = content.get("text")
            if role not in _ROLES or not isinstance(content, str):
                raise self.bad(line, f"{field}.{place}: expected role and content")
            messages.append(Message(role=role, content=content))
        if not any(turn.role == "user" and turn.content.strip() for turn in messages):
            raise self.bad(line, f"{field}: expected text, or turns with one of role user")
        if response is not None and not isinstance(response, str):
            raise self.bad(line, f"{field}: its answer is not text")
        return Seed(
            digest([[turn.role, turn.content] for turn in messages])[:16],
            tuple(messages),
            re.sub(r"\s+", " ", category)[:128] if isinstance(category, str) else "",
            response,
            line,
        )

    def rows(self, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """JSON lines; each is an object."""
        for line, raw in enumerate(text.split("\n"), 1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw)
            except (ValueError, RecursionError):
                raise self.bad(line, "not JSON") from None
            if not isinstance(row, dict):
                raise self.bad(line, "expected an object")
            yield line, row


def _garak(source: _Source, text: str) -> Iterator[Seed]:
    """Hit logs hold one hit per line; reports hold entries of many kinds, of which the
    finished attempts (status 2) are read."""
    for line, row in source.rows(text):
        entry = row.get("entry_type")
        if entry is not None and (entry != "attempt" or row.get("status") != 2):
            continue
        prompt = row.get("prompt")
        if isinstance(prompt, dict):
            prompt = prompt.get("turns")
        outputs = row.get("outputs", [row.get("output")])
        if not isinstance(outputs, list):
            raise source.bad(line, "outputs: expected a list")
        category = row.get("probe", row.get("probe_classname", ""))
        for output in outputs or [None]:
            answer = output.get("text") if isinstance(output, dict) else output
            yield source.seed(line, "prompt", prompt, category, answer)


def _pyrit(source: _Source, text: str) -> Iterator[Seed]:
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise source.bad(mark.line + 1 if mark else 1, "not YAML") from None
    if not isinstance(content, dict) or not isinstance(tree, yaml.MappingNode):
        raise source.bad(1, "expected a dataset with seeds")
    field = "prompts" if "prompts" in content else "seeds"
    rows = content.get(field)
    if not isinstance(rows, list):
        raise source.bad(1, f"{field}: expected a list")
    entries = next(value for key, value in tree.value if key.value == field)
    for place, (row, node) in enumerate(zip(rows, entries.value, strict=True)):
        line = node.start_mark.line + 1
        if not isinstance(row, dict):
            raise source.bad(line, f"{field}.{place}: expected fields such as value")
        if row.get("data_type", "text") != "text":
            raise source.bad(line, f"{field}.{place}.data_type: only text can be asked")
        categories = row.get("harm_categories") or content.get("harm_categories") or []
        if not isinstance(categories, list):
            raise source.bad(line, f"{field}.{place}.harm_categories: expected a list")
        value = source.text(row, "value", line)
        yield source.seed(line, f"{field}.{place}.value", value, ", ".join(map(str, categories)))


def _harmbench(source: _Source, text: str) -> Iterator[Seed]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    names = reader.fieldnames or []
    for field in ("Behavior", "BehaviorID"):
        if field not in names:
            raise source.bad(1, f"{field}: no such column; this is not a HarmBench CSV")
    try:
        for row in reader:
            behaviour = source.text(row, "Behavior", reader.line_num)
            context = row.get("ContextString")
            prompt = f"{context}\n\n---\n\n{behaviour}" if context else behaviour
            yield source.seed(reader.line_num, "Behavior", prompt, row.get("SemanticCategory"))
    except csv.Error as error:
        raise source.bad(reader.line_num, f"not CSV: {error}") from None


def _jailbreakbench(source: _Source, text: str) -> Iterator[Seed]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise source.bad(getattr(error, "lineno", 1), "not JSON") from None
    rows = content.get("jailbreaks") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise source.bad(1, "jailbreaks: expected a list")
    lines = _element_lines(text, len(rows))
    for place, (row, line) in enumerate(zip(rows, lines, strict=True)):
        if not isinstance(row, dict):
            raise source.bad(line, f"jailbreaks.{place}: expected fields such as prompt")
        if row.get("prompt") is not None:
            yield source.seed(
                line,
                f"jailbreaks.{place}.prompt",
                row["prompt"],
                row.get("category"),
                row.get("response"),
            )


def _element_lines(text: str, count: int) -> list[int]:
    """The line on which each element of "jailbreaks" begins."""
    decoder = json.JSONDecoder()
    at = text.index("[", text.index('"jailbreaks"')) + 1
    lines = []
    for _ in range(count):
        while text[at] in " \t\r\n,":
            at += 1
        lines.append(text.count("\n", 0, at) + 1)
        _, at = decoder.raw_decode(text, at)
    return lines


def _evals(source: _Source, text: str) -> Iterator[Seed]:
    for line, row in source.rows(text):
        if "input" in row:
            yield source.seed(line, "input", row["input"])
        elif row.get("type") == "sampling":
            data = row.get("data")
            if not isinstance(data, dict):
                raise source.bad(line, "data: expected prompt and sampled")
            sampled = data.get("sampled")
            answer = sampled[0] if isinstance(sampled, list) and sampled else sampled
            yield source.seed(line, "data.prompt", data.get("prompt"), "", answer)
        elif not {"spec", "final_report", "type"} & row.keys():
            raise source.bad(line, "input: missing, and this is no line of a log either")


_READERS: Final[dict[str, Callable[[_Source, str], Iterator[Seed]]]] = {
    "garak": _garak,
    "pyrit": _pyrit,
    "harmbench": _harmbench,
    "jailbreakbench": _jailbreakbench,
    "evals": _evals,
}
FORMATS: Final = tuple(_READERS)
