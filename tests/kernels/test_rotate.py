"""Queries turned by a number of positions: within the error budget of float64, the rest of a head left alone."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import DTYPES, generator

from questbench.kernels._rotate import rotate
from questbench.models._rotation import by_difference, relative

FP32 = 2.0**-24
DELTAS = [0, 1, -1, 70, -32000, 131071]


def frequencies(pairs: int) -> torch.Tensor:
    return 1e4 ** -(torch.arange(pairs) / max(pairs, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("dim", "pairs"), [(128, 64), (64, 32), (80, 40), (96, 20), (40, 20), (6, 1), (8, 0)])
def test_error_budget(dtype: torch.dtype, dim: int, pairs: int) -> None:
    x = torch.randn(len(DELTAS), 3, dim, generator=generator(dim)).to(dtype)
    delta, frequency = torch.tensor(DELTAS, dtype=torch.int32), frequencies(pairs)
    got = rotate(x, delta, frequency)
    assert torch.equal(got[..., 2 * pairs :], x[..., 2 * pairs :])
    angle = delta.double()[:, None, None] * frequency.double()
    first, second = x[..., :pairs].double(), x[..., pairs : 2 * pairs].double()
    exact = torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)
    size = (first.abs() + second.abs()).repeat(1, 1, 2)
    # The angle is rounded once, as in a model; cosine, sine and three operations behind it are off by little.
    error = size * (angle.abs().repeat(1, 1, 2) + 5) * FP32
    budget = error + torch.finfo(dtype).eps / 2 * (exact.abs() + error) + torch.finfo(dtype).tiny
    assert ((got[..., : 2 * pairs].double() - exact).abs() <= budget).all()
    assert torch.equal(got[0], x[0]), "nothing is turned by no position"


@pytest.mark.parametrize("pairs", [64, 20])
def test_torch_and_the_kernel_agree(pairs: int) -> None:
    x = torch.randn(2, 4, 128, generator=generator(0))
    delta = torch.tensor([-30, 1000])
    ways = [by_difference(frequencies(pairs), compiled)(x, delta) for compiled in (False, True)]
    torch.testing.assert_close(*ways, rtol=0, atol=1e-5)


def test_strided_queries_are_taken() -> None:
    x = torch.randn(2, 128, 4, generator=generator(0)).to(torch.bfloat16).transpose(1, 2)
    turned = relative(1e4, 128, compiled=True)(x, torch.tensor([3, -9]))
    assert torch.equal(turned, relative(1e4, 128, compiled=True)(x.contiguous(), torch.tensor([3, -9])))


def test_bad_input() -> None:
    x, delta = torch.zeros(2, 3, 64), torch.zeros(2, dtype=torch.int32)
    for wrong in ((x, delta[:1], frequencies(32)), (x, delta, frequencies(33)), (x[0], delta, frequencies(32))):
        with pytest.raises(ValueError, match="rotate"):
            rotate(*wrong)
    with pytest.raises(TypeError, match="delta"):
        rotate(x, delta.long(), frequencies(32))
    with pytest.raises(ValueError, match="float64"):
        rotate(x.double(), delta, frequencies(32))
