"""What a run reads besides its settings: the files of its model, by content.

They stand in the run's manifest. A run that is resumed must find the same, or its halves would be of two experiments.
"""

from __future__ import annotations


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
