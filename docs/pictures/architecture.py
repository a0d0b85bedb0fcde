"""Draws architecture.svg: python docs/pictures/architecture.py. A test compares the two."""

from __future__ import annotations

from pathlib import Path

WIDTH, HEIGHT = 940, 470
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1c2430}.s{font-size:11px;fill:#51606f}"
    ".service{fill:#dbe9ff;stroke:#2f6fd0}.topic{fill:#fff3d6;stroke:#c08a1e}"
    ".outside{fill:#eef0f2;stroke:#8b96a3}.store{fill:#e2f3e4;stroke:#3b8f4a}"
    "path{fill:none;stroke:#51606f;stroke-width:1.4;marker-end:url(#a)}"
)
BOXES = {
    # name: (kind, x, y, width, title, line below)
    "producers": ("outside", 20, 60, 130, "your systems", "conversations"),
    "policy": ("outside", 20, 260, 130, "policy server", "vLLM, any endpoint"),
    "interactions": ("topic", 200, 60, 160, "interactions.*", "production, probe, anchor"),
    "scorer": ("service", 410, 60, 150, "scorer", "a Deployment per lane"),
    "verdicts": ("topic", 610, 20, 130, "verdicts", "no text"),
    "review": ("topic", 610, 90, 130, "review", "for people"),
    "repair": ("topic", 610, 160, 130, "repair", "coupled failures"),
    "monitor": ("service", 790, 20, 130, "monitor", "rates, alarms"),
    "people": ("outside", 790, 90, 130, "reviewers", "labels"),
    "prober": ("service", 200, 260, 160, "prober", "adaptive search"),
    "repairer": ("service", 610, 260, 130, "repairer", "plan, gate, release"),
    "jobs": ("service", 790, 260, 130, "Jobs", "LoRA on GPUs"),
    "registry": ("store", 610, 370, 130, "registry", "claim or bucket"),
    "releases": ("topic", 445, 260, 130, "releases", "what is active"),
    "models": ("store", 375, 160, 115, "models", "claim, image"),
    "prometheus": ("outside", 790, 370, 130, "Prometheus", "scrapes all of ours"),
}
ARROWS = [
    ("producers", "interactions"),
    ("interactions", "scorer"),
    ("scorer", "verdicts"),
    ("scorer", "review"),
    ("scorer", "repair"),
    ("verdicts", "monitor"),
    ("review", "people"),
    ("repair", "repairer"),
    ("repairer", "jobs"),
    ("repairer", "registry"),
    ("repairer", "releases"),
    ("releases", "scorer"),
    ("models", "scorer"),
    ("policy", "prober"),
    ("prober", "policy"),
    ("prober", "interactions"),
]
TALL = 46


def edge(name: str, other: str) -> tuple[float, float]:
    """Where the line from a box's middle towards another's leaves it."""
    _, x, y, wide, *_ = BOXES[name]
    _, other_x, other_y, other_wide, *_ = BOXES[other]
    middle_x, middle_y = x + wide / 2, y + TALL / 2
    away_x = other_x + other_wide / 2 - middle_x
    away_y = other_y + TALL / 2 - middle_y
    share = min(
        wide / 2 / abs(away_x) if away_x else 9.0, TALL / 2 / abs(away_y) if away_y else 9.0
    )
    return middle_x + away_x * share, middle_y + away_y * share


def arrow(name: str, other: str) -> str:
    """A line with a head."""
    (x, y), (to_x, to_y) = edge(name, other), edge(other, name)
    # A pair of arrows runs side by side.
    shift = 8 if (other, name) in ARROWS else 0
    shift = -shift if ARROWS.index((name, other)) % 2 else shift
    return f'<path d="M{x:.0f},{y + shift:.0f} L{to_x:.0f},{to_y + shift:.0f}"/>'


def box(name: str) -> str:
    """A rectangle with two lines of text."""
    kind, x, y, wide, title, line = BOXES[name]
    middle = x + wide / 2
    return (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{wide}" height="{TALL}" rx="6"/>'
        f'<text x="{middle:.0f}" y="{y + 20}" text-anchor="middle">{title}</text>'
        f'<text class="s" x="{middle:.0f}" y="{y + 36}" text-anchor="middle">{line}</text>'
    )


def legend() -> str:
    """What the colours mean."""
    kinds = [
        ("service", "ours"),
        ("topic", "Kafka topic"),
        ("store", "store"),
        ("outside", "yours"),
    ]
    return "".join(
        f'<rect class="{kind}" x="{20 + 95 * at}" y="440" width="14" height="14" rx="3"/>'
        f'<text class="s" x="{40 + 95 * at}" y="452">{text}</text>'
        for at, (kind, text) in enumerate(kinds)
    )


def drawn() -> str:
    """The whole picture."""
    parts = [arrow(*pair) for pair in ARROWS] + [box(name) for name in BOXES]
    body = "\n".join([*parts, legend()])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Services, topics and stores of ares-stream">\n'
        f"<style>{STYLE}</style>\n"
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path style="marker-end:none;fill:#51606f" '
        'd="M0,0 L8,4 L0,8 z"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(drawn())
