"""What is released is what was trained: adapters, merged models and the ONNX bundle give the
numbers of the models that training left, also in a second repair on top of a first."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ares_stream.lab.language.world import Prompt, World
from ares_stream.lab.victims.models import chat_tokenizer, new_policy, new_reward
from ares_stream.models.bundles import InputTemplate, load_bundle
from ares_stream.models.signing import verify_signature
from ares_stream.records.base import OffsetRange, stable_seed
from ares_stream.records.interaction import Interaction, Message, Policy
from ares_stream.repair import artefacts, resampling
from ares_stream.repair.models import PolicyModel, RewardModel, load_policy, load_reward
from ares_stream.repair.plan import Plan, ReplaySample, Sample, ValidatedPair
from ares_stream.repair.plan_policy import PlanPolicy
from ares_stream.repair.recipe import Lora, Recipe, Reinforce
from ares_stream.repair.resampling import prompt_digest
from ares_stream.repair.rundirectory import Job, Questions, RunDirectory
from ares_stream.scoring.runtime import OnnxModel
from ares_stream.scoring.tokenising import InputEncoder
from ares_stream.training.examples import conversation
from ares_stream.training.export import export_bundle
from tests.support.failures import DAY
from tests.support.word_models import word_bundle

pytestmark = [
    pytest.mark.torch,
    # Of transformers, from within peft, on loading any adapter.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]

WORLD = World(7)
LORA = Lora(rank=4, alpha=8)
PROMPTS: list[Prompt] = WORLD.prompts("train", 6, 1, harmful=False)
TURNS: list[tuple[Message, ...]] = [
    (Message(role="user", content=prompt.text),) for prompt in PROMPTS
]
ANSWERS = [" ".join(prompt.text.split()[:3]) for prompt in PROMPTS]


def interactions() -> list[Interaction]:
    return [
        Interaction(
            id=f"i{place}",
            occurred_at=DAY,
            messages=turns,
            response=answer,
            policy=Policy(name="p", version="1"),
        )
        for place, (turns, answer) in enumerate(zip(TURNS * 4, ANSWERS * 4, strict=True))
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base models, the incumbent bundle, a reference, a key."""
    folder = tmp_path_factory.mktemp("home")
    for name, make, salt in (("policy", new_policy, 1), ("reward", new_reward, 2)):
        tokenizer = chat_tokenizer(WORLD, salt)
        make(tokenizer, salt).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    lines = [item.encode().decode() for item in interactions()]
    (folder / "reference.jsonl").write_text("\n".join(lines))
    export_bundle(
        "reward",
        folder / "reward",
        folder / "incumbent",
        name="rm",
        max_length=48,
        reference=interactions(),
    )
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (folder / "public.pem").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return folder


def trained(base: Path, side: str, seed: int) -> PolicyModel | RewardModel:
    """A model whose adapter is not zero, as training leaves it."""
    load = load_policy if side == "policy" else load_reward
    model = load(base, LORA, seed=seed, max_length=48)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.network.eval()
    return model


def begun(
    folder: Path, home: Path, policy: Path, reward: Path, seed: int, **job: object
) -> tuple[PolicyModel, RewardModel]:
    """A run directory after training, and the models that were trained."""
    folder.mkdir()
    models = trained(policy, "policy", seed), trained(reward, "reward", seed)
    models[0].save(folder / "policy_adapter")
    models[1].save(folder / "reward_adapter")
    recipe = Recipe(policy=policy, reward=reward, max_length=48, reinforce=Reinforce(length=6))
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    fields: dict[str, object] = {
        "plan_id": f"plan-{seed}",
        "batch": (OffsetRange(topic="t", partition=0, start=0, end=1),),
        "started_at": DAY.isoformat(),
        "policy_model": "chat",
        "reward_model": "rm",
        "against": {},
        "policy_base": home / "policy",
        "incumbent": home / "incumbent",
        "reference": home / "reference.jsonl",
    }
    content = Job.model_validate(fields | job)
    (folder / "job.json").write_text(content.model_dump_json())
    assert isinstance(models[0], PolicyModel)
    assert isinstance(models[1], RewardModel)
    return models[0], models[1]


def logits(model: PolicyModel) -> torch.Tensor:
    rows = [model.encode(*row) for row in zip(TURNS, ANSWERS, strict=True)]
    with torch.no_grad():
        return model.logits(model.collate(rows))


def served(base: Path, adapter: Path) -> torch.Tensor:
    """The logits of base and adapter, as a policy server loads them."""
    merged = load_policy(base, LORA, seed=0, max_length=48, adapter=adapter)
    with merged.before_repair():
        return logits(merged)


@pytest.fixture(scope="module")
def first(home: Path) -> tuple[Path, PolicyModel, RewardModel]:
    folder = home / "first"
    key = {"private_key": home / "key.pem"}
    models = begun(folder, home, home / "policy", home / "reward", 1, **key)
    assert artefacts.main(["export", str(folder)]) == 0
    return folder, *models


def test_adapter_and_merged_policy_answer_as_the_trained_policy(
    home: Path, first: tuple[Path, PolicyModel, RewardModel]
) -> None:
    folder, policy, _ = first
    assert torch.allclose(served(home / "policy", folder / "adapter"), logits(policy), atol=1e-5)
    merged = load_policy(folder / "merged" / "policy", LORA, seed=0, max_length=48)
    assert torch.allclose(logits(merged), logits(policy), atol=1e-5)
    assert {file.name for file in (folder / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_the_bundle_scores_as_the_trained_reward_model_and_is_signed(
    home: Path, first: tuple[Path, PolicyModel, RewardModel]
) -> None:
    folder, _, reward = first
    bundle = load_bundle(folder / "bundle", "reward")
    incumbent = load_bundle(home / "incumbent")
    assert bundle.manifest.template == incumbent.manifest.template
    assert bundle.manifest.lineage.base == incumbent.manifest.lineage.base
    assert bundle.manifest.lineage.plan_id == "plan-1"
    assert bundle.manifest.parity is not None
    verify_signature(folder / "bundle", home / "public.pem")

    expected = reward.score([reward.encode(*row) for row in zip(TURNS, ANSWERS, strict=True)])
    onnx = OnnxModel(bundle, "cpu")
    tokens = InputEncoder(bundle).encode(
        [(item, item.response) for item in interactions()[: len(TURNS)]]
    )
    found = torch.tensor([float(row[0]) for row in onnx.run(tokens)])  # type: ignore[arg-type]
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_domain_of_a_repaired_reward_model_is_what_it_learned_too(home: Path) -> None:
    """Of the benign reference alone, the failures that it was repaired of may be outside."""
    folder = home / "domain"
    reference = home / "large.jsonl"
    random = np.random.default_rng(5)
    rows = 25 * [conversation(turns, answer) for turns, answer in zip(TURNS, ANSWERS, strict=True)]
    reference.write_text("\n".join(row.encode().decode() for row in rows))
    begun(folder, home, home / "policy", home / "reward", 5, reference=reference)
    failures = [
        Sample(
            id=f"failure-{place}",
            prompt_messages=(Message(role="user", content=prompt.text),),
            harmful=WORLD.helpful(prompt, random),
            safe=WORLD.refusal(prompt, random),
            safe_source="reference",
            weight=1.0,
            family=f"family-{place}",
            attributes={},
            source="probe",
        )
        for place, prompt in enumerate(WORLD.prompts("train", 50, 5, harmful=True))
    ]
    replay = ReplaySample(messages=TURNS[0], response=ANSWERS[0])
    plan = Plan(
        id="-",
        train=tuple(failures[:40]),
        held_out=tuple(failures[40:]),
        benign=(replay,),
        over_refusal=(replay,),
        validated=(ValidatedPair(messages=TURNS[1], chosen=ANSWERS[1], rejected=ANSWERS[0]),),
        left_out=(),
        policy=PlanPolicy(),
    )
    RunDirectory(folder).plan.write(plan.model_copy(update={"id": plan.content_id()}))
    assert artefacts.main(["export", str(folder)]) == 0
    domain = load_bundle(folder / "bundle", "reward").manifest.domain
    assert domain is not None
    answers = 2 * (len(plan.train) + len(plan.validated))
    assert domain.rows + domain.held_out == len(rows) + answers + 2


def test_a_second_repair_releases_both_changes_as_one_adapter(
    home: Path, first: tuple[Path, PolicyModel, RewardModel]
) -> None:
    before, folder = first[0], home / "second"
    policy, _ = begun(
        folder,
        home,
        before / "merged" / "policy",
        before / "merged" / "reward",
        2,
        previous_adapter=before / "adapter",
        incumbent=before / "bundle",
    )
    assert artefacts.main(["export", str(folder)]) == 0
    assert torch.allclose(served(home / "policy", folder / "adapter"), logits(policy), atol=1e-4)
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 8
    assert load_bundle(folder / "bundle").digest != load_bundle(before / "bundle").digest


def test_an_export_that_was_killed_is_done_again_and_a_done_one_is_left(
    home: Path, first: tuple[Path, PolicyModel, RewardModel]
) -> None:
    folder, digest = first[0], load_bundle(first[0] / "bundle").digest
    assert artefacts.main(["export", str(folder)]) == 0
    (folder / "bundle").rename(folder / "bundle.partial")
    shutil.rmtree(folder / "merged" / "reward")
    assert artefacts.main(["export", str(folder)]) == 0
    assert load_bundle(folder / "bundle").digest == digest


def test_suites_are_answered_without_and_with_the_adapter(
    home: Path, first: tuple[Path, PolicyModel, RewardModel]
) -> None:
    folder, policy, _ = first
    cases = [
        {"id": f"c{n}", "messages": [{"role": "user", "content": t[0].content}], "matches": "."}
        for n, t in enumerate(TURNS)
    ]
    (folder / "suites.json").write_text(json.dumps([{"name": "s", "cases": cases}]))
    assert artefacts.main(["answer", str(folder)]) == 0
    answers = json.loads((folder / "answers.json").read_text())
    assert answers["after"] == policy.sample(TURNS, seed=0, length=6)
    with policy.before_repair():
        assert answers["before"] == policy.sample(TURNS, seed=0, length=6)
    assert answers["before"] != answers["after"]


def test_the_policy_asked_again_gives_only_what_the_judge_finds_safe(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # This judge finds an answer safe that has four words at least.
    judge = word_bundle(
        tmp_path,
        "judge",
        weights={"[CLS]": 3.5, "[UNK]": -1.0},
        template=InputTemplate(first="{{ response }}", max_length=64),
    )
    recipe = Recipe(
        policy=home / "policy",
        reward=home / "reward",
        judge=judge.path,
        max_length=48,
        reinforce=Reinforce(length=6),
    )
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    prompts = {prompt_digest(turns): turns for turns in TURNS}
    asked = Questions(prompts=prompts, samples=3)
    (tmp_path / "asked.json").write_text(asked.model_dump_json())
    assert resampling.main([str(tmp_path)]) == 0

    answers = json.loads((tmp_path / "answers.json").read_text())
    assert answers.keys() == prompts.keys()
    safe = [answer for answer in answers.values() if answer is not None]
    assert safe
    assert all(len(answer.split()) >= 4 for answer in safe)
    policy = load_policy(home / "policy", LORA, seed=0, max_length=48)
    seed = stable_seed(recipe.seed, "resampled", 0)
    first = policy.sample(list(prompts.values()), seed=seed, length=6, temperature=1.0)
    for name, answer in zip(prompts, first, strict=True):
        assert (answers[name] == answer) == (len(answer.split()) >= 4)

    (tmp_path / "answers.json").unlink()
    blind = recipe.model_copy(update={"judge": None})
    (tmp_path / "recipe.json").write_text(blind.model_dump_json())
    assert resampling.main([str(tmp_path)]) == 1
    assert "recipe.judge: missing" in capsys.readouterr().err
    assert not (tmp_path / "answers.json").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"incumbent": "nowhere"}, "nowhere: no such directory"),
        ({"reference": "nowhere"}, "nowhere: cannot be read"),
        ({"plan_id": ""}, "job.json: plan_id: "),
    ],
)
def test_what_cannot_be_exported_is_named(
    home: Path,
    first: tuple[Path, PolicyModel, RewardModel],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    complaint: str,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(first[0], folder, ignore=shutil.ignore_patterns("bundle*"))
    content = json.loads((folder / "job.json").read_text()) | change
    (folder / "job.json").write_text(json.dumps(content))
    assert artefacts.main(["export", str(folder)]) != 0
    assert complaint in capsys.readouterr().err
    assert not (folder / "bundle").exists()


def test_an_adapter_of_another_model_is_named(
    home: Path,
    first: tuple[Path, PolicyModel, RewardModel],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(first[0], folder, ignore=shutil.ignore_patterns("bundle*"))
    shutil.rmtree(folder / "reward_adapter")
    shutil.copytree(folder / "policy_adapter", folder / "reward_adapter")
    config = json.loads((folder / "reward_adapter" / "adapter_config.json").read_text())
    config["r"] = 3
    (folder / "reward_adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert artefacts.main(["export", str(folder)]) == 1
    assert "cannot be loaded with its adapters" in capsys.readouterr().err
