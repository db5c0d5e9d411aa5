"""Every example runs and prints what it promises."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PROMISED = {"generate": "48213", "one_decode_step": "quest  read    512 of 4096 entries"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert PROMISED[path.stem] in capsys.readouterr().out


def test_the_code_in_the_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    readme = EXAMPLES.parent / "README.md"
    (code,) = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "snippet.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(EXAMPLES.parent)  # it names the embedded model of a clone
    runpy.run_path(str(tmp_path / "snippet.py"), run_name="__main__")
    assert capsys.readouterr().out.strip()
