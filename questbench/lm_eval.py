"""lm-evaluation-harness tasks over questbench methods: ``python -m questbench.lm_eval --tasks NAME --method quest``.

    pip install 'questbench[lm-eval]'
    python -m questbench.lm_eval --tasks my_task --include-path DIR --method dense,quest --budget 256

Requests are answered by ``experiments/accuracy/requests.py``: contexts are prefilled dense, and from the last
``--feed`` tokens of a context on everything runs token by token with the method active. What was really read is
counted in the attention op and printed with the results (``decode_steps``, ``limited_steps``, ``tokens_read``, ...).
From Python:

    results = lm_eval.simple_evaluate(model=language_model(Requests(loaded, Quest(budget=256), ops)), tasks=[...])
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.errors import CellError, ExitCode, PrerequisiteError, QuestbenchError, UsageError

if TYPE_CHECKING:
    from questbench.experiments.accuracy.requests import Requests
    from questbench.methods._base import Method

MOST_NEW = 256
"""Tokens to generate where a task does not say, as in lm-eval."""


def language_model(requests: Requests) -> Any:
    """An ``lm_eval.api.model.LM`` that answers through ``requests``.

    Raises:
        PrerequisiteError: lm-eval is not installed.
    """
    return _model_class(_harness().api.model.LM)(requests)


def _harness() -> Any:
    try:
        import lm_eval
        import lm_eval.api.model
        import lm_eval.tasks
    except ImportError as error:
        raise PrerequisiteError(
            f"lm-eval cannot be imported ({error}).", "Install it with: pip install 'questbench[lm-eval]'"
        ) from None
    return lm_eval


def _model_class(base: type[Any]) -> type[Any]:
    """The model over a base class with lm-eval's interface."""

    class QuestbenchLM(base):  # type: ignore[misc]
        """Answers requests with a model under a method."""

        def __init__(self, requests: Requests) -> None:
            super().__init__()
            self.requests = requests

        @property
        def tokenizer_name(self) -> str:
            """Part of lm-eval's cache keys."""
            return str(self.requests.loaded.name).replace("/", "__")

        def chat_template(self, chat_template: bool | str = False) -> str:
            """The tokenizer's template, for lm-eval's log."""
            return str(getattr(self.requests.loaded.tokenizer, "chat_template", None) or "") if chat_template else ""

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            """A chat as the text of one prompt."""
            from questbench.experiments.accuracy.template import render

            try:
                return render(
                    self.requests.loaded.tokenizer,
                    chat_history,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            except UsageError as error:
                raise UsageError(error.message, "Leave --apply-chat-template out.") from error

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """Of continuations behind contexts."""
            return self.requests.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            """Of whole texts."""
            return self.requests.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """Greedy completions."""
            return self.requests.generate([(args[0], *_generation(args[1])) for args in (r.args for r in requests)])

    return QuestbenchLM


def _generation(settings: Mapping[str, Any]) -> tuple[list[str], int]:
    """Stop texts and most tokens of a generation request.

    Raises:
        UsageError: it asks for sampling.
    """
    sampled = settings.get("do_sample") and settings.get("temperature", 1.0) > 0
    if sampled or settings.get("num_beams", 1) != 1:
        raise UsageError("This task samples or searches; questbench decodes greedily.", "Set do_sample: false in it.")
    until = settings.get("until") or []
    stop = [until] if isinstance(until, str) else [str(mark) for mark in until]
    most = next((settings[name] for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if name in settings), None)
    return [mark for mark in stop if mark], MOST_NEW if most is None else int(most)


def evaluate(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the tasks under every method and budget; one result per cell and task, each with counts of its own.

    Raises:
        UsageError, PrerequisiteError: the run makes no sense or lacks something.
    """
    cells = list(_cells(arguments))
    harness = _harness()
    from questbench.experiments.accuracy.requests import Requests
    from questbench.experiments.setup import check_machine, load_ops, thread_count, torch_dtype
    from questbench.models.loading import resolve

    check_machine(arguments.device, arguments.backend, arguments.dtype, [arguments.page_size], arguments.threads)
    ops = load_ops(arguments.device, arguments.backend)
    loaded = resolve(
        arguments.model, dtype=torch_dtype(arguments.dtype), device=arguments.device, online=arguments.online
    )
    manager = harness.tasks.TaskManager(include_path=arguments.include_path)
    names = _names(arguments.tasks)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UsageError(f"lm-eval has no task '{unknown[0]}'.", "Add your own folder with --include-path DIR.")
    found = []
    for (name, method), task in itertools.product(cells, names):
        requests = Requests(
            loaded,
            method,
            ops,
            dense_layers=arguments.dense_layers,
            page_size=arguments.page_size,
            feed=arguments.feed,
            batch=arguments.batch,
        )
        outcome: dict[str, Any]
        try:
            with thread_count(arguments.threads):
                results = harness.simple_evaluate(
                    model=language_model(requests),
                    tasks=[task],
                    num_fewshot=arguments.num_fewshot,
                    limit=arguments.limit,
                    task_manager=manager,
                    apply_chat_template=arguments.apply_chat_template,
                    log_samples=False,
                    bootstrap_iters=1000,
                    random_seed=arguments.seed,
                    numpy_random_seed=arguments.seed,
                    torch_random_seed=arguments.seed,
                    fewshot_random_seed=arguments.seed,
                )
            outcome = {"results": results["results"], "samples": results.get("n-samples", {})}
        except CellError as error:  # of this cell alone: NaN or infinite logits
            reason = f"{error.message} {error.hint or ''}".strip()
            outcome = {"results": {task: {}}, "samples": {}, "error": reason}
        found.append(
            {
                "model": loaded.name,
                "method": name,
                "method_args": method.arguments(requests.page_size),
                "dense_layers": requests.dense_layers,
                "page_size": requests.page_size,
                "feed": requests.feed,
                "backend": ops.name,
                "lm_eval": getattr(harness, "__version__", "unknown"),
                **outcome,
                "proof": requests.proof.facts(),
            }
        )
    return found


def _cells(arguments: argparse.Namespace) -> Iterator[tuple[str, Method]]:
    """Every method at every budget; dense once."""
    from questbench.methods._make import check_arguments, make_all

    names = _names(arguments.method)
    given: dict[str, str] = {}
    for text in arguments.field or []:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise UsageError(f"-M '{text}' is not name=value.", "Write it as -M quest.select_by=q_head.")
        given[key] = value
    check_arguments(names, given)
    for name in names:
        for budget in units.parse_counts(arguments.budget, what="value for --budget"):
            variants = list(make_all(name, budget, given).values())
            for method in variants:
                method.check(arguments.page_size)
                yield name, method
            if not variants[0].budgeted:
                break


def _names(text: str) -> list[str]:
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise UsageError("A list of names is empty.", "Write one or more names, separated by commas.")
    return found


def _table(found: Sequence[Mapping[str, Any]]) -> str:
    """A line per cell, task and metric, and what was read behind it."""
    lines = [("method", "budget", "task", "metric", "value", "stderr", "decode steps", "limited", "tokens read")]
    for cell in found:
        proof = cell["proof"]
        for task, metrics in cell["results"].items():
            if "error" in cell:
                budget = str(cell["method_args"].get("budget", "-"))
                lines.append((str(cell["method"]), budget, task, "failed", "-", "-", "-", "-", "-"))
            for key, value in metrics.items():
                if not isinstance(value, (int, float)) or "," not in key or "_stderr" in key:
                    continue
                metric, _, kind = key.partition(",")
                spread = metrics.get(f"{metric}_stderr,{kind}")
                lines.append(
                    (
                        str(cell["method"]),
                        str(cell["method_args"].get("budget", "-")),
                        task,
                        metric if kind == "none" else f"{metric} ({kind})",
                        f"{value:.4f}",
                        f"{spread:.4f}" if isinstance(spread, (int, float)) else "-",
                        str(proof["decode_steps"]),
                        str(proof["limited_steps"]),
                        (f"{proof['tokens_read']:.1f}" if "tokens_read" in proof else "-")
                        + (" DENSE-FALLBACK" * proof["dense_fallback"]),
                    )
                )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def _strict(value: Any) -> Any:
    """The value as JSON can hold it: null for what is no number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, (list, tuple)) else value


def _write(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    try:
        text = json.dumps(_strict(found), indent=2, default=str, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise PrerequisiteError(f"Cannot write '{path}': {error.strerror}.", "Name another file with --out.") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m questbench.lm_eval",
        description="Run lm-evaluation-harness tasks over questbench methods.",
    )
    add = parser.add_argument
    add("--tasks", required=True, metavar="NAMES", help="lm-eval tasks, separated by commas")
    add("--include-path", metavar="DIR", help="folder with task files of your own")
    add("--model", default="constructed", metavar="NAME", help="constructed, needle, a hub id or a local folder")
    add("--method", default="dense,quest", metavar="NAMES", help="methods: questbench ls methods")
    add("--budget", default="256", metavar="TOKENS", help="KV entries that one query head may see; commas sweep")
    add("-M", dest="field", action="append", metavar="NAME=VALUE", help="a field of the methods; repeatable")
    add("--page-size", type=int, default=16, metavar="TOKENS")
    add("--dense-layers", type=int, metavar="N", help="leading layers that stay dense (default: the model's own)")
    add("--feed", type=int, default=1, metavar="TOKENS", help="last tokens of a context fed with the method active")
    add("--batch", type=int, default=1, metavar="N", help="contexts that run at a time")
    add("--limit", type=float, metavar="N", help="samples per task, or a share below 1")
    add("--num-fewshot", type=int, metavar="N")
    add("--apply-chat-template", action="store_true")
    add("--dtype", default="fp32", metavar="NAME", help="fp32, bf16 or fp16")
    add("--device", default="cpu", metavar="NAME")
    add("--backend", metavar="NAME", help="kernels (default: the device's own)")
    add("--threads", type=int, metavar="N")
    add("--seed", type=int, default=0, metavar="N")
    add("--online", action="store_true", help="let models and data be fetched from the hub")
    add("--out", type=Path, metavar="FILE", help="write everything as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the table goes to stdout. Returns the exit code."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # the parser has said why
        return int(stop.code or 0)
    if not arguments.online:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            os.environ.setdefault(name, "1")
    try:
        found = evaluate(arguments)
        if arguments.out is not None:
            _write(arguments.out, found)
    except QuestbenchError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"next:  {error.hint}\n" if error.hint else ""))
        return error.exit_code
    sys.stdout.write(_table(found) + "\n")
    failed = [f"{cell['method']}: {cell['error']}\n" for cell in found if "error" in cell]
    for line in dict.fromkeys(failed):
        sys.stderr.write(line)
    return ExitCode.CELLS_FAILED if failed else ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
