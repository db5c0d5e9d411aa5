"""Measure one cell of the kernel experiment: build the arms, time them in interleaved rounds, make records."""

from __future__ import annotations

from typing import Any

from questbench.experiments.engine import Turn
from questbench.experiments.kernel.arms import Inputs, LayerShape, MethodArm, SharedPages, StageArm
from questbench.experiments.kernel.baselines import (
    TORCH,
    Baseline,
    backend_baseline,
    backend_baselines,
    torch_baseline,
)
from questbench.experiments.kernel.clock import Clock, DeviceClock, HostClock
from questbench.experiments.kernel.config import Cell, KernelConfig, heads, methods
from questbench.experiments.kernel.memory import Need, fitting
from questbench.experiments.kernel.records import Found, Records
from questbench.experiments.records import READ
from questbench.experiments.setup import load_ops, thread_count, torch_dtype
from questbench.measure import bandwidth, busy, cautions, gpu_state, roofline, timer
from questbench.measure.memory import last_level_cache_bytes
from questbench.records.schema import ResultRecord

REPLAYED = 4
"""Steps of the untimed, counted replay."""
STAGE_ROUNDS = 20
NOISE_TARGET = 0.01
ROUNDS_LIMIT = 400


def measure(config: KernelConfig, cell: Cell, turn: Turn) -> list[ResultRecord]:
    """All records of one cell.

    Raises:
        CellError: the cell needs more memory than there is.
        MemoryError: an allocation failed all the same.
    """
    with thread_count(config.threads) as threads:
        return _Cell(config, cell, turn).measure(threads)


class _Cell:
    """One cell while it is measured."""

    def __init__(self, config: KernelConfig, cell: Cell, turn: Turn) -> None:
        self.config, self.cell, self.turn = config, cell, turn
        text = cell.batch, cell.seq_len, cell.page_size
        self.shape = LayerShape(*heads(config), *text, torch_dtype(cell.dtype), device=config.device)
        self.ops = load_ops(config.device, config.backend)
        self.chosen = {name: method for name, method in methods(config, cell).items() if name not in turn.refused}
        self.traffic = {
            name: cell.batch * method.bytes_read(cell.seq_len, self.shape.cache) for name, method in self.chosen.items()
        }
        self.cache_bytes = last_level_cache_bytes(config.device)
        cold = config.cache == "cold"
        self.copies = {name: self._copies(bytes_read) if cold else 1 for name, bytes_read in self.traffic.items()}

    @property
    def gpu(self) -> bool:
        """Whether a device is timed that runs apart from Python."""
        return self.config.device != "cpu"

    def _copies(self, bytes_read: int) -> int:
        if self.gpu and bytes_read >= roofline.LARGE * self.cache_bytes:
            return 1  # The cache may hold a fiftieth of it at most, and a GPU's memory is scarce.
        return roofline.copies_needed(bytes_read, self.cache_bytes)

    def measure(self, threads: int) -> list[ResultRecord]:
        """Build, time, take apart."""
        config, shape, chosen, turn = self.config, self.shape, self.chosen, self.turn
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
        # What was predicted, or read where that is up to the data.
        self.traffic = {
            name: self.cell.batch * method.bytes_counted(self.cell.seq_len, shape.cache, counted[name].mean("read"))
            for name, method in chosen.items()
        }
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
            on_progress=turn.tell,
        )
        watch.look()
        slowed = gpu_state.caution(gpu_state.identifier(config.device)) if self.gpu else None
        staged = {}
        if config.stages:
            staged = {name: StageArm(arm, clock.stages()).measure(STAGE_ROUNDS) for name, arm in arms.items()}
        unsteady = cautions.unsteady(timed[READ].seconds, probe.bytes)
        around = list(filter(None, [turn.before, watch.caution(), unsteady, slowed]))
        found = Found(
            traffic=self.traffic,
            timed=timed,
            probe=probe,
            counted=counted,
            baselines=baselines,
            copies={name: arm.copies for name, arm in arms.items()},
            notes={name: [*around, *clock.notes(name)] for name in (*arms, *baselines)},
            others=watch.others,
        )
        maker = Records(config, self.cell, chosen, self.ops.name, found)
        records = [record for name in chosen for record in maker.of_method(name, staged.get(name, {}))]
        return records + [record for name in baselines for record in maker.of_baseline(name)]

    def _arms(self, inputs: Inputs, need: Need) -> dict[str, MethodArm]:
        shared = None
        if need.shared:
            keeping = [method for method in self.chosen.values() if method.keeps_all]
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
        layers = [part.fork(dense.method) for part in dense.parts]
        for layer in layers:
            layer.append(inputs.k[0], inputs.v[0])
        return layers
