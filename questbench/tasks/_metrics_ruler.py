"""RULER's string match (https://arxiv.org/abs/2404.06654): is each reference somewhere in the completion?"""

from __future__ import annotations

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")


def clean(prediction: str) -> str:
    """The completion as RULER's evaluation reads it: stripped, each control character a line break, stripped again."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that stand in the prediction, whatever their case. For all sets but QA."""
    text = clean(prediction).lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def string_match_part(prediction: str, references: Sequence[str]) -> float:
    """1 if any reference stands in the prediction, whatever its case. For QA, whose references are alternatives."""
    text = clean(prediction).lower()
    return float(any(reference.lower() in text for reference in references))
