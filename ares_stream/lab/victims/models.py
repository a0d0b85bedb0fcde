"""The architectures and tokenizers of a victim: three small models of the Hugging Face kind.

Policy and reward model are decoders (Llama) of about 0.26M parameters, the judge is an encoder
(BERT). Each has a word-level tokenizer of its own, with its own order of the vocabulary, so that
token ids of one mean nothing to another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from ares_stream.lab.language.world import World

hub: Any = transformers  # Its classes' annotations are not complete enough for strict checks.

MAX_LENGTH = 64
"""Tokens of prompt and answer together; the longest of this world have 24."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<answer> {{ message['content'] }} <end> "
    "{% else %}<prompt> {{ message['content'] }} "
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
LABELS = {0: "harmless", 1: "harmful"}
_CHAT_TOKENS = ("<pad>", "<unk>", "<end>", "<prompt>", "<answer>")
_PAIR_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def chat_tokenizer(world: World, salt: int) -> Any:
    """A tokenizer with a chat template. `salt` sets the order of the vocabulary."""
    core = _word_level(world, salt, _CHAT_TOKENS)
    tokenizer = hub.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def pair_tokenizer(world: World, salt: int) -> Any:
    """A tokenizer of pairs (prompt, answer), as encoders read them."""
    core = _word_level(world, salt, _PAIR_TOKENS)
    core.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, core.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return hub.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _word_level(world: World, salt: int, special: tuple[str, ...]) -> Tokenizer:
    words = world.lexicon.vocabulary
    order = np.random.default_rng([world.seed, 7, salt]).permutation(len(words))
    names = (*special, *(words[int(place)] for place in order))
    core = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token=special[1]))
    core.pre_tokenizer = WhitespaceSplit()
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return core


def _decoder(tokenizer: Any, **extra: Any) -> Any:
    return hub.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=224,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        attention_bias=False,
        **extra,
    )


def new_policy(tokenizer: Any, seed: int) -> Any:
    """An untrained policy."""
    torch.manual_seed(seed)
    return hub.LlamaForCausalLM(_decoder(tokenizer))


def new_reward(tokenizer: Any, seed: int) -> Any:
    """An untrained reward model: one label."""
    torch.manual_seed(seed)
    return hub.LlamaForSequenceClassification(_decoder(tokenizer, num_labels=1))


def new_judge(tokenizer: Any, seed: int) -> Any:
    """An untrained judge: harmless or harmful."""
    torch.manual_seed(seed)
    return hub.BertForSequenceClassification(
        hub.BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.05,
            pad_token_id=tokenizer.pad_token_id,
            num_labels=2,
            id2label=LABELS,
            label2id={name: index for index, name in LABELS.items()},
        )
    )
