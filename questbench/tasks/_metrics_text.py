"""Scores of short answers as LongBench's evaluation computes them (https://arxiv.org/abs/2308.14508): 0 to 1 each.

Every function takes (prediction, gold, classes) so that a table of sets can name any of them. They are written from
the published definitions, quirks included; where a quirk changes a number the docstring says so.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, then without articles, white space collapsed: in this order.

    The order matters: "a-the" becomes the word "athe", and "(a)" vanishes. Punctuation beyond ASCII stays.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def first_line(text: str) -> str:
    """The first line that is not empty at the start: what LongBench keeps of a few-shot completion."""
    return text.lstrip("\n").split("\n")[0]


def qa_f1(prediction: str, gold: str, classes: Sequence[str] = ()) -> float:
    """F1 over normalised words as bags. No common word scores 0, two empty texts included."""
    del classes
    said, meant = normalize_answer(prediction).split(), normalize_answer(gold).split()
    common = (Counter(said) & Counter(meant)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(meant)
    return 2 * precision * recall / (precision + recall)


def classification(prediction: str, gold: str, classes: Sequence[str]) -> float:
    """1 / number of class names found in the prediction, if the gold one is among them, else 0.

    Names that are a proper part of the gold one do not count as found. Upstream takes them off the list while it walks
    over it, so that the name behind each one taken off is never looked at; this is kept, because published numbers
    have it. Upstream's similarity fallback for predictions that name no class can never run, and is left out.
    """
    found = [name for name in classes if name in prediction]
    place = 0
    while place < len(found):
        name = found[place]
        if name in gold and name != gold:
            found.remove(name)  # The next name slides into this place and is skipped.
        place += 1
    return 1.0 / len(found) if gold in found else 0.0


def retrieval(prediction: str, gold: str, classes: Sequence[str] = ()) -> float:
    """Share of the numbers in the prediction that are the gold paragraph's; ``gold`` reads "Paragraph 7"."""
    del classes
    wanted = re.search(r"Paragraph (\d+)", gold)
    return _share(prediction, wanted.group(1)) if wanted else 0.0


def retrieval_zh(prediction: str, gold: str, classes: Sequence[str] = ()) -> float:
    """As :func:`retrieval`, of "段落7"."""
    del classes
    wanted = re.search(r"段落(\d+)", gold)
    return _share(prediction, wanted.group(1)) if wanted else 0.0


def count(prediction: str, gold: str, classes: Sequence[str] = ()) -> float:
    """Share of the numbers in the prediction that are the gold number."""
    del classes
    return _share(prediction, gold)


def code_similarity(prediction: str, gold: str, classes: Sequence[str] = ()) -> float:
    """Similarity of the first line that is code to the gold line, in whole percent.

    A line with a backtick, ``#`` or ``//`` is no code. The similarity is ``fuzz.ratio`` of the package fuzzywuzzy where
    python-Levenshtein is not installed: difflib's ratio, its rule for frequent characters included.
    """
    del classes
    lines = prediction.lstrip("\n").split("\n")
    line = next((text for text in lines if not any(mark in text for mark in ("`", "#", "//"))), "")
    if line == gold:
        return 1.0
    if not line or not gold:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, gold).ratio()) / 100


def _share(prediction: str, number: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(number) / len(numbers) if numbers else 0.0
