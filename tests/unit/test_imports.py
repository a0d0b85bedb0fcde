"""Nobody pays at start for what they do not use."""

import pytest

from tests.support.fresh import imported

TRAINING = {"torch", "transformers", "peft", "datasets", "accelerate"}
UNUSED = {
    "services.settings": {
        "numpy",
        "scipy",
        "httpx",
        "fsspec",
        "aiokafka",
        "onnxruntime",
        "tokenizers",
    },
    "services.metrics": {"scipy", "httpx", "onnxruntime", "numpy", "aiokafka"},
    "services.scorer": {"scipy", "jinja2"},
    "services.repairer": {"scipy", "onnxruntime", "tokenizers", "jinja2"},
    "services.prober": {"scipy.stats", "onnxruntime", "tokenizers", "fsspec"},
}


@pytest.mark.parametrize("module", UNUSED)
def test_a_service_imports_only_what_it_uses(module: str) -> None:
    assert imported(f"import ares_stream.{module}", UNUSED[module] | TRAINING) == set()
