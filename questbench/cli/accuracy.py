"""``questbench accuracy``: long-context tasks, every method on the same samples, paired against dense."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from questbench.cli import _options as opt

EXAMPLES = (
    "questbench accuracy --task passkey --budget 64,256,1k",
    "questbench accuracy --task kv:records=full --samples 20 --seq-len 8k",
)

Tasks = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAMES",
        help="Tasks, with parameters behind a colon: kv:records=full. Required.",
        rich_help_panel=opt.AXES,
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        "--seq-len",
        metavar="TOKENS",
        help="Tokens of the prompt; the task's own if left out.",
        rich_help_panel=opt.AXES,
    ),
]
Samples = Annotated[
    str | None, typer.Option("--samples", metavar="N", help="Samples per task and length; the task's own if left out.")
]
Protocol = Annotated[
    str,
    typer.Option(
        "--protocol",
        metavar="NAME",
        help="Where the method becomes active: stepwise (from the question on), prefill, quest-paper.",
    ),
]
Model = Annotated[
    str,
    typer.Option("--model", metavar="NAME", help="constructed, a hub id, a local folder, or shape:NAME: ls models."),
]
Dtype = Annotated[str, typer.Option("--dtype", metavar="NAME", help="fp32, bf16 or fp16.")]
DenseLayers = Annotated[
    str | None,
    typer.Option("--dense-layers", metavar="N", help="Leading layers left dense; the model's own if left out."),
]
Online = Annotated[bool, typer.Option("--online", help="Models and data may be fetched from the hub.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that a model repository brings.")]


def accuracy(
    ctx: typer.Context,
    tasks: Tasks = None,
    methods: opt.Methods = "dense,quest,h2o,tova,streaming_llm",
    method_args: opt.MethodArgs = None,
    budgets: opt.Budgets = "256",
    page_sizes: opt.PageSizes = "16",
    seq_lens: Prompts = None,
    samples: Samples = None,
    protocol: Protocol = "stepwise",
    model: Model = "constructed",
    dtype: Dtype = "fp32",
    dense_layers: DenseLayers = None,
    online: Online = False,
    trust_remote_code: RemoteCode = False,
    threads: opt.Threads = None,
    device: opt.Device = "cpu",
    backend: opt.Backend = None,
    seed: opt.Seed = 0,
    out: opt.Out = Path("results"),
    resume: opt.Resume = None,
    json: opt.Json = False,
) -> int:
    """Score every method on the same samples, with a paired test against dense.

    The context is prefilled dense, once per sample; then the question and the answer run with the method active.
    """
    from questbench.cli._run import execute
    from questbench.experiments import accuracy as experiment

    flags = {
        "tasks": opt.names(tasks, "--task") if tasks is not None else [],
        "methods": opt.names(methods, "--method"),
        "method_args": opt.pairs(method_args),
        "budgets": opt.counts(budgets, "--budget"),
        "seq_lens": opt.counts(seq_lens, "--seq-len") if seq_lens is not None else None,
        "page_sizes": opt.counts(page_sizes, "--page-size"),
        "protocol": protocol,
        "samples": opt.optional_count(samples, "--samples"),
        "model": model,
        "dtype": dtype,
        "dense_layers": opt.optional_count(dense_layers, "--dense-layers", least=0),
        "device": device,
        "backend": backend,
        "threads": opt.optional_count(threads, "--threads"),
        "seed": seed,
        "online": online,
        "trust_remote_code": trust_remote_code,
    }
    return execute("accuracy", experiment, experiment.AccuracyConfig, flags, ctx, out=out, resume=resume, json=json)
