"""Measure one cell of the kernel experiment: build the arms, time them in interleaved rounds, make records."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from questbench.errors import CellError
from questbench.experiments._kernel_arms import Inputs, LayerShape, MethodArm, SharedPages, StageArm
from questbench.experiments._kernel_baselines import (
    TORCH,
    Baseline,
    backend_baseline,
    backend_baselines,
    torch_baseline,
)
from questbench.experiments._kernel_clock import Clock, DeviceClock, HostClock
from questbench.experiments._kernel_memory import Need, fitting
from questbench.experiments._setup import load_ops, thread_count, torch_dtype
from questbench.measure import bandwidth, busy, cautions, gpu_state, roofline, stats, timer
from questbench.measure.memory import last_level_cache_bytes
from questbench.records.schema import ResultRecord

if TYPE_CHECKING:
    from questbench.errors import QuestbenchError
    from questbench.experiments.kernel import Cell, KernelConfig
    from questbench.kernels._ops import Ops
    from questbench.methods._base import Method

REPLAYED = 4
"""Steps of the untimed, counted replay."""
STAGE_ROUNDS = 20
NOISE_TARGET = 0.01
ROUNDS_LIMIT = 400
READ = "read"
WAY = "way: "
"""Begins ``params.stage`` of one way of a baseline, before its name."""


def measure(
    config: KernelConfig,
    cell: Cell,
    refused: Mapping[str, QuestbenchError],
    progress: Callable[[str], Any],
    before: str | None = None,
) -> list[ResultRecord]:
    """All records of one cell.

    Args:
        before: a warning about the machine as it was before the run.

    Raises:
        CellError: the cell needs more memory than there is.
        MemoryError: an allocation failed all the same.
    """
    from questbench.experiments.kernel import heads, methods

    query_heads, kv_heads, head_dim = heads(config)
    shape = LayerShape(
        query_heads,
        kv_heads,
        head_dim,
        cell.batch,
        cell.seq_len,
        cell.page_size,
        torch_dtype(cell.dtype),
        device=config.device,
    )
    ops = load_ops(config.device, config.backend)
    chosen = {name: method for name, method in methods(config, cell).items() if name not in refused}
    traffic = {name: cell.batch * method.bytes_read(cell.seq_len, shape.cache) for name, method in chosen.items()}
    with thread_count(config.threads) as threads, _device_memory(config.device):
        return _Cell(config, cell, shape, ops, chosen, traffic, before).measure(threads, progress)


@contextlib.contextmanager
def _device_memory(device: str) -> Iterator[None]:
    """A cell starts with what the one before it gave back; running out is a failure of the cell alone."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        raise CellError(
            f"out of memory on {device}: {reason}", "Use a shorter --seq-len or a smaller --batch."
        ) from None
    finally:
        if device != "cpu":
            gc.collect()
            torch.cuda.empty_cache()


class _Cell:
    """One cell while it is measured."""

    def __init__(
        self,
        config: KernelConfig,
        cell: Cell,
        shape: LayerShape,
        ops: Ops,
        chosen: Mapping[str, Method],
        traffic: Mapping[str, int],
        before: str | None,
    ) -> None:
        self.config, self.cell, self.shape, self.ops = config, cell, shape, ops
        self.before = before
        self.chosen, self.traffic = chosen, traffic
        self.cache_bytes = last_level_cache_bytes(config.device)
        cold = config.cache == "cold"
        self.copies = {name: self._copies(bytes_read) if cold else 1 for name, bytes_read in traffic.items()}

    @property
    def gpu(self) -> bool:
        """Whether a device is timed that runs apart from Python."""
        return self.config.device != "cpu"

    def _copies(self, bytes_read: int) -> int:
        if self.gpu and bytes_read >= roofline.LARGE * self.cache_bytes:
            return 1  # The cache may hold a fiftieth of it at most, and a GPU's memory is scarce.
        return roofline.copies_needed(bytes_read, self.cache_bytes)

    def measure(self, threads: int, progress: Callable[[str], Any]) -> list[ResultRecord]:
        """Build, time, take apart."""
        config, shape, chosen = self.config, self.shape, self.chosen
        baselines: dict[str, Baseline] = {}
        brought = list(backend_baselines(config.device))
        need = Need(shape, chosen, self.copies, shared=self.gpu, baselines=len(brought))
        left_out = fitting(need)
        inputs = Inputs(shape, config.seed)
        arms = self._arms(inputs, need)
        probe = bandwidth.ReadProbe(threads=threads, device=config.device)
        clock = self._clock(probe)
        dense = self.traffic["dense"]
        counted = {name: arm.replay(REPLAYED) for name, arm in arms.items()}
        if left_out is None:
            baselines[TORCH] = torch_baseline(
                inputs, self.copies["dense"], clock, dense, compile_s=config.compile_limit
            )
        else:
            baselines[TORCH] = Baseline(reason=left_out)
        for name, backend, reason in brought:
            if backend is None:
                baselines[name] = Baseline(backend=name, reason=reason)
            else:
                layers = self._whole_texts(inputs, arms["dense"])
                baselines[name] = backend_baseline(backend, layers, inputs, clock, dense)
        watch = busy.Watch()
        timed = clock.interleave(
            {
                **arms,
                **{name: baseline.arm for name, baseline in baselines.items() if baseline.arm is not None},
                READ: probe,
            },
            {**self.traffic, **dict.fromkeys(baselines, dense)},
            rounds_min=config.rounds,
            rounds_max=max(ROUNDS_LIMIT, config.rounds),
            target_noise=NOISE_TARGET,
            max_seconds=config.max_seconds,
            shuffle_seed=config.seed,
            on_progress=progress,
        )
        watch.look()
        slowed = gpu_state.caution(gpu_state.identifier(config.device)) if self.gpu else None
        staged = {}
        if config.stages:
            staged = {name: StageArm(arm, clock.stages()).measure(STAGE_ROUNDS) for name, arm in arms.items()}
        unsteady = cautions.unsteady(timed[READ].seconds, probe.bytes)
        around = list(filter(None, [self.before, watch.caution(), unsteady, slowed]))
        notes = {name: [*around, *clock.notes(name)] for name in (*arms, *baselines)}
        copies = {name: arm.copies for name, arm in arms.items()}
        maker = _Records(self, timed, probe, counted, baselines, copies, notes, watch.others)
        records = [record for name in chosen for record in maker.of_method(name, staged.get(name, {}))]
        return records + [record for name in baselines for record in maker.of_baseline(name)]

    def _arms(self, inputs: Inputs, need: Need) -> dict[str, MethodArm]:
        shared = None
        if need.shared:
            keeping = [method for method in self.chosen.values() if method.forget() is None]
            shared = SharedPages(keeping, self.ops, inputs, need.shared_copies, need.forks)
        return {
            name: MethodArm(method, self.ops, inputs, self.copies[name], shared) for name, method in self.chosen.items()
        }

    def _clock(self, probe: bandwidth.ReadProbe) -> Clock:
        if not self.gpu:
            return HostClock()
        rate = probe.bytes / min(timer.CudaEvents(self.config.device).measure(probe.step, i, 1) for i in range(3))
        return DeviceClock(self.shape, self.config.timing or "graph", cold=self.config.cache == "cold", bandwidth=rate)

    def _whole_texts(self, inputs: Inputs, dense: MethodArm) -> list[Any]:
        """Forks of the dense arm's caches that hold the whole text, the step's own entry included."""
        layers = [layer.fork(dense.method) for layer in dense.layers]
        for layer in layers:
            layer.append(inputs.k[0], inputs.v[0])
        return layers


class _Records:
    """Turns the samples of one cell into records."""

    def __init__(
        self,
        whole: _Cell,
        timed: Mapping[str, timer.Samples],
        probe: bandwidth.ReadProbe,
        counted: Mapping[str, Any],
        baselines: Mapping[str, Baseline],
        copies: Mapping[str, int],
        notes: Mapping[str, list[str]],
        others: float | None,
    ) -> None:
        self.config, self.cell, self.backend = whole.config, whole.cell, whole.ops.name
        self.chosen, self.traffic, self.copies = whole.chosen, whole.traffic, copies
        self.timed, self.counted, self.baselines, self.notes = timed, counted, baselines, notes
        self.bandwidth = [probe.bytes / seconds for seconds in timed[READ].seconds]
        self.probe = probe.probe
        self.controls = {"probe_bandwidth": stats.median(self.bandwidth), "others": others}
        """What a comparison of two runs holds against a time: it tells a slower machine from slower code."""
        if TORCH in timed:
            self.controls["torch"] = stats.median(timed[TORCH].seconds)

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
        from questbench.experiments.kernel import params

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
