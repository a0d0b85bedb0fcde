"""Writes helm/ares-stream/dashboards (`make dashboards`); with --check compares (`make check`)."""

from __future__ import annotations

import sys
from pathlib import Path

from services.dashboards.pages import PAGES
from services.dashboards.panels import encoded

OUT = Path(__file__).resolve().parents[2] / "helm" / "ares-stream" / "dashboards"


def made() -> dict[Path, str]:
    """File to content."""
    return {OUT / f"{page.name}.json": encoded(page, PAGES) for page in PAGES}


def main() -> int:
    """Write; with --check compare only, and exit with 1 at a difference."""
    files = made()
    if "--check" in sys.argv:
        stale = [path for path, text in files.items()
                 if not path.exists() or path.read_text(encoding="utf-8") != text]  # fmt: skip
        stale += sorted(set(OUT.glob("*.json")) - files.keys())
        for path in stale:
            print(f"{path}: not what `make dashboards` makes")
        return 1 if stale else 0
    OUT.mkdir(exist_ok=True)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
