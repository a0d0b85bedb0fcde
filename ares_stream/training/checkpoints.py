"""Hugging Face checkpoints, loaded and checked: the one way in which a model comes in to be
trained, repaired, exported or asked.

transformers loads nearly anything: what is missing from the weights it makes at random, and a
tokenizer without files it makes empty. Here each of that is an error that names what is wrong.
Weights are safetensors, remote code is never run.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch

from ares_stream.errors import BundleError
from ares_stream.files import read_json
from ares_stream.models.weights import check_fetched, check_safetensors

Use = Literal["classifier", "base", "policy"]
"""A classifier with its head; a base to put a new head with one output on; a causal LM."""

_TEXT_FILES: Final = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
_SHOWN: Final = 4
_COMPUTED: Final = re.compile(r"(^|\.)(position_ids|inv_freq|masked_bias|embed_positions\.weight)$")
"""Saved by old versions, and computed by new ones."""
_LEAST_SHARE: Final = 0.5
"""Embeddings are padded to a round number of rows, by a few per cent; a tokenizer that knows less
than half of them is another model's."""
_HUB_ID: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model in evaluation mode, its tokenizer, and the directory that both came from."""

    source: str
    folder: Path
    model: Any
    tokenizer: Any

    @property
    def labels(self) -> list[str]:
        """Label names by index."""
        names = self.model.config.id2label
        return [str(names[index]) for index in sorted(names)]

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])


def load_checkpoint(
    source: str | Path,
    use: Use = "classifier",
    *,
    layers: int | None = None,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> Checkpoint:
    """Load model and tokenizer from a directory or, by its id, from the hub.

    `layers` keeps that many of a base's lowest blocks. Raises BundleError naming the file, the
    weights or the tokens that are wrong.
    """
    import transformers

    folder = _folder(source)
    check_files(folder)
    auto: Any = (
        transformers.AutoModelForCausalLM
        if use == "policy"
        else transformers.AutoModelForSequenceClassification
    )
    with _named(source, "cannot be loaded"), quiet_transformers():
        config = _config(folder, source, use, layers)
        model, info = auto.from_pretrained(
            str(folder),
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            # So that they are named below instead of in a report on the terminal.
            ignore_mismatched_sizes=True,
        )
    _check_weights(source, model, info, use)
    _check_architecture(source, model, use)
    tokenizer = load_tokenizer(folder, source)
    found = Checkpoint(str(source), folder, model.eval(), tokenizer)
    _check_vocabulary(found)
    return found


def load_tokenizer(folder: Path, source: str | Path) -> Any:
    """The checkpoint's own fast tokenizer. Raises BundleError where it has none."""
    from transformers import AutoTokenizer

    present = {item.name for item in folder.iterdir()}
    readable = ({"tokenizer.json"}, {"vocab.txt"}, {"vocab.json", "merges.txt"})
    if not any(files <= present for files in readable):
        kept = sorted(name for name in present if name.endswith(".model"))
        raise BundleError(
            f"{source}: "
            + (
                f"its tokenizer is only {kept[0]}; save it with tokenizer.json first"
                if kept
                else "holds no tokenizer (tokenizer.json); copy the tokenizer that it was trained "
                "with into the directory"
            )
        )
    with _named(source, "its tokenizer cannot be loaded"), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    if not getattr(tokenizer, "is_fast", False):
        raise BundleError(f"{source}: its tokenizer has no tokenizer.json; convert it first")
    return tokenizer


def check_files(folder: Path) -> None:
    """What can be said of a checkpoint's directory without loading it. Raises BundleError."""
    if (folder / "adapter_config.json").is_file():
        raise BundleError(
            f"{folder}: holds an adapter (adapter_config.json), not a whole model; merge it into "
            "its base and name the merged checkpoint"
        )
    if not (folder / "config.json").is_file():
        raise BundleError(f"{folder}: not a checkpoint: no config.json")
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".txt", ".model", ".jinja") and file.is_file():
            check_fetched(file)
    config = read_json(folder / "config.json", dict[str, Any], error=BundleError)
    for part in (config, *(item for item in config.values() if isinstance(item, dict))):
        if kept := part.get("quantization_config"):
            named = kept.get("quant_method") if isinstance(kept, dict) else None
            method = named or "a quantisation method"
            raise BundleError(
                f"{folder}: is quantised ({method}); take the checkpoint in full precision"
            )
    for file in _weights(folder):
        check_safetensors(file)


def stop_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ids at which a policy's answer ends: what a server reads from generation_config.json and
    config.json, which may be a list, and the tokenizer's own end token."""
    found: list[int] = []
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        found += [ids] if isinstance(ids, int) else list(ids or ())
    return tuple(dict.fromkeys(found))


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and reports: what they say is checked here. Nor with a
    warning of peft's: 0.21 asks models for an attribute that transformers 5 has renamed."""
    from transformers.utils import logging as untyped

    logging: Any = untyped

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What a library said, as far as it fits on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


@contextlib.contextmanager
def _named(source: str | Path, what: str) -> Iterator[None]:
    try:
        yield
    except BundleError:
        raise
    except Exception as error:  # what transformers raises depends on the architecture
        raise BundleError(f"{source}: {what}: {first_line(error)}") from error


def _folder(source: str | Path) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or folder.exists() or not _HUB_ID.fullmatch(source):
        raise BundleError(f"{source}: no such directory; name one that holds a checkpoint")
    from huggingface_hub import snapshot_download

    with _named(source, "neither a directory nor a model that the hub gives out"):
        return Path(snapshot_download(source, allow_patterns=list(_TEXT_FILES)))


def _config(folder: Path, source: str | Path, use: Use, layers: int | None) -> Any:
    from transformers import AutoConfig

    options = {"num_labels": 1} if use == "base" else {}
    config: Any = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, **options)
    if layers is not None:
        text = config.get_text_config()
        if layers > text.num_hidden_layers:
            raise BundleError(f"layers: {layers} asked for, the base has {text.num_hidden_layers}")
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    return config


def _check_weights(source: str | Path, model: Any, info: dict[str, Any], use: Use) -> None:
    prefix = f"{model.base_model_prefix}."

    def matters(name: str) -> bool:
        return not _COMPUTED.search(name) and (
            use != "base" or (name.startswith(prefix) and ".pooler." not in name)
        )

    missing = sorted(filter(matters, info["missing_keys"]))
    # A base brings its old head, and perhaps layers that are not kept.
    unexpected = [] if use == "base" else sorted(filter(matters, info["unexpected_keys"]))
    shapes = sorted(
        f"{name} {list(kept)} instead of {list(wanted)}"
        for name, kept, wanted in info["mismatched_keys"]
        if matters(name)
    )
    if missing:
        raise BundleError(
            f"{source}: has no weights for {_names(missing)}, which would be random; "
            + (
                "a judge or reward model is a checkpoint with a trained classification head"
                if use == "classifier"
                else "take a checkpoint that holds them"
            )
        )
    if shapes:
        raise BundleError(
            f"{source}: weights of other shapes than config.json says: {_names(shapes)}"
        )
    if unexpected:
        raise BundleError(
            f"{source}: holds weights that {type(model).__name__} does not use: "
            f"{_names(unexpected)}; config.json names another architecture"
        )
    wrong = sorted(
        name for name, value in model.named_parameters() if not torch.isfinite(value).all()
    )
    if wrong:
        raise BundleError(f"{source}: weights hold NaN or infinity: {_names(wrong)}")


def _check_architecture(source: str | Path, model: Any, use: Use) -> None:
    named = list(model.config.architectures or ())
    if use == "policy" and named and type(model).__name__ not in named:
        raise BundleError(
            f"{source}: is a {named[0]}; a policy is a causal language model, with its output layer"
        )


def _check_vocabulary(checkpoint: Checkpoint) -> None:
    rows, tokenizer = checkpoint.vocabulary, checkpoint.tokenizer
    beyond = sorted(
        (number, token) for token, number in tokenizer.get_vocab().items() if number >= rows
    )
    if beyond:
        shown = _names([f"{token} ({number})" for number, token in beyond])
        raise BundleError(
            f"{checkpoint.source}: the tokenizer has tokens beyond the model's {rows}: {shown}; "
            "resize the embedding and train it, or take the tokenizer that belongs to it"
        )
    if len(tokenizer) < _LEAST_SHARE * rows:
        raise BundleError(
            f"{checkpoint.source}: the tokenizer knows {len(tokenizer)} of the model's {rows} "
            "tokens: it is another model's; copy the one that it was trained with"
        )


def _weights(folder: Path) -> Iterable[Path]:
    index = folder / "model.safetensors.index.json"
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        pickled = sorted(
            item.name
            for item in folder.iterdir()
            if item.suffix in (".bin", ".pt", ".pth", ".ckpt")
        )
        raise BundleError(
            f"{folder}: "
            + (
                f"weights only as {pickled[0]}, which would have to be unpickled; convert them to "
                "safetensors"
                if pickled
                else "no model.safetensors: holds no weights"
            )
        )
    shards = read_json(index, dict[str, Any], error=BundleError).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise BundleError(f"{index}: weight_map: names no file")
    if not all(isinstance(name, str) and name == Path(name).name for name in shards.values()):
        raise BundleError(f"{index}: weight_map: names what is no file of its folder")
    files = [folder / name for name in sorted(set(shards.values()))]
    for file in files:
        if not file.is_file():
            raise BundleError(f"{index}: names {file.name}, which is not there; fetch it")
    return files


def _names(items: Sequence[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
