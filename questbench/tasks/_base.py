"""What a task is: a pure generator of samples and a score. No torch; the tokenizer is handed in."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that tasks use."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> Sequence[int]:
        """Token ids of ``text``."""
        ...


@dataclass(frozen=True)
class Sample:
    """One prompt. The whole prompt is ``context + question``; the completion starts right behind it."""

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
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Depth, number of records and the like; goes to samples.jsonl."""


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

    @property
    def name(self) -> str:
        """Registered name: the stem of the task's file."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @abstractmethod
    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """Sample ``index``: a function of its arguments only.

        Args:
            length: tokens of context + question in this tokenizer, BOS included; 95 to 100 % of it is reached.
            rng: derived from (seed, task, length, index).
        """

    @abstractmethod
    def score(self, sample: Sample, completion: str) -> float:
        """Score of a completion, 0 to 1."""
