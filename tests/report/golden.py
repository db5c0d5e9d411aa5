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
            found += _arm("sdpa", inputs, dense * 1.3, rng, ideal=1.0, dense=dense)
            for method, efficiency in EFFICIENCY.items():
                scored = 1 / SHAPE["page_size"] if method == "quest" else 0.0
                ideal = 1 / (scored + budget / seq_len)
                found += _arm(method, inputs, dense / ideal / efficiency * slower, rng, ideal=ideal, dense=dense)
    return found


def _arm(
    method: str, inputs: dict[str, Any], time: float, rng: random.Random, *, ideal: float, dense: float
) -> list[ResultRecord]:
    arguments = {} if method in ("dense", "sdpa") else {"budget": inputs["budget"]}
    backend = "torch" if method == "sdpa" else "cpu"
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
    for baseline, reference in (("dense", dense), ("sdpa", dense * 1.3)):
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
