"""Models in a folder of safetensors files, local or from the hub's cache: checked before they are loaded."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from questbench._digest import sha256
from questbench.errors import PrerequisiteError, QuestbenchError, first_line
from questbench.models._config_check import check_layers, check_special_tokens, no_weights, weight_files
from questbench.models._fits import check_memory

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken")
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "spiece.model", "*.tiktoken"]
DECIDING = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model"),
    *("*.tiktoken", "chat_template.*", "*.jinja", "*.py"),
)
"""Files that decide what a model does."""


def from_hub(name: str, *, online: bool, with_code: bool) -> Path:
    """Folder of a hub model's snapshot: safetensors, configuration and tokenizer, never pickles.

    Raises:
        PrerequisiteError: it is not on this machine, or cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, allow_patterns=WANTED + (["*.py"] if with_code else []), local_files_only=not online
        )
    except Exception as error:
        if not online:
            raise PrerequisiteError(
                f"'{name}' is neither a folder nor a model that has been downloaded to this machine.",
                f"Download it with --online, or with: hf download {name}. Without network: --model constructed.",
            ) from error
        raise PrerequisiteError(
            f"'{name}' cannot be downloaded: {first_line(error)}",
            "Check the name, the network and, for gated models, run: hf auth login.",
        ) from error
    check(Path(folder))
    return Path(folder)


def check(folder: Path) -> None:
    """Look at a folder's files without loading them.

    Raises:
        PrerequisiteError: it holds no usable model.
    """
    if not folder.is_dir():
        raise PrerequisiteError(f"{folder} is not a folder.", "Give the folder that holds config.json.")
    config = _json(folder / "config.json")
    if config is None and any(folder.glob("*.gguf")):
        raise no_weights(folder, pickles=False)
    if config is None:
        raise PrerequisiteError(
            f"{folder} has no config.json: it is not a model folder.", "Give the folder that holds config.json."
        )
    if not isinstance(config, dict) or "model_type" not in config:
        raise PrerequisiteError(f"{folder / 'config.json'} names no model_type.", "Download the model again.")
    for name in ("config.json", "generation_config.json"):
        check_special_tokens(folder / name, _json(folder / name))
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise no_weights(folder, any(path for pattern in PICKLES for path in folder.glob(pattern)))
    listed = folder / "model.safetensors.index.json"
    if listed.is_file():
        missing = sorted(weight_files(listed, _json(listed)) - {path.name for path in weights})
        if missing:
            raise PrerequisiteError(f"{folder} lacks {', '.join(missing)}.", "Download the model again.")
    check_layers(folder / "config.json", config, sum(map(_tensors, weights)))


def load_model(folder: Path, dtype: torch.dtype, device: str, *, trust_remote_code: bool) -> PreTrainedModel:
    """Load a checked folder, in evaluation mode.

    Raises:
        PrerequisiteError: transformers cannot make a complete causal model of it.
    """
    from safetensors import safe_open

    # What lies on disk may have another dtype: count entries, not bytes.
    entries = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            entries += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    check_memory(str(folder), entries * dtype.itemsize, device)
    logging.disable_progress_bar()  # One bar per run, and it is not this one.
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            # Refused below with the name of the first: transformers would point to a report that nobody sees.
            ignore_mismatched_sizes=True,
        )
        model.to(device)
    except Exception as error:
        raise _explained(error, folder, "model", trust_remote_code) from error
    finally:
        logging.enable_progress_bar()
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        raise PrerequisiteError(
            f"{folder} is incomplete: {len(absent)} weights are absent or of the wrong shape, such as {absent[0]}.",
            "Download the model again.",
        )
    for name, parameter in model.named_parameters():
        # A sum needs no temporary tensor of the parameter's size, and NaN or infinity stays in it.
        if not bool(torch.isfinite(parameter.detach().sum(dtype=torch.float32))):
            raise PrerequisiteError(
                f"The weights of {folder} are not finite: {name} has NaN or infinity.",
                "Download the model again; if the weights are fp16 overflows, use --dtype bf16.",
            )
    return model.eval()


def load_tokenizer(folder: Path, *, trust_remote_code: bool, needed: bool) -> Any:
    """The folder's tokenizer, or ``None`` where there is none and none is needed.

    Raises:
        PrerequisiteError: there is none, or it is broken.
    """
    if not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        if not needed:
            return None
        raise PrerequisiteError(
            f"{folder} has no tokenizer.", "Put tokenizer.json beside config.json: tokenizer.save_pretrained(FOLDER)."
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _explained(error, folder, "tokenizer", trust_remote_code) from error


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that decides what the model does: weights, configuration, tokenizer, template, code.

    Raises:
        PrerequisiteError: one of them cannot be read.
    """
    paths = sorted({path for pattern in DECIDING for path in folder.glob(pattern) if path.is_file()})
    try:
        with ThreadPoolExecutor(max_workers=4) as several:
            return dict(zip((path.name for path in paths), several.map(sha256, paths), strict=True))
    except OSError as error:
        raise PrerequisiteError(f"{error.filename} cannot be read: {error.strerror}.", "Check the file.") from error


def _explained(error: Exception, folder: Path, what: str, trusted: bool) -> QuestbenchError:
    if isinstance(error, QuestbenchError):
        return error
    if "trust_remote_code" in str(error) and not trusted:
        return PrerequisiteError(
            f"The {what} in {folder} brings Python code of its own, which is not run unasked.",
            "Read the code, then repeat with --trust-remote-code.",
        )
    if "Unrecognized configuration class" in str(error):
        return PrerequisiteError(f"{folder} holds no causal language model.", "Use a decoder-only model.")
    return PrerequisiteError(
        f"The {what} in {folder} cannot be loaded: {first_line(error)}", "Download the model again, or use another."
    )


def _tensors(path: Path) -> int:
    """How many tensors a file of weights holds; it is opened but not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as weights:
            return len(weights.keys())
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise PrerequisiteError(
            f"{path} ({size:,} bytes) is truncated or corrupt: {first_line(error)}", "Download the model again."
        ) from error


def _json(path: Path) -> Any:
    """What a JSON file holds; ``None`` if there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise PrerequisiteError(f"{path} cannot be read: {first_line(error)}", "Download the model again.") from error
