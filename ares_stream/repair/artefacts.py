"""The steps after training that need torch, as processes of their own.

    python -m ares_stream.repair.artefacts answer RUN_DIR
        the policy's answers to the suites, without and with its new adapter

    python -m ares_stream.repair.artefacts export RUN_DIR
        the policy's adapter, relative to the base that the policy server has; both repaired
        models in full, from which the next repair starts; last the reward model as a bundle in
        ONNX, with parity, signed where the job names a key

rundirectory.py says what they read and leave. Both do nothing when their result is there.
Progress and exit codes as in ares_stream.repair.run.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ares_stream.errors import AresError, BundleError, RepairError
from ares_stream.models.adapters import ADAPTER
from ares_stream.records.interaction import Interaction
from ares_stream.repair.plan import Plan
from ares_stream.repair.recipe import Recipe
from ares_stream.repair.run import report
from ares_stream.repair.rundirectory import Job, RunDirectory, SuiteAnswers, replaced
from ares_stream.repair.suites import prompts

if TYPE_CHECKING:
    from ares_stream.training.checkpoints import Use

LORA: Final = "repaired"


def main(arguments: list[str]) -> int:
    """Run one step. Gives the exit code."""
    steps = {"answer": answer, "export": export}
    if len(arguments) != 2 or arguments[0] not in steps:
        sys.stderr.write("usage: python -m ares_stream.repair.artefacts answer|export RUN_DIR\n")
        return 2
    try:
        steps[arguments[0]](RunDirectory(Path(arguments[1])))
    except AresError as error:
        sys.stderr.write(f"repair: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"repair: {error.filename}: {error.strerror}\n")
        return 1
    return 0


def answer(run: RunDirectory) -> None:
    """Have the policy answer every case of the suites, without and with its new adapter."""
    if run.answers.exists:
        return
    suites, recipe = run.suites.read(), run.recipe.read()
    from ares_stream.repair.models import PolicyModel

    report("answer", 0, 2)
    network, tokenizer = _adapted("policy", recipe.policy, {LORA: run.trained_adapter("policy")})
    policy = PolicyModel(network, tokenizer, recipe.max_length)
    turns = prompts(suites)
    length = recipe.reinforce.length
    with policy.before_repair():
        before = policy.sample(turns, seed=0, length=length)
    report("answer", 1, 2)
    after = policy.sample(turns, seed=0, length=length)
    run.answers.write(SuiteAnswers(before=tuple(before), after=tuple(after)))
    report("answer", 2, 2)


def export(run: RunDirectory) -> None:
    """Make what is released. The bundle comes last: it says that the step is done."""
    if run.is_exported:
        return
    job, recipe = run.job.read(), run.recipe.read()
    report("export", 0, 3)
    _export_policy(run, job, recipe)
    report("export", 1, 3)
    _merge_reward(run, recipe)
    report("export", 2, 3)
    _export_reward(run, job)
    report("export", 3, 3)


def _export_policy(run: RunDirectory, job: Job, recipe: Recipe) -> None:
    """The adapter to serve: the new one, or the active and the new one as one of both ranks."""
    new = run.trained_adapter("policy")
    with replaced(run.adapter) as staging:
        if job.previous_adapter is None:
            for file in ADAPTER:
                shutil.copyfile(new / file, staging / file)
        else:
            both = {"active": job.previous_adapter, LORA: new}
            network, _ = _adapted("policy", job.policy_base, both)
            # "cat" stacks the factors: exactly the sum of both changes, at the sum of their ranks.
            network.add_weighted_adapter(
                list(both), [1.0, 1.0], adapter_name="both", combination_type="cat"
            )
            network.save_pretrained(
                str(staging), selected_adapters=["both"], safe_serialization=True
            )
            for saved in (staging / "both").iterdir():
                saved.rename(staging / saved.name)
            (staging / "both").rmdir()
        for extra in staging.glob("README*"):
            extra.unlink()
    network, tokenizer = _adapted("policy", recipe.policy, {LORA: new})
    _save_merged(network, tokenizer, run.merged("policy"))


def _merge_reward(run: RunDirectory, recipe: Recipe) -> None:
    network, tokenizer = _adapted(
        "classifier", recipe.reward, {LORA: run.trained_adapter("reward")}
    )
    _save_merged(network, tokenizer, run.merged("reward"))


def _export_reward(run: RunDirectory, job: Job) -> None:
    from ares_stream.models.bundles import load_bundle
    from ares_stream.models.signing import sign_bundle
    from ares_stream.training.domain import MIN_REFERENCE, DomainRows
    from ares_stream.training.export import export_bundle

    incumbent = load_bundle(job.incumbent, "reward")
    reference = _reference(job.reference)
    domain = None
    if len(reference) >= MIN_REFERENCE:
        domain = DomainRows.split([*reference, *_learned(run.plan.read())])
    lineage = incumbent.manifest.lineage.model_copy(update={"plan_id": job.plan_id})

    with replaced(run.bundle) as staging:
        staging.rmdir()
        export_bundle(
            "reward",
            run.merged("reward"),
            staging,
            name=job.reward_model,
            like=incumbent,
            domain=domain,
            reference=reference,
            lineage=lineage,
        )
        if job.private_key is not None:
            sign_bundle(staging, job.private_key)


def _learned(plan: Plan) -> Iterator[Interaction]:
    """The conversations of a repair: without them, what it was made for would be unlike all that
    the reward model knows."""
    from ares_stream.training.examples import conversation

    for failure in plan.train:
        yield conversation(failure.prompt_messages, failure.harmful)
        yield conversation(failure.prompt_messages, failure.safe)
    for right in (*plan.benign, *plan.over_refusal):
        yield conversation(right.messages, right.response)
    for pair in plan.validated:
        yield conversation(pair.messages, pair.chosen)
        yield conversation(pair.messages, pair.rejected)


def _reference(path: Path) -> list[Interaction]:
    from ares_stream.errors import DecodeError, FileFormatError
    from ares_stream.files import open_lines

    found: list[Interaction] = []
    with open_lines(path) as lines:
        for number, raw in lines:
            try:
                found.append(Interaction.decode(raw))
            except DecodeError as error:
                raise FileFormatError(str(path), number, str(error)) from None
    return found


def _adapted(use: Use, base: Path, adapters: dict[str, Path]) -> tuple[Any, Any]:
    """A base with its adapters, the last one active, and its tokenizer."""
    from peft import PeftModel

    from ares_stream.training.checkpoints import first_line, load_checkpoint, quiet_transformers

    try:
        checkpoint = load_checkpoint(base, use)
        with quiet_transformers():
            network: Any = None
            for name, path in adapters.items():
                if network is None:
                    network = PeftModel.from_pretrained(
                        checkpoint.model, str(path), adapter_name=name
                    )
                else:
                    network.load_adapter(str(path), adapter_name=name)
                network.set_adapter(name)
    except BundleError as error:
        raise RepairError(str(error)) from None
    # What peft raises for an adapter of another kind of model depends on the model.
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        reason = first_line(error)
        raise RepairError(f"{base}: cannot be loaded with its adapters: {reason}") from None
    return network.eval(), checkpoint.tokenizer


def _save_merged(network: Any, tokenizer: Any, out: Path) -> None:
    with replaced(out) as staging:
        network.merge_and_unload().save_pretrained(str(staging), safe_serialization=True)
        tokenizer.save_pretrained(str(staging))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
