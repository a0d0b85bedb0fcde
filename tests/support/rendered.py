"""Every value set of tests/unit/test_chart.py rendered to a file, for checkers that read files:

python -m tests.support.rendered DIR
"""

import sys
from pathlib import Path

import yaml

from tests.support.charts import NEEDED, merged, rendered
from tests.unit.test_chart import SETS


def main(folder: Path) -> None:
    """See the module."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in SETS.items():
        file = folder / f"{name.replace(' ', '-').replace(',', '')}.yaml"
        file.write_text(yaml.safe_dump_all(rendered(merged(NEEDED, values)), sort_keys=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
