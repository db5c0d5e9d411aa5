"""Shapes at the edge of what the kernels have room for work; those beyond are refused before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import REFERENCE, check_attend, make_query, make_store

from questbench import kernels
from questbench._paths import kernel_sources
from questbench.cache import LayerCache
from questbench.errors import UsageError
from questbench.kernels._ops import Ops
from questbench.kernels.cpu import CpuOps
from questbench.kernels.cuda import CudaOps
from questbench.methods.quest import Quest


@pytest.fixture
def cpu() -> Ops:
    if reason := kernels.available()["cpu"]:
        pytest.skip(reason)
    return kernels.load("cpu")


def constant(name: str, path: str) -> int:
    found = re.search(rf"\b{name} = (\d+)", (kernel_sources() / path).read_text())
    assert found is not None
    return int(found.group(1))


def test_limits_are_those_of_the_kernels() -> None:
    assert CpuOps.limits.group == constant("kMaxGroup", "include/questbench/vector.h")
    assert CpuOps.limits.page_sizes == (1, constant("kChunk", "include/questbench/attend.h"))
    assert CudaOps.limits.group == constant("kMaxGroup", "cuda/paged.h")
    bind = (kernel_sources() / "cuda" / "bind.cu").read_text()
    assert all(f"head_dim != {dim}" in bind for dim in CudaOps.limits.head_dims)
    least, most = CudaOps.limits.page_sizes or (0, 0)
    assert f"page_size < {least} || page_size > {most}" in bind and CudaOps.limits.powers_of_two


@pytest.mark.parametrize("group", [65, 71, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_query_heads_may_share_a_kv_head(cpu: Ops, group: int, dtype: torch.dtype) -> None:
    """Falcon-7B has 71 query heads over one KV head."""
    store = make_store([150, 40], heads=1, dim=64, page_size=8, dtype=dtype)
    q = make_query(store, group)
    check_attend(cpu, store, q, 0.125)
    got = cpu.score(q, store.paged, skip_newest=True)
    want = REFERENCE.score(q, store.paged, skip_newest=True)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)
    rule: dict[str, Any] = {"count": 4, "width": 4, "force_newest": True}
    for merge in ("sum_softmax", "max"):
        lists = [
            ops.select(want, store.lengths, 8, **rule, merge=merge, group=group, scale=0.125)  # type: ignore[arg-type]
            for ops in (cpu, REFERENCE)
        ]
        assert torch.equal(lists[0][0], lists[1][0]) and torch.equal(lists[0][1], lists[1][1])
    pages, counts = lists[0]
    top = cpu.attend_top(q, store.paged, 0.125, **rule, merge="max")
    listed = cpu.attend(q, store.paged, 0.125, pages=pages, counts=counts)
    assert top.isfinite().all() and top.shape == listed.shape


@pytest.mark.parametrize("size", [1, 3, 1000, 1024])
def test_pages_of_any_size_up_to_the_largest_work(cpu: Ops, size: int) -> None:
    store = make_store([2100, 5], heads=2, dim=32, page_size=size, dtype=torch.float32)
    check_attend(cpu, store, make_query(store, 2), 0.2)


def layer(ops: Ops, **changed: int) -> LayerCache:
    shape = {"kv_heads": 2, "head_dim": 64, "page_size": 16, "query_heads": 4, **changed}
    return LayerCache(Quest(budget=4096), ops, rows=1, **shape)


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"page_size": 2048}, "from 1 to 1024 entries"), ({"query_heads": 514}, "up to 256 query heads per KV head")],
)
def test_a_cache_that_the_kernels_cannot_read_is_refused(cpu: Ops, changed: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        layer(cpu, **changed)
    layer(kernels.load("reference"), **changed)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"page_size": 24}, "powers of two from 4 to 128"),
        ({"page_size": 2}, "powers of two from 4 to 128"),
        ({"query_heads": 34}, "up to 16 query heads per KV head"),
        ({"head_dim": 80}, "has kernels for 64, 128, 256"),
    ],
)
def test_cuda_has_limits_of_its_own(changed: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        layer(CudaOps(), **changed)


def test_build_cache_refuses_pages_that_are_too_large(cpu: Ops) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from questbench import build_cache

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=3, **sizes))
    with pytest.raises(UsageError, match="Pages of 2048 entries"):
        build_cache(model, Quest(budget=4096), page_size=2048, ops="cpu")
    build_cache(model, Quest(budget=4096), page_size=1024, ops="cpu")


def test_the_command_line_refuses_groups_that_are_too_large(cpu: Ops, questbench: Callable[..., Any]) -> None:
    ended = questbench("kernel", "--heads", 257, "--kv-heads", 1, "--seq-len", "1k", "--budget", 256)
    assert ended.code == 2 and "up to 256 query heads per KV head" in ended.err and "bug" not in ended.err


def test_the_command_line_takes_a_group_of_128(cpu: Ops, questbench: Callable[..., Any], tmp_path: Any) -> None:
    shape = ("--heads", 128, "--kv-heads", 1, "--head-dim", 64, "--seq-len", 512, "--budget", 128)
    quick = ("--rounds", 1, "--max-seconds", 1, "--compile-limit", 0, "--no-stages", "--method", "quest")
    ended = questbench("kernel", *shape, *quick, "--cache", "warm", "--out", tmp_path, "--json")
    assert ended.code == 0, ended.err
