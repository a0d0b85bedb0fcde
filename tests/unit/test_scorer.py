"""The scorer's own decisions: which releases concern it, what it may load, how it starts."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ares_stream.cli.main import app
from ares_stream.errors import AresError, BundleError, IntegrityError, SettingsError
from ares_stream.lab.word_bundles import write_judge, write_reward
from ares_stream.models.bundles import Bundle
from ares_stream.records.release import Release, ReleaseState
from ares_stream.records.verdict import verdict_id
from ares_stream.scoring.handler import sampled_for_review
from ares_stream.scoring.panel import Panel
from ares_stream.services import logs
from ares_stream.services.lifecycle import Life
from ares_stream.services.scorer import (
    Scorer,
    _newest,
    _released,
    processor_policy,
)
from ares_stream.services.settings import ProcessingSettings, Settings, load_settings
from tests.support.live_services import run_scorer

NOWHERE = Path("/dev/null/cache")
"""What lies on a local disk is not copied."""


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_judge(tmp_path_factory.mktemp("judge") / "bundle")


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_reward(tmp_path_factory.mktemp("reward") / "bundle")


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def release(bundle: Bundle, **changed: Any) -> Release:
    fields: dict[str, Any] = {
        "model": bundle.manifest.name,
        "kind": bundle.manifest.kind,
        "digest": bundle.digest,
        "uri": bundle.path.as_uri(),
        "state": ReleaseState.ACTIVE,
        "changed_at": datetime(2026, 10, 1, tzinfo=UTC),
        "changed_by": "ada",
    }
    return Release(**{**fields, **changed})


def test_an_active_release_stands_in_for_the_configured_bundle_of_its_name(
    reward: Bundle, tmp_path: Path
) -> None:
    repaired = write_reward(tmp_path / "repaired", {"nice": 2.0})
    assert _newest(reward, {"reward": release(repaired)}, None, NOWHERE).digest == repaired.digest
    assert _newest(reward, {"another": release(repaired)}, None, NOWHERE) is reward
    assert _newest(reward, {}, None, NOWHERE) is reward


def test_a_release_whose_bundle_has_another_digest_is_refused(reward: Bundle) -> None:
    with pytest.raises(BundleError, match="the release names 000000000000"):
        _released(release(reward, digest="0" * 64), None, NOWHERE)


def test_a_release_that_leads_to_another_models_bundle_is_refused(
    reward: Bundle, tmp_path: Path
) -> None:
    other = write_reward(tmp_path / "other", name="other")
    with pytest.raises(BundleError, match="is a bundle named other"):
        _released(release(other, model="reward"), None, NOWHERE)


def test_a_judge_cannot_be_released_as_a_reward_model(judge: Bundle) -> None:
    with pytest.raises(BundleError, match="of kind harm, expected reward"):
        _released(release(judge, kind="reward"), None, NOWHERE)


def test_a_release_whose_bundle_was_tampered_with_is_refused(tmp_path: Path) -> None:
    bundle = write_reward(tmp_path / "reward")
    with bundle.model.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        _released(release(bundle), None, NOWHERE)


def test_a_policy_is_no_model_of_a_scorer(reward: Bundle) -> None:
    with pytest.raises(SettingsError, match="is a policy"):
        _released(release(reward, kind="policy"), None, NOWHERE)


def stored(bundle: Bundle, url: str) -> str:
    """The bundle's files put under an fsspec URL."""
    files, path = fsspec.core.url_to_fs(url)
    files.makedirs(path, exist_ok=True)
    for file in bundle.path.iterdir():
        files.put_file(str(file), f"{path}/{file.name}")
    return url


def test_a_release_in_an_object_store_is_copied_once_and_a_damaged_copy_again(
    tmp_path: Path,
) -> None:
    bundle, cache = write_reward(tmp_path / "reward"), tmp_path / "cache"
    url = stored(bundle, f"memory://store-{tmp_path.name}/reward")
    announced = release(bundle, uri=url)
    loaded = _released(announced, None, cache)
    assert loaded.digest == bundle.digest
    assert loaded.path == cache / "reward" / bundle.digest
    assert [item.name for item in loaded.path.parent.iterdir()] == [bundle.digest]

    files, path = fsspec.core.url_to_fs(url)
    kept = {name: files.cat_file(name) for name in files.find(path)}
    files.rm(path, recursive=True)
    assert _released(announced, None, cache).digest == bundle.digest, "from the copy"
    with loaded.model.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(AresError):
        _released(announced, None, cache)
    files.makedirs(path, exist_ok=True)
    for name, content in kept.items():
        files.pipe_file(name, content)
    assert _released(announced, None, cache).digest == bundle.digest


def test_what_an_object_store_holds_of_another_digest_is_never_in_the_cache(
    tmp_path: Path,
) -> None:
    bundle, cache = write_reward(tmp_path / "reward"), tmp_path / "cache"
    url = stored(bundle, f"memory://store-{tmp_path.name}/reward")
    with pytest.raises(IntegrityError, match="the release names 000000000000"):
        _released(release(bundle, uri=url, digest="0" * 64), None, cache)
    fsspec.core.url_to_fs(url)[0].pipe_file(f"{url}/model.onnx", b"cut")
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        _released(release(bundle, uri=url), None, cache)
    assert not list((cache / "reward").iterdir())


def test_an_object_stores_release_must_be_signed_where_a_key_is_set(tmp_path: Path) -> None:
    bundle = write_reward(tmp_path / "reward")
    url = stored(bundle, f"memory://store-{tmp_path.name}/reward")
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    (tmp_path / "key.pem").write_bytes(
        key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    with pytest.raises(IntegrityError, match="sign"):
        _released(release(bundle, uri=url), tmp_path / "key.pem", tmp_path / "cache")


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"uri": "memory://nothing/there"}, "bundle.json"),
        ({"uri": "nowhere://x"}, "nowhere://x: cannot be fetched"),
        ({"uri": "memory://x", "model": "../../out"}, "not a model's name"),
    ],
)
def test_a_release_that_cannot_be_fetched_is_refused_by_name(
    reward: Bundle, tmp_path: Path, changed: dict[str, str], complaint: str
) -> None:
    with pytest.raises(AresError, match=complaint):
        _released(release(reward, **changed), None, tmp_path / "cache")
    assert not (tmp_path / "out").exists()


def test_the_settings_units_become_the_processors() -> None:
    policy = processor_policy(ProcessingSettings(commit_milliseconds=50, inflight_mebibytes=2))
    assert (policy.commit_seconds, policy.inflight_bytes) == (0.05, 2 * 1024 * 1024)


async def test_a_release_that_shares_its_base_with_a_judge_is_refused_and_the_old_one_stays(
    judge: Bundle, reward: Bundle, tmp_path: Path
) -> None:
    kin = write_reward(tmp_path / "kin", base=judge.manifest.lineage.base)
    better = write_reward(tmp_path / "better", {"nice": 2.0})
    scorer = Scorer(Settings(), Life("scorer"))
    scorer._bundles = {"judge": judge, "reward": reward}
    panel = Panel.open([judge], reward)
    try:
        with pytest.raises(BundleError, match="share the base"):
            await scorer._swap(panel, release(kin))
        assert panel.releases["reward"] == reward.digest
        await scorer._swap(panel, release(better))
        assert panel.releases["reward"] == better.digest
    finally:
        await panel.aclose()
    sample = scorer.metrics.registry.get_sample_value
    assert sample("ares_release_swaps_total", {"model": "reward"}) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("scorer: {reward: x}", "scorer.harm: no judge"),
        ("scorer: {harm: [JUDGE]}", "scorer.reward: no reward model"),
        ("scorer: {harm: [JUDGE], reward: nowhere}", "nowhere: no such directory"),
        ("scorer: {harm: [JUDGE], reward: JUDGE}", "a bundle of kind harm, expected reward"),
        ("scorer: {provider: tpu}", "scorer.provider: expected 'cpu' or 'cuda'"),
    ],
)
def test_a_start_that_cannot_succeed_ends_with_2_and_says_why(
    tmp_path: Path, judge: Bundle, settings: str, message: str
) -> None:
    file = tmp_path / "ares.yaml"
    file.write_text("http: {port: 0}\n" + settings.replace("JUDGE", str(judge.path)))
    result = CliRunner().invoke(app, ["scorer", "--settings", str(file)])
    assert result.exit_code == 2
    assert message in result.stderr


@example(number=16**32 - 1, share=0.0, more=1.0)
@given(number=st.integers(0, 16**32 - 1), share=st.floats(0, 1), more=st.floats(0, 1))
def test_a_larger_review_sample_contains_the_smaller_one(
    number: int, share: float, more: float
) -> None:
    verdict = f"{number:032x}"
    assert not sampled_for_review(verdict, 0.0)
    assert sampled_for_review(verdict, 1.0)
    low, high = sorted((share, more))
    assert sampled_for_review(verdict, high) or not sampled_for_review(verdict, low)


def test_a_review_sample_has_the_share_that_was_asked_for() -> None:
    ids = [verdict_id("in", 0, offset, {"judge": "a" * 64}, "b" * 64) for offset in range(5000)]
    seen = sum(sampled_for_review(verdict, 0.1) for verdict in ids)
    assert abs(seen - 500) < 4 * (5000 * 0.1 * 0.9) ** 0.5


async def test_a_signal_while_kafka_is_waited_for_ends_it_in_peace(
    judge: Bundle, reward: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure()
    file = tmp_path / "ares.yaml"
    file.write_text(
        f"kafka: {{bootstrap: '127.0.0.1:1'}}\nhttp: {{port: 0}}\n"
        f"scorer: {{harm: [{judge.path}], reward: {reward.path}}}\n"
    )
    running = asyncio.create_task(run_scorer(load_settings(file)))
    said: list[str] = []
    async with asyncio.timeout(20):
        while "waiting for Kafka" not in said:
            assert not running.done()
            said += [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        await running
    ended = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert ended[-2:] == ["draining", "stopped"]


def test_a_scorer_pays_at_import_for_nothing_that_it_does_not_use() -> None:
    heavy = ("scipy", "torch", "transformers", "pandas", "sklearn", "matplotlib")
    code = (
        "import sys, ares_stream.services.scorer\n"
        f"print(*sorted({{name.split('.')[0] for name in sys.modules}} & set({heavy!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == []
