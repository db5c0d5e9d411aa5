"""The captured loop with FlashInfer's dense attention: what is planned when, and the tokens of our own dense loop.

FlashInfer itself needs a GPU; here it is our side of its interface that is tested, against what its sources do.
"""

from __future__ import annotations

import functools

import pytest
import torch
from core_helpers import HEAD_DIM, sparse_methods
from fake_planned import Device
from tiny import prompts, tiny

from questbench.baselines import flashinfer
from questbench.baselines._loop import BaselineLoop
from questbench.baselines._steps import Heads
from questbench.errors import CellError, PrerequisiteError
from questbench.methods.dense import Dense
from questbench.models import hf
from questbench.models.graph_loop import FIRST, GraphLoop

LENGTHS, NEW, PAGE = [40, 33, 17], 21, 8
PATHS = ("cuda-core", "tensor-core", "xqa")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    library = found.library()
    monkeypatch.setattr(flashinfer, "library", lambda: library)
    monkeypatch.setattr(flashinfer, "WORKSPACE_BYTES", 1 << 10)
    # Small heads of fp32: rounding to storage must not decide which of two tokens is the better.
    monkeypatch.setattr(flashinfer, "HEAD_DIMS", (HEAD_DIM,))
    monkeypatch.setattr(flashinfer, "DTYPES", (torch.float32,))
    flashinfer.workspace.cache_clear()
    return found


def prefilled(name: str, lengths: list[int], page_size: int = PAGE, **options):
    ids, mask = prompts(lengths)
    cache = hf.build_cache(tiny(name), Dense(), ops="cpu", page_size=page_size, dense_layers=0, **options)
    return cache, hf.prefill(tiny(name), ids, cache, mask=mask, chunk=16), mask


def loop_of(device: Device, name: str, path: str, lengths: list[int], steps: int = NEW, page_size: int = PAGE):
    cache, logits, mask = prefilled(name, lengths, page_size)
    make = functools.partial(flashinfer.make, path)
    loop = BaselineLoop(tiny(name), cache, steps=steps, make=make, record=device.record, mask=mask)
    return loop, logits.argmax(-1)


@pytest.mark.every_pair
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("page_size", [4, 8, 16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3"])
def test_tokens_are_those_of_our_own_dense_loop(device: Device, name: str, page_size: int, path: str) -> None:
    cache, logits, mask = prefilled(name, LENGTHS, page_size)
    ours = GraphLoop(tiny(name), cache, steps=NEW, record=lambda step: step, mask=mask)
    want = ours.generate(logits.argmax(-1), NEW)
    loop, first = loop_of(device, name, path, LENGTHS, page_size=page_size)
    assert loop.generate(first, NEW) == want
    assert loop.path == "flat" and device.calls.count(("replay",)) == NEW - 1 - FIRST


@pytest.mark.parametrize("path", PATHS[:2])
def test_windows_and_soft_caps(device: Device, path: str) -> None:
    cache, logits, mask = prefilled("gemma2", LENGTHS)
    ours = GraphLoop(tiny("gemma2"), cache, steps=NEW, record=lambda step: step, mask=mask)
    want = ours.generate(logits.argmax(-1), NEW)
    loop, first = loop_of(device, "gemma2", path, LENGTHS)
    assert loop.generate(first, NEW) == want


def test_xqa_has_no_soft_cap(device: Device) -> None:
    loop, first = loop_of(device, "gemma2", "xqa", LENGTHS)
    with pytest.raises(CellError, match="soft cap"):
        loop.generate(first, NEW)


def test_a_step_is_planned_where_a_row_opens_a_page_and_nowhere_else(device: Device) -> None:
    loop, first = loop_of(device, "llama", "tensor-core", LENGTHS)
    loop.generate(first, NEW)
    # One entry per step; the first replayed step stores entry number 43 of the first row.
    want, pages = [], None
    for step in range(FIRST, NEW - 1):
        now = [(length + step) // PAGE + 1 for length in LENGTHS]
        if now != pages:
            last = [(length + step) % PAGE + 1 for length in LENGTHS]
            want.append((step, [sum(now[:row]) for row in range(len(now) + 1)], last))
        pages = now
    done, planned, captured = FIRST, [], False
    for call in device.calls:
        captured |= call == ("capture",)
        if call[0] == "plan":
            planned.append((done, *call[2:]))
        done += call == ("replay",)
    # The trial before the capture attends to the entries that are there, on the same pages as the first replay.
    trial, later = planned[0], planned[1:]
    assert captured and trial[:2] == want[0][:2] and trial[2] == [last - 1 for last in want[0][2]]
    assert later == want[1:] and len(later) == 4
    assert device.calls.index(("capture",)) > next(n for n, call in enumerate(device.calls) if call[0] == "plan")


def test_xqa_is_never_planned(device: Device) -> None:
    loop, first = loop_of(device, "llama", "xqa", LENGTHS)
    loop.generate(first, NEW)
    assert {call[0] for call in device.calls} == {"capture", "replay"}


def test_layers_with_one_page_table_share_a_plan_and_others_have_their_own(device: Device) -> None:
    loop, first = loop_of(device, "llama", "cuda-core", [40])
    loop.generate(first, FIRST + 2)
    assert len(loop._leaders) == 1 and len(set(map(id, loop._of_layer.values()))) == 1
    cache, logits, _ = prefilled("llama", [40])
    # A fork that lives on takes other pages in some layers: their tables differ from then on.
    twin = hf.fork(cache, Dense(), dense_layers=0)
    for layer in twin.layers[:2]:
        layer.store._make_room(0, 20)
    make = functools.partial(flashinfer.make, "cuda-core")
    other = BaselineLoop(tiny("llama"), cache, steps=NEW, make=make, record=device.record)
    want, _ = loop_of(device, "llama", "cuda-core", [40])
    assert other.generate(logits.argmax(-1), NEW) == want.generate(first, NEW)
    assert sorted(other._leaders) == [0, 2]


@pytest.mark.parametrize("path", PATHS)
def test_going_back_plans_at_once_and_gives_the_same_tokens(device: Device, path: str) -> None:
    loop, first = loop_of(device, "llama", path, [40], steps=2 * NEW)
    loop.tokens.copy_(first)
    for _ in range(FIRST + 1):
        loop.step()
    mark = loop.mark()
    made = [loop.step().tolist() for _ in range(NEW)]
    del device.calls[:]
    assert loop.rewind(mark)
    assert [call[0] for call in device.calls] == ([] if path == "xqa" else ["plan"])
    assert [loop.step().tolist() for _ in range(NEW)] == made


def test_what_differs_from_our_attention_is_refused(device: Device) -> None:
    device.wrong.add("cuda-core")
    loop, first = loop_of(device, "llama", "cuda-core", LENGTHS)
    with pytest.raises(CellError, match="off by 50"):
        loop.generate(first, NEW)


def test_a_plan_that_a_graph_cannot_follow_is_refused(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, first = loop_of(device, "llama", "cuda-core", LENGTHS)
    loop.generate(first, FIRST + 2)
    (steps, _), *_ = loop._leaders.values()
    steps._frozen = [1, 2, 3]
    with pytest.raises(CellError, match="cannot follow"):
        loop.generate(loop.tokens, NEW - FIRST - 2)


def test_only_dense_caches_and_known_kernels() -> None:
    ids, mask = prompts([40])
    quest = sparse_methods(16)["quest"]
    cache = hf.build_cache(tiny("llama"), quest, ops="cpu", page_size=PAGE, dense_layers=1)
    hf.prefill(tiny("llama"), ids, cache, mask=mask)
    make = functools.partial(flashinfer.make, "cuda-core")
    with pytest.raises(PrerequisiteError, match="not dense"):
        BaselineLoop(tiny("llama"), cache, steps=4, make=make)
    heads = Heads(4, 2, 96, 16, torch.bfloat16, 0.1)
    with pytest.raises(CellError, match="no decode kernels"):
        flashinfer.make("cuda-core", torch.zeros((1, 1), dtype=torch.int32), heads)
    assert flashinfer.names(torch.device("cpu")) == PATHS
