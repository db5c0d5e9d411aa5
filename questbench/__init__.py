"""questbench measures what query-aware KV-cache sparsity really buys.

From Python: ``questbench.build_cache(model, questbench.Quest(budget=1024))``; every method's class is here by its name.
Importing the package imports neither torch nor transformers; using these names does. It makes transformers know the
attention "questbench", be it imported before or afterwards.
"""

from __future__ import annotations

from typing import Any

from questbench.models._registration import register_when_imported

__version__ = "0.1.0"

register_when_imported()


def __getattr__(name: str) -> Any:
    if name == "build_cache":
        from questbench.models.hf import build_cache

        return build_cache
    if name[:1].isupper():
        from questbench import registry
        from questbench.methods._base import Method

        # The class StreamingLLM lives in streaming_llm.py.
        for stem in registry.names("questbench.methods"):
            if stem.replace("_", "") == name.lower():
                return registry.load("questbench.methods", stem, Method, kind="method")
    raise AttributeError(f"module 'questbench' has no attribute '{name}'")
