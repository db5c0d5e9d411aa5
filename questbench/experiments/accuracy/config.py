"""What the accuracy experiment runs: its settings, and the grid of tasks, lengths and cells that they span."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

from questbench.errors import QuestbenchError, SkipCell, UsageError
from questbench.measure import lossless
from questbench.methods._base import Method
from questbench.methods._make import make, make_all
from questbench.tasks._base import StreamTask, Task
from questbench.tasks._make import expand, make_task


@dataclass(frozen=True)
class AccuracyConfig:
    """What to run; every field is an axis or a setting of the command line."""

    tasks: list[str]
    """Registered tasks, parameters behind a colon: ``kv:records=16``."""
    methods: list[str] = field(default_factory=lambda: ["dense", "quest", "h2o", "tova", "streaming_llm"])
    method_args: dict[str, str] = field(default_factory=dict)
    budgets: list[int] = field(default_factory=lambda: [256])
    seq_lens: list[int] | None = None
    """Tokens of the prompt; the task's own default if ``None``."""
    page_sizes: list[int] = field(default_factory=lambda: [16])
    protocol: str | None = None
    """When the method becomes active; the task's own protocol if ``None``."""
    samples: int | None = None
    """Samples per task and length; the task's own default if ``None``."""
    batch: int = 1
    """Samples that run together; less after one did not fit into memory. In bf16 and fp16 it can change an answer."""
    chat_template: str = "auto"
    """Whether prompts go into the tokenizer's chat template: ``auto``, ``on``, ``off``."""
    margin: float = lossless.MARGIN
    """Largest loss of score that still counts as lossless."""
    model: str = "constructed"
    dtype: str = "fp32"
    dense_layers: int | None = None
    """Leading dense layers, alike for all methods; the model's own default if ``None``."""
    device: str = "cpu"
    backend: str | None = None
    threads: int | None = None
    seed: int = 0
    log_samples: bool = False
    """Keep prompts and gold answers in samples.jsonl too, not only the completions."""
    online: bool = False
    trust_remote_code: bool = False
    data: dict[str, str] = field(default_factory=dict)
    """Where tasks on data find it: task -> file, folder or ``hf:owner/name``; ``*`` is for all."""


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

    def unit(self, index: int) -> str:
        """Key of a sample."""
        return f"{self.key}|{index:05d}"


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
    return [make_task(spec) for spec in expand(config.tasks)]


def grid(config: AccuracyConfig) -> list[tuple[Work, list[Cell], list[Refused]]]:
    """Every task at every length, with the cells that can run on it and those that cannot.

    Raises:
        UsageError: a protocol that a task does not have.
    """
    usable, refused = cells(config)
    found = []
    for spec in expand(config.tasks):
        task = make_task(spec, config.data, online=config.online)
        protocol = config.protocol or task.protocols[0]
        if protocol not in task.protocols:
            raise UsageError(
                f"{task.name} has no protocol '{protocol}'; it has: {', '.join(task.protocols)}.",
                f"Use --protocol {task.protocols[0]}, or leave it out.",
            )
        for length in config.seq_lens or [task.default_length]:
            work = Work(spec, task, length, task.samples(config.samples, length), protocol)
            found.append(_streamed(work, usable, refused) if isinstance(task, StreamTask) else (work, usable, refused))
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
    behind = max((cell.method.budget for cell in fitting if cell.method.budgeted), default=0)
    return replace(work, behind=behind), fitting, refused + skipped
