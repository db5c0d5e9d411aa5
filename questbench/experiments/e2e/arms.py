"""What the end-to-end experiment times: whole decode steps and whole generations, ours and those of transformers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, StaticCache

from questbench._memory import empty
from questbench.errors import CellError
from questbench.experiments.e2e.noise import Noise
from questbench.experiments.e2e.torch_step import choose
from questbench.experiments.staged import StagedOps
from questbench.models._forward import cache_argument
from questbench.models.static_loop import StaticLoop


class StepArm:
    """One decode step of the whole model per call; caches that grow go back before every timing."""

    def __init__(self, loop: StaticLoop) -> None:
        self.loop = loop
        self._mark = loop.mark()

    def setup(self) -> None:
        """Undo the last steps where the method lets us; evicting caches keep their size by themselves."""
        self.loop.rewind(self._mark)

    def step(self, index: int) -> None:
        """One token per row."""
        del index
        self.loop.step()


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
    """Seconds of each part of a step, one sample per round: ``weights``, the five ops, ``rest`` and ``staged``.

    Ops are called one by one here, so that their sum (``staged``) may exceed the time of a plain step.
    """
    seconds: dict[str, float] = {}
    stores = [part for layer in loop.layers if layer.store is not None for part in layer.store.parts]
    plain = stores[0].ops
    ops = StagedOps(plain, clock)
    arm = StepArm(loop)
    found: dict[str, list[float]] = {}
    with _timed_weights(loop, seconds, clock):
        for store in stores:
            store.ops = ops
        try:
            for number in range(rounds + 1):
                arm.setup()
                seconds.clear()
                ops.marks.clear()
                start = clock()
                loop.step()
                total = clock() - start
                parts = {"weights": seconds.get("weights", 0.0)}
                for stage, before, after in ops.marks:
                    parts[stage] = parts.get(stage, 0.0) + after - before
                if number:  # the first round warms up
                    rest = max(total - sum(parts.values()), 0.0)
                    for stage, value in (parts | {"rest": rest, "staged": total}).items():
                        found.setdefault(stage, []).append(value)
        finally:
            for store in stores:
                store.ops = plain
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


class TransformersArm:
    """A decode step by transformers alone: its cache, eager, its SDPA attention or a faster one of torch's ways.

    Args:
        kind: ``static`` or ``dynamic``, the class of the cache.

    Raises:
        CellError: transformers has no SDPA attention for this model.
    """

    def __init__(self, model: PreTrainedModel, kind: str, noise: Noise, seq_len: int, room: int) -> None:
        self.model, self.kind, self.length = model, kind, seq_len - 1
        try:
            model.set_attn_implementation("sdpa")
        except (ImportError, ValueError) as error:
            raise CellError(f"transformers runs no SDPA here: {str(error).partition('. ')[0]}.") from None
        config = model.config
        if kind == "static":
            self.cache: Any = StaticCache(config=config, max_cache_len=seq_len + room)
        else:
            self.cache = DynamicCache(config=config)
        device = next(model.parameters()).device
        self.ids = torch.ones((noise.rows, 1), dtype=torch.long, device=device)
        self.place = torch.full((noise.rows, 1), self.length, dtype=torch.long, device=device)
        self._cache_argument = cache_argument(model, self.cache)
        for layer in self.cache.layers:
            self._fill(layer, noise)
        held = [(layer.keys, layer.values) for layer in self.cache.layers]
        longest = max(k.shape[2] for k, _ in held)
        full = [(k, v) for k, v in held if k.shape[2] == longest >= self.length]
        self.attention = choose(model, full, self.length, str(device))

    def _fill(self, layer: Any, noise: Noise) -> None:
        if self.kind == "static" or layer.is_sliding:  # neither grows beyond what it is made for
            for k, v in noise.parts(self.length):
                layer.update(k, v)
            return
        first, _ = next(noise.parts(1))
        shape = (noise.rows, first.shape[1], self.length, first.shape[3])
        k, v = (empty(shape, first.dtype, first.device) for _ in "kv")
        done = 0
        for part_k, part_v in noise.parts(self.length):
            k[:, :, done : done + part_k.shape[2]], v[:, :, done : done + part_k.shape[2]] = part_k, part_v
            done += part_k.shape[2]
        layer.update(k[:, :, :0], v[:, :, :0])
        layer.keys, layer.values = k, v

    def setup(self) -> None:
        """Back to the prompt's length; a window that is full keeps its size by itself."""
        for layer in self.cache.layers:
            if hasattr(layer, "cumulative_length"):
                length = layer.cumulative_length
                length.fill_(self.length) if isinstance(length, Tensor) else setattr(
                    layer, "cumulative_length", self.length
                )
            if hasattr(layer, "cumulative_length_int"):  # the same number, kept twice
                layer.cumulative_length_int = self.length
            if self.kind == "dynamic":
                layer.keys, layer.values = layer.keys[:, :, : self.length], layer.values[:, :, : self.length]

    @torch.no_grad()
    def step(self, index: int) -> None:
        """One token per row, greedily."""
        del index
        out = self.model(
            input_ids=self.ids,
            position_ids=self.place,
            use_cache=True,
            logits_to_keep=1,
            **self._cache_argument,
        )
        self.ids = out.logits[:, -1].argmax(-1, keepdim=True)
