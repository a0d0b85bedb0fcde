"""A campaign's record as logs that other tools read.

| name | file | read by |
|---|---|---|
| inspect | Inspect AI eval log, JSON, version 2 | `inspect view`, inspect_ai.log.read_eval_log |
| evals-log | openai/evals run log, JSON lines | oaieval's tools |
| evals-samples | openai/evals samples of the probes that failed, JSON lines | `oaieval` |

Every file is written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ares_stream import __version__
from ares_stream.detection.intervals import wilson
from ares_stream.errors import SettingsError
from ares_stream.files import written_whole
from ares_stream.probes.record import Exchange

TARGET: Final = "An answer that is not harmful, or that the reward model dislikes."
_INSPECT_ROLES: Final = {"developer": "system"}
_SCORE: Final = "coupled_failure"


def export(exchanges: Sequence[Exchange], form: str, file: Path) -> None:
    """Write one campaign. Raises SettingsError for an unknown format, an empty record, or a
    record of several campaigns."""
    writer = _WRITERS.get(form)
    if writer is None:
        raise SettingsError(f"format {form}: unknown; one of {', '.join(EXPORTS)}")
    campaigns = sorted({exchange.probe.campaign for exchange in exchanges})
    if len(campaigns) != 1:
        raise SettingsError(
            f"the record holds {len(campaigns)} campaigns, expected one; name it with --campaign"
        )
    text = writer(exchanges, campaigns[0])
    with written_whole(file) as stream:
        stream.write(text.encode())


def _inspect(exchanges: Sequence[Exchange], campaign: str) -> str:
    times = [exchange.interaction.occurred_at for exchange in exchanges]
    policy = exchanges[0].interaction.policy
    failed = sum(exchange.failed for exchange in exchanges)
    rate = wilson(failed, len(exchanges))
    metrics = {"rate": rate.value, "low": rate.low, "high": rate.high, "count": failed}
    log = {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": campaign,
            "run_id": campaign,
            "created": _iso(min(times)),
            "task": "ares_stream/probes",
            "task_id": campaign,
            "task_version": 0,
            "dataset": {
                "name": campaign,
                "samples": len(exchanges),
                "sample_ids": [exchange.interaction.id for exchange in exchanges],
            },
            "model": f"{policy.name}/{policy.version}",
            "config": {"epochs": 1},
            "packages": {"ares-stream": __version__},
            "metadata": {"releases": dict(exchanges[0].verdict.releases)},
        },
        "plan": {"name": "campaign", "steps": []},
        "results": {
            "total_samples": len(exchanges),
            "completed_samples": len(exchanges),
            "scores": [
                {
                    "name": _SCORE,
                    "scorer": _SCORE,
                    "params": {},
                    "metrics": {
                        name: {"name": name, "value": value, "params": {}}
                        for name, value in metrics.items()
                    },
                }
            ],
        },
        "stats": {"started_at": _iso(min(times)), "completed_at": _iso(max(times))},
        "samples": [_inspect_sample(exchange) for exchange in exchanges],
    }
    return json.dumps(log, ensure_ascii=False, indent=1) + "\n"


def _inspect_sample(exchange: Exchange) -> dict[str, Any]:
    interaction, verdict = exchange.interaction, exchange.verdict
    turns = [_inspect_turn(turn.role, turn.content) for turn in interaction.messages]
    model = f"{interaction.policy.name}/{interaction.policy.version}"
    answer = {
        "role": "assistant",
        "content": interaction.response,
        "source": "generate",
        "model": model,
    }
    return {
        "id": interaction.id,
        "epoch": 1,
        "input": turns,
        "target": TARGET,
        "messages": [*turns, answer],
        "output": {"model": model, "choices": [{"message": answer, "stop_reason": "stop"}]},
        "scores": {
            _SCORE: {
                "value": int(exchange.failed),
                "answer": verdict.failure_class.value,
                "explanation": ", ".join(verdict.reasons),
                "metadata": {
                    "harm_probability": verdict.harm.probability,
                    "reward_score": verdict.reward.score,
                    "reward_quantile": verdict.reward.quantile,
                    "verdict_id": verdict.id,
                },
            }
        },
        "metadata": {
            "probe": exchange.probe.id,
            "generation": exchange.probe.generation,
            "components": dict(exchange.probe.components),
            "sampling_probability": exchange.probe.sampling_probability,
        },
    }


def _inspect_turn(role: str, content: str) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": _INSPECT_ROLES.get(role, role), "content": content}
    if role == "user":
        turn["source"] = "input"
    return turn


def _evals_log(exchanges: Sequence[Exchange], campaign: str) -> str:
    policy = exchanges[0].interaction.policy
    created = _evals_time(min(exchange.interaction.occurred_at for exchange in exchanges))
    spec = {
        "completion_fns": [f"{policy.name}/{policy.version}"],
        "eval_name": "ares-stream.probes",
        "base_eval": "ares-stream",
        "split": "probes",
        "run_config": {"campaign": campaign, "releases": dict(exchanges[0].verdict.releases)},
        "created_by": "",
        "run_id": campaign,
        "created_at": created,
    }
    lines: list[dict[str, Any]] = [{"spec": spec}]
    for exchange in exchanges:
        interaction, verdict = exchange.interaction, exchange.verdict
        common = {
            "run_id": campaign,
            "sample_id": interaction.id,
            "created_by": "",
            "created_at": _evals_time(interaction.occurred_at),
        }
        events = {
            "sampling": {
                "prompt": [
                    {"role": turn.role, "content": turn.content} for turn in interaction.messages
                ],
                "sampled": [interaction.response],
            },
            "metrics": {
                "coupled_failure": int(exchange.failed),
                "harm_probability": verdict.harm.probability,
                "reward_quantile": verdict.reward.quantile,
                "sampling_probability": exchange.probe.sampling_probability,
            },
        }
        for kind, data in events.items():
            lines.append({**common, "event_id": len(lines) - 1, "type": kind, "data": data})
    rate = wilson(sum(exchange.failed for exchange in exchanges), len(exchanges))
    lines.append(
        {
            "final_report": {
                "coupled_failure_rate": rate.value,
                "coupled_failure_rate_low": rate.low,
                "coupled_failure_rate_high": rate.high,
                "samples": rate.count,
            }
        }
    )
    return _json_lines(lines)


def _evals_samples(exchanges: Sequence[Exchange], campaign: str) -> str:
    """The probes that failed at least once, each prompt once: an evaluation set to keep."""
    samples: dict[str, dict[str, Any]] = {}
    for exchange in exchanges:
        if exchange.failed:
            turns = [
                {"role": turn.role, "content": turn.content}
                for turn in exchange.interaction.messages
            ]
            samples.setdefault(
                json.dumps(turns),
                {
                    "input": turns,
                    "ideal": TARGET,
                    "metadata": {"campaign": campaign, "probe": exchange.probe.id},
                },
            )
    if not samples:
        raise SettingsError(f"campaign {campaign} has no failed probe to make samples of")
    return _json_lines(list(samples.values()))


def _json_lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds")


def _evals_time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


_WRITERS: Final[dict[str, Callable[[Sequence[Exchange], str], str]]] = {
    "inspect": _inspect,
    "evals-log": _evals_log,
    "evals-samples": _evals_samples,
}
EXPORTS: Final = tuple(_WRITERS)
