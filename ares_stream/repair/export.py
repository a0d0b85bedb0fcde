"""A repair's batch in other trainers' formats, for a team that trains with its own stack.

    trl-preference      prompt, chosen, rejected     DPOTrainer, RewardTrainer
    trl-unpaired        prompt, completion, label    KTOTrainer
    alignment-handbook  the preference files, and a recipe in the style of
                        huggingface/alignment-handbook that reads them

Conversational: every column holds lists of {role, content}. Each file has one row per line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from ares_stream.errors import RepairError
from ares_stream.records.interaction import Message
from ares_stream.repair.files import write_whole
from ares_stream.repair.plan import Plan, ReplaySample, Sample, ValidatedPair

Format = Literal["trl-preference", "trl-unpaired", "alignment-handbook"]
FORMATS: Final[tuple[Format, ...]] = ("trl-preference", "trl-unpaired", "alignment-handbook")


def export_plan(plan: Plan, form: Format, out: Path) -> tuple[Path, ...]:
    """Write `train.jsonl` and `test.jsonl` (and `recipe.yaml`) to `out`; returns the files.

    Validated replay pairs are preferences of the training file; benign and over-refusal replay
    are wanted completions of the unpaired one. Raises RepairError when `out` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise RepairError(f"{out}: is not empty; name a new directory")
    unpaired = form == "trl-unpaired"
    rows = {"train": _unpaired(plan, plan.train) if unpaired else _preference(plan, plan.train)}
    rows["test"] = [
        row for sample in plan.held_out for row in (_both(sample) if unpaired else [_pair(sample)])
    ]
    files = [_write(out / f"{name}.jsonl", content) for name, content in rows.items()]
    if form == "alignment-handbook":
        recipe = out / "recipe.yaml"
        write_whole(recipe, yaml.safe_dump(_recipe(plan), sort_keys=False).encode())
        files.append(recipe)
    return tuple(files)


def _preference(plan: Plan, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    return [*map(_pair, samples), *map(_validated, plan.validated)]


def _unpaired(plan: Plan, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    rows = [row for sample in samples for row in _both(sample)]
    return rows + [_wanted(item) for item in (*plan.benign, *plan.over_refusal)]


def _pair(sample: Sample) -> dict[str, Any]:
    return {
        "prompt": _turns(sample.prompt_messages),
        "chosen": _answer(sample.safe),
        "rejected": _answer(sample.harmful),
    }


def _validated(pair: ValidatedPair) -> dict[str, Any]:
    return {
        "prompt": _turns(pair.messages),
        "chosen": _answer(pair.chosen),
        "rejected": _answer(pair.rejected),
    }


def _both(sample: Sample) -> list[dict[str, Any]]:
    prompt = _turns(sample.prompt_messages)
    return [
        {"prompt": prompt, "completion": _answer(sample.safe), "label": True},
        {"prompt": prompt, "completion": _answer(sample.harmful), "label": False},
    ]


def _wanted(item: ReplaySample) -> dict[str, Any]:
    return {
        "prompt": _turns(item.messages),
        "completion": _answer(item.response),
        "label": True,
    }


def _turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in messages]


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_whole(path, ("\n".join(lines) + "\n").encode())
    return path


def _recipe(plan: Plan) -> dict[str, Any]:
    """A DPO recipe; what only the team knows is left for it to fill in."""
    return {
        "model_name_or_path": "FILL IN: the policy's checkpoint",
        "torch_dtype": "bfloat16",
        "use_peft": True,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_target_modules": "all-linear",
        "dataset_mixture": {
            "datasets": [
                {
                    "id": ".",
                    "split": "train",
                    "columns": ["prompt", "chosen", "rejected"],
                    "weight": 1.0,
                }
            ]
        },
        "beta": 0.1,
        "learning_rate": 5.0e-6,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "lr_scheduler_type": "cosine",
        "max_length": 1024,
        "seed": plan.policy.seed,
        "output_dir": f"data/repair-{plan.id[:12]}",
    }
