"""The program `ares`; `python -m ares_stream` is the same."""

from __future__ import annotations

import sys
from typing import Final

from ares_stream.cli.streams import guard_terminals
from ares_stream.processes.signals import end_at_once_on_sigterm

SERVICES: Final = ("scorer", "repairer", "prober", "monitor", "notary", "console")
"""Commands that run until SIGTERM."""


def main() -> None:
    """Run the command that the arguments name."""
    if sys.argv[1:2] and sys.argv[1] in SERVICES:
        # Before the commands are imported, which takes a good part of a second.
        end_at_once_on_sigterm()
    guard_terminals()
    from ares_stream.cli.main import app

    app(prog_name="ares")


if __name__ == "__main__":
    main()
