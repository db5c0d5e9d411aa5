"""Runs the tests of models with the oldest and the newest transformers that questbench works with.

Each version is installed, with what it requires, into a folder of its own in front of this environment, which stays as
it is. Usage: python scripts/check_transformers.py [VERSION ...] [-- PYTEST ARGUMENTS]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("tests/models", "-q")


def bounds() -> list[str]:
    """The lower bound of pyproject.toml, and the newest release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = next(entry for entry in project["dependencies"] if entry.startswith("transformers>="))
    return [f"transformers=={lowest.removeprefix('transformers>=')}.*", "transformers"]


def check(requirement: str, arguments: list[str]) -> int:
    """Exit code of the tests under one version."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"== {requirement}", flush=True)
        install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--target", folder]
        if code := subprocess.run([*install, requirement], check=False).returncode:
            return code
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, str(ROOT)])}
        named = "import transformers; print('== transformers', transformers.__version__)"
        subprocess.run([sys.executable, "-c", named], env=environment, check=True)
        return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, env=environment).returncode


def main() -> int:
    """Exit code: that of the first version whose tests fail."""
    given, _, rest = " ".join(sys.argv[1:]).partition("--")
    wanted = [f"transformers=={version}" for version in given.split()] or bounds()
    codes = [check(requirement, rest.split() or list(TESTS)) for requirement in wanted]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
