"""Physical pages of one layer: storage, reference counts, growth. Forks of a cache share pages through one pool."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from questbench._memory import empty
from questbench.errors import CellError
from questbench.kernels._bounds import empty_bounds, read_bounds, write_bounds

BoundsLayout = Literal["none", "page", "channel"]


class PagePool:
    """Pages of keys, values and key bounds of one layer.

    Args:
        kv_heads, head_dim, page_size: shape of a page, ``[kv_heads, page_size, head_dim]``.
        dtype, device: storage of keys, values and bounds.
        pages: pages to allocate at once; the pool doubles when it runs out.
        bounds: the layout of the per-channel maxima and minima of the keys (see ``kernels/_bounds.py``), or ``none``.
    """

    def __init__(
        self,
        kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        pages: int,
        bounds: BoundsLayout,
    ) -> None:
        self.page_size = page_size
        self.k = empty((pages, kv_heads, page_size, head_dim), dtype, device)
        self.v = empty((pages, kv_heads, page_size, head_dim), dtype, device)
        self.layout = bounds
        self.bounds = self._new_bounds(pages)
        self.fixed = False
        """Whether the storage must stay where it is: a captured step knows its address."""
        self._references = [0] * pages
        self._free = list(range(pages - 1, -1, -1))

    @property
    def in_use(self) -> int:
        """Pages that some cache holds."""
        return len(self._references) - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """``count`` pages with one reference each, in ascending order where the pool is fresh.

        Raises:
            CellError: there are too few, and the storage must not move.
        """
        if count > len(self._free):
            self._grow(count - len(self._free))
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def share(self, pages: list[int]) -> None:
        """One more cache holds these pages."""
        for page in pages:
            self._references[page] += 1

    def release(self, pages: list[int]) -> None:
        """One cache less holds these pages; unheld ones can be allocated again."""
        for page in pages:
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free.append(page)

    def is_shared(self, page: int) -> bool:
        """Whether a write to the page would be seen by another cache."""
        return self._references[page] > 1

    def copy(self, page: int) -> int:
        """A private copy of a shared page, whose reference moves to the copy."""
        (target,) = self.allocate(1)
        self.k[target], self.v[target] = self.k[page], self.v[page]
        if self.bounds is not None:
            write_bounds(self.bounds, target, read_bounds(self.bounds, torch.tensor([page], device=self.k.device))[0])
        self.release([page])
        return target

    def reopen(self, page: int, entries: int) -> None:
        """The page holds its first ``entries`` again, and its bounds are theirs. By channel, open pages have none."""
        if self.bounds is not None and self.layout == "page":
            keys = self.k[page, :, :entries]
            self.bounds[page] = torch.stack([keys.amax(1), keys.amin(1)], dim=1)

    def _new_bounds(self, pages: int) -> Tensor | None:
        if self.layout == "none":
            return None
        _, kv_heads, _, head_dim = self.k.shape
        by_channel = self.layout == "channel"
        return empty_bounds(pages, kv_heads, head_dim, self.k.dtype, self.k.device, by_channel=by_channel)

    def _grow(self, missing: int) -> None:
        if self.fixed:
            raise CellError(
                f"These pages are part of a captured step and cannot move, but {missing} more are needed.",
                "Build the cache with a larger capacity.",
            )
        old = len(self._references)
        extra = max(old, missing, 8)
        self.k, self.v = _extended(self.k, extra), _extended(self.v, extra)
        if self.bounds is not None:
            grown = self._new_bounds(old + extra)
            assert grown is not None
            grown[: self.bounds.shape[0]] = self.bounds
            self.bounds = grown
        self._references += [0] * extra
        # Behind the pages that are free already, so that a fresh pool hands out ascending pages.
        self._free = list(range(old + extra - 1, old - 1, -1)) + self._free


def _extended(stored: Tensor, extra: int) -> Tensor:
    grown = empty((stored.shape[0] + extra, *stored.shape[1:]), stored.dtype, stored.device)
    grown[: stored.shape[0]] = stored
    return grown
