"""Prompts and answers that other red-teaming tools collected.

A file becomes seeds. Seeds become a taxonomy (each seed is a topic, said as it is; the search
varies who asks and how) or, where the tool kept the policy's answer, conversations that
`ares scan` reads. Formats:

| name | file | read |
|---|---|---|
| garak | hit log or report, JSON lines | goal, prompt, output, outputs or conversations, probe |
| pyrit | seed dataset, YAML | seeds[] (older: prompts[]): value, role, sequence, group, type |
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
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from ares_stream.errors import DecodeError, FileFormatError, SettingsError
from ares_stream.files import parse_json, parse_yaml, read_text
from ares_stream.probes.taxonomy import load_taxonomy
from ares_stream.records.base import digest
from ares_stream.records.interaction import Interaction, Message, Policy

_ROLES: Final = {"system", "developer", "user", "assistant", "tool"}
_MEDIA: Final = re.compile(
    r"\S+\.(?:png|jpe?g|gif|webp|bmp|wav|mp3|ogg|flac|mp4|avi|mov|pdf)", re.I
)
_TEMPLATE: Final = re.compile(
    r"\{\{-?\s*[a-zA-Z_]\w*\s*(?:[|.\[(][^{}]*)?-?\}\}|\{%-?\s*[a-z]+\b[^{}]*%\}"
)
_PYRIT_DEFAULTS: Final = ("data_type", "seed_type", "is_objective")
"""What a dataset may say once for all of its seeds."""


@dataclass(frozen=True, slots=True)
class Seed:
    """One prompt. `id` is made of its content, so equal prompts are one seed."""

    id: str
    messages: tuple[Message, ...]
    category: str = ""
    response: str | None = None

    @property
    def request(self) -> str:
        """The last user turn."""
        return next(turn.content for turn in reversed(self.messages) if turn.role == "user")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that cannot be used, and why; the reason quotes nothing of it."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Imported:
    """The usable entries of a file in order, and the rows that are none."""

    seeds: tuple[Seed, ...]
    skipped: tuple[Skipped, ...]


def read_seeds(file: Path, form: str) -> Imported:
    """Every usable entry of a file, in order; an entry without any prompt (a null in
    JailbreakBench) is left out as that format means it.

    A row that cannot be used is skipped with its line and reason. Raises FileFormatError with the
    line for a file that is not of the format as a whole, or of which no row can be used;
    SettingsError for an unknown format or a file that cannot be read or holds no seed.
    """
    reader = _READERS.get(form)
    if reader is None:
        raise SettingsError(f"format {form}: unknown; one of {', '.join(FORMATS)}")
    source = _Source(str(file))
    seeds: list[Seed] = []
    for line, make in reader(source, read_text(file)):
        try:
            seeds += make()
        except _Unusable as error:
            source.skipped.append(Skipped(error.line or line, error.reason))
    skipped = tuple(sorted(source.skipped, key=lambda item: item.line))
    if not seeds and skipped:
        more = f" (and {len(skipped) - 1:,} more rows)" if len(skipped) > 1 else ""
        raise FileFormatError(str(file), skipped[0].line, skipped[0].reason + more)
    if not seeds:
        raise SettingsError(f"{file}: holds no prompt in the format {form}")
    return Imported(tuple(seeds), skipped)


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


class _Unusable(Exception):
    """This row cannot be used; others may."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


_Row = tuple[int, Callable[[], list[Seed]]]
"""A line, and what makes the seeds of its row or raises _Unusable."""


@dataclass(frozen=True, slots=True)
class _Source:
    """The file, for messages that name it, and its rows that were passed over."""

    name: str
    skipped: list[Skipped] = field(default_factory=list)

    def bad(self, line: int, reason: str) -> FileFormatError:
        return FileFormatError(self.name, line, reason)

    def rows(self, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """JSON lines that are objects; others are skipped."""
        for line, raw in enumerate(text.split("\n"), 1):
            if not raw.strip():
                continue
            try:
                row = parse_json(raw.encode(errors="surrogatepass"))
            except DecodeError as error:
                self.skipped.append(Skipped(line, str(error)))
                continue
            if not isinstance(row, dict):
                self.skipped.append(Skipped(line, "expected an object"))
                continue
            yield line, row


def _seeds(place: str, turns: Any, category: Any = "", answers: Sequence[Any] = ()) -> list[Seed]:
    """One seed for each answer, or one without; answers that are no text are refused.

    `turns`: text, or a list of role and content. Raises _Unusable naming the place.
    """
    messages = _messages(place, turns)
    identity = digest([[turn.role, turn.content] for turn in messages])[:16]
    label = re.sub(r"\s+", " ", category)[:128] if isinstance(category, str) else ""
    texts = [answer for answer in answers if isinstance(answer, str)]
    if len(texts) < len(answers):
        missing = len(answers) - len(texts)
        raise _Unusable(f"{place}: {missing} of its {len(answers)} answers are not text")
    if not texts:
        return [Seed(identity, messages, label)]
    return [Seed(identity, messages, label, answer) for answer in texts]


def _messages(place: str, turns: Any) -> tuple[Message, ...]:
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    if not isinstance(turns, list):
        raise _Unusable(f"{place}: expected text, or turns of role and content")
    messages = []
    for number, turn in enumerate(turns):
        here = f"{place}.{number}"
        role: Any = turn.get("role") if isinstance(turn, dict) else None
        role = "tool" if role == "function" else role
        if role not in _ROLES:
            raise _Unusable(f"{here}: expected role and content")
        messages.append(Message(role=role, content=_content(here, turn.get("content"))))
    if not any(turn.role == "user" and turn.content.strip() for turn in messages):
        raise _Unusable(f"{place}: is empty; expected text of the user")
    return tuple(messages)


def _content(place: str, content: Any) -> str:
    """Text, also as garak's object and as parts; what is not text alone is refused."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):  # garak
        if content.get("data_path") or content.get("data_type"):
            raise _Unusable(f"{place}: is not text, and only text can be asked")
        content = content.get("text")
        if isinstance(content, str):
            return content
    if isinstance(content, list) and content:
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "\n".join(texts)
        raise _Unusable(f"{place}: holds what is not text, and only text can be asked")
    raise _Unusable(f"{place}: expected role and content")


def _garak(source: _Source, text: str) -> Iterator[_Row]:
    """Hit logs hold one hit per line; reports hold entries of many kinds, of which the
    finished attempts (status 2) are read."""
    for line, row in source.rows(text):
        entry = row.get("entry_type")
        if entry is None or (entry == "attempt" and row.get("status") == 2):
            yield line, partial(_garak_row, row)


def _garak_row(row: dict[str, Any]) -> list[Seed]:
    category = row.get("probe", row.get("probe_classname", ""))
    said = _garak_conversations(row)
    if any(len(turns) > 1 for turns, _ in said):
        # Of an attempt of several turns, `prompt` is the first and `outputs` answer the last.
        return [
            seed
            for number, (turns, answer) in enumerate(said)
            for seed in _seeds(f"conversations.{number}", turns, category, answer)
        ]
    prompt = row.get("prompt")
    if isinstance(prompt, dict):
        prompt = prompt.get("turns")
    outputs = row.get("outputs", [row.get("output")])
    if not isinstance(outputs, list):
        raise _Unusable("outputs: expected a list")
    answers = [_garak_output(output) for output in outputs]
    # Null stands for an answer that the generator did not give.
    given = [answer for answer in answers if answer is not None]
    return _seeds("prompt", prompt, category, given)


def _garak_conversations(row: dict[str, Any]) -> list[tuple[list[Any], list[Any]]]:
    """(turns that were asked, the answer to the last of them if there is one) of each conversation
    that garak kept whole, as newer versions do."""
    found: list[tuple[list[Any], list[Any]]] = []
    kept = row.get("conversations")
    for item in kept if isinstance(kept, list) else ():
        turns = item.get("turns") if isinstance(item, dict) else None
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise _Unusable("conversations: expected turns of role and content")
        last = len(turns) - 1
        while last >= 0 and turns[last].get("role") != "assistant":
            last -= 1
        if last < 0:
            found.append((turns, []))
        else:
            answer = _garak_output(turns[last].get("content"))
            found.append((turns[:last], [] if answer is None else [answer]))
    return found


def _garak_output(output: Any) -> Any:
    if not isinstance(output, dict):
        return output
    if output.get("data_path") or output.get("data_type"):
        raise _Unusable("outputs: hold what is not text")
    return output.get("text")


def _pyrit(source: _Source, text: str) -> Iterator[_Row]:
    """Seeds of one group with several sequence numbers are the turns of one conversation."""
    document = parse_yaml(text, source.name)
    content = document.content
    if not isinstance(content, dict):
        raise source.bad(1, "expected a dataset with seeds")
    name = "prompts" if "prompts" in content else "seeds"
    rows = document.rows(name)
    if rows is None and name not in content and "value" in content:
        raise source.bad(1, "one template of PyRIT, not a dataset with seeds; render it first")
    if rows is None:
        raise source.bad(1, f"{name}: expected a list")
    groups: dict[object, list[tuple[int, str, dict[str, Any]]]] = {}
    defaults = {key: content[key] for key in _PYRIT_DEFAULTS if key in content}
    for place, (line, row) in enumerate(rows):
        here = f"{name}.{place}"
        if not isinstance(row, dict):
            source.skipped.append(Skipped(line, f"{here}: expected fields such as value"))
            continue
        row = defaults | row
        alias = row.get("prompt_group_alias", row.get("prompt_group_id"))
        group = f"group {alias}" if isinstance(alias, str | int) else place
        groups.setdefault(group, []).append((line, here, row))
    for members in groups.values():
        yield members[0][0], partial(_pyrit_group, members, content)


def _pyrit_group(
    members: Sequence[tuple[int, str, dict[str, Any]]], dataset: dict[str, Any]
) -> list[Seed]:
    # A group's objective says what its prompts are after; alone it is a request itself.
    prompts = [item for item in members if not _is_objective(item[2])] or list(members)
    turns: dict[int, list[dict[str, str]]] = {}
    for line, here, row in prompts:
        value = row.get("value")
        if row.get("seed_type") == "simulated_conversation":
            raise _Unusable(f"{here}.seed_type: PyRIT makes its text only when it runs", line)
        kind = row.get("data_type") or "text"
        if kind != "text":
            raise _Unusable(f"{here}.data_type: only text can be asked", line)
        if not isinstance(value, str) or not value.strip():
            raise _Unusable(f"{here}.value: expected text", line)
        if _MEDIA.fullmatch(value.strip()):
            raise _Unusable(f"{here}.value: names a file, and only text can be asked", line)
        if _TEMPLATE.search(value):
            raise _Unusable(f"{here}.value: a template; render it first", line)
        place = row.get("sequence", 0)
        if not isinstance(place, int):
            raise _Unusable(f"{here}.sequence: expected a whole number", line)
        role = row.get("role") or "user"
        turns.setdefault(place, []).append({"role": role, "content": value})
    first = prompts[0]
    categories = first[2].get("harm_categories") or dataset.get("harm_categories") or []
    if isinstance(categories, str):
        categories = [categories]
    if not isinstance(categories, list):
        raise _Unusable(f"{first[1]}.harm_categories: expected a list", first[0])
    label = ", ".join(map(str, categories))
    if len(turns) == 1:
        # Of one sequence number: prompts beside each other, not turns.
        return [
            seed
            for turn in next(iter(turns.values()))
            for seed in _seeds(f"{first[1]}.value", [turn], label)
        ]
    said = [turn for place in sorted(turns) for turn in turns[place]]
    return _seeds(f"{first[1]}.value", said, label)


def _is_objective(row: dict[str, Any]) -> bool:
    """By seed_type, or by is_objective as before PyRIT 0.13."""
    return row.get("seed_type") == "objective" or (
        row.get("seed_type") is None and row.get("is_objective") is True
    )


def _harmbench(source: _Source, text: str) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        names = reader.fieldnames or []
        for name in ("Behavior", "BehaviorID"):
            if name not in names:
                raise source.bad(1, f"{name}: no such column; this is not a HarmBench CSV")
        for row in reader:
            yield reader.line_num, partial(_harmbench_row, row)
    except csv.Error as error:
        raise source.bad(reader.line_num, f"not CSV: {error}") from None


def _harmbench_row(row: dict[str, Any]) -> list[Seed]:
    behaviour, context = row.get("Behavior"), row.get("ContextString")
    if not isinstance(behaviour, str) or not behaviour.strip():
        raise _Unusable("Behavior: expected text")
    if row.get(None):  # type: ignore[call-overload]
        raise _Unusable("more fields than columns")
    if row.get("ImageFileName"):
        raise _Unusable("ImageFileName: only text can be asked")
    prompt = f"{context}\n\n---\n\n{behaviour}" if context else behaviour
    return _seeds("Behavior", prompt, row.get("SemanticCategory"))


def _jailbreakbench(source: _Source, text: str) -> Iterator[_Row]:
    try:
        content = parse_json(text.encode())
    except DecodeError as error:
        found = re.search(r"line (\d+)", error.reason)
        raise source.bad(int(found[1]) if found else 1, error.reason) from None
    rows = content.get("jailbreaks") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise source.bad(1, "jailbreaks: expected a list")
    for place, (row, line) in enumerate(zip(rows, _element_lines(text, len(rows)), strict=True)):
        yield line, partial(_jailbreakbench_row, row, f"jailbreaks.{place}")


def _jailbreakbench_row(row: Any, here: str) -> list[Seed]:
    if not isinstance(row, dict):
        raise _Unusable(f"{here}: expected fields such as prompt")
    if row.get("prompt") is None:
        return []
    response = row.get("response")
    answers = response if isinstance(response, list) else [response]
    given = [answer for answer in answers if answer is not None]
    return _seeds(f"{here}.prompt", row["prompt"], row.get("category"), given)


def _element_lines(text: str, count: int) -> list[int]:
    """The line on which each element of the document's "jailbreaks" begins. Of a key that stands
    there twice the last counts, as for every reader of JSON; it may be written with escapes."""
    decoder = json.JSONDecoder()
    at, start = text.index("{") + 1, 0
    while True:
        at = _after(text, at)
        if text[at] == "}":
            break
        name, at = decoder.raw_decode(text, at)
        at = _after(text, at, ":")
        if name == "jailbreaks":
            start = at
        _, at = decoder.raw_decode(text, at)
    at, lines = start + 1, []
    for _ in range(count):
        at = _after(text, at)
        lines.append(text.count("\n", 0, at) + 1)
        _, at = decoder.raw_decode(text, at)
    return lines


def _after(text: str, at: int, sign: str = ",") -> int:
    while text[at] in " \t\r\n" + sign:
        at += 1
    return at


def _evals(source: _Source, text: str) -> Iterator[_Row]:
    for line, row in source.rows(text):
        yield line, partial(_evals_row, row)


def _evals_row(row: dict[str, Any]) -> list[Seed]:
    if "input" in row:
        return _seeds("input", row["input"])
    if row.get("type") == "sampling":
        data = row.get("data")
        if not isinstance(data, dict):
            raise _Unusable("data: expected prompt and sampled")
        sampled = data.get("sampled")
        answers = sampled if isinstance(sampled, list) else [sampled]
        given = [answer for answer in answers if answer is not None]
        return _seeds("data.prompt", data.get("prompt"), "", given)
    if not {"spec", "final_report", "type"} & row.keys():
        raise _Unusable("input: missing, and this is no line of a log either")
    return []


_READERS: Final[dict[str, Callable[[_Source, str], Iterator[_Row]]]] = {
    "garak": _garak,
    "pyrit": _pyrit,
    "harmbench": _harmbench,
    "jailbreakbench": _jailbreakbench,
    "evals": _evals,
}
FORMATS: Final = tuple(_READERS)
