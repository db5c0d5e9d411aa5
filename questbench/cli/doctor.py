"""``questbench doctor``: what works on this machine, what does not and why, and what to install."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json as jsonlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from questbench import _compiling, _paths, registry, units
from questbench.cli import _options as opt
from questbench.cli._child import python
from questbench.cli._output import Output
from questbench.errors import PrerequisiteError, UsageError
from questbench.report.render import NONE, Cell, Table

EXAMPLES = ("questbench doctor", "questbench doctor --json")

EXTRAS = {
    "flashinfer-python": ("flashinfer", "the dense baseline on CUDA"),
    "torchao": ("quant", "quantised weights"),
    "lm-eval": ("lm-eval", "tasks of the evaluation harness"),
}
CORE = ("torch", "transformers", "apache-tvm-ffi", "datasets", "pandas", "matplotlib")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    state: str
    """``ok``; ``missing`` if a command needs it; ``optional`` if only some runs would gain; ``broken`` plug-ins."""
    found: str
    todo: str = ""
    """What to do about it, where there is something to do."""


def _wanted(what: str, found: str | None, absent: str, todo: str, state: str = "optional") -> Check:
    """Something that is there, or what to do where it is not."""
    return Check(what, "ok", found) if found else Check(what, state, absent, todo)


def doctor(out: opt.Out = Path("results"), json: opt.Json = False) -> int:
    """Say what works on this machine, what does not and why, and what to install. Ends with 0 whatever it finds."""
    output = Output(json=json)
    checks = list(_checks(out))
    if json:
        for check in checks:
            output.line(jsonlib.dumps(dataclasses.asdict(check)))
        return 0
    rows = [[Cell(check.what), Cell(check.state), Cell(check.found), Cell(check.todo or NONE)] for check in checks]
    columns = ["what", "state", "found", "to do"]
    output.tables([Table("This machine", columns, frozenset(columns), rows).without_empty_columns()])
    gone = [check for check in checks if check.state == "missing"]
    whole = "Everything that the commands need is there."
    output.say(f"{len(gone)} of {len(checks)} things are missing." if gone else whole)
    if broken := sum(check.state == "broken" for check in checks):
        output.say(f"{units.counted(broken, 'plug-in')} cannot be used; nothing else is affected.")
    return 0


def _checks(out: Path) -> Iterator[Check]:
    from questbench.records import environment as probes

    facts = probes.collect()
    yield Check("Python", "ok", f"{facts['python']} ({sys.executable})")
    yield from _packages(facts["packages"])
    yield from _compilers(facts["compilers"])
    probed = _probe()
    yield from _cuda(bool(facts["gpus"]), probed["cuda"])
    yield from _backends(probed)
    yield from _plugins()
    yield _cached()
    yield from _choices()
    yield from _hardware(facts)
    yield _writable("cache folder", _paths.cache_folder(), "Set QUESTBENCH_CACHE to a folder you can write.")
    yield _writable("results folder", out, "Name another one with --out DIR.")
    for package, (extra, use) in EXTRAS.items():
        todo = f"For {use}: pip install 'questbench[{extra}]'"
        yield _wanted(package, _installed(package), "not installed", todo)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages(versions: dict[str, str]) -> Iterator[Check]:
    for name in CORE:
        yield _wanted(name, versions.get(name), "not installed", f"pip install {name}", "missing")


def _compilers(versions: dict[str, str]) -> Iterator[Check]:
    from questbench.kernels import _build

    names = ", ".join(f"{name} {versions[name]}" for name in ("g++", "clang++") if name in versions)
    try:
        chosen = _build.compiler()
    except PrerequisiteError as error:
        todo = "Set CXX=clang++." if "clang++" in versions else error.hint or ""
        yield Check("C++ compiler", "missing", error.message, todo)
        return
    yield Check("C++ compiler", "ok", names or " ".join(chosen.command))


def _cuda(devices: bool, torch_cuda: str | None) -> Iterator[Check]:
    """What ``--device cuda`` needs beside a backend: a torch built for CUDA, a toolkit, and what checks the kernels.

    Args:
        devices: whether the driver shows a GPU; without one nothing here is to be done.
        torch_cuda: CUDA version that torch was built for.
    """
    from questbench.kernels import _build_cuda

    build = "Install a CUDA build: https://pytorch.org/get-started" * devices
    yield _wanted("torch for CUDA", torch_cuda, "torch is built without CUDA", build)
    kit = _build_cuda.toolkit()
    install = "Install the CUDA toolkit 12.8 or newer and set CUDA_HOME: nvcc compiles the kernels." * devices
    yield _wanted("CUDA compiler", f"nvcc {kit.version}" if kit else None, "no nvcc found", install)
    beside = str(kit.home / "bin") if kit else None
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=beside)
    comes = "For scripts/gpu_sanitize.py: it comes with the CUDA toolkit." * devices
    yield _wanted("compute-sanitizer", "found" if sanitizer else None, "not found", comes)


def _backends(probed: dict[str, Any]) -> Iterator[Check]:
    backends = probed["backends"]
    works = [name for name, (reason, _) in backends.items() if reason is None]
    for name, (reason, device) in backends.items():
        # A GPU's backend is no loss where there is no GPU, and all commands run without one.
        state = "ok" if reason is None else "optional" if device == "cuda" else "missing"
        todo = f"Until then use --backend {works[0]}." if works else "Fix torch first."
        yield Check(f"backend {name}", state, reason or "works", todo if state == "missing" else "")
    for name, reason in probed["baselines"].items():
        yield Check(f"baseline {name}", "optional" if reason else "ok", reason or "works")


_PROBE = """
import json, torch
from questbench import baselines, kernels
backends = {name: (reason, kernels.device(name)) for name, reason in kernels.available().items()}
others = {name: baselines.unavailable(name) for name in baselines.names()}
print(json.dumps({"backends": backends, "baselines": others, "cuda": torch.version.cuda}))
"""


def _probe() -> dict[str, Any]:
    """Every backend, why it does not work and its device; the same of baselines; and the CUDA that torch was built for.

    Asked in another process: a torch that crashes is a finding too.
    """
    from questbench import kernels

    done = python(_PROBE, seconds=120)
    try:
        found: dict[str, Any] = jsonlib.loads(done.out.splitlines()[-1])
    except (ValueError, IndexError) as error:
        said = done.err.strip().splitlines()
        why = done.why or (said[-1] if said else f"cannot be loaded: {error}")
        return {"backends": {name: (why, "cpu") for name in kernels.names()}, "baselines": {}, "cuda": None}
    return found


def _plugins() -> Iterator[Check]:
    """Only those that do not work: there are too many of the others."""
    from questbench.cli._plugins import PACKAGES, every, problems

    todo = "Repair it, or uninstall the package that adds it."
    for (package, name), why in problems(every()).items():
        yield Check(f"{PACKAGES[package]} {name}", "broken", why, todo)
    for package, kind in PACKAGES.items():
        for name, why in registry.refused(package).items():
            yield Check(f"{kind} {name}", "broken", why, "Rename it in the package that adds it.")


def _cached() -> Check:
    built = sorted(_paths.cache_folder().rglob("*.so")) if _paths.cache_folder().is_dir() else []
    size = units.size(sum(path.stat().st_size for path in built))
    found = f"{len(built)} in {_paths.cache_folder()} ({size})" if built else "none yet"
    damaged = [path for path in built if not _compiling.is_whole(path)]
    if damaged:
        found += f"; {len(damaged)} of them damaged or of an earlier version"
        return Check("built kernels", "optional", found, "questbench build (damaged ones are compiled anew when used)")
    return Check("built kernels", "ok" if built else "optional", found, "" if built else "questbench build")


def _choices() -> Iterator[Check]:
    """What was chosen for this machine, by number of threads, for the newest library that has a choice."""
    from questbench.kernels import _choices

    what, todo = "kernel choice", "questbench build"
    try:
        default, forced = _choices.asked()
    except UsageError as error:
        yield Check(what, "missing", error.message, error.hint or "")
        return
    said = [f"{name}={value}" for name, value in forced.items()]
    if default or said:
        yield Check(what, "ok", f"{_choices.VARIABLE} forces {', '.join([_choices.DEFAULT] * default + said)}")
    folders = _paths.cache_folder()
    files = (
        sorted(folders.glob("cpu-*/choice-*.json"), key=lambda file: file.stat().st_mtime) if folders.is_dir() else []
    )
    known = [(file, found) for file in files if (found := _choices.stored(file)) is not None]
    if not known:
        yield Check(what, "optional", "none measured on this processor", todo)
    for file, found in known:
        if file.parent == known[-1][0].parent:
            chosen = _choices.words(found["choice"], found)
            yield Check(what, "ok", f"{found['threads']} threads, measured in {found['seconds']} s: {chosen}")


def _hardware(facts: dict[str, Any]) -> Iterator[Check]:
    processor = facts["cpu"]
    flags = ", ".join(processor.get("flags") or []) or "no known vector instructions"
    yield Check("CPU", "ok", f"{processor.get('model') or 'unknown'}: {flags}")
    cores = processor.get("quota_cores") or processor.get("usable_cores") or os.cpu_count() or 1
    threads = facts["variables"].get("OMP_NUM_THREADS")
    yield Check("threads", "ok", units.counted(cores, "core") + (f", OMP_NUM_THREADS={threads}" if threads else ""))
    devices = [f"{device['name']} (driver {device['driver']})" for device in facts["gpus"]]
    yield _wanted("GPU", ", ".join(devices), "none: all commands run on the CPU", "")
    yield _huge_pages()


def _huge_pages() -> Check:
    try:
        text = HUGE_PAGES.read_text()
    except OSError:
        return Check("huge pages", "optional", "this system does not say")
    setting = text.partition("[")[2].partition("]")[0]
    if setting == "never":
        todo = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root): faster sparse reads"
        return Check("huge pages", "optional", "never", todo)
    return Check("huge pages", "ok", setting)


def _writable(what: str, folder: Path, todo: str) -> Check:
    # The nearest folder that exists decides; a look must not make any.
    near = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=near):
            return Check(what, "ok", str(folder))
    except OSError as error:
        return Check(what, "missing", f"cannot write to {near}: {error.strerror or error}", todo)
