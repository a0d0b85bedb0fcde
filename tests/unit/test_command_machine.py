"""How a command ends whose machine has no room for it: one line, the code of docs/commands.md."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner

from ares_stream.cli.main import app
from ares_stream.errors import RegistryError, ResourceError
from ares_stream.models.releases import Author
from ares_stream.models.store import Artefact, ReleaseStore
from ares_stream.records import schemas
from tests.support.adapters import write_adapter
from tests.support.failures import DAY


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 3, "the machine refused: No space"),
        (OSError(errno.EMFILE, "Too many open files", "a"), 3, "a: Too many open files"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), 3, "a: Disk quota exceeded"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), 3, "the machine"),
        (MemoryError(), 3, "the machine refused: no memory left"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), 2, "a: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), 2, "a: Is a directory"),
    ],
)
def test_what_the_machine_refuses_is_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, line: str
) -> None:
    def refuse(directory: Path) -> NoReturn:
        raise error

    monkeypatch.setattr(schemas, "write_directory", refuse)
    ended = CliRunner().invoke(app, ["schemas", "write", "x"])
    assert ended.exit_code == code
    [said] = ended.stderr.splitlines()
    assert said.startswith(f"ares: {line}")


def test_a_folder_that_is_gone_is_named_before_anything_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (["release", "list"], ["doctor"], ["scan", "a", "--verdicts", "b"], ["broker"]):
        ended = CliRunner().invoke(app, words)
        assert ended.exit_code == 2
        assert ended.stderr.startswith("ares: the folder that this was started in is gone")
    for words in (["--version"], ["--help"]):
        assert CliRunner().invoke(app, words).exit_code == 0


def test_a_schema_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    ended = CliRunner().invoke(app, ["schemas", "write", str(tmp_path / "s")])
    assert ended.exit_code == 3
    assert "No space left on device" in ended.stderr
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(errno.ENOSPC, ResourceError, 3), (errno.EDQUOT, ResourceError, 3),
     (errno.EACCES, RegistryError, 1)],
)  # fmt: skip
def test_a_registry_on_a_full_disk_is_the_machines_fault_and_holds_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], code: int
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    store = ReleaseStore(str(tmp_path / "registry"))
    adapter = Artefact("chat", "policy", write_adapter(tmp_path / "adapter"))
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", full)
        with pytest.raises(kind, match=os.strerror(number)) as ended:
            store.propose([adapter], Author("ada", DAY))
    assert getattr(ended.value, "exit_code", None) == code
    assert store.log().releases == ()
    assert not list((tmp_path / "registry").rglob("*.part"))
    assert len(store.propose([adapter], Author("ada", DAY))) == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ELOOP])
def test_a_registry_that_cannot_be_read_is_not_one_without_releases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A share that was away for a moment was one: the next repair was planned, and its incumbent
    adopted, as if nothing had ever been released."""
    root = tmp_path / "registry"
    store = ReleaseStore(str(root))
    assert store.log().releases == ()
    assert store.gate_report("0" * 64) is None
    store.propose(
        [Artefact("chat", "policy", write_adapter(tmp_path / "adapter"))], Author("ada", DAY)
    )
    asked = os.stat

    def away(path: Any, *words: Any, **more: Any) -> os.stat_result:
        if str(path).startswith(str(root)):
            raise OSError(number, os.strerror(number), str(path))
        return asked(path, *words, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", away)
        with pytest.raises(RegistryError, match=os.strerror(number)):
            store.log()
        ended = CliRunner().invoke(app, ["release", "list"], env={"ARES_REGISTRY__ROOT": str(root)})
    assert ended.exit_code == 1
    assert os.strerror(number) in ended.stderr
    assert len(store.log().releases) == 1


def test_a_registry_in_a_loop_of_links_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    store = ReleaseStore(str(tmp_path / "a" / "registry"))
    for ask in (store.log, lambda: store.gate_report("0" * 64)):
        with pytest.raises(RegistryError, match="Too many levels of symbolic links"):
            ask()
