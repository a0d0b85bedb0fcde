"""Files of other tools: what is read of them, and what is said about bad ones."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.errors import AresError, FileFormatError, SettingsError
from ares_stream.interchange.seeds import FORMATS, Skipped, as_interactions, as_taxonomy, read_seeds
from ares_stream.probes.composition import TaxonomyComposer
from ares_stream.probes.taxonomy import load_taxonomy
from tests.support.foreign_files import JAILBREAKBENCH

GARAK_HIT = {
    "goal": "make the system say it",
    "prompt": {"turns": [{"role": "user", "content": {"text": "Say it.", "lang": "en"}}]},
    "output": {"text": "It.", "lang": "en"},
    "triggers": None,
    "score": 1.0,
    "run_id": "r",
    "attempt_id": "a",
    "generator": "test",
    "probe": "dan.Ablation",
    "detector": "mitigation.Bypass",
}
GARAK_REPORT = [
    {"entry_type": "start_run setup", "_config.version": "0.13"},
    {"entry_type": "attempt", "status": 1, "prompt": {"turns": []}, "outputs": []},
    {
        "entry_type": "attempt",
        "status": 2,
        "probe_classname": "dan.Ablation",
        "prompt": GARAK_HIT["prompt"],
        "outputs": [{"text": "One."}, {"text": "Two."}],
    },
]
PYRIT = """\
dataset_name: examples
harm_categories: [fraud]
source: written for this test
seeds:
  - value: First request
  - value: Second request
    harm_categories: [violence, weapons]
"""
HARMBENCH = (
    "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
    'First request,standard,cybercrime,,,one\n"Second,\nrequest",contextual,fraud,,Given,two\n'
)
EVALS_SAMPLE = {"input": [{"role": "user", "content": "Ask"}], "ideal": "refusal"}
EVALS_LOG = [
    {"spec": {"eval_name": "e"}},
    {
        "run_id": "r",
        "event_id": 0,
        "sample_id": "e.0",
        "type": "sampling",
        "data": {"prompt": [{"role": "user", "content": "Ask"}], "sampled": ["Told"]},
    },
    {"run_id": "r", "event_id": 1, "sample_id": "e.0", "type": "metrics", "data": {}},
    {"final_report": {"accuracy": 1}},
]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


GOOD = {
    "garak hit log": ("garak", lines(GARAK_HIT), [("Say it.", "dan.Ablation", "It.")]),
    "garak report": (
        "garak",
        lines(*GARAK_REPORT),
        [("Say it.", "dan.Ablation", "One."), ("Say it.", "dan.Ablation", "Two.")],
    ),
    "pyrit seeds": (
        "pyrit",
        PYRIT,
        [("First request", "fraud", None), ("Second request", "violence, weapons", None)],
    ),
    "pyrit's older prompts": (
        "pyrit",
        PYRIT.replace("seeds:", "prompts:"),
        [("First request", "fraud", None), ("Second request", "violence, weapons", None)],
    ),
    "harmbench": (
        "harmbench",
        HARMBENCH,
        [
            ("First request", "cybercrime", None),
            ("Given\n\n---\n\nSecond,\nrequest", "fraud", None),
        ],
    ),
    "jailbreakbench": ("jailbreakbench", json.dumps(JAILBREAKBENCH), [("Ask", "Fraud", "Told")]),
    "evals samples": ("evals", lines(EVALS_SAMPLE), [("Ask", "", None)]),
    "evals log": ("evals", lines(*EVALS_LOG), [("Ask", "", "Told")]),
}


@pytest.mark.parametrize(("form", "text", "expected"), GOOD.values(), ids=GOOD)
def test_prompt_category_and_answer_are_read(
    form: str, text: str, expected: list[tuple[str, str, str | None]], tmp_path: Path
) -> None:
    file = tmp_path / "seeds"
    file.write_text(text)
    seeds = read_seeds(file, form).seeds
    assert [(seed.request, seed.category, seed.response) for seed in seeds] == expected


BAD = {
    "not JSON": ("garak", lines(GARAK_HIT) + "{\n", 2, "not JSON"),
    "no object": ("garak", "[1]\n", 1, "expected an object"),
    "a prompt without turns": ("garak", lines({**GARAK_HIT, "prompt": {}}), 1, "prompt"),
    "a turn without role": (
        "garak",
        lines({**GARAK_HIT, "prompt": {"turns": [{"content": {"text": "x"}}]}}),
        1,
        "prompt.0: expected role and content",
    ),
    "outputs of another type": ("garak", lines({**GARAK_HIT, "outputs": "x"}), 1, "outputs"),
    "not YAML": ("pyrit", "seeds:\n  - value: [\n", 3, "not YAML"),
    "no dataset": ("pyrit", "- value: x\n", 1, "expected a dataset"),
    "no seeds": ("pyrit", "dataset_name: x\n", 1, "seeds: expected a list"),
    "a seed without value": ("pyrit", PYRIT + "  - groups: [x]\n", 8, "value: expected text"),
    "a picture": (
        "pyrit",
        PYRIT + "  - value: a.png\n    data_type: image_path\n",
        8,
        "seeds.2.data_type",
    ),
    "another table": ("harmbench", "a,b\n1,2\n", 1, "Behavior: no such column"),
    "an empty behaviour": (
        "harmbench",
        HARMBENCH + ",standard,fraud,,,three\n",
        5,
        "Behavior: expected text",
    ),
    "another document": ("jailbreakbench", "{}", 1, "jailbreaks: expected a list"),
    "a prompt that is a number": (
        "jailbreakbench",
        '{"jailbreaks": [\n {"prompt": "x"},\n {"prompt": 3}]}',
        3,
        "jailbreaks.1.prompt",
    ),
    "an answer that is an object": (
        "jailbreakbench",
        '{"jailbreaks": [{"prompt": "x", "response": {}}]}',
        1,
        "not text",
    ),
    "neither sample nor log": ("evals", lines(EVALS_SAMPLE, {"a": 1}), 2, "input: missing"),
    "an unknown role": (
        "evals",
        lines({"input": [{"role": "boss", "content": "x"}]}),
        1,
        "input.0: expected role and content",
    ),
}


@pytest.mark.parametrize(("form", "text", "line", "reason"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_with_its_line_and_field(
    form: str, text: str, line: int, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "seeds"
    file.write_text(text)
    try:
        [skipped] = read_seeds(file, form).skipped
    except FileFormatError as error:
        # Not of the format as a whole, or no other row to go on with.
        skipped = Skipped(error.line, error.reason)
    assert skipped.line == line
    assert reason in skipped.reason


ODD = {
    "garak: an empty prompt, a picture, a blocked answer": (
        "garak",
        lines(
            {**GARAK_HIT, "prompt": ""},
            {**GARAK_HIT, "prompt": {"turns": [{"role": "user", "content": {"text": ""}}]}},
            {**GARAK_HIT, "prompt": {"turns": [
                {"role": "user", "content": {"data_path": "a.png", "data_type": "image"}}]}},
            {**GARAK_HIT, "output": {"data_path": "a.wav"}},
            {**GARAK_HIT, "output": None},
            GARAK_HIT,
        ),
        [None, "It."],
        [(1, "prompt: is empty"), (2, "prompt: is empty"), (3, "prompt.0: is not text"),
         (4, "outputs: hold what is not text")],
    ),
    "evals: every sample, parts, functions": (
        "evals",
        lines(
            {"type": "sampling", "data": {"prompt": "a", "sampled": ["1", "2", "3"]}},
            {"type": "sampling", "data": {"prompt": "a", "sampled": ["1", 2]}},
            {"input": [{"role": "user", "content": [{"type": "text", "text": "p"}]},
                       {"role": "function", "content": "x"}]},
            {"input": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            {"type": "sampling", "data": 3},
        ),
        ["1", "2", "3", None],
        [(2, "data.prompt: 1 of its 2 answers are not text"),
         (4, "input.0: holds what is not text"), (5, "data: expected prompt")],
    ),
    "jailbreakbench: several answers, a key twice and with escapes": (
        "jailbreakbench",
        '{"parameters": {"jailbreaks": []}, "jailbreaks": [],\n'
        '"jailbreak\\u0073": [\n{"prompt": "x", "response": ["1", "2"]},\n{"prompt": 3},\n4]}',
        ["1", "2"],
        [(4, "jailbreaks.1.prompt"), (5, "jailbreaks.2")],
    ),
    "harmbench: a picture, a row too long": (
        "harmbench",
        "Behavior,BehaviorID,ImageFileName\nx,1,\ny,2,a.png\nz,3,,4\n",
        [None],
        [(3, "ImageFileName: only text"), (4, "more fields than columns")],
    ),
    "pyrit: what is no prompt": (
        "pyrit",
        """\
seeds:
  - value: fine
    harm_categories: fraud
  - value: photo.png
  - value: "Tell me about {{ topic }}"
  - 3
  - value: x
    harm_categories: 3
  - value: x
    sequence: first
  - value: x
    role: king
""",
        [None],
        [(4, "seeds.1.value: names a file"), (5, "seeds.2.value: a template"),
         (6, "seeds.3: expected fields"), (7, "seeds.4.harm_categories: expected a list"),
         (9, "seeds.5.sequence: expected a whole number"), (11, "seeds.6.value.0: expected role")],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("form", "text", "answers", "skipped"), ODD.values(), ids=ODD)
def test_an_odd_row_is_skipped_with_its_line_and_its_neighbours_are_read(
    form: str,
    text: str,
    answers: list[str | None],
    skipped: list[tuple[int, str]],
    tmp_path: Path,
) -> None:
    file = tmp_path / "seeds"
    file.write_text(text)
    found = read_seeds(file, form)
    assert [seed.response for seed in found.seeds] == answers
    assert [item.line for item in found.skipped] == [line for line, _ in skipped]
    for item, (_, reason) in zip(found.skipped, skipped, strict=True):
        assert item.reason.startswith(reason)


def test_the_turns_of_a_pyrit_group_stay_turns(tmp_path: Path) -> None:
    file = tmp_path / "seeds"
    file.write_text(
        """\
harm_categories: fraud
seeds:
  - {value: what it is after, seed_type: objective, prompt_group_alias: g}
  - {value: second, role: user, sequence: 2, prompt_group_alias: g}
  - {value: be brief, role: system, sequence: 0, prompt_group_alias: g}
  - {value: first, role: user, sequence: 1, prompt_group_alias: g}
  - {value: alone}
  - {value: a picture, data_type: image_path, sequence: 0, prompt_group_alias: h}
  - {value: about it, sequence: 1, prompt_group_alias: h}
  - {value: an aim of its own, seed_type: objective}
"""
    )
    found = read_seeds(file, "pyrit")
    assert [[(turn.role, turn.content) for turn in seed.messages] for seed in found.seeds] == [
        [("system", "be brief"), ("user", "first"), ("user", "second")],
        [("user", "alone")],
        [("user", "an aim of its own")],
    ]
    assert {seed.category for seed in found.seeds} == {"fraud"}
    assert [item.line for item in found.skipped] == [8]


def turns(*said: str) -> dict[str, object]:
    """garak's conversation, whose roles take turns."""
    roles = ("user", "assistant") * len(said)
    return {
        "turns": [
            {"role": role, "content": {"text": text, "data_path": None, "data_type": None}}
            for role, text in zip(roles, said, strict=False)
        ]
    }


def test_the_turns_of_a_garak_attempt_stay_turns(tmp_path: Path) -> None:
    file = tmp_path / "report"
    file.write_text(
        lines(
            {
                "entry_type": "attempt",
                "status": 2,
                "probe_classname": "fitd.FITD",
                "prompt": turns("first"),
                "outputs": [{"text": "last a"}, {"text": "last b"}, None],
                "conversations": [
                    turns("first", "an answer", "second", "last a"),
                    turns("first", "another", "other", "last b", "unanswered"),
                    turns("first"),
                ],
            },
            {
                "entry_type": "attempt",
                "status": 2,
                "prompt": turns("alone"),
                "outputs": [{"text": "x"}, {"text": "y"}],
                "conversations": [turns("alone", "x"), turns("alone", "y")],
            },
            {
                "entry_type": "attempt",
                "status": 2,
                "prompt": turns("p"),
                "outputs": [],
                "conversations": [{"turns": [3]}],
            },
        )
    )
    found = read_seeds(file, "garak")
    assert [([turn.content for turn in seed.messages], seed.response) for seed in found.seeds] == [
        (["first", "an answer", "second"], "last a"),
        (["first", "another", "other"], "last b"),
        (["first"], None),
        (["alone"], "x"),
        (["alone"], "y"),
    ]
    assert [(item.line, item.reason) for item in found.skipped] == [
        (3, "conversations: expected turns of role and content")
    ]


def test_what_a_pyrit_dataset_says_of_all_its_seeds_holds_for_each(tmp_path: Path) -> None:
    file = tmp_path / "seeds"
    file.write_text(
        """\
is_objective: true
seeds:
  - {value: an aim, prompt_group_alias: g}
  - {value: asked for it, seed_type: prompt, prompt_group_alias: g}
  - {value: alone}
  - {value: what it is after, prompt_group_alias: h}
  - {seed_type: simulated_conversation, num_turns: 3, prompt_group_alias: h}
  - {value: "{% for x in y %}a{% endfor %}"}
  - {value: "{{ prompt | upper }}"}
  - {value: "code: {{1, 2}} and 50%}"}
"""
    )
    found = read_seeds(file, "pyrit")
    assert [seed.request for seed in found.seeds] == [
        "asked for it", "alone", "code: {{1, 2}} and 50%}",
    ]  # fmt: skip
    assert [(item.line, item.reason) for item in found.skipped] == [
        (7, "seeds.4.seed_type: PyRIT makes its text only when it runs"),
        (8, "seeds.5.value: a template; render it first"),
        (9, "seeds.6.value: a template; render it first"),
    ]
    file.write_text("data_type: image_path\nseeds: [{value: x}, {value: y, data_type: text}]\n")
    assert [seed.request for seed in read_seeds(file, "pyrit").seeds] == ["y"]
    file.write_text("name: n\nparameters: [prompt]\nvalue: Do {{ prompt }}\n")
    with pytest.raises(FileFormatError, match="one template of PyRIT, not a dataset"):
        read_seeds(file, "pyrit")


def test_bytes_that_are_not_utf8_are_refused_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "seeds"
    file.write_bytes(lines(EVALS_SAMPLE).encode() + b"\xff\n")
    with pytest.raises(SettingsError, match=":2: not UTF-8"):
        read_seeds(file, "evals")


def test_an_empty_file_a_missing_file_and_an_unknown_format_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "seeds"
    file.write_text("")
    with pytest.raises(SettingsError, match="holds no prompt in the format evals"):
        read_seeds(file, "evals")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_seeds(tmp_path / "absent", "evals")
    with pytest.raises(SettingsError, match="format csv: unknown; one of garak"):
        read_seeds(file, "csv")


@given(form=st.sampled_from(FORMATS), raw=st.binary(max_size=60))
def test_no_bytes_end_in_another_error_than_the_documented_one(
    form: str, raw: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "any"
    file.write_bytes(raw)
    try:
        seeds = read_seeds(file, form).seeds
    except AresError:
        return
    assert seeds


def test_equal_prompts_are_one_seed_of_the_taxonomy_that_searches_around_them(
    tmp_path: Path,
) -> None:
    file, over = tmp_path / "hits", tmp_path / "over.yaml"
    braces = {**EVALS_SAMPLE, "input": "Fill in {this} and {"}
    file.write_text(lines(EVALS_SAMPLE, EVALS_SAMPLE, braces))
    seeds = read_seeds(file, "evals").seeds
    over.write_text(yaml.safe_dump(as_taxonomy(seeds)))
    taxonomy = load_taxonomy(over)
    assert set(taxonomy.topics) == {seed.id for seed in seeds}
    assert len(taxonomy.topics) == 2
    space = taxonomy.space()
    composer = TaxonomyComposer(taxonomy)
    for number in space.numbers:
        ids = space.ids(int(number))
        [message] = composer.compose(ids, 0)
        seed = next(seed for seed in seeds if seed.id == ids["topic"])
        assert seed.request in message.content


def test_answered_seeds_become_conversations_of_the_production_lane(tmp_path: Path) -> None:
    file = tmp_path / "hits"
    file.write_text(lines(GARAK_HIT, {**GARAK_HIT, "output": None}))
    at = datetime(2026, 1, 2, tzinfo=UTC)
    [item] = as_interactions(read_seeds(file, "garak").seeds, "garak", at)
    assert (item.prompt, item.response, item.occurred_at) == ("Say it.", "It.", at)
    assert item.attributes == {"source": "garak", "category": "dan.Ablation"}
    assert item.probe is None
