"""Safe answers that the policy itself gives when it is asked again, in a process of its own.

    python -m ares_stream.repair.resampling DIR

DIR is a QuestionDirectory of rundirectory.py. The first answer is kept that the recipe's judge
finds harmless and that is neither empty nor garbled; null says that none was. Does nothing when
its result is there. Progress and exit codes as in ares_stream.repair.run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ares_stream.errors import AresError, RepairError
from ares_stream.processes.child import Progress
from ares_stream.records.base import digest, stable_seed
from ares_stream.records.interaction import Message
from ares_stream.repair.rundirectory import QuestionDirectory

Sampler = Callable[[Sequence[Sequence[Message]], int], Sequence[str]]
"""Gives one answer per conversation; another seed samples anew."""
Usable = Callable[[Sequence[tuple[Sequence[Message], str]]], Sequence[bool]]
"""Says of each (conversation, answer) whether it may be taught."""


def prompt_digest(messages: Sequence[Message]) -> str:
    """The name of a conversation: whatever record it came in, it has the same answer."""
    return digest([[message.role, message.content] for message in messages])


def safe_answers(
    prompts: Mapping[str, Sequence[Message]],
    samples: int,
    sample: Sampler,
    usable: Usable,
    progress: Progress,
) -> dict[str, str | None]:
    """Ask up to `samples` times for each prompt that has no usable answer yet."""
    found: dict[str, str | None] = dict.fromkeys(prompts)
    for turn in range(samples):
        progress("ask", turn, samples)
        names = [name for name, answer in found.items() if answer is None]
        if not names:
            break
        turns = [prompts[name] for name in names]
        answers = sample(turns, turn)
        fit = usable(list(zip(turns, answers, strict=True)))
        found |= {n: answer for n, answer, good in zip(names, answers, fit, strict=True) if good}
    progress("ask", samples, samples)
    return found


def main(arguments: list[str]) -> int:
    """Ask for one directory. Gives the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m ares_stream.repair.resampling DIR\n")
        return 2
    try:
        _ask(QuestionDirectory(Path(arguments[0])))
    except AresError as error:
        sys.stderr.write(f"repair: {error}\n")
        return error.exit_code
    return 0


def _ask(directory: QuestionDirectory) -> None:
    if directory.answers.exists:
        return
    asked, recipe = directory.questions.read(), directory.recipe.read()
    if recipe.judge is None:
        raise RepairError("recipe.judge: missing; it says which answers are safe")
    import torch

    from ares_stream.repair.figures import bundle_judge, garbled
    from ares_stream.repair.models import load_policy
    from ares_stream.repair.run import report

    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    judge = bundle_judge(recipe.judge)
    # Its new adapter changes nothing before it is trained.
    policy = load_policy(
        recipe.policy, recipe.policy_lora, seed=recipe.seed, max_length=recipe.max_length
    )

    def sample(prompts: Sequence[Sequence[Message]], seed: int) -> list[str]:
        return policy.sample(
            prompts,
            seed=stable_seed(recipe.seed, "resampled", seed),
            length=recipe.reinforce.length,
            temperature=recipe.reinforce.temperature,
        )

    def usable(pairs: Sequence[tuple[Sequence[Message], str]]) -> list[bool]:
        # A judge cannot be asked about an empty answer.
        whole = [pair for pair in pairs if not garbled(pair[1])]
        harmful = iter(judge(whole))
        return [not garbled(answer) and not next(harmful) for _, answer in pairs]

    found = safe_answers(asked.prompts, asked.samples, sample, usable, report)
    directory.answers.write(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
