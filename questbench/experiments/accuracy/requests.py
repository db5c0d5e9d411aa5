"""Requests of an evaluation harness: likelihoods of continuations and of whole texts, and completions.

    context, but its last tokens   one prefill, shared by cells that read it alike and by all its continuations
    the last tokens of the context }
    the continuation               }  token by token through attention.decode, with the method active

A continuation is judged by the logits behind the token before it. Were the whole context prefilled, an answer of one
token (multiple choice) would never see the method; so at least the context's last token is fed (``RequestTask.feed``).
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor

from questbench.errors import UsageError
from questbench.experiments.accuracy import rows as made
from questbench.experiments.accuracy.batch import Batch, Script
from questbench.experiments.accuracy.config import Cell, Work
from questbench.experiments.accuracy.protocol import Asked, Prepared, Prompt, Steps
from questbench.experiments.accuracy.scripts import Decoding, Taught, converse, teach
from questbench.experiments.accuracy.session import Session, by_prefill
from questbench.experiments.accuracy.template import render
from questbench.experiments.failures import spoiled
from questbench.models import hf
from questbench.tasks._base import Request, RequestTask, Sample
from questbench.tasks._tokens import part_ids, prompt_ids


class RequestSession(Session):
    """A session for samples that are sets of requests."""

    _samples: Sequence[Sample] | None = None

    @classmethod
    def of(cls, session: Session) -> RequestSession:
        """The same model, for a task of its own."""
        return cls(*(getattr(session, field.name) for field in fields(session)))

    def prepare(self, work: Work, index: int) -> Prepared:
        """The requests of sample ``index``, tokenised and cut to fit.

        Raises:
            UsageError: one of them cannot be answered.
        """
        task = cast(RequestTask, work.task)
        if self._samples is None:
            chat = None if self.chat_for(work) is None else functools.partial(_chat, self.loaded.tokenizer)
            self._samples = task.build(work.samples, self.config.seed, chat)
        limit = work.length if self.max_length is None else min(work.length, self.max_length)
        return tokenised(task, self._samples[index], self.loaded.tokenizer, limit, work.behind)

    def _through(
        self, work: Work, cells: Sequence[Cell], prepared: Sequence[Prepared]
    ) -> tuple[dict[str, list[dict[str, Any]]], list[int]]:
        """See :class:`Session`; every context of a sample is a prefill."""
        run = _Run(self, cast(RequestTask, work.task), cells, prepared)
        run.play()
        found = {cell.key: [run.row(cell, place) for place in range(len(prepared))] for cell in cells}
        contexts = [len({asked.ids[: asked.cut] for asked in one.asked}) for one in prepared]
        return found, [count * len(by_prefill(cells)) for count in contexts]


def tokenised(task: RequestTask, sample: Sample, tokenizer: Any, limit: int, behind: int) -> Prepared:
    """A sample with its requests in tokens.

    Args:
        limit: tokens of the longest text: contexts lose their beginning, whole texts are judged in windows.
        behind: the largest budget of the cells, up to which whole texts are prefilled; 0 where there is none.

    Raises:
        UsageError: a request cannot be answered.
    """
    asked: list[Asked] = []
    removed = 0
    for number, request in enumerate(sample.requests):
        if request.kind == "text":
            asked += _windows(number, (_prefix(tokenizer), *part_ids(tokenizer, request.context)), limit, behind)
            continue
        head, tail = _pair(tokenizer, request)
        # The last token of a continuation is judged and never fed.
        room = limit + 1 - len(tail) if tail else limit - request.max_new_tokens
        if room < 1 + (not tail):
            new = f"A continuation of {len(tail):,}" if tail else f"A completion of {request.max_new_tokens:,}"
            raise UsageError(f"{new} tokens leaves no room for a context in {limit:,}.", "Use a longer --seq-len.")
        removed += max(len(head) - room, 0)
        head = head[-room:]
        asked.append(Asked(number, head + tail, max(len(head) - task.feed, 1), len(tail)))
    first = asked[0]
    size = sum(len(request.context.encode()) for request in sample.requests if request.kind == "text")
    prompt = Prompt(first.ids[: first.cut], first.ids[first.cut :], removed=removed, scored_bytes=size)
    most = max(request.max_new_tokens for request in sample.requests)
    return Prepared(sample, prompt, most, 0 if task.rolling else first.cut, tuple(asked))


class _Run:
    """Samples that run together, through all cells."""

    def __init__(
        self, session: Session, task: RequestTask, cells: Sequence[Cell], prepared: Sequence[Prepared]
    ) -> None:
        self.session, self.task, self.cells, self.prepared = session, task, cells, prepared
        self.asked = [(owner, one) for owner, sample in enumerate(prepared) for one in sample.asked]
        self.found: dict[tuple[str, int], Any] = {}
        """By cell and place in ``asked``."""
        self.counters = {(cell.key, owner): session.counter() for cell in cells for owner in range(len(prepared))}
        self.seconds = {cell.key: dict.fromkeys(("prefill", "fork", "decode"), 0.0) for cell in cells}
        self.failed: dict[str, dict[str, Any]] = {}

    def play(self) -> None:
        """Prefill every context once for cells that read it alike; each forks it for each of its continuations."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, (_, one) in enumerate(self.asked):
            places.setdefault(one.ids[: one.cut], []).append(place)
        # Contexts of like length run together, so that little is padded.
        order = sorted(places, key=len, reverse=True)
        for start in range(0, len(order), len(self.prepared)):
            batch = {context: places[context] for context in order[start : start + len(self.prepared)]}
            for cells in by_prefill(self.cells):
                if left := [cell for cell in cells if cell.key not in self.failed]:
                    self._batch(left, batch)

    def _batch(self, cells: Sequence[Cell], contexts: dict[tuple[int, ...], list[int]]) -> None:
        session, together = self.session, [self.asked[place][1] for own in contexts.values() for place in own]
        base = session.base(cells, max(len(one.ids) for one in together))
        start = time.perf_counter()
        try:
            early = any(one.ahead for one in together)
            batch = Batch.prefill(session.loaded.model, list(contexts), base, all_logits=early)
        except Exception as error:
            why = made.failed(spoiled(error, several=len(self.prepared) > 1))
            self.failed |= {cell.key: why for cell in cells}
            hf.release(base)
            return
        spent = time.perf_counter() - start
        for cell in cells:
            self.seconds[cell.key]["prefill"] += spent
            try:
                for places in itertools.zip_longest(*contexts.values()):
                    self._fork(cell, batch, places)
            except Exception as error:
                self.failed[cell.key] = made.failed(spoiled(error, several=len(self.prepared) > 1))
        hf.release(base)

    def _fork(self, cell: Cell, batch: Batch, places: Sequence[int | None]) -> None:
        """One continuation of every context that has another one."""
        counters = [self.session.counter() for _ in places]
        scripts = [self._script(place, logits) for place, logits in zip(places, batch.logits, strict=True)]
        results, spent = self.session.play(cell, batch, scripts, counters)
        for name, seconds in spent.items():
            self.seconds[cell.key][name] += seconds
        for place, result, counter in zip(places, results, counters, strict=True):
            if place is not None:
                self.found[cell.key, place] = result
                self.counters[cell.key, self.asked[place][0]].steps += counter.steps

    def _script(self, place: int | None, logits: Tensor) -> Script[Any]:
        if place is None:
            return _nothing()
        owner, one = self.asked[place]
        if one.judged:
            return _judge(one, logits)
        request = self.prepared[owner].sample.requests[one.request]
        decoding = Decoding(self.session.loaded.tokenizer, self.session.stop_ids, request.stop, request.max_new_tokens)
        return converse([Steps(one.ids[one.cut :])], decoding)

    def row(self, cell: Cell, owner: int) -> dict[str, Any]:
        """What came of a sample in a cell."""
        if cell.key in self.failed:
            return self.failed[cell.key]
        sample, counter = self.prepared[owner].sample, self.counters[cell.key, owner]
        results: list[list[Any]] = [[] for _ in sample.requests]
        for place, (whose, one) in enumerate(self.asked):
            if whose == owner:
                results[one.request].append(self.found[cell.key, place])
        replies = [_reply(request, found) for request, found in zip(sample.requests, results, strict=True)]
        seconds = {name: spent / len(self.prepared) for name, spent in self.seconds[cell.key].items()}
        behind = {"steps": len(counter.steps), **made.reads(counter), "seconds": seconds}
        metrics = self.task.judge(sample, replies)
        if self.task.rolling:
            whole = [one for found in results for one in found]
            losses = tuple(loss for one in whole for loss in one.losses)
            greedy = tuple(hit for one in whole for hit in one.greedy)
            return made.taught(self.prepared[owner], Taught(losses, greedy)) | {"metrics": metrics} | behind
        score = self.task.score_of(metrics)
        if not 0 <= score <= 1:
            return made.failed(f"{sample.id} scores {score}, which is not between 0 and 1: use another metric.")
        written = [reply for found in results for each in found if isinstance(each, list) for reply in each]
        return {
            "score": score,
            "metrics": metrics,
            "completion": "\n".join(reply for reply in replies if isinstance(reply, str)),
            "new_tokens": sum(len(reply.tokens) for reply in written),
            "likelihoods": [list(reply) for reply in replies if isinstance(reply, tuple)],
            **behind,
        }


def _reply(request: Request, found: Sequence[Any]) -> Any:
    """What the task is told: a text, a log-likelihood, or one and whether greedy decoding would have written it."""
    if request.kind == "completion":
        text = str(found[0][0].text)
        for mark in request.stop:
            text = text.partition(mark)[0]
        return text
    value = -math.fsum(loss for one in found for loss in one.losses)
    return value if request.kind == "text" else (value, all(found[0].greedy))


def _chat(tokenizer: Any, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True) -> str:
    """A chat as the text of one prompt."""
    generate = add_generation_prompt
    return render(tokenizer, messages, add_generation_prompt=generate, continue_final_message=not generate)


def _prefix(tokenizer: Any) -> int:
    """The token that an empty context stands for."""
    first = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if first is None else first)


def _pair(tokenizer: Any, request: Request) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of both; they are tokenised together, and white space between them belongs to the continuation."""
    if request.kind == "completion":
        head = _encode(tokenizer, request.context)
        if len(head) < 2:
            raise UsageError("A context of fewer than two tokens cannot be continued.", "Look at the task's prompt.")
        return head, ()
    both, bare = request.context + request.continuation, request.context.rstrip()
    if bare:
        whole, border = _encode(tokenizer, both), len(_encode(tokenizer, bare))
        head, tail = whole[:border], whole[border:]
    else:
        head, tail = (_prefix(tokenizer),), tuple(part_ids(tokenizer, both))
        tail = tail[1:] if tail[:1] == head else tail
    if not tail:
        raise UsageError(f"The continuation '{request.continuation}' has no tokens of its own.", "Look at the task.")
    return head, tail


def _encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Tokens of a prompt; one that begins with the BOS, as a chat template writes it, gets no second one."""
    ids = tuple(prompt_ids(tokenizer, text))
    first = tokenizer.bos_token_id
    return ids[1:] if first is not None and ids[:2] == (first, first) else ids


def _windows(number: int, ids: tuple[int, ...], limit: int, behind: int) -> list[Asked]:
    """A whole text; one longer than ``limit`` in lm-eval's windows, the last one as full of context as it can be.

    Its text alone is judged: lm-eval's own model for transformers also judges a BOS that the tokenizer adds.
    """
    found, start = [], 0
    while start < len(ids) - 1:
        end = min(start + limit, len(ids) - 1)
        begin = max(0, end - limit)
        window, known = ids[begin : end + 1], start - begin
        cut = min(max(behind or len(window), known + 1), len(window) - 1)
        found.append(Asked(number, window, cut, end - start))
        start = end
    if not found:
        raise UsageError("The text is empty.", "Look at the task.")
    return found


def _nothing() -> Script[None]:
    """A row that is not asked."""
    yield from ()


def _judge(one: Asked, logits: Tensor) -> Script[Taught]:
    """Losses of the tokens asked for; those up to the prefill's end by its own logits."""
    first = len(one.ids) - one.judged
    losses: list[float] = []
    greedy: list[bool] = []
    if first <= one.cut:
        # The last row judges ids[cut], the one before it ids[cut - 1].
        seen = torch.atleast_2d(logits)[first - one.cut - 1 :].float()
        targets = torch.tensor(one.ids[first : one.cut + 1], device=seen.device)
        losses = torch.nn.functional.cross_entropy(seen, targets, reduction="none").tolist()
        greedy = (seen.argmax(1) == targets).tolist()
    taught = yield from teach(one.ids[one.cut :])
    skip = max(first - one.cut - 1, 0)
    return Taught((*losses, *taught.losses[skip:]), (*greedy, *taught.greedy[skip:]))
