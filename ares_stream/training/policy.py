"""What a policy reads and where its answers end: by its chat template and its stop tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ares_stream.errors import BundleError, InputError
from ares_stream.records.interaction import Message
from ares_stream.training.checkpoints import stop_tokens

_MARK: Final = "ares"
"""An answer that no template writes by itself."""


class PolicyEncoder:
    """Prompts and answers of a causal language model as token ids.

    `stop` holds every id that ends an answer, as a server knows them. `end` is what the model's
    chat template writes after an answer, up to the first of these: what a taught answer ends in.
    Without a chat template a prompt is its turns' text, line by line, behind the token that begins
    a text where the tokenizer has one.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Sets the tokenizer's pad token where it has none. Raises BundleError where nothing ends
        an answer."""
        self._tokenizer = tokenizer
        self.stop = stop_tokens(model, tokenizer)
        if not self.stop:
            raise BundleError("the tokenizer has no end token; answers could not end")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.stop[0])
        self._begin = self._beginning()
        self.end = self._ending()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The conversation up to where the answer begins.

        Raises InputError where the chat template refuses its roles.
        """
        turns = [{"role": m.role, "content": m.content} for m in messages]
        if not self._tokenizer.chat_template:
            text = "\n".join(turn["content"] for turn in turns) + "\n"
            return [*self._begin, *self._ids(text)]
        return self._ids(self._render(turns, prompting=True)) or [self.stop[0]]

    def answer(self, text: str) -> list[int]:
        """An answer with its end."""
        return [*self._ids(text), *self.end]

    def read(self, ids: Sequence[int]) -> str:
        """The text of generated ids up to the first stop token."""
        stop = next((place for place, item in enumerate(ids) if item in self.stop), len(ids))
        text: str = self._tokenizer.decode(ids[:stop], skip_special_tokens=True)
        return text.strip()

    def length(self, ids: Sequence[int]) -> int:
        """How many generated ids are the answer, its stop token included."""
        stop = next((place for place, item in enumerate(ids) if item in self.stop), len(ids))
        return min(stop + 1, len(ids))

    def cut(self, ids: Sequence[int], length: int) -> list[int]:
        """The last `length` ids, which keep the token that begins a text."""
        if len(ids) <= length:
            return list(ids)
        begin = [ids[0]] if ids[0] == self._tokenizer.bos_token_id and length > 1 else []
        return [*begin, *ids[len(ids) - length + len(begin) :]]

    def _render(self, turns: list[dict[str, str]], *, prompting: bool) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=prompting
            )
        except Exception:  # a template is a program, and fails as programs do
            roles = ", ".join(turn["role"] for turn in turns)
        else:
            return text
        raise InputError(f"the policy's chat template refuses a conversation of roles {roles}")

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def _beginning(self) -> list[int]:
        begin = self._tokenizer.bos_token_id
        whole = self._tokenizer(_MARK)["input_ids"]
        return [begin] if begin is not None and whole[:1] == [begin] else []

    def _ending(self) -> tuple[int, ...]:
        own = self._tokenizer.eos_token_id
        usual = (self.stop[0] if own is None else own,)
        if not self._tokenizer.chat_template:
            return usual
        turns = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": _MARK}]
        tail = self._ids(self._render(turns, prompting=False).rpartition(_MARK)[2])
        stop = next((place for place, item in enumerate(tail) if item in self.stop), None)
        return usual if stop is None else tuple(tail[: stop + 1])
