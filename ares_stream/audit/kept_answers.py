"""Answers that outlive the process that asked: a forecast that was killed asks nothing twice.

One JSON line for each answer, appended when its chunk is answered. The key is a digest of who
answered, what was asked and the seed, so that another candidate, sample or question finds
nothing. The file holds text: only its owner may read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ares_stream.errors import DecodeError, InputError
from ares_stream.files import unwritable
from ares_stream.files.rows import parse_json
from ares_stream.probes.targets import Answer, Query, Result, Target
from ares_stream.records.base import digest
from ares_stream.records.interaction import Policy


class KeptAnswers:
    """A target in front of another one. What could not be answered, or was with no text, is asked
    again the next time."""

    def __init__(self, target: Target, file: Path) -> None:
        """Raises InputError for a file that is none of ours or cannot be written."""
        self._target = target
        self._file = file
        self._known = _read(file)

    @property
    def policy(self) -> Policy:
        """Name and version of who answers."""
        return self._target.policy

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        """One result per query, in order; only what is not known is asked."""
        keys = [self._key(query) for query in queries]
        missing = [place for place, key in enumerate(keys) if key not in self._known]
        results: dict[int, Result] = {
            place: Answer(self._known[key]) for place, key in enumerate(keys) if key in self._known
        }
        if missing:
            given = await self._target.ask([queries[place] for place in missing])
            results |= dict(zip(missing, given, strict=True))
            self._keep({keys[p]: item.text for p, item in results.items()
                        if p in missing and isinstance(item, Answer)
                        and item.text.strip()})  # fmt: skip
        return [results[place] for place in range(len(queries))]

    async def aclose(self) -> None:
        """Release what the target holds."""
        await self._target.aclose()

    def _key(self, query: Query) -> str:
        turns = [[turn.role, turn.content] for turn in query.messages]
        return digest([self.policy.name, self.policy.version, turns, query.seed])

    def _keep(self, answers: dict[str, str]) -> None:
        self._known |= answers
        lines = "".join(
            json.dumps({"key": key, "text": text}) + "\n" for key, text in answers.items()
        )
        try:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self._file, error, InputError) from None


def _read(file: Path) -> dict[str, str]:
    """Raises InputError naming the line; a last line that a kill cut short is taken away."""
    if not file.exists():
        return {}
    raw = file.read_bytes()
    whole, newline, rest = raw.rpartition(b"\n")
    if rest:
        with file.open("r+b") as stream:
            stream.truncate(len(whole) + len(newline))
    known: dict[str, str] = {}
    for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
        try:
            row = parse_json(line)
            if str(row["text"]).strip():
                known[str(row["key"])] = str(row["text"])
        except (DecodeError, KeyError, TypeError):
            raise InputError(f"{file}:{number}: no kept answer; name another file") from None
    return known
