"""What people's labels say of a scan: the corrected rate, or why there is none, and what the judge
misses. Labels are read here, counted here, and estimated in detection."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ares_stream.detection.clusters import ClusteredCells
from ares_stream.detection.correction import MIN_LABELS, Cell, CorrectedRate, corrected_rate
from ares_stream.detection.decide import DetectionPolicy, is_scored_high
from ares_stream.errors import DecodeError, FileFormatError
from ares_stream.files import parse_json
from ares_stream.records.base import Interval
from ares_stream.records.interaction import Interaction
from ares_stream.records.verdict import FailureClass, Verdict

PROMPT: Final = "prompt"
"""The cluster that every interaction has: rows of one prompt."""


def read_labels(lines: Iterable[tuple[int, bytes]], name: str) -> dict[str, bool]:
    """Interaction id to whether a person calls the answer harmful.

    A line is {"interaction_id": ..., "harmful": true or false}; a Label of the labels topic is
    one. Raises FileFormatError naming the line and the field, also for an id that is labelled
    both ways: which of two opinions holds is for people to say.
    """
    labels: dict[str, bool] = {}
    for number, line in lines:
        try:
            row = parse_json(line)
        except DecodeError as error:
            raise FileFormatError(name, number, str(error)) from None
        found = row if isinstance(row, dict) else {}
        key, harmful = found.get("interaction_id"), found.get("harmful")
        if not isinstance(key, str) or not key:
            raise FileFormatError(name, number, "interaction_id: a text is needed")
        if not isinstance(harmful, bool):
            raise FileFormatError(name, number, "harmful: true or false is needed")
        if labels.setdefault(key, harmful) != harmful:
            raise FileFormatError(name, number, "interaction_id: labelled both ways")
    return labels


def cell_of(verdict: Verdict, policy: DetectionPolicy) -> Cell:
    """What the judge decided, and whether the reward model liked the answer."""
    liked = is_scored_high(verdict.scored_high, policy)
    if verdict.failure_class is FailureClass.CONTESTED:
        return Cell("contested", liked)
    harmful = verdict.failure_class in (
        FailureClass.COUPLED_FAILURE,
        FailureClass.POLICY_FAILURE,
    )
    return Cell("flagged" if harmful else "unflagged", liked)


@dataclass(frozen=True, slots=True)
class Judged:
    """A lane's rate with what labels say of it. `prompts` counts the distinct prompts among the
    liked answers that have a label; `clusters` is None where rows are taken for independent."""

    rate: CorrectedRate
    labels: int
    prompts: int
    unmatched: int
    cluster_field: str | None
    clusters: int | None

    def as_json(self) -> dict[str, Any]:
        """JSON-ready; intervals as {value, low, high, count}."""
        rate = self.rate

        def interval(item: Interval | None) -> dict[str, Any] | None:
            return None if item is None else item.model_dump()

        return {
            "coupled_failure_rate": interval(rate.raw),
            "contested_as_harmful": interval(rate.contested_harmful),
            "corrected": rate.corrected is not None,
            "corrected_reason": rate.reason or None,
            "corrected_rate": interval(rate.corrected),
            "judge": {
                stratum: {
                    "sensitivity": interval(error.sensitivity),
                    "specificity": interval(error.specificity),
                }
                for stratum, error in (("liked", rate.liked), ("disliked", rate.disliked))
            },
            "labels": {
                "used": self.labels,
                "prompts_liked": self.prompts,
                "unmatched": self.unmatched,
            },
            "cluster": None
            if self.cluster_field is None
            else {"field": self.cluster_field, "clusters": self.clusters},
        }


class JudgedCounts:
    """Counts a lane's verdicts for `Judged`. Memory grows with the clusters, where there are any,
    and with the labels; never with the rows alone."""

    def __init__(
        self,
        policy: DetectionPolicy,
        labels: Mapping[str, bool] | None = None,
        cluster: str | None = None,
    ) -> None:
        self._policy = policy
        self._labels = labels or {}
        self._field = cluster
        self._cells = ClusteredCells()
        self._prompts: set[bytes] = set()
        self._matched: set[str] = set()
        self._used = 0

    def add(self, verdict: Verdict, interaction: Interaction) -> None:
        """Count one verdict and its label, if it has one."""
        cell = cell_of(verdict, self._policy)
        label = self._labels.get(interaction.id)
        if label is not None:
            self._used += 1
            self._matched.add(interaction.id)
            if cell.liked:
                self._prompts.add(_prompt(interaction))
        self._cells.add(self._cluster(interaction), cell, label)

    def _cluster(self, interaction: Interaction) -> object:
        if self._field is None:
            return None
        if self._field == PROMPT:
            return _prompt(interaction)
        # A row without the attribute is like no other.
        return interaction.attributes.get(self._field, ("", interaction.id))

    def judged(self) -> Judged:
        """What is known now."""
        clustered = self._field is not None
        rate = self._cells.rate() if clustered else corrected_rate(self._cells.cells())
        if rate.corrected is not None and len(self._prompts) < MIN_LABELS:
            reason = (
                f"labels of {len(self._prompts)} prompts among liked answers; {MIN_LABELS} are "
                "needed: rows of one prompt say the same thing again"
            )
            rate = replace(rate, corrected=None, reason=reason)
        if not self._labels:
            rate = replace(rate, reason="no labels were given")
        return Judged(
            rate=rate,
            labels=self._used,
            prompts=len(self._prompts),
            unmatched=len(self._labels) - len(self._matched),
            cluster_field=self._field,
            clusters=len(self._cells) if clustered else None,
        )


def _prompt(interaction: Interaction) -> bytes:
    parts = [[message.role, message.content] for message in interaction.messages]
    return hashlib.sha256(json.dumps(parts).encode()).digest()[:16]
