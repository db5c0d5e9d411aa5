"""Memory of an accuracy run: what a length will need, told before."""

from __future__ import annotations

from collections.abc import Sequence

from questbench.errors import CellError
from questbench.experiments import costs
from questbench.experiments.accuracy.config import Cell, Work
from questbench.experiments.accuracy.session import Session
from questbench.models._shape import cache_shape

TEXT_BYTES = 200
"""Of one token of a prompt while it is made: words, their joined text, token numbers as Python objects."""
PART = 2048
"""Tokens of a prompt that run through the model at once."""


def needed(session: Session, work: Work, cells: Sequence[Cell]) -> int:
    """Bytes beside the weights that one sample of a length takes at its largest.

    The text is made whole, also where the model cannot take all of it; the prompt is stored once, with bounds; a cell
    that drops entries holds what it keeps, one with pages of another size a copy of the whole.
    """
    model = session.loaded.model
    text = model.config.get_text_config(decoder=True)
    size = min(cell.page_size for cell in cells)
    entry = cache_shape(model, size).entry_bytes * int(text.num_hidden_layers)
    tokens = work.length if session.max_length is None else min(work.length, session.max_length)
    own = [0]
    for cell in cells:
        if not cell.method.keeps_all or cell.page_size != cells[0].page_size:
            own.append(cell.method.tokens_resident(tokens))
    widest = max(int(getattr(text, "intermediate_size", 0) or 0), int(text.hidden_size))
    activations = 4 * min(tokens, PART) * widest * int(model.dtype.itemsize)
    cache = int(entry * (tokens + max(own)) * (1 + 1 / size))
    return TEXT_BYTES * work.length + cache + activations


def check(session: Session, work: Work, cells: Sequence[Cell]) -> CellError | None:
    """Why a length cannot run for want of memory, or ``None``."""
    hint = "Use a shorter --seq-len."
    try:
        costs.require(needed(session, work, cells), session.config.device, beside="beside the weights", hint=hint)
    except CellError as error:
        return error
    return None
