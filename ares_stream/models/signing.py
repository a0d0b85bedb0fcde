"""Signatures of bundles, with a person's own elliptic-curve key, as OpenSSF model-signing writes
them: over every file of the directory, in `bundle.sig` beside them. `model_signing verify key`
checks the same file. Keys are PEM: P-256, P-384 or P-521; `openssl` makes them.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from ares_stream.errors import BundleError, IntegrityError, SettingsError
from ares_stream.files import unwritable
from ares_stream.models.bundles import MANIFEST, SIGNATURE, Check, load_bundle

CURVES = "an EC key in PEM, without password, on P-256, P-384 or P-521"


def sign_bundle(path: Path, private_key: Path) -> Path:
    """Sign a bundle; the signature replaces an older one, whole. Returns the signature's file.

    Raises BundleError when the directory is not a whole bundle or cannot be written,
    SettingsError when the key cannot be used.
    """
    load_bundle(path)
    _readable(private_key)
    from model_signing import hashing, signing

    # The defaults leave out git's files; every file of a bundle counts.
    files = hashing.Config()  # type: ignore[no-untyped-call]
    files.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    config = signing.Config()  # type: ignore[no-untyped-call]
    config.set_hashing_config(files)
    try:
        config.use_elliptic_key_signer(private_key=private_key)
    except (ValueError, TypeError, AttributeError):
        # The library's message may quote the file.
        raise SettingsError(f"{private_key}: not {CURVES}") from None
    signature = path / SIGNATURE
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            fresh = Path(folder) / SIGNATURE
            config.sign(path, fresh)
            fresh.replace(signature)
    except OSError as error:
        raise unwritable(signature, error, BundleError) from None
    return signature


def signed_by(public_key: Path | None) -> Check | None:
    """What `load_bundle` is to check of a signature: that it is of this key; nothing without."""
    return None if public_key is None else partial(verify_signature, public_key=public_key)


def verify_signature(path: Path, public_key: Path) -> None:
    """Check that a directory holds exactly the files that the owner of this key signed.

    Raises IntegrityError when there is no signature or it is not of this key and these files,
    SettingsError when the key cannot be used.
    """
    signature = path / SIGNATURE
    if not signature.is_file():
        raise IntegrityError(f"{path}: not signed; sign it with `ares bundle sign`")
    _readable(public_key)
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    config = verifying.Config()  # type: ignore[no-untyped-call]
    try:
        config.use_elliptic_key_verifier(public_key=public_key)
    except (ValueError, TypeError, AttributeError):
        raise SettingsError(f"{public_key}: not the public part of {CURVES}") from None
    try:
        config.verify(path, signature)
    except InvalidSignature:
        raise IntegrityError(
            f"{signature}: forged: not made with the key of {public_key}"
        ) from None
    except Exception as error:  # whatever a file that is no signature makes the parser raise
        raise IntegrityError(
            f"{signature}: not a signature of {MANIFEST} and its files by the key of "
            f"{public_key}: {error}"
        ) from None


def _readable(key: Path) -> None:
    try:
        with key.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        raise SettingsError(f"{key}: cannot be read: {error.strerror}") from None
