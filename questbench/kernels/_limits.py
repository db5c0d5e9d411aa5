"""Shapes that a backend's kernels have room for, so that others are refused before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from questbench.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """What a backend can work with; by default everything."""

    group: int | None = None
    """Query heads per KV head, at most."""
    head_dims: tuple[int, ...] = ()
    """The only ones, where there are any."""
    page_sizes: tuple[int, int] | None = None
    """The smallest and the largest."""
    powers_of_two: bool = False
    """Whether page sizes between these two must be powers of two."""

    def check(
        self, backend: str, *, query_heads: int | None, kv_heads: int, head_dim: int, page_size: int | None = None
    ) -> None:
        """Refuse a shape.

        Args:
            backend: whose limits these are, for the message.
            query_heads, page_size: ``None`` where they are not known.

        Raises:
            UsageError: the backend has no kernels for it.
        """
        other = "Use --backend reference (slow; from Python ops='reference')"
        if self.group is not None and query_heads is not None and query_heads > self.group * kv_heads:
            raise UsageError(
                f"{query_heads} query heads over {kv_heads} KV heads: backend '{backend}' takes up to {self.group} "
                "query heads per KV head.",
                f"{other}, or more KV heads.",
            )
        if self.head_dims and head_dim not in self.head_dims:
            known = ", ".join(map(str, self.head_dims))
            raise UsageError(f"Head dim {head_dim}: backend '{backend}' has kernels for {known}.", f"{other}.")
        if self.page_sizes is None or page_size is None:
            return
        least, most = self.page_sizes
        if not least <= page_size <= most or (self.powers_of_two and page_size & (page_size - 1)):
            which = f"{'powers of two ' if self.powers_of_two else ''}from {least} to {most} entries"
            raise UsageError(
                f"Pages of {page_size} entries: backend '{backend}' has pages of {which}.",
                "Use pages of 16, for example.",
            )
