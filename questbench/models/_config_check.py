"""What must hold in a model folder's JSON files before anything is built from them. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from questbench.errors import PrerequisiteError

AGAIN = "Download the model again."
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def check_special_tokens(path: Path, settings: Any) -> None:
    """Token numbers that generation stops at must be numbers.

    Raises:
        PrerequisiteError: one of them is not.
    """
    for part in _parts(settings):
        for name in SPECIAL:
            value = part.get(name)
            if value is not None and not all(map(_is_token, value if isinstance(value, list) else [value])):
                raise PrerequisiteError(
                    f"{path}: {name} is {_shown(value)}, but must be a token number or a list of them.",
                    f"Correct {name} in {path.name}, or download the model again.",
                )


def weight_files(path: Path, index: Any) -> set[str]:
    """The weight files that an index names.

    Raises:
        PrerequisiteError: it is not an index.
    """
    if not isinstance(index, dict):
        raise PrerequisiteError(f"{path} must hold an object, not {_shown(index)}.", AGAIN)
    files = index.get("weight_map")
    if not isinstance(files, dict):
        raise PrerequisiteError(f"{path}: weight_map must be an object, not {_shown(files)}.", AGAIN)
    for weight, file in files.items():
        if not isinstance(file, str):
            raise PrerequisiteError(f"{path}: weight_map['{weight}'] must be a file's name, not {_shown(file)}.", AGAIN)
    return set(files.values())


def check_layers(path: Path, config: Mapping[str, Any], tensors: int) -> None:
    """Refuse a number of layers that the weights cannot fill, before that many layers are built.

    Raises:
        PrerequisiteError: it is not a positive number, or there are fewer tensors than layers.
    """
    for part in _parts(config):
        for name in LAYERS:
            layers = part.get(name)
            if layers is None:
                continue
            if not isinstance(layers, int) or isinstance(layers, bool) or layers < 1:
                raise PrerequisiteError(f"{path}: {name} is {_shown(layers)}, but must be a positive number.", AGAIN)
            if layers > tensors > 0:  # weights without any tensor are refused for that
                raise PrerequisiteError(
                    f"{path}: {name} is {layers:,}, but the weights hold only {tensors:,} tensors.",
                    f"Correct {name} in {path.name}, or download the model again.",
                )


def no_weights(folder: Path, pickles: bool) -> PrerequisiteError:
    """What to say of a folder without safetensors."""
    packed = sorted(path.name for path in folder.glob("*.gguf"))
    if packed:
        return PrerequisiteError(
            f"{folder} has GGUF weights only ({packed[0]}); questbench reads safetensors.",
            "Convert it with transformers (pip install gguf accelerate): AutoModelForCausalLM.from_pretrained(FOLDER, "
            f"gguf_file='{packed[0]}', quantization_config=GgufConfig(dequantize=True)).save_pretrained(NEW), and the "
            "same with AutoTokenizer without quantization_config.",
        )
    if pickles:
        return PrerequisiteError(
            f"{folder} has pickled weights only; loading a pickle runs whatever code it holds.",
            "Convert it: model.save_pretrained(FOLDER) writes safetensors; or take a revision that has them.",
        )
    return PrerequisiteError(f"{folder} has no *.safetensors weights.", AGAIN)


def _parts(settings: Any) -> list[Mapping[str, Any]]:
    """A configuration, and that of the text in one of several kinds of input."""
    parts = [settings, settings.get("text_config")] if isinstance(settings, dict) else []
    return [part for part in parts if isinstance(part, dict)]


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _shown(value: Any) -> str:
    """A JSON value in a message: its text where it is short."""
    if value is None:
        return "null or missing"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
