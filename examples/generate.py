"""Any transformers model under a method: a cache of ours, our attention, the usual generate().

python examples/generate.py
"""

import inspect

import torch

import questbench
from questbench.models import constructed


def main() -> None:
    """Ask the embedded model for a pass key under every budget."""
    model, tokenizer = constructed.build()
    filler = "The grass is green. The sky is blue. The sun is yellow. " * 60
    needle = "The pass key is 48213. Remember it. 48213 is the pass key. "
    prompt = f"{filler}{needle}{filler}\nWhat is the pass key? The pass key is"
    ids = torch.tensor([tokenizer.encode(prompt)])
    for budget in (64, 256):
        cache = questbench.build_cache(model, questbench.Quest(budget=budget), dense_layers=1)
        model.set_attn_implementation("questbench")
        # transformers 5.24 renamed past_key_values to cache.
        name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        out = model.generate(ids, **{name: cache}, max_new_tokens=3, do_sample=False)
        print(f"budget {budget:4d} of {ids.shape[1]} tokens:{tokenizer.decode(out[0, ids.shape[1] :])}")


if __name__ == "__main__":
    main()
