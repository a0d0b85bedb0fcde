"""Why a reward model likes an answer: which words of the conversation carry its score.

Occlusion (Zeiler and Fergus 2014, arXiv 1311.2901): a part is left out and the same session scores
the rest; what the score loses is the part's weight. Sentences first, then the words of those that
weigh most, so that a long conversation costs a bounded number of runs. Words that only work
together weigh little one by one: the smallest edit takes away the word that lowers the score most,
again and again, until the score is below the line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ares_stream.errors import ScoringError
from ares_stream.records.interaction import Interaction, Message
from ares_stream.scoring.model import ScoringModel

SENTENCES: Final = 6
"""Whose words are looked at."""
WORDS: Final = 160
EDITS: Final = 6
_SENTENCE: Final = re.compile(r"[^.!?\n]+[.!?\n]*")
_WORD: Final = re.compile(r"\w+(?:['’-]\w+)*")


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of the conversation: characters `start` to `end` of the prompt or the answer."""

    place: str
    """"prompt" (the last turn that is not the assistant's) or "answer"."""
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Weight:
    """What the score loses without a span, in the model's own units."""

    span: Span
    loss: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """`words` by their weight, heaviest first. `edit` is the smallest set of words found whose
    removal takes the score below `line`; empty where none of up to six words does. `scores` are
    those of the whole and after each word of the edit, whether or not it got there."""

    score: float
    line: float
    words: tuple[Weight, ...]
    edit: tuple[Span, ...]
    tried: tuple[Span, ...]
    scores: tuple[float, ...]


def line_of(model: ScoringModel, quantile: float) -> float:
    """The score from which on the quantile rule calls an answer liked."""
    reference = model.bundle.manifest.reference
    if reference is None:
        raise ScoringError(f"model {model.name} has no reference quantiles")
    return reference.scores[max(0, math.ceil(quantile * len(reference.scores)) - 1)]


def explain(model: ScoringModel, interaction: Interaction, line: float) -> Explanation:
    """Blocks for some hundred runs at most. Raises ScoringError where the whole has no score."""
    texts = {"prompt": interaction.prompt, "answer": interaction.response}
    (score,) = scores_without(model, interaction, [()])
    words = _words_of(model, interaction, texts, score)
    losses = scores_without(model, interaction, [(span,) for span in words])
    weights = sorted(
        (Weight(span, score - left) for span, left in zip(words, losses, strict=True)),
        key=lambda item: -item.loss,
    )
    tried: list[Span] = []
    scores = [score]
    while scores[-1] >= line and len(tried) < EDITS and len(tried) < len(words):
        rest = [span for span in words if span not in tried]
        lefts = scores_without(model, interaction, [(*tried, span) for span in rest])
        lowest = min(range(len(rest)), key=lefts.__getitem__)
        if lefts[lowest] >= scores[-1]:
            break
        tried.append(rest[lowest])
        scores.append(lefts[lowest])
    edit = tuple(tried) if scores[-1] < line else ()
    return Explanation(score, line, tuple(weights), edit, tuple(tried), tuple(scores))


def _words_of(
    model: ScoringModel, interaction: Interaction, texts: dict[str, str], score: float
) -> list[Span]:
    sentences = [
        Span(place, found.start(), found.end(), found.group())
        for place, text in texts.items()
        for found in _SENTENCE.finditer(text)
        if found.group().strip()
    ]
    if len(sentences) > SENTENCES:
        left = scores_without(model, interaction, [(span,) for span in sentences])
        order = sorted(range(len(sentences)), key=lambda at: left[at] - score)
        sentences = [sentences[at] for at in order[:SENTENCES]]
    words = [
        Span(sentence.place, sentence.start + found.start(), sentence.start + found.end(),
             found.group())
        for sentence in sentences
        for found in _WORD.finditer(sentence.text)
    ]  # fmt: skip
    return words[:WORDS]


def scores_without(
    model: ScoringModel, interaction: Interaction, removed: Sequence[Sequence[Span]]
) -> list[float]:
    """The score of the conversation without each group of spans. A conversation that cannot be
    scored without a group keeps the whole's score: nothing is known of it. Raises ScoringError
    where the whole cannot be scored."""
    whole = model.opinions([(interaction, interaction.response)])[0]
    if isinstance(whole, ScoringError):
        raise whole
    opinions = model.opinions([_without(interaction, spans) for spans in removed])
    return [whole.value if isinstance(item, ScoringError) else item.value for item in opinions]


def _without(interaction: Interaction, spans: Sequence[Span]) -> tuple[Interaction, str]:
    prompt = _cut(interaction.prompt, [span for span in spans if span.place == "prompt"])
    answer = _cut(interaction.response, [span for span in spans if span.place == "answer"])
    messages = list(interaction.messages)
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].role != "assistant" or len(messages) == 1:
            messages[at] = Message(role=messages[at].role, content=prompt)
            break
    return interaction.model_copy(update={"messages": tuple(messages)}), answer


def _cut(text: str, spans: Sequence[Span]) -> str:
    for span in sorted(spans, key=lambda item: -item.start):
        text = text[: span.start] + text[span.end :]
    return re.sub(r" {2,}", " ", text).strip() if spans else text
