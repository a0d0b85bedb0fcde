"""LoRA adapters in PEFT's format, written with the standard library alone."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
    "bias": "none",
    "modules_to_save": None,
    "use_dora": False,
}


def write_adapter(folder: Path, content: bytes = b"a", *, rank: int = 4, **config: Any) -> Path:
    """An adapter of one module; `content` makes its numbers, `config` changes its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = CONFIG | {"r": rank} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    write_tensors(
        folder / "adapter_model.safetensors",
        {f"{MODULE}.lora_A.weight": [rank, 8], f"{MODULE}.lora_B.weight": [8, rank]},
        content,
    )
    return folder


def write_tensors(file: Path, shapes: dict[str, list[int]], content: bytes = b"a") -> None:
    """A safetensors file of small F32 numbers that depend on `content`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    tensors = b""
    for name, (rows, columns) in shapes.items():
        count = rows * columns
        seed = hashlib.sha256(content + name.encode()).digest()
        numbers = [(seed[place % 32] - 128) / 1000 for place in range(count)]
        raw = struct.pack(f"<{count}f", *numbers)
        place = [len(tensors), len(tensors) + len(raw)]
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": place}
        tensors += raw
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    file.write_bytes(len(head).to_bytes(8, "little") + head + tensors)
