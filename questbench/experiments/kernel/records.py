"""Records of one cell of the kernel experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from questbench.baselines._base import Fastest
from questbench.experiments.kernel.config import Cell, KernelConfig, params
from questbench.experiments.records import CellRecords
from questbench.measure import bandwidth, stats, timer
from questbench.methods._base import Method
from questbench.records.schema import ResultRecord

TORCH = "torch"
"""The baseline whose time stands beside every other one: it tells a slower machine from slower code."""
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
    baselines: Mapping[str, Fastest]
    copies: Mapping[str, int]
    """Caches that an arm used in turn."""
    notes: Mapping[str, list[str]]
    """Warnings about how an arm was timed."""
    others: float | None
    """Share of the processor that other programs took meanwhile."""


class Records(CellRecords):
    """Turns the samples of one cell into records."""

    kind = "kernel"

    def __init__(
        self, config: KernelConfig, cell: Cell, chosen: Mapping[str, Method], backend: str, found: Found
    ) -> None:
        super().__init__(config, params(config, cell), chosen, backend, found.timed, found.probe.bytes)
        self.found = found
        self.controls = {"probe_bandwidth": self.peak, "others": found.others}
        """What a comparison of two runs holds against a time."""
        if TORCH in found.timed:
            self.controls["torch"] = stats.median(found.timed[TORCH].seconds)

    def of_method(self, name: str, staged: Mapping[str, list[float]]) -> list[ResultRecord]:
        """Latency, stages, speed-ups, traffic and counts of one of our methods."""
        counted = self.found.counted[name]
        must_read = self.found.traffic[name]
        fallback = bool(counted.fallback)
        records = [self._latency(name, "total", self.timed[name].seconds, must_read, fallback)]
        records += [self._latency(name, stage, samples, None, fallback) for stage, samples in staged.items()]
        there = [baseline for baseline, found in self.found.baselines.items() if found.arm is not None]
        records += self.speedups(name, fallback, self.found.traffic["dense"] / must_read, there)
        records.append(self.record(name, "bytes", "B", float(must_read), fidelity="modelled"))
        records.append(self.bandwidth_fraction(name, must_read, probe=self.found.probe.probe))
        return records + self.counts(name, counted)

    def of_baseline(self, name: str) -> list[ResultRecord]:
        """Latency and bandwidth of a baseline's fastest way, or why there is none."""
        found = self.found.baselines[name]
        if found.arm is None:
            return [
                self.record(name, "latency", "s", None, status="skipped", reason=found.reason, stage="total"),
                *self._ways(name),
            ]
        seconds = self.timed[name].seconds
        about: dict[str, Any] = {**self.controls, "path": found.path, "paths": found.paths}
        if found.reason:
            about["left_out"] = found.reason
        latency = self.times(name, "latency", seconds, about, warnings=self._warnings(name), stage="total")
        return [
            latency,
            self.bandwidth_fraction(name, self.found.traffic["dense"], probe=self.found.probe.probe),
            *self._ways(name),
        ]

    def _ways(self, name: str) -> list[ResultRecord]:
        """Every way of a baseline as it was in the trial that chose among them, the fastest included."""
        found = self.found.baselines[name]
        records = [
            self.times(name, "latency", seconds, {"trial": True}, stage=f"{WAY}{way}")
            for way, seconds in found.trial.items()
        ]
        return records + [
            self.record(name, "latency", "s", None, status="skipped", reason=why, stage=f"{WAY}{way}")
            for way, why in found.left_out.items()
        ]

    def _latency(
        self, name: str, stage: str, seconds: list[float], must_read: int | None, fallback: bool
    ) -> ResultRecord:
        about: dict[str, Any] = {"dense_fallback": fallback, "copies": self.found.copies[name]}
        if must_read is None:
            return self.times(name, "latency", seconds, about, stage=stage)
        about |= self.controls
        return self.times(name, "latency", seconds, about, warnings=self._warnings(name), stage=stage)

    def _warnings(self, name: str) -> list[str]:
        timed = self.timed[name]
        return [*self.found.notes[name], *stats.warnings(timed.seconds, stopped=timed.stopped)]

    def path(self, name: str) -> dict[str, Any]:
        """Which way a backend's baseline went; torch's has stood in its ``stats`` alone since the first records."""
        found = self.found.baselines[name]
        return {} if name == TORCH or not found.path else {"path": found.path}

    def brought_by(self, name: str) -> str:
        """See :class:`CellRecords`."""
        return name
