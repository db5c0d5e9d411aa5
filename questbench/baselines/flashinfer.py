"""FlashInfer (https://github.com/flashinfer-ai/flashinfer): dense attention over our pages on CUDA, a request a row.

    cuda-core, tensor-core   planned on the host. In captured steps, plan() puts page ids, pages per row and their split
                             over the grid into buffers on the device, where replays find them. What a graph holds
                             itself (kernel, grid, offsets, whether to split) follows from batch and heads alone. So a
                             step that stays within the pages of the last plan needs nothing but the entries in the last
                             page, which it takes from the lengths on the device; before a step in which some row opens
                             a page, all rows are planned anew.
    xqa, trtllm-gen          read page table and lengths on the device: nothing happens outside.

Read in the sources of flashinfer-python 0.6.6 and 0.7.2 (decode.py, attention/scheduler.cuh). Kernels are compiled by
FlashInfer at their first use (nvcc, ninja).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from questbench.baselines._base import Baseline, Decode, Fastest, Still, Text, Ways, right, tried
from questbench.baselines._steps import DenseSteps, Heads
from questbench.errors import CellError, first_line
from questbench.kernels import _build_cuda
from questbench.kernels._paged import Paged

INSTALL = "pip install 'questbench[flashinfer]'"
HEAD_DIMS = (64, 128, 256)
DTYPES = (torch.float16, torch.bfloat16)
PLANNED = ("cuda-core", "tensor-core")
WORKSPACE_BYTES = 128 << 20
"""What FlashInfer recommends; it must be zero at its first use."""


class FlashInfer(Baseline):
    """The fastest of FlashInfer's paths; it has kernels of its own for each chip."""

    verbs: ClassVar[tuple[str, ...]] = ("kernel", "e2e")
    device: ClassVar[str] = "cuda"

    def unavailable(self) -> str | None:
        """The package and a CUDA device."""
        if importlib.util.find_spec("flashinfer") is None:
            return f"FlashInfer is not installed: {INSTALL} (its kernels need a CUDA device and nvcc)."
        if not torch.cuda.is_available():
            return "FlashInfer needs a CUDA device, and torch finds none."
        try:
            library()
        except Exception as error:
            return f"FlashInfer cannot be imported ({type(error).__name__}: {first_line(error)}): {INSTALL}."
        return None

    def ways(self, text: Text) -> Ways:
        """See :meth:`Baseline.ways`. Each path runs once here, so that what must be compiled is."""
        layers, query = text.pages(), text.queries[0]
        left_out: dict[str, str] = {}
        arms: dict[str, Still] = {}
        layer = layers[0]
        heads = Heads(query.shape[1], layer.kv_heads, layer.head_dim, layer.page_size, layer.dtype, text.scale)
        out = torch.full_like(query, torch.nan)
        for name in names(query.device):
            with tried(name, left_out):
                steps = [make(name, layer.page_table, heads, layer.held) for layer in layers]

                def attend(q: Tensor, copy: int, steps: list[DenseSteps] = steps) -> Tensor:
                    steps[copy].attend(q, layers[copy].paged, out)
                    return out

                for copy in range(len(layers)):
                    attend(query, copy)
                if query.is_cuda:
                    torch.cuda.synchronize(query.device)
                arms[name] = text.arm(attend)
        want = layer.ops.attend(query, layer.paged, text.scale)
        return Ways(right(arms, want, left_out), left_out)

    def decode(self, run: Decode) -> Fastest:
        """See :meth:`Baseline.decode`."""
        from questbench.baselines._loop import fastest_loop  # Imports transformers, which kernel has no use for.

        device = torch.device(run.device)
        return fastest_loop(run, {name: functools.partial(make, name) for name in names(device)})


@functools.cache
def library() -> Any:
    """The package. Its import takes seconds and may fail in ways of its own: nothing here imports it on loading.

    It compiles with the toolkit two folders above the nvcc on PATH, which is none where that nvcc is a script: unless
    somebody has named a toolkit, it is told the one that our own kernels are compiled with.
    """
    if not os.environ.get("CUDA_HOME") and not os.environ.get("CUDA_PATH") and (kit := _build_cuda.toolkit()):
        os.environ["CUDA_HOME"] = str(kit.home)
    return importlib.import_module("flashinfer")


@functools.cache
def workspace(device: torch.device, user: str) -> Tensor:
    """Scratch memory; xqa keeps semaphores in its own, which other kernels must not write to."""
    del user
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def names(device: torch.device) -> tuple[str, ...]:
    """Paths to try on a device. Asking ``trtllm_batch_decode_with_kv_cache`` for another may start a download."""
    if device.type != "cuda":
        return (*PLANNED, "xqa")
    major = torch.cuda.get_device_capability(device)[0]
    return (*PLANNED, *{9: ("xqa",), 10: ("trtllm-gen", "xqa"), 12: ("xqa",)}.get(major, ()))


def make(name: str, table: Tensor, heads: Heads, held: Sequence[int] | None = None) -> DenseSteps:
    """The steps of one path.

    Args:
        table: ``[B, P]`` int32; it spans the pages of every step to come, and does not change.
        held: entries of each row where that does not change either: plans are then free in what a captured step must
            leave alone, such as the number of splits. Without, :meth:`DenseSteps.prepare` is called before each step.

    Raises:
        CellError: the path has no kernel for these heads.
    """
    if heads.dtype not in DTYPES or heads.dim not in HEAD_DIMS:
        raise CellError(
            f"FlashInfer has no decode kernels for {str(heads.dtype).removeprefix('torch.')} heads of {heads.dim}.",
            f"Use --dtype bf16 and a head size of {', '.join(map(str, HEAD_DIMS))}.",
        )
    return (_Planned if name in PLANNED else _Unplanned)(name, table, heads, held)


class _Planned(DenseSteps):
    """The paged decode wrapper; over buffers of fixed size where steps are captured."""

    def __init__(self, name: str, table: Tensor, heads: Heads, held: Sequence[int] | None) -> None:
        self.heads, self._rows, self._name = heads, list(table.unbind(0)), name
        device = table.device
        self._last = torch.ones(len(table), dtype=torch.int32, device=device)
        buffers: dict[str, Any] = {}
        if held is None:
            buffers = {
                "use_cuda_graph": True,
                "paged_kv_indptr_buffer": torch.zeros(len(table) + 1, dtype=torch.int32, device=device),
                "paged_kv_indices_buffer": torch.zeros(table.numel(), dtype=torch.int32, device=device),
                "paged_kv_last_page_len_buffer": self._last,
            }
        self._wrapper: Any = library().BatchDecodeWithPagedKVCacheWrapper(
            workspace(device, "decode"), kv_layout="HND", use_tensor_cores=name == PLANNED[1], **buffers
        )
        self._pages: list[int] | None = None
        """Pages of each row in the last plan."""
        self._frozen: list[int] | None = None
        self._copied: Any = torch.cuda.Event() if device.type == "cuda" else None
        if held is not None:
            if min(held) < 1:
                raise ValueError("FlashInfer plans no empty rows")
            self.prepare([entries - 1 for entries in held])

    def prepare(self, held: Sequence[int]) -> None:
        """See :meth:`DenseSteps.prepare`; plans where a row's number of pages differs from the last plan's."""
        heads, size = self.heads, self.heads.page_size
        pages = [entries // size + 1 for entries in held]
        if pages == self._pages:
            return
        if self._copied is not None and self._pages is not None:
            self._copied.synchronize()  # plan() writes to pinned memory that its last copy may still be read from
        self._wrapper.plan(
            torch.tensor([0, *itertools.accumulate(pages)], dtype=torch.int32),
            torch.cat([row[:count] for row, count in zip(self._rows, pages, strict=True)]),
            torch.tensor([entries % size + 1 for entries in held], dtype=torch.int32),
            heads.query,
            heads.kv,
            heads.dim,
            size,
            q_data_type=heads.dtype,
            kv_data_type=heads.dtype,
            sm_scale=heads.scale,
            logits_soft_cap=heads.softcap if heads.softcap > 0 else None,
        )
        if self._copied is not None:
            self._copied.record()
        frozen = [int(number) for number in getattr(self._wrapper, "_plan_info", None) or ()]
        if self._frozen not in (None, frozen):
            raise CellError(f"FlashInfer's {self._name} plan changed in what a captured step cannot follow.")
        self._pages, self._frozen = pages, frozen

    def refresh(self, lengths: Tensor) -> None:
        """See :meth:`DenseSteps.refresh`."""
        torch.sub(lengths, 1, out=self._last)
        self._last.remainder_(self.heads.page_size).add_(1)

    def attend(self, q: Tensor, paged: Paged, out: Tensor) -> None:
        """See :meth:`DenseSteps.attend`."""
        self._wrapper.run(q, (paged.k, paged.v), out=out)


class _Unplanned(DenseSteps):
    """TensorRT-LLM's kernels; in captured steps the table's width stands for the longest text."""

    def __init__(self, name: str, table: Tensor, heads: Heads, held: Sequence[int] | None) -> None:
        if heads.softcap > 0:
            raise CellError(f"FlashInfer's {name} kernels have no soft cap.")
        self.heads, self._name, self._table = heads, name, table.contiguous()
        self._longest = table.shape[1] * heads.page_size if held is None else max(held)
        self._workspace = workspace(table.device, name)

    def attend(self, q: Tensor, paged: Paged, out: Tensor) -> None:
        """See :meth:`DenseSteps.attend`."""
        library().decode.trtllm_batch_decode_with_kv_cache(
            q,
            (paged.k, paged.v),
            self._workspace,
            self._table,
            paged.lengths,
            self._longest,
            bmm1_scale=self.heads.scale,
            bmm2_scale=1.0,
            out=out,
            kv_layout="HND",
            backend=self._name,
        )
