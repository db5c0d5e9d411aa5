"""The read probe: what it reads is right with and without a compiler; how fast is not tested."""

from __future__ import annotations

import functools
import operator
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from questbench.measure import _reader, bandwidth, timer

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("words", [0, 1, 65, (1 << 17) + 3, 3 << 17])
def test_every_word_is_read_once(threads: int, words: int) -> None:
    storage = torch.randint(-(2**62), 2**62, (words + 8,), generator=torch.Generator().manual_seed(words))
    start = -storage.data_ptr() % 64 // 8
    data = storage[start : start + words]
    expected = functools.reduce(operator.xor, data.tolist(), 0) % 2**64
    reader = _reader.Reader(threads)
    assert [reader(data.data_ptr(), 8 * words) for _ in range(5)] == [expected] * 5


@needs_compiler
def test_threads_end_with_the_reader() -> None:
    def running() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    if not Path("/proc/self/task").is_dir():
        pytest.skip("no /proc")
    before = running()
    reader = _reader.Reader(4)
    assert running() == before + 3
    assert threading.active_count() >= 1
    del reader
    assert running() == before


@needs_compiler
def test_probe_is_an_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "TRIALS", 0)
    probe = bandwidth.ReadProbe(1_000_000, threads=2)
    assert (probe.probe, probe.reason, probe.threads) == ("compiled", None, 2)
    assert probe.bytes == 245 * 4096
    timed = timer.interleave({"read": probe}, rounds_min=6, rounds_max=6)
    assert len(timed["read"].seconds) == 6


@needs_compiler
@pytest.mark.parametrize(("torch_seconds", "chosen"), [(0.9, "torch"), (0.99, "compiled"), (1.1, "compiled")])
def test_torch_is_taken_only_where_it_is_clearly_faster(
    torch_seconds: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scripted:
        def measure(self, step: Callable[[int], object], first: int, count: int) -> float:
            return torch_seconds if step.__name__ == "_by_torch" else 1.0

    monkeypatch.setattr(bandwidth, "WallClock", Scripted)
    probe = bandwidth.ReadProbe(8192, threads=1)
    assert probe.probe == chosen
    assert (probe.reason is None) is (chosen == "compiled")
    assert probe.step(0) is not None


@pytest.mark.usefixtures("no_compiler")
def test_probe_without_a_compiler_says_so() -> None:
    probe = bandwidth.ReadProbe(8192, threads=3)
    assert probe.probe == "torch" and probe.reason is not None and "compiler" in probe.reason
    assert probe.threads == torch.get_num_threads()
    assert float(probe.step(0)) == 1024.0  # type: ignore[arg-type]


def test_probe_with_a_broken_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\ntest "$1" = --version\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path / "cache"))
    probe = bandwidth.ReadProbe(8192)
    assert probe.probe == "torch" and probe.reason is not None and "could not be built" in probe.reason


@needs_compiler
def test_library_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path))
    built = _reader.build()
    stamp = built.stat().st_mtime_ns
    assert _reader.build() == built and built.stat().st_mtime_ns == stamp
    assert sorted(path.name for path in built.parent.iterdir()) == [built.name, f"{built.name}.sha256"]


@pytest.mark.usefixtures("no_compiler")
def test_default_buffer_dwarfs_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "BYTES_LEAST", {})
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda device: 3 << 20)
    assert bandwidth.ReadProbe().bytes == 12 << 20


@pytest.mark.gpu
def test_probe_on_a_gpu() -> None:
    probe = bandwidth.ReadProbe(1 << 24, device="cuda")
    assert probe.probe in ("torch", "copy") and probe.reason is None
    assert float(probe._by_torch(0)) == (1 << 24) / 8  # type: ignore[arg-type]
    assert bandwidth.copy_bandwidth("cuda") > 0


def test_a_copy_moves_as_many_bytes_as_a_read() -> None:
    probe = bandwidth.ReadProbe(1 << 20)
    probe._choose_copy(timer.WallClock())
    if probe.probe == "copy":
        copied = probe.step(0)
        assert isinstance(copied, torch.Tensor) and 2 * copied.nbytes == probe.bytes and (copied == 1.0).all()
    else:
        assert float(probe._by_torch(0)) == probe.bytes / 8  # type: ignore[arg-type]
    assert bandwidth.copy_bandwidth("cpu", size=1 << 20) > 0
