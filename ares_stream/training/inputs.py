"""How a checkpoint's conversations become tokens, kept as a bundle keeps it: template and
tokenizer.json. Trainer, repair and export make their inputs with the scorer's own encoder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from tokenizers import Tokenizer

from ares_stream.errors import BundleError
from ares_stream.files import read_json, read_text, unwritable
from ares_stream.models.bundles import (
    PAIR,
    TOKENIZER,
    Bundle,
    InputTemplate,
    Kind,
    Lineage,
    Manifest,
    Outputs,
    Windows,
)
from ares_stream.models.weights import check_fetched
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.templates import with_special_tokens
from ares_stream.scoring.tokenising import InputEncoder

MAX_UNKNOWN: Final = 0.2
"""Largest share of unknown tokens in a sample: real text of a language that a word-piece
vocabulary covers has under one per cent."""
_SPECIAL: Final = frozenset(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)


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
        """From a tokenizer of transformers: by this template, or its chat template, or as a pair
        (prompt, response). Raises BundleError where it has several and none is the default."""
        core = json.loads(tokenizer.backend_tokenizer.to_str())
        special = dict(tokenizer.special_tokens_map)
        return cls._of(core, special, tokenizer.chat_template, max_length, template)

    @classmethod
    def from_files(
        cls,
        tokenizer: Path,
        max_length: int,
        template: tuple[str, str | None] | None = None,
    ) -> Self:
        """The same from tokenizer.json and what lies beside it. Raises BundleError."""
        settings: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            settings |= _object(tokenizer.with_name(name))
        special = {
            name: _special(name, token, tokenizer)
            for name, token in settings.items()
            if name in _SPECIAL and token
        }
        chat = _chat_template(settings.get("chat_template"), tokenizer)
        own = tokenizer.with_name("chat_template.jinja")
        if own.is_file():
            chat = read_text(own, error=BundleError)
        core = _object(tokenizer)
        if "model" not in core:
            raise BundleError(f"{tokenizer}: is no tokenizer of the tokenizers library")
        return cls._of(core, special, chat, max_length, template)

    @classmethod
    def like(cls, bundle: Bundle) -> Self:
        """The same as another bundle's."""
        tokenizer = bundle.tokenizer.read_text(encoding="utf-8")
        bare = json.loads(tokenizer).get("post_processor") is None
        return cls(bundle.manifest.template, tokenizer, bare)

    @classmethod
    def _of(
        cls,
        core: dict[str, Any],
        special: dict[str, str],
        chat: str | dict[str, str] | None,
        max_length: int,
        template: tuple[str, str | None] | None,
    ) -> Self:
        if isinstance(chat, dict):
            if "default" not in chat and template is None:
                raise BundleError(
                    f"the tokenizer has several chat templates ({', '.join(sorted(chat))}) and "
                    "none called default"
                )
            chat = chat.get("default")
        if template is not None:
            (first, second), own = template, False
            bare = second is None and any(token in first for token in special.values())
            begin = special.get("bos_token")
            if bare and begin and first.startswith(begin):
                first = with_special_tokens(first, {"bos_token": begin})
        elif chat:
            first, second, bare, own = with_special_tokens(chat, special), None, True, True
        else:
            (first, second), bare, own = PAIR, False, False
        if bare:
            core = {**core, "post_processor": None}
        return cls(
            InputTemplate(first=first, second=second, max_length=max_length),
            json.dumps(core, ensure_ascii=False),
            bare,
            own,
        )

    def encoder(self) -> InputEncoder:
        """The scorer's encoder. Raises ResourceError where the disk is full."""
        try:
            with tempfile.TemporaryDirectory(prefix="ares-inputs-") as folder:
                return InputEncoder(self.draft(Path(folder)))
        except OSError as error:
            raise unwritable(tempfile.gettempdir(), error, BundleError) from None

    def draft(self, folder: Path, kind: Kind = "harm") -> Bundle:
        """Enough of a bundle to make inputs with. Writes tokenizer.json to the folder."""
        (folder / TOKENIZER).write_text(self.tokenizer, encoding="utf-8")
        outputs = Outputs(activation="sigmoid" if kind == "harm" else "identity", labels=(0,))
        manifest = Manifest(
            name="draft",
            kind=kind,
            template=self.template,
            outputs=outputs,
            lineage=Lineage(base="draft"),
        )
        return Bundle(folder, manifest, "")

    @property
    def described(self) -> str:
        """Where the text comes from, in a few words."""
        if self.chat:
            return "the tokenizer's chat template"
        return "prompt and answer" if self.template.second is not None else "a template"

    def with_windows(self, windows: Windows | None) -> Inputs:
        """The same, with an answer that does not fit read whole."""
        template = self.template.model_copy(update={"windows": windows})
        return Inputs(template, self.tokenizer, self.bare, self.chat)

    def with_length(self, max_length: int) -> Inputs:
        """The same, cut later."""
        template = self.template.model_copy(update={"max_length": max_length})
        return Inputs(template, self.tokenizer, self.bare, self.chat)


def share_of_unknown(tokenizer: str, spoken: Sequence[str], unknown: int | None = None) -> float:
    """Share of unknown tokens in the texts, by tokenizer.json; a text that gives no token at all
    counts as one. `unknown` is what the tokenizer calls so beside what its model does."""
    core = Tokenizer.from_str(tokenizer)
    core.no_truncation()
    model = json.loads(tokenizer)["model"]
    named = model.get("unk_token")
    ids = {unknown, model.get("unk_id"), None if named is None else core.token_to_id(named)}
    found = total = 0
    for encoding in core.encode_batch_fast(list(spoken), add_special_tokens=False):
        total += max(1, len(encoding.ids))
        found += sum(1 for token in encoding.ids if token in ids) if encoding.ids else 1
    return found / max(1, total)


def turns(interaction: Interaction) -> list[dict[str, str]]:
    """A whole conversation, as transformers takes it."""
    asked = [{"role": item.role, "content": item.content} for item in interaction.messages]
    return [*asked, {"role": "assistant", "content": interaction.response}]


def texts(conversations: Sequence[Interaction]) -> list[str]:
    """Everything that is said in them."""
    return [turn["content"] for item in conversations for turn in turns(item) if turn["content"]]


def _object(file: Path) -> dict[str, Any]:
    """A JSON object; nothing where there is no such file."""
    if not file.is_file():
        return {}
    check_fetched(file)
    return read_json(file, dict[str, Any], error=BundleError)


def _special(name: str, token: Any, file: Path) -> str:
    """The text of a special token, which may be an object of its own."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise BundleError(f"{file.parent}: {name}: expected a token, or an object with content")
    return text


def _chat_template(given: Any, file: Path) -> str | dict[str, str] | None:
    """One template, or several by name, which files hold as a list of name and template."""
    if isinstance(given, list):
        objects = [item if isinstance(item, dict) else {} for item in given]
        given = {str(item.get("name")): item.get("template") for item in objects}
    texts = [given] if not isinstance(given, dict) else [*given, *given.values()]
    if given is not None and not all(isinstance(text, str) for text in texts):
        raise BundleError(
            f"{file.parent}: chat_template: expected text, or objects of name and template"
        )
    return given or None
