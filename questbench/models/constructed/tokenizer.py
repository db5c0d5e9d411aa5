"""The constructed model's tokenizer: byte-level BPE with listed words, built in code.

Lossless for any text, because everything falls back to bytes. Numbers split into groups of at most three digits from
the left, as in Llama 3, so a five-digit pass key is two tokens; unlike there a number keeps the space before it, as a
word does. The texts of the tasks have about 3.6 characters per token, other English about 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from questbench.models.constructed.vocabulary import COMMON, CUE_MARKS, CUES, FRAGMENTS, MARKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS = "<|begin|>", "<|end|>"

_PIECES = r"\n| ?[0-9]{1,3}| ?\p{L}+| ?[^\s\p{L}0-9]+|[^\S\n]+(?!\S)|[^\S\n]+"
"""A newline; a number group; a word; a run of marks; white space, of which the last goes to the word behind it."""


def _byte_symbols() -> list[str]:
    """The 256 printable characters that stand for bytes in byte-level BPE, by byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def _whole_pieces() -> list[str]:
    """Pieces that are one token, as text."""
    digits = [f"{number:0{width}d}" for width in (1, 2, 3) for number in range(10**width)]
    words = [form for word in (*CUES, *COMMON) for form in (word, word.capitalize())]
    bare = [*digits, *words, *CUE_MARKS, *MARKS]
    return [form for text in bare for form in (text, " " + text)]


def vocabulary(whole: Sequence[str] | None = None) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token (in byte symbols) -> id, and merges by rank.

    Args:
        whole: texts that are one token each; the constructed model's own if left out.
    """
    symbols = _byte_symbols()
    merges = [(left, right) for left, _, right in (rule.partition("+") for rule in FRAGMENTS)]
    texts = _whole_pieces() if whole is None else whole
    pieces = ["".join(symbols[byte] for byte in text.encode()) for text in texts]
    tokens = dict.fromkeys([BOS, EOS, *symbols, *(left + right for left, right in merges), *pieces])
    return {token: index for index, token in enumerate(tokens)}, merges


def build_tokenizer(
    whole: Sequence[str] | None = None, split: str = _PIECES, name: str = "constructed"
) -> PreTrainedTokenizerFast:
    """A stock ``PreTrainedTokenizerFast``; BOS is prepended, and text that spells a special token stays text.

    Args:
        whole: as for :func:`vocabulary`.
        split: regular expression of the pieces that a text falls into before merging.
        name: what it says it was loaded from.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids, merges = vocabulary(whole)
    # ignore_merges: a piece that is a token as a whole is taken as such; merges serve the other words only.
    backend = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B:1", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        model_max_length=131072,
        name_or_path=name,
    )
