"""Every error that ares-stream raises on purpose.

AresError
├── InputError            what a person or a producer gave is wrong; a retry cannot help
│   ├── SettingsError     a setting, an option or the environment
│   ├── DecodeError       bytes that are not the record they should be
│   ├── MappingError      a JMESPath mapping that finds nothing, or something else
│   │   └── LeftOut        no error of a record: the mapping's `where` leaves it out
│   └── FileFormatError   a line of a file (names file and line)
├── BundleError           a model bundle cannot be used
│   └── IntegrityError    its bytes are not those of its manifest or signature
├── ScoringError          a model ran and gave nothing usable (NaN, wrong shape)
│   └── ProviderError     the execution provider asked for is not the one in use
├── StreamError           Kafka
│   ├── TopicError        a topic is missing or is not as its specification says
│   ├── AccessError       the broker forbids what this user does; names what must be allowed
│   ├── LoginError        the broker refuses the login or the certificate; names the setting
│   ├── LimitError        the broker's limits forbid a setting or what is fixed here; names both
│   ├── BrokerError       unreachable or failing; a retry can help
│   ├── ReadError         a range cannot be read whole: gap, open transaction, deadline
│   └── BreakerOpen       too many dead letters: a person must look
├── RegistryError         a release's state does not allow the step
├── RepairError           planning, training, gating or exporting a repair
├── StampError            an authority gave no time stamp; a retry can help
├── TargetError           the policy endpoint under test; a retry can help
├── ResourceError         the machine: a full disk, no memory; a retry can help
└── DefectError           what nobody foresaw; names the place in the code

Each class says by `retryable` whether the same call may succeed later, and by
`exit_code` what the command line returns for it.
"""

from __future__ import annotations

import json
import re
from typing import ClassVar, Final
from urllib.parse import unquote

_SECRETS: set[str] = set()
LEAST_MASKED: Final = 4
"""A shorter secret would take letters out of every message."""
_USER = re.compile(r"://([^/@\s]*)@")
_QUERY = re.compile(r"[?&][^=&\s'\"]+=([^&\s#'\"]+)")


def remember_secret(*secrets: str) -> None:
    """Have them masked from now on in whatever `masked` is asked about: logs, errors, readiness. A
    server may say in its answer what it was sent, and a library in its message."""
    for secret in secrets:
        for form in (secret, json.dumps(secret)[1:-1]):
            if len(form) >= LEAST_MASKED:
                _SECRETS.add(form)


def remember_secrets_of(url: str) -> None:
    """The same of what a URL may hold: its password and the values of its query."""
    for found in _USER.findall(url):
        for part in (found, *found.split(":", 1)[1:]):
            remember_secret(part, unquote(part))
    remember_secret(*_QUERY.findall(url))


def masked(text: str) -> str:
    """The text without any secret that this process knows of."""
    # The longest first: one may be part of another.
    for secret in sorted(_SECRETS, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, "***")
    return text


class AresError(Exception):
    """Base of all. `str(error)` is one sentence for people: what, where, what to do."""

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    @property
    def unmasked(self) -> str:
        """The same in every process, whatever secrets it knows: for comparisons and digests.
        Whoever says it anywhere masks it."""
        return super().__str__()

    def __str__(self) -> str:
        return masked(self.unmasked)


class InputError(AresError):
    """Something given from outside is wrong."""

    exit_code = 2


class SettingsError(InputError):
    """A setting, a command-line option or an environment variable; names the field."""


class DecodeError(InputError):
    """Bytes that are not the record they should be.

    `field` is a dotted path into the record, or "" when the bytes as a whole are wrong.
    The message never holds a value from the record: it may be text of a conversation.
    """

    def __init__(self, reason: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.reason = reason
        self.field = field


class MappingError(InputError):
    """A JMESPath mapping whose expression is wrong or whose result is not the field's type."""


class LeftOut(MappingError):
    """A record that a mapping's `where` leaves out: it is counted and becomes nothing."""


class FileFormatError(InputError):
    """A line of a file is not what the format says."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(f"{path}:{line}: {reason}")
        self.path = path
        self.line = line
        self.reason = reason


class BundleError(AresError):
    """A model bundle is missing, of the wrong kind, or cannot be loaded."""

    exit_code = 2


class IntegrityError(BundleError):
    """A file of a bundle differs from its manifest, or a signature does not verify."""


class ScoringError(AresError):
    """A model gave no usable number for a record."""


class ProviderError(ScoringError):
    """The ONNX Runtime execution provider in use is not the one the settings ask for."""

    exit_code = 2


class StreamError(AresError):
    """Kafka."""

    exit_code = 3


class TopicError(StreamError):
    """A topic is missing, or differs from its specification."""

    exit_code = 2


class AccessError(StreamError):
    """The broker's access control lists do not allow it; the message names what is missing."""

    exit_code = 2


class LoginError(StreamError):
    """The broker refuses the login, or one side the other's certificate; names the setting."""

    exit_code = 2


class LimitError(StreamError):
    """What this client asks for lies beyond a limit of the broker's; the message names both."""

    exit_code = 2


class BrokerError(StreamError):
    """The broker is unreachable or failing."""

    retryable = True


class ReadError(StreamError):
    """A range of a topic cannot be read whole."""


class BreakerOpen(StreamError):
    """The share or run of dead letters passed its limit; processing stopped before more."""


class RegistryError(AresError):
    """A release cannot take this step from the state it is in."""


class RepairError(AresError):
    """A repair cannot be planned, trained, gated or exported."""


class StampError(AresError):
    """An authority of time stamps does not answer, or not with a stamp."""

    retryable = True
    exit_code = 3


class TargetError(AresError):
    """The policy endpoint under test failed, is too slow, or answers with rubbish."""

    retryable = True
    exit_code = 3


class ResourceError(AresError):
    """The machine has no disk space, memory or the like left."""

    retryable = True
    exit_code = 3


class DefectError(AresError):
    """An error that nobody foresaw: one line with its kind and place, without what it quotes."""


def root_cause(
    group: BaseExceptionGroup[BaseException], passing: tuple[type[BaseException], ...] = ()
) -> BaseException:
    """The one error behind a group of failed tasks: what a person must mend before what a
    restart mends (a retryable AresError, or one of the types in `passing`)."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(reversed(error.exceptions))
        else:
            leaves.append(error)
    lasting = [
        item
        for item in leaves
        if not isinstance(item, passing)
        and not (isinstance(item, AresError) and item.retryable)
        and isinstance(item, Exception)
    ]
    return (lasting or leaves)[0]
