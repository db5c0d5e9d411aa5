"""FlashInfer (https://github.com/flashinfer-ai/flashinfer): the dense CUDA baseline, and a check on sparse reads.

FlashInfer attends; it keeps no page bounds, selects no pages and evicts nothing. Those words are the specification's,
in plain torch, and so is what its kernels do not return (attention mass, counts of reads) or do (two queries a head).

    dense   one request per row, planned for its length: CUDA cores, tensor cores (FA2), xqa or trtllm-gen
    sparse  one request per list of pages. Seen as [N * Hk, 1, S, D], page n of KV head h is page n * Hk + h of a cache
            with one head, so that every (row, KV head), or (row, query head), has a page table of its own

Written against flashinfer-python 0.6.6 and 0.7.2; kernels are compiled by FlashInfer at their first use (nvcc, ninja).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from questbench.errors import CellError
from questbench.kernels import _build_cuda
from questbench.kernels._ops import MassMode, Merge, Ops
from questbench.kernels._paged import Paged

if TYPE_CHECKING:
    from questbench.kernels._ops import DensePath

INSTALL = "pip install 'questbench[flashinfer]'"
HEAD_DIMS = (64, 128, 256)
DTYPES = (torch.float16, torch.bfloat16)
CUDA_CORE_GROUPS = (1, 2, 3, 4, 8)
"""Query heads per KV head that the CUDA-core kernels of every version have; others go to the tensor-core ones."""
WORKSPACE_BYTES = 128 << 20
"""What FlashInfer recommends; it must be zero at its first use."""


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


class FlashInferOps(Ops):
    """FlashInfer's attention within the contract of the ops."""

    device: ClassVar[str] = "cuda"
    dtypes: ClassVar[tuple[str, ...]] = ("fp16", "bf16")
    baseline: ClassVar[bool] = True

    def unavailable(self) -> str | None:
        """The package and a CUDA device."""
        if importlib.util.find_spec("flashinfer") is None:
            return f"FlashInfer is not installed: {INSTALL} (its kernels need a CUDA device and nvcc)."
        if not torch.cuda.is_available():
            return "FlashInfer needs a CUDA device, and torch finds none."
        try:
            library()
        except Exception as error:
            return f"FlashInfer cannot be imported ({type(error).__name__}: {_first_line(error)}): {INSTALL}."
        return None

    def dense_paths(self, q: Tensor, paged: Paged, scale: float) -> tuple[dict[str, DensePath], dict[str, str]]:
        """See :meth:`Ops.dense_paths`. Each path runs once here, so that what must be compiled is."""
        check(q)
        k_pages, v_pages, page_table, lengths, _ = paged
        paths: dict[str, DensePath] = {}
        reasons: dict[str, str] = {}
        out = torch.empty_like(q)
        for name in ("cuda-core", "tensor-core", *device_planned(q.device)):
            try:
                if name in ("cuda-core", "tensor-core"):
                    path = _planned(q, k_pages, page_table, lengths, scale, tensor_cores=name == "tensor-core")
                else:
                    path = _unplanned(name, page_table, lengths, scale)
                path(q, k_pages, v_pages, out)
                if q.is_cuda:
                    torch.cuda.synchronize(q.device)
                paths[name] = path
            except Exception as error:
                reasons[name] = f"{type(error).__name__}: {_first_line(error)}"
        return paths, reasons

    def attend(
        self,
        q: Tensor,
        paged: Paged,
        scale: float,
        *,
        pages: Tensor | None = None,
        tokens: Tensor | None = None,
        counts: Tensor | None = None,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        prefix_q: Tensor | None = None,
        prefix: int = 0,
        mass: Tensor | None = None,
        mass_mode: MassMode = "none",
        visits: Tensor | None = None,
        lse: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Ops.attend`. Plans anew in every call, which waits for the device: right, not fast."""
        twice = (prefix_q is not None and prefix > 0) or tokens is not None or lse is not None
        if twice or visits is not None or (mass is not None and mass_mode != "none"):
            out = _specification().attend(
                q,
                paged,
                scale,
                pages=pages,
                tokens=tokens,
                counts=counts,
                softcap=softcap,
                sinks=sinks,
                prefix_q=prefix_q,
                prefix=prefix,
                mass=mass,
                mass_mode=mass_mode,
                visits=visits,
                lse=lse,
            )
            if twice:
                return out
        check(q)
        rows, query_heads, dim = q.shape
        k_pages, v_pages, page_table, lengths, _ = paged
        kv_heads, page_size = k_pages.shape[1:3]
        if pages is None or counts is None:
            heads, shape = query_heads, (rows, query_heads)
            used, table, fill = _whole_rows(page_table, lengths, page_size)
        else:
            lists = pages.shape[1]
            heads, shape = query_heads // lists, (rows * lists, query_heads // lists)
            used, table, fill = _lists(pages, counts, page_table, lengths, page_size, kv_heads)
            k_pages, v_pages = (x.view(-1, 1, page_size, dim) for x in (k_pages, v_pages))
        queries = q.reshape(*shape, dim)
        out = torch.zeros_like(queries)
        reads = (used > 0).nonzero()[:, 0]
        if len(reads) == 0:
            return out.view_as(q)
        wrapper = _wrapper(q.device, heads // k_pages.shape[1])
        _plan(wrapper, used[reads], table, fill[reads], heads, k_pages, q.dtype, scale, softcap)
        some = reads.to(q.device)
        attended, lse = wrapper.run(queries[some].contiguous(), (k_pages, v_pages), return_lse=True)
        if sinks is not None:
            # The sink joins the denominator: e^lse / (e^lse + e^sink), where FlashInfer's lse is to base 2. The output
            # was rounded to storage before, so that it is rounded twice.
            sink = sinks.float().expand(rows, -1).reshape(shape)[some]
            attended = attended * torch.sigmoid(lse * math.log(2.0) - sink)[..., None]
        out[some] = attended.to(q.dtype)
        return out.view_as(q)

    def append(self, k: Tensor, v: Tensor, paged: Paged, new: Tensor | None = None) -> None:
        """The specification's."""
        _specification().append(k, v, paged, new)

    def score(self, q: Tensor, paged: Paged, *, skip_newest: bool) -> Tensor:
        """The specification's."""
        return _specification().score(q, paged, skip_newest=skip_newest)

    def select(
        self,
        scores: Tensor,
        lengths: Tensor,
        page_size: int,
        count: int | Tensor,
        *,
        width: int,
        force_newest: bool,
        merge: Merge = "none",
        group: int = 1,
        scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """The specification's."""
        options: dict[str, Any] = {"width": width, "force_newest": force_newest, "merge": merge}
        return _specification().select(scores, lengths, page_size, count, group=group, scale=scale, **options)

    def evict(
        self,
        paged: Paged,
        positions: Tensor,
        mass: Tensor | None,
        *,
        capacity: int,
        sinks: int,
        recent: int,
        shared: bool,
    ) -> None:
        """The specification's."""
        options: dict[str, Any] = {"capacity": capacity, "sinks": sinks, "recent": recent, "shared": shared}
        _specification().evict(paged, positions, mass, **options)


def _specification() -> Ops:
    from questbench import kernels

    return kernels.load("reference")


def check(q: Tensor) -> None:
    """Refuse what FlashInfer has no kernels for, before its compiler says so at length."""
    if q.dtype not in DTYPES or q.shape[-1] not in HEAD_DIMS:
        raise CellError(
            f"FlashInfer has no decode kernels for {str(q.dtype).removeprefix('torch.')} heads of {q.shape[-1]}.",
            f"Use --dtype bf16 and a head size of {', '.join(map(str, HEAD_DIMS))}.",
        )


def _wrapper(device: torch.device, group: int, tensor_cores: bool | None = None) -> Any:
    tensor_cores = group not in CUDA_CORE_GROUPS if tensor_cores is None else tensor_cores
    return library().BatchDecodeWithPagedKVCacheWrapper(
        workspace(device, "decode"), kv_layout="HND", use_tensor_cores=tensor_cores
    )


def _plan(
    wrapper: Any,
    used: Tensor,
    table: Tensor,
    fill: Tensor,
    heads: int,
    k_pages: Tensor,
    dtype: torch.dtype,
    scale: float,
    softcap: float = 0.0,
) -> None:
    """Plan requests of ``used`` pages each. Lengths stay on the host, where FlashInfer plans; page ids do not."""
    indptr = torch.zeros(len(used) + 1, dtype=torch.int32)
    indptr[1:] = used.cumsum(0)
    wrapper.plan(
        indptr,
        table,
        fill.to(torch.int32),
        heads,
        k_pages.shape[1],
        k_pages.shape[3],
        k_pages.shape[2],
        q_data_type=dtype,
        kv_data_type=dtype,
        sm_scale=scale,
        logits_soft_cap=softcap if softcap > 0 else None,
    )


def _planned(
    q: Tensor, k_pages: Tensor, page_table: Tensor, lengths: Tensor, scale: float, *, tensor_cores: bool
) -> DensePath:
    """The paged decode wrapper, planned for these lengths: the number of splits is free, as it is best for them."""
    used, table, fill = _whole_rows(page_table, lengths, k_pages.shape[2])
    if not bool((used > 0).all()):
        raise ValueError("FlashInfer plans no empty rows")
    wrapper = _wrapper(q.device, q.shape[1] // k_pages.shape[1], tensor_cores)
    _plan(wrapper, used, table, fill, q.shape[1], k_pages, q.dtype, scale)

    def path(query: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        wrapper.run(query, (keys, values), out=out)

    return path


def device_planned(device: torch.device) -> tuple[str, ...]:
    """Backends of ``trtllm_batch_decode_with_kv_cache`` for this chip: asking for another may start a download."""
    if device.type != "cuda":
        return ("xqa",)
    major = torch.cuda.get_device_capability(device)[0]
    return {9: ("xqa",), 10: ("trtllm-gen", "xqa"), 12: ("xqa",)}.get(major, ())


def _unplanned(backend: str, page_table: Tensor, lengths: Tensor, scale: float) -> DensePath:
    """TensorRT-LLM's kernels, which read page table and lengths on the device."""
    decode = library().decode.trtllm_batch_decode_with_kv_cache
    tables, longest = page_table.contiguous(), int(lengths.max())
    lengths = lengths.clone()
    scratch = workspace(page_table.device, backend)

    def path(query: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        decode(
            query,
            (keys, values),
            scratch,
            tables,
            lengths,
            longest,
            bmm1_scale=scale,
            bmm2_scale=1.0,
            out=out,
            kv_layout="HND",
            backend=backend,
        )

    return path


def _whole_rows(page_table: Tensor, lengths: Tensor, page_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pages per row (host), their physical ids row by row (device), entries in each row's last page (host)."""
    held = lengths.to("cpu", torch.int64)
    used = (held + page_size - 1) // page_size
    place = torch.arange(page_table.shape[1], device=page_table.device)
    table = page_table[place < used.to(page_table.device)[:, None]]
    return used, table.to(torch.int32), (held - 1) % page_size + 1


def _lists(
    pages: Tensor, counts: Tensor, page_table: Tensor, lengths: Tensor, page_size: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for every list of pages ``[B, H, width]``, with page ids of the one-headed view."""
    rows, lists, width = pages.shape
    device = pages.device
    listed = torch.arange(width, device=device) < counts[..., None]
    logical = pages.clamp(min=0).long()
    physical = page_table[torch.arange(rows, device=device)[:, None, None], logical].long()
    head = torch.arange(lists, device=device) // (lists // kv_heads)
    table = (physical * kv_heads + head[:, None])[listed]
    # Only a row's newest page can be open, and ascending lists have it last.
    last = logical.gather(2, (counts.long() - 1).clamp(min=0)[..., None])[..., 0]
    held = lengths.long()[:, None]
    newest = (held - 1).div(page_size, rounding_mode="floor")
    fill = torch.where(last == newest, (held - 1) % page_size + 1, page_size)
    return counts.flatten().to("cpu", torch.int64), table.to(torch.int32), fill.flatten().cpu()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
