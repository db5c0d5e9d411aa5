"""F1 of answer words as LongBench counts it for English questions (https://github.com/THUDM/LongBench, MIT)."""

from __future__ import annotations

import re
import string
from collections import Counter


def normalised(answer: str) -> list[str]:
    """Words in lower case without ASCII punctuation and articles, in this order (SQuAD's normalisation)."""
    kept = "".join(char for char in answer.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def qa_f1(completion: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the words, each counted as often as it occurs; 0 if none is common."""
    said, gold = normalised(completion), normalised(answer)
    common = sum((Counter(said) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(gold)
    return 2 * precision * recall / (precision + recall)
