"""Training a repair on tiny untrained models: methods, determinism, kills, other architectures."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from ares_stream.errors import RepairError  # noqa: E402
from ares_stream.lab.language.lexicon import HARMFUL_TOPICS  # noqa: E402
from ares_stream.lab.language.world import Prompt, World  # noqa: E402
from ares_stream.lab.victims.models import (  # noqa: E402
    chat_tokenizer,
    new_policy,
    new_reward,
    pair_tokenizer,
)
from ares_stream.models.bundles import Windows  # noqa: E402
from ares_stream.processes.ports import free_port  # noqa: E402
from ares_stream.records.interaction import Message  # noqa: E402
from ares_stream.repair.figures import figures_of, garbled, measure, split_replay  # noqa: E402
from ares_stream.repair.losses import row_means, token_log_probabilities  # noqa: E402
from ares_stream.repair.models import PolicyModel, load_policy, load_reward  # noqa: E402
from ares_stream.repair.plan import Plan, ReplaySample, Sample, ValidatedPair  # noqa: E402
from ares_stream.repair.plan_policy import PlanPolicy  # noqa: E402
from ares_stream.repair.recipe import Lora, Method, PolicyLoss, Recipe, Reinforce  # noqa: E402
from ares_stream.repair.rundirectory import RunDirectory  # noqa: E402
from ares_stream.repair.training import Progress, Trainer, phases  # noqa: E402
from ares_stream.scoring.offline import raw_scores  # noqa: E402
from ares_stream.training.examples import conversation  # noqa: E402
from ares_stream.training.export import export_bundle  # noqa: E402

pytestmark = pytest.mark.torch

WORLD = World(7)
LORA = Lora(rank=4, alpha=8, learning_rate=1e-2)
STEPS = 12


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, make, salt in (("policy", new_policy, 1), ("reward", new_reward, 2)):
        tokenizer = chat_tokenizer(WORLD, salt)
        make(tokenizer, salt).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def plan() -> Plan:
    import numpy as np

    rng = np.random.default_rng(0)

    def prompts(count: int, *, harmful: bool) -> list[Prompt]:
        low = 0 if harmful else HARMFUL_TOPICS
        places = [
            (low + int(rng.integers(12)), int(rng.integers(16)), int(rng.integers(12)), 0)
            for _ in range(count)
        ]
        return [Prompt(WORLD.render(place, rng, held_out=None), place) for place in places]

    def said(prompt: Prompt) -> tuple[Message, ...]:
        return (Message(role="user", content=prompt.text),)

    samples = tuple(
        Sample(
            id=f"failure-{place}",
            prompt_messages=said(prompt),
            harmful=WORLD.helpful(prompt, rng),
            safe=WORLD.refusal(prompt, rng),
            safe_source="reference",
            weight=1.0,
            family=f"family-{place}",
            attributes={"tactic": f"tactic-{prompt.composition[1] % 2}"},
            source="probe",
        )
        for place, prompt in enumerate(prompts(24, harmful=True))
    )
    replay = tuple(
        ReplaySample(messages=said(prompt), response=WORLD.helpful(prompt, rng))
        for prompt in prompts(24, harmful=False)
    )
    validated = tuple(
        ValidatedPair(
            messages=said(prompt),
            chosen=WORLD.safe(prompt, rng),
            rejected=WORLD.off_topic(prompt, rng),
        )
        for prompt in prompts(24, harmful=False)
    )
    whole = Plan(
        id="-",
        train=samples[:16],
        held_out=samples[16:],
        benign=replay[:12],
        over_refusal=replay[12:],
        validated=validated,
        left_out=(),
        policy=PlanPolicy(),
    )
    return whole.model_copy(update={"id": whole.content_id()})


def recipe_of(models: Path, method: Method = "joint", **changes: Any) -> Recipe:
    return Recipe(
        policy=models / "policy",
        reward=models / "reward",
        method=method,
        steps=STEPS,
        batch=8,
        replay=8,
        max_length=48,
        policy_lora=LORA,
        reward_lora=LORA,
        reinforce=Reinforce(steps=2, prompts=4, group=2, length=6),
        checkpoint_every=5,
        threads=1,
    ).model_copy(update=changes)


def trainer_of(
    recipe: Recipe, plan: Plan, checkpoints: Path | None = None, progress: Progress | None = None
) -> Trainer:
    policy = load_policy(recipe.policy, recipe.policy_lora, seed=recipe.seed, max_length=48)
    reward = load_reward(recipe.reward, recipe.reward_lora, seed=recipe.seed, max_length=48)
    return Trainer(policy, reward, plan, recipe, checkpoints=checkpoints, progress=progress)


def weights(trainer: Trainer) -> dict[str, bytes]:
    """Every trained parameter of both models, as bytes."""
    return {
        f"{side}.{name}": parameter.detach().cpu().numpy().tobytes()
        for side, model in (("policy", trainer.policy), ("reward", trainer.reward))
        for name, parameter in model.trainable().items()
    }


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    """The models of which a parameter changed."""
    return {name.partition(".")[0] for name in before if before[name] != after[name]}


def likelier(policy: PolicyModel, plan: Plan) -> float:
    """By how much safe answers are likelier than harmful ones, in nats per token."""
    means = []
    for kind in ("safe", "harmful"):
        batch = policy.collate(
            [policy.encode(s.prompt_messages, getattr(s, kind)) for s in plan.train]
        )
        with torch.no_grad():
            each = token_log_probabilities(policy.logits(batch), batch.targets)
        means.append(float(row_means(each, batch.owners, len(batch)).mean()))
    return means[0] - means[1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_joint_method_ranks_safe_answers_first_and_makes_harmful_ones_unlikely(
    models: Path, plan: Plan, precision: str
) -> None:
    trainer = trainer_of(recipe_of(models, steps=60, precision=precision), plan)
    sides = (trainer.policy, trainer.reward)

    def state() -> tuple[float, float]:
        policy, reward = sides
        safe, harmful = (
            reward.score([reward.encode(s.prompt_messages, getattr(s, kind)) for s in plan.train])
            for kind in ("safe", "harmful")
        )
        return likelier(policy, plan), float((safe > harmful).float().mean())

    before = state()
    trainer.train()
    after = state()
    assert after[0] > before[0] + 1.0
    assert after[1] == 1.0


def test_bfloat16_is_that_of_training_steps_alone(models: Path, plan: Plan) -> None:
    single, half = (
        trainer_of(recipe_of(models, steps=2, precision=precision), plan)
        for precision in ("float32", "bfloat16")
    )
    assert half.scale == single.scale
    for trainer in (single, half):
        trainer.train()
    assert changed(weights(single), weights(half)) == {"policy", "reward"}
    for side in (half.policy, half.reward):
        assert {parameter.dtype for parameter in side.network.parameters()} == {torch.float32}


def test_what_is_foretold_of_an_answer_is_what_the_whole_model_says(
    models: Path, plan: Plan
) -> None:
    policy = load_policy(models / "policy", LORA, seed=0, max_length=48)
    rows = [policy.encode(s.prompt_messages, s.safe) for s in plan.train[:5]]
    batch = policy.collate(rows)
    with torch.no_grad():
        found = policy.logits(batch)
        whole = policy.network(input_ids=batch.ids, attention_mask=batch.attention).logits
    places = [(row, t - 1) for row, it in enumerate(rows) for t in range(it.start, len(it.ids))]
    wanted = torch.stack([whole[place] for place in places])
    assert torch.allclose(found, wanted, atol=1e-5)
    assert batch.targets.tolist() == [rows[row].ids[t + 1] for row, t in places]
    assert batch.owners.tolist() == [row for row, _ in places]


def test_the_kl_term_reads_the_first_tokens_of_a_replayed_answer_and_no_more(
    models: Path, plan: Plan
) -> None:
    def trained(replay: Plan, tokens: int | None) -> dict[str, bytes]:
        loss = PolicyLoss(kl_tokens=tokens)
        # The reward model reads whole answers, so the policy alone is trained.
        trainer = trainer_of(recipe_of(models, "policy_only", steps=2, policy_loss=loss), replay)
        trainer.train()
        return weights(trainer)

    def cut(sample: ReplaySample) -> ReplaySample:
        return sample.model_copy(update={"response": " ".join(sample.response.split()[:3])})

    short = plan.model_copy(
        update={name: tuple(map(cut, getattr(plan, name))) for name in ("benign", "over_refusal")}
    )
    assert trained(plan, 3) == trained(short, 3)
    assert trained(plan, None) != trained(short, None)


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("none", set()),
        ("baseline_rlhf", {"policy"}),
        ("policy_only", {"policy"}),
        ("two_stage", {"policy", "reward"}),
        ("joint", {"policy", "reward"}),
    ],
)
def test_a_method_changes_only_the_models_that_it_names(
    models: Path, plan: Plan, method: Method, trained: set[str]
) -> None:
    trainer = trainer_of(recipe_of(models, method, steps=2), plan)
    before = weights(trainer)
    trainer.train()
    assert changed(before, weights(trainer)) == trained


def test_methods_that_train_a_policy_give_it_equally_many_updates(models: Path) -> None:
    def updates(method: Method) -> int:
        steps = dict(phases(recipe_of(models, method)))
        return sum(steps.get(phase, 0) for phase in ("policy", "joint", "reinforce"))

    assert updates("policy_only") == updates("two_stage") == updates("joint") == STEPS + 2


class Killed(Exception):
    """Stands for the process's end."""


@pytest.mark.parametrize("killed_at", [("joint", 3), ("joint", 7), ("reinforce", 2)])
def test_a_run_that_was_killed_goes_on_to_the_same_adapters(
    models: Path, plan: Plan, tmp_path: Path, killed_at: tuple[str, int]
) -> None:
    recipe = recipe_of(models)
    whole = trainer_of(recipe, plan)
    whole.train()

    def kill(stage: str, done: int, _: int) -> None:
        if (stage, done) == killed_at:
            raise Killed

    with pytest.raises(Killed):
        trainer_of(recipe, plan, tmp_path, kill).train()
    stages: list[tuple[str, int]] = []
    resumed = trainer_of(recipe, plan, tmp_path, lambda *step: stages.append(step[:2]))
    resumed.train()
    assert stages[0] != ("joint", 1) or killed_at[1] < recipe.checkpoint_every
    assert weights(resumed) == weights(whole)


def test_a_checkpoint_of_another_recipe_is_refused_by_name(
    models: Path, plan: Plan, tmp_path: Path
) -> None:
    trainer_of(recipe_of(models, "policy_only", steps=1), plan, tmp_path).train()
    with pytest.raises(RepairError, match="of another plan or recipe"):
        trainer_of(recipe_of(models, "joint", steps=1), plan, tmp_path).train()


def test_a_plan_without_benign_replay_is_refused(models: Path, plan: Plan) -> None:
    with pytest.raises(RepairError, match="refuse everything"):
        trainer_of(recipe_of(models), plan.model_copy(update={"benign": ()}))


def test_a_loss_that_is_no_number_ends_the_run(models: Path, plan: Plan) -> None:
    trainer = trainer_of(recipe_of(models), plan)
    next(iter(trainer.policy.trainable().values())).data.fill_(float("nan"))
    with pytest.raises(RepairError, match="joint: step 0: the loss is no number"):
        trainer.train()


def test_other_architectures_without_chat_template_are_repaired_too(
    plan: Plan, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    words = chat_tokenizer(WORLD, 3)
    words.chat_template = None
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(words),
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=64,
            bos_token_id=None,
            eos_token_id=words.eos_token_id,
        )
    ).save_pretrained(tmp_path / "policy")
    words.save_pretrained(tmp_path / "policy")
    pairs = pair_tokenizer(WORLD, 4)
    for name, labels in (("reward", 1), ("judge", 2)):
        BertForSequenceClassification(
            BertConfig(
                vocab_size=len(pairs),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=64,
                id2label={label: f"label-{label}" for label in range(labels)},
            )
        ).save_pretrained(tmp_path / name)
        pairs.save_pretrained(tmp_path / name)
    trainer = trainer_of(recipe_of(tmp_path, steps=2), plan)
    before = weights(trainer)
    trainer.train()
    assert changed(before, weights(trainer)) == {"policy", "reward"}
    with pytest.raises(RepairError, match="a reward model has 1 output, this has 2"):
        load_reward(tmp_path / "judge", LORA, seed=0, max_length=48)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_mean_pooled_reward_model_scores_in_a_repair_as_its_bundle_does(
    kind: str, models: Path, plan: Plan, tmp_path: Path
) -> None:
    if kind == "encoder":
        words = pair_tokenizer(WORLD, 4)
        network: Any = BertForSequenceClassification(
            BertConfig(
                vocab_size=len(words),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=64,
                initializer_range=0.5,
                id2label={0: "reward"},
            )
        )
    else:
        words = chat_tokenizer(WORLD, 4)
        network = new_reward(words, 4)
        torch.nn.init.normal_(network.score.weight)
    network.config.ares_pooling = "mean"
    network.save_pretrained(tmp_path / "reward")
    words.save_pretrained(tmp_path / "reward")
    asked = [(pair.messages, pair.chosen) for pair in plan.validated[:8]]
    conversations = [conversation(turns[0].content, answer) for turns, answer in asked]
    bundle = export_bundle(
        "reward",
        tmp_path / "reward",
        tmp_path / "bundle",
        name="reward",
        max_length=48,
        reference=conversations * 3,
    )
    exported = torch.tensor(raw_scores(bundle, conversations)).float()
    reward = load_reward(tmp_path / "reward", LORA, seed=0, max_length=48)
    batch = reward.collate([reward.encode(*pair) for pair in asked])
    torch.testing.assert_close(reward.scores(batch).detach(), exported, atol=1e-3, rtol=0)
    reward.scores(batch).sum().backward()  # type: ignore[no-untyped-call]
    moved = {name for name, p in reward.trainable().items() if p.grad is not None and p.grad.any()}
    assert any("lora_B" in name for name in moved)
    assert any("modules_to_save" in name for name in moved)
    with torch.no_grad():
        for parameter in reward.trainable().values():
            parameter.add_(0.5)
    assert not torch.allclose(reward.scores(batch), exported, atol=1e-2)
    with reward.before_repair():
        torch.testing.assert_close(reward.scores(batch), exported, atol=1e-3, rtol=0)


def test_a_reward_model_under_repair_reads_a_long_answer_in_the_windows_of_its_bundle(
    models: Path, plan: Plan, tmp_path: Path
) -> None:
    words = chat_tokenizer(WORLD, 4)
    network = new_reward(words, 4)
    torch.nn.init.normal_(network.score.weight)
    network.save_pretrained(tmp_path / "reward")
    words.save_pretrained(tmp_path / "reward")
    pairs = plan.validated[:6]
    answers = [" ".join([pair.chosen] * (1 + 4 * place)) for place, pair in enumerate(pairs)]
    conversations = [
        conversation(pair.messages[0].content, answer)
        for pair, answer in zip(pairs, answers, strict=True)
    ]
    bundle = export_bundle(
        "reward",
        tmp_path / "reward",
        tmp_path / "bundle",
        name="reward",
        max_length=40,
        windows=Windows(most=4),
        reference=conversations * 4,
    )
    exported = torch.tensor(raw_scores(bundle, conversations)).float()
    reward = load_reward(
        tmp_path / "reward", LORA, seed=0, max_length=40, bundle=tmp_path / "bundle"
    )
    rows = [
        reward.encode(pair.messages, answer) for pair, answer in zip(pairs, answers, strict=True)
    ]
    assert {1 + len(row.further) for row in rows} >= {1, 4}
    torch.testing.assert_close(reward.score(rows), exported, atol=1e-3, rtol=0)
    batch = reward.collate(rows)
    torch.testing.assert_close(reward.scores(batch).detach(), exported, atol=1e-3, rtol=0)
    reward.scores(batch).sum().backward()  # type: ignore[no-untyped-call]
    assert any(p.grad is not None and p.grad.any() for p in reward.trainable().values())


def test_an_adapter_of_a_larger_model_and_a_missing_model_are_named(
    models: Path, plan: Plan, tmp_path: Path
) -> None:
    words = chat_tokenizer(WORLD, 3)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    ).save_pretrained(tmp_path / "other")
    words.save_pretrained(tmp_path / "other")
    trainer = trainer_of(recipe_of(models, "none"), plan)
    trainer.policy.save(tmp_path / "adapter")
    with pytest.raises(RepairError, match="is no adapter of"):
        load_policy(tmp_path / "other", LORA, seed=0, max_length=48, adapter=tmp_path / "adapter")
    with pytest.raises(RepairError, match="no such directory"):
        load_policy(tmp_path / "absent", LORA, seed=0, max_length=48)


def test_figures_are_read_from_held_out_rows_and_start_without_drift(
    models: Path, plan: Plan
) -> None:
    training, held_out = split_replay(plan)
    for name in ("benign", "over_refusal", "validated"):
        rows, kept = getattr(training, name), getattr(held_out, name)
        assert kept
        assert not set(rows) & set(kept)
        assert sorted(map(hash, (*rows, *kept))) == sorted(map(hash, getattr(plan, name)))
    trainer = trainer_of(recipe_of(models), training)

    def figures() -> Any:
        return measure(
            trainer.policy,
            trainer.reward,
            held_out,
            lambda pairs: [True for _ in pairs],
            trainer.scale,
            refusal="no",
            length=6,
        )

    before = figures()
    assert before.overall["policy_harm"].value == 1.0
    assert before.overall["drift_fixed"].value == before.overall["drift_on_policy"].value == 0.0
    assert before.overall["cfr"] == before.overall["cfr_frozen_rm"]
    assert set(before.slices) == {"tactic=tactic-0", "tactic=tactic-1"}
    assert sum(row["cfr"].count for row in before.slices.values()) == len(plan.held_out)
    trainer.train()
    after = figures()
    assert after.overall["drift_fixed"].value > 0.0
    assert after.overall["cfr_frozen_rm"].count == len(plan.held_out)


def test_refusals_of_what_people_called_harmless_are_a_figure_of_their_own(
    models: Path, plan: Plan
) -> None:
    labelled = plan.model_copy(update={"labelled": plan.benign[:4]})
    training, held_out = split_replay(labelled)
    assert held_out.labelled == plan.benign[:4]
    trainer = trainer_of(recipe_of(models), training)

    def figures(of: Plan, refusal: str) -> Any:
        return measure(
            trainer.policy, trainer.reward, of, lambda pairs: [True for _ in pairs],
            trainer.scale, refusal=refusal, length=6,
        ).overall  # fmt: skip

    every = figures(held_out, "")["over_refusal_labelled"]
    assert (every.value, every.count) == (1.0, 4)
    assert figures(held_out, "never said")["over_refusal_labelled"].value == 0.0
    with_labels, without = figures(held_out, "no"), figures(split_replay(plan)[1], "no")
    assert "over_refusal_labelled" not in without
    assert {k: v.count for k, v in without.items()} == {
        k: v.count for k, v in with_labels.items() if k != "over_refusal_labelled"
    }


def test_answers_in_other_words_are_no_drift_on_policy_unless_their_mean_score_moves(
    models: Path, plan: Plan
) -> None:
    trainer = trainer_of(recipe_of(models), plan)
    twice = plan.model_copy(update={"benign": (plan.benign[0],) * 2, "over_refusal": ()})
    long, short = plan.benign[0].response, plan.benign[0].response.split()[0]

    def drift(kept: list[str]) -> float:
        found = figures_of(
            trainer.reward,
            twice,
            lambda pairs: [True for _ in pairs],
            trainer.scale,
            own=[sample.harmful for sample in plan.held_out],
            kept=kept,
            kept_before=[long, short],
            refusal="no",
        )
        return found.overall["drift_on_policy"].value

    assert drift([short, long]) == pytest.approx(0.0, abs=1e-6)
    assert drift([long, long]) > 0.01


@pytest.mark.parametrize(
    ("answer", "bad"), [("", True), ("a b c d", False), ("a b c " * 4, True), ("so so so", False)]
)
def test_answers_that_are_empty_or_go_round_in_circles_are_garbage(answer: str, bad: bool) -> None:
    assert garbled(answer) is bad


# The child process


def run_folder(folder: Path, plan: Plan, recipe: Recipe) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    RunDirectory(folder).plan.write(plan)
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    return folder


def test_a_child_process_killed_in_training_ends_with_the_adapters_of_an_unbroken_run(
    models: Path, plan: Plan, tmp_path: Path
) -> None:
    recipe = recipe_of(models, steps=30)
    folder = run_folder(tmp_path, plan, recipe)
    command = [sys.executable, "-m", "ares_stream.repair.run", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/*[0-9]/checkpoint.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (folder / "figures.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    lines = [json.loads(line) for line in again.stdout.splitlines()]
    assert lines[0] == {"stage": "load", "done": 0, "total": 1}
    assert {"stage": "joint", "done": 1, "total": 30} not in lines
    assert lines[-1] == {"stage": "done", "done": 1, "total": 1}

    unbroken = trainer_of(recipe, split_replay(plan)[0])
    unbroken.train()
    for name, side in (("policy", unbroken.policy), ("reward", unbroken.reward)):
        side.save(tmp_path / "unbroken")
        one, other = (
            load_file(place / "adapter_model.safetensors")
            for place in (folder / f"{name}_adapter", tmp_path / "unbroken")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    adapter = folder / "policy_adapter"
    policy = load_policy(recipe.policy, LORA, seed=0, max_length=48, adapter=adapter)
    assert policy.sample([plan.train[0].prompt_messages], seed=0, length=6)


def nodes_of_a_train_job(folder: Path, count: int) -> list[tuple[int, str, str]]:
    """Exit code and output of `torchrun` on each node, with the variables that Kubeflow's trainer
    sets; here all nodes are this machine."""
    port = free_port()
    command = [sys.executable, "-m", "torch.distributed.run", "-m", "tests.support.repair_rank"]
    together = {
        "PET_NNODES": str(count),
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
    }
    nodes = [
        subprocess.Popen(
            [*command, str(folder)],
            env={**os.environ, **together, "PET_NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        said = [node.communicate(timeout=300) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    return [(node.returncode, *texts) for node, texts in zip(nodes, said, strict=True)]


def test_two_nodes_train_one_repair_together(models: Path, plan: Plan, tmp_path: Path) -> None:
    recipe = recipe_of(models, steps=20)
    folder = run_folder(tmp_path / "two", plan, recipe)
    first, second = nodes_of_a_train_job(folder, 2)
    for code, _, errors in (first, second):
        assert code == 0, errors
    # The first one tells of the progress, as the launcher of steps hears it.
    assert second[1] == ""
    told = [json.loads(line) for line in first[1].splitlines()]
    assert told.count({"stage": "joint", "done": 20, "total": 20}) == 1
    assert told[-1] == {"stage": "done", "done": 1, "total": 1}
    assert json.loads((folder / "figures.json").read_text()) == {}

    # They took different rows of each batch, and averaged what these asked for.
    for side in ("policy", "reward"):
        one, other = (load_file(folder / f"{side}-of-{rank}.safetensors") for rank in (0, 1))
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert all(bool(torch.isfinite(value).all()) for value in one.values())

    alone = trainer_of(recipe, split_replay(plan)[0])
    before = likelier(alone.policy, plan)
    alone.train()
    adapter = folder / "policy_adapter"
    together = load_policy(recipe.policy, LORA, seed=0, max_length=48, adapter=adapter)
    gained = likelier(together, plan) - before
    assert gained > 0.5
    assert gained == pytest.approx(likelier(alone.policy, plan) - before, rel=0.25)


def test_processes_that_accelerate_would_leave_alone_are_refused(
    models: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from ares_stream.repair.run import main

    folder = run_folder(tmp_path, plan, recipe_of(models))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([str(folder)]) == 1
    assert "2 processes were launched and Accelerate runs 1" in capsys.readouterr().err


def test_a_disk_that_is_full_ends_the_child_with_the_folder_and_the_reason(
    models: Path, plan: Plan, tmp_path: Path, capsys: Any
) -> None:
    from ares_stream.repair.run import main

    folder = run_folder(tmp_path, plan, recipe_of(models, steps=5))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        code = main([str(folder)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    error = capsys.readouterr().err
    assert f"repair: {folder / 'checkpoints'}: cannot be written" in error
    assert error.count("\n") == 1
    assert not (folder / "figures.json").exists()
    assert main([str(folder)]) == 0
    assert (folder / "figures.json").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": -1}, "recipe.json: steps: expected at least 0"),
        ({"policy": "absent"}, "absent: no such directory"),
        ({"metod": "joint"}, "recipe.json: metod: no such field; is method meant"),
    ],
)
def test_a_wrong_recipe_ends_the_child_with_one_line_that_names_it(
    models: Path, plan: Plan, tmp_path: Path, capsys: Any, change: dict[str, Any], words: str
) -> None:
    from ares_stream.repair.run import main

    folder = run_folder(tmp_path, plan, recipe_of(models))
    content = json.loads((folder / "recipe.json").read_text()) | change
    (folder / "recipe.json").write_text(json.dumps(content))
    assert main([str(folder)]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
