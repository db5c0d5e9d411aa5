"""Needs --data: RULER's own files, its 13 sets as its generators write them (https://arxiv.org/abs/2404.06654).

    --task ruler --seq-len 4k --data FOLDER                all 13, of FOLDER/4096/data/SET/validation.jsonl
    --task ruler:set=niah_multikey_2 --data FILE.jsonl     one
    --task ruler:set=niah --data hf:simonjegou/ruler       the eight needle sets, of that repository's folder 4096

``--seq-len`` picks the folder of that length. Rows are taken as they are, neither cut nor filled up; a file whose
prompts do not have about that many tokens with this model's tokenizer is refused. Both schemas are read: RULER's
(input, outputs, answer_prefix) and that of the hub's copy (context, question, answer_prefix, answer, task).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from questbench import registry
from questbench.errors import PrerequisiteError, UsageError
from questbench.tasks._base import Sample, Tokenizer
from questbench.tasks._data import DataTask, Fetch
from questbench.tasks._data_schema import FULL_TEXT, FULL_TEXTS, TEXT, TEXT_OR_NULL, Schema
from questbench.tasks._haystack import tokens
from questbench.tasks._metrics_ruler import string_match_all, string_match_part
from questbench.tasks._ruler_kinds import needle_set, qa_set

NEEDLES = (
    *("niah_single_1", "niah_single_2", "niah_single_3"),
    *("niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
    *("niah_multivalue", "niah_multiquery"),
)
SETS = (*NEEDLES, "vt", "cwe", "fwe", "qa_1", "qa_2")
ONE_ANSWER = ("niah_single", "niah_multikey", "qa")
NEW_TOKENS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
QUESTIONS = {
    "niah": r"What (?:is|are all) the special magic",
    "vt": r"Question: Find all variables that are assigned the value",
    "cwe": r"Question: What are the 10 most common words in the above list",
    "fwe": r"Question: Do not provide any explanation",
    "qa": r"Answer the question based on the given documents",
}
"""Where the question begins in a prompt: at the last of these, which no context holds behind its own example."""
PREFIXES = {"niah": r"\?( The special magic)"}
"""Where the beginning of the answer begins behind the question, in rows that do not keep it apart."""
OWN = Schema("RULER's jsonl", {"input": FULL_TEXT, "outputs": FULL_TEXTS}, {"answer_prefix": TEXT_OR_NULL})
COPY = Schema(
    "the hub's copy of RULER",
    {"context": FULL_TEXT, "question": FULL_TEXT, "answer_prefix": TEXT, "answer": FULL_TEXTS, "task": TEXT},
)
LEAST, MOST = 0.5, 1.25
"""A prompt's tokens over --seq-len; tokenizers differ by less."""


@dataclass(frozen=True)
class Ruler(DataTask):
    """Rows of one of RULER's sets."""

    set: str = "all"
    """One set, several with ``+``, or ``all`` or ``niah``."""

    metric: ClassVar[str] = "string_match_all"
    stop: ClassVar[tuple[str, ...]] = ()
    default_samples: ClassVar[int] = 100
    binary: ClassVar[bool] = False
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {"all": SETS, "niah": NEEDLES}

    def __post_init__(self) -> None:
        """Refuse unknown sets, and take the set's own limits."""
        if self.set not in (*SETS, *self.groups):
            raise registry.unknown("set of ruler", self.set, [*SETS, *self.groups])
        object.__setattr__(self, "max_new_tokens", NEW_TOKENS.get(self.kind, self.max_new_tokens))
        object.__setattr__(self, "binary", self.set.startswith(ONE_ANSWER))
        if self.kind == "qa":
            object.__setattr__(self, "metric", "string_match_part")

    @property
    def kind(self) -> str:
        """niah, vt, cwe, fwe or qa."""
        return self.set.partition("_")[0]

    @property
    def label(self) -> str:
        """``ruler:set=vt``."""
        return f"{self.name}:set={self.set}"

    def fetch(self) -> Fetch:
        """There is no file to download but a copy: RULER generates its data for a tokenizer."""
        return Fetch(
            f"{self.set if self.set in SETS else 'SET'}/validation.jsonl",
            "",
            "hf:simonjegou/ruler",
            "make it with scripts/data/prepare.py of https://github.com/NVIDIA/RULER for your model's tokenizer "
            "and name its folder: --data FOLDER",
        )

    def patterns(self, length: int) -> tuple[str, ...]:
        """RULER's folders, a file per set, or the copy's folder per length."""
        name = self.set
        deep = (f"{name}/validation.jsonl", f"{name}/test.jsonl", f"{name}.jsonl", f"{name}.parquet")
        folders = (f"synthetic/{length}/data/", f"{length}/data/", f"{length}/", "data/", "")
        own = [folder + file for folder in folders for file in deep]
        return (*own, f"{length}/*.parquet", f"{length}.jsonl")

    def schemas(self) -> tuple[Schema, ...]:
        """RULER's own and the copy's."""
        return (OWN, COPY)

    def keep(self, row: Mapping[str, Any], where: str) -> bool:
        """Rows of this set, where rows say which they are of."""
        if "input" in row:
            self._check_set(row["input"], where)
        return bool(row.get("task", self.set) == self.set)

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """Row ``index`` as it is."""
        del rng
        row, origin = self.row(index, length)
        context, question, prefix = self._split(row)
        references = list(row["outputs"] if "outputs" in row else row["answer"])
        reached = tokens(tokenizer, context + question, prefix)
        if not LEAST * length <= reached <= MOST * length:
            raise UsageError(
                f"{self.label}: sample {index} has {reached:,} tokens with this tokenizer, not about {length:,}.",
                f"Use --seq-len {reached}, or data of that length made for this tokenizer.",
            )
        alternatives = self.kind == "qa"
        return Sample(
            id=f"{self.name}-{self.set}-{index:04d}",
            context=context,
            question=question,
            answer_prefix=prefix,
            answers=tuple(references) if alternatives else (", ".join(references),),
            needles=_mentions(context, references) if self.kind == "niah" else (),
            needles_needed="any" if self.set.startswith(ONE_ANSWER) else "all",
            meta={"set": self.set, "references": references, "tokens": reached, **origin},
        )

    def score(self, sample: Sample, completion: str) -> float:
        """Share of the references in the completion; of QA, whether there is any."""
        match = string_match_part if self.kind == "qa" else string_match_all
        return match(completion, sample.meta["references"])

    def _check_set(self, prompt: str, where: str) -> None:
        """Refuse a prompt of another set: RULER's rows do not say which they are of, but their texts tell.

        Raises:
            PrerequisiteError: naming the set that it is of.
        """
        if not re.search(QUESTIONS[self.kind], prompt):
            raise PrerequisiteError(
                f"{where}: 'input' has no question of {self.label} ('{QUESTIONS[self.kind]}').",
                "Name the file of this set with --data.",
            )
        tell = {"niah": needle_set, "qa": qa_set}.get(self.kind)
        found = tell(prompt) if tell else None
        if found not in (None, self.set):
            raise PrerequisiteError(
                f"{where} is a prompt of {found}, not of {self.set}.",
                f"Use --task {self.name}:set={found}, or name the file of {self.set} with --data.",
            )

    def _split(self, row: Mapping[str, Any]) -> tuple[str, str, str]:
        """Context, question (with its separator) and the beginning of the answer of a row."""
        if "input" in row:
            prompt, prefix = row["input"], row.get("answer_prefix") or ""
            border = list(re.finditer(QUESTIONS[self.kind], prompt))[-1].start()
            if not prefix.strip():  # older generators leave it in the prompt
                found = list(re.finditer(PREFIXES.get(self.kind, r"( Answer:)"), prompt[border:]))
                at = border + found[-1].start(1) if found else len(prompt)
                prompt, prefix = prompt[:at], prompt[at:]
            elif prompt.rstrip().endswith(prefix.strip()):  # or have it twice
                at = prompt.rindex(prefix.strip())
                at = len(prompt[:at].rstrip())
                prompt, prefix = prompt[:at], prompt[at:]
        else:
            whole, border = row["context"] + row["question"], len(row["context"])
            prompt = whole.rstrip()  # white space in front of the answer is its own, as in RULER's rows
            prefix = whole[len(prompt) :] + row["answer_prefix"]
        context = prompt[:border].rstrip()
        return context, prompt[len(context) :], prefix


def _mentions(context: str, references: list[str]) -> tuple[tuple[int, int], ...]:
    """Where each value that was hidden stands: in its needle, and nowhere else."""
    starts = [(context.find(value), value) for value in references]
    return tuple((start, start + len(value)) for start, value in starts if start >= 0)
