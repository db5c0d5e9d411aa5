"""What a shell may do to stdout and stderr, and to the process itself; none of it costs a result."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from questbench.cli._output import Output

SHELL = "/bin/sh"


def listen() -> None:
    """In a process about to start: what nohup, or a shell's background job, told the tests to ignore is heard again."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def shell(line: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[bytes]:
    """A line of the shell, with ``questbench`` for the command."""
    line = line.replace("questbench ", f"{sys.executable} -m questbench ")
    return subprocess.run(
        [SHELL, "-c", line], cwd=cwd, env={**os.environ, **settings}, capture_output=True, check=False
    )


@pytest.mark.parametrize(
    "settings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]
)
def test_output_that_takes_ascii_only(settings: dict[str, str], tmp_path: Path) -> None:
    ended = shell("questbench ls", tmp_path, **settings)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.isascii() and b"quest" in ended.stdout
    ended = shell("questbench ls --help; questbench kernel --method ünknown", tmp_path, **settings)
    assert ended.returncode == 2, ended.stderr
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("questbench ls >&-", 0),
        ("questbench ls 2>&-", 0),
        ("questbench ls methods | true", 0),
        ("questbench ls >/dev/full", 3),
        ("questbench --help >/dev/full", 3),
        ("questbench ls parrots 2>/dev/full", 2),
        ("questbench ls parrots 2>&-", 2),
        ("questbench ls parrots >&- 2>&- <&-", 2),
    ],
)
def test_streams_that_are_closed_or_full(line: str, code: int, tmp_path: Path) -> None:
    ended = shell(line, tmp_path)
    assert ended.returncode == code, ended.stderr
    assert b"Traceback" not in ended.stderr and b"Exception ignored" not in ended.stderr


RUN = """
import os, sys, time
from questbench.experiments import kernel
from questbench.experiments.engine import Unit
from questbench.records.schema import ResultRecord
from questbench.__main__ import main

def run(config, *, finished, stored, progress):
    for number in range(3):
        head = ("", "kernel", "ok", "quest", {}, "cpu", {"seq_len": number})
        progress(number, 3, "now")
        yield Unit(str(number), [ResultRecord(*head, "latency", "s", 1.0)])
        if number == 1 and "SLEEP" in os.environ:
            open("asleep", "w").close()
            time.sleep(60)

kernel.run, kernel.check, kernel.card = run, lambda config: None, lambda config: {}
main()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """``questbench kernel`` with an experiment that measures nothing."""
    (tmp_path / "program.py").write_text(RUN)
    return tmp_path


@pytest.mark.parametrize(
    ("end", "code"), [(">&-", 0), (">/dev/full", 3), ("2>/dev/full", 0), (">&- 2>&-", 0), ("| true", 0)]
)
def test_a_run_keeps_its_results_whatever_its_output_does(end: str, code: int, program: Path) -> None:
    ended = shell(f"{sys.executable} program.py kernel --json {end}", program)
    assert ended.returncode == code, ended.stderr
    (records,) = program.glob("results/*/records.jsonl")
    lines = records.read_text().splitlines()
    assert len(lines) == 3 and all(line.startswith("{") for line in lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_the_command_that_continues(number: signal.Signals, program: Path) -> None:
    command, settings = [sys.executable, "program.py", "kernel"], {**os.environ, "SLEEP": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(  # type: ignore[call-overload]
        command, cwd=program, env=settings, text=True, preexec_fn=listen, **pipes
    ) as process:
        for _ in range(600):
            if (program / "asleep").exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    (run,) = (program / "results").iterdir()
    assert f"next:  questbench kernel --resume results/{run.name}" in told
    assert len((run / "records.jsonl").read_text().splitlines()) == 2
    assert '"exit_code": 130' in (run / "run.json").read_text()


def test_ctrl_c_while_modules_load_is_one_line(tmp_path: Path) -> None:
    # A module that takes long to load stands for torch.
    (tmp_path / "typer.py").write_text("open('loading', 'w').close()\nimport time\ntime.sleep(60)\n")
    path = f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}"
    command = [sys.executable, "-m", "questbench", "ls"]
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, preexec_fn=listen
    ) as process:
        for _ in range(600):
            if (tmp_path / "loading").exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, b"error: Interrupted.\n")


def test_an_interrupt_that_a_library_swallowed_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from questbench.cli import _signals, ls, main

    def swallowed(*_: object, **__: object) -> int:
        raise ImportError("numpy could not be imported") from KeyboardInterrupt()

    monkeypatch.setattr(_signals, "_asked", [signal.SIGINT])
    monkeypatch.setitem(ls.KINDS, "methods", swallowed)
    assert main.invoke(["ls", "methods"]) == 130
    assert capfd.readouterr().err == "error: Interrupted.\n"


def test_without_a_terminal_a_line_tells_now_and_then_how_far_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []

    def shown(text: str) -> None:
        until = time.monotonic() + 60.0
        while not any(text in line for line in lines) and time.monotonic() < until:
            time.sleep(0.01)
            lines.extend(capfd.readouterr().err.splitlines())

    began = time.monotonic()
    with Output().progress(every=0.05) as progress:
        shown("loading")
        progress(3, 40, "quest 90%")
        shown("quest 90%")
    lines.extend(capfd.readouterr().err.splitlines())
    took = time.monotonic() - began
    assert re.fullmatch(r"  \d:\d\d  loading", lines[0])
    assert re.fullmatch(r"  \d:\d\d  3 of 40 done; quest 90%", lines[-1])
    assert len(lines) <= took / 0.05 + 1


def test_escape_sequences_do_not_reach_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    from questbench.cli.main import invoke

    assert invoke(["kernel", "--method", "\x1b]0;owned\x07\x1b[2J"]) == 2
    shown = capfd.readouterr().err
    assert "\x1b" not in shown and "\x07" not in shown
    assert r"\x1b[2J" in shown


def test_paths_that_are_no_utf8(program: Path) -> None:
    name = b"out-\xff"
    command = [sys.executable.encode(), b"program.py", b"kernel", b"--out", name]
    ended = subprocess.run(command, cwd=program, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert b"Traceback" not in ended.stderr
    (run,) = Path(os.fsdecode(os.fsencode(program) + b"/" + name)).iterdir()
    again = subprocess.run([*command[:3], b"--resume", os.fsencode(run)], cwd=program, capture_output=True, check=False)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("line", ["report", "kernel --resume", "kernel --out", "report --to", "report --compare"])
def test_names_that_are_too_long(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from questbench.cli.main import invoke

    monkeypatch.chdir(tmp_path)
    assert invoke([*line.split(), "x" * 300]) in (2, 3)
    shown = capfd.readouterr().err
    assert "bug" not in shown and "next:  " in shown
