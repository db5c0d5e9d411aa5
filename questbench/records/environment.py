"""The machine, the packages and the commit a run was made with.

Design constraints, to be kept: standard library only; nothing here imports torch; every probe is guarded, so that
:func:`collect` never raises and an unknown value is ``None``; no host name, no user name, no path of a home folder.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from questbench import units
from questbench._paths import CHECKOUT

T = TypeVar("T")

PACKAGES = (
    "questbench",
    "torch",
    "transformers",
    "apache-tvm-ffi",
    "flashinfer-python",
    "torchao",
    "datasets",
    "triton",
    "numpy",
    "pandas",
    "matplotlib",
)
COMPILERS = ("g++", "clang++", "nvcc", "ninja")
FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve", "bf16")
VARIABLES = re.compile(r"^(OMP_|MKL_NUM_|KMP_AFFINITY$|GOMP_|CUDA_VISIBLE_DEVICES$|QUESTBENCH_|HF_HUB_OFFLINE$)")
SOURCES = ("questbench", "kernels", "tasks")
"""Folders of the checkout whose files decide what is measured."""
_CPUINFO = Path("/proc/cpuinfo")
_CPU = Path("/sys/devices/system/cpu/cpu0")
_CGROUP = Path("/sys/fs/cgroup")
_SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_GPU_FIELDS = {
    "name": "name",
    "driver": "driver_version",
    "memory": "memory.total",
    "compute_capability": "compute_cap",
    "max_sm_clock": "clocks.max.sm",
    "max_memory_clock": "clocks.max.mem",
    "power_limit": "power.limit",
    "mig": "mig.mode.current",
}


def collect() -> dict[str, Any]:
    """Everything that may explain a number; never raises."""
    processor = _safe(_cpu) or {}
    devices = _safe(_gpus) or []
    return {
        "machine": _label(processor, devices),
        "cpu": processor,
        "memory_bytes": _safe(_memory),
        "gpus": devices,
        "os": _safe(_system),
        "python": _safe(platform.python_version),
        "packages": _known(PACKAGES, _version),
        "compilers": _known(COMPILERS, _compiler),
        "git": _safe(_git),
        "load": _safe(lambda: [round(value, 2) for value in os.getloadavg()]),
        "variables": _safe(_variables) or {},
    }


def machine(environment: dict[str, Any]) -> str:
    """What must agree before two runs may be compared: the GPU if there is one, and the CPU with its core count."""
    return str(environment.get("machine") or "unknown machine")


def slug(environment: dict[str, Any]) -> str:
    """A short name of the machine for folder names: ``h200``, ``xeon-8481c``."""
    devices = environment.get("gpus") or []
    name = str(devices[0].get("name")) if devices else str((environment.get("cpu") or {}).get("model") or "")
    name = re.sub(r"\(R\)|\(TM\)|@.*|\b\d+-Core\b", " ", name, flags=re.IGNORECASE)
    words = re.sub(r"[^a-z0-9]+", " ", name.lower()).split()
    # The maker's and the marketing words say nothing that the model number does not.
    dull = {"nvidia", "geforce", "intel", "amd", "cpu", "processor", "core", "platinum", "gold", "silver", "unknown"}
    kept = [word for word in words if word not in dull]
    return "-".join(kept[:2]) or "machine"


def scrub(value: Any) -> Any:
    """The same value with the user's home folder written as ``~`` in every string."""
    if isinstance(value, dict):
        return {key: scrub(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrub(item) for item in value]
    if isinstance(value, Path):
        value = str(value)
    home = _safe(lambda: str(Path.home()))
    return value.replace(home, "~") if isinstance(value, str) and home and len(home) > 1 else value


def _safe(probe: Callable[[], T]) -> T | None:
    """The probe's value, or ``None`` whatever went wrong: a missing fact must not cost a run."""
    with contextlib.suppress(Exception):
        return probe()
    return None


def _known(names: tuple[str, ...], probe: Callable[[str], str]) -> dict[str, str]:
    """Versions by name, of those that are there."""
    versions = {name: _safe(functools.partial(probe, name)) for name in names}
    return {name: version for name, version in versions.items() if version}


def _run(*command: str) -> str:
    path = shutil.which(command[0])
    if path is None:
        raise FileNotFoundError(command[0])
    done = subprocess.run([path, *command[1:]], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _cpu() -> dict[str, Any]:
    return {
        "model": _safe(_cpu_model) or platform.processor() or platform.machine() or None,
        "architecture": platform.machine(),
        "logical_cores": os.cpu_count(),
        "usable_cores": _safe(lambda: len(os.sched_getaffinity(0))),
        "quota_cores": _safe(_quota),
        "numa_nodes": _safe(lambda: len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or None),
        "governor": _safe(lambda: (_CPU / "cpufreq/scaling_governor").read_text().strip()),
        "flags": _safe(_flags),
        "caches": _safe(_caches) or {},
    }


def _cpu_model() -> str:
    if platform.system() == "Darwin":
        return _run("sysctl", "-n", "machdep.cpu.brand_string")
    names = re.findall(r"^(?:model name|Model)\s*:\s*(.+)$", _CPUINFO.read_text(), re.MULTILINE)
    return re.sub(r"\s+", " ", names[0]).strip()


def _flags() -> list[str]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _CPUINFO.read_text(), re.MULTILINE)
    present = set(found.group(1).split()) if found else set()
    return [flag for flag in FLAGS if flag in present]


def _caches() -> dict[str, int]:
    """Bytes of each data cache of the first core: ``{"L2": ..., "L3": ...}``."""
    sizes = {}
    for index in sorted((_CPU / "cache").glob("index*")):
        if (index / "type").read_text().strip() == "Instruction":
            continue
        text = (index / "size").read_text().strip()
        sizes["L" + (index / "level").read_text().strip()] = int(text.rstrip("KMG")) * _SIZES.get(text[-1], 1)
    return sizes


def _quota() -> float | None:
    """Cores that a container may use, where it is limited."""
    limit, period = (_CGROUP / "cpu.max").read_text().split()
    return None if limit == "max" else round(int(limit) / int(period), 2)


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _system() -> str:
    name = _safe(lambda: platform.freedesktop_os_release()["PRETTY_NAME"])
    return f"{platform.system()} {platform.release()}" + (f" ({name})" if name else "")


def _gpus() -> list[dict[str, str]]:
    query = ",".join(_GPU_FIELDS.values())
    lines = _run("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader").splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
    return [dict(zip(_GPU_FIELDS, row, strict=True)) for row in rows]


@functools.cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "questbench":
            raise
        from questbench import __version__  # run from a checkout that was not installed

        return __version__


def _compiler(name: str) -> str:
    lines = _run(name, "--version").splitlines()
    versions = [found.group(1) for line in lines if (found := re.search(r"\bV?(\d+\.\d+(?:\.\d+)*)", line))]
    return versions[0]


def _git() -> dict[str, Any] | None:
    # A wheel may lie inside somebody else's repository (a virtual environment): ask only our own checkout.
    if not (CHECKOUT / ".git").exists():
        return None
    at = ("git", "-C", str(CHECKOUT))
    # A method, a kernel or a task is one new file: it changes results before git knows it. Other new files do not.
    changed = _run(*at, "status", "--porcelain", "--untracked-files=no")
    added = _run(*at, "ls-files", "--others", "--exclude-standard", "--", *SOURCES)
    return {"commit": _run(*at, "rev-parse", "HEAD"), "dirty": bool(changed or added)}


def _variables() -> dict[str, str]:
    # A value with a slash is a path, and a path names people; that it was set is what matters.
    return {
        name: "<path>" if "/" in value or "\\" in value else value
        for name, value in sorted(os.environ.items())
        if VARIABLES.match(name)
    }


def _label(processor: dict[str, Any], devices: list[dict[str, str]]) -> str:
    """One line naming the machine: what a reader of a figure needs to know."""
    model = re.sub(r"\((?:R|TM|tm|r)\)| CPU|@.*$", "", str(processor.get("model") or "unknown CPU"))
    cores = processor.get("quota_cores") or processor.get("usable_cores") or processor.get("logical_cores")
    cpu = f"{' '.join(model.split())}, {units.counted(cores, 'core')}" if cores else model
    if not devices:
        return cpu
    count = f"{len(devices)} x " if len(devices) > 1 else ""
    return f"{count}{devices[0].get('name')}, {cpu}"
