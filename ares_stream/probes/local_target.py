"""A transformers model on this machine as a target. Needs the `repair` extra."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ares_stream.errors import BundleError, SettingsError
from ares_stream.probes.targets import Answer, Query, Result
from ares_stream.records.interaction import Policy
from ares_stream.training.checkpoints import first_line, load_checkpoint, quiet_transformers
from ares_stream.training.policy import PolicyEncoder


class LocalTarget:
    """Generates in batches of queries of near-equal length. Seed 0 answers greedily, so that a
    first answer repeats; other seeds sample at `temperature`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        policy: Policy,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.7,
        batch: int = 16,
    ) -> None:
        self.policy = policy
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._words = PolicyEncoder(model, tokenizer)
        tokenizer.padding_side = "left"
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self._batch = batch

    @classmethod
    def load(
        cls,
        path: Path,
        policy: Policy,
        device: str = "cpu",
        *,
        adapter: Path | None = None,
        **options: Any,
    ) -> LocalTarget:
        """Load a saved model directory (safetensors), with a PEFT adapter merged into it where one
        is named. Raises SettingsError when it is none, or the adapter is of another model."""
        try:
            found = load_checkpoint(path, "policy", dtype="auto")
            model = found.model if adapter is None else _merged(found.model, adapter, path)
            return cls(model.to(device), found.tokenizer, policy, **options)
        except BundleError as error:
            raise SettingsError(f"target.model: {error}") from None

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        """Generation runs in a thread; the event loop goes on."""
        return await asyncio.to_thread(self.answer, queries)

    def answer(self, queries: Sequence[Query]) -> list[Result]:
        """The same, blocking."""
        prompts = [self._words.prompt(query.messages) for query in queries]
        order = sorted(range(len(queries)), key=lambda k: (bool(queries[k].seed), len(prompts[k])))
        results: list[Result] = [Answer("")] * len(queries)
        for start in range(0, len(order), self._batch):
            places = order[start : start + self._batch]
            # Greedy and sampled queries are never generated together.
            for sampled in (False, True):
                part = [k for k in places if bool(queries[k].seed) == sampled]
                if part:
                    answers = self._generate(
                        [prompts[k] for k in part], [queries[k].seed for k in part], sampled
                    )
                    for place, answer in zip(part, answers, strict=True):
                        results[place] = answer
        return results

    async def aclose(self) -> None:
        """Nothing to close."""

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], seeds: list[int], sampled: bool) -> list[Answer]:
        started = time.perf_counter()
        encoded = self._tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(
            self._model.device
        )
        options: dict[str, Any] = {"do_sample": False}
        if sampled:
            options = {"do_sample": True, "temperature": self._temperature, "top_k": 0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sum((place + 1) * seed for place, seed in enumerate(seeds)))
            output = self._model.generate(
                **encoded,
                max_new_tokens=self._max_new_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                eos_token_id=list(self._words.stop),
                **options,
            )
        new = output[:, encoded["input_ids"].shape[1] :].tolist()
        seconds = (time.perf_counter() - started) / len(prompts)
        return [
            Answer(self._words.read(ids), len(prompt), self._words.length(ids), seconds)
            for ids, prompt in zip(new, prompts, strict=True)
        ]


def _merged(model: Any, adapter: Path, base: Path) -> Any:
    from peft import PeftModel

    try:
        with quiet_transformers():
            return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    # What peft raises for an adapter of another kind of model depends on the model.
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise BundleError(f"{adapter}: is no adapter of {base}: {first_line(error)}") from None
