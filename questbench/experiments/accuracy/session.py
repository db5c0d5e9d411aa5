"""Samples through all cells: prefill once, fork per cell, feed the question and decode greedily; several at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from questbench import seeding, units
from questbench._memory import move_to_huge_pages
from questbench.errors import CellError, UsageError
from questbench.experiments.accuracy import rows as made
from questbench.experiments.accuracy.batch import Batch, Script
from questbench.experiments.accuracy.chat import Chat, find
from questbench.experiments.accuracy.config import AccuracyConfig, Cell, Work
from questbench.experiments.accuracy.protocol import STREAM, Needles, Prepared, shorten, split, split_stream
from questbench.experiments.accuracy.scripts import Decoding, Reply, Taught, converse, teach
from questbench.experiments.counting import ReadCounter, RowCounters
from questbench.experiments.failures import apart, give_back, reason, spoiled
from questbench.experiments.setup import base_cache, opened, thread_count
from questbench.kernels._ops import Ops
from questbench.measure.memory import out_of_memory
from questbench.models import hf
from questbench.models.hf_cache import SparseCache
from questbench.models.loading import LoadedModel
from questbench.tasks._tokens import spelled


@dataclass(frozen=True)
class Finished:
    """What came of one sample."""

    rows: list[dict[str, Any]]
    """For samples.jsonl, one per cell."""
    prefills: int
    """Prefills made: one per way to read the prompt, and more after a larger batch ran out of memory."""


@dataclass
class Session:
    """A loaded model with everything that the samples of a run share."""

    config: AccuracyConfig
    loaded: LoadedModel
    ops: Ops
    dense_layers: int
    stop_ids: frozenset[int]
    chat: Chat | None
    max_length: int | None
    """Tokens of the longest text that the model takes."""
    tell: Callable[[str], object] = field(default=lambda words: None, repr=False)
    """Told how far the samples are that run now."""

    def __post_init__(self) -> None:
        self.batch = self.config.batch

    @classmethod
    def open(cls, config: AccuracyConfig) -> Session:
        """Load the model and check what only the model can tell.

        Raises:
            UsageError, PrerequisiteError: the model cannot be used for this run.
        """
        ops, loaded, dense_layers = opened(config, config.device, config.dtype)
        if loaded.tokenizer is None:
            raise UsageError(
                f"Model '{config.model}' has random weights and no tokenizer: its accuracy means nothing.",
                "Use --model constructed, a local folder or a hub id.",
            )
        move_to_huge_pages(loaded.model)
        text = loaded.model.config.get_text_config(decoder=True)
        longest = getattr(text, "max_position_embeddings", None)
        chat = find(loaded.tokenizer, config.chat_template)
        return cls(config, loaded, ops, dense_layers, stop_ids(loaded), chat, longest)

    @property
    def query_heads(self) -> int:
        """Query heads of the model."""
        return int(self.loaded.model.config.get_text_config(decoder=True).num_attention_heads)

    def samples(self, work: Work, cells: Sequence[Cell], indices: Sequence[int]) -> list[Finished]:
        """Run samples through ``cells``, together if memory allows; results in the order of ``indices``."""
        prepared: dict[int, Prepared] = {}
        finished: dict[int, Finished] = {}
        for index in indices:
            try:
                prepared[index] = self.prepare(work, index)
            except (UsageError, CellError) as error:
                finished[index] = Finished([made.unusable(work, cell, index, error) for cell in cells], 0)
        if prepared:
            with torch.inference_mode(), thread_count(self.config.threads):
                done = self._attempt(work, cells, list(prepared.values()), 1)
            finished |= dict(zip(prepared, done, strict=True))
        return [finished[index] for index in indices]

    def prepare(self, work: Work, index: int) -> Prepared:
        """Sample ``index`` of a (task, length): made, put into the chat template, tokenised, split, cut to fit.

        Raises:
            UsageError, CellError: it cannot be used at this length, with this protocol or model.
        """
        task, tokenizer = work.task, self.loaded.tokenizer
        chat = self.chat_for(work)
        rng = seeding.generator(self.config.seed, work.spec, work.length, index)
        counting = tokenizer if chat is None else chat.tokenizer(tokenizer)
        sample = task.sample(index, length=work.length, tokenizer=counting, rng=rng)
        new = task.max_new_tokens if sample.max_new_tokens is None else sample.max_new_tokens
        if marks := spelled(tokenizer, sample.prompt):
            sample = replace(sample, meta={**sample.meta, "special_tokens": marks})
        if work.protocol == STREAM:
            prompt = split_stream(sample, tokenizer, work.behind)
            own = split_stream(sample, tokenizer, 0)
            if self.max_length is not None and prompt.length > self.max_length:
                raise CellError(
                    f"{sample.id} has {prompt.length:,} tokens, but {self.loaded.name} takes {self.max_length:,}.",
                    "Use a shorter --seq-len.",
                )
            return Prepared(sample, prompt, 0, len(own.prefill))
        wrapped = sample if chat is None else chat.wrap(sample)
        prompt = split(wrapped, tokenizer, work.protocol, task.last_chars(wrapped), special=chat is None)
        if not prompt.prefill:
            raise CellError(f"{sample.id}: the protocol {work.protocol} leaves nothing to prefill.")
        if self.max_length is not None:
            later = sum(len(turn.tokens) + new for turn in prompt.later)
            prompt = shorten(prompt, self.max_length - new - later)
        return Prepared(sample, prompt, new, len(prompt.prefill))

    def chat_for(self, work: Work) -> Chat | None:
        """The chat template for a task; a text that is only read is no message, nor is a few-shot prompt by itself."""
        if work.protocol == STREAM or (not work.task.chat and self.config.chat_template != "on"):
            return None
        return self.chat

    def _attempt(
        self, work: Work, cells: Sequence[Cell], prepared: Sequence[Prepared], prefills: int
    ) -> list[Finished]:
        """Run a batch; halve it for as long as memory is not enough or a sample spoils the others."""
        short = False
        try:
            return self._together(work, cells, prepared, prefills)
        except Exception as error:
            if len(prepared) == 1 or not apart(error):
                raise
            short = out_of_memory(error)
        # The traceback of the error held the tensors that did not fit; here it is gone.
        give_back(self.config.device)
        half = len(prepared) - len(prepared) // 2
        if short:
            self.batch = min(self.batch, half)
        return [
            done
            for part in (prepared[:half], prepared[half:])
            for done in self._attempt(work, cells, part, prefills + 1)
        ]

    def _together(
        self, work: Work, cells: Sequence[Cell], prepared: Sequence[Prepared], prefills: int
    ) -> list[Finished]:
        found, made = self._through(work, cells, prepared)
        done = []
        for place, one in enumerate(prepared):
            known = [self._known(work, cell, one, len(prepared), first=cell is cells[0]) for cell in cells]
            rows = [row | found[cell.key][place] for row, cell in zip(known, cells, strict=True)]
            done.append(Finished(rows, prefills - 1 + made[place]))
        return done

    def _through(
        self, work: Work, cells: Sequence[Cell], prepared: Sequence[Prepared]
    ) -> tuple[dict[str, list[dict[str, Any]]], list[int]]:
        """Samples through all cells: the rows' own part, by cell; and the prefills that each sample took."""
        groups = by_prefill(cells)
        found = {key: rows for group in groups for key, rows in self._prefilled(work, group, prepared).items()}
        return found, [len(groups)] * len(prepared)

    def base(self, cells: Sequence[Cell], capacity: int) -> SparseCache:
        """An empty cache for prompts, which cells of one ``prefill_key`` can be forked from."""
        methods, reader = [cell.method for cell in cells], cells[0].method
        return base_cache(
            self.loaded.model,
            self.ops,
            methods,
            page_size=cells[0].page_size,
            capacity=capacity,
            reader=None if reader.prefill_key is None else reader,
            dense_layers=0 if reader.prefill_key is None else self.dense_layers,
        )

    def _prefilled(
        self, work: Work, cells: Sequence[Cell], prepared: Sequence[Prepared]
    ) -> dict[str, list[dict[str, Any]]]:
        """Samples through the cells that share a prefill: the rows' own part, by cell."""
        base = self.base(cells, max(one.prompt.length + one.max_new_tokens for one in prepared))
        start = time.perf_counter()
        failure = None
        prompts = units.counted(len(prepared), "prompt")

        def told(done: int, total: int) -> None:
            self.tell(f"{done / total:.0%} of {prompts} read")

        try:
            batch = Batch.prefill(self.loaded.model, [one.prompt.prefill for one in prepared], base, progress=told)
        except Exception as error:
            if len(prepared) > 1 or not apart(error):
                raise
            failure = reason(error)
        prefill = time.perf_counter() - start
        spent = {"prefill": prefill / len(prepared)}
        found = {}
        for number, cell in enumerate(cells, 1):
            self.tell(f"{prompts} read, cell {number} of {len(cells)}")
            rows = [made.failed(failure)] * len(prepared) if failure else self._cell(work, cell, batch, prepared)
            found[cell.key] = [row | {"seconds": spent | row["seconds"]} if "seconds" in row else row for row in rows]
        hf.release(base)
        return found

    def _known(self, work: Work, cell: Cell, prepared: Prepared, batch: int, *, first: bool) -> dict[str, Any]:
        """What is known of a row before anything runs; ``first``: its cell is the first of the sample."""
        row = made.identity(work, cell, prepared, batch)
        if self.config.log_samples:
            row |= made.logged(prepared, self.loaded.tokenizer, first=first)
        return row

    def counter(self, needles: Needles = ()) -> ReadCounter:
        """Counts what one row of a batch reads."""
        return ReadCounter(self.query_heads, self.dense_layers, needles)

    def _cell(self, work: Work, cell: Cell, batch: Batch, prepared: Sequence[Prepared]) -> list[dict[str, Any]]:
        """All samples of a batch through one cell; the rows' own part."""
        try:
            return self._forked(work, cell, batch, prepared)
        except Exception as error:
            return [made.failed(spoiled(error, several=len(prepared) > 1))] * len(prepared)

    def _forked(self, work: Work, cell: Cell, batch: Batch, prepared: Sequence[Prepared]) -> list[dict[str, Any]]:
        counters = [self.counter(one.prompt.needles) for one in prepared]
        results, spent = self.play(cell, batch, self._scripts(work, prepared, counters), counters)
        seconds = {name: took / len(prepared) for name, took in spent.items()}
        return [
            self._row(work, one, result, counter) | made.reads(counter) | {"seconds": seconds}
            for one, result, counter in zip(prepared, results, counters, strict=True)
        ]

    def play(
        self, cell: Cell, batch: Batch, scripts: Sequence[Script[Any]], counters: Sequence[ReadCounter]
    ) -> tuple[list[Any], dict[str, float]]:
        """One script per row over a fork of a prefilled batch: their results, and the seconds of fork and decode."""
        watch = RowCounters(counters, range(len(counters)))
        start = time.perf_counter()
        cache = hf.fork(
            batch.cache, cell.method, dense_layers=self.dense_layers, page_size=cell.page_size, observer=watch
        )
        forked = time.perf_counter()
        results = batch.on(cache).play(scripts, watch)
        hf.release(cache)
        return results, {"fork": forked - start, "decode": time.perf_counter() - forked}

    def _row(
        self, work: Work, prepared: Prepared, result: list[Reply] | Taught, counter: ReadCounter
    ) -> dict[str, Any]:
        """What came of one sample in one cell."""
        try:
            if isinstance(result, Taught):
                return made.taught(prepared, result)
            return made.answered(work, prepared, result, counter)
        except CellError as error:
            return made.failed(error)

    def _scripts(
        self, work: Work, prepared: Sequence[Prepared], counters: Sequence[ReadCounter]
    ) -> list[Script[list[Reply] | Taught]]:
        if work.protocol == STREAM:
            return [teach(one.prompt.steps) for one in prepared]
        chat = self.chat_for(work) is not None
        decoding = Decoding(self.loaded.tokenizer, self.stop_ids, work.task.stop, 0, chat)
        return [
            converse(one.prompt.turns, replace(decoding, max_new_tokens=one.max_new_tokens), counter)
            for one, counter in zip(prepared, counters, strict=True)
        ]


def by_prefill(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells that can share a prefill, together; one after the other, so that one text is held at a time."""
    groups: dict[Hashable, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.method.prefill_key, []).append(cell)
    return list(groups.values())


def stop_ids(loaded: LoadedModel) -> frozenset[int]:
    """Every id that ends a generation: the tokenizer's and all of the generation config's."""
    ids: list[int] = []
    for source in (loaded.tokenizer, getattr(loaded.model, "generation_config", None)):
        value = getattr(source, "eos_token_id", None)
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return frozenset(ids)
