"""The program `ares`; `python -m ares_stream` is the same."""

from __future__ import annotations

import sys
from typing import Final

from ares_stream.cli.streams import guard_terminals, prepare_streams
from ares_stream.processes.signals import INTERRUPTED, end_at_once, end_in_order

SERVICES: Final = ("scorer", "repairer", "prober", "monitor", "notary", "console")
"""Commands that run until SIGTERM or SIGINT."""


def main() -> None:
    """Run the command that the arguments name."""
    prepare_streams()  # First: a file that is opened takes the place of a stream that is closed.
    # Before the commands are imported, which takes a good part of a second.
    if sys.argv[1:2] and sys.argv[1] in SERVICES:
        end_at_once()
    else:
        end_in_order()
    guard_terminals()
    try:
        from ares_stream.cli.main import app
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    app(prog_name="ares")


if __name__ == "__main__":
    main()
