"""Builds the sdist, a wheel from that sdist, installs it in an empty environment and runs the commands there.

Slow: the environment gets torch. Usage: python scripts/check_wheel.py [--keep DIR]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    ("ls", "tasks"),
    ("doctor",),
    ("kernel", "--seq-len", "4k", "--max-seconds", "5"),
    ("accuracy", "--task", "passkey", "--samples", "5"),
    ("report", "--compare", "paper"),
)


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command and show it; its failure ends the script."""
    print("$", " ".join(map(str, command)), flush=True)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=clean, check=False)
    if done.returncode:
        sys.exit(f"check_wheel: exit code {done.returncode}")


def check(folder: Path) -> None:
    """Build, install and run in ``folder``, away from the checkout."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    source = folder / "source"
    source.mkdir()
    run("tar", "-xzf", sdist, "--strip-components=1", "-C", source, cwd=folder)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source)
    (wheel,) = folder.glob("*.whl")
    if inside := [name for name in zipfile.ZipFile(wheel).namelist() if "/emulator/" in name]:
        sys.exit(f"check_wheel: the emulator is a tool of the tests and in the wheel: {inside[0]}")
    venv.create(folder / "env", with_pip=True)
    binaries = folder / "env" / "bin"
    constraints = ROOT / "constraints.txt"
    run(binaries / "python", "-m", "pip", "install", "--quiet", "-c", constraints, wheel, cwd=folder)
    away = folder / "away"
    away.mkdir()
    for command in COMMANDS:
        run(binaries / "questbench", *command, cwd=away)
    print(f"check_wheel: {wheel.name} works away from the checkout")


def main() -> None:
    """Parse the arguments and check in a temporary folder, or in one that stays."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new folder and leave it there")
    keep = parser.parse_args().keep
    if keep:
        keep.mkdir(parents=True)
        check(keep.resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder))


if __name__ == "__main__":
    main()
