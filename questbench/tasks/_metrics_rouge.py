"""ROUGE-L as LongBench reports it: the F of the PyPI package ``rouge`` 1.0.1, summary level, unique words.

Not the ``rouge_score`` package, whose numbers differ: here sentences end at every ".", case and punctuation count, no
stemming, and both the lengths and the common subsequences are sets of words (Lin, "ROUGE", 2004, section 3.2, over
words that count once). The package walks back through its table by recursion and fails on sentences of about a
thousand words, which LongBench turns into a silent 0; this one is iterative and scores them.
"""

from __future__ import annotations

from collections.abc import Sequence

EPSILON = 1e-8
"""Keeps the package's F defined; a perfect match scores 1 - 5e-9."""


def rouge_l(prediction: str, gold: str, classes: Sequence[str] = ()) -> float:
    """F of ROUGE-L, 0 to 1. A text without a sentence scores 0, as in LongBench."""
    del classes
    said, meant = _sentences(prediction), _sentences(gold)
    if not said or not meant:
        return 0.0
    union: set[str] = set()
    for reference in meant:
        for sentence in said:
            union |= _common_subsequence(reference, sentence)
    # The package adds up, reference sentence by reference sentence, by how much the union grew: its final size.
    recall = len(union) / len({word for sentence in meant for word in sentence})
    precision = len(union) / len({word for sentence in said for word in sentence})
    return 2 * precision * recall / (precision + recall + EPSILON)


def _sentences(text: str) -> list[list[str]]:
    """Words of each sentence; one of blanks only has one word, the empty one."""
    return [" ".join(sentence.split()).split(" ") for sentence in text.split(".") if sentence]


def _common_subsequence(reference: Sequence[str], sentence: Sequence[str]) -> set[str]:
    """Words of the longest common subsequence that the package's walk finds; of equal ones the same as there."""
    rows, columns = len(reference), len(sentence)
    length = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i, word in enumerate(reference, 1):
        above, here = length[i - 1], length[i]
        for j, other in enumerate(sentence, 1):
            here[j] = above[j - 1] + 1 if word == other else max(above[j], here[j - 1])
    words = set()
    i, j = rows, columns
    while i and j:
        if reference[i - 1] == sentence[j - 1]:
            words.add(reference[i - 1])
            i, j = i - 1, j - 1
        elif length[i - 1][j] > length[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
