"""How a checkpoint's conversations become tokens, kept as a bundle keeps it: template and
tokenizer.json. Trainer, repair and export make their inputs with the scorer's own encoder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ares_stream.errors import BundleError
from ares_stream.models.bundles import (
    PAIR,
    TOKENIZER,
    Bundle,
    InputTemplate,
    Kind,
    Lineage,
    Manifest,
    Outputs,
)
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.templates import with_special_tokens
from ares_stream.scoring.tokenising import InputEncoder


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a model reads of a conversation.

    `bare`: the template writes the special tokens itself, as chat templates do, and the
    tokenizer adds none. `chat`: it is the tokenizer's own chat template.
    """

    template: InputTemplate
    tokenizer: str
    """tokenizer.json."""
    bare: bool
    chat: bool = False

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        max_length: int,
        template: tuple[str, str | None] | None = None,
    ) -> Self:
        """By this template, or the tokenizer's chat template, or as a pair (prompt, response)."""
        if template is not None:
            written = any(token in template[0] for token in tokenizer.all_special_tokens)
            bare = template[1] is None and written
            return cls._of(tokenizer, template, max_length, bare=bare)
        if not tokenizer.chat_template:
            return cls._of(tokenizer, PAIR, max_length, bare=False)
        try:
            source = tokenizer.get_chat_template()
        except ValueError:
            names = ", ".join(sorted(tokenizer.chat_template))
            raise BundleError(
                f"the tokenizer has several chat templates ({names}) and none called default"
            ) from None
        chat = with_special_tokens(source, tokenizer.special_tokens_map)
        return cls._of(tokenizer, (chat, None), max_length, bare=True, chat=True)

    @classmethod
    def like(cls, bundle: Bundle) -> Self:
        """The same as another bundle's."""
        tokenizer = bundle.tokenizer.read_text()
        bare = json.loads(tokenizer).get("post_processor") is None
        return cls(bundle.manifest.template, tokenizer, bare)

    @classmethod
    def _of(
        cls,
        tokenizer: Any,
        sources: tuple[str, str | None],
        max_length: int,
        *,
        bare: bool,
        chat: bool = False,
    ) -> Self:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        if bare:
            content["post_processor"] = None
        first, second = sources
        return cls(
            InputTemplate(first=first, second=second, max_length=max_length),
            json.dumps(content, ensure_ascii=False),
            bare,
            chat,
        )

    def encoder(self) -> InputEncoder:
        """The scorer's encoder. Raises BundleError where the disk is full."""
        try:
            with tempfile.TemporaryDirectory(prefix="ares-inputs-") as folder:
                return InputEncoder(self.draft(Path(folder)))
        except OSError as error:
            raise BundleError(
                f"{tempfile.gettempdir()}: cannot be written: {error.strerror}"
            ) from None

    def draft(self, folder: Path, kind: Kind = "harm") -> Bundle:
        """Enough of a bundle to make inputs with. Writes tokenizer.json to the folder."""
        (folder / TOKENIZER).write_text(self.tokenizer)
        outputs = Outputs(activation="sigmoid" if kind == "harm" else "identity", labels=(0,))
        manifest = Manifest(
            name="draft",
            kind=kind,
            template=self.template,
            outputs=outputs,
            lineage=Lineage(base="draft"),
        )
        return Bundle(folder, manifest, "")

    def with_length(self, max_length: int) -> Inputs:
        """The same, cut later."""
        template = self.template.model_copy(update={"max_length": max_length})
        return Inputs(template, self.tokenizer, self.bare, self.chat)


def turns(interaction: Interaction) -> list[dict[str, str]]:
    """A whole conversation, as transformers takes it."""
    asked = [{"role": item.role, "content": item.content} for item in interaction.messages]
    return [*asked, {"role": "assistant", "content": interaction.response}]


def texts(conversations: Sequence[Interaction]) -> list[str]:
    """Everything that is said in them."""
    return [turn["content"] for item in conversations for turn in turns(item) if turn["content"]]
