"""What makes runs of the experiments short: a small shape, and a probe of the bandwidth that reads little."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from questbench.measure import bandwidth
from questbench.models.shapes import SHAPES, Shape


@pytest.fixture(autouse=True, scope="module")
def brief() -> Iterator[None]:
    """``shape:small`` has the heads of a real model. What the probe finds is true in ``tests/measure`` alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "small", Shape("llama", 3, 288, 512, 9, 3, 64, 512, 1e5, 8192, True))
        patch.setattr(bandwidth, "CACHES", 0)
        patch.setitem(bandwidth.BYTES_LEAST, "cpu", 1 << 20)
        yield
