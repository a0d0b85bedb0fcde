"""Tiny models with random weights, exported from Hugging Face checkpoints to bundles."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ares_stream.errors import BundleError
from ares_stream.models.bundles import Bundle
from ares_stream.records.interaction import Interaction, Message, Policy
from ares_stream.scoring.offline import raw_scores
from ares_stream.scoring.runtime import OnnxModel
from ares_stream.scoring.tokenising import InputEncoder, Tokens

pytestmark = pytest.mark.torch

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "user", "assistant"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m.role }} {{ m.content }}{{ eos_token }}{% endfor %}"
)


def interaction(prompt: str, response: str, role: str = "user") -> Interaction:
    messages = (Message(role="user", content=prompt),)
    first = (Message(role="system", content="alpha"),) if role == "system" else ()
    return Interaction(
        id="i",
        occurred_at=datetime(2024, 1, 1, tzinfo=UTC),
        messages=(*first, *messages),
        response=response,
        policy=Policy(name="p", version="1"),
    )


CONVERSATIONS = [
    interaction(" ".join(WORDS[:left]), " ".join(WORDS[left : left + right]))
    for left in range(1, 6)
    for right in (1, 3, 6)
]


def fast_tokenizer(chat: str | None) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    fast.chat_template = chat
    return fast


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a checkpoint of an architecture with so many labels."""
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForSequenceClassification,
    )

    def write(name: str, labels: int, chat: str | None = None, **config: Any) -> Path:
        sizes: dict[str, Any] = {
            "vocab_size": 16,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "num_labels": labels,
            "pad_token_id": 0,
            **config,
        }
        torch.manual_seed(labels)
        # Weights far larger than a real model's first ones, so that outputs differ visibly.
        architectures: dict[str, tuple[Any, Any]] = {
            "bert": (BertForSequenceClassification, BertConfig),
            "llama": (LlamaForSequenceClassification, LlamaConfig),
        }
        classifier, settings = architectures[name]
        model = classifier(settings(**sizes, initializer_range=0.5))
        folder = tmp_path_factory.mktemp(f"{name}-{labels}")
        model.save_pretrained(folder)
        fast_tokenizer(chat).save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="module")
def bundles(
    checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bundle]:
    """Every export, made once."""
    from ares_stream.training.export import export_bundle

    out = tmp_path_factory.mktemp("bundles")
    names = {str(index): f"class {index}" for index in range(5)}
    return {
        "two labels": export_bundle(
            "harm",
            checkpoint("bert", 2),
            out / "two",
            name="two",
            max_length=64,
            sample=CONVERSATIONS,
        ),
        "five labels": export_bundle(
            "harm",
            checkpoint("bert", 5, id2label=names, problem_type="multi_label_classification"),
            out / "five",
            name="five",
            labels=["class 1", "3"],
            max_length=32,
            sample=CONVERSATIONS,
        ),
        "chat": export_bundle(
            "reward",
            checkpoint("llama", 1, CHAT),
            out / "chat",
            name="chat",
            max_length=48,
            reference=CONVERSATIONS * 2,
        ),
        "no chat": export_bundle(
            "reward",
            checkpoint("llama", 1),
            out / "plain",
            name="plain",
            max_length=48,
            reference=CONVERSATIONS[:9] * 3,
        ),
    }


ALL = pytest.mark.parametrize("name", ["two labels", "five labels", "chat", "no chat"])


@ALL
def test_parity_with_pytorch_is_recorded(bundles: dict[str, Bundle], name: str) -> None:
    parity = bundles[name].manifest.parity
    assert parity is not None
    assert parity.max_abs_difference < 1e-4
    # Each conversation alone and in two batches, and random ids of eleven lengths.
    assert parity.cases >= 2 * len(CONVERSATIONS[:9]) + 11


@ALL
def test_a_batch_of_any_size_and_length_scores_as_its_inputs_alone(
    bundles: dict[str, Bundle], name: str
) -> None:
    model = OnnxModel(bundles[name], "cpu")
    generator = np.random.default_rng(0)
    batch = [
        Tokens(generator.integers(0, 16, length), np.zeros(length, np.int64))
        for length in (3, 31, 8, 1, 17, 17, 2)
    ]
    together = model.run(batch)
    alone = np.concatenate([model.run([item]) for item in batch])
    assert np.abs(together - alone).max() < 1e-5
    assert np.ptp(together, axis=0).max() > 0.01


def test_the_judge_says_what_transformers_says_of_the_same_pair(
    bundles: dict[str, Bundle], checkpoint: Callable[..., Path]
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = checkpoint("bert", 2)
    tokenizer = fast_tokenizer(None)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    expected: list[float] = []
    for item in CONVERSATIONS:
        inputs = tokenizer(item.prompt, item.response, return_tensors="pt")
        with torch.no_grad():
            expected.append(float(torch.softmax(model(**inputs).logits, -1)[0, 1]))
    assert raw_scores(bundles["two labels"], CONVERSATIONS) == pytest.approx(expected, abs=1e-5)


def test_several_harmful_labels_of_a_multi_label_model_give_the_largest(
    bundles: dict[str, Bundle],
) -> None:
    bundle = bundles["five labels"]
    assert bundle.manifest.outputs.labels == (1, 3)
    assert bundle.manifest.outputs.activation == "sigmoid"
    (tokens,) = InputEncoder(bundle).encode([(CONVERSATIONS[0], CONVERSATIONS[0].response)])
    assert isinstance(tokens, Tokens)
    logits = OnnxModel(bundle, "cpu").run([tokens])[0]
    expected = 1 / (1 + np.exp(-logits[[1, 3]].max()))
    assert raw_scores(bundle, CONVERSATIONS[:1]) == pytest.approx([expected], abs=1e-6)


def test_a_chat_template_makes_the_tokens_that_transformers_makes(
    bundles: dict[str, Bundle],
) -> None:
    tokenizer = fast_tokenizer(CHAT)
    encoder = InputEncoder(bundles["chat"])
    for item, tokens in zip(
        CONVERSATIONS,
        encoder.encode([(item, item.response) for item in CONVERSATIONS]),
        strict=True,
    ):
        messages = [
            {"role": "user", "content": item.prompt},
            {"role": "assistant", "content": item.response},
        ]
        expected = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
        assert isinstance(tokens, Tokens)
        assert tokens.ids.tolist() == expected


def test_a_role_the_chat_template_refuses_fails_that_conversation_alone(
    bundles: dict[str, Bundle],
) -> None:
    refused = interaction("alpha", "beta", "system")
    good, bad = InputEncoder(bundles["chat"]).encode(
        [(CONVERSATIONS[0], "beta"), (refused, "beta")]
    )
    assert isinstance(good, Tokens)
    assert "roles" in str(bad)


def test_the_reward_holds_its_reference_scores_in_order(bundles: dict[str, Bundle]) -> None:
    table = bundles["chat"].manifest.reference
    assert table is not None
    assert table.count == 2 * len(CONVERSATIONS)
    assert list(table.scores) == pytest.approx(
        sorted(raw_scores(bundles["chat"], CONVERSATIONS * 2))
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"kind": "harm", "labels": 5}, "which labels are harmful"),
        ({"kind": "harm", "labels": 5, "label": "class 9"}, "no label class 9"),
        ({"kind": "reward", "labels": 2}, "a reward model has one"),
    ],
)
def test_an_unusable_classifier_is_refused_before_it_is_exported(
    checkpoint: Callable[..., Path], tmp_path: Path, arguments: dict[str, Any], reason: str
) -> None:
    from ares_stream.training.export import export_bundle

    label = arguments.get("label")
    with pytest.raises(BundleError, match=reason):
        export_bundle(
            arguments["kind"],
            checkpoint("bert", arguments["labels"]),
            tmp_path / "out",
            name="x",
            labels=[label] if label else [],
            reference=CONVERSATIONS * 2,
        )
    assert not (tmp_path / "out").exists()


def test_a_length_the_model_has_no_positions_for_is_refused(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from ares_stream.training.export import export_bundle

    with pytest.raises(BundleError, match="cannot read 65 tokens"):
        export_bundle(
            "harm",
            checkpoint("bert", 2),
            tmp_path / "out",
            name="x",
            max_length=65,
            sample=CONVERSATIONS,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    from ares_stream.training.export import export_bundle

    with pytest.raises(BundleError, match="not a checkpoint: no config"):
        export_bundle("harm", tmp_path, tmp_path / "out", name="x")
