"""What the end-to-end experiment times besides single steps: whole generations, parts of a step, and a control."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from questbench._memory import empty
from questbench._noise import Noise
from questbench.baselines import _ways
from questbench.baselines._base import Still
from questbench.baselines._loop import StepArm
from questbench.experiments.staged import rest, staged, summed
from questbench.models.static_loop import StaticLoop

CONTROL_LENGTH = 8192
"""Longest text of the control."""


class GenerateArm(StepArm):
    """``count`` tokens per call, as a user would generate them."""

    def __init__(self, loop: StaticLoop, count: int) -> None:
        super().__init__(loop)
        self.count = count

    def step(self, index: int) -> None:
        """``count`` steps and the tokens they made."""
        del index
        self.loop.generate(self.loop.tokens, self.count + 1)


def stages(loop: StaticLoop, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each part of a step, one sample per round: ``weights``, the ops, ``rest`` and ``staged``.

    Ops are called one by one here, so that their sum (``staged``) may exceed the time of a plain step.
    """
    seconds: dict[str, float] = {}
    stores = [part for layer in loop.layers if layer.store is not None for part in layer.store.parts]
    arm = StepArm(loop)
    found: dict[str, list[float]] = {}
    with _timed_weights(loop, seconds, clock), staged(stores, clock) as marks:
        for number in range(rounds + 1):
            arm.setup()
            seconds.clear()
            marks.clear()
            start = clock()
            loop.step()
            total = clock() - start
            parts = {"weights": seconds.get("weights", 0.0)}
            parts |= summed((stage, after - before) for stage, before, after in marks)
            if number:  # the first round warms up
                around = rest(total, parts.values())
                for stage, value in (parts | {"rest": around, "staged": total}).items():
                    found.setdefault(stage, []).append(value)
    arm.setup()
    return found


@contextlib.contextmanager
def _timed_weights(loop: StaticLoop, seconds: dict[str, float], clock: Callable[[], float]) -> Iterator[None]:
    """Clock the linear layers of the flat plan, or of the model's modules where there is none."""

    def add(start: float) -> None:
        seconds["weights"] = seconds.get("weights", 0.0) + clock() - start

    def timed(projection: Any) -> Any:
        def call(x: Tensor) -> Tensor:
            start = clock()
            out: Tensor = projection(x)
            add(start)
            return out

        return call

    plan = loop.plan
    if plan is not None:
        names = ("qkv", "out", "gate_up", "down")
        blocks = tuple(
            dataclasses.replace(block, **{name: timed(getattr(block, name)) for name in names}) for block in plan.blocks
        )
        loop.plan = dataclasses.replace(plan, blocks=blocks, head=timed(plan.head))
        try:
            yield
        finally:
            loop.plan = plan
        return
    begun: list[float] = []
    hooks = []
    for module in loop.model.modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(lambda *_: begun.append(clock())))
            hooks.append(module.register_forward_hook(lambda *_: add(begun.pop())))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def control(noise: Noise, heads: int, seq_len: int) -> Still:
    """torch's attention over one layer of random entries, always by the same way.

    No code of ours, so that it tells how fast the machine is: two runs of different code are compared by it
    (``report --compare``). It need not be as long as what it is held against.
    """
    (k, v), *_ = noise.parts(min(seq_len, CONTROL_LENGTH))
    k, v = (empty(tuple(x.shape), x.dtype, x.device).copy_(x) for x in (k, v))
    generator = torch.Generator().manual_seed(0)
    q = torch.randn((k.shape[0], heads, k.shape[3]), generator=generator).to(k.device, k.dtype)
    return Still(lambda index: _ways.folded(q, k, v, float(q.shape[-1]) ** -0.5))
