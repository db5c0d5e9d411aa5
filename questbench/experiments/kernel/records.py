"""Records of one cell of the kernel experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from questbench.experiments.kernel.baselines import TORCH, Baseline
from questbench.experiments.kernel.config import Cell, KernelConfig, params
from questbench.measure import bandwidth, roofline, stats, timer
from questbench.methods._base import Method
from questbench.records.schema import ResultRecord

READ = "read"
WAY = "way: "
"""Begins ``params.stage`` of one way of a baseline, before its name."""


@dataclass(frozen=True)
class Found:
    """What was measured in one cell, by method or baseline."""

    traffic: Mapping[str, int]
    """Bytes that a step must read."""
    timed: Mapping[str, timer.Samples]
    probe: bandwidth.ReadProbe
    counted: Mapping[str, Any]
    baselines: Mapping[str, Baseline]
    copies: Mapping[str, int]
    """Caches that an arm used in turn."""
    notes: Mapping[str, list[str]]
    """Warnings about how an arm was timed."""
    others: float | None
    """Share of the processor that other programs took meanwhile."""


class Records:
    """Turns the samples of one cell into records."""

    def __init__(
        self, config: KernelConfig, cell: Cell, chosen: Mapping[str, Method], backend: str, found: Found
    ) -> None:
        self.config, self.cell, self.chosen, self.backend = config, cell, chosen, backend
        self.traffic, self.copies, self.timed, self.counted = found.traffic, found.copies, found.timed, found.counted
        self.baselines, self.notes = found.baselines, found.notes
        self.bandwidth = [found.probe.bytes / seconds for seconds in found.timed[READ].seconds]
        self.probe = found.probe.probe
        self.controls = {"probe_bandwidth": stats.median(self.bandwidth), "others": found.others}
        """What a comparison of two runs holds against a time: it tells a slower machine from slower code."""
        if TORCH in found.timed:
            self.controls["torch"] = stats.median(found.timed[TORCH].seconds)

    def of_method(self, name: str, staged: Mapping[str, list[float]]) -> list[ResultRecord]:
        """Latency, stages, speed-ups, traffic and counts of one of our methods."""
        counted = self.counted[name]
        must_read = self.traffic[name]
        fallback = bool(counted.fallback)
        records = [self._latency(name, "total", self.timed[name].seconds, must_read, fallback)]
        records += [self._latency(name, stage, samples, None, fallback) for stage, samples in staged.items()]
        ideal = self.traffic["dense"] / must_read
        if name != "dense":
            records.append(self._speedup(name, "dense", fallback, ideal))
            records.append(self._record(name, "ideal_speedup", "x", ideal, fidelity="modelled", baseline="dense"))
        there = [baseline for baseline, found in self.baselines.items() if found.arm is not None]
        records += [self._speedup(name, baseline, fallback, None) for baseline in there]
        records.append(self._record(name, "bytes", "B", float(must_read), fidelity="modelled"))
        records.append(self._bandwidth_fraction(name, must_read))
        for metric in ("visible", "read", "resident"):
            counts = self._record(name, f"tokens_{metric}", "tokens", counted.mean(metric))
            records.append(counts)
        return records

    def of_baseline(self, name: str) -> list[ResultRecord]:
        """Latency and bandwidth of a baseline's fastest way, or why there is none."""
        found = self.baselines[name]
        if found.arm is None:
            return [
                self._record(name, "latency", "s", None, status="skipped", reason=found.reason, stage="total"),
                *self._ways(name),
            ]
        seconds = self.timed[name].seconds
        stats_of: dict[str, Any] = {**stats.summary(seconds), **self.controls, "path": found.path, "paths": found.paths}
        if found.reason:
            stats_of["left_out"] = found.reason
        latency = self._record(
            name,
            "latency",
            "s",
            stats.median(seconds),
            samples=seconds,
            stats=stats_of,
            warnings=[*self.notes[name], *stats.warnings(seconds, stopped=self.timed[name].stopped)],
            stage="total",
        )
        return [latency, self._bandwidth_fraction(name, self.traffic["dense"]), *self._ways(name)]

    def _ways(self, name: str) -> list[ResultRecord]:
        """Every way of a baseline as it was in the trial that chose among them, the fastest included."""
        found = self.baselines[name]
        records = [
            self._record(
                name,
                "latency",
                "s",
                stats.median(seconds),
                samples=seconds,
                stats={**stats.summary(seconds), "trial": True},
                stage=f"{WAY}{way}",
            )
            for way, seconds in found.trial.items()
        ]
        return records + [
            self._record(name, "latency", "s", None, status="skipped", reason=why, stage=f"{WAY}{way}")
            for way, why in found.left_out.items()
        ]

    def _latency(
        self, name: str, stage: str, seconds: list[float], must_read: int | None, fallback: bool
    ) -> ResultRecord:
        summary = {**stats.summary(seconds), "dense_fallback": fallback, "copies": self.copies[name]}
        warnings = []
        if must_read is not None:
            warnings = [*self.notes[name], *stats.warnings(seconds, stopped=self.timed[name].stopped)]
            summary |= self.controls
        return self._record(
            name, "latency", "s", stats.median(seconds), samples=seconds, stats=summary, warnings=warnings, stage=stage
        )

    def _speedup(self, name: str, baseline: str, fallback: bool, ideal: float | None) -> ResultRecord:
        ratios = [b / a for a, b in zip(self.timed[name].seconds, self.timed[baseline].seconds, strict=True)]
        value = stats.median(ratios)
        warnings = [] if ideal is None else roofline.above_ideal(ratios, ideal)
        if fallback:
            warnings.append(f"dense fallback: {name} attended the whole text, so this ratio is not a speed-up.")
        return self._record(
            name,
            "speedup",
            "x",
            None if fallback else value,
            status="skipped" if fallback else "ok",
            reason="dense fallback: the whole text was attended" if fallback else None,
            samples=ratios,
            stats={**stats.summary(ratios), "dense_fallback": fallback},
            warnings=warnings,
            baseline=baseline,
        )

    def _bandwidth_fraction(self, name: str, must_read: int) -> ResultRecord:
        seconds = self.timed[name].seconds
        fractions = [must_read / s / peak for s, peak in zip(seconds, self.bandwidth, strict=True)]
        value = stats.median(fractions)
        achieved = stats.median([must_read / s for s in seconds])
        rates = {"bandwidth": stats.median(self.bandwidth), "achieved": achieved, "probe": self.probe}
        summary = {**stats.summary(fractions), **rates}
        warnings = roofline.above_bandwidth(fractions)
        return self._record(
            name, "bandwidth_fraction", "fraction", value, samples=fractions, stats=summary, warnings=warnings
        )

    def _record(self, name: str, metric: str, unit: str, value: float | None, **more: Any) -> ResultRecord:
        known = {key: more.pop(key) for key in ("stage", "baseline") if key in more}
        method = self.chosen.get(name)
        return ResultRecord(
            run="",
            kind="kernel",
            status=more.pop("status", "ok"),
            method=name if method is None else method.name,
            method_args=self._path(name) if method is None else method.arguments(self.cell.page_size),
            backend=self.baselines[name].backend if method is None else self.backend,
            params=params(self.config, self.cell, **known),
            metric=metric,
            unit=unit,
            value=value,
            seed=self.config.seed,
            **more,
        )

    def _path(self, name: str) -> dict[str, Any]:
        """Which way a backend's baseline went; torch's has stood in its ``stats`` alone since the first records."""
        found = self.baselines[name]
        return {} if name == TORCH or not found.path else {"path": found.path}
