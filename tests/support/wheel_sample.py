"""Writes bundles and conversations for a wheel to be tried on: `python -m ... FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ares_stream.lab.word_bundles import write_judge, write_reward

ANSWERS = ("nice poison", "rude poison", "nice bread", "rude bread")


def main(folder: Path) -> None:
    """judge, reward and answers.jsonl of one conversation in each class."""
    write_judge(folder / "judge")
    write_reward(folder / "reward")
    rows = [
        {
            "id": f"answer-{number}",
            "occurred_at": "2026-01-01T00:00:00Z",
            "messages": [{"role": "user", "content": "hello"}],
            "response": answer,
            "policy": {"name": "sample", "version": "1"},
        }
        for number, answer in enumerate(ANSWERS)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "answers.jsonl").write_text(lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
