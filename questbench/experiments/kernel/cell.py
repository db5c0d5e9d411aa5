"""Measure one cell of the kernel experiment: build the arms, time them in interleaved rounds, make records."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from questbench import baselines
from questbench.baselines._base import Baseline, Fastest, Text, fastest
from questbench.experiments import costs
from questbench.experiments.engine import Turn
from questbench.experiments.kernel.arms import QUERIES, Inputs, LayerShape, MethodArm, SharedPages, stages
from questbench.experiments.kernel.clock import Clock, DeviceClock, HostClock
from questbench.experiments.kernel.config import Cell, KernelConfig, heads, methods
from questbench.experiments.kernel.records import Found, Records
from questbench.experiments.records import READ
from questbench.experiments.setup import load_ops, thread_count, torch_dtype
from questbench.measure import bandwidth, busy, cautions, gpu_state, roofline, timer
from questbench.measure.memory import last_level_cache_bytes
from questbench.records.schema import ResultRecord

REPLAYED = 4
"""Steps of the untimed, counted replay."""
STAGE_ROUNDS = 20
SLACK = 1.1
SCRATCH = {"cpu": 0, "cuda": 3 << 30}
"""Bandwidth probe, flush buffer, workspaces and the temporaries of recorded graphs."""
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
        self.model = costs.Model(self.shape.cache)
        self.traffic = {
            name: self.model.cache_read(method, cell.seq_len, cell.batch) for name, method in self.chosen.items()
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
        brought = {name: (baseline, why) for name, baseline, why in baselines.of("kernel", config.device)}
        working = {name: baseline for name, (baseline, why) in brought.items() if why is None}
        too_large = self._fitting(working)
        inputs = Inputs(shape, config.seed)
        arms = self._arms(inputs, len(working))
        probe = bandwidth.ReadProbe(threads=threads, device=config.device)
        clock = self._clock(probe)
        dense = self.traffic["dense"]
        counted = {name: arm.replay(REPLAYED) for name, arm in arms.items()}
        # What was predicted, or read where that is up to the data.
        self.traffic = {
            name: self.cell.batch * method.bytes_counted(self.cell.seq_len, shape.cache, counted[name].mean("read"))
            for name, method in chosen.items()
        }
        text = Text(
            inputs.q,
            inputs.noise,
            shape.seq_len,
            self.copies["dense"],
            functools.partial(self._whole_texts, inputs, arms["dense"]),
            config.compile_limit,
        )
        best: dict[str, Fastest] = {}
        for name, (baseline, why) in brought.items():
            if missing := why or too_large.get(name):
                best[name] = Fastest(why=missing)
                continue
            ways = baseline.ways(text)
            best[name] = fastest(
                ways.arms, functools.partial(clock.interleave, traffic=dict.fromkeys(ways.arms, dense)), ways.left_out
            )
        watch = busy.Watch()
        timed = clock.interleave(
            {
                **arms,
                **{name: found.arm for name, found in best.items() if found.arm is not None},
                READ: probe,
            },
            {**self.traffic, **dict.fromkeys(best, dense)},
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
            staged = {name: stages(arm, clock.stages(), STAGE_ROUNDS) for name, arm in arms.items()}
        unsteady = cautions.unsteady(timed[READ].seconds, probe.bytes)
        around = list(filter(None, [turn.before, watch.caution(), unsteady, slowed]))
        found = Found(
            traffic=self.traffic,
            timed=timed,
            probe=probe,
            counted=counted,
            baselines=best,
            copies={name: arm.copies for name, arm in arms.items()},
            notes={name: [*around, *clock.notes(name)] for name in (*arms, *best)},
            others=watch.others,
        )
        maker = Records(config, self.cell, chosen, self.ops.name, found)
        records = [record for name in chosen for record in maker.of_method(name, staged.get(name, {}))]
        return records + [record for name in best for record in maker.of_baseline(name)]

    def _fitting(self, baselines: Mapping[str, Baseline]) -> dict[str, str]:
        """Refuse a cell that cannot fit, instead of being killed half-way.

        Returns:
            On a GPU, which baselines must be left out so that all else fits, and why.

        Raises:
            CellError: it does not fit.
        """
        cell, shape, device = self.cell, self.shape, self.config.device
        size: dict[str, Any] = {
            "rows": cell.batch,
            "length": cell.seq_len,
            "room": QUERIES,
            "loops": self.gpu * len(baselines),
        }
        need = costs.need(self.model, self.chosen, **size, copies=self.copies, forked=self.gpu)
        text = self.copies["dense"] * cell.batch * cell.seq_len * shape.cache.entry_bytes
        group = shape.query_heads // shape.kv_heads
        anew = {name: baseline.stores(group, device) * text for name, baseline in baselines.items()}
        whole, scratch = int(SLACK * (need.total + sum(anew.values()))), SCRATCH[device.partition(":")[0]]
        hint = "Use a shorter --seq-len, a smaller --batch or fewer methods."
        costs.require(int(SLACK * need.total) if self.gpu else whole, device, hint=hint, reserved=scratch)
        if whole <= costs.left(device, scratch):
            return {}
        return {
            name: f"out of memory: contiguous keys and values need another {costs.gib(SLACK * more)}."
            for name, more in anew.items()
            if more
        }

    def _arms(self, inputs: Inputs, baselines: int) -> dict[str, MethodArm]:
        shared = None
        keeping = {name: method for name, method in self.chosen.items() if method.keeps_all}
        if self.gpu:
            # As many copies as the arm that reads the least needs.
            copies = max(self.copies[name] for name in keeping)
            shared = SharedPages(keeping.values(), self.ops, inputs, copies, len(keeping) + baselines)
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
