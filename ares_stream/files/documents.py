"""Whole documents: text, JSON and YAML, read as the type that they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from ares_stream.errors import AresError, SettingsError
from ares_stream.files.reasons import said
from ares_stream.files.validation import fault
from ares_stream.files.yaml_text import parse_yaml

_T = TypeVar("_T")

MAX_DOCUMENT_BYTES: Final = 512 << 20
"""A file of another kind, given by mistake, must not fill the memory."""
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")


def read_text(
    file: Path, *, error: type[AresError] = SettingsError, limit: int = MAX_DOCUMENT_BYTES
) -> str:
    """A file of UTF-8, without its byte order mark."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(limit + 1)
    except OSError as problem:
        raise error(f"{file}: cannot be read: {said(problem)}") from None
    if len(raw) > limit:
        raise error(f"{file}: larger than {limit:,} bytes")
    if raw.startswith(_UTF16_MARKS):
        raise error(f"{file}: UTF-16; write the file as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw[: problem.start].count(b"\n") + 1
    raise error(f"{file}:{line}: not UTF-8")


def validated(
    name: object, content: Any, form: type[_T], *, error: type[AresError] = SettingsError
) -> _T:
    """Content of a file as `form`; the error names file and field."""
    try:
        return TypeAdapter(form).validate_python(content)
    except ValidationError as problem:
        reason = str(fault(problem, form))
    raise error(f"{name}: {reason}")


def read_json(file: Path, form: type[_T], *, error: type[AresError] = SettingsError) -> _T:
    """A document in JSON as `form`; the error names file and field."""
    text = read_text(file, error=error)
    try:
        return TypeAdapter(form).validate_json(text)
    except ValidationError as problem:
        reason = str(fault(problem, form))
    raise error(f"{file}: {reason}")


def read_yaml(file: Path, form: type[_T], *, error: type[AresError] = SettingsError) -> _T:
    """A document in YAML as `form`; an empty one is an empty mapping. The error names file and
    field, or the line that is not YAML."""
    content = parse_yaml(read_text(file, error=error), file, error=error).content
    return validated(file, {} if content is None else content, form, error=error)
