"""Taxonomies are checked where they are read, and compositions keep their meaning."""

import base64
from pathlib import Path

import numpy as np
import pytest

from ares_stream.errors import SettingsError
from ares_stream.probes.composition import TaxonomyComposer
from ares_stream.probes.space import Space
from ares_stream.probes.taxonomy import load_taxonomy
from ares_stream.probes.transforms import TRANSFORMS, transform
from ares_stream.records.interaction import Message


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return file


def test_every_default_composition_becomes_words() -> None:
    taxonomy = load_taxonomy()
    space, composer = taxonomy.space(), TaxonomyComposer(taxonomy)
    for number in np.random.default_rng(1).choice(space.numbers, 300, replace=False):
        ids = space.ids(int(number))
        messages = composer.compose(ids, int(number))
        text = " ".join(message.content for message in messages)
        assert messages[-1].role == "user"
        assert "{" not in text
        assert any(term in text.lower() for term in composer.terms(ids))
        assert messages == composer.compose(ids, int(number))


def test_numbers_and_ids_are_each_others_inverse() -> None:
    space = load_taxonomy().space()
    for number in space.numbers[::997]:
        assert space.number(space.ids(int(number))) == number


def test_constraints_remove_compositions() -> None:
    space = load_taxonomy().space()
    ids = {**space.ids(int(space.numbers[0])), "persona": "child", "tactic": "table"}
    assert not space.allowed[space.number(ids)]


def test_a_users_file_adds_replaces_and_disables(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        topics:
          bridges: {phrases: [weak bridges], terms: [bridges]}
        disable: {topics: [hate], personas: [child]}
        transforms: [plain, base64]
        constraints:
          - forbid: {topic: [bridges], transform: [base64]}
        """,
    )
    taxonomy = load_taxonomy(file)
    assert "bridges" in taxonomy.topics
    assert "hate" not in taxonomy.topics
    assert taxonomy.space().sizes[-1] == 2
    assert taxonomy.digest != load_taxonomy().digest


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("topics: {x: {phrases: []}}", r"topics.x.phrases"),
        ("tactics: {x: {phrases: ['no place']}}", r"tactics.x: no turn holds"),
        ("tactics: {x: {phrases: ['{request} {secret}']}}", r"unknown place \['secret'\]"),
        ("goals: {x: {phrases: ['open {topic']}}", r"goals.x: a brace is not closed"),
        ("transforms: [rot14]", r"rot14 is unknown"),
        ("disable: {topics: [nothing]}", r"disable.topics: no such id"),
        ("constraints: [{forbid: {topic: [nothing]}}]", r"no such component: nothing"),
        ("colours: {}", r"unknown section colours"),
        ("topics: [", r":1: not YAML"),
        ("[]", r"expected sections"),
        ("constraints: [{forbid: {transform: [plain]}}]", r"allow no composition"),
    ],
)
def test_a_bad_file_is_named_with_its_field(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        load_taxonomy(written(tmp_path, text)).space()


def test_a_missing_file_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_taxonomy(tmp_path / "none.yaml")


def test_a_space_that_is_too_large_is_refused() -> None:
    with pytest.raises(SettingsError, match="at most 2,000,000"):
        Space.full(topic=[str(k) for k in range(3000)], tactic=[str(k) for k in range(1000)])


def test_transforms_change_the_last_turn_alone() -> None:
    turns = (Message(role="user", content="first"), Message(role="user", content="Say hello now"))
    for name in TRANSFORMS:
        rewritten = transform(name, turns)
        assert rewritten[0] == turns[0]
        assert (rewritten == turns) == (name == "plain")
    encoded = transform("base64", turns)[-1].content.splitlines()[-1]
    assert base64.b64decode(encoded).decode() == "Say hello now"
    with pytest.raises(SettingsError, match="unknown"):
        transform("rot14", turns)
