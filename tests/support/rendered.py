"""Every value set of tests/unit/test_chart.py rendered to a file, for checkers that read files:

python -m tests.support.rendered DIR
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.charts import NEEDED, merged, rendered
from tests.unit.test_chart import SETS

CHECKED: dict[str, dict[str, Any]] = {
    "as a platform's people write it": {
        "runAsUser": 10001,
        "scorer": {"defaults": {"resources": {"limits": {"memory": "2Gi"}}}},
    }
}
"""In the place of what a cluster assigns or an operator leaves out on purpose."""


def main(folder: Path) -> None:
    """See the module."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in SETS.items():
        file = folder / f"{name.replace(' ', '-').replace(',', '')}.yaml"
        whole = merged(NEEDED, values, CHECKED.get(name, {}))
        file.write_text(yaml.safe_dump_all(rendered(whole), sort_keys=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
