"""A GGUF file becomes a folder of safetensors and a tokenizer, once; later starts load the folder.

The folder's name holds the source's hash. Quantised weights are dequantised to fp32, which loses nothing of what the
file says: block scales are fp16, and their products with small integers fit. No code is run: GGUF holds tensors,
numbers and texts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from questbench import _compiling
from questbench._paths import cache_folder
from questbench.errors import PrerequisiteError, first_line
from questbench.models._fits import check_memory
from questbench.models.gguf.source import Source

EXTRA = {"gguf": "gguf", "accelerate": "accelerate", "sentencepiece": "sentencepiece"}
"""Module -> distribution of what transformers needs to read GGUF files."""
NOTE = "gguf.json"
"""What the folder was made of; written last, so that a folder without it is half made."""
FORMAT = 1
"""Raise it when the conversion changes."""
FP32 = 4


@dataclass(frozen=True)
class Converted:
    """A folder that ``load_model`` can load, and what it was made of."""

    folder: Path
    file: str
    sha256: str
    quantisation: str
    """The file's own name for it, such as ``Q4_K_M``; of mixed types the most common one counts."""


def check_extra() -> None:
    """Raise :class:`PrerequisiteError` where a package is missing that reading GGUF files needs."""
    missing = [name for module, name in EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise PrerequisiteError(
            f"Reading GGUF files needs packages that are not installed: {', '.join(missing)}.",
            "pip install 'questbench[gguf]'",
        )


def converted(source: Source) -> Converted:
    """The folder of a source, from the cache or made now.

    Raises:
        PrerequisiteError: the file is no usable model, a package is missing, or there is no room.
    """
    digest = source.digest()
    folder = cache_folder() / "models" / f"{Path(source.file).stem}-{digest[:16]}-{FORMAT}"
    if found := _stored(folder, digest):
        return found
    check_extra()
    with contextlib.ExitStack() as stack:
        doing = f"converting {source.file}"
        try:
            scratch = stack.enter_context(_compiling.building(folder.parent, folder.name, doing))
        except OSError as error:
            raise PrerequisiteError(
                f"{folder.parent} cannot be written: {error.strerror}.", "Set QUESTBENCH_CACHE to a folder that can."
            ) from error
        try:
            # Another process may have made it meanwhile.
            return _stored(folder, digest) or _make(source, digest, scratch, folder)
        except OSError as error:
            raise PrerequisiteError(
                f"{source.file} could not be converted into {folder.parent}: {error.strerror or error}.",
                "Free some disk space, or set QUESTBENCH_CACHE to another folder.",
            ) from error


def _stored(folder: Path, digest: str) -> Converted | None:
    """The finished folder of an earlier run."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        found = Converted(folder, note["file"], note["sha256"], note["quantisation"])
        # Sizes tell a folder that was damaged afterwards; it is made anew.
        whole = all((folder / name).stat().st_size == size for name, size in note["sizes"].items())
        return found if whole and found.sha256 == digest else None
    return None


def _make(source: Source, digest: str, scratch: Path, folder: Path) -> Converted:
    with _whole_file(source, scratch) as path:
        quantisation, entries = _inspect(path, source)
        free = shutil.disk_usage(scratch).free
        if (needed := FP32 * entries) > free:
            raise PrerequisiteError(
                f"{source.file} dequantised needs {needed / 2**30:.1f} GiB in {folder.parent}, where "
                f"{free / 2**30:.1f} GiB are free.",
                "Free some disk space, or set QUESTBENCH_CACHE to another folder.",
            )
        check_memory(source.file, 2 * FP32 * entries, "cpu")  # the weights are held twice while they are saved
        made = scratch / "made"
        _dequantise(path, made, source)
    result = Converted(folder, source.file, digest, quantisation)
    sizes = {path.name: path.stat().st_size for path in made.iterdir()}
    note = {**asdict(result), "folder": None, "sizes": sizes}
    (made / NOTE).write_text(json.dumps(note), encoding="utf-8")
    if folder.exists():  # half made or damaged
        shutil.rmtree(folder)
    made.replace(folder)
    return result


@contextlib.contextmanager
def _whole_file(source: Source, scratch: Path) -> Iterator[Path]:
    """One file on disk, joined in the scratch folder where it comes in parts."""
    if len(source.parts) == 1:
        yield source.parts[0]
        return
    path = scratch / source.file
    with path.open("wb") as file:
        for block in source.blocks():
            file.write(block)
    yield path
    path.unlink()


def _inspect(path: Path, source: Source) -> tuple[str, int]:
    """(quantisation, number of weights) of a file that holds a whole model.

    Raises:
        PrerequisiteError: it does not.
    """
    import gguf

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise PrerequisiteError(
                f"{source.name} is not a GGUF file: it does not begin with 'GGUF'.", "Check the path and the download."
            )
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # the reader follows offsets that a broken file invents, and fails in many ways
        raise PrerequisiteError(
            f"{source.name} ({source.size:,} bytes) is truncated or corrupt: {first_line(error).rstrip('.')}.",
            source.again,
        ) from error
    kind = reader.fields.get("general.architecture")
    if kind is None:
        raise PrerequisiteError(f"{source.name} names no architecture: it is not a model.", "Use another file.")
    entries = sum(int(tensor.n_elements) for tensor in reader.tensors)
    if not entries:
        raise PrerequisiteError(
            f"{source.name} holds a vocabulary and no weights.", "Use the file of the model, not of its vocabulary."
        )
    if "tokenizer.ggml.tokens" not in reader.fields:
        raise PrerequisiteError(f"{source.name} has no tokenizer.", "Use a file that carries its tokenizer.")
    return _quantisation(reader, gguf), entries


def _quantisation(reader: Any, gguf: Any) -> str:
    with contextlib.suppress(KeyError, ValueError, IndexError, AttributeError):
        return str(gguf.LlamaFileType(int(reader.fields["general.file_type"].contents())).name).removeprefix("MOSTLY_")
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    return sizes.most_common(1)[0][0]


def _dequantise(path: Path, made: Path, source: Source) -> None:
    """Write model and tokenizer of a checked file as transformers does.

    Raises:
        PrerequisiteError: transformers does not know the architecture, or cannot read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    place = {"gguf_file": path.name, "local_files_only": True}
    try:
        # transformers shows its own progress bar here, once per file and machine.
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **place
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **place)
    except Exception as error:
        if "is not supported" in str(error) and "architecture" in str(error):
            message = f"transformers cannot read this kind of GGUF file ({source.name}): {first_line(error)}"
            raise PrerequisiteError(message, "Use the model's safetensors instead.") from error
        message = f"{source.name} cannot be converted: {type(error).__name__}: {first_line(error)}"
        raise PrerequisiteError(message, "Update transformers, or use the model's safetensors.") from error
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
