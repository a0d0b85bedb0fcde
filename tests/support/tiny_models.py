"""Checkpoints of real architectures with two layers and random weights, and tokenizers that know
the English of the sample conversations."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from ares_stream.training.inputs import texts
from ares_stream.training.samples import sample_conversations

hub: Any = transformers
VOCABULARY: Final = 300
SAMPLE: Final = sample_conversations(datetime(2025, 3, 1, tzinfo=UTC))
CHAT_ML: Final = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PLAIN: Final[dict[str, Any]] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    # Far larger than a real model's first weights, so that outputs differ visibly.
    "initializer_range": 0.4,
}
_GROUPED: Final = {"num_key_value_heads": 1, "head_dim": 8}
_SETTINGS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "Bert": ("BertConfig", {}),
    "Roberta": (
        "RobertaConfig",
        {"pad_token_id": 1, "max_position_embeddings": 514, "type_vocab_size": 1},
    ),
    "DistilBert": (
        "DistilBertConfig",
        {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2},
    ),
    "DebertaV2": (
        "DebertaV2Config",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    ),
    "Electra": ("ElectraConfig", {"embedding_size": 16}),
    "GPT2": ("GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512}),
    "Llama": ("LlamaConfig", {}),
    "Gemma2": ("Gemma2Config", _GROUPED),
    "Qwen3": ("Qwen3Config", _GROUPED),
    "Gemma3": ("Gemma3Config", {}),
}
DECODERS: Final = frozenset({"GPT2", "Llama", "Gemma2", "Qwen3", "Gemma3"})


def network(name: str, head: str = "ForSequenceClassification", **changes: Any) -> Any:
    """A model of this architecture, on random weights; `head` is the end of its class's name."""
    torch.manual_seed(0)
    settings, own = _SETTINGS[name]
    sizes = {"vocab_size": VOCABULARY, **_PLAIN, **own}
    if name == "Gemma3":
        sizes = {
            "text_config": {**sizes, **_GROUPED, "layer_types": ["full_attention"] * 2},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
        }
    if name == "DistilBert":
        for unknown in ("hidden_size", "intermediate_size", "num_hidden_layers"):
            del sizes[unknown]
        del sizes["num_attention_heads"]
    config = getattr(hub, settings)(**(sizes | changes))
    return getattr(hub, f"{name}{head}")(config)


def word_pieces(*, segments: bool = True, listed: bool = True) -> Any:
    """As BERT's. `segments`: it gives a pair's second text another segment; `listed`: it says
    that models take segments."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    _train(core, trainers.WordPieceTrainer(vocab_size=VOCABULARY - 4, special_tokens=special))
    kind = ":1" if segments else ""
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B{kind} [SEP]{kind}",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return hub.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=names if listed else [names[0], names[2]],
    )


def byte_pairs(chat: str | None = None, *, begins: bool = False, end: str = "<|end|>") -> Any:
    """As a decoder's, over bytes. `begins`: <s> is put before every text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "<|end|>", "<|im_start|>", "<|im_end|>"]
    _train(
        core,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - 4,
            special_tokens=[AddedToken(name, special=True) for name in special],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    if begins:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    tokenizer = hub.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token=end,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = chat
    return tokenizer


def checkpoint(
    folder: Path,
    name: str,
    head: str = "ForSequenceClassification",
    tokenizer: Any = None,
    **changes: Any,
) -> Path:
    """Model and tokenizer, saved as transformers saves them; `changes` are of its config."""
    network(name, head, **changes).save_pretrained(folder)
    own = tokenizer or (byte_pairs() if name in DECODERS else word_pieces())
    own.save_pretrained(folder)
    return folder


def rewrite(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _train(core: Tokenizer, trainer: Any) -> None:
    trainer.show_progress = False
    core.train_from_iterator(texts(SAMPLE) * 4, trainer)
