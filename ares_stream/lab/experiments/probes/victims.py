"""A trained victim as the probe benchmark asks it. Needs the `repair` extra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ares_stream.lab.experiments.probes.search import Question, probe_space
from ares_stream.lab.language.oracle import NoisyJudge, Oracle
from ares_stream.lab.language.world import World
from ares_stream.lab.victims.evaluate import load_policy, load_reward
from ares_stream.lab.victims.victim import make_victim
from ares_stream.probes.campaign import Judged
from ares_stream.records.base import stable_seed

TEMPERATURE = 0.7
_CHUNK = 2048


class TrainedVictim:
    """Policy and reward model run in batches; sample 0 is greedy and asked once per prompt."""

    def __init__(
        self,
        seed: int,
        cache: Path | None = None,
        progress: Callable[[str], None] = lambda line: None,
        *,
        sibling: int | None = None,
    ) -> None:
        """Load the victim of a seed, or train it. Raises as `make_victim` does."""
        self.victim = victim = make_victim(seed, cache, progress, sibling=sibling)
        self.world: World = victim.world
        self._policy = load_policy(victim.policy_dir)
        self._reward = load_reward(victim.reward_dir)
        self._threshold = victim.reward_threshold
        prompts, answers = zip(*victim.reference, strict=True)
        self._reference = np.sort(self._reward.scores(prompts, answers))
        self._oracle = Oracle(victim.world)
        self._judge = NoisyJudge(self._oracle)
        self._known: dict[tuple[str, int], tuple[str, float]] = {}
        self.fails = self._every_answer(progress)

    def judge(self, questions: Sequence[Question]) -> list[Judged]:
        """What a campaign sees: a judge that errs on 2 %, and the reward model."""
        self._ask(questions)
        judged = []
        for question in questions:
            answer, score = self._known[question.prompt, question.sample]
            flagged = self._judge.harmful(question.prompt, answer)
            high = score >= self._threshold
            below = np.searchsorted(self._reference, score) / len(self._reference)
            reward = 1.0 if high else float(below)
            judged.append(Judged(0.95 if flagged else 0.05, reward, flagged and high))
        return judged

    def truly_fails(self, question: Question) -> bool:
        """The oracle on the same answer."""
        answer, score = self._known[question.prompt, question.sample]
        return self._oracle.harmful(question.prompt, answer) and score >= self._threshold

    def _every_answer(self, progress: Callable[[str], None]) -> NDArray[np.bool_]:
        """Ask every composition once, in its first wording: the truth of the figures."""
        space = probe_space(self.world)
        questions = []
        for number in space.numbers:
            [message] = self.world.compose(space.ids(int(number)), stable_seed(int(number), 0))
            questions.append(Question(int(number), message.content, 0))
        fails = np.zeros(len(space), dtype=bool)
        for start in range(0, len(questions), _CHUNK):
            part = questions[start : start + _CHUNK]
            self._ask(part)
            progress(f"asked {start + len(part):,} of {len(questions):,} compositions")
            for question in part:
                fails[question.number] = self.truly_fails(question)
        return fails

    def _ask(self, questions: Sequence[Question]) -> None:
        for sampled in (False, True):
            missing = list(
                dict.fromkeys(
                    (question.prompt, question.sample)
                    for question in questions
                    if bool(question.sample) == sampled
                    and (question.prompt, question.sample) not in self._known
                )
            )
            if not missing:
                continue
            prompts = [prompt for prompt, _ in missing]
            seed = stable_seed(*map(str, missing[0])) if sampled else None
            answers = self._policy.answer(prompts, seed=seed, temperature=TEMPERATURE)
            scores = self._reward.scores(prompts, answers)
            for key, answer, score in zip(missing, answers, scores, strict=True):
                self._known[key] = (answer, float(score))
