"""The linear kernel: within its error budget of float64, alike for any threads and neighbours, nothing else written."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import DTYPES, generator

from questbench.kernels import _linear

SHAPES = [(1, 1), (7, 33), (100, 2048), (65, 130), (300, 96)]
"""(outputs, inputs): below and beyond one vector, with and without a rest."""


def case(rows: int, outputs: int, inputs: int, dtype: torch.dtype, seed: int = 0):
    source = generator(seed)
    x, weight = (torch.randn(n, inputs, generator=source).to(dtype) for n in (rows, outputs))
    return x, weight, torch.randn(outputs, generator=source).to(dtype)


def check(got: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Rounding once to the output's type, and fp32 sums: each of n products adds at most one rounding of the sum."""
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    magnitude = x.double().abs() @ weight.double().abs().T + (0 if bias is None else bias.double().abs())
    budget = torch.finfo(x.dtype).eps * exact.abs() + x.shape[1] * 2.0**-24 * magnitude + 1e-30
    assert ((got.double() - exact).abs() <= budget).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
def test_error_budget(dtype: torch.dtype, rows: int) -> None:
    for outputs, inputs in SHAPES:
        x, weight, bias = case(rows, outputs, inputs, dtype)
        check(_linear.linear(x, weight), x, weight, None)
        check(_linear.linear(x, weight, bias), x, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neither_threads_nor_neighbours_change_a_row(dtype: torch.dtype) -> None:
    x, weight, bias = case(7, 200, 1030, dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        whole = _linear.linear(x, weight, bias)
        torch.set_num_threads(1)
        assert torch.equal(whole, _linear.linear(x, weight, bias))
    finally:
        torch.set_num_threads(before)
    for row in range(7):
        assert torch.equal(_linear.linear(x[row : row + 1], weight, bias)[0], whole[row])


def test_only_the_given_columns_are_written() -> None:
    x, weight, _ = case(3, 20, 64, torch.float32)
    wide = torch.full((3, 50), 7.0)
    _linear.linear(x, weight, None, wide[:, 10:30])
    assert torch.equal(wide[:, 10:30], _linear.linear(x, weight))
    assert (wide[:, :10] == 7).all() and (wide[:, 30:] == 7).all()


def test_nan_and_infinity_show() -> None:
    x, weight, _ = case(1, 8, 40, torch.float32)
    weight[2, 39], weight[5, 0] = torch.nan, torch.inf
    got = _linear.linear(x, weight)[0]
    assert got[2].isnan() and got[5].isinf() and got[[0, 1, 3, 4, 6, 7]].isfinite().all()


def test_weights_anywhere_in_memory() -> None:
    # A slice of a larger tensor starts at any address, and what lies behind it must not be read.
    x, weight, _ = case(1, 9, 31, torch.bfloat16)
    store = torch.full((9 * 31 + 2,), torch.nan, dtype=torch.bfloat16)
    store[1:-1] = weight.flatten()
    check(_linear.linear(x, store[1:-1].view(9, 31)), x, weight, None)


def test_bad_input() -> None:
    x, weight, _ = case(2, 8, 40, torch.float32)
    for wrong in (x[:, :39], x.half(), x[0], x.T.contiguous().T):
        with pytest.raises(ValueError, match="does not fit"):
            _linear.linear(wrong, weight)
    with pytest.raises(ValueError, match="does not fit"):
        _linear.linear(x, weight, None, torch.empty(2, 9))
    assert _linear.fits(weight) and not _linear.fits(weight.T) and not _linear.fits(weight.double())
    assert not _linear.fits(weight, torch.zeros(8, dtype=torch.bfloat16))
