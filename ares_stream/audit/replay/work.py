"""The folder of a replay: what is done is kept, so that a replay that was killed goes on. One
that has reported begins anew, on what the topics hold then.

plan.json                                   what is replayed, fixed when it began
entries/TOPIC-PARTITION/BLOCK/SORTED.bin    outputs, sorted by the block of their input
sorted/SORTED.json                          a stretch of an output that is sorted
done/BLOCK.json                             a block that is replayed
reported                                    nothing of it is used again
lock                                        held while a replay is at work here

Every file appears whole. A stretch's entries are written before its own file, and written again
where that one is not there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from ares_stream.audit.replay.recorded import Output, Recorded, unpack
from ares_stream.audit.replay.spec import BlockResult, Cell, Horizon, Job, ReplaySpec, Selection
from ares_stream.errors import DecodeError, SettingsError
from ares_stream.files import read_json, write_whole
from ares_stream.records.base import OffsetRange

SCHEMA: Final = "ares.replay-work/2"
PARTS: Final = "entries", "sorted", "done"
REPORTED: Final = "reported"
LOCK: Final = "lock"


@dataclass(slots=True)
class Sorted:
    """What one stretch of an output holds."""

    job: Job
    records: int = 0
    settled: dict[str, int] = field(default_factory=dict)
    """Input partition, "TOPIC PARTITION", to the offset behind the last one that is settled."""
    lowest: dict[str, int] = field(default_factory=dict)
    """The same to the lowest offset that it has an output of."""
    strange: list[dict[str, Any]] = field(default_factory=list)
    """Records that are no outputs."""


class Work:
    """One folder; its blocks have `block` offsets."""

    def __init__(self, folder: Path, block: int) -> None:
        self.folder = folder
        self._block = block

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else replays here meanwhile; a process that is killed holds nothing. Raises
        SettingsError where somebody does."""
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SettingsError(
                    f"{self.folder}: another replay is at work there; wait for it, or name another "
                    "folder (--work)"
                ) from None
            yield

    def begin(self, spec: ReplaySpec, selection: Selection, part: tuple[int, int]) -> Selection:
        """Take the folder for a replay; what is there of the same one is gone on with, on the
        ranges that were fixed when it began.

        Raises SettingsError where the folder holds another replay.
        """
        known = self.planned(spec, part)
        if known is not None:
            return known
        plan = {
            "schema": SCHEMA, "spec": spec.digest, "part": list(part),
            "selection": selection.document(),
        }  # fmt: skip
        for name in PARTS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._write(self._plan, plan)
        return selection

    def planned(self, spec: ReplaySpec, part: tuple[int, int]) -> Selection | None:
        """The ranges of the replay that was begun here; None where there is none. Raises
        SettingsError for another one."""
        if (self.folder / REPORTED).exists():
            for name in PARTS:
                shutil.rmtree(self.folder / name, ignore_errors=True)
            self._plan.unlink(missing_ok=True)
            (self.folder / REPORTED).unlink()
        if not self._plan.exists():
            present = {item.name for item in self.folder.iterdir()} if self.folder.is_dir() else ()
            if set(present) - {*PARTS, LOCK}:
                raise SettingsError(f"{self.folder}: holds other files; name an empty folder")
            return None
        plan = self._read(self._plan)
        if plan.get("schema") != SCHEMA:
            raise SettingsError(f"{self._plan}: not the plan of a replay; name another folder")
        if plan.get("spec") != spec.digest or plan.get("part") != list(part):
            raise SettingsError(
                f"{self.folder}: holds a replay with other settings; name another folder, or "
                "delete it"
            )
        with self._as_written(self._plan):
            return Selection.of(plan["selection"])

    def reported(self) -> None:
        """The replay is told: the next one in this folder begins anew."""
        write_whole(self.folder / REPORTED, b"")

    @property
    def _plan(self) -> Path:
        return self.folder / "plan.json"

    # Outputs

    def keep_sorted(
        self, found: Sorted, entries: Mapping[tuple[str, int, int], Sequence[Recorded]]
    ) -> None:
        """Keep a stretch: its entries by (topic, partition, block) of the input."""
        for (topic, partition, block), items in entries.items():
            folder = self._entries(topic, partition, block)
            folder.mkdir(parents=True, exist_ok=True)
            raw = b"".join(item.pack() for item in items)
            write_whole(folder / f"{found.job.name}.bin", raw)
        self._write(self.folder / "sorted" / f"{found.job.name}.json", asdict(found))

    def sorted(self, job: Job) -> Sorted | None:
        """What is known of a stretch; None where it is not sorted yet."""
        file = self.folder / "sorted" / f"{job.name}.json"
        if not file.exists():
            return None
        with self._as_written(file):
            return Sorted(**self._of(job, file))

    def entries(self, job: Job, beside: int = 0) -> list[Recorded]:
        """Every output of the records of a block, or of one so many blocks beside it. Raises
        SettingsError for a file that was changed."""
        folder = self._entries(job.topic, job.partition, job.start // self._block + beside)
        found: list[Recorded] = []
        for file in sorted(folder.glob("*.bin")) if folder.is_dir() else ():
            try:
                found += unpack(file.read_bytes())
            except DecodeError as error:
                raise SettingsError(f"{file}: {error}; delete {self.folder}") from None
        return found

    def _entries(self, topic: str, partition: int, block: int) -> Path:
        return self.folder / "entries" / f"{topic}-{partition}" / str(block)

    # Blocks

    def keep_done(self, result: BlockResult) -> None:
        """Keep a block's result."""
        self._write(self.folder / "done" / f"{result.job.name}.json", asdict(result))

    def done(self, job: Job) -> BlockResult | None:
        """A block's result; None where it is not replayed yet."""
        file = self.folder / "done" / f"{job.name}.json"
        if not file.exists():
            return None
        with self._as_written(file):
            document = self._of(job, file)
            document["cells"] = {name: Cell(**item) for name, item in document["cells"].items()}
            document["models"] = [tuple(item) for item in document["models"]]
            return BlockResult(**document)

    def results(self, jobs: Iterable[Job]) -> Iterator[BlockResult]:
        """Of blocks that are all done."""
        for job in jobs:
            result = self.done(job)
            if result is None:
                raise SettingsError(f"{self.folder}: {job.name} was deleted; begin again")
            yield result

    def _read(self, file: Path) -> dict[str, Any]:
        found: dict[str, Any] = read_json(file, dict)
        return found

    def _of(self, job: Job, file: Path) -> dict[str, Any]:
        """What a job's file holds. Raises ValueError for another job's."""
        document = self._read(file)
        if document["job"] != asdict(job):
            raise ValueError
        return {**document, "job": job}

    @contextmanager
    def _as_written(self, file: Path) -> Iterator[None]:
        """What is not as this class wrote it is a file that somebody changed."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError):
            raise SettingsError(f"{file}: was changed; delete {self.folder}") from None

    def _write(self, file: Path, document: Any) -> None:
        write_whole(file, json.dumps(document).encode())


def horizon(
    stretches: Sequence[Sorted], ranges: Sequence[OffsetRange], outputs: Mapping[str, Output]
) -> Horizon:
    """What all stretches of the outputs' `ranges` together say. A partition that does not begin at
    offset 0 has lost what was before; `outputs` names the kind of each topic."""
    settled: dict[tuple[str, int], int] = {}
    lowest: dict[tuple[str, int], dict[tuple[str, int], int]] = {}
    for item in stretches:
        least = lowest.setdefault((item.job.topic, item.job.partition), {})
        for named, behind in item.settled.items():
            source = _place(named)
            settled[source] = max(settled.get(source, 0), behind)
        for named, offset in item.lowest.items():
            source = _place(named)
            least[source] = min(least.get(source, offset), offset)
    deleted = [
        (
            outputs[item.topic],
            f"{item.topic} {item.partition} offset {item.start}",
            lowest.get((item.topic, item.partition), {}),
        )
        for item in ranges
        if item.start > 0
    ]
    return Horizon(settled, deleted)


def _place(named: str) -> tuple[str, int]:
    topic, _, partition = named.rpartition(" ")
    return topic, int(partition)
