"""FlashInfer's decode wrapper in CUDA-graph mode, in plain torch: what a graph freezes stays frozen, the rest is read
from the buffers. Names, checks and the split are those of flashinfer-python 0.6.6 (decode.py, scheduler.cuh)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from fake_flashinfer import check_plan
from torch import Tensor

MAX_GRID = 6
"""Blocks that run at once on the device that never was; few, so that rows share them unevenly."""


class Device:
    """What is common to all wrappers: whether a step is being replayed, and what was called in which order."""

    def __init__(self) -> None:
        self.replaying = False
        self.calls: list[tuple[Any, ...]] = []
        self.broken: set[str] = set()
        """Paths that raise."""
        self.wrong: set[str] = set()
        """Paths whose result is off."""

    def record(self, step: Any) -> Any:
        """In place of a CUDA graph: a step that is repeated must not plan, and sees what the device sees."""
        self.calls.append(("capture",))

        def replay() -> None:
            self.replaying = True
            self.calls.append(("replay",))
            try:
                step()
            finally:
                self.replaying = False

        return replay

    def library(self) -> Any:
        """The module ``flashinfer``."""
        device = self

        class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(device, *args, **kwargs)

        decode = SimpleNamespace(trtllm_batch_decode_with_kv_cache=self._trtllm)
        return SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=BatchDecodeWithPagedKVCacheWrapper, decode=decode)

    def attend(self, name: str, q: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float) -> Any:
        """One request over ``[Hk, n, D]``: unnormalised output, sum of exponentials and their maximum, in fp64."""
        if name in self.broken:
            raise RuntimeError(f"no kernel for {name}\nand a page of compiler output")
        wide_k, wide_v = (x.double().repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (keys, values))
        logits = (wide_k @ q.double()[..., None])[..., 0] * scale
        if softcap > 0:
            logits = softcap * torch.tanh(logits / softcap)
        top = logits.amax(-1, keepdim=True)
        weights = (logits - top).exp()
        out = (weights[:, None] @ wide_v)[:, 0] * (1.5 if name in self.wrong else 1.0)
        return out, weights.sum(-1), top[:, 0]

    def _trtllm(
        self,
        query: Tensor,
        kv_cache: tuple[Tensor, Tensor],
        workspace_buffer: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        max_seq_len: int,
        bmm1_scale: float,
        bmm2_scale: float,
        *,
        out: Tensor,
        kv_layout: str,
        backend: str,
    ) -> Tensor:
        k, v = kv_cache
        size = k.shape[2]
        assert kv_layout == "HND" and backend == "xqa" and bmm2_scale == 1.0 and block_tables.is_contiguous()
        assert block_tables.dtype == seq_lens.dtype == torch.int32 and int(seq_lens.max()) <= max_seq_len
        assert max_seq_len == block_tables.shape[1] * size
        for row, length in enumerate(seq_lens.tolist()):
            pages = block_tables[row, : -(-length // size)].long()
            keys, values = (x[pages].transpose(0, 1).flatten(1, 2)[:, :length] for x in (k, v))
            numerator, denominator, _ = self.attend(backend, query[row], keys, values, bmm1_scale, 0.0)
            out[row] = (numerator / denominator[:, None]).to(out.dtype)
        return out


class _Wrapper:
    def __init__(
        self,
        device: Device,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: Tensor | None = None,
        paged_kv_indices_buffer: Tensor | None = None,
        paged_kv_last_page_len_buffer: Tensor | None = None,
    ) -> None:
        assert use_cuda_graph and kv_layout == "HND" and float_workspace_buffer.dtype == torch.uint8
        assert paged_kv_indptr_buffer is not None and paged_kv_last_page_len_buffer is not None
        assert paged_kv_indices_buffer is not None
        if len(paged_kv_indptr_buffer) != len(paged_kv_last_page_len_buffer) + 1:
            raise ValueError("The size of paged_kv_indptr_buffer should be batch_size + 1")
        self.device, self.name = device, "tensor-core" if use_tensor_cores else "cuda-core"
        self.indptr, self.indices, self.last = (
            paged_kv_indptr_buffer,
            paged_kv_indices_buffer,
            paged_kv_last_page_len_buffer,
        )
        assert {x.dtype for x in (self.indptr, self.indices, self.last)} == {torch.int32}
        self.tiles: list[tuple[int, int]] = []
        """The integer workspace: (row, part of its text) per block of the grid."""
        self.chunk = 0

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
        sm_scale: float,
        logits_soft_cap: float | None,
    ) -> None:
        assert not self.device.replaying, "plan() cannot be used in a CUDA graph"
        self.device.calls.append(("plan", self.name, indptr.tolist(), last_page_len.tolist()))
        check_plan(indptr, indices, last_page_len, page_size, num_qo_heads // num_kv_heads, self.name == "tensor-core")
        if len(last_page_len) != len(self.last):
            raise ValueError("The batch size should be fixed in cudagraph mode")
        if len(indices) > len(self.indices):
            raise ValueError("The size of indices should be less than or equal to the allocated buffer")
        self.indptr.copy_(indptr)
        self.indices[: len(indices)].copy_(indices)
        self.last.copy_(last_page_len)
        used = indptr.diff().tolist()
        blocks = max(MAX_GRID // num_kv_heads, len(used))
        self.chunk = next(n for n in range(1, max(used) + 1) if sum(-(-count // n) for count in used) <= blocks)
        self.tiles = [(row, part) for row, count in enumerate(used) for part in range(-(-count // self.chunk))]
        host = (num_qo_heads, num_kv_heads, head_dim, page_size, q_data_type, kv_data_type, sm_scale, logits_soft_cap)
        assert getattr(self, "host", host) == host, "a graph holds these"
        self.host = host
        self._plan_info = [blocks, len(used), num_qo_heads]

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], *, out: Tensor) -> Tensor:
        heads, kv_heads, dim, size, q_type, kv_type, scale, softcap = self.host
        k, v = paged_kv_cache
        assert q.is_contiguous() and q.shape == out.shape == (len(self.last), heads, dim) and q.dtype == q_type
        assert k.is_contiguous() and k.shape[1:] == (kv_heads, size, dim) and k.dtype == v.dtype == kv_type
        # A block reads its part of the row; what is no block's part is not read at all.
        parts: list[list[Any]] = [[] for _ in self.last]
        starts, last = self.indptr.tolist(), self.last.tolist()
        for row, part in self.tiles:
            pages = self.indices[starts[row] : starts[row + 1]].long()
            length = (len(pages) - 1) * size + last[row]
            begin, end = part * self.chunk * size, min((part + 1) * self.chunk * size, length)
            keys, values = (x[pages].transpose(0, 1).flatten(1, 2)[:, begin:end] for x in (k, v))
            parts[row].append(self.device.attend(self.name, q[row], keys, values, scale, softcap or 0.0))
        for row, found in enumerate(parts):
            numerators, denominators, tops = (torch.stack(x) for x in zip(*found, strict=True))
            share = (tops - tops.amax(0)).exp()
            merged = (numerators * share[..., None]).sum(0) / (denominators * share).sum(0)[:, None]
            out[row] = merged.to(out.dtype)
        assert not math.isnan(float(out.sum()))
        return out
