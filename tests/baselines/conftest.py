"""Fixtures of the tests of baselines. What they share with other folders is imported from there."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
for _folder in ("kernels", "models", "experiments"):
    sys.path.insert(0, str(TESTS / _folder))
