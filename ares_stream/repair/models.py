"""The two models under repair, each with its own tokenizer and a low-rank adapter.

Any Hugging Face causal LM and any sequence classifier with one output. Weights are float32.
The policy reads a conversation as its server does, the reward model as the scorer does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ares_stream.errors import BundleError, InputError, RepairError, ScoringError
from ares_stream.models.bundles import Bundle, load_bundle
from ares_stream.records.interaction import Message
from ares_stream.repair.recipe import Lora, Recipe
from ares_stream.scoring.tokenising import InputEncoder, Tokens
from ares_stream.training.architecture import Classifier
from ares_stream.training.checkpoints import Use, first_line, load_checkpoint, quiet_transformers
from ares_stream.training.encoder import mean
from ares_stream.training.examples import conversation
from ares_stream.training.inputs import Inputs
from ares_stream.training.policy import PolicyEncoder

_INFERENCE_ROWS = 256


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids; those from `start` on are the answer with its end token. `segments` as BERT's;
    `further` are windows of an answer that a reward model does not read in one."""

    ids: tuple[int, ...]
    start: int
    segments: tuple[int, ...] = ()
    further: tuple[Encoded, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """ids, attention and segments (rows, tokens); answer (rows, tokens): true where the next
    token belongs to the answer. `windows` (rows,) holds the number of the answer that each row is
    a window of, None where every row is one answer."""

    ids: Tensor
    attention: Tensor
    segments: Tensor
    answer: Tensor
    windows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> Tensor:
        """(answer tokens,): their ids, row after row."""
        return self.ids.roll(-1, 1)[self.answer]

    @property
    def owners(self) -> Tensor:
        """(answer tokens,): the row that each belongs to."""
        return self.answer.nonzero()[:, 0]


class Adapted:
    """What both sides share: base, tokenizer, adapter, collation."""

    runner: Any
    """What computes: the network, or what accelerate wrapped around it."""

    def __init__(self, network: Any, tokenizer: Any, max_length: int) -> None:
        self.network = self.runner = network
        self.tokenizer = tokenizer
        self.max_length = max_length
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.network.parameters())).device  # type: ignore[no-any-return]

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters by name."""
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's format (safetensors)."""
        self.network.save_pretrained(str(folder), safe_serialization=True)

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Pad on the right."""
        width = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), width), int(self.tokenizer.pad_token_id))
        attention = torch.zeros(len(rows), width, dtype=torch.long)
        segments = torch.zeros(len(rows), width, dtype=torch.long)
        answer = torch.zeros(len(rows), width, dtype=torch.bool)
        for place, row in enumerate(rows):
            ids[place, : len(row.ids)] = torch.tensor(row.ids)
            attention[place, : len(row.ids)] = 1
            segments[place, : len(row.segments)] = torch.tensor(row.segments, dtype=torch.long)
            answer[place, row.start - 1 : len(row.ids) - 1] = True
        return Batch(*(part.to(self.device) for part in (ids, attention, segments, answer)))

    @contextlib.contextmanager
    def before_repair(self) -> Iterator[None]:
        """The model as it was, without gradient."""
        with torch.no_grad(), self.network.disable_adapter():
            yield


class PolicyModel(Adapted):
    """A causal language model under repair."""

    def __init__(self, network: Any, tokenizer: Any, max_length: int) -> None:
        self.words = PolicyEncoder(network, tokenizer)
        super().__init__(network, tokenizer, max_length)

    def encode(
        self, messages: Sequence[Message], answer: str, *, tokens: int | None = None
    ) -> Encoded:
        """Prompt, answer and its end, cut to `max_length`, the answer to `tokens` first."""
        # A prompt too long keeps its end: the question is there. An answer keeps its beginning.
        end = self.words.answer(answer)[:tokens][: self.max_length - 1]
        prefix = self.words.cut(self.words.prompt(messages), self.max_length - len(end))
        return Encoded((*prefix, *end), len(prefix))

    def logits(self, batch: Batch) -> Tensor:
        """(answer tokens, vocabulary): what is foretold of each, row after row.

        No other place goes through the output layer: over a vocabulary of tens of thousands it
        would cost as much as half of a small model, and most of the memory.
        """
        head = self.network.get_output_embeddings()
        if head is None:
            raise RepairError("policy: a model without an output layer is no causal language model")
        hook = head.register_forward_pre_hook(lambda _, hidden: (hidden[0][batch.answer][None],))
        try:
            found: Tensor = self.runner(
                input_ids=batch.ids, attention_mask=batch.attention, use_cache=False
            ).logits
        finally:
            hook.remove()
        return found[0]

    def sample(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        seed: int,
        length: int,
        temperature: float = 0.0,
    ) -> list[str]:
        """One answer per prompt; temperature 0 is greedy. The same seed samples the same."""
        options: dict[str, Any] = {"do_sample": False}
        if temperature:
            options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        rows = [self.words.cut(self.words.prompt(turns), self.max_length) for turns in prompts]
        pad = int(self.tokenizer.pad_token_id)
        answers: list[str] = []
        self.network.eval()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            for start in range(0, len(rows), _INFERENCE_ROWS):
                part = rows[start : start + _INFERENCE_ROWS]
                width = max(len(row) for row in part)
                ids = torch.tensor([[pad] * (width - len(row)) + row for row in part])
                mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
                output = self.network.generate(
                    input_ids=ids.to(self.device),
                    attention_mask=mask.to(self.device),
                    max_new_tokens=length,
                    pad_token_id=pad,
                    eos_token_id=list(self.words.stop),
                    **options,
                )
                answers += [self.words.read(row) for row in output[:, width:].tolist()]
        return answers


class RewardModel(Adapted):
    """A sequence classifier with one output under repair. It reads what the scorer reads: by the
    input template of `bundle`, or else as an export of the checkpoint would."""

    def __init__(
        self, network: Any, tokenizer: Any, max_length: int, bundle: Bundle | None = None
    ) -> None:
        super().__init__(network, tokenizer, max_length)
        self.runner = Classifier(network.get_base_model(), tokenizer)
        self._segments = self.runner.segment_kinds > 0
        if bundle is None:
            self._inputs = Inputs.of(tokenizer, max_length).encoder()
        else:
            _same_words(tokenizer, bundle)
            self._inputs = InputEncoder(bundle)

    def encode(self, messages: Sequence[Message], answer: str) -> Encoded:
        """The conversation with its answer, cut or in windows as the scorer reads it.

        Raises RepairError where the input template refuses it.
        """
        (reading,) = self._inputs.read([(conversation(tuple(messages), answer), answer)])
        if isinstance(reading, ScoringError):
            raise RepairError(f"reward model: {reading}")
        first, *further = (self._window(tokens) for tokens in reading.windows)
        return replace(first, further=tuple(further))

    def _window(self, tokens: Tokens) -> Encoded:
        segments = tuple(tokens.types.tolist()) if self._segments else ()
        return Encoded(tuple(tokens.ids.tolist()), 1, segments)

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Pad on the right, every window in a row of its own."""
        if not any(row.further for row in rows):
            return super().collate(rows)
        counts = torch.tensor([1 + len(row.further) for row in rows])
        owners = torch.repeat_interleave(torch.arange(len(rows)), counts)
        batch = super().collate([window for row in rows for window in (row, *row.further)])
        return replace(batch, windows=owners.to(self.device))

    def scores(self, batch: Batch) -> Tensor:
        """(answers,) in the model's own units, with gradient: of windows the mean, weighted by
        their tokens, as the scorer has it."""
        segments = batch.segments if self._segments else None
        found: Tensor = self.runner(batch.ids, batch.attention, segments)
        each = found[:, 0].float()
        if batch.windows is None:
            return each
        answers = int(batch.windows[-1]) + 1
        return mean(each, batch.windows, batch.attention.sum(1), answers)

    def score(self, rows: Sequence[Encoded]) -> Tensor:
        """(rows,) without gradient, in the order of the rows, on the CPU."""
        order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
        found = torch.zeros(len(rows))
        self.network.eval()
        with torch.no_grad():
            for start in range(0, len(order), _INFERENCE_ROWS):
                places = order[start : start + _INFERENCE_ROWS]
                batch = self.collate([rows[place] for place in places])
                found[places] = self.scores(batch).cpu()
        return found


def load_pair(recipe: Recipe) -> tuple[PolicyModel, RewardModel]:
    """What a recipe repairs, each with a new adapter. Raises RepairError."""
    seed, longest = recipe.seed, recipe.max_length
    return (
        load_policy(recipe.policy, recipe.policy_lora, seed=seed, max_length=longest),
        load_reward(
            recipe.reward,
            recipe.reward_lora,
            seed=seed,
            max_length=longest,
            bundle=recipe.reward_bundle,
        ),
    )


def load_policy(
    path: Path, lora: Lora, *, seed: int, max_length: int, adapter: Path | None = None
) -> PolicyModel:
    """Load a causal LM and put a new adapter on it; one in `adapter` is merged into it first.

    Raises RepairError when the folder holds no such model or the adapter is of another one.
    """
    base, tokenizer = _load("policy", path, adapter)
    network = _with_lora(base, lora, seed, "CAUSAL_LM", path)
    try:
        return PolicyModel(network, tokenizer, max_length)
    except (BundleError, InputError) as error:
        raise RepairError(f"{path}: {error}") from None


def load_reward(
    path: Path,
    lora: Lora,
    *,
    seed: int,
    max_length: int,
    adapter: Path | None = None,
    bundle: Path | None = None,
) -> RewardModel:
    """Load a sequence classifier with one output, as `load_policy`. Its head trains in full.

    `bundle` is the reward bundle whose inputs it reads; without one it reads what an export of
    the checkpoint would, cut to `max_length`.
    """
    base, tokenizer = _load("classifier", path, adapter)
    if base.config.num_labels != 1:
        raise RepairError(f"{path}: a reward model has 1 output, this has {base.config.num_labels}")
    network = _with_lora(base, lora, seed, "SEQ_CLS", path)
    try:
        like = None if bundle is None else load_bundle(bundle, "reward")
        return RewardModel(network, tokenizer, max_length, like)
    except BundleError as error:
        raise RepairError(f"{path}: {error}") from None


def _load(use: Use, path: Path, adapter: Path | None) -> tuple[Any, Any]:
    from peft import PeftModel

    try:
        found = load_checkpoint(path, use)
    except BundleError as error:
        raise RepairError(str(error)) from None
    if adapter is None:
        return found.model, found.tokenizer
    try:
        with quiet_transformers():
            model = PeftModel.from_pretrained(found.model, str(adapter)).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise RepairError(f"{adapter}: is no adapter of {path}: {first_line(error)}") from None
    return model, found.tokenizer


def _same_words(tokenizer: Any, bundle: Bundle) -> None:
    kept = Tokenizer.from_file(str(bundle.tokenizer)).get_vocab(with_added_tokens=True)
    if kept != tokenizer.get_vocab():
        raise BundleError(
            f"its tokenizer is not that of the bundle {bundle.path}; name the checkpoint that the "
            "bundle was exported from"
        )


def _with_lora(base: Any, lora: Lora, seed: int, task: str, path: Path) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    heads = [name for name in ("score", "classifier") if hasattr(base, name)]
    classifies = task == "SEQ_CLS"
    config = LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        # The head trains in full, with all whose names end as its name does (DistilBERT's
        # pre_classifier): peft takes these for heads as well, and cannot when they are adapted.
        exclude_modules=rf".*({'|'.join(heads)})(\..*)?" if classifies and heads else None,
        # GPT-2 keeps its linear layers transposed.
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in base.modules()),
        modules_to_save=heads or None if classifies else None,
    )
    torch.manual_seed(seed)
    try:
        with quiet_transformers():
            return get_peft_model(base, config)
    except (ValueError, TypeError) as error:
        raise RepairError(f"{path}: lora.targets: {first_line(error)}") from None
