"""What a token looks like to the constructed model: a match code to be found by, an identity to be copied.

**Match code**, 34 numbers, of which a token has at most three that are not 0. A number of up to three digits has a one
for its first digit, one for its second, one for its third ("absent" is a digit of its own):

    "482"  ->  first = 4, second = 8, third = 2          code . code' = number of digits that agree
    "13"   ->  first = 1, second = 3, third absent

So equal numbers agree in 3 of 3, and numbers that differ in one digit in 2 of 3. The words and marks that announce a
fact have codes of the same kind that no number has. Zeros and ones make products exact in any floating-point type, and
they make Quest's page bounds tight: a page claims a digit only if one of its tokens has it. (With dense random codes a
page of 16 tokens covers nearly every sign, and its bound says nothing.)

Everything else, which is what a haystack is made of, is "some word" or "some mark", at strength 0.45: where both the
query and the key are such, a match counts 0.2 of a match of two numbers, and for every query that looks for a fact
their keys are null. That is the property that lets Quest work at page size 16 in real models; strength does here what
inverse document frequency does in text search.

**Identity**, 104 signs taken from a hash of the token: nearly orthogonal for different tokens, so that an average of
copied identities can be read out by a matrix product.
"""

from __future__ import annotations

import hashlib
import math
import re

from questbench.models.constructed.vocabulary import CUE_MARKS, CUES

DIGITS = (10, 11, 11)
"""Symbols of the first, second and third digit; the last one of the latter two means "absent"."""
SOME_WORD = sum(DIGITS)
SOME_MARK = SOME_WORD + 1
CODE = SOME_MARK + 1
"""Length of a match code."""
ONES = len(DIGITS)
"""Product of a strong token's code with itself."""
IDENTITY = 104
"""Length of an identity."""
WEAK = 0.45
"""Strength of what is neither a number nor announces a fact."""

_ABSENT = 10
_NUMBER = re.compile(r"[0-9]{1,3}")
_CUE = {text: rank for rank, text in enumerate((*CUES, *CUE_MARKS))}


def _digits(bare: str) -> tuple[int, int, int] | None:
    """The three symbols of a strong token, ``None`` for a weak one."""
    if _NUMBER.fullmatch(bare):
        first, second, third = ([int(digit) for digit in bare] + [_ABSENT, _ABSENT])[:3]
        return first, second, third
    if bare in _CUE:
        # No number has a third digit without a second one: these codes differ from all numbers' and from each other.
        return _CUE[bare] // 10, _ABSENT, _CUE[bare] % 10
    return None


def match_code(text: str) -> list[float]:
    """The match code of a token, ``CODE`` numbers; case and the space in front make no difference."""
    bare = text.strip(" ").lower()
    code = [0.0] * CODE
    digits = _digits(bare)
    if digits is None:
        # One entry, as long as three ones of this strength.
        code[SOME_WORD if any(map(str.isalpha, bare)) else SOME_MARK] = WEAK * math.sqrt(ONES)
        return code
    start = 0
    for symbol, size in zip(digits, DIGITS, strict=True):
        code[start + symbol] = 1.0
        start += size
    return code


def identity(text: str) -> list[float]:
    """The identity of a token, ``IDENTITY`` signs."""
    bits = int.from_bytes(hashlib.shake_128(text.encode()).digest(IDENTITY // 8), "big")
    return [1.0 if bits >> place & 1 else -1.0 for place in range(IDENTITY)]
