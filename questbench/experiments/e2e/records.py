"""Records of one end-to-end cell: what was measured, what the bytes allow, and where the two part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from questbench.experiments.costs import Need
from questbench.experiments.e2e.config import Cell, E2EConfig, params
from questbench.experiments.e2e.found import Found
from questbench.experiments.e2e.session import Session
from questbench.experiments.records import READ, CellRecords
from questbench.measure import cautions, roofline, stats
from questbench.methods._base import Method
from questbench.records import limits
from questbench.records.schema import ResultRecord

SLOPE_TOLERANCE = 0.1
"""A slope of two generations that is further from the median step than this says that one of them was disturbed."""
LONGEST = 1 << 24
"""Text length up to which a break-even is looked for."""


class Records(CellRecords):
    """Turns what was found into records."""

    kind = "e2e"

    def __init__(
        self,
        config: E2EConfig,
        cell: Cell,
        session: Session,
        chosen: Mapping[str, Method],
        found: Found,
        need: Need,
    ) -> None:
        super().__init__(config, params(config, cell), chosen, session.ops.name, found.timed, found.probe_bytes)
        self.config, self.cell, self.session, self.found, self.need = config, cell, session, found, need
        self.weights = session.read_weights(cell.batch)

    def all(self) -> list[ResultRecord]:
        """Everything that was measured; the rest with the reason why it is missing."""
        if not self.timed:
            why = {"status": "skipped", "reason": self.found.late, "stage": "total"}
            records = [self.record(name, "tpot", "s", None, **why) for name in self.chosen]
            return records + [record for name in self.chosen for record in self._prefill(name)]
        records = [record for name in self.chosen for record in self._of_method(name)]
        records += [record for name in self.found.baselines for record in self._of_baseline(name)]
        about = {"what": "one layer's attention by torch, timed in the same rounds"}
        records.append(self.times("dense", "control", self.timed["torch"].seconds, about))
        return records + [record for kind in self.config.rivals for record in self._of_rival(kind)]

    def step_bytes(self, name: str) -> int:
        """Bytes that a decode step of a method must read: weights, KV entries, bounds."""
        method = self.chosen.get(name, self.chosen["dense"])  # a baseline is dense
        return self.weights + self.session.costs(self.cell).cache_read(method, self.cell.seq_len + 1, self.cell.batch)

    def _of_method(self, name: str) -> list[ResultRecord]:
        found, seconds = self.found, self.timed[name].seconds
        fallback = bool(found.counted[name].fallback)
        must_read = self.step_bytes(name)
        bound = must_read / self.peak
        records = [self._tpot(name, seconds, fallback)]
        records += self._slope(name)
        records.append(self.record(name, "tokens_per_second", "1/s", self.cell.batch / stats.median(seconds)))
        records += self._prefill(name)
        records += self._stages(name)
        there = [name for name, baseline in found.baselines.items() if baseline.arm is not None]
        records += self.speedups(name, fallback, self.step_bytes("dense") / must_read, there)
        if name != "dense":
            records.append(self._break_even(name))
        records.append(self.record(name, "bound", "s", bound, fidelity="modelled", stats={"bandwidth": self.peak}))
        records.append(self.bandwidth_fraction(name, must_read))
        records += self._sizes(name, must_read)
        # The timed steps come after those that warm up.
        return records + self.counts(name, found.counted[name], first=self.chosen[name].warmup_steps)

    def _of_baseline(self, name: str) -> list[ResultRecord]:
        """Another library's dense attention in the same loop, or why it is not there."""
        baseline = self.found.baselines[name]
        if baseline.arm is None:
            return [self.record(name, "tpot", "s", None, status="skipped", reason=baseline.reason, stage="total")]
        seconds, must_read = self.timed[name].seconds, self.step_bytes(name)
        left_out = {"left_out": baseline.reason} if baseline.reason else {}
        tpot = self._tpot(name, seconds, False)
        tpot.stats.update({"path_of_attention": baseline.path, "paths": baseline.paths, **left_out})
        return [
            tpot,
            *self._slope(name),
            self.record(name, "tokens_per_second", "1/s", self.cell.batch / stats.median(seconds)),
            self.bandwidth_fraction(name, must_read),
            *self._sizes(name, must_read),
        ]

    def _tpot(self, name: str, seconds: list[float], fallback: bool) -> ResultRecord:
        found, loop = self.found, self.found.loops[name]
        around = (
            found.before,
            cautions.disturbed(found.others),
            cautions.unsteady(found.timed[READ].seconds, found.probe_bytes),
            found.late and f"Measured in part only: {found.late}.",
        )
        warnings = [*filter(None, around), *stats.warnings(seconds, stopped=found.timed[name].stopped)]
        if not found.same_tokens.get(name, True):
            warnings.append(
                "Counting what was read changed the tokens: the counts may not be those of the timed steps."
            )
        if loop["reason"]:
            warnings.append(f"The step ran through the model's own forward: {loop['reason']}.")
        if self.session.uncaptured is not None:
            warnings.append(f"Steps ran one by one. {self.session.uncaptured}")
        if self.session.experts > 1:
            warnings.append(
                f"Bytes count the weights of all {self.session.experts} experts, of which a step reads a few: "
                "bound and share of bandwidth are too high, ideal is too low."
            )
        about = {
            "dense_fallback": fallback,
            "probe_bandwidth": self.peak,
            "torch": stats.median(found.timed["torch"].seconds),
            "others": found.others,
            **({"same_tokens": found.same_tokens[name]} if name in found.same_tokens else {}),
            "path": loop["path"],
            "loop": loop["loop"],
            "linear": loop["linear"],
            "weights_format": self.session.weights["format"],
            "dense_layers": self.session.dense_layers,
        }
        return self.times(name, "tpot", seconds, about, warnings=warnings, stage="total")

    def _slope(self, name: str) -> list[ResultRecord]:
        values = self.found.slopes.get(name)
        if values is None:
            return [self.record(name, "tpot_slope", "s", None, status="skipped", reason=self.found.late)]
        value, median = stats.median(values), stats.median(self.timed[name].seconds)
        warnings = []
        if abs(value / median - 1) > SLOPE_TOLERANCE:
            warnings.append(
                f"Two generations differ by {value / median:.2f} median steps per token: one of the two was disturbed."
            )
        lengths = dict(zip(("short", "long"), self.config.tokens, strict=True))
        return [self.times(name, "tpot_slope", values, lengths, warnings=warnings)]

    def _prefill(self, name: str) -> list[ResultRecord]:
        found = self.found
        records = []
        if name in found.prefills:
            warnings = [found.before] if found.before else []
            chunk = {"chunk": self.config.prefill_chunk}
            records.append(self.times(name, "ttft", found.prefills[name], chunk, warnings=warnings))
        stored = self.session.stored_weights()
        for stage, rise, own in (
            ("prefill", found.prefill_rise.get(name), 0),
            # In decode the methods share pages: what this one holds counts in full, what it makes besides is watched.
            ("decode", found.decode_rise.get(name), sum(found.kv.get(name, ()))),
        ):
            if rise is not None:
                about = {"weights": stored, "cache": own, "rise": rise, "predicted": stored + self.need.total}
                value = float(stored + own + rise)
                records.append(self.record(name, "peak_memory", "B", value, stats=about, stage=stage))
        return records

    def _stages(self, name: str) -> list[ResultRecord]:
        staged = self.found.stages.get(name, {})
        total = stats.median(staged["staged"]) if staged else 0.0
        records = []
        for stage, samples in staged.items():
            median = stats.median(samples)
            about: dict[str, Any] = {"share": median / total if total else None}
            warnings = []
            if stage == "weights" and median > 0:
                fractions = [self.weights / seconds / self.peak for seconds in samples]
                about["bandwidth_fraction"] = self.weights / median / self.peak
                about["bandwidth_fraction_low"] = limits.ends(about["bandwidth_fraction"], stats.summary(fractions))[0]
                warnings = roofline.above_bandwidth(fractions)
            records.append(self.times(name, "tpot", samples, about, warnings=warnings, stage=stage))
        return records

    def _break_even(self, name: str) -> ResultRecord:
        """The shortest text from which on a step must read less than dense; weights are alike and cancel."""
        model = self.session.costs(self.cell)
        method, dense = self.chosen[name], self.chosen["dense"]

        def wins(length: int) -> bool:
            return model.cache_read(method, length) < model.cache_read(dense, length)

        low, high = 1, LONGEST
        if not wins(high):
            reason = f"no text of up to {LONGEST:,} tokens reads less than dense"
            return self.record(name, "break_even", "tokens", None, fidelity="modelled", status="skipped", reason=reason)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if wins(middle) else (middle, high)
        return self.record(name, "break_even", "tokens", float(high), fidelity="modelled")

    def _sizes(self, name: str, must_read: int) -> list[ResultRecord]:
        kv, bounds = self.found.kv[name]
        sizes = {
            "kv_bytes": kv,
            "bounds_bytes": bounds,
            "weights_bytes": self.session.stored_weights(),
        }
        records = [self.record(name, metric, "B", float(value)) for metric, value in sizes.items()]
        about = {"weights": self.weights, "cache": must_read - self.weights}
        return [*records, self.record(name, "bytes", "B", float(must_read), fidelity="modelled", stats=about)]

    def _of_rival(self, kind: str) -> list[ResultRecord]:
        """transformers' own cache: its time, and our dense against it. The two were not timed in the same rounds."""
        name = f"transformers_{kind}"
        rival, rounds = self.found.rivals.get(name), self.found.apart.get(name)
        if rival is None or rounds is None:
            reason = self.found.late if rival is None else rival.reason
            about: dict[str, Any] = {"status": "skipped", "reason": reason, "stage": "total", "backend": "torch"}
            return [self.record(name, "tpot", "s", None, **about)]
        timed, reads = rounds[name], rounds[READ]
        seconds = timed.seconds
        value = stats.median(seconds)
        bandwidth = self.found.probe_bytes / stats.median(reads.seconds)
        about = {
            "bandwidth": bandwidth,
            "paired": False,  # in rounds of its own
            "path_of_attention": rival.path,
            "paths": rival.paths,
            **({"left_out": rival.reason} if rival.left_out else {}),
        }
        unsteady = cautions.unsteady(reads.seconds, self.found.probe_bytes)
        warnings = [*filter(None, [self.found.before, unsteady]), *stats.warnings(seconds, stopped=timed.stopped)]
        apart = {"paired": False}
        records = [
            self.times(name, "tpot", seconds, about, warnings=warnings, stage="total", backend="torch"),
            self.record(name, "tokens_per_second", "1/s", self.cell.batch / value, backend="torch", stats=apart),
        ]
        must_read = self.step_bytes("dense")
        rates = [self.found.probe_bytes / read for read in reads.seconds]
        records.append(self.fraction(name, must_read, seconds, rates, backend="torch"))
        dense = stats.median(self.timed["dense"].seconds)
        # In units of what memory gave at that time, since the two ran apart.
        normalised = value * bandwidth / (dense * self.peak)
        ratio = {"paired": False, "normalised": normalised}
        records.append(self.record("dense", "speedup", "x", value / dense, stats=ratio, baseline=name))
        return records

    def path(self, name: str) -> dict[str, Any]:
        """See :class:`CellRecords`."""
        baseline = self.found.baselines.get(name)
        return {} if baseline is None or baseline.arm is None else {"path": baseline.path}

    def brought_by(self, name: str) -> str:
        """See :class:`CellRecords`."""
        return name if name in self.found.baselines else self.backend
