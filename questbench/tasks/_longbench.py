"""LongBench's sets: prompts, answer lengths and metrics (https://arxiv.org/abs/2308.14508).

The prompts are data of that benchmark (MIT licence), with their slips ("asconcisely", the blank before "Answer the
question based on the above article"), because scores of models are compared on exactly these words. A prompt is
``head + context + tail``; the tail is what is asked, and what a method sees token by token under ``stepwise``.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from questbench import registry
from questbench.errors import PrerequisiteError, UsageError
from questbench.tasks import _metrics_rouge as rouge
from questbench.tasks import _metrics_text as text
from questbench.tasks._base import Sample, Tokenizer
from questbench.tasks._data import DataTask, Fetch
from questbench.tasks._data_schema import FULL_TEXT, NUMBER, TEXT, TEXT_OR_NULL, TEXTS, TEXTS_OR_NULL, Schema
from questbench.tasks._truncate import middle

Metric = Callable[[str, str, Sequence[str]], float]

_SHORT = "as concisely as you can, using a single phrase or sentence if possible"
_UNANSWERABLE = (
    'If the question cannot be answered based on the information in the article, write "unanswerable". '
    'If the question is a yes/no question, answer "yes", "no", or "unanswerable". Do not provide any explanation.'
)
_STORY = "asconcisely as you can, using a single phrase if possible. Do not provide any explanation."
_ONLY = "Only give me the answer and do not output any other words."
_PASSAGES = (
    f"Answer the question based on the given passages. {_ONLY}\n\nThe following are given passages.\n",
    f"\n\nAnswer the question based on the given passages. {_ONLY}\n\nQuestion: {{input}}\nAnswer:",
)
_CODE = "Please complete the code given below. \n"


@dataclass(frozen=True)
class Set:
    """One of LongBench's sets."""

    head: str
    tail: str
    """Behind the context; ``{input}`` is the row's question."""
    new_tokens: int
    metric: Metric
    few_shot: bool = False
    """Only the first line of a completion counts."""
    chat: bool = True
    """Upstream wraps the prompt in a chat model's template."""
    marker: str = ""
    """The Quest paper's code feeds token by token from here on, but at most the last 100 characters."""


SETS: Mapping[str, Set] = {
    "qasper": Set(
        f"You are given a scientific article and a question. Answer the question {_SHORT}. {_UNANSWERABLE}\n\n"
        "Article: ",
        f"\n\n Answer the question based on the above article {_SHORT}. {_UNANSWERABLE}\n\n"
        "Question: {input}\n\nAnswer:",
        128,
        text.qa_f1,
        marker="Question:",
    ),
    "narrativeqa": Set(
        "You are given a story, which can be either a novel or a movie script, and a question. "
        f"Answer the question {_STORY}\n\nStory: ",
        f"\n\nNow, answer the question based on the story {_STORY}\n\nQuestion: {{input}}\n\nAnswer:",
        128,
        text.qa_f1,
        marker="Do not provide",
    ),
    "hotpotqa": Set(*_PASSAGES, 32, text.qa_f1, marker="Question:"),
    "multifieldqa_en": Set(
        "Read the following text and answer briefly.\n\n",
        "\n\nNow, answer the following question based on the above text, only give me the answer and do not output any "
        "other words.\n\nQuestion: {input}\nAnswer:",
        64,
        text.qa_f1,
        marker="Now,",
    ),
    "gov_report": Set(
        "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n",
        "\n\nNow, write a one-page summary of the report.\n\nSummary:",
        512,
        rouge.rouge_l,
        marker="Now,",
    ),
    "triviaqa": Set(
        f"Answer the question based on the given passage. {_ONLY} The following are some examples.\n\n",
        "\n\n{input}",
        32,
        text.qa_f1,
        few_shot=True,
        chat=False,
    ),
    "2wikimqa": Set(*_PASSAGES, 32, text.qa_f1),
    "musique": Set(*_PASSAGES, 32, text.qa_f1),
    "qmsum": Set(
        "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one "
        "or more sentences.\n\nTranscript:\n",
        "\n\nNow, answer the query based on the above meeting transcript in one or more sentences.\n\n"
        "Query: {input}\nAnswer:",
        512,
        rouge.rouge_l,
    ),
    "multi_news": Set(
        "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n",
        "\n\nNow, write a one-page summary of all the news.\n\nSummary:",
        512,
        rouge.rouge_l,
    ),
    "trec": Set(
        "Please determine the type of the question below. Here are some examples of questions.\n\n",
        "\n{input}",
        64,
        text.classification,
        few_shot=True,
        chat=False,
    ),
    "samsum": Set(
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n",
        "\n\n{input}",
        128,
        rouge.rouge_l,
        few_shot=True,
        chat=False,
    ),
    "passage_count": Set(
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read "
        "these paragraphs and determine how many unique paragraphs there are after removing duplicates. In other "
        "words, how many non-repeating paragraphs are there in total?\n\n",
        "\n\nPlease enter the final count of unique paragraphs after removing duplicates. The output format should "
        "only contain the number, such as 1, 2, 3, and so on.\n\nThe final answer is: ",
        32,
        text.count,
    ),
    "passage_retrieval_en": Set(
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the abstract "
        "is from.\n\n",
        "\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the number of the paragraph that the abstract is "
        'from. The answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: ',
        32,
        text.retrieval,
    ),
    "lcc": Set(_CODE, "Next line of code:\n", 64, text.code_similarity, chat=False),
    "repobench-p": Set(_CODE, "{input}Next line of code:\n", 64, text.code_similarity, chat=False),
    "passage_retrieval_zh": Set(
        "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n",  # noqa: RUF001
        '\n\n下面是一个摘要\n\n{input}\n\n请输入摘要所属段落的编号。答案格式必须是"段落1"，"段落2"等格式\n\n答案是：',  # noqa: RUF001
        32,
        text.retrieval_zh,
    ),
    "lsht": Set(
        "请判断给定新闻的类别，下面是一些例子。\n\n",  # noqa: RUF001
        "\n{input}",
        64,
        text.classification,
        few_shot=True,
        chat=False,
    ),
}
CHINESE = ("passage_retrieval_zh", "lsht")
"""Chinese sets that are scored by numbers and by class names."""
ENGLISH = tuple(name for name in SETS if name not in CHINESE)
PAPER = ("qasper", "narrativeqa", "hotpotqa", "multifieldqa_en", "gov_report", "triviaqa")
"""The sets of the Quest paper's Fig. 7."""
SEGMENTED = ("multifieldqa_zh", "dureader", "vcsum")
"""Chinese sets that are scored by words: without upstream's segmenter the numbers would be others."""
COLUMNS = {"input": TEXT, "context": FULL_TEXT, "answers": TEXTS, "length": NUMBER, "all_classes": TEXTS_OR_NULL}
MARGIN = 100
"""The paper's code feeds at most so many characters token by token."""
BUCKETS = ("0-4k", "4-8k", "8k+")
"""LongBench-E reports by words of the context: below 4,000, below 8,000, and the rest."""


@dataclass(frozen=True)
class LongBench(DataTask):
    """What LongBench and LongBench-E share; they differ in file names and sets."""

    set: str = ""

    stop: ClassVar[tuple[str, ...]] = ()
    """None, as upstream: the metrics read what they need. (Upstream ends samsum at a line break but never at once.)"""
    default_length: ClassVar[int] = 31500
    """Upstream's limit for LongChat-v1.5-32k, the paper's model."""
    binary: ClassVar[bool] = False
    quest_paper_chars: ClassVar[int] = MARGIN
    suffix: ClassVar[str] = ""
    """Behind the set's name in file names."""

    def __post_init__(self) -> None:
        """Refuse unknown sets, and take the set's own limits."""
        if self.set in SEGMENTED:
            raise UsageError(
                f"{self.name}: '{self.set}' is Chinese and scored by words that need a segmenter; it is not supported.",
                f"Sets: {', '.join(self.sets())}.",
            )
        if self.set not in (*self.sets(), *self.groups):
            raise registry.unknown(f"set of {self.name}", self.set, [*self.sets(), *self.groups])
        if self.set in SETS:
            object.__setattr__(self, "max_new_tokens", self.facts.new_tokens)
            object.__setattr__(self, "metric", self.facts.metric.__name__)
            object.__setattr__(self, "chat", self.facts.chat)
            object.__setattr__(self, "full_marks", self.facts.metric is not rouge.rouge_l)

    @classmethod
    @abstractmethod
    def sets(cls) -> tuple[str, ...]:
        """Sets that this benchmark has."""

    @property
    def facts(self) -> Set:
        """Prompt and metric of the set."""
        if self.set not in SETS:
            raise UsageError(f"{self.name}:set={self.set} is several sets.", f"Name one: {', '.join(self.sets())}.")
        return SETS[self.set]

    @property
    def label(self) -> str:
        """``longbench:set=qasper``."""
        return f"{self.name}:set={self.set}"

    def fetch(self) -> Fetch:
        """LongBench comes as one zip file for all sets."""
        name = self.set if self.set in SETS else "SET"
        return Fetch(
            f"data.zip of LongBench v1 (114 MB, holds data/{name}{self.suffix}.jsonl)",
            "https://huggingface.co/datasets/zai-org/LongBench/resolve/main/data.zip",
            "hf:zai-org/LongBench",
        )

    def patterns(self, length: int) -> tuple[str, ...]:
        """As upstream packs it, unpacked, or converted by the hub."""
        del length
        name = self.set + self.suffix
        return (
            f"{name}.jsonl",
            f"data/{name}.jsonl",
            f"{name}.json",
            f"{name}.parquet",
            f"{name}/*.parquet",
            f"{name}/test/*.parquet",
            f"data.zip!data/{name}.jsonl",
            f"data.zip!{name}.jsonl",
        )

    def schemas(self) -> tuple[Schema, ...]:
        """LongBench's own columns."""
        return (Schema("LongBench v1", COLUMNS, {"dataset": TEXT_OR_NULL}),)

    def keep(self, row: Mapping[str, Any], where: str) -> bool:
        """Rows say which set they are of; rows of another one mean a wrong file."""
        own = (row.get("dataset") or self.set).removesuffix("_e")
        if own != self.set:
            other = f"{self.name}:set={own}, or another file" if own in self.sets() else "another file"
            raise PrerequisiteError(
                f"{where}: 'dataset' is '{own}': the data of {self.label} has rows of another set.", f"Use {other}."
            )
        if self.facts.metric is text.classification and not row["all_classes"]:
            raise PrerequisiteError(
                f"{where}: 'all_classes' is empty, so that a row of {self.label} cannot be scored.",
                "Download the file again.",
            )
        return True

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """Row ``index``, cut in the middle to at most ``length`` tokens as upstream cuts, questions included."""
        del rng
        facts = self.facts
        row, origin = self.row(index, length)
        tail = facts.tail.replace("{input}", row["input"])
        prompt = facts.head + row["context"] + tail
        cut = middle(prompt, length, tokenizer)
        border = len(prompt) - len(tail)
        # The middle goes, whatever stands there: of a long question upstream cuts too.
        head, rest = (cut.head, cut.tail) if cut.tail else (border, border)
        context = prompt[: min(head, border)] + prompt[rest:border]
        question = prompt[border : max(head, border)] + prompt[max(rest, border) :]
        if cut.half == 0 or not context.strip():
            raise UsageError(
                f"{self.label}: sample {index} does not fit into {length:,} tokens: nothing of its text would be left.",
                "Use a longer --seq-len.",
            )
        classes = {"classes": list(row["all_classes"])} if row["all_classes"] else {}
        return Sample(
            id=f"{self.name}-{self.set}-{index:04d}",
            context=context,
            question=question,
            answers=tuple(row["answers"]),
            meta={
                "set": self.set,
                "row": str(row.get("_id", index)),
                "words": row["length"],
                "bucket": bucket(row["length"]),
                **cut.meta(),
                **classes,
                **origin,
            },
        )

    def score(self, sample: Sample, completion: str) -> float:
        """The best of the set's metric over all answers."""
        said = text.first_line(completion) if self.facts.few_shot else completion
        classes = sample.meta.get("classes", ())
        return max(self.facts.metric(said, answer, classes) for answer in sample.answers)

    def last_chars(self, sample: Sample) -> int:
        """From the set's marker on, where it comes later than the last 100 characters begin."""
        found = sample.question.rfind(self.facts.marker) if self.facts.marker else -1
        return MARGIN if found < 0 else min(MARGIN, len(sample.question) - found)


def bucket(words: float) -> str:
    """LongBench-E's length group."""
    return BUCKETS[(words >= 4000) + (words >= 8000)]
