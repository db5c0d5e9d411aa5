"""``questbench kernel``: attention kernels of every method, timed against dense and torch SDPA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from questbench.cli import _options as opt

EXAMPLES = (
    "questbench kernel --seq-len 8k,32k --budget 1k,2k",
    "questbench kernel --shape llama-2-7b -M quest.group_merge=max --json",
)

SHAPE = "Attention"
HOW = "Measurement"

ShapeName = Annotated[
    str,
    typer.Option("--shape", metavar="NAME", help="Model whose attention is timed: ls models.", rich_help_panel=SHAPE),
]
Heads = Annotated[
    str | None,
    typer.Option("--heads", metavar="N", help="Query heads instead of the shape's.", rich_help_panel=SHAPE),
]
KvHeads = Annotated[
    str | None,
    typer.Option("--kv-heads", metavar="N", help="KV heads instead of the shape's.", rich_help_panel=SHAPE),
]
HeadDim = Annotated[
    str | None,
    typer.Option("--head-dim", metavar="N", help="Head dimension instead of the shape's.", rich_help_panel=SHAPE),
]
Batch = Annotated[str, typer.Option("--batch", metavar="N", help="Rows per step.", rich_help_panel=opt.AXES)]
Dtypes = Annotated[str, typer.Option("--dtype", metavar="NAMES", help="bf16, fp16, fp32.", rich_help_panel=opt.AXES)]
CacheState = Annotated[
    str,
    typer.Option(
        "--cache",
        metavar="STATE",
        help="cold: keys and values come from memory; warm: from caches.",
        rich_help_panel=HOW,
    ),
]
Rounds = Annotated[
    str, typer.Option("--rounds", metavar="N", help="Least number of interleaved rounds per cell.", rich_help_panel=HOW)
]
MaxSeconds = Annotated[
    float, typer.Option("--max-seconds", metavar="S", help="Longest measuring time of a cell.", rich_help_panel=HOW)
]
Stages = Annotated[
    bool,
    typer.Option("--stages/--no-stages", help="Time append, score, select, attend, evict apart.", rich_help_panel=HOW),
]


def kernel(
    ctx: typer.Context,
    seq_lens: opt.Lengths = "32k",
    methods: opt.Methods = "dense,quest,h2o,tova,streaming_llm",
    method_args: opt.MethodArgs = None,
    budgets: opt.Budgets = "2k",
    page_sizes: opt.PageSizes = "16",
    batch: Batch = "1",
    dtype: Dtypes = "bf16",
    shape: ShapeName = "llama-3.1-8b",
    heads: Heads = None,
    kv_heads: KvHeads = None,
    head_dim: HeadDim = None,
    cache: CacheState = "cold",
    rounds: Rounds = "20",
    max_seconds: MaxSeconds = 20.0,
    stages: Stages = True,
    threads: opt.Threads = None,
    device: opt.Device = "cpu",
    backend: opt.Backend = None,
    seed: opt.Seed = 0,
    out: opt.Out = Path("results"),
    resume: opt.Resume = None,
    json: opt.Json = False,
) -> int:
    """Time one decode step of attention for every method, against dense and torch SDPA in the same rounds.

    Every row shows the bandwidth it reached of what this machine can read, and the speed-up its traffic would allow.
    """
    from questbench.cli._run import execute
    from questbench.experiments import kernel as experiment

    flags = {
        "methods": opt.names(methods, "--method"),
        "method_args": opt.pairs(method_args),
        "seq_lens": opt.counts(seq_lens, "--seq-len"),
        "budgets": opt.counts(budgets, "--budget"),
        "page_sizes": opt.counts(page_sizes, "--page-size"),
        "shape": shape,
        "heads": opt.optional_count(heads, "--heads"),
        "kv_heads": opt.optional_count(kv_heads, "--kv-heads"),
        "head_dim": opt.optional_count(head_dim, "--head-dim"),
        "batch": opt.counts(batch, "--batch"),
        "dtype": opt.names(dtype, "--dtype"),
        "threads": opt.optional_count(threads, "--threads"),
        "device": device,
        "backend": backend,
        "cache": cache,
        "rounds": opt.count(rounds, "--rounds"),
        "max_seconds": opt.positive(max_seconds, "--max-seconds"),
        "stages": stages,
        "seed": seed,
    }
    return execute("kernel", experiment, experiment.KernelConfig, flags, ctx, out=out, resume=resume, json=json)
