"""Make transformers know the attention ``questbench`` whenever both packages are there, whichever is imported first.

``import questbench`` must stay light, so it cannot import transformers; and ``attn_implementation="questbench"`` must
work right behind it. So a finder waits for transformers' module of models and registers our name once that has run.
The functions themselves are imported when attention is first called. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

NAME = "questbench"
"""The attention implementation's name."""
AWAITED = "transformers.modeling_utils"


def register() -> None:
    """Register attention and mask with transformers now."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register(NAME, _attention)
    # Without a mask function of its own an implementation gets no mask at all, and padding would be lost.
    AttentionMaskInterface.register(NAME, flash_attention_mask)


def register_when_imported() -> None:
    """Register now if transformers is loaded already, else as soon as it is."""
    if AWAITED in sys.modules:
        register()
    elif not any(isinstance(finder, _Awaiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Awaiting())


def _attention(*args: Any, **kwargs: Any) -> Any:
    from questbench.models.hf_attention import questbench_attention

    return questbench_attention(*args, **kwargs)


class _Awaiting:
    """Finds one module, as the finders behind it do, and has its loader register our attention afterwards."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != AWAITED:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                found: Any = spec
                if spec.loader is not None:
                    found.loader = _Registering(spec.loader)
                return spec
        return None


class _Registering:
    """A loader that registers our attention behind the module that it loads, and leaves no trace in it."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self.loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        # A version without these interfaces is refused when it is used, not by ending the import of transformers.
        with contextlib.suppress(ImportError, AttributeError):
            register()
