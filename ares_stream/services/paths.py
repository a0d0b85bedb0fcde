"""Paths in a settings file are relative to that file, wherever a command is started."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel


def anchored(model: type[BaseModel], content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The content of a settings file with each relative path put under the folder. What is no
    path, and what validation will refuse, stays as it is."""
    fields = model.model_fields
    return {
        name: _anchor(fields[name].annotation, fields[name].metadata, value, folder)
        if name in fields
        else value
        for name, value in content.items()
    }


class Location:
    """Marks a text that is a path, or a URL where it has a scheme."""


def _anchor(annotation: Any, metadata: list[Any], value: Any, folder: Path) -> Any:
    if _is_relative(annotation, metadata, value):
        return str(folder / value)
    for kind in _alternatives(annotation):
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            return anchored(kind, value, folder)
        items = typing.get_args(kind)
        if isinstance(value, list) and typing.get_origin(kind) is tuple and items:
            return [_anchor(items[0], [], item, folder) for item in value]
    return value


def _is_relative(annotation: Any, metadata: list[Any], value: Any) -> bool:
    if not isinstance(value, str) or not value:
        return False
    if Location in metadata:
        return "://" not in value and not Path(value).is_absolute()
    return Path in _alternatives(annotation) and not Path(value).is_absolute()


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """A union's members, or the annotation itself; without Annotated."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(typing.get_args(annotation))
    return (annotation,)
