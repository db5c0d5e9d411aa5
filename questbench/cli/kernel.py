"""``questbench kernel``: attention kernels of every method, timed against dense and torch's fastest way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from questbench import seeding
from questbench.cli import _options as opt

EXAMPLES = (
    "questbench kernel --seq-len 8k,32k --budget 1k,2k",
    "questbench kernel --shape llama-2-7b -M quest.group_merge=max --json",
)

SHAPE = "Attention"
HOW = "Measurement"
CACHE = "cold: keys and values come from memory; warm: from the processor's caches."
TIMING = "On a GPU: graph (default: a CUDA graph of many steps) or events (eager)."

Lengths = Annotated[str, opt.flag("--seq-len", metavar="TOKENS", help="Tokens in the cache.", panel=opt.AXES)]
Batch = Annotated[str, opt.flag("--batch", metavar="N", help="Rows per step.", panel=opt.AXES)]
Dtypes = Annotated[str, opt.flag("--dtype", metavar="NAMES", help="bf16, fp16, fp32.", panel=opt.AXES)]
Shape = Annotated[
    str, opt.flag("--shape", metavar="NAME", help="Model whose attention is timed (see: ls models).", panel=SHAPE)
]
Heads = Annotated[
    str | None, opt.flag("--heads", metavar="N", help="Query heads, instead of the shape's.", panel=SHAPE)
]
KvHeads = Annotated[
    str | None, opt.flag("--kv-heads", metavar="N", help="KV heads, instead of the shape's.", panel=SHAPE)
]
HeadDim = Annotated[
    str | None, opt.flag("--head-dim", metavar="N", help="Head size, instead of the shape's.", panel=SHAPE)
]
CacheState = Annotated[str, opt.flag("--cache", metavar="STATE", help=CACHE, panel=HOW)]
Timing = Annotated[str | None, opt.flag("--timing", metavar="WAY", help=TIMING, panel=HOW)]
Rounds = Annotated[str, opt.flag("--rounds", metavar="N", help="Fewest rounds per cell.", panel=HOW)]
MaxSeconds = Annotated[
    float, opt.flag("--max-seconds", metavar="S", help="Time limit for measuring one cell.", panel=HOW)
]
TimeLimit = Annotated[str | None, opt.flag("--time-limit", metavar="TIME", help=opt.TIME_LIMIT, panel=HOW)]
COMPILE = "Longest time to compile torch's flex_attention; 0 leaves it out."
CompileLimit = Annotated[float, opt.flag("--compile-limit", metavar="S", help=COMPILE, panel=HOW)]
Stages = Annotated[bool, opt.flag("--stages/--no-stages", help="Time the stages of a step apart.", panel=HOW)]


def kernel(
    ctx: typer.Context,
    seq_lens: Lengths = "32k",
    methods: opt.Methods = "dense, quest, h2o, tova, streaming_llm",
    method_args: opt.MethodArgs = None,
    budgets: opt.Budgets = "2k",
    page_sizes: opt.PageSizes = "16",
    batch: Batch = "1",
    dtype: Dtypes = "bf16",
    shape: Shape = "llama-3.1-8b",
    heads: Heads = None,
    kv_heads: KvHeads = None,
    head_dim: HeadDim = None,
    cache: CacheState = "cold",
    timing: Timing = None,
    rounds: Rounds = "20",
    max_seconds: MaxSeconds = 20.0,
    time_limit: TimeLimit = None,
    compile_limit: CompileLimit = 30.0,
    stages: Stages = True,
    threads: opt.Threads = None,
    device: opt.Device = "cpu",
    backend: opt.Backend = None,
    seed: opt.Seed = 0,
    out: opt.Out = Path("results"),
    resume: opt.Resume = None,
    json: opt.Json = False,
) -> int:
    """Time one decode step of attention for every method, against dense and torch's fastest way in the same rounds.

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
        "timing": timing,
        "rounds": opt.count(rounds, "--rounds"),
        "max_seconds": opt.positive(max_seconds, "--max-seconds"),
        "time_limit": opt.optional_duration(time_limit, "--time-limit"),
        "compile_limit": opt.not_negative(compile_limit, "--compile-limit"),
        "stages": stages,
        "seed": seeding.check(seed),
    }
    return execute("kernel", experiment, experiment.KernelConfig, flags, ctx, out=out, resume=resume, json=json)
