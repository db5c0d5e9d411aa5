"""Finding nvcc, and building kernels for a device or for the emulator: what is compiled, what is kept, what is said."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import building
import pytest

from questbench.errors import PrerequisiteError
from questbench.kernels import _build_cuda

TINY = """\
#include "questbench/x.h"
#ifdef __CUDACC__
__global__ void {0}_kernel(int* out) {{ atomicAdd(out, X); }}
#endif
int questbench_{0} = X;
"""
needs_nvcc = pytest.mark.skipif(_build_cuda.toolkit() is None, reason="no nvcc here")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources that compile in no time, and a cache folder of their own."""
    root = tmp_path / "kernels"
    for folder in ("include/questbench", "cuda", "emulator"):
        (root / folder).mkdir(parents=True)
    (root / "include" / "questbench" / "x.h").write_text("#define X 1\n")
    for name in ("cuda/a.cu", "cuda/b.cu", "emulator/e.cpp"):
        (root / name).write_text(TINY.format(Path(name).stem))
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_build_cuda, "kernel_sources", lambda: root)
    monkeypatch.setattr(building, "SOURCES", root)
    return root


def wrapper(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    nvcc = folder / "nvcc"
    nvcc.write_text(text)
    nvcc.chmod(0o755)
    return nvcc


@needs_nvcc
def test_a_wrapper_leads_to_the_real_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _build_cuda.toolkit()
    assert real is not None
    wrapper(tmp_path / "bin", f'#!/bin/sh\nexec "{real.nvcc}" "$@"\n')
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert _build_cuda.toolkit() == real
    assert (real.home / "bin" / "nvcc").is_file() and (real.home / "include" / "cuda_runtime.h").is_file()


def test_an_nvcc_that_does_not_work_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = wrapper(tmp_path / "home" / "bin", "#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    found = _build_cuda.toolkit()
    assert found is None or found.nvcc != broken


def test_without_a_toolkit_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_build_cuda, "toolkit", lambda: None)
    with pytest.raises(PrerequisiteError, match="nvcc") as caught:
        _build_cuda.build_cuda()
    assert "CUDA_HOME" in str(caught.value.hint)


@needs_nvcc
def test_without_a_device_an_architecture_must_be_named(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_build_cuda, "device_architecture", lambda: None)
    with pytest.raises(PrerequisiteError, match="No CUDA device"):
        _build_cuda.build_cuda()


@needs_nvcc
def test_machine_code_for_every_architecture_asked_for(sources: Path) -> None:
    built = _build_cuda.build_cuda(["sm_80", "sm_90"], sources=[sources / "cuda" / "a.cu"])
    binary = built.path.read_bytes()
    assert not built.cached and b"a_kernel" in binary
    again = _build_cuda.build_cuda(["sm_80", "sm_90"], sources=[sources / "cuda" / "a.cu"])
    assert again.cached and again.path == built.path
    # The CUDA runtime is inside: the library must not need the one of a particular torch.
    needed = subprocess.run(["ldd", str(built.path)], capture_output=True, text=True, check=True).stdout
    assert "cudart" not in needed


def test_architectures_become_flags() -> None:
    assert _build_cuda.gencode(["sm_80", "sm_100"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_100,code=sm_100",
    ]


def test_a_changed_source_compiles_that_source_and_a_changed_header_all(sources: Path, tmp_path: Path) -> None:
    def objects() -> set[str]:
        return {path.name for path in (tmp_path / "cache" / "objects").glob("*.o")}

    first = building.build_emulator()
    before = objects()
    assert not first.cached and building.build_emulator().cached
    changed = sources / "cuda" / "b.cu"
    changed.write_text(changed.read_text() + "// changed\n")
    second = building.build_emulator()
    new = objects() - before
    assert second.path != first.path and [name[:2] for name in new] == ["b-"]
    (sources / "include" / "questbench" / "x.h").write_text("#define X 2\n")
    building.build_emulator()
    assert len(before) == 3 and len(objects()) == 3 + 1 + 3


def test_a_source_that_does_not_compile_is_named(sources: Path) -> None:
    (sources / "cuda" / "b.cu").write_text("#error the reason\n")
    with pytest.raises(PrerequisiteError, match="the reason") as caught:
        building.build_emulator()
    assert "b.cu" in caught.value.message


def test_a_cache_that_cannot_be_written_is_named(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path / "taken"))
    with pytest.raises(PrerequisiteError, match="taken") as caught:
        building.build_emulator()
    assert "QUESTBENCH_CACHE" in str(caught.value.hint)


def test_the_host_compiler_may_have_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    assert _build_cuda._host_compiler() == []
    monkeypatch.setenv("CXX", "g++ -m64 -Wl,-z")
    _, program, *arguments = _build_cuda._host_compiler()
    assert Path(program).name == "g++" and arguments == ["-Xcompiler=-m64", "-Xcompiler=-Wl\\,-z"]
