"""When to stop timing: enough rounds and a steady median, or a limit, and which of them it was."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Sequence

from questbench.errors import UsageError
from questbench.measure.order import relative_noise


class Stop(enum.StrEnum):
    """Why timing ended."""

    STEADY = "steady"
    """Every arm's median is known as well as asked for."""
    ROUNDS = "rounds"
    """The largest number of rounds was reached first."""
    TIME = "time"
    """The time ran out first."""


@dataclasses.dataclass(frozen=True)
class StoppingRule:
    """Stops on precision, never on the size of an effect, so that it cannot favour an arm.

    Args:
        rounds_min: rounds before the medians are looked at.
        rounds_max: rounds after which timing ends in any case.
        target_noise: relative noise of the median that every arm must reach, 0.01 for 1 %.
        max_seconds: time after which timing ends in any case, once every arm has one sample.
    """

    rounds_min: int = 20
    rounds_max: int = 400
    target_noise: float = 0.01
    max_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.rounds_min <= self.rounds_max:
            raise UsageError(
                f"{self.rounds_min} to {self.rounds_max} rounds is no range.",
                "Ask for at least one round and no more than the maximum.",
            )

    def decide(self, samples: Iterable[Sequence[float]], rounds: int, elapsed: float) -> Stop | None:
        """The reason to stop now, or ``None`` to go on.

        Args:
            samples: what each arm has so far.
            rounds: rounds done.
            elapsed: seconds since the first round began.
        """
        if rounds >= self.rounds_min and all(relative_noise(seconds) < self.target_noise for seconds in samples):
            return Stop.STEADY
        if rounds >= self.rounds_max:
            return Stop.ROUNDS
        if elapsed >= self.max_seconds and rounds >= 1:
            return Stop.TIME
        return None
