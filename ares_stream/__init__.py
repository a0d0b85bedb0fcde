"""Makes coupled failures of a policy and its reward model visible, and mends them."""

import os

__version__ = "0.2.0"

# Libraries below us that report their use to their makers unless a variable says no, and that
# read it once, while they are imported. CI=1 quiets some of them too, so tests run without it.
NO_TELEMETRY = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime >= 1.29 on Linux: device id, models, timings
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and trl and datasets through it
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # transformers asks the hub for a converted copy
    "DO_NOT_TRACK": "1",  # what else honours the convention
}
os.environ.update(NO_TELEMETRY)
