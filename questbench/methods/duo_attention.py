"""DuoAttention: some KV heads keep everything, the others a few sinks and a window (Xiao et al., ICLR 2025,
https://arxiv.org/abs/2410.10819).

    retrieval = the KV heads whose trained weight alpha [layers, KV heads] is at least its `sparsity` quantile
    keep      = all in retrieval heads; the first `sinks` entries and the newest in the others (streaming heads)

The quantile is over all layers together, so that layers differ in their number of retrieval heads. ``pattern`` is the
file of weights that its authors publish for six models, ``full_attention_heads.tsv``: one line per layer, one number
per KV head. A ``config.json`` beside it says how many sinks it was trained with; ``sinks`` replaces that number.

The two kinds of heads are stored apart: resident bytes fall. The budget holds for streaming heads (sinks, window, the
new entry); retrieval heads see the whole text. Counts of entries are means over heads. Positions are those of the text.

Deviations: equal weights are told apart by layer and head, the earlier one keeps everything; the released code adds
noise. A prompt is read densely and cut once at its end, also where it is fed in parts; the released code does so with
its first part and streams the later ones. A later turn sees sinks, window and its own tokens, as there. In a benchmark
of one layer alone, the layer whose number of retrieval heads is nearest to the mean stands for all (the first such).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from questbench.errors import UsageError
from questbench.methods._base import CacheShape, HeadGroup, Method, at_least
from questbench.methods.dense import Dense
from questbench.methods.streaming_llm import StreamingLLM

SOURCE = (
    "Patterns of six models are published in the folder attn_patterns of https://github.com/mit-han-lab/duo-attention. "
    "Use -M duo_attention.pattern=FOLDER/full_attention_heads.tsv."
)
SINKS = 128
"""Of all published patterns; where neither the pattern nor the command says."""


@dataclass(frozen=True)
class DuoAttention(Method):
    """Keeps everything in retrieval heads, sinks and a window in the others; needs a file of trained weights."""

    pattern: str = ""
    """The file of weights, full_attention_heads.tsv, or the folder it is in."""
    sparsity: float = 0.5
    """Share of streaming heads, of all heads of the model."""
    sinks: int | None = None
    """Entries at the start of the text that streaming heads keep; as the pattern was trained by default."""

    def head_groups(self, shape: CacheShape) -> tuple[HeadGroup, ...]:
        """Retrieval heads, which are dense, and streaming heads, where a layer has them."""
        layers = self._retrieval
        if shape.layers != 1 and len(layers) != shape.layers:
            raise UsageError(f"{self.pattern} has {len(layers)} layers, and this model has {shape.layers}.", SOURCE)
        if len(layers[0]) != shape.kv_heads:
            raise UsageError(
                f"{self.pattern} has {len(layers[0])} KV heads per layer, and this model has {shape.kv_heads}.", SOURCE
            )
        mean = sum(map(sum, layers)) / len(layers)
        own = layers[shape.index] if shape.layers != 1 else min(layers, key=lambda layer: abs(sum(layer) - mean))
        methods = (StreamingLLM(self.budget, sinks=self._sinks, positions="text"), Dense())
        groups = [
            HeadGroup(tuple(head for head, full in enumerate(own) if full == kind), methods[kind])
            for kind in (True, False)
        ]
        return tuple(group for group in groups if group.heads)

    @property
    def keeps_all(self) -> bool:
        """Streaming heads do not; each group of heads says itself what it keeps."""
        return False

    def check(self, page_size: int) -> None:
        """A pattern that can be read; the sinks, one window entry and the new one."""
        if not self.pattern:
            raise UsageError("duo_attention needs a pattern: the trained weight of every KV head of the model.", SOURCE)
        if not 0 <= self.sparsity <= 1:
            raise UsageError(
                f"duo_attention.sparsity is a share, not {self.sparsity}.", "Use -M duo_attention.sparsity=0.5."
            )
        _ = self._retrieval  # can be read
        at_least(self, self._sinks + 2, f"{self._sinks} sinks, one window entry and the new one")

    def tokens_resident(self, length: int) -> int:
        """Mean over all heads of the model, rounded up."""
        layers = self._retrieval
        full = sum(map(sum, layers)) / (len(layers) * len(layers[0]))
        return math.ceil(full * length + (1 - full) * min(length, self.budget))

    def bytes_read(self, length: int, shape: CacheShape) -> int:
        """Keys and values of what the heads of this layer hold."""
        groups = self.head_groups(shape)
        return sum(group.method.bytes_read(length, shape.part(len(group.heads))) for group in groups)

    def arguments(self, page_size: int) -> dict[str, object]:
        """Every parameter; the pattern by its folder's name and what it says."""
        path = _file(self.pattern)
        return {
            "budget": self.budget,
            "pattern": f"{path.parent.name}/{path.name}",
            "pattern_sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
            "sparsity": self.sparsity,
            "sinks": self._sinks,
        }

    @functools.cached_property
    def _sinks(self) -> int:
        if self.sinks is not None:
            return self.sinks
        beside = _file(self.pattern).with_name("config.json")
        try:
            return int(json.loads(beside.read_text(encoding="utf-8"))["sink_size"])
        except FileNotFoundError:
            return SINKS
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{beside} does not say a sink_size ({error}).", "Mend it, or set -M duo_attention.sinks=128."
            ) from None

    @functools.cached_property
    def _retrieval(self) -> list[list[bool]]:
        """Per layer and KV head: whether it keeps everything."""
        weights = _read(_file(self.pattern))
        ranked = sorted((-weight, layer, head) for layer, row in enumerate(weights) for head, weight in enumerate(row))
        # As many as are at or above the quantile, where all weights differ.
        full = len(ranked) - math.ceil(round(self.sparsity * (len(ranked) - 1), 9)) if self.sparsity < 1 else 0
        kept = {(layer, head) for _, layer, head in ranked[:full]}
        return [[(layer, head) in kept for head in range(len(row))] for layer, row in enumerate(weights)]


def _file(pattern: str) -> Path:
    path = Path(pattern).expanduser()
    return path / "full_attention_heads.tsv" if path.is_dir() else path


def _read(path: Path) -> list[list[float]]:
    """One row of weights per layer.

    Raises:
        UsageError: it cannot be read, or is no such table.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [[float(cell) for cell in line.split()] for line in lines if line.strip()]
    except OSError as error:
        raise UsageError(f"duo_attention's pattern {path} cannot be read: {error.strerror}.", SOURCE) from None
    except ValueError as error:
        raise UsageError(f"{path} is no table of numbers: {error}.", SOURCE) from None
    if not rows or {len(row) for row in rows} != {len(rows[0])} or not all(map(math.isfinite, chain(*rows))):
        raise UsageError(f"{path} is no table of one line per layer with as many numbers as KV heads.", SOURCE)
    return rows
