"""From what the user names (``--model``) to a model in memory, or to a message that says what is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from questbench.errors import PrerequisiteError, UsageError
from questbench.models.gguf.source import find, is_gguf
from questbench.models.shapes import named

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from questbench.models.gguf.convert import Converted

SHAPE = "shape:"
"""What names of random models of a well-known shape begin with."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


DENSE_LAYERS = 2
"""Leading layers that stay dense unless the model or the user says otherwise: as in the Quest paper."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what a record must say about it."""

    model: PreTrainedModel
    tokenizer: Any
    """``None`` for random weights."""
    name: str
    """As the user named it."""
    dense_layers: int = DENSE_LAYERS
    """Default of ``--dense-layers``."""


def resolve(
    name: str,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    seed: int = 0,
    online: bool = False,
    trust_remote_code: bool = False,
    layers: int | None = None,
    need_tokenizer: bool = True,
) -> LoadedModel:
    """Load a model.

    Args:
        name: ``constructed``, ``needle``, ``shape:NAME``, a local folder, a ``.gguf`` file,
            ``pip:DISTRIBUTION`` (a GGUF file in an installed package) or a hub id.
        dtype: of weights and cache.
        device: where to put it.
        seed: of random weights.
        online: download from the hub what is not there yet.
        trust_remote_code: run Python code that comes with the model.
        layers: only so many layers (``shape:`` alone).
        need_tokenizer: refuse a folder without a tokenizer.

    Raises:
        UsageError: the name means nothing.
        PrerequisiteError: the model is not there, incomplete, broken or of an unknown kind.
    """
    _check_device(device)
    check(name, layers)
    if name == "constructed":
        from questbench.models import constructed

        model, tokenizer = constructed.build(dtype)
        model.to(device)
        return LoadedModel(model, tokenizer, name, constructed.DENSE_LAYERS)
    if name.startswith(SHAPE):
        from questbench.models import _random_weights

        return LoadedModel(_random_weights.build(name.removeprefix(SHAPE), dtype, device, seed, layers), None, name)
    from questbench.models import _folder, _needle

    folder = folder_of(name, online=online, trust_remote_code=trust_remote_code)
    assert folder is not None
    model = _folder.load_model(folder, dtype, device, trust_remote_code=trust_remote_code)
    tokenizer = _folder.load_tokenizer(folder, trust_remote_code=trust_remote_code, needed=need_tokenizer)
    return LoadedModel(model, tokenizer, name, _needle.DENSE_LAYERS if name == _needle.NAME else DENSE_LAYERS)


def folder_of(name: str, *, online: bool = False, trust_remote_code: bool = False) -> Path | None:
    """The checked folder of a model's files; ``None`` for a model that is made by code.

    Raises:
        PrerequisiteError: it is not there, incomplete or broken.
    """
    if name == "constructed" or name.startswith(SHAPE):
        return None
    from questbench.models import _folder, _needle

    if is_gguf(name):
        folder = from_gguf(name).folder
        _folder.check(folder)
        return folder
    folder = _needle.folder() if name == _needle.NAME else Path(name).expanduser()
    if name and folder.exists():
        _folder.check(folder)
        return folder
    return _folder.from_hub(name, online=online, with_code=trust_remote_code)


def from_gguf(name: str) -> Converted:
    """The folder that a GGUF file was converted to, now or earlier.

    Raises:
        UsageError, PrerequisiteError: there is no usable file of that name.
    """
    from questbench.models.gguf.convert import converted

    return converted(find(name))


def check(name: str, layers: int | None = None) -> None:
    """Refuse a name that :func:`resolve` cannot make anything of, without loading anything.

    Raises:
        UsageError: an unknown shape, or a number of layers that it does not have.
        PrerequisiteError: a folder, file or distribution that is not there.
    """
    if name.startswith(SHAPE):
        named(name.removeprefix(SHAPE), layers)
        return
    if layers is not None:
        raise UsageError(f"Only shape: models can be cut to {layers} layers, not '{name}'.", "Leave the limit out.")
    if is_gguf(name):
        find(name)
        return
    known = Path(name).expanduser().exists() if name else False
    if not known and (name.startswith(("/", ".", "~")) or not HUB_ID.fullmatch(name)):
        raise PrerequisiteError(
            f"There is no model folder '{name}'.",
            "Give a folder, a .gguf file, pip:DISTRIBUTION, a hub id (owner/name), shape:NAME, constructed or needle: "
            "questbench ls models",
        )


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UsageError(f"Unknown device '{device}'.", "Use --device cpu or --device cuda.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise PrerequisiteError("There is no usable CUDA device.", "See: questbench doctor")
