"""One sample through all cells: prefill once, fork per cell, feed the question and decode greedily."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from questbench import seeding
from questbench.errors import CellError, UsageError
from questbench.experiments._counting import ReadCounter
from questbench.experiments._protocol import Prompt, split
from questbench.tasks._base import Sample, Task

if TYPE_CHECKING:
    from questbench.experiments.accuracy import AccuracyConfig, Cell
    from questbench.kernels._ops import Ops
    from questbench.models.loading import LoadedModel


@dataclass
class Session:
    """A loaded model with everything that the samples of a run share."""

    config: AccuracyConfig
    cells: Sequence[Cell]
    loaded: LoadedModel
    ops: Ops
    dense_layers: int
    stop_ids: frozenset[int]

    @classmethod
    def open(cls, config: AccuracyConfig, cells: Sequence[Cell]) -> Session:
        """Load the model and check what only the model can tell.

        Raises:
            UsageError, PrerequisiteError: the model cannot be used for this run.
        """
        from questbench.experiments._setup import load_ops, torch_dtype
        from questbench.models.loading import resolve

        ops = load_ops(config.device, config.backend)
        loaded = resolve(
            config.model,
            dtype=torch_dtype(config.dtype),
            device=config.device,
            seed=config.seed,
            online=config.online,
            trust_remote_code=config.trust_remote_code,
        )
        if loaded.tokenizer is None:
            raise UsageError(
                f"Model '{config.model}' has random weights and no tokenizer: its accuracy means nothing.",
                "Use --model constructed, a local folder or a hub id.",
            )
        layers = loaded.model.config.get_text_config(decoder=True).num_hidden_layers
        dense_layers = loaded.dense_layers if config.dense_layers is None else config.dense_layers
        if dense_layers >= layers:
            raise UsageError(
                f"--dense-layers {dense_layers} leaves no sparse layer: {config.model} has {layers} layers.",
                f"Use --dense-layers {layers - 1} or fewer.",
            )
        return cls(config, cells, loaded, ops, dense_layers, _stop_ids(loaded))

    @property
    def query_heads(self) -> int:
        """Query heads of the model."""
        return int(self.loaded.model.config.get_text_config(decoder=True).num_attention_heads)

    def sample(self, task: Task, spec: str, index: int, length: int, *, unit: str) -> list[dict[str, Any]]:
        """Run sample ``index`` through every cell; rows for samples.jsonl, one per cell."""
        import torch

        from questbench.experiments._setup import thread_count

        rng = seeding.generator(self.config.seed, spec, length, index)
        sample = task.sample(index, length=length, tokenizer=self.loaded.tokenizer, rng=rng)
        prompt = split(sample, self.loaded.tokenizer, self.config.protocol, task.last_chars(sample))
        if not prompt.prefill:
            raise CellError(f"{sample.id}: the protocol {self.config.protocol} leaves nothing to prefill.")
        with torch.inference_mode(), thread_count(self.config.threads):
            return self._cells(task, spec, sample, prompt, length, unit)

    def _cells(
        self, task: Task, spec: str, sample: Sample, prompt: Prompt, length: int, unit: str
    ) -> list[dict[str, Any]]:
        from questbench.methods._make import make
        from questbench.models import hf

        model = self.loaded.model
        collect = frozenset(cell.method.prefill_observes for cell in self.cells) - {"nothing"}
        base = hf.build_cache(
            model,
            make("dense", 0),
            dense_layers=0,
            page_size=self.cells[0].page_size,
            ops=self.ops,
            capacity=prompt.length + task.max_new_tokens,
            collect=collect,
            bounds=True,
        )
        hf.forward(model, prompt.prefill, base)
        prompt_hash = hashlib.sha256(repr(prompt.prefill + prompt.steps).encode()).hexdigest()[:16]
        rows = []
        for cell in self.cells:
            counter = ReadCounter(self.query_heads, self.dense_layers, prompt.needles)
            cache = hf.fork(
                base, cell.method, dense_layers=self.dense_layers, page_size=cell.page_size, observer=counter
            )
            completion, new_ids = self._decode(task, prompt, cache)
            hf.release(cache)
            rows.append(
                {
                    "unit": unit,
                    "sample": sample.id,
                    "task": spec,
                    "seq_len": length,
                    "cell": cell.key,
                    "method": cell.name,
                    "prompt": prompt_hash,
                    "prompt_tokens": prompt.length,
                    "steps": len(counter.steps),
                    "new_tokens": len(new_ids),
                    "completion": completion,
                    "score": float(task.score(sample, completion)),
                    **_reads(counter, first_answer=len(prompt.steps) - 1),
                    "meta": dict(sample.meta),
                }
            )
        hf.release(base)
        return rows

    def _decode(self, task: Task, prompt: Prompt, cache: Any) -> tuple[str, list[int]]:
        """Feed the steps, then decode greedily until a stop; the completion without special tokens."""
        from questbench.models import hf

        for token in prompt.steps:
            logits = hf.forward(self.loaded.model, (token,), cache)
        new: list[int] = []
        text = ""
        while len(new) < task.max_new_tokens:
            token = int(logits.argmax())
            if token in self.stop_ids:
                break
            new.append(token)
            text = self.loaded.tokenizer.decode(new, skip_special_tokens=True)
            if any(mark in text for mark in task.stop) or len(new) == task.max_new_tokens:
                break
            logits = hf.forward(self.loaded.model, (token,), cache)
        return text, new


def _reads(counter: ReadCounter, first_answer: int) -> dict[str, Any]:
    """The counts of one cell and sample; the answer's steps begin at ``first_answer``."""
    reads = {
        "tokens_visible": counter.mean("visible"),
        "tokens_read": counter.mean("read"),
        "tokens_resident": counter.mean("resident"),
        "tokens_scored": counter.mean("scored"),
        "dense_fallback": counter.fallback,
    }
    answer = counter.steps[first_answer:]
    if counter.needles and answer:
        reads["needle_read"] = counter.mean("needle_read", first=first_answer)
        # An upper and a lower bound of a hit: parts of the needle at the first step, all of it up to the last.
        reads["needle_resident_first"] = all(layer.needle_present for layer in answer[0])
        reads["needle_resident_last"] = all(layer.needle_resident for layer in answer[-1])
    return reads


def _stop_ids(loaded: LoadedModel) -> frozenset[int]:
    """Every id that ends a generation: the tokenizer's and all of the generation config's."""
    ids: list[int] = []
    for source in (loaded.tokenizer, getattr(loaded.model, "generation_config", None)):
        value = getattr(source, "eos_token_id", None)
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return frozenset(ids)
