"""Releases: which steps are allowed, that a step is whole or absent, and what is announced."""

import hashlib
import shutil
import threading
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ares_stream.errors import BundleError, IntegrityError, RegistryError
from ares_stream.models.bundles import InputTemplate, Lineage, Manifest, Outputs, write_bundle
from ares_stream.models.releases import Author, Log, announcements, differences
from ares_stream.models.store import Artefact, ReleaseStore, artefact_digest
from ares_stream.records.release import Release, ReleaseState
from tests.support.adapters import write_adapter

ANNA = Author("anna", datetime(2026, 3, 1, 12, tzinfo=UTC), "looks right")
CANDIDATE, ACTIVE, SUPERSEDED, REJECTED, ROLLED_BACK = ReleaseState


def reward_bundle(folder: Path, content: bytes) -> Artefact:
    source = folder / "model"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_bytes(content)
    manifest = Manifest(
        name="rm",
        kind="reward",
        template=InputTemplate(first="{{ response }}", max_length=64),
        outputs=Outputs(activation="identity", labels=(0,)),
        lineage=Lineage(base="tiny"),
    )
    out = folder / f"bundle-{content.hex()}"
    if not out.exists():
        write_bundle(out, manifest, {"model.onnx": source, "tokenizer.json": source})
    return Artefact("rm", "reward", out)


def adapter(folder: Path, content: bytes) -> Artefact:
    return Artefact("policy", "policy", write_adapter(folder / f"a-{content.hex()}", content))


@pytest.fixture
def registry(tmp_path: Path) -> ReleaseStore:
    return ReleaseStore(str(tmp_path / "registry"))


def states(log: Log) -> dict[str, ReleaseState]:
    return {f"{item.model} {item.plan_id}": item.state for item in log.releases}


def release_pair(registry: ReleaseStore, folder: Path, plan: str) -> tuple[Release, ...]:
    pair = [adapter(folder, plan.encode()), reward_bundle(folder, plan.encode())]
    registry.propose(pair, ANNA, plan_id=plan)
    return registry.approve(plan, ANNA)


def test_a_candidate_becomes_active_and_supersedes_what_was_active(
    registry: ReleaseStore, tmp_path: Path
) -> None:
    release_pair(registry, tmp_path, "plan-1")
    changed = release_pair(registry, tmp_path, "plan-2")

    log = registry.log()
    assert states(log) == {
        "policy plan-1": SUPERSEDED,
        "rm plan-1": SUPERSEDED,
        "policy plan-2": ACTIVE,
        "rm plan-2": ACTIVE,
    }
    assert {item.state for item in changed} == {SUPERSEDED, ACTIVE}
    active = log.active("rm")
    assert active is not None
    assert active.previous == artefact_digest(reward_bundle(tmp_path, b"plan-1").path, "reward")
    assert (active.changed_by, active.reason) == ("anna", "looks right")


def test_what_was_repaired_together_is_promoted_in_one_step(
    registry: ReleaseStore, tmp_path: Path
) -> None:
    release_pair(registry, tmp_path, "plan-1")
    promotion = registry.log().steps[-1]

    assert {item.model for item in promotion} == {"policy", "rm"}
    assert all(item.state is ACTIVE for item in promotion)


def test_a_digest_selects_the_whole_plan(registry: ReleaseStore, tmp_path: Path) -> None:
    pair = registry.propose(
        [adapter(tmp_path, b"a"), reward_bundle(tmp_path, b"a")], ANNA, plan_id="plan-1"
    )
    registry.reject(pair[0].digest[:10], ANNA)
    assert set(states(registry.log()).values()) == {REJECTED}


def test_a_roll_back_makes_the_previous_pair_active_again(
    registry: ReleaseStore, tmp_path: Path
) -> None:
    release_pair(registry, tmp_path, "plan-1")
    release_pair(registry, tmp_path, "plan-2")
    registry.rollback("rm", ANNA)

    assert states(registry.log()) == {
        "policy plan-1": ACTIVE,
        "rm plan-1": ACTIVE,
        "policy plan-2": ROLLED_BACK,
        "rm plan-2": ROLLED_BACK,
    }


def test_a_first_adapter_rolls_back_to_the_base_model_but_a_first_reward_model_cannot(
    registry: ReleaseStore, tmp_path: Path
) -> None:
    registry.propose([adapter(tmp_path, b"a")], ANNA, plan_id="plan-p")
    registry.approve("plan-p", ANNA)
    registry.propose([reward_bundle(tmp_path, b"a")], ANNA, plan_id="plan-r")
    registry.approve("plan-r", ANNA)

    registry.rollback("policy", ANNA)
    assert registry.log().active("policy") is None
    with pytest.raises(RegistryError, match=r"rm: no release before .* to go back to"):
        registry.rollback("rm", ANNA)


def test_steps_that_the_state_does_not_allow_are_refused(
    registry: ReleaseStore, tmp_path: Path
) -> None:
    release_pair(registry, tmp_path, "plan-1")
    registry.propose([reward_bundle(tmp_path, b"b")], ANNA, plan_id="plan-2")
    registry.reject("plan-2", ANNA)

    for step, selector, state in (
        (registry.approve, "plan-1", "active"),
        (registry.approve, "plan-2", "rejected"),
        (registry.reject, "plan-1", "active"),
        (registry.reject, "plan-2", "rejected"),
    ):
        with pytest.raises(RegistryError, match=f"is {state} since 2026-03-01"):
            step(selector, ANNA)
    with pytest.raises(RegistryError, match="nobody: has no active release"):
        registry.rollback("nobody", ANNA)


def test_a_candidate_gated_against_another_incumbent_is_refused(
    registry: ReleaseStore, tmp_path: Path
) -> None:
    release_pair(registry, tmp_path, "plan-1")
    for plan in ("plan-2", "plan-3"):
        registry.propose([reward_bundle(tmp_path, plan.encode())], ANNA, plan_id=plan)
    registry.approve("plan-2", ANNA)

    with pytest.raises(RegistryError, match=r"was gated against .* repair again"):
        registry.approve("plan-3", ANNA)


def test_a_candidate_proposed_after_its_incumbent_was_replaced_is_refused(
    registry: ReleaseStore, tmp_path: Path
) -> None:
    began = release_pair(registry, tmp_path, "plan-1")
    release_pair(registry, tmp_path, "plan-2")
    against = {item.model: item.digest for item in began}
    registry.propose([reward_bundle(tmp_path, b"late")], ANNA, plan_id="plan-3", against=against)
    with pytest.raises(RegistryError, match=r"was gated against .* repair again"):
        registry.approve("plan-3", ANNA)


def test_proposing_twice_is_one_step(registry: ReleaseStore, tmp_path: Path) -> None:
    first = registry.propose([reward_bundle(tmp_path, b"a")], ANNA, plan_id="plan-1")
    again = registry.propose([reward_bundle(tmp_path, b"a")], ANNA, plan_id="plan-1")
    assert first == again
    assert len(registry.log().steps) == 1
    with pytest.raises(RegistryError, match="exists already, candidate since"):
        registry.propose([reward_bundle(tmp_path, b"a")], ANNA, plan_id="plan-2")


@pytest.mark.parametrize(
    ("selector", "complaint"),
    [
        ("deadbeef", "no releases have a digest that starts so"),
        ("dead", "neither a plan's id nor"),
        ("../etc", "neither a plan's id nor"),
    ],
)
def test_a_selector_that_means_nothing_is_an_error(
    registry: ReleaseStore, selector: str, complaint: str
) -> None:
    with pytest.raises(RegistryError, match=complaint):
        registry.approve(selector, ANNA)


def test_a_model_name_cannot_leave_the_registry(registry: ReleaseStore, tmp_path: Path) -> None:
    evil = replace(adapter(tmp_path, b"a"), model="../../outside")
    with pytest.raises(RegistryError, match="not a model's name"):
        registry.propose([evil], ANNA)
    assert not (tmp_path / "outside").exists()


def test_changed_files_are_not_approved(registry: ReleaseStore, tmp_path: Path) -> None:
    release = registry.propose([adapter(tmp_path, b"a")], ANNA, plan_id="plan-1")[0]
    stored = registry.fetch(release, tmp_path / "cache")
    (stored / "adapter_model.safetensors").write_bytes(b"b")

    with pytest.raises(IntegrityError, match=r"has digest .*, the release names"):
        registry.approve("plan-1", ANNA)
    assert states(registry.log()) == {"policy plan-1": CANDIDATE}


def test_a_changed_or_missing_step_is_told(registry: ReleaseStore, tmp_path: Path) -> None:
    release_pair(registry, tmp_path, "plan-1")
    release_pair(registry, tmp_path, "plan-2")
    steps = sorted((tmp_path / "registry" / "steps").iterdir())
    original = steps[0].read_bytes()

    steps[0].write_bytes(original.replace(b"anna", b"emma"))
    with pytest.raises(IntegrityError, match="does not follow the step before it"):
        registry.log()
    steps[0].unlink()
    with pytest.raises(IntegrityError, match="missing before it"):
        registry.log()
    steps[0].write_bytes(original[:40])
    with pytest.raises(IntegrityError, match="not a step of a registry"):
        registry.log()


def test_a_copy_that_was_cut_short_is_no_release_and_is_finished_by_a_repeat(
    registry: ReleaseStore, tmp_path: Path
) -> None:
    source = adapter(tmp_path, b"whole")
    name = artefact_digest(source.path, "policy")
    half = tmp_path / "registry" / "models" / "policy" / name
    half.mkdir(parents=True)
    (half / "adapter_model.safetensors").write_bytes(b"who")

    assert registry.log().releases == ()
    registry.propose([source], ANNA, plan_id="plan-1")
    registry.approve("plan-1", ANNA)
    assert states(registry.log()) == {"policy plan-1": ACTIVE}


def test_weights_that_would_be_unpickled_are_refused(
    registry: ReleaseStore, tmp_path: Path
) -> None:
    source = adapter(tmp_path, b"a")
    (source.path / "optimizer.pt").write_bytes(b"")
    with pytest.raises(IntegrityError, match="would have to be unpickled"):
        registry.propose([source], ANNA)
    (source.path / "optimizer.pt").unlink()
    (source.path / "adapter_model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"no adapter_model\.safetensors"):
        registry.propose([source], ANNA)


def test_a_repeated_proposal_leaves_an_active_release_as_it_is(
    registry: ReleaseStore, tmp_path: Path
) -> None:
    source = reward_bundle(tmp_path, b"a")
    registry.propose([source], ANNA, plan_id="plan-1")
    (active,) = registry.approve("plan-1", ANNA)
    stored = registry.fetch(active, tmp_path / "cache")
    before = {file.name: file.stat() for file in [stored, *stored.iterdir()]}

    (source.path / "bundle.sig").write_text("of another key")
    registry.propose([source], ANNA, plan_id="plan-1")
    with pytest.raises(RegistryError, match="exists already, active since"):
        registry.propose([source], ANNA, plan_id="plan-2")
    after = {file.name: file.stat() for file in [stored, *stored.iterdir()]}
    assert after == before


def test_a_file_that_changes_while_it_is_copied_is_no_release(
    registry: ReleaseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = adapter(tmp_path, b"a")
    original = shutil.copyfileobj

    def copy_and_change(read: Any, written: Any, length: int) -> None:
        original(read, written, length)
        (source.path / "adapter_config.json").write_text("{}")

    monkeypatch.setattr(shutil, "copyfileobj", copy_and_change)
    with pytest.raises(IntegrityError, match="was changed while it was copied"):
        registry.propose([source], ANNA)
    assert registry.log().releases == ()
    assert not list((tmp_path / "registry").rglob("*.safetensors"))


def test_writers_at_the_same_time_each_take_their_own_step(tmp_path: Path) -> None:
    root = str(tmp_path / "registry")
    sources = [adapter(tmp_path, bytes([number])) for number in range(4)]
    start = threading.Barrier(4)

    def propose(number: int) -> None:
        start.wait()
        ReleaseStore(root).propose([sources[number]], ANNA, plan_id=f"plan-{number}")

    threads = [threading.Thread(target=propose, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ReleaseStore(root).log().releases) == 4
    assert not [
        file for file in (tmp_path / "registry" / "steps").iterdir() if file.suffix != ".json"
    ]


def test_an_object_store_serves_verified_copies(tmp_path: Path) -> None:
    registry = ReleaseStore(f"memory://registry-{tmp_path.name}")
    release_pair(registry, tmp_path, "plan-1")
    active = registry.log().active("rm")
    assert active is not None
    assert active.uri.startswith("memory://")

    local = registry.fetch(active, tmp_path / "cache")
    assert artefact_digest(local, "reward") == active.digest
    shutil.rmtree(tmp_path / "cache")
    (local.parent).mkdir(parents=True)
    assert registry.fetch(active, tmp_path / "cache") == local


@pytest.mark.parametrize("root", ["{}/registry", "memory://gates-{}"])
def test_a_gates_report_is_kept_with_the_release_that_names_it(root: str, tmp_path: Path) -> None:
    registry = ReleaseStore(root.format(tmp_path if root[0] == "{" else tmp_path.name))
    report = b'{"passed":true,"checks":[]}'
    artefact = Artefact("policy", "policy", write_adapter(tmp_path / "adapter"))
    for _ in range(2):
        (made,) = registry.propose([artefact], ANNA, plan_id="plan-1", gate_report=report)
    name = hashlib.sha256(report).hexdigest()
    assert (made.gate_report, registry.gate_report(name)) == (name, report)
    assert registry.gate_report("0" * 64) is None
    files, path = fsspec.core.url_to_fs(root.format(tmp_path if root[0] == "{" else tmp_path.name))
    files.pipe_file(f"{path}/gates/{name}.json", b"{}")
    with pytest.raises(IntegrityError, match="was changed"):
        registry.gate_report(name)


def test_an_unknown_protocol_is_told() -> None:
    with pytest.raises(RegistryError, match="nowhere://x: not a place for a registry"):
        ReleaseStore("nowhere://x")


def test_the_topic_names_the_active_release_by_its_model_and_the_others_apart(
    registry: ReleaseStore, tmp_path: Path
) -> None:
    release_pair(registry, tmp_path, "plan-1")
    registry.propose([reward_bundle(tmp_path, b"b")], ANNA, plan_id="plan-2")
    wanted = announcements(registry.log())
    held = {key: Release.decode(value) for key, value in wanted.items() if value is not None}

    assert held[b"rm"].state is ACTIVE
    candidate = registry.log().select("plan-2")[0]
    assert held[f"rm@{candidate.digest}".encode()].state is CANDIDATE
    assert [item.state for item in held.values()].count(ACTIVE) == 2

    present = {key: value for key, value in wanted.items() if value is not None}
    assert not any(differences(wanted, present).values())
    del present[b"policy"]
    assert differences(wanted, present)[b"policy"] == wanted[b"policy"]


names = count()


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["propose", "approve", "reject", "rollback"]), max_size=8))
def test_whatever_is_tried_a_model_has_at_most_one_active_release(
    tmp_path_factory: pytest.TempPathFactory, actions: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"steps-{next(names)}"
    registry = ReleaseStore(str(folder / "registry"))
    plans = count()
    plan = "none"
    for action in actions:
        try:
            if action == "propose":
                plan = f"plan-{next(plans)}"
                registry.propose([adapter(folder, plan.encode())], ANNA, plan_id=plan)
            elif action == "rollback":
                registry.rollback("policy", ANNA)
            else:
                getattr(registry, action)(plan, ANNA)
        except RegistryError:
            continue
    log = registry.log()
    active = [item for item in log.releases if item.state is ACTIVE]
    assert len(active) <= 1
    wanted = announcements(log)
    assert wanted.get(b"policy") == (active[0].encode() if active else None)
