"""FlashInfer's dense attention for decode steps that a CUDA graph repeats: what happens outside the graph, and when.

    cuda-core, tensor-core   plan() puts page ids, pages per row and their split over the grid into buffers on the
                             device, where replays find them. What a graph holds itself (kernel, grid, offsets, whether
                             to split) follows from batch and heads alone. So a step that stays within the pages of the
                             last plan needs nothing but the entries in the last page, which it takes from the lengths
                             on the device; before a step in which some row opens a page, all rows are planned anew.
    xqa, trtllm-gen          read page table and lengths on the device: nothing happens outside.

Read in the sources of flashinfer-python 0.6.6 and 0.7.2 (decode.py, attention/scheduler.cuh).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from questbench.errors import CellError
from questbench.kernels import flashinfer

WRAPPED = ("cuda-core", "tensor-core")


@dataclass(frozen=True)
class Heads:
    """What a plan must know besides pages and lengths."""

    query: int
    kv: int
    dim: int
    page_size: int
    dtype: torch.dtype
    scale: float
    softcap: float = 0.0


class DenseSteps(ABC):
    """Dense attention of the layers that share one page table, step after step."""

    @abstractmethod
    def prepare(self, held: Sequence[int]) -> None:
        """Outside the graph, before every step: rows hold ``held[b]`` entries, this step's not counted."""

    @abstractmethod
    def refresh(self, lengths: Tensor) -> None:
        """Inside, once per step: ``lengths`` ``[B]`` int32 counts this step's entry."""

    @abstractmethod
    def attend(self, q: Tensor, k_pages: Tensor, v_pages: Tensor, lengths: Tensor) -> Tensor:
        """Inside, once per layer, after :meth:`refresh`: ``[B, Hq, D]`` -> ``[B, Hq, D]``."""


def names(device: torch.device) -> tuple[str, ...]:
    """Paths to try on a device."""
    return (*WRAPPED, *flashinfer.device_planned(device))


def make(name: str, table: Tensor, heads: Heads) -> DenseSteps:
    """The steps of one path.

    Args:
        table: ``[B, P]`` int32; it spans the pages of every step to come, and does not change.

    Raises:
        CellError: the path has no kernel for these heads.
    """
    flashinfer.check(torch.empty((1, heads.query, heads.dim), dtype=heads.dtype, device="meta"))
    return _Planned(name, table, heads) if name in WRAPPED else _Unplanned(name, table, heads)


class _Planned(DenseSteps):
    """The paged decode wrapper over buffers of fixed size."""

    def __init__(self, name: str, table: Tensor, heads: Heads) -> None:
        self.heads, self._rows, self._name = heads, list(table.unbind(0)), name
        device = table.device
        self._last = torch.ones(len(table), dtype=torch.int32, device=device)
        self._wrapper: Any = flashinfer.library().BatchDecodeWithPagedKVCacheWrapper(
            flashinfer.workspace(device, "decode"),
            kv_layout="HND",
            use_cuda_graph=True,
            use_tensor_cores=name == WRAPPED[1],
            paged_kv_indptr_buffer=torch.zeros(len(table) + 1, dtype=torch.int32, device=device),
            paged_kv_indices_buffer=torch.zeros(table.numel(), dtype=torch.int32, device=device),
            paged_kv_last_page_len_buffer=self._last,
        )
        self._pages: list[int] | None = None
        """Pages of each row in the last plan."""
        self._frozen: list[int] | None = None
        self._copied: Any = torch.cuda.Event() if device.type == "cuda" else None

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

    def attend(self, q: Tensor, k_pages: Tensor, v_pages: Tensor, lengths: Tensor) -> Tensor:
        """See :meth:`DenseSteps.attend`."""
        out = torch.empty_like(q)
        self._wrapper.run(q, (k_pages, v_pages), out=out)
        return out


class _Unplanned(DenseSteps):
    """TensorRT-LLM's kernels; the table's width stands for the longest text."""

    def __init__(self, name: str, table: Tensor, heads: Heads) -> None:
        if heads.softcap > 0:
            raise CellError(f"FlashInfer's {name} kernels have no soft cap.")
        self.heads, self._name, self._table = heads, name, table.contiguous()
        self._workspace = flashinfer.workspace(table.device, name)

    def prepare(self, held: Sequence[int]) -> None:
        """Nothing."""

    def refresh(self, lengths: Tensor) -> None:
        """Nothing."""

    def attend(self, q: Tensor, k_pages: Tensor, v_pages: Tensor, lengths: Tensor) -> Tensor:
        """See :meth:`DenseSteps.attend`."""
        out = torch.empty_like(q)
        flashinfer.library().decode.trtllm_batch_decode_with_kv_cache(
            q,
            (k_pages, v_pages),
            self._workspace,
            self._table,
            lengths,
            self._table.shape[1] * self.heads.page_size,
            bmm1_scale=self.heads.scale,
            bmm2_scale=1.0,
            out=out,
            kv_layout="HND",
            backend=self._name,
        )
        return out
