"""A task of the lm-evaluation-harness under every method: ``lm_eval:hellaswag``, ``lm_eval:NAME:include_path=DIR``.

Prompts, few-shot examples, filters and metrics are the harness's own
(https://github.com/EleutherAI/lm-evaluation-harness, ``pip install 'questbench[lm-eval]'``). A sample scores its
``metric``; all of its metrics stand in samples.jsonl, and what the harness makes of them in the record's ``stats``.
The last ``feed`` tokens of a context, and everything behind them, run token by token with the method active: were the
whole context prefilled, a choice of one token would never see the method. A text of which only the likelihood is asked
is prefilled up to the largest budget. Contexts longer than ``--seq-len``, or than the model takes, lose their
beginning, as in the harness.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

from questbench.errors import PrerequisiteError, UsageError
from questbench.tasks._base import Request, RequestTask, Sample, Tokenizer

MOST_NEW = 256
"""Tokens to generate where a task does not say, as in the harness."""
BINARY = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
"""Metrics that are 0 or 1 of every sample."""
KINDS: Mapping[str, Literal["likelihood", "text", "completion"]] = {
    "loglikelihood": "likelihood",
    "loglikelihood_rolling": "text",
    "generate_until": "completion",
}
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")


@dataclass(frozen=True)
class LmEval(RequestTask):
    """One task of the harness."""

    task: str = ""
    """Its name there; a group stands for its tasks."""
    include_path: str = ""
    """Folder with task files of your own."""
    metric: str = ""  # type: ignore[misc]
    """What a sample scores: ``acc_norm``, or with a filter ``exact_match/strict-match``; its first mean if empty."""
    fewshot: int | None = None
    """Examples in front of the question; the task's own number if ``None``."""
    feed: int = 1
    """Last tokens of a context that run with the method active."""
    online: bool = False
    """Data may be downloaded."""

    first: ClassVar[str] = "task"
    default_samples: ClassVar[int] = 500
    """At most so many; the samples there are if they are fewer."""

    @classmethod
    def expand(cls, name: str, settings: str, *, online: bool = False) -> list[str]:
        """Specs of single tasks, of a group several."""
        task, colon, others = settings.partition(":")
        folder = next((part[13:] for part in others.split(":") if part.startswith("include_path=")), "")
        return [f"{name}:{one}{colon}{others}" for one in _load(task, folder, online, None)]

    def tasks(self) -> Mapping[str, Any]:
        """The harness's tasks of this name.

        Raises:
            PrerequisiteError: lm-eval is not installed, or cannot load the task.
            UsageError: it has no such task.
        """
        return _load(self.task, self.include_path, self.online, self.fewshot)

    @property
    def harness(self) -> Any:
        """The harness's own task."""
        return self.tasks()[self.task]

    @property
    def rolling(self) -> bool:  # type: ignore[override]
        """Whether all that is asked for is the likelihood of whole texts."""
        return bool(self.harness.OUTPUT_TYPE == "loglikelihood_rolling")

    @property
    def protocols(self) -> tuple[str, ...]:  # type: ignore[override]
        """The one that says what runs with the method active."""
        return ("stream",) if self.rolling else ("prefill",)

    @property
    def binary(self) -> bool:  # type: ignore[override]
        """Whether a sample scores 0 or 1."""
        return self.scored.partition(",")[0] in BINARY

    @functools.cached_property
    def scored(self) -> str:
        """The metric that a sample scores, and the filter in front of it: ``acc,none``.

        Raises:
            UsageError: the task has no such mean over samples.
        """
        means = [name for name, how in self.harness.aggregation().items() if getattr(how, "__name__", "") == "mean"]
        known = [f"{name},{one.name}" for one in self.harness._filters for name in means]
        wanted = [name for name in known if self.metric in ("", name.replace(",", "/"), name.partition(",")[0])]
        if not wanted:
            what = f"metric '{self.metric}'" if self.metric else "metric"
            hint = f"Means of it: {', '.join(known)}. Write --task lm_eval:{self.task}:metric=NAME."
            why = f"lm-eval's {self.task} has no {what} that is a mean over samples."
            raise UsageError(why, hint if known else "Use another task.")
        return wanted[0]

    def samples(self, asked: int | None, length: int) -> int:
        """As many as asked for, or the task's documents, 500 at most.

        Raises:
            UsageError: there are fewer than asked for, or the task cannot be run.
        """
        del length
        if self.feed < 1:
            raise UsageError("lm_eval: feed=0 leaves nothing to run with the method active.", "Use feed=1 or more.")
        if getattr(self.harness, "UNSAFE_CODE", False) or getattr(self.harness, "MULTIMODAL", False):
            raise UsageError(f"lm-eval's {self.task} runs code or looks at pictures.", "Use a task on plain text.")
        if not self.rolling:
            _ = self.scored
        there = len(_documents(self.harness))
        if asked is not None and asked > there:
            raise UsageError(f"lm-eval's {self.task} has {there:,} samples, not {asked:,}.", f"Use --samples {there}.")
        return asked or min(self.default_samples, there)

    def digest(self) -> str:
        """SHA-256 of the documents."""
        text = json.dumps([dict(doc) for doc in _documents(self.harness)], sort_keys=True, default=repr)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def build(self, count: int, seed: int, chat: Callable[..., str] | None) -> list[Sample]:
        """The first samples, with their requests.

        Args:
            seed: of the choice of few-shot examples.
            chat: makes one text of a chat; ``None`` for bare prompts.
        """
        task = self.harness
        task.set_fewshot_seed(seed)
        task.build_all_requests(limit=count, apply_chat_template=chat is not None, chat_template=chat)
        by_doc: dict[int, list[Any]] = {}
        for instance in task.instances:
            by_doc.setdefault(instance.doc_id, []).append(instance)
        return [
            Sample(
                id=f"{self.name}-{index:04d}",
                context="",
                question="",
                answers=(str(task.doc_to_target(instances[0].doc)),),
                meta={"document": index},
                requests=tuple(_request(one) for one in sorted(instances, key=lambda one: one.idx)),
            )
            for index, instances in sorted(by_doc.items())
        ]

    def judge(self, sample: Sample, replies: Sequence[Any]) -> dict[str, Any]:
        """Metrics of a sample, by ``metric,filter``, as the harness computes them."""
        task = self.harness
        found: dict[str, Any] = {}
        doc = _documents(task)[sample.meta["document"]]
        times = task.config.repeats or 1  # greedy decoding says the same every time
        asked = [SimpleNamespace(resps=[reply] * times, doc=doc, filtered_resps={}) for reply in replies]
        for one in task._filters:
            one.apply(asked)
            metrics = task.process_results(doc, [each.filtered_resps[one.name] for each in asked])
            found |= {f"{name},{one.name}": _plain(value) for name, value in metrics.items()}
        return found

    def score_of(self, metrics: Mapping[str, Any]) -> float:
        """What a sample with these metrics scores."""
        return float(metrics[self.scored])

    def summary(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The harness's own figures over all samples."""
        known = self.harness.aggregation()
        named = {key: known[key.partition(",")[0]] for key in metrics[0] if key.partition(",")[0] in known}
        return {"metrics": {key: _plain(how([one[key] for one in metrics])) for key, how in named.items()}}

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """One sample by itself, without a chat template."""
        del length, tokenizer, rng
        return self.build(index + 1, 0, None)[index]

    def score(self, sample: Sample, completion: str) -> float:
        """Of a sample that asks for one completion."""
        return self.score_of(self.judge(sample, [completion]))


@functools.cache
def _documents(harness: Any) -> Any:
    """The task's documents; the harness processes all of them anew whenever it is asked."""
    return harness.eval_docs


@functools.cache
def _load(task: str, folder: str, online: bool, fewshot: int | None) -> Mapping[str, Any]:
    if not task:
        raise UsageError("lm_eval needs the name of a task of lm-eval.", "Write --task lm_eval:hellaswag.")
    if not online:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            os.environ.setdefault(name, "1")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        why = f"lm-eval cannot be imported ({error})."
        raise PrerequisiteError(why, "Install it with: pip install 'questbench[lm-eval]'") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=folder or None)
    if task not in manager.all_tasks:
        raise UsageError(f"lm-eval has no task '{task}'.", "For one of your own: --task lm_eval:NAME:include_path=DIR")
    try:
        found: Mapping[str, Any] = manager.load(task)["tasks"]
    except Exception as error:  # a task is a program of its own; most often its data is not there
        lines = str(error).splitlines() or [""]
        why = f"lm-eval cannot load '{task}': {type(error).__name__}: {lines[0]}"
        raise PrerequisiteError(why, "If its data has to be downloaded, add --online.") from error
    for one in found.values():
        if fewshot is not None:
            one.set_config("num_fewshot", fewshot)
    return found


def _request(instance: Any) -> Request:
    """A request in our words.

    Raises:
        UsageError: it asks for sampling.
    """
    kind, (context, *others) = KINDS[instance.request_type], instance.args
    if kind != "completion":
        return Request(kind, context, others[0] if others else "")
    settings = others[0]
    sampled = settings.get("do_sample") and settings.get("temperature", 1.0) > 0
    if sampled or settings.get("num_beams", 1) != 1:
        raise UsageError("This task samples or searches; questbench decodes greedily.", "Set do_sample: false in it.")
    until = settings.get("until") or []
    stop = [until] if isinstance(until, str) else map(str, until)
    most = next((int(settings[name]) for name in LENGTHS if name in settings), MOST_NEW)
    return Request(kind, context, stop=tuple(filter(None, stop)), max_new_tokens=most)


def _plain(value: Any) -> Any:
    """A metric as JSON holds it."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (bool, int, float, str)) else str(value)
