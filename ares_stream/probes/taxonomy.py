"""What a probe is made of: topics, personas, tactics, goals, transforms, and which go together.

The default is `taxonomy.yaml` beside this file; a user's YAML of the same form is merged over
it. This module reads and checks; words are put together in `composition`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self

import numpy as np
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from ares_stream.errors import SettingsError
from ares_stream.files import parse_yaml, read_text, validated
from ares_stream.probes.space import Space
from ares_stream.probes.transforms import TRANSFORMS
from ares_stream.records.base import digest
from ares_stream.records.interaction import Message

Axis = Literal["topic", "persona", "tactic", "goal", "transform"]
AXES: tuple[Axis, ...] = ("topic", "persona", "tactic", "goal", "transform")
PLACES = {"tactics": {"persona", "request", "topic"}, "goals": {"topic"}}
"""Which {names} a phrase of each section may hold."""

ComponentId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _turns(value: Any) -> Any:
    """One string is one user turn."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


Turns = Annotated[tuple[Message, ...], BeforeValidator(_turns), Field(min_length=1)]


class Component(_Part):
    """One entry: ways to say it, each as likely. `terms` are words of which an on-topic probe
    holds at least one."""

    phrases: tuple[str, ...] = Field(min_length=1)
    terms: tuple[str, ...] = ()


class Tactic(_Part):
    """Ways to ask: templates with {persona}, {request}, {topic}; several turns make a lead-in."""

    phrases: tuple[Turns, ...] = Field(min_length=1)


class Constraint(_Part):
    """A composition whose components are all listed makes no sense."""

    forbid: dict[Axis, tuple[ComponentId, ...]] = Field(min_length=1)
    because: str = ""


class Taxonomy(_Part):
    """Everything a probe can be made of. Frozen; `digest` names this very content."""

    version: Literal[1] = 1
    topics: dict[ComponentId, Component]
    personas: dict[ComponentId, Component]
    tactics: dict[ComponentId, Tactic]
    goals: dict[ComponentId, Component]
    transforms: tuple[str, ...] = ("plain",)
    constraints: tuple[Constraint, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in self.transforms:
            if name not in TRANSFORMS:
                raise ValueError(f"transforms: {name} is unknown; one of {', '.join(TRANSFORMS)}")
        for key, tactic in self.tactics.items():
            for turns in tactic.phrases:
                for turn in turns:
                    _check_places(f"tactics.{key}", turn.content, PLACES["tactics"])
                if not any("{request}" in turn.content for turn in turns):
                    raise ValueError(f"tactics.{key}: no turn holds {{request}}")
        for key, goal in self.goals.items():
            for phrase in goal.phrases:
                _check_places(f"goals.{key}", phrase, PLACES["goals"])
        known = self.ids()
        for place, constraint in enumerate(self.constraints):
            for axis, ids in constraint.forbid.items():
                for name in ids:
                    if name not in known[axis]:
                        raise ValueError(
                            f"constraints.{place}.forbid.{axis}: no such component: {name}"
                        )
        return self

    def ids(self) -> dict[Axis, tuple[str, ...]]:
        """Component ids per axis, in the order of the file."""
        return {
            "topic": tuple(self.topics),
            "persona": tuple(self.personas),
            "tactic": tuple(self.tactics),
            "goal": tuple(self.goals),
            "transform": self.transforms,
        }

    def space(self) -> Space:
        """Every composition that the constraints allow."""
        ids = self.ids()
        sizes = [len(ids[axis]) for axis in AXES]
        allowed = np.ones(sizes, dtype=bool)
        for constraint in self.constraints:
            allowed[
                np.ix_(
                    *(
                        [ids[axis].index(name) for name in constraint.forbid[axis]]
                        if axis in constraint.forbid
                        else range(size)
                        for axis, size in zip(AXES, sizes, strict=True)
                    )
                )
            ] = False
        return Space(tuple(AXES), tuple(ids[axis] for axis in AXES), allowed.ravel())

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return digest(self.model_dump(mode="json"))


def load_taxonomy(file: Path | None = None) -> Taxonomy:
    """The default, with a user's file merged over it. Raises SettingsError."""
    default = resources.files("ares_stream.probes").joinpath("taxonomy.yaml").read_text("utf-8")
    content: dict[str, Any] = yaml.safe_load(default)
    name = "taxonomy.yaml"
    if file is not None:
        name = str(file)
        content = _merge(content, _read(file), name)
    return validated(name, content, Taxonomy)


def _check_places(where: str, phrase: str, allowed: set[str]) -> None:
    try:
        used = {name for _, name, _, _ in Formatter().parse(phrase) if name is not None}
    except ValueError:
        raise ValueError(f"{where}: a brace is not closed; write {{{{ for a brace") from None
    if used - allowed:
        raise ValueError(f"{where}: unknown place {sorted(used - allowed)}; know {sorted(allowed)}")


def _read(file: Path) -> dict[str, Any]:
    content = parse_yaml(read_text(file), file, error=SettingsError).content
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{file}: expected sections such as topics and tactics")
    return content


def _merge(base: dict[str, Any], over: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Sections merge by id; `disable: {topics: [..]}` removes; transforms replace; constraints
    add up, those that lost all their components on an axis drop out."""
    merged = dict(base)
    disable = over.get("disable") or {}
    if not isinstance(disable, Mapping):
        raise SettingsError(f"{name}: disable: expected sections with lists of ids")
    for section in ("topics", "personas", "tactics", "goals"):
        added = over.get(section) or {}
        if not isinstance(added, Mapping):
            raise SettingsError(f"{name}: {section}: expected ids with their phrases")
        entries = {**base[section], **added}
        for gone in disable.get(section) or ():
            if gone not in entries:
                raise SettingsError(f"{name}: disable.{section}: no such id: {gone}")
            del entries[gone]
        merged[section] = entries
    unknown = set(over) - set(base) - {"disable"}
    if unknown:
        raise SettingsError(f"{name}: unknown section {sorted(unknown)[0]}")
    merged["transforms"] = over.get("transforms", base["transforms"])
    merged["constraints"] = [
        *_still_possible(base["constraints"], merged),
        *(over.get("constraints") or ()),
    ]
    return merged


def _still_possible(constraints: list[dict[str, Any]], merged: dict[str, Any]) -> list[Any]:
    kept = []
    for constraint in constraints:
        forbid = {
            axis: [name for name in ids if name in merged[f"{axis}s"]]
            for axis, ids in constraint["forbid"].items()
        }
        if all(forbid.values()):
            kept.append({**constraint, "forbid": forbid})
    return kept
