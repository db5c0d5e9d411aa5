"""Checks and settings that the experiments share: methods, device, backend, dtype, threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from questbench import registry
from questbench.errors import PrerequisiteError, UsageError
from questbench.experiments.costs import Model
from questbench.experiments.grid import GridConfig, refusals_of
from questbench.methods._base import Method, PromptMass
from questbench.methods._make import PACKAGE, check_arguments, make, method_class
from questbench.methods._prompt import PromptOf

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from questbench.kernels._ops import Ops
    from questbench.models.hf_cache import SparseCache
    from questbench.models.loading import LoadedModel

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
DEFAULT_BACKEND = {"cpu": "cpu", "cuda": "cuda"}
PAGE_SIZES = (4, 8, 16, 32, 64, 128)


def check_methods(config: GridConfig, cells: Iterable[tuple[Mapping[str, Method], int]]) -> None:
    """Refuse methods that nobody would deploy, fields that no method has, and a method that no cell can run.

    Args:
        cells: of each, its methods by label and its page size.
    """
    for name in config.methods:
        if method_class(name).yardstick:
            usable = [known for known, cls in registry.usable(PACKAGE, method_class).items() if not cls.yardstick]
            raise UsageError(
                f"'{name}' is a yardstick for accuracy: nobody would deploy it, so its speed means nothing.",
                f"Use --method with one of: {', '.join(usable)}.",
            )
    check_arguments(dict.fromkeys(["dense", *config.methods]), config.method_args)
    refusals = [refusals_of(methods, page_size) for methods, page_size in cells]
    for name, error in refusals[0].items():
        if all(name in refused for refused in refusals):
            raise error


def leading_layers(asked: int | None, default: int, layers: int, model: str) -> int:
    """The number of leading dense layers, of a model with ``layers`` of them and ``default`` dense ones.

    Raises:
        UsageError: no other layer is left.
    """
    dense = default if asked is None else asked
    if dense >= layers:
        raise UsageError(
            f"--dense-layers {dense} leaves no sparse layer: {model} has {layers} layers.",
            f"Use --dense-layers {layers - 1} or fewer.",
        )
    return dense


def check_machine(device: str, backend: str | None, dtype: str, page_sizes: Sequence[int], threads: int | None) -> None:
    """Refuse a device, backend, dtype, page size or thread count that no cell can run with.

    Raises:
        UsageError: the value is not one of the known ones.
        PrerequisiteError: the device or the backend does not work on this machine.
    """
    if dtype not in DTYPES:
        raise UsageError(f"Unknown dtype '{dtype}'. Known: {', '.join(DTYPES)}.", "Use --dtype bf16.")
    for size in page_sizes:
        if size not in PAGE_SIZES:
            raise UsageError(
                f"Page size {size} is not one of {', '.join(map(str, PAGE_SIZES))}.", "Use --page-size 16."
            )
    if threads is not None and not 1 <= threads <= (os.cpu_count() or 1):
        raise UsageError(f"--threads {threads}: this machine has {os.cpu_count()} cores.", "Leave --threads out.")
    ops = load_ops(device, backend)
    if dtype not in ops.dtypes:
        raise UsageError(
            f"Backend '{ops.name}' stores {' and '.join(ops.dtypes)}, not {dtype}.", f"Use --dtype {ops.dtypes[-1]}."
        )


def load_ops(device: str, backend: str | None) -> Ops:
    """The backend to run on a device: the one named, or the device's own.

    Raises:
        UsageError: unknown backend or device.
        PrerequisiteError: it does not work here.
    """
    from questbench import kernels

    if device not in DEFAULT_BACKEND:
        raise UsageError(f"Unknown device '{device}'. Known: {', '.join(DEFAULT_BACKEND)}.", "Use --device cpu.")
    if device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise PrerequisiteError("There is no usable CUDA device.", "See: questbench doctor. Or use --device cpu.")
    name = DEFAULT_BACKEND[device] if backend is None else backend
    kind = kernels.load_class(name)
    if kind.device not in (device, "any"):
        raise UsageError(
            f"Backend '{name}' works on {kind.device}, not on {device}.",
            f"Use --device {kind.device}, or leave --backend out.",
        )
    return kernels.load(name)


def kernel_settings(config: Any) -> dict[str, Any]:
    """What the kernels of a run were told for this machine, by backend.

    Compiles them, and measures what to choose, on first use: before anything is timed.
    """
    devices, threads = (value if isinstance(value, list) else [value] for value in (config.device, config.threads))
    found = {}
    with thread_count(threads[0]):
        for ops in (load_ops(device, config.backend) for device in devices):
            if told := ops.settings():
                found[ops.name] = told
    return found


def opened(config: Any, device: str, dtype: str, **options: Any) -> tuple[Ops, LoadedModel, int]:
    """Backend, loaded model and the number of its leading dense layers.

    Args:
        config: of an experiment with a model.
        options: of :func:`questbench.models.loading.resolve`.

    Raises:
        UsageError, PrerequisiteError: they cannot be used for this run.
    """
    from questbench.models import loading

    ops = load_ops(device, config.backend)
    where: dict[str, Any] = {"online": config.online, "trust_remote_code": config.trust_remote_code}
    dtype_there = torch_dtype(dtype)
    loaded = loading.resolve(config.model, dtype=dtype_there, device=device, seed=config.seed, **where, **options)
    layers = loaded.model.config.get_text_config(decoder=True).num_hidden_layers
    return ops, loaded, leading_layers(config.dense_layers, loaded.dense_layers, layers, config.model)


def cost_model(model: PreTrainedModel, page_size: int, dense_layers: int = 0) -> Model:
    """What decides the bytes that a model's steps read and its caches take."""
    from questbench.models._shape import cache_shape

    text = model.config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    windows = [text.sliding_window if kind == "sliding_attention" else None for kind in kinds]
    widest = max(int(getattr(text, "intermediate_size", 0) or 0), int(text.hidden_size))
    caches = [cache_shape(model, page_size, index, len(windows)) for index in range(len(windows))]
    leading = next((cache for cache, window in zip(caches, windows, strict=True) if window is None), caches[0])
    return Model(leading, windows, dense_layers, widest, caches)


def observed(methods: Iterable[Method]) -> frozenset[PromptMass]:
    """The attention mass of the prompt that any of these methods judges by."""
    return frozenset(method.prompt_mass for method in methods) - {0}


def base_cache(
    model: PreTrainedModel,
    ops: Ops,
    methods: Iterable[Method],
    *,
    page_size: int,
    capacity: int = 0,
    reader: Method | None = None,
    dense_layers: int = 0,
) -> SparseCache:
    """A cache of prompts that each of these methods can be forked from.

    Args:
        reader: the method that reads the prompts, from ``dense_layers`` on; densely, if none.
    """
    from questbench.models import hf

    return hf.build_cache(
        model,
        make("dense", 0) if reader is None else PromptOf(reader=reader),
        dense_layers=dense_layers,
        page_size=page_size,
        ops=ops,
        capacity=capacity,
        collect=observed(methods),
        bounds=True,
    )


def torch_dtype(name: str) -> torch.dtype:
    """``bf16`` -> ``torch.bfloat16``."""
    import torch

    return getattr(torch, DTYPES[name])  # type: ignore[no-any-return]


@contextlib.contextmanager
def thread_count(threads: int | None) -> Iterator[int]:
    """Set torch's threads (all cores by default) for the block; yields the number."""
    import torch

    before = torch.get_num_threads()
    count = threads or os.cpu_count() or 1
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)
