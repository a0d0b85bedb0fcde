"""What a Hugging Face sequence classifier computes, whatever its architecture: one definition
for training, for export and for repair."""

from __future__ import annotations

import inspect
from typing import Any, Final

import torch

POOLING: Final = "ares_pooling"
"""Field of a model's config.json that says "mean" for models trained here."""


class Classifier(torch.nn.Module):
    """Logits [batch, labels] from ids and mask [batch, length], padded on the right.

    Decoders are read at the last token that the mask shows: transformers looks for the pad
    token instead, which may be a token of the text. With pooling "mean" the head reads the mean
    of all tokens' last hidden states. `segment_kinds` is how many segments it tells apart, 0 where
    it is fed none: the model has none, or its tokenizer says that it does not take them.
    """

    segment_kinds: int

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.decoder = hasattr(model, "score")
        kinds = getattr(model.config.get_text_config(), "type_vocab_size", None) or 0
        taken = "token_type_ids" in inspect.signature(model.forward).parameters
        listed = "token_type_ids" in tokenizer.model_input_names
        fed = kinds > 1 and taken and listed and not self.decoder
        self.segment_kinds = kinds if fed else 0
        self.mean = getattr(model.config, POOLING, None) == "mean"

    @property
    def head(self) -> torch.nn.Linear | None:
        """The linear layer on top, or None where the head is something else."""
        head = self._top
        return head if isinstance(head, torch.nn.Linear) else None

    @property
    def _top(self) -> Any:
        """What is on top, whatever it is: an adapter wraps the linear layer."""
        return self.model.score if self.decoder else getattr(self.model, "classifier", None)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits."""
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        if self.decoder or self.mean:
            logits: torch.Tensor = self._top(self.pooled(input_ids, attention_mask, **extra))
        else:
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask, **extra).logits
        return logits

    def with_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and the states [batch, hidden]: the mean of all tokens' last hidden states, also
        where the head reads the last token alone, which says little of the text before it."""
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        if self.decoder or self.mean:
            hidden = self._hidden(input_ids, attention_mask, **extra)
            return self._top(self._pool(hidden, attention_mask)), _mean(hidden, attention_mask)
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=True,
            **extra,
        )
        return found.logits, _mean(found.hidden_states[-1], attention_mask)

    def pooled(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **extra: torch.Tensor
    ) -> torch.Tensor:
        """What the linear head reads, [batch, hidden]."""
        return self._pool(self._hidden(input_ids, attention_mask, **extra), attention_mask)

    def _hidden(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **extra: torch.Tensor
    ) -> torch.Tensor:
        if self.decoder:
            extra = {"use_cache": False}  # type: ignore[dict-item]
        hidden: torch.Tensor = self.model.base_model(
            input_ids=input_ids, attention_mask=attention_mask, **extra
        ).last_hidden_state
        return hidden

    def _pool(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if self.mean:
            return _mean(hidden, attention_mask)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return hidden[rows, attention_mask.sum(1) - 1]

    def use_mean(self) -> bool:
        """Pool by the mean from now on, where the head is linear; says whether it is."""
        head = self.head
        self.mean = (
            head is not None and head.in_features == self.model.config.get_text_config().hidden_size
        )
        if self.mean:
            setattr(self.model.config, POOLING, "mean")
        return self.mean


class WithStates(torch.nn.Module):
    """A classifier that gives its states beside its logits: what is exported with a domain."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [batch, labels] and states [batch, hidden]."""
        return self.classifier.with_states(input_ids, attention_mask, token_type_ids)


def _mean(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    mask = attention_mask[..., None].to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)
