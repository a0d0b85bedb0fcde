"""One process of a training of several, which also keeps the adapters that it ended with:

torchrun --nproc_per_node 2 -m tests.support.repair_rank RUN_DIR
"""

import os
import sys
from pathlib import Path

from safetensors.torch import save_file

from ares_stream.repair.run import main
from ares_stream.repair.training import Trainer

FOLDER = Path(sys.argv[1])
trained = Trainer.train


def train_and_keep(self: Trainer) -> None:
    trained(self)
    for name, side in (("policy", self.policy), ("reward", self.reward)):
        kept = {key: value.detach().contiguous() for key, value in side.trainable().items()}
        save_file(kept, FOLDER / f"{name}-of-{os.environ['RANK']}.safetensors")


if __name__ == "__main__":
    Trainer.train = train_and_keep  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
