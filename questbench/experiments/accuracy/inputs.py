"""What an accuracy run reads besides its settings: model, data and chat template, by content, for its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from questbench.experiments.accuracy.chat import find
from questbench.experiments.accuracy.template import describe
from questbench.tasks._base import RequestTask, Task
from questbench.tasks._data import DataTask


def data_files(work: Sequence[tuple[str, Task, int]]) -> dict[str, str]:
    """SHA-256 of the data of each task that has some.

    Args:
        work: how the user wrote the task, the task, and its length.
    """
    found = {}
    for spec, task, length in work:
        if isinstance(task, DataTask) and task.reads:
            place = task.place(length)
            found[f"{spec} at {length}: {place.name}"] = place.sha256
        elif isinstance(task, RequestTask):
            found[spec] = task.digest()
    return found


def template(name: str, mode: str, *, online: bool, trust_remote_code: bool) -> dict[str, Any]:
    """The chat template that prompts are put into, and what it writes around them; empty where there is none.

    Raises:
        UsageError: it cannot be used.
    """
    from questbench.models import _folder
    from questbench.models.loading import folder_of

    folder = folder_of(name, online=online, trust_remote_code=trust_remote_code)
    if folder is None or mode == "off":
        return {}
    tokenizer = _folder.load_tokenizer(folder, trust_remote_code=trust_remote_code, needed=False)
    chat = None if tokenizer is None else find(tokenizer, mode)
    if chat is None:
        return {}
    written = {"before": chat.head, "behind": chat.tail, "before_given_answer": chat.opening, "between": chat.between}
    return describe(tokenizer) | {key: text for key, text in written.items() if text is not None}
