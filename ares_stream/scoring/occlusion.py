"""Why a reward model likes an answer: which words of the conversation carry its score.

Occlusion (Zeiler and Fergus 2014, arXiv 1311.2901): a part is left out and the same session scores
the rest; what the score loses is the part's weight. Sentences first, then the words of those that
weigh most, so that a long conversation costs a bounded number of runs. A word is left out wherever
it stands: one that is written twice would hide itself. Words that only work together weigh nothing
one by one: the smallest edit is looked for among all pairs, then by a beam of larger sets (Lowerre
1976, The HARPY speech recognition system), until one takes the score below the line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ares_stream.errors import ScoringError
from ares_stream.records.interaction import Interaction, Message
from ares_stream.scoring.model import ScoringModel

SENTENCES: Final = 6
"""Whose words are looked at."""
WORDS: Final = 160
EDITS: Final = 6
PAIRED: Final = 24
"""Heaviest words, of which sets are made."""
BEAM: Final = 8
"""Lowest sets of a size that grow by one word: with the above, 1,204 runs at most."""
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
class Word:
    """A word, in whatever case, at every place where it is looked at; `text` as it is written
    first."""

    text: str
    spans: tuple[Span, ...]

    @property
    def place(self) -> str:
        """ "prompt", "answer", or both."""
        return " and ".join(dict.fromkeys(span.place for span in self.spans))


@dataclass(frozen=True, slots=True)
class Weight:
    """What the score loses without a word, in the model's own units."""

    word: Word
    loss: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """`words` by their weight, heaviest first. `edit` is the smallest set of words found whose
    removal takes the score below `line`, that word first which the edit needs most; empty where
    none of up to six words does. `tried` is the edit, else the set that came lowest. `scores` are
    those of the whole and after each word of `tried`, in its order."""

    score: float
    line: float
    words: tuple[Weight, ...]
    edit: tuple[Word, ...]
    tried: tuple[Word, ...]
    scores: tuple[float, ...]


def line_of(model: ScoringModel, quantile: float) -> float:
    """The score from which on the quantile rule calls an answer liked."""
    reference = model.bundle.manifest.reference
    if reference is None:
        raise ScoringError(f"model {model.name} has no reference quantiles")
    return reference.scores[max(0, math.ceil(quantile * len(reference.scores)) - 1)]


def explain(model: ScoringModel, interaction: Interaction, line: float) -> Explanation:
    """Blocks for some hundred runs, 1,204 at most. Raises ScoringError where the whole has no
    score."""
    texts = {"prompt": interaction.prompt, "answer": interaction.response}
    (score,) = scores_without(model, interaction, [()])
    words = _words_of(model, interaction, texts, score)
    search = _Search(model, interaction, words, score)
    singles = [frozenset((place,)) for place in range(len(words))]
    search.score(singles)
    weights = sorted(
        (Weight(word, score - search.left[one]) for word, one in zip(words, singles, strict=True)),
        key=lambda item: -item.loss,
    )
    found = search.smallest(singles, line) if score >= line else frozenset()
    tried = search.ordered(found)
    steps = [frozenset(tried[:count]) for count in range(len(tried) + 1)]
    search.score(steps)
    scores = tuple(search.left[step] for step in steps)
    shown = tuple(words[place] for place in tried)
    edit = shown if scores[-1] < line else ()
    return Explanation(score, line, tuple(weights), edit, shown, scores)


_Set = frozenset[int]


class _Search:
    """Sets of words, by their place in `words`, and the score that is `left` without each."""

    def __init__(
        self, model: ScoringModel, interaction: Interaction, words: Sequence[Word], score: float
    ) -> None:
        self._model = model
        self._interaction = interaction
        self._words = words
        self.left: dict[_Set, float] = {frozenset(): score}

    def score(self, sets: Iterable[_Set]) -> None:
        """Of those that have no score yet."""
        new = sorted({one for one in sets if one not in self.left}, key=sorted)
        removed = [[self._words[place] for place in one] for one in new]
        scores = scores_without(self._model, self._interaction, removed)
        self.left.update(zip(new, scores, strict=True))

    def smallest(self, singles: Sequence[_Set], line: float) -> _Set:
        """The first size at which a set comes below the line: its lowest set. Where none does,
        the lowest of all, or nothing that is not lower than the whole."""
        paired = sorted(singles, key=self._order)[:PAIRED]
        level = list(singles)
        for size in range(1, EDITS + 1):
            if size > 1:
                beam = paired if size == 2 else sorted(level, key=self._order)[:BEAM]
                grown = {one | other for one in beam for other in paired}
                level = [one for one in grown if len(one) == size]
                self.score(level)
            lowest = min(level, key=self._order, default=None)
            if lowest is None:
                break
            if self.left[lowest] < line:
                return lowest
        return min(self.left, key=self._order)

    def ordered(self, found: _Set) -> list[int]:
        """The words of a set, that first without which the set is worth least."""
        rests = {place: found - {place} for place in found}
        self.score(rests.values())
        return sorted(found, key=lambda place: (-self.left[rests[place]], place))

    def _order(self, one: _Set) -> tuple[float, list[int]]:
        return self.left[one], sorted(one)


def _words_of(
    model: ScoringModel, interaction: Interaction, texts: dict[str, str], score: float
) -> list[Word]:
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
    written: dict[str, list[Span]] = {}
    for sentence in sentences:
        for found in _WORD.finditer(sentence.text):
            start, end = sentence.start + found.start(), sentence.start + found.end()
            span = Span(sentence.place, start, end, found.group())
            written.setdefault(span.text.casefold(), []).append(span)
    return [Word(spans[0].text, tuple(spans)) for spans in written.values()][:WORDS]


def scores_without(
    model: ScoringModel, interaction: Interaction, removed: Sequence[Sequence[Word | Span]]
) -> list[float]:
    """The score of the conversation without each group of words or spans. A conversation that
    cannot be scored without a group keeps the whole's score: nothing is known of it. Raises
    ScoringError where the whole cannot be scored."""
    whole = model.opinions([(interaction, interaction.response)])[0]
    if isinstance(whole, ScoringError):
        raise whole
    opinions = model.opinions([_without(interaction, spans) for spans in removed])
    return [whole.value if isinstance(item, ScoringError) else item.value for item in opinions]


def _without(interaction: Interaction, left: Sequence[Word | Span]) -> tuple[Interaction, str]:
    spans = [span for item in left for span in (item.spans if isinstance(item, Word) else (item,))]
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
