"""What RULER's tasks share: its score, and a task that takes it."""

from __future__ import annotations

import re
from typing import ClassVar

from questbench.tasks._base import Sample, Task


def string_match_all(completion: str, references: list[str]) -> float:
    """Share of references that occur in the completion, upper and lower case alike (RULER, ``string_match_all``)."""
    text = re.sub(r"[\x00-\x1f]", "\n", completion).strip().lower()
    return sum(reference.lower() in text for reference in references) / len(references)


class RulerTask(Task):
    """A task whose ``meta["references"]`` must all occur in the completion; the score is the share that does.

    RULER generates a fixed number of tokens, and so does this: no stop but the model's own.
    """

    metric: ClassVar[str] = "string match"
    stop: ClassVar[tuple[str, ...]] = ()
    binary: ClassVar[bool] = False

    def score(self, sample: Sample, completion: str) -> float:
        """Share of the references found."""
        return string_match_all(completion, sample.meta["references"])
