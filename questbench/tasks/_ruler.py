"""What RULER's tasks share: its score, and a task that takes it."""

from __future__ import annotations

from typing import ClassVar

from questbench.tasks._base import Sample, Task
from questbench.tasks._metrics_ruler import string_match_all


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
