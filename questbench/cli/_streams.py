"""stdout and stderr as a shell may leave them: closed, full, without a reader, or unable to take a character.

None of these may cost a result that was measured. ``prepare`` is called once, when the process starts.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import IO

_PLAIN = {
    "–": "-",
    "—": "-",
    "×": "x",
    "±": "+-",
    "…": "...",
    "·": ".",
    "→": "->",
    "≥": ">=",
    "≤": "<=",
    "»": ">>",
    "•": "*",
    "µ": "u",
}
"""What stands for a character that an encoding such as ASCII lacks; others become an escape."""
_ERRORS = "questbench-plain"


def prepare() -> None:
    """Make both streams usable, whatever they are."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Closed: the next file that is opened would get its number, and prints would end in that file.
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error(_ERRORS, _replaced)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - for the process's life
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


_lost: list[OSError] = []


def write(stream: IO[str], text: str) -> None:
    """Write and flush; never raises, since a run is worth more than what it shows.

    After a failure the stream leads nowhere. That stdout could not take data is remembered (:func:`lost`), unless its
    reader went away or it was closed from the start: both are somebody's wish.
    """
    try:
        stream.write(text)
        stream.flush()
    except UnicodeEncodeError:  # a stream that was not prepared
        write(stream, text.encode("ascii", "backslashreplace").decode("ascii"))
    except ValueError:  # closed
        return
    except OSError as error:
        drop(stream)
        if stream is sys.stdout and error.errno not in (errno.EPIPE, errno.EBADF):
            _lost.append(error)


def lost() -> OSError | None:
    """Why data did not reach stdout, once for every time that it happened."""
    found = _lost[0] if _lost else None
    _lost.clear()
    return found


def drop(stream: IO[str]) -> None:
    """Let a stream lead nowhere; what waits in its buffer goes there too."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        return


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wanted = error.object[error.start : error.end]
    plain = "".join(_PLAIN.get(character, "") or _escape(character) for character in wanted)
    return plain, error.end


def _escape(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")
