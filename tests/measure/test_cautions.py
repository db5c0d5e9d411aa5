"""Every warning, raised when it should be and silent when it should not."""

from __future__ import annotations

import random

import pytest

from questbench.measure import cautions
from questbench.measure.cautions import Caution, warnings
from questbench.measure.stopping import Stop


def normal(n: int, spread: float = 0.01, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [1e-3 * rng.gauss(1.0, spread) for _ in range(n)]


def start(caution: Caution) -> str:
    return caution.value.split("{")[0]


def raised(found: list[str]) -> set[Caution]:
    return {caution for caution in Caution for text in found if text.startswith(start(caution))}


def test_sentences_can_be_told_apart_and_end() -> None:
    assert len({start(caution) for caution in Caution}) == len(Caution)
    assert all(caution.value.endswith(".") for caution in Caution)


@pytest.mark.parametrize("seed", range(20))
def test_plain_noise_raises_nothing(seed: int) -> None:
    assert warnings(normal(60, seed=seed), stopped=Stop.STEADY) == []


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (normal(10), Caution.TOO_FEW),
        (normal(60, spread=0.3), Caution.NOISY),
        (normal(30) + [1.05 * s for s in normal(30, seed=1)], Caution.DRIFT),
        ([s * (1.5 if i % 3 == 0 else 1.0) for i, s in enumerate(normal(60))], Caution.BIMODAL),
        ([s * (1.2 + i / 60 if i % 7 == 0 else 1.0) for i, s in enumerate(normal(60))], Caution.OUTLIERS),
    ],
)
def test_each_is_raised(seconds: list[float], expected: Caution) -> None:
    assert expected in raised(warnings(seconds))


def test_a_limit_is_reported_only_for_arms_that_missed_the_target() -> None:
    wide, narrow = normal(30, spread=0.1), normal(30, spread=0.001)
    assert raised(warnings(wide, stopped=Stop.TIME)) >= {Caution.UNSETTLED}
    assert any("limit on rounds" in text for text in warnings(wide, stopped=Stop.ROUNDS))
    assert Caution.UNSETTLED not in raised(warnings(narrow, stopped=Stop.TIME))
    assert Caution.UNSETTLED not in raised(warnings(wide, stopped=Stop.TIME, target=0.5))


def test_what_hardly_misses_the_target_does_not_read_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cautions, "relative_noise", lambda seconds: 0.0104)
    (told,) = (text for text in warnings(normal(30), stopped=Stop.TIME, target=0.01) if text.startswith("The median"))
    assert "known to 1.1% only, the target was 1.0%" in told


def test_numbers_stand_in_the_sentences() -> None:
    assert warnings(normal(10)) == [
        "Only 10 rounds were timed, fewer than 20: take the median as a rough estimate.",
    ]
    text = warnings([1e-3 * (1.5 if i % 3 == 0 else 1.0) for i in range(60)])[-1]
    assert "around 1.00 ms and 1.50 ms" in text


def test_drift_needs_disjoint_intervals() -> None:
    assert cautions.drift([1.0] * 10 + [1.1] * 10) == pytest.approx(0.1)
    assert cautions.drift([1.0] * 10 + [0.9] * 10) == pytest.approx(-0.1)
    assert cautions.drift([1.0, 1.1] * 10) == 0.0
    assert cautions.drift([1.0] * 3 + [1.1] * 3) == 0.0
    assert cautions.drift([1.0]) == 0.0


def test_modified_z_scores() -> None:
    # Median 3, MAD 1: scores of 0.6745 times the distance, so 8 scores 3.37 and 8.3 scores 3.57.
    assert cautions.outliers([1.0, 2.0, 3.0, 4.0, 8.0]) == []
    assert cautions.outliers([1.0, 2.0, 3.0, 4.0, 8.3]) == [4]
    # MAD 0: the mean absolute deviation, 0.1 here, stands in.
    assert cautions.outliers([1.0] * 9 + [2.0]) == [9]
    assert cautions.outliers([1.0] * 10) == []


def test_two_groups() -> None:
    assert cautions.two_groups([1.0, 2.0] * 10) == (1.0, 2.0)
    assert cautions.two_groups([1.0, 1.05] * 10) is None, "too close to matter"
    assert cautions.two_groups([1.0] * 19 + [2.0]) is None, "one outlier is no group"
    assert cautions.two_groups([1.0 + i / 20 for i in range(20)]) is None, "spread evenly"
    assert cautions.two_groups([1.0, 2.0]) is None
    assert cautions.two_groups([1.0] * 20) is None


def test_busy() -> None:
    assert cautions.busy(load=1.9, cores=2, others=0.05) is None
    assert "load 3.5 on 2 cores" in (cautions.busy(load=3.5, cores=2) or "")
    assert cautions.busy(load=1e9) is not None
    text = cautions.busy(load=1.2, cores=2, others=0.5) or ""
    assert "50%" in text and "load" not in text, "one core of two is taken although the load average is low"


def test_disturbed_while_timing() -> None:
    assert cautions.disturbed(None) is None and cautions.disturbed(0.05) is None
    assert "25%" in (cautions.disturbed(0.25) or "")


def test_a_probe_that_disagrees_with_itself() -> None:
    assert cautions.unsteady(normal(30), 10**8) is None
    text = cautions.unsteady([0.1, 0.2] * 10, 4 * 10**9) or ""
    assert Caution.UNSTEADY in raised([text]) and "20.0 GB/s and 40.0 GB/s" in text
