"""Golden records: what the experiments would write, with numbers that are plausible and easy to recognise."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from questbench.records import store
from questbench.records.schema import Kind, ResultRecord

ENVIRONMENT = {
    "machine": "Test CPU 9000, 16 cores",
    "cpu": {"model": "Test CPU 9000"},
    "gpus": [],
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "packages": {"questbench": "0.1.0", "torch": "2.9.0"},
}
SHAPE = {
    "shape": "llama-3.1-8b",
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "batch": 1,
    "dtype": "bf16",
    "threads": 16,
    "device": "cpu",
    "cache": "cold",
    "page_size": 16,
}
STAGES = {
    "dense": {"append": 0.01, "attend": 0.99},
    "quest": {"append": 0.02, "score": 0.45, "select": 0.08, "attend": 0.45},
    "h2o": {"append": 0.02, "attend": 0.75, "evict": 0.23},
    "tova": {"append": 0.02, "attend": 0.78, "evict": 0.20},
    "streaming_llm": {"append": 0.03, "attend": 0.95, "evict": 0.02},
}
EFFICIENCY = {"quest": 0.72, "h2o": 0.55, "tova": 0.60, "streaming_llm": 0.90}


def kernel(
    seq_lens: tuple[int, ...] = (8192, 16384, 32768),
    budgets: tuple[int, ...] = (1024, 2048),
    *,
    slower: float = 1.0,
    seed: int = 0,
    **params: Any,
) -> list[ResultRecord]:
    """A sweep of all methods; ``slower`` stretches the sparse methods' times."""
    rng = random.Random(seed)
    found: list[ResultRecord] = []
    for seq_len in seq_lens:
        for budget in budgets:
            inputs = {"seq_len": seq_len, "budget": budget, **SHAPE, **params}
            dense = seq_len * 4096 / 40e9
            found += _arm("dense", inputs, dense, rng, ideal=1.0, dense=dense)
            found += _arm("torch", inputs, dense * 1.3, rng, ideal=1.0, dense=dense)
            for method, efficiency in EFFICIENCY.items():
                scored = 1 / SHAPE["page_size"] if method == "quest" else 0.0
                ideal = 1 / (scored + budget / seq_len)
                found += _arm(method, inputs, dense / ideal / efficiency * slower, rng, ideal=ideal, dense=dense)
    return found


def _arm(
    method: str, inputs: dict[str, Any], time: float, rng: random.Random, *, ideal: float, dense: float
) -> list[ResultRecord]:
    arguments = {} if method in ("dense", "torch") else {"budget": inputs["budget"]}
    backend = "torch" if method == "torch" else "cpu"
    share = inputs["budget"] if arguments else inputs["seq_len"]

    def make(metric: str, unit: str, value: float, *, noisy: bool = True, **more: Any) -> ResultRecord:
        samples = [value * (1 + rng.gauss(0, 0.02)) for _ in range(21)] if noisy else []
        ordered = sorted(samples)
        stats = {"p20": ordered[4], "p80": ordered[16], "rounds": 21} if noisy else {}
        return ResultRecord(
            run="",
            kind="kernel",
            status="ok",
            method=method,
            method_args=arguments,
            backend=backend,
            params={**inputs, **more.pop("params", {})},
            metric=metric,
            unit=unit,
            value=ordered[10] if noisy else value,
            samples=samples,
            stats={**stats, **more.pop("stats", {})},
            **more,
        )

    records = [make("latency", "s", time, params={"stage": "total"})]
    for stage, part in STAGES.get(method, {}).items():
        records.append(make("latency", "s", time * part, params={"stage": stage}))
    for baseline, reference in (("dense", dense), ("torch", dense * 1.3)):
        if baseline != method:
            records.append(make("speedup", "x", reference / time, params={"baseline": baseline}))
    reached = dense / ideal * 0.95 / time
    rates = {"bandwidth": 42e9, "achieved": 42e9 * reached}
    return [
        *records,
        make("ideal_speedup", "x", ideal, noisy=False, fidelity="modelled", params={"baseline": "dense"}),
        make("bytes", "B", inputs["seq_len"] * 4096 / ideal, noisy=False, fidelity="modelled"),
        make(
            "bandwidth_fraction",
            "fraction",
            reached,
            noisy=False,
            stats=rates,
        ),
        make("tokens_read", "tokens", share, noisy=False, stats={"dense_fallback": False}),
        make("tokens_resident", "tokens", inputs["seq_len"] if method in ("dense", "quest") else share, noisy=False),
    ]


def accuracy(
    budgets: tuple[int, ...] = (64, 256, 1024),
    seq_lens: tuple[int, ...] = (8192,),
    tasks: tuple[str, ...] = ("passkey",),
    *,
    samples: int = 50,
    worse: float = 0.0,
    **params: Any,
) -> list[ResultRecord]:
    """A sweep of all methods and a yardstick; ``worse`` lowers the sparse methods' scores."""
    found = []
    level = {"quest": 0.7, "h2o": 0.1, "tova": 0.15, "streaming_llm": 0.05, "oracle": 0.9, "random": 0.02}
    for task in tasks:
        for seq_len in seq_lens:
            inputs = {"task": task, "seq_len": seq_len, "protocol": "stepwise", "dense_layers": 1, "page_size": 16}
            inputs |= {"model": "constructed", "samples": samples, **params}
            found.append(_score("dense", {**inputs, "budget": 0}, [1.0] * (samples - 1) + [0.0], seq_len))
            for number, budget in enumerate(budgets):
                for method, base in level.items():
                    share = max(0.0, min(1.0, base + 0.25 * number - worse))
                    scores = [1.0 if index < round(share * samples) else 0.0 for index in range(samples)]
                    found.append(_score(method, {**inputs, "budget": budget}, scores, seq_len))
    return found


def _score(method: str, inputs: dict[str, Any], scores: list[float], seq_len: int) -> ResultRecord:
    mean = sum(scores) / len(scores)
    read = inputs["budget"] or seq_len
    return ResultRecord(
        run="",
        kind="accuracy",
        status="ok",
        method=method,
        method_args={"budget": inputs["budget"]} if method != "dense" else {},
        backend="cpu",
        params=inputs,
        metric="score",
        unit="fraction",
        value=mean,
        samples=scores,
        stats={
            "n": len(scores),
            "ci_low": max(0.0, mean - 0.1),
            "ci_high": min(1.0, mean + 0.1),
            "delta_vs_dense": mean - 0.98,
            "p_value": 0.5 if mean > 0.9 else 0.0001,
            "min_detectable": 0.12,
            "tokens_visible": read,
            "tokens_read": read * (1.7 if method in ("quest", "oracle") else 1.0),
            "tokens_resident": seq_len if method in ("dense", "quest", "oracle", "random") else read,
            "dense_fallback": False,
            "yardstick": method in ("oracle", "random"),
            "by_depth": [[step / 10, len(scores[step::11]), sum(scores[step::11])] for step in range(11)],
        },
    )


def failure(method: str, status: str, reason: str, **params: Any) -> ResultRecord:
    """A kernel cell without a value."""
    inputs = {"seq_len": 32768, "budget": 2048, **SHAPE, "stage": "total", **params}
    return ResultRecord(
        run="",
        kind="kernel",
        status=status,  # type: ignore[arg-type]
        method=method,
        method_args={},
        backend="cpu",
        params=inputs,
        metric="latency",
        unit="s",
        value=None,
        reason=reason,
    )


def write_run(
    results: Path, records: list[ResultRecord], *, kind: Kind = "kernel", environment: dict[str, Any] | None = None
) -> Path:
    """A run folder with these records."""
    with store.create_run(results, kind, ["questbench", kind], {}, environment or ENVIRONMENT) as writer:
        writer.write(records, key="all")
        writer.finish()
    return writer.path


E2E = {
    "page_size": 16,
    "model": "shape:sheared-llama-1.3b",
    "batch": 1,
    "dtype": "bf16",
    "weights": "full",
    "select_by": "auto",
    "threads": 16,
    "device": "cpu",
    "dense_layers": None,
    "cache_fill": "random",
    "loop": "auto",
}
WEIGHTS, ENTRY = 2.6e9, 24 * 8192.0
"""Bytes of weights, and of one KV entry in all layers, of the golden model."""


def e2e(
    seq_lens: tuple[int, ...] = (2048, 8192, 32768), budgets: tuple[int, ...] = (2048,), *, seed: int = 0
) -> list[ResultRecord]:
    """A sweep of dense and quest over a whole model at 40 GB/s; quest loses while its pages save little."""
    rng = random.Random(seed)
    found: list[ResultRecord] = []
    for seq_len in seq_lens:
        for budget in budgets:
            inputs = {"seq_len": seq_len, "budget": budget, **E2E}
            read = {"dense": seq_len, "quest": budget + seq_len // 16}
            for method in ("dense", "quest"):
                found += _whole_model(method, inputs, read, rng)
    return found


def _whole_model(method: str, inputs: dict[str, Any], read: dict[str, int], rng: random.Random) -> list[ResultRecord]:
    traffic = {name: WEIGHTS + ENTRY * entries for name, entries in read.items()}
    bound = traffic[method] / 40e9
    step = bound / 0.85

    def make(metric: str, unit: str, value: float, **more: Any) -> ResultRecord:
        samples = [value * (1 + rng.gauss(0, 0.01)) for _ in range(21)]
        ordered = sorted(samples)
        known = {key: more.pop(key) for key in ("stage", "baseline") if key in more}
        spread = {"p20": ordered[4], "p80": ordered[16], "p90": ordered[18], "p99": ordered[20]}
        return ResultRecord(
            run="",
            kind="e2e",
            status="ok",
            method=method,
            method_args={} if method == "dense" else {"budget": inputs["budget"]},
            backend="cpu",
            params={**inputs, **known},
            metric=metric,
            unit=unit,
            value=value,
            samples=samples,
            stats={**spread, **more.pop("stats", {})},
            **more,
        )

    parts = {"weights": WEIGHTS / 36e9, "append": 1e-4, "attend": step - WEIGHTS / 36e9 - 3e-3, "rest": 2.9e-3}
    records = [make("tpot", "s", step, stage="total", stats={"linear": "compiled"})]
    records += [make("tpot", "s", seconds, stage=stage) for stage, seconds in {**parts, "staged": step}.items()]
    records += [make("bound", "s", bound, fidelity="modelled"), make("bandwidth_fraction", "fraction", bound / step)]
    records.append(make("bytes", "B", traffic[method], fidelity="modelled"))
    if method != "dense":
        ideal = traffic["dense"] / traffic[method]
        records.append(make("speedup", "x", ideal, baseline="dense"))
        records.append(make("ideal_speedup", "x", ideal * 1.02, baseline="dense", fidelity="modelled"))
        records.append(make("break_even", "tokens", 2185.0, fidelity="modelled"))
    return records
