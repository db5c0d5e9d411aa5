"""``questbench e2e``: prefill and per-token latency of whole models, every method against dense."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from questbench import seeding
from questbench.cli import _options as opt

EXAMPLES = (
    "questbench e2e --seq-len 8k,16k,32k --budget 2k --cache-fill random",
    "questbench e2e --model constructed --dtype fp32 --seq-len 2k --budget 256",
)

WHAT = "Model"
HOW = "Measurement"
MODEL = "shape:NAME (random weights), constructed, needle, a hub id or a local folder: ls models."
WEIGHTS = "full, int8, int4 (torchao, extra quant)."
HEAD = "Quantise the output matrix too."
SELECT = "Who has a list of pages: auto, kv_head, q_head."
DENSE = "Leading layers that stay dense (default: the model's own)."
FILL = "prefill, or random: fill the caches without a prompt, for decode timing alone."
CHUNK = "Tokens of the prompt that go through the model at once."
PREFILLS = "Rounds of timed prefills."
LOOP = "auto, eager, graph (CUDA), model (its own forward)."
RIVALS = "Also time transformers with these caches: static, dynamic."
TOKENS = "Lengths of the two generations that give the slope."

Lengths = Annotated[str, opt.flag("--seq-len", metavar="TOKENS", help="Tokens of the prompt.", panel=opt.AXES)]
Batch = Annotated[str, opt.flag("--batch", metavar="N", help="Rows per step.", panel=opt.AXES)]
Dtypes = Annotated[str, opt.flag("--dtype", metavar="NAMES", help="bf16, fp16, fp32.", panel=opt.AXES)]
Weights = Annotated[str, opt.flag("--weights", metavar="NAMES", help=WEIGHTS, panel=opt.AXES)]
SelectBy = Annotated[str, opt.flag("--select-by", metavar="NAMES", help=SELECT, panel=opt.AXES)]
Devices = Annotated[str, opt.flag("--device", metavar="NAMES", help="cpu, cuda.", panel=opt.MACHINE)]
Model = Annotated[str, opt.flag("--model", metavar="NAME", help=MODEL, panel=WHAT)]
Layers = Annotated[
    str | None, opt.flag("--layers", metavar="N", help="Use only this many layers of a shape.", panel=WHAT)
]
Head = Annotated[bool, opt.flag("--quantise-head", help=HEAD, panel=WHAT)]
DenseLayers = Annotated[str | None, opt.flag("--dense-layers", metavar="N", help=DENSE, panel=WHAT)]
Online = Annotated[bool, opt.flag("--online", help="Download models from the hub.", panel=WHAT)]
RemoteCode = Annotated[bool, opt.flag("--trust-remote-code", help="Run code of the model's repository.", panel=WHAT)]
Fill = Annotated[str, opt.flag("--cache-fill", metavar="HOW", help=FILL, panel=HOW)]
Chunk = Annotated[str, opt.flag("--prefill-chunk", metavar="TOKENS", help=CHUNK, panel=HOW)]
Prefills = Annotated[str, opt.flag("--prefill-rounds", metavar="N", help=PREFILLS, panel=HOW)]
Loop = Annotated[str, opt.flag("--loop", metavar="NAME", help=LOOP, panel=HOW)]
Rivals = Annotated[str | None, opt.flag("--transformers", metavar="NAMES", help=RIVALS, panel=HOW)]
Tokens = Annotated[str, opt.flag("--tokens", metavar="N,M", help=TOKENS, panel=HOW)]
Rounds = Annotated[str, opt.flag("--rounds", metavar="N", help="Fewest rounds per cell.", panel=HOW)]
MaxSeconds = Annotated[
    float, opt.flag("--max-seconds", metavar="S", help="Time limit for each measurement of a cell.", panel=HOW)
]
TimeLimit = Annotated[str | None, opt.flag("--time-limit", metavar="TIME", help=opt.TIME_LIMIT, panel=HOW)]
Stages = Annotated[bool, opt.flag("--stages/--no-stages", help="Time the parts of a step apart.", panel=HOW)]


def e2e(
    ctx: typer.Context,
    model: Model = "shape:sheared-llama-1.3b",
    seq_lens: Lengths = "4k",
    methods: opt.Methods = "dense, quest, h2o, tova, streaming_llm",
    method_args: opt.MethodArgs = None,
    budgets: opt.Budgets = "1k",
    page_sizes: opt.PageSizes = "16",
    batch: Batch = "1",
    dtype: Dtypes = "bf16",
    weights: Weights = "full",
    select_by: SelectBy = "auto",
    quantise_head: Head = False,
    layers: Layers = None,
    dense_layers: DenseLayers = None,
    cache_fill: Fill = "prefill",
    prefill_chunk: Chunk = "2k",
    prefill_rounds: Prefills = "3",
    loop: Loop = "auto",
    rivals: Rivals = None,
    tokens: Tokens = "4,16",
    rounds: Rounds = "20",
    max_seconds: MaxSeconds = 60.0,
    time_limit: TimeLimit = None,
    stages: Stages = True,
    threads: opt.Threads = None,
    device: Devices = "cpu",
    backend: opt.Backend = None,
    online: Online = False,
    trust_remote_code: RemoteCode = False,
    seed: opt.Seed = 0,
    out: opt.Out = Path("results"),
    resume: opt.Resume = None,
    json: opt.Json = False,
) -> int:
    """Time prefill and decode of a whole model for every method, against dense in the same rounds.

    Every row shows the time that its bytes (weights and KV entries) take at this machine's read bandwidth, and the
    speed-up over dense that they would allow.
    """
    from questbench.cli._run import execute
    from questbench.experiments import e2e as experiment

    flags = {
        "model": model,
        "layers": opt.optional_count(layers, "--layers"),
        "methods": opt.names(methods, "--method"),
        "method_args": opt.pairs(method_args),
        "seq_lens": opt.counts(seq_lens, "--seq-len"),
        "budgets": opt.counts(budgets, "--budget"),
        "page_sizes": opt.counts(page_sizes, "--page-size"),
        "batch": opt.counts(batch, "--batch"),
        "dtype": opt.names(dtype, "--dtype"),
        "weights": opt.names(weights, "--weights"),
        "select_by": opt.names(select_by, "--select-by"),
        "quantise_head": quantise_head,
        "dense_layers": opt.optional_count(dense_layers, "--dense-layers", least=0),
        "cache_fill": cache_fill,
        "prefill_chunk": opt.count(prefill_chunk, "--prefill-chunk"),
        "prefill_rounds": opt.count(prefill_rounds, "--prefill-rounds"),
        "loop": loop,
        "rivals": opt.names(rivals, "--transformers") if rivals is not None else [],
        "tokens": opt.counts(tokens, "--tokens"),
        "rounds": opt.count(rounds, "--rounds"),
        "max_seconds": opt.positive(max_seconds, "--max-seconds"),
        "time_limit": opt.optional_duration(time_limit, "--time-limit"),
        "stages": stages,
        "threads": [None] if threads is None else opt.counts(threads, "--threads"),
        "device": opt.names(device, "--device"),
        "backend": backend,
        "online": online,
        "trust_remote_code": trust_remote_code,
        "seed": seeding.check(seed),
    }
    return execute("e2e", experiment, experiment.E2EConfig, flags, ctx, out=out, resume=resume, json=json)
