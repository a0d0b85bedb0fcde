"""ONNX Runtime: sessions, providers, one run. The only module that imports onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import build_and_package_info

from ares_stream.errors import BundleError, ProviderError, ResourceError, ScoringError
from ares_stream.models.bundles import Bundle
from ares_stream.scoring.batching import CPU, GPU, BatchPolicy
from ares_stream.scoring.cuda import missing
from ares_stream.scoring.tokenising import Tokens

Provider = Literal["cpu", "cuda"]
PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
QUIET: Final = 4
"""ONNX Runtime's severity `fatal`: what fails is raised, and the record is named where it is told;
warnings are about graph details nobody can change."""
_NO_MEMORY: Final = ("failed to allocate", "bad allocation", "bad_alloc", "out of memory")
"""How ONNX Runtime and CUDA say it; there is no class of its own."""

INPUTS: Final = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
_NUMBERS: Final = {"tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"}
POOLED: Final = "pooled"
"""The output that a domain is about: the mean of the tokens' last hidden states, [n, hidden]."""

Array = npt.NDArray[np.float32]
_LONGEST_REASON: Final = 300
_DTYPES: Final = {"float": "float32", "double": "float64"}
"""Names of ONNX Runtime that numpy has others for."""


def available_providers() -> list[str]:
    """Names of the execution providers that this onnxruntime was built with."""
    return list(ort.get_available_providers())


def version() -> str:
    """Of ONNX Runtime."""
    return str(ort.__version__)


def _cuda_version() -> str:
    """That this onnxruntime was built for, as its GPU packages say it; empty where it says none."""
    return str(getattr(build_and_package_info, "cuda_version", ""))


class OnnxModel:
    """A session over one bundle's model. `run` may be called from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        provider: Provider,
        *,
        states: bool | None = None,
        tf32: bool = False,
    ) -> None:
        """`states`: whether to give the model's states too; None where the bundle has a domain.
        `tf32`: whether a GPU may multiply with 10 bits of mantissa, which ONNX Runtime does
        unless it is told otherwise: what a record scores would depend on its company."""
        wanted = PROVIDERS[provider]
        if provider == "cuda" and hasattr(ort, "preload_dlls"):
            # Without it the CUDA libraries of pip are not found, and ORT falls back in silence.
            ort.preload_dlls()
        if wanted not in ort.get_available_providers():
            raise ProviderError(
                f"this onnxruntime has no {wanted}; install the extra `gpu` instead of `cpu`, "
                "or set scorer.provider: cpu"
            )
        if provider == "cuda" and (lacking := missing(_cuda_version())):
            raise ProviderError(f"scorer.provider is cuda, but {lacking}; or set it to cpu")
        options = ort.SessionOptions()
        options.log_severity_level = QUIET
        # Callers are the parallelism; spinning threads would take their cores from them.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(
                str(bundle.model),
                sess_options=options,
                providers=[wanted],
                provider_options=[{"use_tf32": str(int(tf32))} if provider == "cuda" else {}],
            )
        except Exception as error:  # ORT raises classes of a private module
            raise BundleError(f"{bundle.model}: cannot be loaded: {_reason(error)}") from error
        active = self._session.get_providers()[0]
        if active != wanted:
            raise ProviderError(f"asked for {wanted}, {active} is in use; check the CUDA libraries")
        self.provider: str = active
        self._inputs = {
            item.name: np.dtype(np.int32 if item.type == "tensor(int32)" else np.int64)
            for item in self._session.get_inputs()
        }
        unknown = self._inputs.keys() - INPUTS
        if unknown or "input_ids" not in self._inputs:
            raise BundleError(
                f"{bundle.model}: takes {', '.join(sorted(self._inputs))}; a classifier takes "
                "input_ids, attention_mask and perhaps token_type_ids and position_ids"
            )
        types = {item.name: item.type for item in self._session.get_outputs()}
        # Beside them some give the label's number, or a map of all.
        outputs = [name for name, kind in types.items() if kind in _NUMBERS]
        given = [name for name in outputs if name != POOLED]
        if not given:
            raise BundleError(f"{bundle.model}: gives no tensor of real numbers")
        self._outputs = ["logits" if "logits" in given else given[0]]
        kind = types[self._outputs[0]].removeprefix("tensor(").removesuffix(")")
        self.dtype: str = _DTYPES.get(kind, kind)
        """Number type of the logits, such as float32."""
        if states or (states is None and bundle.manifest.domain is not None):
            if POOLED not in outputs:
                raise BundleError(f"{bundle.model}: a domain needs an output {POOLED}, it has none")
            self._outputs.append(POOLED)
        self._device = "cuda" if provider == "cuda" else None

    @property
    def batching(self) -> BatchPolicy:
        """The batch policy that suits the provider."""
        return CPU if self._device is None else GPU

    def run(self, batch: Sequence[Tokens]) -> Array:
        """Logits of a batch, shape [len(batch), labels]; inputs are padded on the right.

        Raises ScoringError when the runtime fails or the shape is not that, ResourceError when
        there is no memory for the batch.
        """
        logits, _ = self.run_with_states(batch)
        return logits

    def run_with_states(self, batch: Sequence[Tokens]) -> tuple[Array, Array | None]:
        """The same, and the states [len(batch), hidden] where they are asked for."""
        feed = self._feed(batch)
        try:
            found = (
                self._run_bound(feed) if self._device else self._session.run(self._outputs, feed)
            )
        except Exception as error:  # ORT raises classes of a private module
            if isinstance(error, MemoryError) or _is_short_of_memory(str(error)):
                size = len(batch) * max(map(len, batch))
                where = "the machine" if self._device is None else "the GPU"
                raise ResourceError(
                    f"{where} has no memory left for {size:,} tokens; another process may hold it"
                ) from error
            raise ScoringError(f"ONNX Runtime failed: {type(error).__name__}") from error
        states = np.asarray(found[1], dtype=np.float32) if len(found) > 1 else None
        if states is not None and (states.ndim != 2 or states.shape[0] != len(batch)):
            raise ScoringError(f"{POOLED} has shape {states.shape} for {len(batch)} inputs")
        array = np.asarray(found[0], dtype=np.float32)
        if array.ndim == 1:
            array = array[:, None]
        if array.ndim != 2 or array.shape[0] != len(batch):
            raise ScoringError(f"the model gave shape {array.shape} for {len(batch)} inputs")
        return array, states

    def _feed(self, batch: Sequence[Tokens]) -> dict[str, npt.NDArray[np.integer]]:
        shape = (len(batch), max(len(item) for item in batch))
        feed: dict[str, npt.NDArray[np.integer]] = {}
        for name, kind in self._inputs.items():
            value = feed[name] = np.zeros(shape, dtype=kind)
            for row, item in enumerate(batch):
                if name == "input_ids":
                    value[row, : len(item)] = item.ids
                elif name == "attention_mask":
                    value[row, : len(item)] = 1
                elif name == "position_ids":
                    value[row, : len(item)] = np.arange(len(item))
                else:
                    value[row, : len(item)] = item.types
        return feed

    def _run_bound(self, feed: dict[str, npt.NDArray[np.integer]]) -> Any:
        binding = self._session.io_binding()
        for name, value in feed.items():
            binding.bind_cpu_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()


def _reason(error: Exception) -> str:
    """What ONNX Runtime says of a file, without its own code, source lines and the file's name."""
    said = " ".join(str(error).split())
    said = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", said)
    said = re.sub(r"^Load model from .*? failed: ?", "", said)
    said = re.sub(r"^/\S+:\d+ .*?\) (?=[A-Z])", "", said)
    return said[:_LONGEST_REASON] or type(error).__name__


def _is_short_of_memory(reason: str) -> bool:
    said = reason.lower()
    return any(words in said for words in _NO_MEMORY)
