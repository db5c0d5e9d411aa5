"""What FlashInfer's documentation says of its decode interface, in plain torch: the index arithmetic of our side can
be tested against it without a GPU. Keyword names are those of flashinfer-python 0.6.6 and 0.7.2."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def attended(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
    """One request: ``q [Hq, D]``, ``k``, ``v`` ``[Hk, n, D]`` -> output and log2 of the sum of exponentials."""
    group = q.shape[0] // k.shape[0]
    wide_k, wide_v = (x.double().repeat_interleave(group, 0) for x in (k, v))
    logits = (wide_k @ q.double()[..., None])[..., 0] * scale
    if softcap > 0:
        logits = softcap * torch.tanh(logits / softcap)
    return (logits.softmax(-1)[:, None] @ wide_v)[:, 0], logits.logsumexp(-1) / math.log(2.0)


def check_plan(
    indptr: Tensor, indices: Tensor, last_page_len: Tensor, page_size: int, group: int, tensor_cores: bool
) -> None:
    """What ``plan()`` asks of its arguments, whether or not steps are captured."""
    assert {x.dtype for x in (indptr, indices, last_page_len)} == {torch.int32}
    assert len(indptr) == len(last_page_len) + 1 and int(indptr[-1]) == len(indices)
    assert (indptr.diff() > 0).all() and (last_page_len >= 1).all() and (last_page_len <= page_size).all()
    if not tensor_cores and group not in (1, 2, 3, 4, 8):
        raise RuntimeError("Unsupported group_size")


class Wrapper:
    """``BatchDecodeWithPagedKVCacheWrapper`` for HND pages."""

    def __init__(self, workspace: Tensor, kv_layout: str = "NHD", *, use_tensor_cores: bool = False) -> None:
        assert workspace.dtype == torch.uint8 and not workspace.any() and kv_layout == "HND"
        self.use_tensor_cores = use_tensor_cores
        self.planned: dict[str, Any] = {}

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
        assert indptr.device.type == last_page_len.device.type == "cpu"
        check_plan(indptr, indices, last_page_len, page_size, num_qo_heads // num_kv_heads, self.use_tensor_cores)
        self.planned = dict(locals())

    def run(
        self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], *, out: Any = None, return_lse: bool = False
    ) -> Any:
        plan, (k, v) = self.planned, paged_kv_cache
        assert (
            q.is_contiguous()
            and k.is_contiguous()
            and k.shape[1:]
            == (
                plan["num_kv_heads"],
                plan["page_size"],
                plan["head_dim"],
            )
        )
        assert q.shape == (len(plan["last_page_len"]), plan["num_qo_heads"], plan["head_dim"])
        assert q.dtype == plan["q_data_type"] and k.dtype == plan["kv_data_type"]
        out = torch.empty_like(q) if out is None else out
        lse = torch.empty(q.shape[:2])
        bounds = plan["indptr"].tolist()
        for request, last in enumerate(plan["last_page_len"].tolist()):
            used = plan["indices"][bounds[request] : bounds[request + 1]].long()
            length = (len(used) - 1) * plan["page_size"] + last
            keys, values = (x[used].transpose(0, 1).flatten(1, 2)[:, :length] for x in (k, v))
            result, lse[request] = attended(q[request], keys, values, plan["sm_scale"], plan["logits_soft_cap"] or 0.0)
            out[request] = result.to(q.dtype)
        return (out, lse) if return_lse else out


def trtllm_batch_decode_with_kv_cache(
    query: Tensor,
    kv_cache: tuple[Tensor, Tensor],
    workspace_buffer: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    max_seq_len: int,
    bmm1_scale: float = 1.0,
    bmm2_scale: float = 1.0,
    *,
    out: Tensor,
    kv_layout: str,
    backend: str,
) -> Tensor:
    """TensorRT-LLM's decode, which reads lengths and tables where they are."""
    k, v = kv_cache
    if backend == "xqa" and k.shape[2] not in (16, 32, 64, 128):
        raise ValueError(f"Invalid page_size: {k.shape[2]}")
    assert kv_layout == "HND" and bmm2_scale == 1.0 and block_tables.is_contiguous()
    assert block_tables.dtype == seq_lens.dtype == torch.int32 and max_seq_len == int(seq_lens.max())
    for row, length in enumerate(seq_lens.tolist()):
        used = block_tables[row, : -(-length // k.shape[2])].long()
        keys, values = (x[used].transpose(0, 1).flatten(1, 2)[:, :length] for x in (k, v))
        out[row] = attended(query[row], keys, values, bmm1_scale, 0.0)[0].to(out.dtype)
    return out


LIBRARY = SimpleNamespace(
    BatchDecodeWithPagedKVCacheWrapper=Wrapper,
    decode=SimpleNamespace(trtllm_batch_decode_with_kv_cache=trtllm_batch_decode_with_kv_cache),
)
