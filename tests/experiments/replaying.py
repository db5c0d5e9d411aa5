"""A CUDA graph on the CPU: records every operator of a callable with its tensors, and runs the same ones again.

As in a graph, a replay reads and writes the tensors of the recording and sees nothing of what Python decided meanwhile.
What would end a capture, or bake a number of the host into it, is an error while recording.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FORBIDDEN = ("lift_fresh", "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item")
"""Operators that bring data from the host or to it."""


class Recorder(TorchDispatchMode):
    """Notes what runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in FORBIDDEN, f"{func} inside a recorded step: the host has to wait, or a number is baked in"
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Run the same operators on the same tensors."""
        for func, args, kwargs, out in self.calls:
            inputs = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                # A view, or an argument that was written in place, is up to date already.
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in inputs:
                    old.copy_(new)


def record(work: Callable[[], object]) -> Callable[[], None]:
    """Run ``work`` once and return what replays it. Unlike a capture, the recording itself takes effect."""
    with Recorder() as recorder:
        work()
    return recorder.replay


def through_the_dispatcher(monkeypatch: Any) -> None:
    """Let the cpu backend call what a recording sees: registered operators, and torch to turn queries, as on a GPU."""
    from questbench.kernels._native import NativeOps
    from questbench.models import _rotation

    monkeypatch.setattr(NativeOps, "_op", lambda self, name: getattr(torch.ops.questbench_cpu, name))
    by_difference = _rotation.by_difference
    monkeypatch.setattr(_rotation, "by_difference", lambda frequency, compiled: by_difference(frequency, False))
