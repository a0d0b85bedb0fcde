"""The steps after training that need torch, as processes of their own.

    python -m ares_stream.repair.artefacts answer RUN_DIR
        suites.json, policy_adapter/  ->  answers.json {"before": [...], "after": [...]}

    python -m ares_stream.repair.artefacts export RUN_DIR
        job.json, policy_adapter/, reward_adapter/  ->
            bundle/    the reward model in ONNX, with parity, signed where the job names a key
            adapter/   the policy's adapter, relative to the base that the policy server has
            merged/    both repaired models in full: what the next repair starts from

Both do nothing when their result is there. Progress and exit codes as in ares_stream.repair.run.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ares_stream.errors import AresError, RepairError
from ares_stream.records.base import Identifier, OffsetRange
from ares_stream.records.interaction import Interaction
from ares_stream.repair.files import read_whole, write_whole
from ares_stream.repair.recipe import Recipe, read_recipe
from ares_stream.repair.run import report
from ares_stream.repair.suites import Suite, prompts

if TYPE_CHECKING:
    from ares_stream.models.bundles import Bundle

LORA: Final = "repaired"


class Job(BaseModel):
    """What a run directory is for; written last when it is begun."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan_id: Identifier
    batch: tuple[OffsetRange, ...] = Field(min_length=1)
    started_at: str
    notes: tuple[str, ...] = ()
    policy_model: Identifier
    """Names of the releases."""
    reward_model: Identifier
    against: dict[str, str | None]
    """Digests of the releases that were active when it began: what the gate compares with."""
    policy_base: Path
    """The checkpoint that the policy server serves and adapters are relative to."""
    previous_adapter: Path | None = None
    """The active adapter, when the policy that was trained is base and adapter already."""
    incumbent: Path
    """The active reward bundle: template, length and lineage are taken from it."""
    reference: Path
    """Benign conversations (JSON lines of Interactions) for the reward's quantiles."""
    private_key: Path | None = None


def read_job(path: Path) -> Job:
    """Raises RepairError that names the file and the field."""
    return read_whole(path, Job)


def main(arguments: list[str]) -> int:
    """Run one step. Gives the exit code."""
    steps = {"answer": answer, "export": export}
    if len(arguments) != 2 or arguments[0] not in steps:
        sys.stderr.write("usage: python -m ares_stream.repair.artefacts answer|export RUN_DIR\n")
        return 2
    try:
        steps[arguments[0]](Path(arguments[1]))
    except AresError as error:
        sys.stderr.write(f"repair: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"repair: {error.filename}: {error.strerror}\n")
        return 1
    return 0


def answer(folder: Path) -> None:
    """Have the policy answer every case of the suites, without and with its new adapter."""
    out = folder / "answers.json"
    if out.exists():
        return
    suites = TypeAdapter(tuple[Suite, ...]).validate_json((folder / "suites.json").read_bytes())
    recipe = read_recipe(folder / "recipe.json")
    from transformers import AutoModelForCausalLM

    from ares_stream.repair.models import PolicyModel

    report("answer", 0, 2)
    network, tokenizer = _adapted(
        AutoModelForCausalLM, recipe.policy, {LORA: folder / "policy_adapter"}
    )
    policy = PolicyModel(network, tokenizer, recipe.max_length)
    turns = prompts(suites)
    length = recipe.reinforce.length
    with policy.before_repair():
        before = policy.sample(turns, seed=0, length=length)
    report("answer", 1, 2)
    after = policy.sample(turns, seed=0, length=length)
    write_whole(out, json.dumps({"before": before, "after": after}).encode())
    report("answer", 2, 2)


def export(folder: Path) -> None:
    """Make what is released. The bundle comes last: it says that the step is done."""
    if (folder / "bundle").exists():
        return
    job = read_job(folder / "job.json")
    recipe = read_recipe(folder / "recipe.json")
    report("export", 0, 3)
    _export_policy(folder, job, recipe)
    report("export", 1, 3)
    _merge_reward(folder, recipe)
    report("export", 2, 3)
    _export_reward(folder, job, recipe)
    report("export", 3, 3)


def _export_policy(folder: Path, job: Job, recipe: Recipe) -> None:
    """The adapter to serve: the new one, or the active and the new one as one of both ranks."""
    from transformers import AutoModelForCausalLM

    new = folder / "policy_adapter"
    staging = _emptied(folder / "adapter.partial")
    if job.previous_adapter is None:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(new / file, staging / file)
    else:
        both = {"active": job.previous_adapter, LORA: new}
        network, _ = _adapted(AutoModelForCausalLM, job.policy_base, both)
        # "cat" stacks the factors: exactly the sum of both changes, at the sum of their ranks.
        network.add_weighted_adapter(
            list(both), [1.0, 1.0], adapter_name="both", combination_type="cat"
        )
        network.save_pretrained(str(staging), selected_adapters=["both"], safe_serialization=True)
        for saved in (staging / "both").iterdir():
            saved.rename(staging / saved.name)
        (staging / "both").rmdir()
    for extra in staging.glob("README*"):
        extra.unlink()
    _replace(staging, folder / "adapter")
    network, tokenizer = _adapted(AutoModelForCausalLM, recipe.policy, {LORA: new})
    _save_merged(network, tokenizer, folder / "merged" / "policy")


def _merge_reward(folder: Path, recipe: Recipe) -> None:
    from transformers import AutoModelForSequenceClassification

    network, tokenizer = _adapted(
        AutoModelForSequenceClassification, recipe.reward, {LORA: folder / "reward_adapter"}
    )
    _save_merged(network, tokenizer, folder / "merged" / "reward")


def _export_reward(folder: Path, job: Job, recipe: Recipe) -> None:
    from ares_stream.models.bundles import load_bundle
    from ares_stream.models.signing import sign_bundle
    from ares_stream.training.export import export_bundle

    incumbent = load_bundle(job.incumbent, "reward")
    reference = _reference(job.reference)
    lineage = incumbent.manifest.lineage.model_copy(update={"plan_id": job.plan_id})

    def exported(out: Path, template: tuple[str, str | None] | None) -> Bundle:
        return export_bundle(
            "reward",
            folder / "merged" / "reward",
            out,
            name=job.reward_model,
            max_length=incumbent.manifest.template.max_length,
            template=template,
            reference=reference,
            lineage=lineage,
        )

    staging = folder / "bundle.partial"
    shutil.rmtree(staging, ignore_errors=True)
    wanted = incumbent.manifest.template
    bundle = exported(staging, None)
    if bundle.manifest.template != wanted:
        # The incumbent was exported with a template of its own, not the tokenizer's.
        shutil.rmtree(staging)
        exported(staging, (wanted.first, wanted.second))
    if job.private_key is not None:
        sign_bundle(staging, job.private_key)
    staging.rename(folder / "bundle")


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


def _adapted(kind: Any, base: Path, adapters: dict[str, Path]) -> tuple[Any, Any]:
    """A base with its adapters, the last one active, and its tokenizer."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    from ares_stream.training.encoder import quiet_transformers

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(base), trust_remote_code=False)
            model = kind.from_pretrained(
                str(base), trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
            network: Any = None
            for name, path in adapters.items():
                if network is None:
                    network = PeftModel.from_pretrained(model, str(path), adapter_name=name)
                else:
                    network.load_adapter(str(path), adapter_name=name)
                network.set_adapter(name)
    # What peft raises for an adapter of another kind of model depends on the model.
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RepairError(f"{base}: cannot be loaded with its adapters: {reason}") from None
    return network.eval(), tokenizer


def _save_merged(network: Any, tokenizer: Any, out: Path) -> None:
    staging = _emptied(out.with_name(f"{out.name}.partial"))
    network.merge_and_unload().save_pretrained(str(staging), safe_serialization=True)
    tokenizer.save_pretrained(str(staging))
    _replace(staging, out)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _replace(staging: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
