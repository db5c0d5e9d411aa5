"""A clock that only moves when an arm says so."""

from __future__ import annotations

from collections.abc import Callable


class FakeClock:
    """Seconds that pass when :meth:`advance` is called."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakeArm:
    """Takes ``cost(index)`` seconds per call and writes down what was done to it."""

    def __init__(self, clock: FakeClock, cost: float | Callable[[int], float], log: list[str], name: str) -> None:
        self.clock, self.log, self.name = clock, log, name
        self.cost = cost if callable(cost) else lambda index: cost
        self.indices: list[int] = []
        self.setups = 0

    def setup(self) -> None:
        self.setups += 1
        self.log.append(self.name)
        self.clock.advance(1.0)  # setting up is slow, and none of it may show

    def step(self, index: int) -> None:
        self.indices.append(index)
        self.clock.advance(self.cost(index))
