"""``questbench accuracy``: long-context tasks, every method on the same samples, paired against dense."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from questbench import seeding
from questbench.cli import _options as opt

EXAMPLES = (
    "questbench accuracy --task passkey --budget 64,256,1k",
    "questbench accuracy --task kv:records=full --samples 20 --seq-len 8k",
)

WHAT = "Model and samples"
TASK = "Tasks, with parameters behind a colon: kv:records=full. Required."
DATA = "File, folder or hf:owner/name for tasks that need data; TASK=PATH for one of them. Repeatable."
LENGTH = "Tokens of the prompt (default: the task's own)."
SAMPLES = "Samples per task and length (default: the task's own)."
BATCH = "Samples that run at a time; fewer if memory is short. In bf16 and fp16 it can change an answer."
PROTOCOL = "When the method becomes active: stepwise (from the question on), prefill, quest-paper, stream."
CHAT = "Put prompts into the tokenizer's chat template: auto (if it has one), on, off."
MARGIN = "Largest loss of score that still counts as lossless."
LOG = "Also keep prompts and expected answers in samples.jsonl."
MODEL = "constructed, needle, a hub id, a local folder, or shape:NAME: ls models."
DENSE = "Leading layers that stay dense (default: the model's own)."

Tasks = Annotated[str | None, opt.flag("--task", metavar="NAMES", help=TASK, panel=opt.AXES)]
Lengths = Annotated[str | None, opt.flag("--seq-len", metavar="TOKENS", help=LENGTH, panel=opt.AXES)]
Data = Annotated[list[str] | None, opt.flag("--data", metavar="PATH", help=DATA, panel=WHAT)]
Samples = Annotated[str | None, opt.flag("--samples", metavar="N", help=SAMPLES, panel=WHAT)]
Batch = Annotated[str, opt.flag("--batch", metavar="N", help=BATCH, panel=WHAT)]
Protocol = Annotated[str | None, opt.flag("--protocol", metavar="NAME", help=PROTOCOL, panel=WHAT)]
ChatTemplate = Annotated[str, opt.flag("--chat-template", metavar="MODE", help=CHAT, panel=WHAT)]
Margin = Annotated[float, opt.flag("--margin", metavar="SHARE", help=MARGIN, panel=WHAT)]
Model = Annotated[str, opt.flag("--model", metavar="NAME", help=MODEL, panel=WHAT)]
Dtype = Annotated[str, opt.flag("--dtype", metavar="NAME", help="fp32, bf16 or fp16.", panel=WHAT)]
DenseLayers = Annotated[str | None, opt.flag("--dense-layers", metavar="N", help=DENSE, panel=WHAT)]
Online = Annotated[bool, opt.flag("--online", help="Download models and data from the hub.", panel=WHAT)]
LogSamples = Annotated[bool, opt.flag("--log-samples", help=LOG, panel=WHAT)]
RemoteCode = Annotated[bool, opt.flag("--trust-remote-code", help="Run code of the model's repository.", panel=WHAT)]


def accuracy(
    ctx: typer.Context,
    tasks: Tasks = None,
    methods: opt.Methods = "dense, quest, h2o, tova, streaming_llm",
    method_args: opt.MethodArgs = None,
    budgets: opt.Budgets = "256",
    page_sizes: opt.PageSizes = "16",
    seq_lens: Lengths = None,
    samples: Samples = None,
    data: Data = None,
    batch: Batch = "1",
    protocol: Protocol = None,
    chat_template: ChatTemplate = "auto",
    margin: Margin = 0.02,
    model: Model = "constructed",
    dtype: Dtype = "fp32",
    dense_layers: DenseLayers = None,
    log_samples: LogSamples = False,
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
        "batch": opt.count(batch, "--batch"),
        "chat_template": chat_template,
        "margin": margin,
        "samples": opt.optional_count(samples, "--samples"),
        "model": model,
        "dtype": dtype,
        "dense_layers": opt.optional_count(dense_layers, "--dense-layers", least=0),
        "device": device,
        "backend": backend,
        "threads": opt.optional_count(threads, "--threads"),
        "log_samples": log_samples,
        "seed": seeding.check(seed),
        "online": online,
        "trust_remote_code": trust_remote_code,
        "data": opt.data_sources(data),
    }
    return execute("accuracy", experiment, experiment.AccuracyConfig, flags, ctx, out=out, resume=resume, json=json)
