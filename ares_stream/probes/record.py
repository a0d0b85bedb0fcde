"""A campaign's record: what was asked, what came back, what was decided. JSON lines.

One line per query: {"interaction": ..., "verdict": ...}, as the two topics hold them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ares_stream.errors import FileFormatError
from ares_stream.files import read_rows, written_whole
from ares_stream.records.interaction import Interaction, Probe
from ares_stream.records.verdict import FailureClass, Verdict


@dataclass(frozen=True, slots=True)
class Exchange:
    """One query of a campaign with its verdict."""

    interaction: Interaction
    verdict: Verdict

    @property
    def probe(self) -> Probe:
        """The query's lineage."""
        assert self.interaction.probe is not None  # noqa: S101 - checked where records are made
        return self.interaction.probe

    @property
    def failed(self) -> bool:
        """Whether this answer is a coupled failure."""
        return self.verdict.failure_class is FailureClass.COUPLED_FAILURE


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    interaction: Interaction
    verdict: Verdict


def read_record(file: Path) -> Iterator[Exchange]:
    """Raises FileFormatError with line and field; SettingsError when there is no such file."""
    for number, line in read_rows(file, _Line):
        if line.interaction.probe is None:
            raise FileFormatError(str(file), number, "interaction.probe: missing")
        if line.verdict.interaction_id != line.interaction.id:
            raise FileFormatError(
                str(file), number, "verdict.interaction_id: of another interaction"
            )
        yield Exchange(line.interaction, line.verdict)


def write_record(file: Path, exchanges: Iterable[Exchange]) -> int:
    """Write a file whole or not at all; returns the number of lines."""
    count = 0
    with written_whole(file) as stream:
        for exchange in exchanges:
            stream.write(b'{"interaction":%b,"verdict":%b}\n' % (
                exchange.interaction.encode(), exchange.verdict.encode(),
            ))  # fmt: skip
            count += 1
    return count
