"""A transformers model on this machine as a target. Needs the `repair` extra."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ares_stream.errors import SettingsError
from ares_stream.probes.targets import Answer, Query, Result
from ares_stream.records.interaction import Policy


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
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self._batch = batch

    @classmethod
    def load(cls, path: Path, policy: Policy, device: str = "cpu", **options: Any) -> LocalTarget:
        """Load a saved model directory (safetensors). Raises SettingsError when it is none."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(path), trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise SettingsError(f"target.model: {path}: cannot be loaded: {reason}") from None
        model.to(device)
        return cls(model, tokenizer, policy, **options)

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        """Generation runs in a thread; the event loop goes on."""
        return await asyncio.to_thread(self.answer, queries)

    def answer(self, queries: Sequence[Query]) -> list[Result]:
        """The same, blocking."""
        prompts = [self._render(query) for query in queries]
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

    def _render(self, query: Query) -> str:
        turns = [message.model_dump() for message in query.messages]
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
            return str(text)
        return "\n".join(turn["content"] for turn in turns)

    @torch.inference_mode()
    def _generate(self, prompts: list[str], seeds: list[int], sampled: bool) -> list[Answer]:
        started = time.perf_counter()
        encoded = self._tokenizer(
            prompts, return_tensors="pt", padding=True, add_special_tokens=False
        ).to(self._model.device)
        encoded.pop("token_type_ids", None)
        options: dict[str, Any] = {"do_sample": False}
        if sampled:
            options = {"do_sample": True, "temperature": self._temperature, "top_k": 0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sum((place + 1) * seed for place, seed in enumerate(seeds)))
            output = self._model.generate(
                **encoded,
                max_new_tokens=self._max_new_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                **options,
            )
        new = output[:, encoded["input_ids"].shape[1] :]
        texts = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        seconds = (time.perf_counter() - started) / len(prompts)
        prompt_tokens = encoded["attention_mask"].sum(dim=1).tolist()
        produced = (new != self._tokenizer.pad_token_id).sum(dim=1).tolist()
        return [
            Answer(text.strip(), asked, made, seconds)
            for text, asked, made in zip(texts, prompt_tokens, produced, strict=True)
        ]
