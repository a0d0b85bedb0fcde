"""Trainer, repair, export and scorer read the same tokens, and they are transformers' own."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from ares_stream.errors import BundleError, RepairError
from ares_stream.models.bundles import load_bundle
from ares_stream.probes.local_target import LocalTarget
from ares_stream.probes.targets import Answer, Query
from ares_stream.records.interaction import Message, Policy
from ares_stream.repair.models import load_policy, load_reward
from ares_stream.repair.recipe import Lora
from ares_stream.scoring.offline import raw_scores
from ares_stream.scoring.tokenising import InputEncoder, Tokens
from ares_stream.training.checkpoints import load_checkpoint
from ares_stream.training.export import export_bundle
from ares_stream.training.policy import PolicyEncoder
from tests.support.tiny_models import (
    CHAT_ML,
    SAMPLE,
    byte_pairs,
    checkpoint,
    network,
    rewrite,
    word_pieces,
)

pytestmark = [
    pytest.mark.torch,
    # Of transformers, from within peft, on loading any adapter.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]

LORA = Lora(rank=4, alpha=8)
REFERENCE = SAMPLE * 5
TODAY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ strftime_now('%d %b %Y') }} "
    "{{ m.role }} {{ m.content | trim }}{% endif %}{% endfor %}"
)
STRICT = "{{ bos_token }}" + CHAT_ML.replace(
    "{% for m in messages %}",
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}",
)


def reward(folder: Path, name: str, tokenizer: Any) -> tuple[Path, Path]:
    """A checkpoint with one output, and its bundle."""
    model = checkpoint(folder / "model", name, tokenizer=tokenizer, num_labels=1)
    benign = [item for item in REFERENCE if item.messages[0].role != "system"]
    export_bundle("reward", model, folder / "bundle", name="rm", max_length=64, reference=benign)
    return model, folder / "bundle"


@pytest.mark.parametrize(
    ("name", "tokenizer", "segments"),
    [
        ("Bert", {}, True),
        ("Bert", {"listed": False}, False),
        ("Roberta", {}, False),
        ("DistilBert", {}, False),
        ("DebertaV2", {}, False),
    ],
    ids=lambda value: str(value),
)
def test_segments_are_fed_to_the_models_that_have_them_and_to_no_others(
    tmp_path: Path, name: str, tokenizer: dict[str, bool], segments: bool
) -> None:
    words = word_pieces(**tokenizer)
    model = checkpoint(tmp_path / "model", name, tokenizer=words)
    bundle = export_bundle("harm", model, tmp_path / "bundle", name="judge", max_length=512)
    theirs = AutoModelForSequenceClassification.from_pretrained(model).eval()
    items = [
        item.model_copy(update={"messages": item.messages[-1:]})
        for item in SAMPLE
        if len(item.response) < 400
    ]
    expected = []
    for item in items:
        inputs = words(item.prompt, item.response, return_tensors="pt")
        if not segments:
            inputs.pop("token_type_ids", None)
        with torch.no_grad():
            expected.append(float(theirs(**inputs).logits.softmax(-1)[0, 1]))
    assert raw_scores(bundle, items) == pytest.approx(expected, abs=1e-4)
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.max_abs_difference < 1e-4


@pytest.mark.parametrize(
    ("name", "chat", "begins"),
    [
        ("Llama", TODAY, False),
        ("Gemma2", STRICT, True),
        ("Qwen3", {"default": CHAT_ML, "tool_use": "x"}, False),
        ("Llama", None, True),
        ("Gemma3", CHAT_ML, True),
        ("Bert", None, False),
        ("Bert", CHAT_ML, False),
    ],
    ids=["today", "strict", "several", "no chat", "composite", "pair", "encoder with chat"],
)
def test_a_repair_reads_what_the_scorer_reads_and_scores_what_it_scores(
    tmp_path: Path, name: str, chat: Any, begins: bool
) -> None:
    words = word_pieces() if name == "Bert" else byte_pairs(begins=begins)
    words.chat_template = chat
    model, bundle = reward(tmp_path, name, words)
    plain = load_reward(model, LORA, seed=0, max_length=64)
    repaired = load_reward(model, LORA, seed=0, max_length=512, bundle=bundle)
    # Training conversations have no day: theirs is that of the epoch.
    epoch = SAMPLE[0].occurred_at.fromtimestamp(0, tz=SAMPLE[0].occurred_at.tzinfo)
    items = [item.model_copy(update={"occurred_at": epoch}) for item in SAMPLE]
    if chat == STRICT:
        with pytest.raises(RepairError, match="refuses this conversation"):
            plain.encode(items[2].messages, items[2].response)
        del items[2]
    scored = InputEncoder(load_bundle(bundle)).encode([(item, item.response) for item in items])
    rows = [repaired.encode(item.messages, item.response) for item in items]
    for item, tokens, row in zip(items, scored, rows, strict=True):
        assert isinstance(tokens, Tokens)
        assert row.ids == tuple(tokens.ids.tolist())
        assert plain.encode(item.messages, item.response) == row
    assert max(len(row.ids) for row in rows) == 64
    expected = torch.tensor(raw_scores(load_bundle(bundle), items)).float()
    torch.testing.assert_close(repaired.score(rows), expected, atol=1e-3, rtol=1e-3)


def test_a_template_that_transformers_renders_otherwise_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = byte_pairs("{{ messages[0].content }}{{ eos_token }}")
    model = checkpoint(tmp_path / "model", "Llama", tokenizer=words)
    monkeypatch.setattr(
        "ares_stream.training.inputs.with_special_tokens", lambda source, tokens: source
    )
    with pytest.raises(BundleError, match="conversation 1 of the sample becomes other tokens"):
        export_bundle("harm", model, tmp_path / "out", name="judge", max_length=64)
    assert not (tmp_path / "out").exists()


def test_templates_without_a_default_are_named(tmp_path: Path) -> None:
    words = byte_pairs()
    words.chat_template = {"tool_use": "x", "rag": "y"}
    model = checkpoint(tmp_path / "model", "Llama", tokenizer=words)
    with pytest.raises(BundleError, match=r"several chat templates \(rag, tool_use\)"):
        export_bundle("harm", model, tmp_path / "out", name="judge", max_length=64)


def test_the_bundle_of_another_model_is_no_measure(tmp_path: Path) -> None:
    _, bundle = reward(tmp_path / "one", "Bert", word_pieces())
    other = checkpoint(tmp_path / "two", "Llama", num_labels=1)
    with pytest.raises(RepairError, match="its tokenizer is not that of the bundle"):
        load_reward(other, LORA, seed=0, max_length=64, bundle=bundle)


HEADS = [
    "Bert",
    "Roberta",
    "DistilBert",
    "DebertaV2",
    "Electra",
    "GPT2",
    "Llama",
    "Gemma2",
    "Qwen3",
]


@pytest.mark.parametrize("name", HEADS)
def test_a_head_trains_in_full_and_is_adapted_nowhere(tmp_path: Path, name: str) -> None:
    model = checkpoint(tmp_path / "model", name, num_labels=1)
    trained = set(load_reward(model, LORA, seed=0, max_length=64).trainable())
    head = {part for part in trained if ".classifier" in part or ".score" in part}
    assert head
    assert all("modules_to_save" in part and "lora" not in part for part in head)
    assert any("lora_B" in part for part in trained - head)


def policy(folder: Path, name: str, tokenizer: Any, **generation: Any) -> Path:
    model = network(name, "ForCausalLM", eos_token_id=2, bos_token_id=1)
    model.generation_config.update(**generation)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TURNS = (Message(role="system", content="Be brief."), Message(role="user", content="Why?"))


def test_an_answer_ends_at_every_stop_token_and_is_taught_the_templates_own(
    tmp_path: Path,
) -> None:
    words = byte_pairs(CHAT_ML)
    end, turn = words.convert_tokens_to_ids(["<|end|>", "<|im_end|>"])
    folder = policy(tmp_path / "policy", "Llama", words, eos_token_id=[end, turn])
    model = load_policy(folder, LORA, seed=0, max_length=64)
    assert set(model.words.stop) == {end, turn}
    assert model.words.end == (turn,)
    row = model.encode(TURNS, "Air.")
    assert row.ids[-1] == turn
    assert words.decode(row.ids[: row.start]).endswith("<|im_start|>assistant\n")
    assert (
        model.words.read([*words("Air.")["input_ids"], turn, *words("User: more")["input_ids"]])
        == "Air."
    )


def always(token: int) -> Any:
    """A bias that makes every next token this one."""
    return lambda model: model.lm_head.register_forward_hook(
        lambda _module, _inputs, logits: torch.nn.functional.one_hot(
            torch.full(logits.shape[:-1], token), logits.shape[-1]
        ).float()
    )


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_a_policy_does_not_run_on_behind_a_stop_token_of_a_list(tmp_path: Path, where: str) -> None:
    words = byte_pairs(CHAT_ML)
    turn = words.convert_tokens_to_ids("<|im_end|>")
    folder = policy(tmp_path / "policy", "Llama", words)
    rewrite(folder / "generation_config.json", eos_token_id=2)
    rewrite(folder / where, eos_token_id=[2, turn])
    model = load_policy(folder, LORA, seed=0, max_length=64)
    always(turn)(model.network.get_base_model())
    assert model.sample([TURNS], seed=0, length=12) == [""]
    target = LocalTarget.load(folder, Policy(name="p", version="1"), max_new_tokens=12)
    always(turn)(target._model)
    (found,) = target.answer([Query(TURNS, 0)])
    assert isinstance(found, Answer)
    assert (found.text, found.completion_tokens) == ("", 1)


def test_without_a_chat_template_a_prompt_begins_as_the_model_was_taught(tmp_path: Path) -> None:
    begins = policy(tmp_path / "begins", "Gemma2", byte_pairs(begins=True))
    does_not = policy(tmp_path / "does-not", "Gemma2", byte_pairs())
    assert load_policy(begins, LORA, seed=0, max_length=64).words.prompt(TURNS)[0] == 1
    assert 1 not in load_policy(does_not, LORA, seed=0, max_length=64).words.prompt(TURNS)


def test_a_prompt_that_is_cut_keeps_its_beginning_token_and_its_end(tmp_path: Path) -> None:
    folder = policy(tmp_path / "policy", "Gemma2", byte_pairs(begins=True))
    model = load_policy(folder, LORA, seed=0, max_length=32)
    long = (Message(role="user", content="a long story " * 40 + "ends here"),)
    row = model.encode(long, "Yes.")
    assert len(row.ids) == 32
    assert row.ids[0] == 1
    assert model.tokenizer.decode(row.ids[1 : row.start]).endswith("ends here\n")


def test_roles_that_a_policys_template_refuses_are_named_without_their_text(
    tmp_path: Path,
) -> None:
    folder = policy(tmp_path / "policy", "Gemma2", byte_pairs(STRICT))
    found = load_checkpoint(folder, "policy")
    words = PolicyEncoder(found.model, found.tokenizer)
    with pytest.raises(Exception, match="refuses a conversation of roles system, user") as caught:
        words.prompt(TURNS)
    assert caught.value.__context__ is None


def test_a_policy_without_any_end_is_refused(tmp_path: Path) -> None:
    words = byte_pairs()
    words.eos_token = None
    network("Llama", "ForCausalLM", eos_token_id=None, bos_token_id=None).save_pretrained(
        tmp_path / "policy"
    )
    words.save_pretrained(tmp_path / "policy")
    rewrite(tmp_path / "policy" / "generation_config.json", eos_token_id=None)
    with pytest.raises(RepairError, match="no end token"):
        load_policy(tmp_path / "policy", LORA, seed=0, max_length=64)


def test_a_constant_reward_model_is_not_exported(tmp_path: Path) -> None:
    model: Any = network("Bert", num_labels=1)
    torch.nn.init.zeros_(model.classifier.weight)
    model.save_pretrained(tmp_path / "model")
    word_pieces().save_pretrained(tmp_path / "model")
    with pytest.raises(Exception, match="scores nearly all of the 30 reference conversations"):
        export_bundle(
            "reward",
            tmp_path / "model",
            tmp_path / "out",
            name="rm",
            max_length=64,
            reference=REFERENCE,
        )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory in which no file may grow beyond 8 KiB, as where 8 KiB are left."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "disk").mkdir()
    yield tmp_path / "disk"
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, full_disk: Path) -> None:
    model = checkpoint(tmp_path / "model", "Bert")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    with pytest.raises(BundleError, match="cannot be written") as caught:
        export_bundle("harm", model, full_disk / "out", name="judge", max_length=64)
    assert "\n" not in str(caught.value)
    assert list(full_disk.iterdir()) == []
