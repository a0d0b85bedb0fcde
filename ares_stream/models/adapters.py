"""What a policy server can load: a LoRA adapter in PEFT's format, checked before it is released.

The limits are those that vLLM documents and enforces when it loads an adapter (features/lora):
plain LoRA of a causal language model, no DoRA, nothing trained in full beside it, a rank of at
most its --max-lora-rank (16 unless it is told otherwise). What the adapter is stands in
adapter_config.json and in the header of adapter_model.safetensors
(https://huggingface.co/docs/safetensors: 8 bytes with the header's length, the header in JSON,
the tensors); of the tensors only this is asked, that every number is finite. Neither torch nor
peft is needed.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ares_stream.errors import BundleError, IntegrityError
from ares_stream.models.bundles import file_digest
from ares_stream.records.base import digest

ADAPTER: Final = ("adapter_config.json", "adapter_model.safetensors")
"""What a PEFT adapter consists of at least; vLLM and transformers load such a directory."""
MAX_RANK: Final = 16
"""vLLM's --max-lora-rank unless it is told otherwise."""
UNPICKLED: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
CONFIG_BYTES: Final = 1 << 20
HEADER_BYTES: Final = 64 << 20
"""A header names each tensor in some 150 bytes; the format's own limit is 100 MB."""
_LFS: Final = b"version https://git-lfs.github.com/spec/"
_BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_EXPONENTS: Final[dict[str, tuple[str, Any]]] = {
    "F64": ("<u8", np.uint64(0x7FF0_0000_0000_0000)),
    "F32": ("<u4", np.uint32(0x7F80_0000)),
    "F16": ("<u2", np.uint16(0x7C00)),
    "BF16": ("<u2", np.uint16(0x7F80)),
}
"""A number whose bits of the exponent are all set is infinite or none."""
_CHUNK: Final = 1 << 20
_FACTOR: Final = re.compile(
    r"base_model\.model\.(?P<module>[^ ]+)\.lora_(?P<factor>[AB])(\.default)?\.weight"
)
_HEADS: Final = ("lm_head", "embed_out", "embed_tokens", "wte", "score", "classifier")
"""Output layers and embeddings: servers keep them as the base model has them."""


class _Config(BaseModel):
    """The fields of adapter_config.json that decide whether it can be served."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    peft_type: str
    task_type: str | None = None
    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0, allow_inf_nan=False)
    target_modules: list[str] | str = Field(min_length=1)
    bias: str = "none"
    modules_to_save: list[str] | None = None
    use_dora: bool = False
    lora_bias: bool = False
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    trainable_token_indices: Any = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """What was found in an adapter's files."""

    rank: int
    modules: tuple[str, ...]
    """Names of the modules that it changes, as in the base model."""


def check_adapter(path: Path, *, max_rank: int = MAX_RANK) -> Adapter:
    """Read what an adapter says it is, and refuse what a policy server cannot load.

    Raises BundleError that names the file, what is wrong in it and what to do.
    """
    for name in ADAPTER:
        if not (path / name).is_file():
            raise BundleError(f"{path}: not a PEFT adapter with safetensors: no {name}")
    file = path / ADAPTER[0]
    config = _config(file)
    _refuse_unserved(file, config, max_rank)
    ranks = _ranks(path / ADAPTER[1])
    for module, rank in sorted(ranks.items()):
        if rank != config.r:
            raise BundleError(
                f"{path / ADAPTER[1]}: {module} has rank {rank}, {ADAPTER[0]} says {config.r}"
            )
    _refuse_infinite(path / ADAPTER[1])
    return Adapter(config.r, tuple(sorted(ranks)))


def adapter_digest(path: Path) -> str:
    """The digest that names an adapter: that of its files' digests.

    Raises BundleError for what is no adapter, IntegrityError for what could be unpickled.
    """
    missing = [name for name in ADAPTER if not (path / name).is_file()]
    if missing:
        raise BundleError(f"{path}: not a PEFT adapter with safetensors: no {missing[0]}")
    files: dict[str, str] = {}
    for file in sorted(path.iterdir()):
        if file.is_symlink() or not file.is_file():
            raise IntegrityError(f"{file}: not a plain file; an adapter is a flat directory")
        if file.suffix in UNPICKLED:
            raise IntegrityError(f"{file}: would have to be unpickled; keep safetensors only")
        files[file.name] = file_digest(file)
    return digest(files)


def _config(file: Path) -> _Config:
    try:
        if file.stat().st_size > CONFIG_BYTES:
            raise BundleError(f"{file}: larger than {CONFIG_BYTES} bytes")
        raw = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror}") from None
    if raw.startswith(_LFS):
        raise BundleError(f"{file}: a Git LFS pointer, not the file; fetch it with `git lfs pull`")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        raise BundleError(f"{file}: not JSON") from None
    if not isinstance(content, dict):
        raise BundleError(f"{file}: expected an object with the adapter's settings")
    kind = content.get("peft_type")
    if kind != "LORA":
        raise BundleError(
            f"{file}: peft_type: {json.dumps(kind)[:40]}; a policy server loads LORA only"
        )
    try:
        return _Config.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{file}: {field}: {first['msg']}") from None


def _refuse_unserved(file: Path, config: _Config, max_rank: int) -> None:
    """What vLLM's loading of an adapter refuses."""
    if config.task_type not in (None, "CAUSAL_LM"):
        raise BundleError(
            f"{file}: task_type: {config.task_type}; a policy's adapter is for CAUSAL_LM"
        )
    if config.use_dora:
        raise BundleError(f"{file}: use_dora: policy servers load plain LoRA, no DoRA")
    if config.modules_to_save:
        raise BundleError(
            f"{file}: modules_to_save: {', '.join(config.modules_to_save)[:80]}; policy servers "
            "load no module that was trained in full"
        )
    if config.bias != "none" or config.lora_bias:
        raise BundleError(f"{file}: bias: policy servers load adapters without biases only")
    if config.trainable_token_indices is not None:
        raise BundleError(
            f"{file}: trainable_token_indices: policy servers load no trained embeddings"
        )
    if config.rank_pattern or config.alpha_pattern:
        raise BundleError(
            f"{file}: rank_pattern, alpha_pattern: policy servers apply one rank and one alpha"
        )
    targets = (
        [config.target_modules]
        if isinstance(config.target_modules, str)
        else (config.target_modules)
    )
    if heads := [name for name in targets if name.rsplit(".", 1)[-1] in _HEADS]:
        raise BundleError(
            f"{file}: target_modules: {heads[0]} is a head or an embedding, which policy servers "
            "keep as the base model has it"
        )
    if config.r > max_rank:
        raise BundleError(
            f"{file}: r: rank {config.r} is over the policy server's limit of {max_rank}; start "
            f"it with a larger --max-lora-rank and set registry.max_lora_rank to it"
        )


def _ranks(file: Path) -> dict[str, int]:
    """The rank of each changed module, from the header alone; every tensor lies in the file."""
    header, size = _header(file)
    shapes: dict[str, dict[str, list[int]]] = {}
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, stop = _extent(file, name, entry)
        if begin != end:
            raise BundleError(f"{file}: {_short(name)}: does not follow the tensor before it")
        end = stop
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise BundleError(
                f"{file}: {_short(name)}: not a factor of plain LoRA; a head or a module trained "
                "in full cannot be served"
            )
        if match["module"].rsplit(".", 1)[-1] in _HEADS:
            raise BundleError(
                f"{file}: {_short(name)}: changes a head or an embedding, which policy servers keep"
            )
        shapes.setdefault(match["module"], {})[match["factor"]] = entry["shape"]
    if not shapes:
        raise BundleError(f"{file}: holds no tensor")
    if end != size:
        raise BundleError(
            f"{file}: cut short or too long: {size} bytes of tensors, {end} are named"
        )
    ranks: dict[str, int] = {}
    for module, factors in shapes.items():
        first, second = factors.get("A"), factors.get("B")
        if first is None or second is None:
            raise BundleError(f"{file}: {_short(module)}: lacks lora_{'A' if not first else 'B'}")
        if len(first) != 2 or len(second) != 2 or first[0] != second[1]:
            raise BundleError(f"{file}: {_short(module)}: shapes {first} and {second} do not fit")
        ranks[module] = first[0]
    return ranks


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header, ordered by where its tensors lie, and how many bytes of tensors follow it."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(64)
            if start.startswith(_LFS):
                raise BundleError(
                    f"{file}: a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
                )
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8 or length > min(size - 8, HEADER_BYTES) or start[8:9] != b"{":
                raise BundleError(f"{file}: not a safetensors file, or cut short")
            stream.seek(8)
            raw = stream.read(length)
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise BundleError(f"{file}: not a safetensors file: its header is not JSON") from None
    if not isinstance(header, dict):
        raise BundleError(f"{file}: not a safetensors file: its header is no object")
    order = sorted(header.items(), key=lambda item: _begin(item[1]))
    return dict(order), size - 8 - length


def _refuse_infinite(file: Path) -> None:
    """A number that is none would make every answer of the server rubbish."""
    header, size = _header(file)
    start = file.stat().st_size - size
    try:
        with file.open("rb") as stream:
            for name, entry in header.items():
                exponent = None if name == "__metadata__" else _EXPONENTS.get(entry["dtype"])
                if exponent is None:
                    continue
                form, mask = exponent
                begin, stop = entry["data_offsets"]
                stream.seek(start + begin)
                left = stop - begin
                while left > 0:
                    part = np.frombuffer(stream.read(min(left, _CHUNK)), dtype=form)
                    if not part.size:
                        break
                    if bool(((part & mask) == mask).any()):
                        raise BundleError(f"{file}: {_short(name)}: holds a number that is none")
                    left -= part.nbytes
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror}") from None


def _begin(entry: Any) -> int:
    try:
        return int(entry["data_offsets"][0])
    except (TypeError, KeyError, IndexError, ValueError, OverflowError):
        return -1


def _extent(file: Path, name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor lies. Raises BundleError unless its bytes are those of its type and shape."""
    try:
        begin, stop = entry["data_offsets"]
        shape, width = entry["shape"], _BYTES[entry["dtype"]]
        fits = all(type(part) is int and part > 0 for part in shape)
        # JSON has 16.0, too, which no file can be read from.
        fits = fits and type(begin) is type(stop) is int
        whole = fits and 0 <= begin <= stop and stop - begin == width * math.prod(shape)
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise BundleError(
            f"{file}: {_short(name)}: type, shape and bytes do not fit together, or its type is "
            "not one of floating point"
        )
    return begin, stop


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:77]}..."
