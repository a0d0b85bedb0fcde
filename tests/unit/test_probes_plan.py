"""Campaign files, priors and wording: what is read, what is refused, what stays the same."""

import json
from pathlib import Path

import pytest
import yaml

from ares_stream.errors import SettingsError
from ares_stream.probes.campaign import Judged
from ares_stream.probes.plan import PRIOR_SCHEMA, export_prior, load_campaign, load_prior
from ares_stream.probes.wording import Wording

ENDPOINT: dict[str, dict[str, object]] = {
    "endpoint": {"url": "http://policy.test/v1", "model": "tiny"}
}


def write(folder: Path, **fields: object) -> Path:
    file = folder / "campaign.yaml"
    file.write_text(yaml.safe_dump({"name": "nightly", "target": ENDPOINT, **fields}))
    return file


def test_the_id_changes_with_whatever_changes_the_choices_and_with_nothing_else(
    tmp_path: Path,
) -> None:
    plain = load_campaign(write(tmp_path)).plan().id
    assert plain.startswith("nightly-")
    slow = {"endpoint": {**ENDPOINT["endpoint"], "concurrency": 1}}
    assert load_campaign(write(tmp_path, target=slow)).plan().id == plain
    over = tmp_path / "over.yaml"
    over.write_text("transforms: [plain, base64]\n")
    changed: list[dict[str, object]] = [
        {"budget": 7}, {"batch": 7}, {"seed": 7}, {"method": "uniform"}, {"taxonomy": "over.yaml"}
    ]  # fmt: skip
    ids = {load_campaign(write(tmp_path, **fields)).plan().id for fields in changed}
    assert len(ids | {plain}) == 6


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "Nightly run"}, "name: "),
        ({"budget": 0}, "budget: "),
        ({"method": "best"}, "method: "),
        ({"colour": "red"}, "colour: "),
        ({"target": {}}, "target: name exactly one of endpoint, recorded, local"),
        ({"target": {"endpoint": {"url": "x"}}}, "target.endpoint.model: "),
        ({"taxonomy": "absent.yaml"}, "absent.yaml: cannot be read"),
        ({"prior": "absent.json"}, "absent.json: cannot be read"),
    ],
)
def test_a_wrong_campaign_is_refused_with_its_field(
    fields: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=reason):
        load_campaign(write(tmp_path, **fields)).plan()


def test_a_file_that_is_not_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "campaign.yaml"
    file.write_text("name: x\ntarget: [\n")
    with pytest.raises(SettingsError, match=r"campaign.yaml:3: not YAML: "):
        load_campaign(file)


def test_a_prior_that_is_exported_loads_equal_and_makes_another_campaign(tmp_path: Path) -> None:
    plan = load_campaign(write(tmp_path, budget=40, batch=20)).plan()
    campaign = plan.start()
    with pytest.raises(SettingsError, match="has learnt nothing yet"):
        export_prior(campaign)
    while not campaign.done:
        campaign.judge(
            {ask.id: Judged(0.9, 0.8, ask.number % 3 == 0) for ask in campaign.pending()}
        )
    document = export_prior(campaign)
    file = tmp_path / "prior.json"
    file.write_text(json.dumps(document))
    assert load_prior(file).harm.features == {
        name: tuple(value) for name, value in document["harm"].items()
    }
    assert load_prior(file).failures == tuple(document["failures"]) != ()
    warmed = load_campaign(write(tmp_path, budget=40, batch=20), prior=file).plan()
    assert warmed.id != plan.id
    assert warmed.start().pending() != plan.start().pending()


def test_a_campaign_of_another_version_of_the_search_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = load_campaign(write(tmp_path))
    now = campaign.plan().id
    assert campaign.plan().id == now
    monkeypatch.setattr("ares_stream.probes.plan.SELECTION", 1_000)
    assert campaign.plan().id != now


def test_only_a_method_that_learns_features_has_a_prior(tmp_path: Path) -> None:
    plan = load_campaign(write(tmp_path, method="uniform")).plan()
    with pytest.raises(SettingsError, match="method uniform has no prior"):
        export_prior(plan.start())


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("{", "not JSON"),
        ("[]", f"schema: expected {PRIOR_SCHEMA}"),
        (json.dumps({"schema": PRIOR_SCHEMA, "harm": {}}), "reward: expected features"),
        (
            json.dumps({"schema": PRIOR_SCHEMA, "harm": {"a": [0, -1]}, "reward": {}}),
            r"harm.a: expected \[mean, precision\]",
        ),
        (
            json.dumps({"schema": PRIOR_SCHEMA, "harm": {}, "reward": {}, "failures": {}}),
            "failures: expected a list",
        ),
        (
            json.dumps(
                {"schema": PRIOR_SCHEMA, "harm": {}, "reward": {}, "failures": [{}, {"topic": 3}]}
            ),
            r"failures.1: expected a component for each axis",
        ),
    ],
)
def test_a_wrong_prior_is_refused_with_its_field(
    document: str, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "prior.json"
    file.write_text(document)
    with pytest.raises(SettingsError, match=reason):
        load_prior(file)


def test_words_are_the_same_in_every_life_and_for_every_attempt(tmp_path: Path) -> None:
    plan = load_campaign(write(tmp_path, budget=60, batch=30)).plan()

    def said() -> list[str]:
        campaign, wording, words = plan.start(), Wording(plan.space, plan.composer), []
        while not campaign.done:
            asks = campaign.pending()
            words += [wording.words(ask).messages[-1].content for ask in asks]
            campaign.judge({ask.id: Judged(0.9, 0.9, True) for ask in asks})
        return words

    first = said()
    assert first == said()
    assert len(set(first)) == len(first) // 2  # Each probe once and once more to confirm it.


def test_a_probe_that_was_said_in_every_way_earns_nothing(tmp_path: Path) -> None:
    over = tmp_path / "one.yaml"
    keep = {"topics": "theft", "personas": "nurse", "tactics": "direct", "goals": "steps"}
    default = load_campaign(write(tmp_path)).plan().space
    disable = {
        section: [name for name in default.components[default.axis(section[:-1])] if name != kept]
        for section, kept in keep.items()
    }
    over.write_text(yaml.safe_dump({"disable": disable}))
    plan = load_campaign(
        write(tmp_path, budget=40, batch=40, method="uniform", taxonomy="one.yaml")
    ).plan()
    wording = Wording(plan.space, plan.composer)
    causes = [wording.words(ask).cause for ask in plan.start().pending()]
    assert causes[0] is None
    assert causes[-1] == "near_copy"
    assert 1 <= causes.count(None) <= 8


def test_loops_and_letters_in_no_order_are_rubbish_and_words_are_not(tmp_path: Path) -> None:
    plan = load_campaign(write(tmp_path)).plan()
    wording = Wording(plan.space, plan.composer)
    assert wording.is_rubbish("of course " * 30)
    assert wording.is_rubbish("xq zvw kjq pzx qqv wzk jxv zqk vvx kzq")
    assert not wording.is_rubbish("I cannot help with that, but I can explain how to prevent it.")
    assert not wording.is_rubbish("")
