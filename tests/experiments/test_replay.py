"""A recorded decode step, replayed, is the step: what CUDA graphs need of the cache, the methods and the arms."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from replaying import record, through_the_dispatcher

from questbench import attention, kernels
from questbench.experiments.kernel.arms import Inputs, LayerShape, MethodArm, SharedPages
from questbench.experiments.kernel.baselines import PathArm
from questbench.experiments.kernel.clock import GraphArm, graph_steps
from questbench.methods._make import make

METHODS = {
    "dense": {},
    "quest": {},
    "quest-eval": {"variant": "eval"},
    "h2o": {},
    "tova": {},
    "streaming_llm": {},
    "streaming_llm-text": {"positions": "text"},
}
SHAPE = LayerShape(4, 2, 64, batch=3, seq_len=101, page_size=8, dtype=torch.bfloat16)


@pytest.fixture
def ops(monkeypatch):
    if reason := kernels.available()["cpu"]:
        pytest.skip(reason)
    torch.set_num_threads(1)
    through_the_dispatcher(monkeypatch)
    return kernels.load("cpu")


def arm(name, ops, inputs, shared=None):
    return MethodArm(make(name.partition("-")[0], 48, METHODS[name]), ops, inputs, 1, shared)


def state(layer):
    kept = [layer.lengths.clone()]
    used = int(layer.lengths[0])
    for row in range(layer.rows):
        pages = layer.page_table[row].long()
        kept += [x[pages].transpose(0, 1).flatten(1, 2)[:, :used].clone() for x in (layer.paged.k, layer.paged.v)]
    kept += [x[:, :, :used].clone() for x in (layer.positions, layer.mass) if x is not None]
    return kept


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("name", METHODS)
def test_replays_go_on_as_eager_steps_do(name, kv_heads, ops):
    """The same queries over a text that grows under the replays: outputs, entries, positions and mass."""
    inputs = Inputs(dataclasses.replace(SHAPE, kv_heads=kv_heads), 0)
    recorded, eager = arm(name, ops, inputs), arm(name, ops, inputs)
    grown = 30
    for each in (recorded, eager):  # grown once, so that no page is allocated later; cut back where that can be
        for index in range(grown):
            each.decode(each.layers[0], index)
        each.setup()
    outputs = []
    replay = record(lambda: outputs.append(recorded.decode(recorded.layers[0], 5)))
    want = [eager.decode(eager.layers[0], 5)]
    assert torch.equal(outputs[0], want[0])
    for _ in range(10):
        replay()
        want = eager.decode(eager.layers[0], 5)
        assert torch.equal(outputs[0], want)
        for a, b in zip(state(recorded.layers[0]), state(eager.layers[0]), strict=True):
            assert torch.equal(a, b)


def test_what_the_host_decides_in_a_step_is_found(ops):
    layer = arm("streaming_llm", ops, Inputs(SHAPE, 0)).layers[0]
    with pytest.raises(AssertionError, match="inside a recorded step"):
        record(lambda: int(layer.lengths[0]))
    with pytest.raises(AssertionError, match="inside a recorded step"):
        record(lambda: torch.tensor([1, 2]))


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("name", ["dense", "quest", "streaming_llm"])
def test_an_arm_over_shared_pages_attends_as_one_of_its_own(name, kv_heads, ops):
    """With multi-head attention too, where page bounds stand by channel."""
    inputs = Inputs(dataclasses.replace(SHAPE, kv_heads=kv_heads), 0)
    shared = SharedPages([make("dense", 0), make("quest", 48)], ops, inputs, copies=2, forks=2)
    one, other = arm(name, ops, inputs, shared), arm(name, ops, inputs)
    neighbour = arm("dense", ops, inputs, shared)
    assert one.copies == (1 if name == "streaming_llm" else 2)
    for index in range(40):
        for each in (one, other, neighbour):
            if index % 16 == 0:
                each.setup()
        got, want = one.decode(one.layers[0], index), other.decode(other.layers[0], index)
        neighbour.decode(neighbour.layers[0], index + 7)
        assert torch.equal(got, want)


@pytest.mark.parametrize("warm", [False, True])
def test_a_graph_arm_times_the_steps_it_says_from_the_same_start(warm, ops):
    inputs = Inputs(SHAPE, 0)
    inner = arm("quest", ops, inputs, SharedPages([make("quest", 48)], ops, inputs, copies=2, forks=1))
    log = []

    def recording(work):
        lengths = [layer.lengths.clone() for layer in inner.layers]
        replay = record(work)
        for layer, before in zip(inner.layers, lengths, strict=True):
            layer.lengths.copy_(before)  # a capture would not have run it

        def logged():
            log.append([int(layer.lengths[0]) for layer in inner.layers])
            replay()

        return logged

    graph = GraphArm(inner, 7, recording, None if warm else lambda: log.append("flush"))
    for _ in range(3):
        graph.setup()
        graph.step(0)
        assert [int(layer.lengths[0]) for layer in inner.layers] == [100 + 4, 100 + 3]
        assert [layer.held[0] for layer in inner.layers] == [100, 100]
    assert log == ([[100, 100]] * 6 if warm else ["flush", [100, 100]] * 3)


def test_a_graph_holds_enough_steps_for_a_millisecond_and_no_more_than_the_arms_can_grow():
    assert graph_steps(traffic=1 << 20, bandwidth=4e12) == 64
    assert graph_steps(traffic=540_000_000, bandwidth=4e12) == 7
    assert graph_steps(traffic=1 << 36, bandwidth=4e12) == 1


def test_a_path_arm_uses_the_copy_and_the_query_of_its_index(ops):
    inputs = Inputs(SHAPE, 0)
    dense = arm("dense", ops, inputs, SharedPages([make("dense", 0)], ops, inputs, copies=3, forks=1))
    calls = []
    runs = [lambda q, k, v, out, copy=copy: calls.append((copy, q, k)) for copy in range(3)]
    paths = PathArm(runs, dense.layers, inputs)
    for index in range(5):
        paths.step(index)
    assert [copy for copy, _, _ in calls] == [0, 1, 2, 0, 1]
    for index, (copy, q, k) in enumerate(calls):
        assert q is not None and torch.equal(q, inputs.q[index]) and k is dense.layers[copy].paged.k


def test_scoring_is_part_of_a_recorded_step(ops):
    """Sinks and softcap are tensors and constants of the model: nothing of the host's."""
    inputs = Inputs(SHAPE, 0)
    layer = arm("quest", ops, inputs).layers[0]
    scoring = attention.Scoring(0.125, softcap=5.0, sinks=torch.ones(4))
    outputs = []
    layer.append(inputs.k[0], inputs.v[0])
    replay = record(lambda: outputs.append(attention.decode(layer, inputs.q[0], scoring)))
    before = outputs[0].clone()
    outputs[0].zero_()
    replay()
    assert torch.equal(outputs[0], before)
