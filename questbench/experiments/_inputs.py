"""What a run reads besides its settings: files of the model and of the data, by content, and the chat template.

They stand in the run's manifest. A run that is resumed must find the same, or its halves would be of two experiments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from questbench.tasks._base import Task
from questbench.tasks._data import DataTask


def accuracy(
    model: str, mode: str, work: Sequence[tuple[str, Task, int]], *, online: bool, trust_remote_code: bool
) -> dict[str, Any]:
    """All that an accuracy run reads.

    Args:
        mode: whether prompts go into the chat template.
        work: how the user wrote the task, the task, and its length.

    Raises:
        UsageError, PrerequisiteError: something of it cannot be used.
    """
    found = {
        "model": model_files(model, online=online, trust_remote_code=trust_remote_code),
        "data": data_files(work),
        "chat_template": template(model, mode, online=online, trust_remote_code=trust_remote_code),
    }
    return {name: part for name, part in found.items() if part}


def model_files(name: str, *, online: bool = False, trust_remote_code: bool = False) -> dict[str, str]:
    """SHA-256 of every file that decides what a model does; empty for one that is made by code.

    Of a GGUF file it is that of the file itself, beside its name and its quantisation.

    Raises:
        PrerequisiteError: it is not there.
    """
    from questbench.models import _folder
    from questbench.models.gguf.source import is_gguf
    from questbench.models.loading import folder_of, from_gguf

    if is_gguf(name):
        source = from_gguf(name)
        return {f"{source.file} ({source.quantisation})": source.sha256}
    folder = folder_of(name, online=online, trust_remote_code=trust_remote_code)
    return {} if folder is None else _folder.contents(folder)


def data_files(work: Sequence[tuple[str, Task, int]]) -> dict[str, str]:
    """SHA-256 of the data of each task that has some.

    Args:
        work: how the user wrote the task, the task, and its length.
    """
    found = {}
    for spec, task, length in work:
        if isinstance(task, DataTask):
            place = task.place(length)
            found[f"{spec} at {length}: {place.name}"] = place.sha256
    return found


def template(name: str, mode: str, *, online: bool, trust_remote_code: bool) -> dict[str, Any]:
    """The chat template that prompts are put into, and what it writes around them; empty where there is none.

    Raises:
        UsageError: it cannot be used.
    """
    from questbench.experiments._accuracy_chat import find
    from questbench.experiments._accuracy_template import describe
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
