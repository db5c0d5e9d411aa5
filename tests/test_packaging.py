"""The wheel carries the top-level folders, and works where there is no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_wheel_has_the_top_level_folders(unpacked: Path) -> None:
    package = unpacked / "questbench"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    moves = {"tasks": "tasks", "kernels": "_csrc", "results/published": "_published"}
    for source, target in moves.items():
        files = [Path(name).relative_to(source) for name in tracked if name.startswith(source + "/")]
        files = [name for name in files if name.parts[0] != "emulator"]
        gone = [name for name in files if (ROOT / source / name).is_file() and not (package / target / name).is_file()]
        assert not gone, f"{source}: {gone} not in the wheel"
    assert (package / "tasks" / "passkey.py").is_file()


def test_wheel_has_nothing_else(unpacked: Path) -> None:
    tops = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"questbench"}
    assert not (unpacked / "questbench" / "_csrc" / "emulator").exists(), "a tool of the tests"
    suffixes = {path.suffix for path in unpacked.rglob("*") if path.is_file()}
    assert not suffixes & {".o", ".so", ".pyc"}
    (info,) = unpacked.glob("*.dist-info")
    assert (info / "licenses" / "LICENSE").is_file()


def test_unpacked_wheel_lists_tasks(unpacked: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(unpacked) in run("-c", "import questbench; print(questbench.__file__)")
    listed = run("-m", "questbench", "ls", "tasks")
    assert "passkey" in listed
    assert "kv" in listed
    code = "from questbench import _paths as p; print(p.kernel_sources(), p.published_results(), p.task_folders())"
    assert run("-c", code).split() == [
        str(unpacked / "questbench" / "_csrc"),
        str(unpacked / "questbench" / "_published"),
        "[]",
    ]
