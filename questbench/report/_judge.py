"""Better, worse or neither, in one cell: the code is judged, not the machine.

A machine that is slower on one of two days stretches our times and everybody else's. Two controls tell: somebody
else's code (torch, FlashInfer), which was timed in the same rounds, and a plain read of memory. A time of ours is
better or worse only where its ratio, divided by that of each control, says so.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from questbench.records.schema import ResultRecord
from questbench.report import _format as fmt
from questbench.report.frame import DENSE, is_baseline

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 1000
HEADLINES = ("latency", "tpot")
"""Times whose paired ratios to baselines are recorded as ``speedup``."""
READ = "plain read"
CONTROL = "control"
"""Metric of a time of torch's that stands in the records for comparisons alone."""


@dataclasses.dataclass(frozen=True)
class Change:
    """Candidate against baseline in one cell and metric."""

    before: ResultRecord
    after: ResultRecord
    ratio: float | None
    interval: tuple[float, float] | None
    """95 % interval of the ratio, or of the difference for scores."""
    verdict: str
    """``better``, ``worse``, ``not significant``, ``no samples``, or what went wrong."""
    regression: bool
    corrected: float | None = None
    """The ratio beside the control that leaves least of it."""
    corrected_interval: tuple[float, float] | None = None
    control: str = ""
    """Name of that control."""


class Controls:
    """What the machine did to code that is not ours, set-up by set-up.

    Args:
        baseline: all records of the baseline.
        candidate: all records of the candidate.
        left_out: inputs that may differ between the two.
        same_libraries: somebody else's code is the same on both sides.
    """

    def __init__(
        self,
        baseline: Iterable[ResultRecord],
        candidate: Iterable[ResultRecord],
        left_out: Sequence[str] = (),
        *,
        same_libraries: bool = True,
    ) -> None:
        self.left_out, self.same_libraries = left_out, same_libraries
        self.sides = self._index(baseline), self._index(candidate)

    def corrected(self, before: ResultRecord, after: ResultRecord) -> dict[str, tuple[float, tuple[float, float]]]:
        """By control: the ratio of two times divided by what the control did, with its 95 % interval."""
        found: dict[str, tuple[float, tuple[float, float]]] = {}
        if self.same_libraries:
            found |= self._paired(before, after) or self._apart(before, after)
        block = self._block(after)
        rates = [side.get((block, READ)) for side in self.sides]
        if rates[0] and rates[1] and before.value and after.value is not None:
            # A slower read means that times grow.
            share = rates[1][0].stats["bandwidth"] / rates[0][0].stats["bandwidth"]
            low, high = ratio(before.samples, after.samples)
            found[READ] = after.value / before.value * share, (low * share, high * share)
        return found

    def _paired(self, before: ResultRecord, after: ResultRecord) -> dict[str, tuple[float, tuple[float, float]]]:
        """By the ratios of paired rounds, in which load that comes and goes cancels."""
        found = {}
        if after.metric not in HEADLINES:
            return {}
        block = self._block(after)
        for (place, name), others in self.sides[1].items():
            method, _, baseline = name.partition(" over ")
            earlier = self.sides[0].get((place, name))
            if place != block or method != after.method or not baseline or not earlier:
                continue
            one, two = _same_arguments(earlier, before), _same_arguments(others, after)
            if one and two and one.value and two.value:
                found[baseline] = one.value / two.value, ratio(two.samples, one.samples)
        return found

    def _apart(self, before: ResultRecord, after: ResultRecord) -> dict[str, tuple[float, tuple[float, float]]]:
        """By the times of other code in the same set-up."""
        found = {}
        block = self._block(after)
        for (place, name), others in self.sides[1].items():
            earlier = self.sides[0].get((place, name))
            if place != block or not name.startswith("time ") or not earlier or after.metric not in HEADLINES:
                continue
            one, two = earlier[0], others[0]
            if one.value and two.value and before.value and after.value:
                moved = two.value / one.value
                low, high = ratio(before.samples, after.samples)
                least, most = ratio(one.samples, two.samples)
                found[name.removeprefix("time ")] = after.value / before.value / moved, (low / most, high / least)
        return found

    def _block(self, record: ResultRecord) -> str:
        dropped = {"stage", "baseline", *self.left_out}
        params = {name: value for name, value in record.params.items() if name not in dropped}
        return json.dumps([record.kind, params, record.seed], sort_keys=True, default=str)

    def _index(self, records: Iterable[ResultRecord]) -> dict[tuple[str, str], list[ResultRecord]]:
        found: dict[tuple[str, str], list[ResultRecord]] = {}
        for record in records:
            if name := _control(record):
                found.setdefault((self._block(record), name), []).append(record)
        return found


def _control(record: ResultRecord) -> str:
    """What a record tells of code that is not ours, or nothing."""
    if record.status != "ok" or not record.value:
        return ""
    if record.metric == "bandwidth_fraction":
        rate = record.stats.get("bandwidth")
        return READ if isinstance(rate, (int, float)) and rate > 0 else ""
    if len(record.samples) < 2:
        return ""
    if record.metric == CONTROL:
        return "time torch"
    if record.metric == "speedup":
        baseline = record.params.get("baseline", DENSE)
        apart = record.stats.get("paired") is False
        return "" if baseline == DENSE or apart else f"{record.method} over {baseline}"
    timed = record.metric in HEADLINES and record.params.get("stage") in (None, "total")
    return f"time {record.method}" if timed and foreign(record) else ""


def _same_arguments(records: Sequence[ResultRecord], like: ResultRecord) -> ResultRecord | None:
    return next((record for record in records if record.method_args == like.method_args), None)


def foreign(record: ResultRecord) -> bool:
    """Whether a record times code that is not ours."""
    return record.method != DENSE and (is_baseline(record.method, record.backend) or is_baseline(record.backend))


def judge(before: ResultRecord, after: ResultRecord, controls: Controls, threshold: float) -> Change:
    """The verdict on one judged value."""
    if foreign(after):
        moved = after.value / before.value if before.value and after.value is not None else None
        return Change(before, after, moved, None, "control: not judged", False)
    if before.status != "ok" or before.value is None:
        return Change(before, after, None, None, f"baseline {before.status}", False)
    if after.status != "ok" or after.value is None:
        return Change(before, after, None, None, f"now {after.status}: {after.reason}", True)
    if _fallback(after) and not _fallback(before):
        return Change(before, after, None, None, fmt.FALLBACK, True)
    if _fallback(after) or _fallback(before):
        return Change(before, after, None, None, fmt.FALLBACK, False)
    change = after.value / before.value if before.value else None
    if after.stats.get("yardstick"):
        return Change(before, after, change, None, "yardstick: not judged", False)
    if len(before.samples) < 2 or len(after.samples) < 2:
        return Change(before, after, change, None, "no samples: not judged", False)
    if after.metric == "score":
        interval = _difference(before.samples, after.samples)
        verdict = "worse" if interval[1] < 0 else "better" if interval[0] > 0 else "not significant"
        return Change(before, after, change, interval, verdict, verdict == "worse")
    interval = ratio(before.samples, after.samples)
    verdict = _verdict(change, interval, threshold)
    if after.unit != "s":
        return Change(before, after, change, interval, verdict, verdict == "worse")
    beside = controls.corrected(before, after)
    if not beside:
        known = verdict if verdict == "not significant" else f"{verdict}, but no control: not judged"
        return Change(before, after, change, interval, known, False)
    verdicts = {_verdict(*found, threshold) for found in beside.values()}
    name = min(beside, key=lambda key: abs(math.log(max(beside[key][0], 1e-9))))
    agreed = verdicts.pop() if len(verdicts) == 1 else "not significant"
    if agreed == "not significant" != verdict:
        agreed = "the machine's: not significant"
    return Change(before, after, change, interval, agreed, agreed == "worse", *beside[name], name)


def _verdict(change: float | None, interval: tuple[float, float], threshold: float) -> str:
    if interval[0] <= 1 <= interval[1] or abs((change or math.inf) - 1) < threshold:
        return "not significant"
    return "worse" if interval[0] > 1 else "better"


def _fallback(record: ResultRecord) -> bool:
    return bool(record.stats.get("dense_fallback")) and not is_baseline(record.method, record.backend)


def _draws(samples: Sequence[float], generator: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float64]]:
    import numpy as np

    values = np.asarray(samples, dtype=float)
    return values[generator.integers(0, len(values), (RESAMPLES, len(values)))]


def ratio(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval of the ratio of medians."""
    import numpy as np

    generator = np.random.default_rng(0)
    below, above = (np.median(_draws(samples, generator), axis=1) for samples in (before, after))
    low, high = np.percentile(above / below, [2.5, 97.5])
    return float(low), float(high)


def _difference(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval of the difference of means; paired where both scored the same samples."""
    import numpy as np

    generator = np.random.default_rng(0)
    if len(before) == len(after):
        means = _draws([b - a for a, b in zip(before, after, strict=True)], generator).mean(axis=1)
    else:
        means = _draws(after, generator).mean(axis=1) - _draws(before, generator).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
