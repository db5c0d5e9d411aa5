"""questbench measures what query-aware KV-cache sparsity really buys."""

__version__ = "0.1.0"
