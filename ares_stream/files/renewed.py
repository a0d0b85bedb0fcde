"""What is made of files that somebody renews while a process works: certificates, passwords,
tokens. What cannot be used, such as the half of a pair, leaves in use what was made before."""

from __future__ import annotations

import hashlib
import logging
import stat
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from ares_stream.errors import SettingsError
from ares_stream.files.secret import read_api_key, read_secret

_T = TypeVar("_T")

MAX_RENEWED_BYTES: Final = 4 << 20
"""A bundle of every public authority takes a quarter of a mebibyte."""

_log = logging.getLogger(__name__)
_watching = threading.Lock()
_living: weakref.WeakSet[Renewed[Any]] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class Validity:
    """When a certificate may be used, in seconds since the epoch."""

    begins: float
    ends: float


class Renewed(Generic[_T]):
    """A value with the files that it is made of. Safe in several threads.

    `make` reads the files and raises SettingsError where they are of no use. They are compared by
    content: a link that is turned to other files (as Kubernetes does) and a file that is written
    over are the same to it. A file that can be read once alone, such as a pipe, is never read
    again. `setting` names it in logs and metrics.
    """

    def __init__(self, setting: str, files: Iterable[Path], make: Callable[[], _T]) -> None:
        self.setting = setting
        self._files = tuple(files)
        self._make = make
        self._lock = threading.Lock()
        self._made: list[_T] = []
        self._content: tuple[bytes, ...] = ()
        self._refused_content: tuple[bytes, ...] | None = None
        self.taken = 0
        """How often it was made anew; the first time is none."""
        self.refused = 0
        """How often the files changed to what is of no use."""
        self.refusal: str | None = None
        """Why the files as they are now are not in use; None while they are."""
        with _watching:
            _living.add(self)

    @property
    def validity(self) -> Validity | None:
        """Of what is in use; None for what does not expire."""
        return None

    @property
    def current(self) -> _T:
        """What is in use, without a look at the files where there is one already. Raises
        SettingsError where there is none."""
        return self._made[-1] if self._made else self.value()

    def value(self) -> _T:
        """What the files hold now, or what they held before where that cannot be used. Raises
        SettingsError where there was nothing before."""
        with self._lock:
            # Before it is made: what changes meanwhile is seen the next time.
            content = tuple(_content(file) for file in self._files)
            if not self._made or content != self._content:
                self._renew(content)
            elif self.refusal is not None:
                self.refusal = self._refused_content = None
            return self._made[-1]

    def _renew(self, content: tuple[bytes, ...]) -> None:
        try:
            made = self._make()
        except SettingsError as error:
            if not self._made:
                raise
            self.refusal = str(error)
            if content != self._refused_content:
                self._refused_content = content
                self.refused += 1
                _log.warning("%s; what was read before stays in use", error)
            return
        self.taken += bool(self._made)
        self._made[:] = [made]
        self._content = content
        self.refusal = self._refused_content = None


def renewed_values() -> Sequence[Renewed[Any]]:
    """All that are in use in this process, by setting."""
    with _watching:
        living = list(_living)
    return sorted(living, key=lambda item: item.setting)


def renewed_secret(field: str, file: Path) -> Renewed[str]:
    """See `read_secret`; read now. Raises SettingsError."""
    found = Renewed(field, [file], lambda: read_secret(field, file).get_secret_value())
    found.value()
    return found


def renewed_api_key(field: str, file: Path) -> Renewed[str]:
    """See `read_api_key`; read now. Raises SettingsError."""
    found = Renewed(field, [file], lambda: read_api_key(field, file))
    found.value()
    return found


def _content(file: Path) -> bytes:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return b"no file"
        with file.open("rb") as stream:
            return hashlib.sha256(stream.read(MAX_RENEWED_BYTES)).digest()
    except OSError:
        return b"unreadable"
