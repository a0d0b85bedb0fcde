"""Why the system refused a file, in its own words."""

from __future__ import annotations


def said(error: OSError) -> str:
    """Such as "No such file or directory"; some file systems give a message alone."""
    return error.strerror or str(error) or type(error).__name__
