"""The command line starts fast, and what needs no torch does not load it."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

LOADED = """
import sys
from questbench.cli.main import invoke
code = invoke(sys.argv[1:])
heavy = {"torch", "transformers", "pandas", "matplotlib", "questbench.experiments"}
print("LOADED", code, *heavy.intersection(sys.modules))
"""


def loaded(*arguments: str, cwd: Path) -> tuple[int, set[str]]:
    """Exit code of a command, and which heavy modules it imported."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], cwd=cwd, capture_output=True, text=True, check=True
    )
    code, *names = done.stdout.splitlines()[-1].split()[1:]
    return int(code), set(names)


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("ls", "methods"), ("ls", "tasks"), ("ls", "plots")]
)
def test_imports_nothing_heavy(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert loaded(*arguments, cwd=tmp_path) == (0, set())


@pytest.mark.parametrize("verb", ["kernel", "e2e", "accuracy", "report", "ls", "doctor", "build"])
def test_help_of_a_verb_imports_nothing_heavy(verb: str, tmp_path: Path) -> None:
    code, heavy = loaded(verb, "--help", cwd=tmp_path)
    # The flags of an experiment are fields of its configuration.
    assert code == 0 and heavy <= {"questbench.experiments"}


@pytest.mark.parametrize(
    ("arguments", "expected"), [(("report", "--compare", "paper"), 0), (("report",), 3), (("doctor",), 0), (("ls",), 0)]
)
def test_imports_no_torch(arguments: tuple[str, ...], expected: int, tmp_path: Path) -> None:
    code, heavy = loaded(*arguments, cwd=tmp_path)
    assert code == expected
    assert not heavy & {"torch", "transformers"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("kernel --cache none", 2),
        ("e2e --loop none", 2),
        ("accuracy --task passkey --protocol x", 2),
        ("e2e --model ./nowhere", 3),
        ("accuracy --task passkey --model nowhere.gguf", 3),
        ("accuracy --task passkey --model pip:questbench-nowhere", 3),
    ],
)
def test_a_wrong_value_does_not_wait_for_torch(arguments: str, expected: int, tmp_path: Path) -> None:
    code, heavy = loaded(*arguments.split(), cwd=tmp_path)
    assert code == expected and not heavy & {"torch", "transformers"}


def test_help_is_fast(tmp_path: Path) -> None:
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "questbench", "--help"], cwd=tmp_path, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Processor time, the best of several: another process on the machine is no fault of ours.
    assert min(once() for _ in range(7)) < 0.3


def test_public_names_are_listed_and_cost_no_torch(tmp_path: Path) -> None:
    code = "import sys, questbench; print(*dir(questbench), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    *listed, torch = done.stdout.split()
    assert {"Dense", "H2O", "Quest", "StreamingLLM", "TOVA", "build_cache", "__version__"} <= set(listed)
    assert torch == "False"
    assert not {"Any", "Path", "annotations"} & set(listed)
