"""Fine-tuning of one Hugging Face sequence classifier with one output, on the CPU or one GPU.

Takes token ids, so that training sees exactly what the scorer will see. Weights are float32.
With the same seed, rows, threads and versions, a CPU gives the same weights.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ares_stream.errors import InputError
from ares_stream.training.architecture import Classifier
from ares_stream.training.checkpoints import load_checkpoint

Progress = Callable[[int, int], None]
"""Called with steps done and steps in all."""

_BUCKET = 32  # Batches sorted together by length: less padding, and still a fair shuffle.
_EVALUATION_ROWS = 64
_CLIP = 1.0
_BFLOAT16 = ("amx_bf16", "avx512_bf16")
_HEAD_STEPS = 200  # L-BFGS ends sooner at its tolerance; the bound is for features that overflow.

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits [groups, answers per group] and the groups' numbers to a mean."""

Pool = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""From logits of windows [windows], the answer each belongs to and its tokens [windows], and the
number of answers, to logits of answers [answers]."""

SHARPNESS = 3.0
"""How close the smooth maximum of the loss is to the largest logit, which is what scoring takes:
at 1 it grows with the number of windows, and a judge learns to allow for what scoring lacks."""
FITTED_WINDOWS = 6
"""Of an answer, so many windows are fitted on, evenly from the first to the last: more would
cost much and say little new."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row for the model: equally many token ids and segment ids (0 or 1)."""

    ids: tuple[int, ...]
    segments: tuple[int, ...]


Answer = tuple[Encoded, ...]
"""The windows in which a model reads one answer; most answers have one."""


def worst(
    logits: torch.Tensor, owners: torch.Tensor, sizes: torch.Tensor, answers: int
) -> torch.Tensor:
    """The largest logit of each answer's windows, smoothly (log-sum-exp of SHARPNESS): which window
    of a harmful answer is harmful is not known, and is learnt (multiple-instance learning, Ramon
    and De Raedt 2000)."""
    if len(logits) == answers:
        return logits
    empty = torch.full((answers,), -torch.inf, dtype=logits.dtype, device=logits.device)
    highest = empty.scatter_reduce(0, owners, logits.detach(), "amax")
    shares = torch.exp(SHARPNESS * (logits - highest[owners]))
    total = torch.zeros_like(highest).index_add(0, owners, shares)
    return highest + torch.log(total) / SHARPNESS


def mean(
    logits: torch.Tensor, owners: torch.Tensor, sizes: torch.Tensor, answers: int
) -> torch.Tensor:
    """The mean of each answer's windows, weighted by their tokens."""
    if len(logits) == answers:
        return logits
    nothing = torch.zeros(answers, dtype=logits.dtype, device=logits.device)
    weights = sizes.to(logits)
    total = nothing.index_add(0, owners, weights)
    return nothing.index_add(0, owners, logits * weights) / total


def _fitted(answer: Answer) -> Answer:
    if len(answer) <= FITTED_WINDOWS:
        return answer
    last = len(answer) - 1
    places = [round(step * last / (FITTED_WINDOWS - 1)) for step in range(FITTED_WINDOWS)]
    return tuple(answer[place] for place in places)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to fine-tune.

    `layers` keeps that many of the lowest blocks of the base (None: all); `frozen_layers`
    leaves embeddings and that many of the lowest kept blocks as they are. With all of them
    frozen only the head is fitted, to its optimum, on features that are computed once:
    `epochs`, `batch_size` and the learning rate then mean nothing, and `ridge` (a penalty on
    the squared weights of standardised features, beside the mean loss) does. What a base
    learnt from much text carries over to sources that the labels do not cover; fine-tuning
    can distort it (Kumar et al. 2022, arXiv 2202.10054).
    """

    epochs: float = 1.0
    learning_rate: float = 2e-4
    head_multiplier: float = 5.0
    batch_size: int = 16
    layers: int | None = None
    frozen_layers: int = 0
    label_smoothing: float = 0.05
    centring: float = 0.01
    weight_decay: float = 0.01
    warm_up: float = 0.1
    ridge: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("epochs", "learning_rate", "head_multiplier", "batch_size", "ridge"):
            if getattr(self, field) <= 0:
                raise InputError(f"{field}: must be above 0")
        if self.layers is not None and not 0 <= self.frozen_layers <= self.layers:
            raise InputError("frozen_layers: must lie between 0 and layers")


class Encoder:
    """A base model with one output per text: a harm logit or a reward."""

    def __init__(self, base: str | Path, recipe: Recipe) -> None:
        """Load `base` (a directory or a hub id; safetensors only) and put a new head on it.

        Raises BundleError where it cannot be loaded or has fewer layers than asked for,
        InputError where it cannot be frozen so far.
        """
        self._recipe = recipe
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(recipe.seed)
        found = load_checkpoint(base, "base", layers=recipe.layers)
        self.tokenizer: Any = found.tokenizer
        self.model: Any = found.model.to(self.device)
        if recipe.frozen_layers:
            _freeze(self.model, recipe.frozen_layers)
        self._classifier = Classifier(self.model, self.tokenizer)
        if not self._classifier.use_mean() and self.frozen:
            raise InputError("frozen_layers: this architecture's head is trained with its base")
        self._features: dict[Encoded, torch.Tensor] = {}
        pad = self.model.config.get_text_config().pad_token_id
        self._pad = 0 if pad is None else int(pad)

    @property
    def frozen(self) -> bool:
        """Whether the base stays as it is: only the head is fitted then, which costs little."""
        return not any(p.requires_grad for p in self.model.base_model.parameters())

    def fit_labels(
        self,
        rows: Sequence[Answer],
        labels: Sequence[bool],
        weights: Sequence[float],
        progress: Progress | None = None,
    ) -> None:
        """Binary cross-entropy of each answer's worst window with smoothed labels. `weights` are
        scaled to a mean of 1."""
        smooth = self._recipe.label_smoothing
        targets = torch.tensor([(1 - smooth) if y else smooth for y in labels])
        scale = torch.tensor(weights, dtype=torch.float32)
        scale = scale / scale.mean()

        def loss(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            each = functional.binary_cross_entropy_with_logits(
                logits[:, 0], targets[index].to(logits), reduction="none"
            )
            return (each * scale[index].to(logits)).mean()

        self._fit([(row,) for row in rows], loss, worst, progress)

    def fit_pairs(
        self, pairs: Sequence[tuple[Answer, Answer]], progress: Progress | None = None
    ) -> None:
        """Bradley-Terry on (better, worse), with a small pull of each pair's sum towards 0; of an
        answer's windows the mean counts.

        The loss alone fixes scores up to a constant per prompt; the pull (Eisenstein et al.
        2023) makes them comparable between prompts, which the quantile rule needs.
        """
        centring = self._recipe.centring

        def loss(logits: torch.Tensor, _index: torch.Tensor) -> torch.Tensor:
            better, worse = logits.unbind(1)
            return (
                -functional.logsigmoid(better - worse) + centring * (better + worse).square()
            ).mean()

        self._fit(pairs, loss, mean, progress)

    def scores(
        self, rows: Sequence[Encoded], progress: Progress | None = None
    ) -> NDArray[np.float64]:
        """The model's raw output per row, in the order of the rows.

        With a frozen base from the features that fitting uses, each text read once; they are
        bfloat16 where that is fast, so scores differ by about 0.01 from the exported model's.
        """
        if self.frozen:
            self._remember(rows, progress)
            with torch.inference_mode():
                features = torch.stack([self._features[row] for row in rows])
                fixed: torch.Tensor = self._classifier.head(features.to(self.device))  # type: ignore[misc]
            return fixed[:, 0].double().cpu().numpy()
        found = np.zeros(len(rows))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(order), _EVALUATION_ROWS):
                batch = order[start : start + _EVALUATION_ROWS]
                logits = self._classifier(**self._inputs([rows[i] for i in batch]))[:, 0]
                found[batch] = logits.double().cpu().numpy()
                if progress is not None:
                    progress(start + len(batch), len(order))
        return found

    def states(self, rows: Sequence[Encoded]) -> NDArray[np.float32]:
        """What the head reads of each row, [rows, hidden]. Raises InputError where the base is
        not frozen."""
        if not self.frozen:
            raise InputError("states: only those of a frozen base stay as they are")
        self._remember(rows, None)
        return torch.stack([self._features[row] for row in rows]).numpy()

    def save(self, directory: Path) -> None:
        """Write weights (safetensors) and configuration, as AutoModel reads them."""
        self.model.save_pretrained(directory)

    def _inputs(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        width = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), width), self._pad)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        segments = torch.zeros(len(rows), width, dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = torch.tensor(row.ids)
            mask[number, : len(row.ids)] = 1
            segments[number, : len(row.ids)] = torch.tensor(row.segments)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._classifier.segment_kinds:
            inputs["token_type_ids"] = segments
        return {name: value.to(self.device) for name, value in inputs.items()}

    def _fit(
        self,
        groups: Sequence[tuple[Answer, ...]],
        loss: Loss,
        pool: Pool,
        progress: Progress | None,
    ) -> None:
        if not groups:
            raise InputError("no row is left to train on; give more data or a smaller hold-out")
        groups = [tuple(map(_fitted, group)) for group in groups]
        torch.manual_seed(self._recipe.seed)
        base = [p for p in self.model.base_model.parameters() if p.requires_grad]
        if base:
            self._fine_tune(groups, base, loss, pool, progress)
        else:
            self._fit_head(groups, loss, pool, progress)
        if not all(torch.isfinite(p).all() for p in self.model.parameters()):
            raise InputError("training diverged to NaN; lower the learning rate")

    def _fine_tune(
        self,
        groups: Sequence[tuple[Answer, ...]],
        base: Sequence[torch.nn.Parameter],
        loss: Loss,
        pool: Pool,
        progress: Progress | None,
    ) -> None:
        recipe, known = self._recipe, {id(p) for p in base}
        size = max(1, recipe.batch_size // len(groups[0]))
        steps = max(1, round(recipe.epochs * len(groups) / size))
        head = [p for p in self.model.parameters() if p.requires_grad and id(p) not in known]
        optimizer = torch.optim.AdamW(
            [
                {"params": base, "peak": recipe.learning_rate},
                {"params": head, "peak": recipe.learning_rate * recipe.head_multiplier},
            ],
            weight_decay=recipe.weight_decay,
        )
        self.model.train()
        lengths = [max(len(row.ids) for answer in group for row in answer) for group in groups]
        for step, batch in zip(range(steps), _batches(lengths, size, recipe.seed), strict=False):
            share = _schedule(step, steps, recipe.warm_up)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            answers = [answer for i in batch for answer in groups[i]]
            inputs = self._inputs([row for answer in answers for row in answer])
            with self._fast():
                logits = self._classifier(**inputs)[:, 0]
            pooled = pool(logits.float(), *_places(answers, self.device), len(answers))
            value = loss(pooled.view(len(batch), -1), torch.tensor(batch))
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([*base, *head], _CLIP)
            optimizer.step()
            if progress is not None:
                progress(step + 1, steps)

    def _fit_head(
        self,
        groups: Sequence[tuple[Answer, ...]],
        loss: Loss,
        pool: Pool,
        progress: Progress | None,
    ) -> None:
        head = self._classifier.head
        assert head is not None  # noqa: S101 - _freeze refuses models without
        answers = [answer for group in groups for answer in group]
        places = _places(answers, torch.device("cpu"))
        rows = [row for answer in answers for row in answer]
        self._remember(rows, progress)
        features = torch.stack([self._features[row] for row in rows])
        centre, spread = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
        features = (features - centre) / spread
        weight = torch.zeros(features.shape[1], requires_grad=True)
        bias = torch.zeros(1, requires_grad=True)
        index = torch.arange(len(groups))
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=_HEAD_STEPS, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            logits = pool(features @ weight + bias, *places, len(answers))
            value = (
                loss(logits.view(len(groups), -1), index)
                + self._recipe.ridge * weight.square().sum()
            )
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            weight = weight / spread
            head.weight.copy_(weight[None])
            if head.bias is not None:  # Without one, all logits shift alike.
                head.bias.copy_(bias - centre @ weight)

    def _remember(self, rows: Sequence[Encoded], progress: Progress | None) -> None:
        """Compute the features of rows that were not seen yet."""
        new = sorted(set(rows) - self._features.keys(), key=lambda row: (len(row.ids), row.ids))
        if progress is not None and not new:
            progress(len(rows), len(rows))
        self.model.eval()
        with torch.inference_mode(), self._fast():
            for start in range(0, len(new), _EVALUATION_ROWS):
                batch = new[start : start + _EVALUATION_ROWS]
                pooled = self._classifier.pooled(**self._inputs(batch)).float().cpu()
                self._features |= dict(zip(batch, pooled, strict=True))
                if progress is not None:
                    progress(start + len(batch), len(new))

    def _fast(self) -> torch.autocast:
        """bfloat16 where the hardware multiplies it natively: several times as fast."""
        able = torch.cpu.get_capabilities()
        native = self.device.type == "cuda" or any(able.get(name) for name in _BFLOAT16)
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=native)


def _places(answers: Sequence[Answer], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all windows in order: the number of the answer, and the tokens."""
    owners = [number for number, answer in enumerate(answers) for _ in answer]
    sizes = [len(row.ids) for answer in answers for row in answer]
    return torch.tensor(owners, device=device), torch.tensor(sizes, device=device)


def use_threads(count: int | None) -> None:
    """Train on this many CPU threads; None leaves torch's choice."""
    if count is not None:
        torch.set_num_threads(count)


def _freeze(model: Any, count: int) -> None:
    blocks = next(
        (
            module
            for module in model.base_model.modules()
            if isinstance(module, torch.nn.ModuleList)
            and len(module) == model.config.get_text_config().num_hidden_layers
        ),
        None,
    )
    if blocks is None or count > len(blocks):
        raise InputError(f"frozen_layers: the base has no {count} blocks to freeze")
    embedding = model.get_input_embeddings()
    for child in model.base_model.children():
        if any(module is embedding for module in child.modules()):
            child.requires_grad_(False)
    for block in list(blocks)[:count]:
        block.requires_grad_(False)
    if count == len(blocks):
        model.base_model.requires_grad_(False)


def _schedule(step: int, steps: int, warm_up: float) -> float:
    """Share of the peak learning rate: a linear rise, then a linear fall to 0."""
    rise = max(1.0, warm_up * steps)
    return float(min(1.0, (step + 1) / rise) * (1 - step / steps))


def _batches(lengths: Sequence[int], size: int, seed: int) -> Iterator[list[int]]:
    """Batches without end: near-equal lengths within a batch, every row once per epoch."""
    rng = random.Random(seed)  # noqa: S311 - shuffling, not secrets
    order = list(range(len(lengths)))
    while True:
        rng.shuffle(order)
        found: list[list[int]] = []
        for start in range(0, len(order), size * _BUCKET):
            window = sorted(order[start : start + size * _BUCKET], key=lambda i: lengths[i])
            found += [window[i : i + size] for i in range(0, len(window), size)]
        rng.shuffle(found)
        yield from found
