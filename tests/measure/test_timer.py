"""The interleaved timer against a clock of our own."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable

import pytest
from measure_fakes import FakeArm, FakeClock

from questbench.errors import UsageError
from questbench.measure import timer
from questbench.measure.stats import paired_ratios
from questbench.measure.stopping import Stop, StoppingRule

WARM_UPS = 4


class Bench:
    """Arms on one fake clock."""

    def __init__(self, **costs: float | Callable[[int], float]) -> None:
        self.clock, self.log = FakeClock(), []
        self.arms = {name: FakeArm(self.clock, cost, self.log, name) for name, cost in costs.items()}

    def run(self, **options: object) -> dict[str, timer.Samples]:
        return timer.interleave(self.arms, now=self.clock, **{"max_seconds": 1e9, **options})


def test_seconds_per_call_are_exact_and_setup_is_not_timed() -> None:
    timed = Bench(slow=0.25, fast=0.125).run(rounds_min=8, rounds_max=8)
    assert timed["slow"].seconds == [0.25] * 8
    assert timed["fast"].seconds == [0.125] * 8
    assert list(timed) == ["slow", "fast"]


def test_every_round_times_every_arm_once_in_changing_order() -> None:
    bench = Bench(a=0.5, b=0.5, c=0.5)
    bench.run(rounds_min=30, rounds_max=30)
    timed = bench.log[WARM_UPS * 3 :]
    rounds = [tuple(timed[start : start + 3]) for start in range(0, len(timed), 3)]
    assert len(rounds) == 30
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) == 6


def test_order_depends_on_the_seed_only() -> None:
    logs = []
    for seed in (1, 1, 2):
        bench = Bench(a=0.5, b=0.5)
        bench.run(rounds_min=20, rounds_max=20, shuffle_seed=seed)
        logs.append(bench.log)
    assert logs[0] == logs[1] != logs[2]


def test_short_calls_are_timed_several_at_a_time_with_new_indices() -> None:
    bench = Bench(short=30e-6, long=1e-3)
    timed = bench.run(rounds_min=10, rounds_max=10)
    assert timed["short"].calls == 7  # 7 x 30 us is the first to reach 200 us
    assert timed["long"].calls == 1
    assert timed["short"].seconds == pytest.approx([30e-6] * 10)
    indices = bench.arms["short"].indices
    assert indices == list(range(len(indices)))
    assert len(indices) == 3 + 7 + 10 * 7
    assert bench.arms["short"].setups == WARM_UPS + 10


def test_calls_are_capped_for_arms_that_grow_and_for_clocks_that_stand_still() -> None:
    assert Bench(a=1e-7).run(rounds_min=6, rounds_max=6)["a"].calls == timer.CALLS_MAX
    assert Bench(a=0.0).run(rounds_min=6, rounds_max=6, calls_max=16)["a"].calls == 16


def test_first_calls_are_dropped() -> None:
    timed = Bench(a=lambda index: 100.0 if index < 3 else 0.5).run(rounds_min=6, rounds_max=6)
    assert timed["a"].seconds == [0.5] * 6


def test_stops_when_every_arm_is_steady() -> None:
    timed = Bench(a=0.5, b=0.25).run(rounds_min=20, rounds_max=400)
    assert timed["a"].stopped == Stop.STEADY
    assert len(timed["a"].seconds) == len(timed["b"].seconds) == 20


def test_one_unsteady_arm_keeps_all_going() -> None:
    noise = random.Random(3)
    bench = Bench(steady=0.5, unsteady=lambda index: noise.uniform(0.9, 1.1))
    timed = bench.run(rounds_min=20, rounds_max=400, target_noise=0.02)
    assert timed["steady"].stopped == Stop.STEADY
    assert 20 < len(timed["steady"].seconds) < 400
    assert timed["unsteady"].noise < 0.02


@pytest.mark.parametrize(
    ("limits", "reason", "rounds"),
    [
        ({"rounds_max": 25}, Stop.ROUNDS, 25),
        ({"max_seconds": 20.0}, Stop.TIME, 10),  # a round takes 1 s of setting up and about 1 s of work
        ({"max_seconds": 0.0}, Stop.TIME, 1),
    ],
)
def test_limits(limits: dict[str, float], reason: Stop, rounds: int) -> None:
    bench = Bench(a=lambda index: 1.5 if index % 2 else 0.5)
    timed = bench.run(**{"rounds_min": 20, "target_noise": 0.0, **limits})
    assert timed["a"].stopped == reason
    assert len(timed["a"].seconds) == rounds


def test_stopping_rule_needs_all_arms_and_enough_rounds() -> None:
    rule = StoppingRule(rounds_min=10, rounds_max=100, target_noise=0.01, max_seconds=5.0)
    flat, wide = [1.0] * 10, [1.0, 2.0] * 5
    assert rule.decide([flat, flat], 9, 0.0) is None
    assert rule.decide([flat, flat], 10, 0.0) is Stop.STEADY
    assert rule.decide([flat, wide], 10, 0.0) is None
    assert rule.decide([flat, wide], 10, 5.0) is Stop.TIME
    assert rule.decide([flat, wide], 0, 5.0) is None
    assert rule.decide([flat, wide], 100, 5.0) is Stop.ROUNDS


def test_slow_rounds_cancel_in_paired_ratios() -> None:
    def disturbed(base: float) -> Callable[[int], float]:
        return lambda index: base * (3.0 if index % 3 == 0 else 1.0)

    timed = Bench(dense=disturbed(4.0), quest=disturbed(1.0)).run(rounds_min=21, rounds_max=21)
    ratios = paired_ratios(timed["dense"].seconds, timed["quest"].seconds)
    assert ratios == [4.0] * 21


def test_collection_is_off_while_timing_and_on_again_after() -> None:
    seen: list[bool] = []
    bench = Bench(a=lambda index: seen.append(gc.isenabled()) or 0.5)
    assert gc.isenabled()
    bench.run(rounds_min=6, rounds_max=6)
    assert not any(seen)
    assert gc.isenabled()


@pytest.mark.parametrize("enabled", [True, False])
def test_interrupt_passes_through_and_collection_is_as_before(enabled: bool) -> None:
    def interrupt(index: int) -> float:
        if index == 6:
            raise KeyboardInterrupt
        return 0.5

    if not enabled:
        gc.disable()
    try:
        with pytest.raises(KeyboardInterrupt):
            Bench(a=0.5, b=interrupt).run(rounds_min=20)
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_progress_is_told_now_and_then() -> None:
    told: list[str] = []
    Bench(a=0.5).run(rounds_min=8, rounds_max=8, on_progress=told.append)
    assert told[0] == "round 1"
    assert told[-1] == "round 8, medians known to 0.0%"
    quiet: list[str] = []
    # Setting up moves the fake clock; an interval longer than the run keeps silent.
    timer.PROGRESS_EVERY, before = 1e9, timer.PROGRESS_EVERY
    try:
        Bench(a=0.5).run(rounds_min=8, rounds_max=8, on_progress=quiet.append)
    finally:
        timer.PROGRESS_EVERY = before
    assert quiet == []


def test_nothing_to_time_and_no_range_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        timer.interleave({})
    assert caught.value.hint
    with pytest.raises(UsageError):
        Bench(a=0.5).run(rounds_min=10, rounds_max=5)
    with pytest.raises(UsageError):
        Bench(a=0.5).run(rounds_min=0, rounds_max=5)


def test_rounds_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UsageError):
        paired_ratios([1.0, 2.0], [1.0])
    with pytest.raises(UsageError):
        paired_ratios([], [])


def test_the_real_clock_moves_forward() -> None:
    class Idle:
        def setup(self) -> None: ...
        def step(self, index: int) -> None: ...

    timed = timer.interleave({"idle": Idle()}, rounds_min=6, rounds_max=6)
    assert all(seconds >= 0 for seconds in timed["idle"].seconds)


@pytest.mark.gpu
def test_cuda_events_time_the_work_and_not_the_launch() -> None:
    import torch

    data = torch.ones(64 << 20, device="cuda")
    watch = timer.CudaEvents("cuda")

    def step(index: int) -> None:
        data.mul_(1.0)

    watch.measure(step, 0, 3)
    assert watch.measure(step, 0, 10) > 3 * watch.measure(step, 0, 1) > 0
