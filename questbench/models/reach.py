"""How many of a model's layers a method acts on, from its configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from questbench.models import loading
from questbench.models.gguf.source import is_gguf
from questbench.models.shapes import named


def sentence(name: str, layers: int | None = None, dense_layers: int | None = None) -> str | None:
    """Which layers of the model ``name`` a method acts on; ``None`` where only loading the model would tell.

    Args:
        name: as ``--model`` has it.
        layers: only so many layers (``shape:`` alone).
        dense_layers: leading layers that stay dense; the model's default if ``None``.
    """
    try:
        config, default = _configuration(name, layers)
        sliding = None if config is None else sliding_layers(config)
    except Exception:  # of many kinds; what is wrong with the model is said when it is loaded
        return None
    if sliding is None:
        return None
    return describe(sliding, default if dense_layers is None else dense_layers, getattr(config, "sliding_window", None))


def hybrid(config: Any, dense_layers: int) -> str | None:
    """The sentence for a model of which some layers attend to a window; ``None`` for others."""
    sliding = sliding_layers(config)
    window = getattr(config.get_text_config(decoder=True), "sliding_window", None)
    return describe(sliding, dense_layers, window) if any(sliding) and not all(sliding) else None


def describe(sliding: list[bool], dense_layers: int, window: int | None = None) -> str:
    """The sentence for layers that slide or do not.

    Args:
        sliding: one flag per layer.
        dense_layers: leading layers that stay dense, sliding ones counted too.
        window: of the sliding layers, in tokens.
    """
    total = len(sliding)
    full = [index for index, slides in enumerate(sliding) if not slides]
    reached = [index for index in full if index >= dense_layers]
    said = f"methods act on {len(reached)} of {total} layers"
    if len(full) == total:
        kept = "stays dense" if dense_layers == 1 else f"{dense_layers} stay dense"
        return said + (f"; the first {kept}" if dense_layers else "")
    if 0 < len(reached) <= 8:
        said += f" (numbers {', '.join(map(str, reached))})"
    width = f" a window of {window:,} tokens" if window else " a window"
    said += f"; {total - len(full)} attend to{width} under every method"
    if dense_layers:
        spared = len(full) - len(reached)
        said += f"; --dense-layers {dense_layers} counts all layers and keeps "
        said += f"{spared or 'no'} full-attention layer{'s' if spared > 1 else ''} dense"
    return said


def sliding_layers(config: Any) -> list[bool]:
    """For each layer of a configuration whether it attends to a window only."""
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None)
    if kinds:
        return [kind == "sliding_attention" for kind in kinds]
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    return [window is not None] * text.num_hidden_layers


def _configuration(name: str, layers: int | None) -> tuple[Any, int]:
    if name.startswith(loading.SHAPE):
        from questbench.models._random_weights import configuration

        return configuration(named(name.removeprefix(loading.SHAPE), layers), layers), loading.DENSE_LAYERS
    from transformers import AutoConfig

    if name == "needle":
        from questbench.models import _needle

        return AutoConfig.from_pretrained(_needle.folder(), local_files_only=True), _needle.DENSE_LAYERS
    folder = loading.folder_of(name) if is_gguf(name) else Path(name).expanduser()
    if not name or folder is None or not folder.is_dir():
        return None, loading.DENSE_LAYERS
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return config, loading.DENSE_LAYERS
