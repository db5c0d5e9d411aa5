"""What the accuracy experiment runs: its settings, and the grid of tasks, lengths and cells that they span."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from questbench.errors import QuestbenchError, SkipCell, UsageError
from questbench.experiments.accuracy.chat import MODES
from questbench.experiments.accuracy.protocol import PROTOCOLS
from questbench.experiments.grid import OneMachine, RunConfig
from questbench.flags import AXES, SAMPLES, at_least, choice, data_sources, flag, share
from questbench.methods._base import Method
from questbench.methods._make import make, make_all
from questbench.tasks._base import RequestTask, StreamTask, Task
from questbench.tasks._make import expand, make_task


@dataclass(frozen=True)
class AccuracyConfig(OneMachine, RunConfig):
    """What to run."""

    tasks: list[str] = flag(
        [], "--task NAMES", AXES, "Tasks, with parameters behind a colon: kv:records=full. Required.", order=-1
    )
    budgets: list[int] = flag([256])
    seq_lens: list[int] | None = flag(None, "--seq-len TOKENS", AXES, "Tokens of the prompt (default: the task's own).")
    samples: int | None = flag(None, "--samples N", SAMPLES, "Samples per task and length (default: the task's own).")
    data: dict[str, str] = flag(
        {},
        "--data PATH",
        SAMPLES,
        "File, folder or hf:owner/name for tasks that need data; TASK=PATH for one of them. Repeatable.",
        data_sources,
    )
    """By task; ``*`` is for all."""
    batch: int = flag(
        1,
        "--batch N",
        SAMPLES,
        "Samples that run at a time; fewer if memory is short. In bf16 and fp16 it can change an answer.",
    )
    protocol: str | None = flag(
        None,
        "--protocol NAME",
        SAMPLES,
        "When the method becomes active: stepwise (from the question on), prefill, quest-paper, stream.",
        choice("protocol", list(PROTOCOLS)),
    )
    """The task's own if ``None``."""
    chat_template: str = flag(
        "auto",
        "--chat-template MODE",
        SAMPLES,
        "Put prompts into the tokenizer's chat template: auto (if it has one), on, off.",
        choice("chat template mode", list(MODES)),
    )
    margin: float = flag(0.02, "--margin SHARE", SAMPLES, "Largest loss of score that still counts as lossless.", share)
    model: str = flag(
        "constructed",
        "--model NAME",
        SAMPLES,
        "constructed, needle, a hub id, a local folder, or shape:NAME: ls models.",
    )
    dtype: str = flag("fp32", "--dtype NAME", SAMPLES, "fp32, bf16 or fp16.")
    dense_layers: int | None = flag(
        None, "--dense-layers N", SAMPLES, "Leading layers that stay dense (default: the model's own).", at_least(0)
    )
    """Alike for all methods."""
    log_samples: bool = flag(
        False, "--log-samples", SAMPLES, "Also keep prompts and expected answers in samples.jsonl."
    )
    online: bool = flag(False, "--online", SAMPLES, "Download models and data from the hub.")
    trust_remote_code: bool = flag(False, "--trust-remote-code", SAMPLES, "Run code of the model's repository.")


@dataclass(frozen=True)
class Cell:
    """One method with its parameters at one page size."""

    method: Method
    page_size: int
    name: str

    @functools.cached_property
    def key(self) -> str:
        """Names the cell in samples.jsonl."""
        return f"{self.name}|{self.page_size}|{sorted(self.method.arguments(self.page_size).items())}"


@dataclass(frozen=True)
class Refused:
    """A combination of the sweep that makes no sense; it becomes a failed or, for a ``SkipCell``, a skipped record."""

    method: Method
    page_size: int
    error: QuestbenchError


@dataclass(frozen=True)
class Work:
    """One task at one length."""

    spec: str
    """As the user wrote it: ``kv:records=16``."""
    task: Task
    length: int
    samples: int
    protocol: str
    behind: int = 0
    """Stream: the largest budget of the cells, up to which every method sees everything."""

    @property
    def key(self) -> str:
        """Begins the keys of its units."""
        return f"{self.spec}|{self.length}|{self.protocol}"

    @property
    def summary(self) -> str:
        """Key of what is made of all samples."""
        return f"{self.key}|summary|{self.samples}"

    def unit(self, index: int) -> str:
        """Key of a sample."""
        return f"{self.key}|{index:05d}"

    def owns(self, unit: str) -> bool:
        """Whether a key is that of one of these samples."""
        before, _, number = unit.rpartition("|")
        return before == self.key and number.isdecimal() and int(number) < self.samples


def cells(config: AccuracyConfig) -> tuple[list[Cell], list[Refused]]:
    """The grid over methods, budgets and page sizes. Dense has no budget and comes first, once."""
    # The smallest, not the first: the order of a sweep is no part of its records.
    usable = [Cell(make("dense", 0), min(config.page_sizes), "dense")]
    refused = []
    for page_size in config.page_sizes:
        for name in config.methods:
            if name == "dense":
                continue
            for budget in config.budgets:
                for method in make_all(name, budget, config.method_args).values():
                    try:
                        method.check(page_size)
                    except UsageError as error:
                        refused.append(Refused(method, page_size, error))
                    else:
                        usable.append(Cell(method, page_size, name))
    return usable, refused


def bare_tasks(config: AccuracyConfig) -> list[Task]:
    """The tasks by themselves, before their data is looked for.

    Raises:
        UsageError: unknown ones, or parameters that they do not have.
    """
    return [make_task(spec) for spec in expand(config.tasks, online=config.online)]


def grid(config: AccuracyConfig) -> list[tuple[Work, list[Cell], list[Refused]]]:
    """Every task at every length, with the cells that can run on it and those that cannot.

    Raises:
        UsageError: a protocol that a task does not have.
    """
    usable, refused = cells(config)
    found = []
    for spec in expand(config.tasks, online=config.online):
        task = make_task(spec, config.data, online=config.online)
        protocol = config.protocol or task.protocols[0]
        if protocol not in task.protocols:
            raise UsageError(
                f"{task.name} has no protocol '{protocol}'; it has: {', '.join(task.protocols)}.",
                f"Use --protocol {task.protocols[0]}, or leave it out.",
            )
        for length in config.seq_lens or [task.default_length]:
            work = Work(spec, task, length, task.samples(config.samples, length), protocol)
            if isinstance(task, StreamTask):
                found.append(_streamed(work, usable, refused))
                continue
            if isinstance(task, RequestTask) and task.rolling:
                work = replace(work, behind=_largest(usable))
            found.append((work, usable, refused))
    return found


def _streamed(work: Work, usable: list[Cell], refused: list[Refused]) -> tuple[Work, list[Cell], list[Refused]]:
    """The cells whose budget leaves a window of the text behind it; the others have nothing to show there."""
    assert isinstance(work.task, StreamTask)
    # Texts have 95 % or more of their length.
    most = int(0.95 * work.length) - work.task.window
    fitting = [cell for cell in usable if not cell.method.budgeted or cell.method.budget <= most]
    skipped = [
        Refused(
            cell.method,
            cell.page_size,
            SkipCell(
                f"Budget {cell.method.budget} leaves no {work.task.window} tokens of {work.length} behind it, and up "
                "to the budget every method is dense.",
                "Use a longer --seq-len.",
            ),
        )
        for cell in usable
        if cell not in fitting
    ]
    return replace(work, behind=_largest(fitting)), fitting, refused + skipped


def _largest(cells: Sequence[Cell]) -> int:
    """Their largest budget; 0 without any."""
    return max((cell.method.budget for cell in cells if cell.method.budgeted), default=0)
