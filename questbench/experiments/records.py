"""Records of a timed cell: what kernel and e2e say alike of a method beside dense and of the machine's bandwidth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from questbench.experiments.counting import ReadCounter
from questbench.experiments.grid import GridConfig
from questbench.measure import roofline, stats, timer
from questbench.methods._base import Method
from questbench.records.schema import Kind, ResultRecord

READ = "read"
"""The arm that reads memory and nothing else, in the rounds of all others."""


class CellRecords:
    """Turns the samples of one cell into records.

    Args:
        params: the inputs that identify a record, but for ``stage`` and ``baseline``.
        chosen: the methods by label; what else was timed is a baseline.
        backend: of the methods.
        timed: arms of the interleaved rounds, :data:`READ` among them; empty where time ran out before.
        probe_bytes: bytes that one step of :data:`READ` reads.
    """

    kind: Kind

    def __init__(
        self,
        config: GridConfig,
        params: Mapping[str, Any],
        chosen: Mapping[str, Method],
        backend: str,
        timed: Mapping[str, timer.Samples],
        probe_bytes: int,
    ) -> None:
        self.seed, self.params, self.chosen, self.backend, self.timed = config.seed, params, chosen, backend, timed
        self.bandwidth = [probe_bytes / seconds for seconds in timed[READ].seconds] if timed else []
        self.peak = stats.median(self.bandwidth) if timed else 0.0

    def record(self, name: str, metric: str, unit: str, value: float | None, **more: Any) -> ResultRecord:
        """A record of a method or of a baseline.

        Args:
            more: fields of the record; ``stage`` and ``baseline`` are inputs.
        """
        known: dict[str, Any] = {key: more.pop(key) for key in ("stage", "baseline") if key in more}
        method = self.chosen.get(name)
        return ResultRecord(
            run="",
            kind=self.kind,
            status=more.pop("status", "ok"),
            method=name if method is None else method.name,
            method_args=self.path(name) if method is None else method.arguments(self.params["page_size"]),
            backend=more.pop("backend", self.backend if method else self.brought_by(name)),
            params={**self.params, **known},
            metric=metric,
            unit=unit,
            value=value,
            seed=self.seed,
            **more,
        )

    def times(
        self, name: str, metric: str, samples: Sequence[float], about: Mapping[str, Any] | None = None, **more: Any
    ) -> ResultRecord:
        """The median of some samples in seconds, with ``about`` in its ``stats``."""
        summary = {**stats.summary(samples), **(about or {})}
        return self.record(name, metric, "s", stats.median(samples), samples=samples, stats=summary, **more)

    def path(self, name: str) -> dict[str, Any]:
        """Which way a baseline went, where there are several."""
        raise NotImplementedError

    def brought_by(self, name: str) -> str:
        """The backend of a baseline."""
        raise NotImplementedError

    def speedup(self, name: str, baseline: str, fallback: bool, ideal: float | None) -> ResultRecord:
        """Over our own dense, whose bytes allow no more than ``ideal``; or over a baseline, which they do not bind."""
        ratios = stats.paired_ratios(self.timed[baseline].seconds, self.timed[name].seconds)
        warnings = [] if ideal is None else roofline.above_ideal(ratios, ideal)
        if fallback:
            warnings.append(f"dense fallback: {name} attended the whole text, so this ratio is not a speed-up.")
        return self.record(
            name,
            "speedup",
            "x",
            None if fallback else stats.median(ratios),
            status="skipped" if fallback else "ok",
            reason="dense fallback: the whole text was attended" if fallback else None,
            samples=ratios,
            stats={**stats.summary(ratios), "dense_fallback": fallback},
            warnings=warnings,
            baseline=baseline,
        )

    def speedups(self, name: str, fallback: bool, ideal: float, baselines: Iterable[str]) -> list[ResultRecord]:
        """Of a method over dense, with what its bytes allow, and over other baselines."""
        over_dense = []
        if name != "dense":
            over_dense = [
                self.speedup(name, "dense", fallback, ideal),
                self.record(name, "ideal_speedup", "x", ideal, fidelity="modelled", baseline="dense"),
            ]
        return [*over_dense, *(self.speedup(name, baseline, fallback, None) for baseline in baselines)]

    def counts(self, name: str, counter: ReadCounter, first: int = 0) -> list[ResultRecord]:
        """Entries that a method saw, read and held, from step ``first`` on."""
        return [
            self.record(name, f"tokens_{metric}", "tokens", counter.mean(metric, first=first))
            for metric in ("visible", "read", "resident")
        ]

    def bandwidth_fraction(self, name: str, must_read: int, **more: Any) -> ResultRecord:
        """How much of the bandwidth that memory gave in the same rounds was reached.

        Args:
            more: for the record's ``stats``.
        """
        seconds = self.timed[name].seconds
        rates = {"bandwidth": self.peak, "achieved": stats.median([must_read / s for s in seconds]), **more}
        return self.fraction(name, must_read, seconds, self.bandwidth, stats=rates)

    def fraction(
        self, name: str, must_read: int, seconds: Sequence[float], rates: Sequence[float], **more: Any
    ) -> ResultRecord:
        """The share of ``rates`` in each round."""
        fractions = [must_read / own / rate for own, rate in zip(seconds, rates, strict=True)]
        return self.record(
            name,
            "bandwidth_fraction",
            "fraction",
            stats.median(fractions),
            samples=fractions,
            stats={**stats.summary(fractions), **more.pop("stats", {})},
            warnings=roofline.above_bandwidth(fractions),
            **more,
        )
