"""Measure one cell of the kernel experiment: build the arms, time them in interleaved rounds, make records."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from questbench.errors import CellError
from questbench.experiments._kernel_arms import Inputs, LayerShape, MethodArm, SdpaArm, StageArm
from questbench.experiments._setup import load_ops, thread_count, torch_dtype
from questbench.measure import bandwidth, roofline, stats, timer
from questbench.measure.memory import last_level_cache_bytes
from questbench.records.schema import ResultRecord

if TYPE_CHECKING:
    from questbench.errors import QuestbenchError
    from questbench.experiments.kernel import Cell, KernelConfig
    from questbench.methods._base import Method

REPLAYED = 4
"""Steps of the untimed, counted replay."""
STAGE_ROUNDS = 20
NOISE_TARGET = 0.01
TIMING = 5e-3
"""Least seconds of one timing. A shorter step is repeated, over other cache copies and with other queries: data stays
cold, while the interpreter, which the previous arm swept out of the caches, gets warm again."""
ROUNDS_LIMIT = 400


def measure(
    config: KernelConfig, cell: Cell, refused: Mapping[str, QuestbenchError], progress: Callable[[str], Any]
) -> list[ResultRecord]:
    """All records of one cell.

    Raises:
        CellError: the cell needs more memory than there is.
        MemoryError: an allocation failed all the same.
    """
    from questbench.experiments.kernel import heads, methods

    query_heads, kv_heads, head_dim = heads(config)
    shape = LayerShape(
        query_heads, kv_heads, head_dim, cell.batch, cell.seq_len, cell.page_size, torch_dtype(cell.dtype)
    )
    ops = load_ops(config.device, config.backend)
    chosen = {name: method for name, method in methods(config, cell).items() if name not in refused}
    cache_bytes = last_level_cache_bytes()
    copies = {
        name: roofline.copies_needed(cell.batch * method.bytes_read(cell.seq_len, shape.cache), cache_bytes)
        if config.cache == "cold"
        else 1
        for name, method in chosen.items()
    }
    _check_memory(shape, chosen, copies)
    with thread_count(config.threads) as threads:
        inputs = Inputs(shape, config.seed)
        arms = {name: MethodArm(method, ops, inputs, copies[name]) for name, method in chosen.items()}
        sdpa, path = _best_sdpa(inputs, copies["dense"])
        probe = bandwidth.ReadProbe(threads=threads)
        counted = {name: arm.replay(REPLAYED) for name, arm in arms.items()}
        timed = timer.interleave(
            {**arms, "sdpa": sdpa, "read": probe},
            rounds_min=config.rounds,
            rounds_max=max(ROUNDS_LIMIT, config.rounds),
            target_noise=NOISE_TARGET,
            max_seconds=config.max_seconds,
            shuffle_seed=config.seed,
            on_progress=progress,
            floor=TIMING,
        )
        staged = {}
        if config.stages:
            staged = {name: StageArm(arm, time.perf_counter).measure(STAGE_ROUNDS) for name, arm in arms.items()}
    maker = _Records(config, cell, shape, ops.name, timed, probe.bytes, counted, chosen, copies)
    records = [record for name in chosen for record in maker.of_method(name, staged.get(name, {}))]
    return records + maker.of_sdpa(path)


def _best_sdpa(inputs: Inputs, copies: int) -> tuple[SdpaArm, str]:
    """The faster of torch's two ways to attend with grouped heads; for multi-head attention there is one."""
    if inputs.shape.query_heads == inputs.shape.kv_heads:
        return SdpaArm(inputs, copies, expanded=True), "contiguous"
    arms = {name: SdpaArm(inputs, copies, expanded=name == "expanded") for name in ("enable_gqa", "expanded")}
    timed = timer.interleave(
        arms, rounds_min=5, rounds_max=5, target_noise=0.0, max_seconds=10.0, shuffle_seed=0, on_progress=None
    )
    best = min(arms, key=lambda name: stats.median(timed[name].seconds))
    return arms[best], best


def _check_memory(shape: LayerShape, chosen: Mapping[str, Method], copies: Mapping[str, int]) -> None:
    """Refuse a cell that cannot fit, instead of being killed half-way."""
    import os

    def stored(name: str) -> int:
        keep = chosen[name].forget()
        return shape.seq_len if keep is None else min(shape.seq_len, keep.entries + 1)

    entry = shape.cache.entry_bytes * shape.batch
    own = sum(copies[name] * stored(name) * entry for name in chosen)
    expanded = shape.query_heads // shape.kv_heads + (shape.query_heads != shape.kv_heads)
    need = int(1.1 * (own + copies["dense"] * shape.seq_len * entry * expanded))
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > free:
        raise CellError(
            f"out of memory: this cell needs about {need / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free.",
            "Use a shorter --seq-len, a smaller --batch or fewer methods.",
        )


class _Records:
    """Turns the samples of one cell into records."""

    def __init__(
        self,
        config: KernelConfig,
        cell: Cell,
        shape: LayerShape,
        backend: str,
        timed: Mapping[str, timer.Samples],
        probe_bytes: int,
        counted: Mapping[str, Any],
        chosen: Mapping[str, Method],
        copies: Mapping[str, int],
    ) -> None:
        self.config, self.cell, self.shape, self.backend = config, cell, shape, backend
        self.timed, self.counted, self.chosen, self.copies = timed, counted, chosen, copies
        self.bandwidth = [probe_bytes / seconds for seconds in timed["read"].seconds]
        self.dense_bytes = shape.batch * chosen["dense"].bytes_read(cell.seq_len, shape.cache)

    def of_method(self, name: str, staged: Mapping[str, list[float]]) -> list[ResultRecord]:
        """Latency, stages, speed-ups, traffic and counts of one of our methods."""
        method, counted = self.chosen[name], self.counted[name]
        must_read = self.shape.batch * method.bytes_read(self.cell.seq_len, self.shape.cache)
        fallback = bool(counted.fallback)
        records = [self._latency(name, "total", self.timed[name].seconds, must_read, fallback)]
        records += [self._latency(name, stage, samples, None, fallback) for stage, samples in staged.items()]
        ideal = self.dense_bytes / must_read
        if name != "dense":
            records.append(self._speedup(name, "dense", fallback, ideal))
            records.append(self._record(name, "ideal_speedup", "x", ideal, fidelity="modelled", baseline="dense"))
        records.append(self._speedup(name, "sdpa", fallback, None))
        records.append(self._record(name, "bytes", "B", float(must_read), fidelity="modelled"))
        records.append(self._bandwidth_fraction(name, must_read))
        for metric in ("visible", "read", "resident"):
            counts = self._record(name, f"tokens_{metric}", "tokens", counted.mean(metric))
            records.append(counts)
        return records

    def of_sdpa(self, path: str) -> list[ResultRecord]:
        """Latency and bandwidth of torch's attention."""
        seconds = self.timed["sdpa"].seconds
        stats_of = {**stats.summary(seconds), "path": path}
        latency = self._record(
            "sdpa", "latency", "s", stats.median(seconds), samples=seconds, stats=stats_of, stage="total"
        )
        return [latency, self._bandwidth_fraction("sdpa", self.dense_bytes)]

    def _latency(
        self, name: str, stage: str, seconds: list[float], must_read: int | None, fallback: bool
    ) -> ResultRecord:
        summary = {**stats.summary(seconds), "dense_fallback": fallback, "copies": self.copies[name]}
        warnings = [] if must_read is None else stats.warnings(seconds, stopped=self.timed[name].stopped)
        return self._record(
            name, "latency", "s", stats.median(seconds), samples=seconds, stats=summary, warnings=warnings, stage=stage
        )

    def _speedup(self, name: str, baseline: str, fallback: bool, ideal: float | None) -> ResultRecord:
        ratios = [b / a for a, b in zip(self.timed[name].seconds, self.timed[baseline].seconds, strict=True)]
        value = stats.median(ratios)
        warnings = []
        if ideal is not None and value > ideal:
            warnings.append(roofline.above_ideal(value, ideal))
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
        summary = {**stats.summary(fractions), "bandwidth": stats.median(self.bandwidth), "achieved": achieved}
        warnings = [roofline.above_bandwidth(value)] if value > 1 else []
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
            method=name,
            method_args={} if method is None else method.arguments(self.cell.page_size),
            backend="torch" if method is None else self.backend,
            params=params(self.config, self.cell, **known),
            metric=metric,
            unit=unit,
            value=value,
            seed=self.config.seed,
            **more,
        )
