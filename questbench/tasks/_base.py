"""What a task is: a pure generator of samples and a score. No torch; the tokenizer is handed in."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

from questbench.errors import UsageError


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that tasks use."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> Sequence[int]:
        """Token ids of ``text``."""
        ...


@dataclass(frozen=True)
class Turn:
    """One question of several about the same context."""

    question: str
    """Starts with its own separator, as ``Sample.question`` does."""
    answers: tuple[str, ...]
    """Accepted answers; the first is the gold completion."""
    needles: tuple[tuple[int, int], ...] = ()
    """Character spans of the sample's context that hold the evidence."""
    answer_prefix: str = ""
    """As ``Sample.answer_prefix``."""


@dataclass(frozen=True)
class Request:
    """One thing that a :class:`RequestTask` asks of a model."""

    kind: Literal["likelihood", "text", "completion"]
    """Of ``continuation`` behind ``context``; of the whole ``context``; or what the model writes behind ``context``."""
    context: str
    continuation: str = ""
    stop: tuple[str, ...] = ()
    """A completion ends before the first of these."""
    max_new_tokens: int = 0


@dataclass(frozen=True)
class Sample:
    """One prompt. The whole prompt is ``context + question + answer_prefix``; the completion starts right behind it."""

    id: str
    """Unique within (task, seed, length): ``passkey-0007``."""
    context: str
    """What is prefilled."""
    question: str
    """What is fed token by token under the ``stepwise`` protocol; starts with its own separator."""
    answers: tuple[str, ...]
    """Accepted answers; the first is the gold completion (its text scores 1)."""
    needles: tuple[tuple[int, int], ...] = ()
    """Character spans of ``context`` that hold the answer's evidence, for needle residency and recall."""
    needles_needed: Literal["any", "all"] = "any"
    """Whether one of ``needles`` is enough for the answer or each holds a part of it: recall and residency go by it."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Depth, number of records and the like; goes to samples.jsonl."""
    max_new_tokens: int | None = None
    """Overrides the task's, where the answer's length depends on the sample or on the tokenizer."""
    turns: tuple[Turn, ...] = ()
    """Not empty in a multi-turn sample, whose ``question``, ``answers`` and ``needles`` are those of ``turns[0]``.

    The context is prefilled once. Then, on one growing cache, each turn's question is fed token by token (tokenised
    without special tokens from the second on) and its answer decoded greedily; what was decoded stays in the cache,
    right or wrong, and the next question follows it. A turn scores ``Task.score_turn(sample, turn, completion)``, the
    sample the mean of its turns. The length that was asked for is that of context and first question; later turns
    grow the text beyond it, as a completion does."""
    recalls: tuple[tuple[int, int], ...] = ()
    """Character spans of ``context + question`` that repeat what only a far earlier place of the text tells.

    For tasks of the stream protocol: loss over the tokens inside these spans is reported apart."""
    answer_prefix: str = ""
    """How the answer begins, where the prompt gives its beginning: ``The pass key is``.

    It is fed as the question is. In a chat template it stands behind the assistant's header, where the model goes on
    with it; what separates it from the question belongs to the question's end, and is left out there."""

    requests: tuple[Request, ...] = ()
    """All that is asked, in a sample of a :class:`RequestTask`; its other texts are empty."""

    @property
    def prompt(self) -> str:
        """The whole prompt (of the first turn), without a chat template."""
        return self.context + self.question + self.answer_prefix


class Task(ABC):
    """A task. Subclass in ``tasks/<name>.py``; dataclass fields of the subclass are its parameters."""

    metric: ClassVar[str] = "score"
    max_new_tokens: ClassVar[int] = 16
    stop: ClassVar[tuple[str, ...]] = ("\n",)
    """Generation ends when the completion contains one of these."""
    default_length: ClassVar[int] = 4096
    default_samples: ClassVar[int] = 50
    binary: ClassVar[bool] = True
    """Scores are 0 or 1: intervals are Wilson's and the paired test is McNemar's."""
    quest_paper_chars: ClassVar[int] = 100
    """Protocol ``quest-paper``: this many last characters of the prompt are fed token by token."""
    chat: ClassVar[bool] = True
    """Whether a chat model's template may stand around the prompt; few-shot prompts and code are continued instead."""
    full_marks: ClassVar[bool] = True
    """Whether a model that does the task scores near 1; summaries under ROUGE, for one, never do."""
    protocols: ClassVar[tuple[str, ...]] = ("stepwise", "prefill", "quest-paper")
    """Protocols that make sense for the task; the first is its default."""
    first: ClassVar[str] = ""
    """Parameter that a bare word behind the task's name sets."""

    @classmethod
    def expand(cls, name: str, settings: str, *, online: bool = False) -> list[str]:
        """Specs of what a spec stands for, where that may be several sets."""
        del online
        return [f"{name}:{settings}" if settings else name]

    @property
    def name(self) -> str:
        """Registered name: the stem of the task's file."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @abstractmethod
    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """Sample ``index``: a function of its arguments only.

        Args:
            length: tokens of the prompt in this tokenizer, with BOS and chat template; 95 to 100 % of it is reached.
            rng: derived from (seed, task, length, index).
        """

    @abstractmethod
    def score(self, sample: Sample, completion: str) -> float:
        """Score of a completion, 0 to 1."""

    def samples(self, asked: int | None, length: int) -> int:
        """How many samples a run takes: as many as asked for, or the task's own number; before anything is run.

        Raises:
            UsageError, PrerequisiteError: so many cannot be had. A generated task has as many as anyone wants.
        """
        del length
        return asked or self.default_samples

    def last_chars(self, sample: Sample) -> int:
        """Characters of this sample that protocol ``quest-paper`` feeds token by token."""
        del sample
        return self.quest_paper_chars

    def score_turn(self, sample: Sample, turn: int, completion: str) -> float:
        """Score of the completion of ``sample.turns[turn]``: that of a sample with this turn's question only."""
        asked = sample.turns[turn]
        single = replace(
            sample,
            question=asked.question,
            answers=asked.answers,
            needles=asked.needles,
            answer_prefix=asked.answer_prefix,
            turns=(),
        )
        return self.score(single, completion)


class StreamTask(Task):
    """A text whose every token is predicted; nothing is generated and ``score`` is never asked.

    Protocol ``stream``: ``context`` is prefilled dense; then every token of ``question`` is teacher-forced, one decode
    step each with the method active, and its negative log-likelihood (nats, from fp32 logits) given all text before
    it is the measurement. The first token of ``question`` is predicted by the prefill's last logits, which every
    method shares: it is not counted. Nor are tokens that the method saw dense because the text did not yet exceed its
    budget: a comparison over several budgets counts the tokens behind the largest, the same ones for every cell.

    Reported: perplexity ``exp(sum nll / tokens)``, also per window of ``window`` tokens; bits per byte
    ``sum nll / ln 2 / bytes``, bytes being the UTF-8 bytes of the counted tokens' text, which compares tokenizers;
    and the perplexity over ``Sample.recalls`` alone. ``answers`` is ``("",)``.
    """

    metric: ClassVar[str] = "perplexity"
    max_new_tokens: ClassVar[int] = 0
    stop: ClassVar[tuple[str, ...]] = ()
    binary: ClassVar[bool] = False
    protocols: ClassVar[tuple[str, ...]] = ("stream",)
    default_samples: ClassVar[int] = 4
    window: ClassVar[int] = 256
    """Tokens per window of the windowed perplexity."""

    def score(self, sample: Sample, completion: str) -> float:
        """Refuse: there is no completion.

        Raises:
            UsageError: always.
        """
        del sample, completion
        raise UsageError(f"{self.name} predicts a given text and has no completion.", "Use --protocol stream.")


class RequestTask(Task):
    """A task that makes its own requests: a sample is a set of them, and is judged by all replies together.

    Contexts are prefilled dense but for their last ``feed`` tokens; from there on the method is active.
    """

    chat: ClassVar[bool] = False
    max_new_tokens: ClassVar[int] = 0
    protocols: ClassVar[tuple[str, ...]] = ("prefill",)
    feed: int
    rolling: bool
    """Whether all that is asked for is the likelihood of whole texts: samples have losses and no score."""

    @abstractmethod
    def build(self, count: int, seed: int, chat: Callable[..., str] | None) -> Sequence[Sample]:
        """The first ``count`` samples, with their requests.

        Args:
            seed: of what is drawn.
            chat: makes one text of a chat's messages; ``None`` where prompts stay bare.
        """

    @abstractmethod
    def judge(self, sample: Sample, replies: Sequence[Any]) -> dict[str, Any]:
        """Metrics of a sample by name, as JSON holds them.

        Args:
            replies: one per request: the log-likelihood of a continuation and whether greedy decoding would have
                written it; that of a text; or a completion.
        """

    @abstractmethod
    def score_of(self, metrics: Mapping[str, Any]) -> float:
        """What a sample with these metrics scores, 0 to 1."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the data that samples are made of."""

    def summary(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the task makes of the metrics of all samples."""
        del metrics
        return {}
