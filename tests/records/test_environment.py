"""The environment is a courtesy: it must never cost a run and never name a person."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from questbench.records import environment


def test_collect_is_json_and_names_the_machine() -> None:
    found = environment.collect()
    json.dumps(found, allow_nan=False)
    assert found["machine"] == environment.machine(found)
    assert found["cpu"]["logical_cores"] == os.cpu_count()
    assert found["packages"]["questbench"]


def test_collect_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUESTBENCH_CACHE", str(Path.home() / "secret"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("USER", "questbench-test-user")
    monkeypatch.setattr(socket, "gethostname", lambda: "questbench-test-host")
    monkeypatch.setattr(platform, "node", lambda: "questbench-test-host")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = environment.collect()
    text = json.dumps(found)
    assert found["variables"]["OMP_NUM_THREADS"] == "2"
    assert found["variables"]["QUESTBENCH_CACHE"] == "<path>"
    assert "secret" not in text
    assert str(Path.home()) + "/" not in text
    # Short names such as "vm" occur inside other words, so a fake one is looked for.
    assert "questbench-test-host" not in text
    assert "questbench-test-user" not in text


def test_never_raises() -> None:
    def broken(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("broken probe")

    environment._version.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in [
            (subprocess, "run"),
            (os, "cpu_count"),
            (os, "getloadavg"),
            (os, "sysconf"),
            (Path, "read_text"),
            (Path, "exists"),
            (Path, "glob"),
            (Path, "home"),
            (platform, "processor"),
            (platform, "machine"),
            (platform, "python_version"),
            (importlib.metadata, "version"),
        ]:
            patch.setattr(owner, name, broken)
        found = environment.collect()
        scrubbed = environment.scrub("/home/x")
    assert environment.slug(found) == "machine"
    assert (found["gpus"], scrubbed) == ([], "/home/x")


def test_gpu_is_read_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "NVIDIA H200, 570.86, 143771 MiB, 9.0, 1980 MHz, 3201 MHz, 700.00 W, Disabled"
    monkeypatch.setattr(environment, "_run", lambda *command: line if command[0] == "nvidia-smi" else "1.2.3")
    found = environment.collect()
    assert found["gpus"][0]["power_limit"] == "700.00 W"
    assert found["machine"].startswith("NVIDIA H200, ")
    assert environment.slug(found) == "h200"


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "xeon-8481c"),
        ("AMD EPYC 9654 96-Core Processor", "epyc-9654"),
        ("Apple M3 Max", "apple-m3"),
        (None, "machine"),
    ],
)
def test_slug(model: str | None, slug: str) -> None:
    assert environment.slug({"cpu": {"model": model}, "gpus": []}) == slug


@pytest.mark.parametrize(("cores", "words"), [(1, "1 core"), (2, "2 cores"), (1.5, "1.5 cores"), (2.0, "2 cores")])
def test_a_machine_has_one_core_or_several(cores: float, words: str) -> None:
    assert (
        environment._label({"model": "Intel(R) Xeon(R) CPU @ 2.70GHz", "usable_cores": cores}, [])
        == f"Intel Xeon, {words}"
    )


def test_data_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for index, (level, kind, size) in enumerate([(1, "Data", "32K"), (1, "Instruction", "32K"), (3, "Unified", "36M")]):
        folder = tmp_path / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, text in [("level", str(level)), ("type", kind), ("size", size)]:
            (folder / name).write_text(text + "\n")
    monkeypatch.setattr(environment, "_CPU", tmp_path)
    assert environment.collect()["cpu"]["caches"] == {"L1": 32 << 10, "L3": 36 << 20}


def test_scrub_hides_the_home_folder() -> None:
    home = str(Path.home())
    value = {"argv": ["--model", f"{home}/llama"], "n": 3}
    assert environment.scrub(value) == {"argv": ["--model", "~/llama"], "n": 3}


@pytest.mark.parametrize(
    ("added", "dirty"),
    [("questbench/methods/mine.py", True), ("kernels/mine.cu", True), ("tasks/mine.py", True), ("notes.txt", False)],
)
def test_a_new_file_that_measures_makes_the_commit_dirty(
    added: str, dirty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    for folder in environment.SOURCES:
        (tmp_path / folder / "methods").mkdir(parents=True)
        (tmp_path / folder / "known.py").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(environment, "CHECKOUT", tmp_path)
    found = environment._git()
    assert found is not None and found["dirty"] is False
    (tmp_path / added).write_text("")
    found = environment._git()
    assert found is not None and found["dirty"] is dirty
