"""The certificates of Kafka's clients, made anew when their files change."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from ares_stream.errors import SettingsError
from ares_stream.files import Renewed, Validity, read_secret, read_text, said

MAX_CERTIFICATE_BYTES: Final = 4 << 20


class Certificates(Renewed[ssl.SSLContext]):
    """What a connection trusts (the system's authorities without `ca_file`) and what it shows. An
    SSLContext that has loaded one authority trusts it for ever, so each renewal is a new one."""

    def __init__(
        self,
        ca_file: Path | None = None,
        certificate_file: Path | None = None,
        key_file: Path | None = None,
        key_password_file: Path | None = None,
    ) -> None:
        self._authorities = ca_file
        self._certificate = certificate_file
        self._key = key_file
        self._key_password = key_password_file
        self._validity: Validity | None = None
        system = ssl.get_default_verify_paths().cafile
        files = (
            ca_file or (system and Path(system)),
            certificate_file,
            key_file,
            key_password_file,
        )
        super().__init__(
            "kafka.certificate_file" if certificate_file else "kafka.ca_file",
            [file for file in files if file],
            self._load,
        )

    @property
    def validity(self) -> Validity | None:
        """Of the client's own certificate."""
        return self._validity

    def _load(self) -> ssl.SSLContext:
        password = None
        if self._key_password is not None:
            password = read_secret("kafka.key_password_file", self._key_password)
        context = trusting(self._authorities)
        if self._certificate is None or self._key is None:
            return context
        _check("kafka.certificate_file", self._certificate)
        _check("kafka.key_file", self._key)
        # Without a password OpenSSL would ask for one at the terminal.
        secret = "" if password is None else password.get_secret_value()
        try:
            context.load_cert_chain(self._certificate, self._key, lambda: secret)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"kafka.certificate_file, kafka.key_file: certificates cannot be loaded: "
                f"{self._certificate}, {self._key}: {_reason(error)}"
            ) from None
        self._validity = _validity(self._certificate)
        return context


def trusting(ca_file: Path | None, *, and_system: bool = False) -> ssl.SSLContext:
    """A context for the authorities of a file, or the system's, or both. Raises SettingsError."""
    if ca_file is None:
        return ssl.create_default_context()
    _check("kafka.ca_file", ca_file)
    try:
        context = ssl.create_default_context(cafile=None if and_system else ca_file)
        if and_system:
            context.load_verify_locations(ca_file)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"kafka.ca_file: certificates cannot be loaded: {ca_file}: {_reason(error)}"
        ) from None
    return context


def _check(field: str, file: Path) -> None:
    """OpenSSL says of no file which it is that it cannot read."""
    try:
        file.open("rb").close()
    except OSError as error:
        raise SettingsError(
            f"{field}: certificates cannot be loaded: {file}: {said(error)}"
        ) from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return said(error) if isinstance(error, OSError) else str(error)


def _validity(file: Path) -> Validity:
    """Of the first certificate of a file, which is the client's own."""
    # Of what most services have no need: they log in with a password.
    from cryptography import x509

    text = read_text(file, limit=MAX_CERTIFICATE_BYTES)
    try:
        found = x509.load_pem_x509_certificates(text.encode())[0]
    except ValueError:
        raise SettingsError(f"kafka.certificate_file: {file}: not a certificate") from None
    return Validity(found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp())
