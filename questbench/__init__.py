"""questbench measures what query-aware KV-cache sparsity really buys.

From Python: ``questbench.build_cache(model, questbench.Quest(budget=1024))``; every method's class is here by its name.
Importing the package imports neither torch nor transformers; using these names does. It makes transformers know the
attention "questbench", be it imported before or afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from questbench.models._registration import register_when_imported

__version__ = "0.1.0"

register_when_imported()


def __dir__() -> list[str]:
    """The public names: ``build_cache``, and every method's class (named from the files; nothing is imported)."""
    from questbench import registry

    classes = [_class_name(stem) for stem in registry.names("questbench.methods")]
    return sorted([*(name for name in globals() if name.startswith("__")), "build_cache", *classes])


def _class_name(stem: str) -> str:
    """The name of the class in a method's file: read, not imported."""
    import ast

    path = Path(__file__).parent / "methods" / f"{stem}.py"
    try:
        classes = [
            node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
        ]
    except (OSError, SyntaxError):  # of another package
        classes = []
    plain = stem.replace("_", "")
    return next((name for name in classes if name.lower() == plain), plain.title())


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
