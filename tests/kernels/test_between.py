"""The compiled steps between two calls of attention: each part within its error budget of float64, and the whole."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_cases import DTYPES, generator
from torch import Tensor

from questbench.kernels import _linear
from questbench.kernels._between import Gate, Scale, Weights, enter, leave

FP32 = 2.0**-24
"""Half a unit in the last place of fp32: what one of its operations is off by at most, relative to its result."""
TANH = 2 * math.sqrt(2 / math.pi)
GATES = {"silu": Gate(1.0, 0.0), "gelu_tanh": Gate(TANH, 0.044715 * TANH)}
WIDTHS = [1, 7, 33, 96, 130]
ROWS = [1, 3, 8]


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed)).to(dtype)


def unit(width: int, dtype: torch.dtype) -> Weights:
    """A layer that changes nothing: its sums have one product that is not zero."""
    return torch.eye(width, dtype=dtype), None


def scale_of(width: int, seed: int) -> Scale:
    return Scale(torch.rand(width, generator=generator(seed)) + 0.5, 1e-6)


def normalised(x: Tensor, norm: Scale | None) -> Tensor:
    if norm is None:
        return x.double()
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + norm.epsilon).sqrt() * norm.scale.double()


def norm_error(width: int) -> float:
    """Of a sum of ``width`` squares, a root, a division and two products, relative to the result."""
    return (width / 2 + 6) * FP32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_norms(dtype: torch.dtype, width: int) -> None:
    for rows in ROWS:
        x, norm, out = randn(rows, width, dtype=dtype), scale_of(width, 1), torch.empty(rows, width, dtype=dtype)
        x[0] *= 1e-3  # where epsilon counts
        enter(x, norm, [unit(width, dtype)], out)(None, None)
        exact = normalised(x, norm)
        budget = (torch.finfo(dtype).eps / 2 + norm_error(width) + FP32) * exact.abs() * 1.01 + torch.finfo(dtype).tiny
        assert ((out.double() - exact).abs() <= budget).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layers_that_share_an_input_are_layers(dtype: torch.dtype) -> None:
    for rows, inputs, outputs in ((1, 640, (100, 36, 7)), (3, 33, (5, 1)), (8, 130, (64,)), (2, 96, (300, 20, 20))):
        x = randn(rows, inputs, dtype=dtype)
        layers = [(randn(n, inputs, dtype=dtype, seed=n), randn(n, dtype=dtype) if n != 36 else None) for n in outputs]
        out = torch.empty(rows, sum(outputs), dtype=dtype)
        enter(x, None, layers, out)(None, None)
        assert torch.equal(out, torch.cat([_linear.linear(x, *layer) for layer in layers], dim=1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "turned"), [(16, 16), (64, 64), (80, 80), (40, 20), (128, 64), (6, 2)])
@pytest.mark.parametrize("normed", [False, True])
def test_heads_are_normalised_and_turned(dtype: torch.dtype, head_dim: int, turned: int, normed: bool) -> None:
    heads, kv_heads = 3, 1
    width, eps = (heads + 2 * kv_heads) * head_dim, torch.finfo(dtype).eps
    for rows, angles in ((1, 1), (3, 3), (3, 1)):
        x, out = randn(rows, width, dtype=dtype), torch.empty(rows, width, dtype=dtype)
        norms = (scale_of(head_dim, 1), scale_of(head_dim, 2)) if normed else (None, None)
        angle = torch.rand(angles, 1, turned, generator=generator(3)) * 6
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        step = enter(
            x,
            None,
            [unit(width, dtype)],
            out,
            head_dim=head_dim,
            kv_heads=kv_heads,
            q_norm=norms[0],
            k_norm=norms[1],
        )
        step(cos, sin)
        parts, got = x.view(rows, -1, head_dim), out.view(rows, -1, head_dim).double()
        assert torch.equal(got[:, -kv_heads:], parts[:, -kv_heads:].double()), "values are left alone"
        queries, keys = parts[:, :heads], parts[:, heads:-kv_heads]
        own = torch.cat([normalised(queries, norms[0]), normalised(keys, norms[1])], dim=1)
        head, rest = own[..., :turned], own[..., turned:]
        beside = torch.cat([-head[..., turned // 2 :], head[..., : turned // 2]], dim=-1)
        exact = torch.cat([head * cos.double() + beside * sin.double(), rest], dim=-1)
        size = torch.cat([(head * cos.double()).abs() + (beside * sin.double()).abs(), rest.abs()], dim=-1)
        error = (norm_error(head_dim) + eps / 2) * size if normed else 0
        budget = 1.02 * (error + 3 * FP32 * size + eps / 2 * exact.abs()) + eps * error + 4 * torch.finfo(dtype).tiny
        assert ((got[:, :-kv_heads] - exact).abs() <= budget).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", GATES)
def test_activations(dtype: torch.dtype, kind: str) -> None:
    """``hidden + act(hidden) hidden`` with layers that change nothing."""
    gate, eps = GATES[kind], torch.finfo(dtype).eps
    for width in (1, 15, 16, 100):
        start = torch.linspace(-12, 12, 3 * width).view(3, width).to(dtype)
        hidden, layer = start.clone(), unit(width, dtype)
        nothing = torch.zeros(width, width, dtype=dtype), None
        leave(hidden, nothing, None, None, layer, layer, gate, layer, None)(torch.zeros(3, width, dtype=dtype))
        x = start.double()
        power = gate.linear * x + gate.cubic * x**3
        made = x * torch.sigmoid(power) * x
        # exp is off by what its argument is: four operations on powers of up to |power|.
        error = (8 + 4 * power.abs()) * FP32 * made.abs()
        budget = 1.02 * (error + eps / 2 * made.abs() + eps / 2 * (x + made).abs()) + FP32 + torch.finfo(dtype).tiny
        assert ((hidden.double() - (x + made)).abs() <= budget).all()


def test_extremes_of_activations() -> None:
    odd = [0.0, -0.0, 1e4, -1e4, 1e30, -1e30, torch.inf, torch.nan]
    for kind, gate in GATES.items():
        hidden, layer = torch.tensor([odd]), unit(1, torch.float32)
        for place, value in enumerate(odd):
            own = torch.tensor([[value]])
            leave(own, (torch.zeros(1, 1), None), None, None, layer, layer, gate, layer, None)(torch.zeros(1, 1))
            hidden[0, place] = own
        x = torch.tensor(odd)
        act = torch.nn.functional.silu(x) if kind == "silu" else torch.nn.functional.gelu(x, approximate="tanh")
        torch.testing.assert_close(hidden[0], x + act * x, equal_nan=True)


def block(dtype: torch.dtype, rows: int, attended: int, width: int, inner: int) -> dict[str, Weights]:
    sizes = {"out": (width, attended), "gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    made = {}
    for seed, (name, (outputs, inputs)) in enumerate(sizes.items()):
        weight = randn(outputs, inputs, dtype=torch.float32, seed=seed) / inputs**0.5
        made[name] = weight.to(dtype), randn(outputs, dtype=dtype, seed=seed + 9) if name in ("out", "up") else None
    return made


def by_parts(x: Tensor, attended: Tensor, parts: dict[str, Weights], norms: list[Scale | None], gate: Gate) -> Tensor:
    """The whole in float64, without rounding."""

    def linear(name: str, value: Tensor) -> Tensor:
        weight, bias = parts[name]
        return value @ weight.double().T + (0 if bias is None else bias.double())

    hidden = x.double() + normalised(linear("out", attended.double()), norms[0])
    read = normalised(hidden, norms[1])
    first = linear("gate", read)
    mixed = first * torch.sigmoid(gate.linear * first + gate.cubic * first**3) * linear("up", read)
    return hidden + normalised(linear("down", mixed), norms[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sandwiched", [False, True])
def test_the_whole_way_out(dtype: torch.dtype, sandwiched: bool) -> None:
    for rows, sizes in ((1, (64, 48, 200)), (3, (33, 31, 77)), (8, (16, 640, 130))):
        parts = block(dtype, rows, *sizes)
        x, attended = randn(rows, sizes[1], dtype=dtype, seed=5), randn(rows, sizes[0], dtype=dtype, seed=6)
        norms = [scale_of(sizes[1], seed) if sandwiched or seed == 1 else None for seed in range(3)]
        hidden = x.clone()
        leave(
            hidden,
            parts["out"],
            norms[0],
            norms[1],
            parts["gate"],
            parts["up"],
            GATES["silu"],
            parts["down"],
            norms[2],
        )(attended)
        exact = by_parts(x, attended, parts, norms, GATES["silu"])
        # Ten roundings on the way, each passed on by at most the size of what is added, and fp32 sums behind them.
        off = (hidden.double() - exact).norm() / exact.norm()
        assert off <= 10 * torch.finfo(dtype).eps / 2 + 200 * FP32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neither_threads_nor_neighbours_change_a_row(dtype: torch.dtype) -> None:
    rows, width, heads, dim = 5, 200, 6, 64
    x, weight = randn(rows, width, dtype=dtype), randn(heads * dim, width, dtype=dtype, seed=1)
    attended, parts = randn(rows, 100, dtype=dtype, seed=2), block(dtype, rows, 100, width, 700)
    norm, angle = scale_of(width, 3), torch.rand(rows, 1, dim, generator=generator(4))
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)

    def run(chosen: slice) -> tuple[Tensor, Tensor]:
        hidden = x[chosen].clone()
        out = torch.empty(hidden.shape[0], heads * dim, dtype=dtype)
        enter(hidden, norm, [(weight, None)], out, head_dim=dim, kv_heads=1)(cos[chosen], sin[chosen])
        names = [parts[name] for name in ("gate", "up")]
        leave(hidden, parts["out"], None, norm, *names, GATES["gelu_tanh"], parts["down"], norm)(attended[chosen])
        return out, hidden

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        whole = run(slice(None))
        torch.set_num_threads(1)
        assert all(map(torch.equal, whole, run(slice(None))))
    finally:
        torch.set_num_threads(before)
    for row in range(rows):
        assert all(torch.equal(a[row], b[0]) for a, b in zip(whole, run(slice(row, row + 1)), strict=True))


def test_bad_input() -> None:
    x, layer, out = torch.zeros(2, 32), unit(32, torch.float32), torch.empty(2, 32)
    with pytest.raises(ValueError, match="1 to 3"):
        enter(x, None, [], out)
    with pytest.raises(ValueError, match="room for 32"):
        enter(x, None, [layer, layer], out)
    with pytest.raises(TypeError, match="first"):
        enter(x, None, [unit(32, torch.bfloat16)], out)
    with pytest.raises(ValueError, match="scale"):
        enter(x, scale_of(31, 0), [layer], out)
    with pytest.raises(ValueError, match="heads of this size"):
        enter(x, None, [layer], out, head_dim=16, kv_heads=1)
    with pytest.raises(ValueError, match="another width"):
        enter(x, None, [layer], out, head_dim=8, kv_heads=1, q_norm=scale_of(16, 0))
    step = enter(x, None, [layer], out, head_dim=8, kv_heads=1)
    with pytest.raises(ValueError, match="without angles"):
        step(None, None)
    for cos in (torch.zeros(3, 1, 8), torch.zeros(2, 1, 10), torch.zeros(2, 1, 3)):
        with pytest.raises(ValueError, match="do not fit the heads"):
            step(cos, cos)
    with pytest.raises(ValueError, match="do not fit the heads"):
        step(torch.zeros(2, 1, 8, dtype=torch.float16), torch.zeros(2, 1, 8, dtype=torch.float16))
    end = leave(x, layer, None, None, layer, layer, GATES["silu"], layer, None)
    for attended in (torch.zeros(3, 32), torch.zeros(2, 31), torch.zeros(2, 32, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="does not fit"):
            end(attended)
    with pytest.raises(ValueError, match="up"):
        leave(x, layer, None, None, layer, (torch.eye(31, 32), None), GATES["silu"], layer, None)
