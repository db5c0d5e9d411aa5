"""Which of RULER's sets a prompt is of, told by its text: eight needle sets ask in the same words.

Names of files say little: rows of ``niah_multikey_3`` under the name of ``niah_single_1`` would give a plausible score
of the wrong task. What tells the sets apart is written down in RULER's generators (https://arxiv.org/abs/2404.06654):
what kind of value is asked for, of one key or of several, what the needles are hidden in, and whether documents have
titles.
"""

from __future__ import annotations

import re

NEEDLE = re.compile(r"One of the special magic \w+ for (?P<key>.{1,120}?) is: (?P<value>[^\n]{1,80}?)\.(?=\s|$)")
ASKED = re.compile(
    r"What (?P<verb>is|are all) the special magic (?P<kind>number|uuid)s? for (?P<keys>[^\n]*?) mentioned"
)
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
NOISE = "The grass is green. The sky is blue."
DOCUMENT = re.compile(r"^Document \d+:\n", re.MULTILINE)
FILLER_WORDS = 20
"""Fewer words beside the needles than this per needle, and the needles are the text: head and question have some."""


def needle_set(prompt: str) -> str | None:
    """Name of the needle set that a prompt is of; ``None`` where its question is of another form."""
    asked = list(ASKED.finditer(prompt))
    if not asked:
        return None
    question = asked[-1]
    body = prompt[: question.start()]
    if question["verb"] == "are all":
        return "niah_multiquery" if re.search(r", (?:and )?\S", question["keys"]) else "niah_multivalue"
    needles = list(NEEDLE.finditer(body))
    several = len({needle["key"] for needle in needles}) > 1
    only_needles = several and len(NEEDLE.sub("", body).split()) < FILLER_WORDS + len(needles)
    if question["kind"] == "uuid":
        return "niah_multikey_3" if only_needles or UUID.fullmatch(question["keys"]) else "niah_single_3"
    if several:
        return "niah_multikey_2" if only_needles else "niah_multikey_1"
    return "niah_single_1" if NOISE in " ".join(body.split()) else "niah_single_2"


def qa_set(prompt: str) -> str | None:
    """``qa_2`` where documents have a title on a line of its own (HotpotQA), ``qa_1`` where they have none (SQuAD)."""
    # The last document ends with the question behind it.
    documents = DOCUMENT.split(prompt)[1:]
    texts = [text.strip().split("\n\n")[0] for text in documents]
    if not texts:
        return None
    titled = sum("\n" in text for text in texts)
    return "qa_2" if 2 * titled > len(texts) else "qa_1"
