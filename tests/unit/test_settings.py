"""Settings: a YAML file, the environment over it, and errors that name what to mend."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from ares_stream.errors import SettingsError
from ares_stream.services.settings import (
    PREFIX,
    HttpSettings,
    MonitorSettings,
    ScorerSettings,
    Settings,
    load_settings,
)
from ares_stream.streaming.connection import KafkaConnection

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def written(folder: Path, text: str) -> Path:
    file = folder / "ares.yaml"
    file.write_text(text)
    return file


def test_without_a_file_the_defaults_hold() -> None:
    settings = load_settings()
    assert settings.kafka.bootstrap == "127.0.0.1:9092"
    assert settings.topic_prefix == "ares."


def test_an_empty_file_is_no_error(tmp_path: Path) -> None:
    assert load_settings(written(tmp_path, "# nothing yet\n")) == load_settings()


def test_the_environment_wins_over_the_file_field_by_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "http: {host: 0.0.0.0, port: 1}\nscorer: {group: from-file}\n")
    monkeypatch.setenv("ARES_HTTP__PORT", "2")
    monkeypatch.setenv("ARES_SCORER__HARM", '["/models/a", "/models/b"]')
    settings = load_settings(file)
    assert settings.http == HttpSettings(host="0.0.0.0", port=2)  # noqa: S104
    assert settings.scorer.group == "from-file"
    assert settings.scorer.harm == (Path("/models/a"), Path("/models/b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http: {port: 70000}", r"^http\.port: .* 65535 .*FILE or as ARES_HTTP__PORT\)$"),
        (
            "scorer: {gruop: x}",
            r"^scorer\.gruop: no such .* group meant\? .* ARES_SCORER__GRUOP",
        ),
        ("skorer: {}", r"^skorer: no such setting; is scorer meant\?"),
        ("scorer: {review_sample: 2}", r"^scorer\.review_sample: expected at most 1 "),
        (
            "scorer: {inputs: [{topic: a, lane: side}]}",
            r"^scorer\.inputs\.0\.lane: .*'probe' or 'anchor' .* as ARES_SCORER__INPUTS\)$",
        ),
        (
            "scorer: {inputs: [{topic: a, lane: probe}, {topic: a, lane: production}]}",
            r"^scorer\.inputs: a topic is named twice; give each topic one lane \(in FILE\)$",
        ),
        (
            "scorer: {inputs: [{topic: a, lane: probe, map: {response: '['}}]}",
            r"^scorer\.inputs\.0\.map\.",
        ),
        ("scorer: {detection: {harm_threshold: 0.9}}", r"^scorer\.detection: harm_threshold must"),
        ("kafka: {bootstrap: 'k:9092'}", r"^kafka: PLAINTEXT to k .*allow_plaintext: true"),
        ("kafka: {protocol: SASL_SSL}", r"^kafka: SCRAM-SHA-512 needs username and password_file"),
        ("- a\n- b", r"^FILE: not a mapping of names to values"),
        ("1: 2", r"^FILE: not a mapping of names to values"),
        ("a: [", r"^FILE:1: not YAML: "),
    ],
)
def test_what_is_wrong_in_a_file_is_told_by_its_name(
    tmp_path: Path, text: str, message: str
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    assert re.search(message.replace("FILE", re.escape(str(file))), str(caught.value))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_settings(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "ARES_HTTP__PORT",
            "web",
            r"^http\.port: expected a whole .* as ARES_HTTP__PORT\)$",
        ),
        ("ARES_SCORER__HARM", "/models/judge", r"^ARES_SCORER__HARM: not JSON"),
        ("ARES_SCORRER__GROUP", "x", r"^ARES_SCORRER__GROUP: no such section SCORRER"),
        ("ARES_SCORER__GRUOP", "x", r"^scorer\.gruop: no such setting"),
        ("ARES_LOG_LEVEL", "loud", r"^log_level: .* 'warning' or 'error'"),
    ],
)
def test_what_is_wrong_in_the_environment_is_told_by_its_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=message):
        load_settings()


def test_paths_in_a_file_are_relative_to_it_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = """
kafka: {ca_file: certificates/ca.pem}
scorer: {harm: [judge, /models/judge], constitution: {url: "http://x/v1", model: m, file: rules}}
repairer: {recipe: {policy: policy, reward: reward}}
registry: {root: registry}
"""
    file = written(tmp_path, content)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("ARES_SCORER__REWARD", "mine/reward")
    settings = load_settings(Path("..") / file.name)

    assert settings.kafka.ca_file == tmp_path / "certificates/ca.pem"
    assert settings.scorer.harm == (tmp_path / "judge", Path("/models/judge"))
    assert settings.scorer.constitution is not None
    assert settings.scorer.constitution.file == tmp_path / "rules"
    assert settings.repairer.recipe is not None
    assert settings.repairer.recipe.policy == tmp_path / "policy"
    assert settings.registry.root == str(tmp_path / "registry")
    # What the environment names, and defaults, are relative to where the process stands.
    assert settings.scorer.reward == Path("mine/reward")
    assert settings.repairer.work == Path("repairs")


@pytest.mark.parametrize("root", ["s3://models/ares", "memory://x", "/var/lib/ares"])
def test_a_registry_that_is_no_relative_path_stays(tmp_path: Path, root: str) -> None:
    assert load_settings(written(tmp_path, f"registry: {{root: '{root}'}}")).registry.root == root


def test_without_a_file_paths_stay_as_they_are() -> None:
    assert load_settings().registry.root == "registry"


def test_a_mistyped_name_is_told_before_what_it_leaves_missing(tmp_path: Path) -> None:
    content = "scorer: {constitution: {ulr: 'http://x/v1', model: m, file: f}}"
    with pytest.raises(SettingsError, match=r"scorer\.constitution\.ulr: no such setting"):
        load_settings(written(tmp_path, content))


def test_one_value_where_a_list_belongs_is_told_in_plain_words(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"scorer\.harm: expected a list"):
        load_settings(written(tmp_path, "scorer: {harm: judge}"))


def test_a_secret_is_read_from_its_file_and_shown_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    file = written(
        tmp_path,
        "kafka: {bootstrap: 'k:9093', protocol: SASL_SSL, username: ares, "
        f"password_file: {secret}}}",
    )
    settings = load_settings(file)
    assert settings.kafka.client_arguments()["sasl_plain_password"].value() == "hunter2"
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def documented(page: str) -> dict[str, str]:
    """field → default, of the settings table of a page."""
    table = (DOCS / page).read_text().partition("## Settings")[2]
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| (.+?) \| .+ \|$", table, re.MULTILINE)
    return dict(rows)


def fields(model: type[BaseModel], path: str) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        default = field.get_default()
        if isinstance(default, BaseModel):
            yield from fields(type(default), f"{path}{name}.")
        else:
            shown = "" if default is None or default == () else f"`{default}`".lower()
            yield f"{path}{name}", shown or "none"


def test_the_page_of_the_scorer_tells_every_setting_and_its_default() -> None:
    told = documented("scorer.md")
    expected = {
        **dict(fields(KafkaConnection, "kafka.")),
        "topic_prefix": f"`{Settings.model_fields['topic_prefix'].default}`",
        "patience_seconds": f"`{Settings.model_fields['patience_seconds'].default}`",
        "log_level": f"`{Settings.model_fields['log_level'].default}`",
        **dict(fields(HttpSettings, "http.")),
        **dict(fields(ScorerSettings, "scorer.")),
    }
    assert {name: default.lower() for name, default in told.items()} == expected


def test_the_page_of_the_monitor_tells_every_setting_and_its_default() -> None:
    told = documented("monitor.md")
    expected = dict(fields(MonitorSettings, "monitor."))
    assert {name: default.lower() for name, default in told.items()} == expected
