"""A model's own forward in a wider dtype than its weights have: what both its forward and a plan of it come close to.

No second model is held: each module's parameters are widened while the module runs and are put back behind it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}


def wider_logits(model: PreTrainedModel, ids: Tensor) -> Tensor | None:
    """Logits ``[B, n, vocabulary]`` of a text, without a cache; ``None`` where a module does not run in that dtype.

    Quantised weights are left as they are.
    """
    if model.dtype not in WIDER:
        return None
    try:
        # Out of inference mode, in which parameters cannot be exchanged.
        with torch.inference_mode(False), torch.no_grad(), _widened(model, WIDER[model.dtype]):
            logits: Tensor = model(input_ids=ids.clone(), use_cache=False).logits
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None
    return logits


@contextlib.contextmanager
def _widened(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    narrow: dict[nn.Module, list[tuple[nn.Parameter, Tensor]]] = {}

    def widen(module: nn.Module, *_: Any) -> None:
        own = [p for p in module.parameters(recurse=False) if type(p.data) is Tensor and p.is_floating_point()]
        narrow[module] = [(parameter, parameter.data) for parameter in own]
        for parameter in own:
            parameter.data = parameter.data.to(dtype)

    def restore(module: nn.Module, *_: Any) -> None:
        for parameter, data in narrow.pop(module, []):
            parameter.data = data

    hooks = []
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(widen))
            hooks.append(module.register_forward_hook(restore))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in list(narrow):
            restore(module)
