"""Secrets, each from a file of its own; what is wrong is told without showing one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import SecretStr

from ares_stream.errors import SettingsError, remember_secret
from ares_stream.files.documents import read_text

MAX_SECRET_BYTES: Final = 64 << 10


def read_secret(field: str, file: Path) -> SecretStr:
    """A secret from a file of its own, without the line end; from now on it is masked. Raises
    SettingsError naming the field and the file, never the secret."""
    name = f"{field}: {file}"
    try:
        text = read_text(file, limit=MAX_SECRET_BYTES)
    except SettingsError as error:
        reason = str(error)
    else:
        secret = text.rstrip("\r\n")
        if not secret.strip():
            raise SettingsError(f"{name}: is empty")
        if "\n" in secret or "\r" in secret:
            raise SettingsError(f"{name}: holds several lines, expected one")
        remember_secret(secret, secret.strip())
        return SecretStr(secret)
    raise SettingsError(f"{field}: {reason}")


def read_api_key(field: str, file: Path) -> str:
    """A secret for an HTTP header. Raises SettingsError also for what no header can carry."""
    return checked_api_key(f"{field}: {file}", read_secret(field, file).get_secret_value().strip())


def checked_api_key(name: str, key: str) -> str:
    """The key. Raises SettingsError for characters that an HTTP header cannot carry, such as
    the long dash that a text processor makes of two short ones."""
    for place, letter in enumerate(key, 1):
        if not "!" <= letter <= "~":
            raise SettingsError(
                f"{name}: character {place} is U+{ord(letter):04X}, which a key cannot hold; "
                "copy the key again"
            )
    remember_secret(key)
    return key
