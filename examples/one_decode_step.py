"""One decode step of one layer, by hand: the two calls that every experiment and every model makes.

python examples/one_decode_step.py
"""

import torch

from questbench import attention, kernels
from questbench.cache import LayerCache
from questbench.experiments.counting import ReadCounter
from questbench.methods.dense import Dense
from questbench.methods.quest import Quest

QUERY_HEADS, KV_HEADS, HEAD_DIM, LENGTH = 8, 2, 64, 4096


def main() -> None:
    """Fill a cache, fork it for Quest, take one step with each and compare what they read."""
    torch.manual_seed(0)
    ops = kernels.load("cpu")
    dense = LayerCache(Dense(), ops, rows=1, kv_heads=KV_HEADS, head_dim=HEAD_DIM, bounds=True)
    dense.append(*torch.randn(2, 1, KV_HEADS, LENGTH - 1, HEAD_DIM).unbind())
    quest = dense.fork(Quest(budget=512))  # shares the pages; what either appends from here on is its own

    q, k, v = (torch.randn(1, heads, HEAD_DIM) for heads in (QUERY_HEADS, KV_HEADS, KV_HEADS))
    for layer in (dense, quest):
        counter = ReadCounter(QUERY_HEADS, first_layer=0)
        layer.append(k[:, :, None], v[:, :, None])
        out = attention.decode(layer, q, attention.Scoring(HEAD_DIM**-0.5), counter)
        read = f"{counter.mean('read'):6.0f} of {layer.seen[0]} entries"
        print(f"{layer.method.name:5s}  read {read}, |out| {out.norm():.3f}")


if __name__ == "__main__":
    main()
