"""What the tests of the generated tasks share: tokenizers and the list of specs."""

import functools

from questbench import seeding
from questbench.models.constructed.tokenizer import build_tokenizer
from questbench.tasks._make import make_task

NEEDLE_SPECS = (
    "niah",
    "niah:haystack=garbage",
    "niah:depth=0.25",
    "niah_single_1",
    "niah_single_2@prose",
    "niah_single_3@prose",
    "niah_multikey_1@prose",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue@prose",
    "niah_multiquery@prose",
    "vt",
    "vt:chains=4:hops=2:example=false",
    "chain",
    "chain:steps=5:links=5",
    "docqa",
    "docqa:passages=3",
    "multiturn",
    "multiturn:turns=3:records=16",
)
SPECS = (*NEEDLE_SPECS, "cwe", "fwe", "ppl", "ppl:share=0.5")


class Characters:
    """One token per byte and no BOS."""

    def encode(self, text, *, add_special_tokens=True):
        del add_special_tokens
        return list(text.encode())


class Lumps:
    """About five characters per token, counted in whole words: steps of uneven size."""

    def encode(self, text, *, add_special_tokens=True):
        return [0] * add_special_tokens + [0 for word in text.split() for _ in range(-(-len(word) // 5))]


TOKENIZERS = {"constructed": build_tokenizer(), "characters": Characters(), "lumps": Lumps()}


def fresh(spec, index=0, length=2048, tokenizer="lumps", seed=0):
    """A sample, made anew."""
    rng = seeding.generator(seed, spec, length, index)
    return make_task(spec).sample(index, length=length, tokenizer=TOKENIZERS[tokenizer], rng=rng)


sample_of = functools.cache(fresh)
