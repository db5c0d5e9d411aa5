"""Requests of an evaluation harness under one method: log-likelihoods, rolling log-likelihoods, generation.

    context, but its last tokens   one dense prefill, shared by all continuations of the same context
    the last tokens of the context }
    the continuation               }  token by token through attention.decode, with the method active

A continuation is judged by the logits behind the token before it. Were the whole context prefilled, an answer of one
token (multiple choice) would never see the method; so at least the context's last token is fed (``feed``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from questbench.errors import UsageError
from questbench.experiments.accuracy.batch import Batch, Script
from questbench.experiments.accuracy.protocol import Steps
from questbench.experiments.accuracy.scripts import Decoding, Reply, Taught, converse, teach
from questbench.experiments.accuracy.session import stop_ids
from questbench.experiments.counting import ReadCounter, RowCounters
from questbench.experiments.setup import base_cache
from questbench.kernels._ops import Ops
from questbench.methods._base import Method
from questbench.models import hf
from questbench.models.loading import LoadedModel
from questbench.tasks._tokens import part_ids, prompt_ids


@dataclass
class Proof:
    """What was really read, counted in the attention op, over all requests so far."""

    requests: int = 0
    prefills: int = 0
    """Dense prefills: one per context, not per request."""
    prefill_tokens: int = 0
    decode_steps: int = 0
    """Tokens fed one by one."""
    limited_steps: int = 0
    """Decode steps at which the text was longer than the budget, so that the method had something to leave out."""
    truncated: int = 0
    """Requests whose context was cut on the left to fit the model."""
    dense_fallback: bool = False
    sums: dict[str, float] = field(default_factory=dict)
    """Per count: sum over steps of the mean over sparse layers."""

    def add(self, counter: ReadCounter, budget: int | None) -> None:
        """One row's steps."""
        for step in counter.steps:
            self.decode_steps += 1
            self.limited_steps += budget is not None and step[0].text > budget
            for name in ("visible", "read", "resident", "pages"):
                self.sums[name] = self.sums.get(name, 0.0) + sum(getattr(r, name) for r in step) / len(step)
        self.dense_fallback |= counter.fallback

    def facts(self) -> dict[str, Any]:
        """For the output."""
        means = {
            f"{'pages_read' if name == 'pages' else 'tokens_' + name}": total / self.decode_steps
            for name, total in self.sums.items()
        }
        return {
            "requests": self.requests,
            "prefills": self.prefills,
            "prefill_tokens": self.prefill_tokens,
            "decode_steps": self.decode_steps,
            "limited_steps": self.limited_steps,
            "truncated": self.truncated,
            "dense_fallback": self.dense_fallback,
            **means,
        }


class Requests:
    """Answers requests with one model under one method.

    Args:
        loaded: model and tokenizer.
        method: active from the last ``feed`` tokens of a context on.
        ops: the backend.
        dense_layers, page_size: as in ``accuracy``; the model's own by default.
        feed: tokens at the end of each context that are fed one by one.
        batch: contexts that run together.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        method: Method,
        ops: Ops,
        *,
        dense_layers: int | None = None,
        page_size: int | None = None,
        feed: int = 1,
        batch: int = 1,
    ) -> None:
        if feed < 1 or batch < 1:
            raise UsageError(f"Feeding {feed} tokens, {batch} contexts at a time: both must be 1 or more.")
        method.check(page_size or loaded.page_size)
        self.loaded, self.method, self.ops, self.feed, self.batch = loaded, method, ops, feed, batch
        self.dense_layers = loaded.dense_layers if dense_layers is None else dense_layers
        self.page_size = page_size or loaded.page_size
        text = loaded.model.config.get_text_config(decoder=True)
        self.query_heads = int(text.num_attention_heads)
        self.max_length = int(getattr(text, "max_position_embeddings", 1 << 20))
        self.proof = Proof()
        if loaded.tokenizer is None:
            raise UsageError(f"Model '{loaded.name}' has no tokenizer.", "Use --model constructed, a folder or an id.")
        first = loaded.tokenizer.bos_token_id
        self.prefix = loaded.tokenizer.eos_token_id if first is None else first
        """The token that an empty context stands for."""

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation behind its context, and whether greedy decoding would have written it."""
        encoded = [self._pair(context, continuation) for context, continuation in pairs]
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, (context, _) in enumerate(encoded):
            groups.setdefault(context, []).append(place)
        # Contexts of like length run together, so that little is padded.
        order = sorted(groups, key=len, reverse=True)
        results: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), self.batch):
            contexts = order[start : start + self.batch]
            cuts = [max(len(context) - self.feed, 1) for context in contexts]
            batch = self._prefill([context[:cut] for context, cut in zip(contexts, cuts, strict=True)])
            for number in range(max(len(groups[context]) for context in contexts)):
                asked = [groups[context][number] if number < len(groups[context]) else None for context in contexts]
                scripts = [
                    _nothing()
                    if place is None
                    else _judge(context[cut:] + encoded[place][1], batch.logits, row if cut == len(context) else None)
                    for row, (context, cut, place) in enumerate(zip(contexts, cuts, asked, strict=True))
                ]
                for index, taught in zip(asked, self._play(batch, scripts), strict=True):
                    if index is not None and taught is not None:
                        own = len(encoded[index][1])
                        results[index] = -math.fsum(taught.losses[-own:]), all(taught.greedy[-own:])
            self._release(batch)
        self.proof.requests += len(pairs)
        return [results[place] for place in range(len(pairs))]

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Log-likelihood of whole texts: dense up to the budget, then token by token.

        A text longer than the model takes is judged in lm-eval's windows, the last one as full of context as it can be.
        Its text alone is judged: lm-eval's own model for transformers also judges a BOS that the tokenizer adds.
        """
        totals = []
        for text in texts:
            ids = (self.prefix, *part_ids(self.loaded.tokenizer, text))
            losses: list[float] = []
            start = 0
            while start < len(ids) - 1:
                end = min(start + self.max_length, len(ids) - 1)
                begin = max(0, end - self.max_length)
                losses += self._window(ids[begin : end + 1], known=start - begin)
                start = end
            totals.append(-math.fsum(losses))
            self.proof.requests += 1
        return totals

    def generate(self, requests: Sequence[tuple[str, Sequence[str], int]]) -> list[str]:
        """Greedy completions of (context, stop texts, most tokens); the stop text is cut off."""
        results = [""] * len(requests)
        encoded = [self._context(context, room=most) for context, _, most in requests]
        order = sorted(range(len(requests)), key=lambda place: len(encoded[place]), reverse=True)
        for start in range(0, len(order), self.batch):
            places = order[start : start + self.batch]
            cuts = [max(len(encoded[place]) - self.feed, 1) for place in places]
            batch = self._prefill([encoded[place][:cut] for place, cut in zip(places, cuts, strict=True)])
            scripts = []
            for place, cut in zip(places, cuts, strict=True):
                _, stop, most = requests[place]
                decoding = Decoding(self.loaded.tokenizer, stop_ids(self.loaded), stop, most)
                scripts.append(converse([Steps(encoded[place][cut:])], decoding))
            replies: list[list[Reply]] = self._play(batch, scripts)
            for place, reply in zip(places, replies, strict=True):
                text = reply[0].text
                for mark in requests[place][1]:
                    text = text.partition(mark)[0]
                results[place] = text
            self._release(batch)
        self.proof.requests += len(requests)
        return results

    def _pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens of both; they are tokenised together, and white space between them belongs to the continuation."""
        head: tuple[int, ...]
        bare = context.rstrip()
        if not bare:
            whole = tuple(part_ids(self.loaded.tokenizer, context + continuation))
            head, tail = (self.prefix,), whole[1:] if whole[:1] == (self.prefix,) else whole
        else:
            whole = self._encode(context + continuation)
            border = len(self._encode(bare))
            head, tail = whole[:border], whole[border:]
        if not tail:
            raise UsageError(f"The continuation '{continuation}' has no tokens of its own.", "Look at the task.")
        if len(tail) > self.max_length:
            raise UsageError(f"A continuation of {len(tail):,} tokens does not fit {self.max_length:,}.")
        # The last token of a continuation is judged and never fed.
        return self._cut(head, self.max_length + 1 - len(tail)), tail

    def _encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a prompt; one that begins with the BOS, as a chat template writes it, gets no second one."""
        ids = tuple(prompt_ids(self.loaded.tokenizer, text))
        first = self.loaded.tokenizer.bos_token_id
        return ids[1:] if first is not None and ids[:2] == (first, first) else ids

    def _context(self, context: str, *, room: int) -> tuple[int, ...]:
        ids = self._encode(context)
        if len(ids) < 2:
            raise UsageError("A context of fewer than two tokens cannot be continued.", "Look at the task's prompt.")
        if self.max_length - room < 2:
            raise UsageError(f"{room:,} new tokens leave no room for a context in {self.max_length:,}.")
        return self._cut(ids, self.max_length - room)

    def _cut(self, ids: tuple[int, ...], room: int) -> tuple[int, ...]:
        """The newest ``room`` tokens, as lm-eval cuts."""
        self.proof.truncated += len(ids) > room
        return ids[-room:]

    def _window(self, ids: tuple[int, ...], known: int) -> list[float]:
        """Losses of ``ids[known + 1:]``: a dense prefill up to the budget, then token by token."""
        budget = self.method.budget if self.method.budgeted else len(ids)
        dense = min(max(budget, known + 1), len(ids) - 1)
        batch = self._prefill([ids[:dense]], all_logits=True)
        judged = batch.logits[0, known:].float()
        targets = torch.tensor(ids[known + 1 : dense + 1], device=judged.device)
        losses: list[float] = torch.nn.functional.cross_entropy(judged, targets, reduction="none").tolist()
        (taught,) = self._play(batch, [teach(ids[dense:])])
        self._release(batch)
        return losses + list(taught.losses)

    def _prefill(self, prompts: Sequence[tuple[int, ...]], *, all_logits: bool = False) -> Batch:
        base = base_cache(self.loaded.model, self.ops, [self.method], page_size=self.page_size)
        self.proof.prefills += len(prompts)
        self.proof.prefill_tokens += sum(map(len, prompts))
        with torch.inference_mode():
            return Batch.prefill(self.loaded.model, prompts, base, all_logits=all_logits)

    def _play(self, batch: Batch, scripts: Sequence[Script[Any]]) -> list[Any]:
        counters = [ReadCounter(self.query_heads, self.dense_layers) for _ in scripts]
        watch = RowCounters(counters, range(len(scripts)))
        with torch.inference_mode():
            cache = hf.fork(
                batch.cache, self.method, dense_layers=self.dense_layers, page_size=self.page_size, observer=watch
            )
            results = batch.on(cache).play(scripts, watch)
            hf.release(cache)
        for counter in counters:
            self.proof.add(counter, self.method.budget if self.method.budgeted else None)
        return results

    def _release(self, batch: Batch) -> None:
        hf.release(batch.cache)


def _nothing() -> Script[None]:
    """A row that is not asked."""
    yield from ()


def _judge(tokens: tuple[int, ...], prefilled: Tensor, row: int | None) -> Script[Taught]:
    """Losses of ``tokens``; the first of them is judged by the prefill's own logits where ``row`` says whose."""
    if row is None:
        return (yield from teach(tokens))
    logits = prefilled[row].float()
    loss = torch.logsumexp(logits, 0) - logits[tokens[0]]
    taught = yield from teach(tokens)
    first = bool(logits.argmax() == tokens[0])
    return Taught((float(loss), *taught.losses), (first, *taught.greedy))
