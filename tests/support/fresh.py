"""What a fresh interpreter does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable


def imported(code: str, names: Iterable[str]) -> set[str]:
    """Those of the modules that are imported once the code has run."""
    script = f"{code}\nimport sys\nprint(*[name for name in {list(names)} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=150
    )
    return set(done.stdout.splitlines()[-1].split())
