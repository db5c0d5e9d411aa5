"""Registers, shared memory and spills of every kernel on every target, as ptxas reports them, against a committed file.

    python tests/emulator/compile_budget.py            # what the kernels use now
    python tests/emulator/compile_budget.py --update   # and write it into compile_budget.json

The file is keyed by the version of nvcc: another compiler allots registers otherwise.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from questbench._paths import cache_folder, kernel_sources
from questbench.kernels import _build, _build_cuda
from questbench.kernels._build_cuda import Toolkit

HERE = Path(__file__).resolve().parent
FILE = HERE / "compile_budget.json"
WORKERS = 2
Usage = dict[str, int]
"""``registers``, ``shared`` (static bytes), ``stack``, ``spills`` (bytes stored and loaded) of one kernel."""


class CompileError(Exception):
    """nvcc refused a source; the text is what it said."""


def sources() -> list[Path]:
    """The shipped kernels, and those of these tests: they go through every word of the device layer."""
    # The binding has no kernel, and its headers take long.
    shipped = [path for path in sorted((kernel_sources() / "cuda").glob("*.cu")) if path.stem != "bind"]
    return [*shipped, HERE / "basics.cu"]


def parse(text: str) -> dict[str, Usage]:
    """Kernel -> usage, from the output of ``ptxas -v``.

    Raises:
        ValueError: the output does not look as known, so that nothing could be checked.
    """
    found: dict[str, Usage] = {}
    name = None
    for line in text.splitlines():
        if started := re.search(r"Compiling entry function '([^']+)'", line):
            name = started.group(1)
            found[name] = {}
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            # Functions that were not inlined are reported like kernels; theirs count to nobody.
            if name is not None and "stack" not in found[name]:
                stack, stores, loads = map(int, frame.groups())
                found[name] |= {"stack": stack, "spills": stores + loads}
        elif used := re.search(r"Used (\d+) registers", line):
            if name is None:
                raise ValueError(f"registers of no kernel: {line}")
            shared = re.search(r"(\d+) bytes smem", line)
            found[name] |= {"registers": int(used.group(1)), "shared": int(shared.group(1)) if shared else 0}
            name = None
    for kernel, usage in found.items():
        if usage.keys() != {"registers", "shared", "stack", "spills"}:
            raise ValueError(f"ptxas tells only {sorted(usage)} of {kernel}")
    return found


def measure(kit: Toolkit, source: Path, target: str) -> dict[str, Usage]:
    """Compile one source for one target, or take the result of last time from the cache.

    Raises:
        CompileError: nvcc refused it.
    """
    command = [str(kit.nvcc), *_build_cuda.NVCC_FLAGS, *_build.includes(kernel_sources()), f"-arch={target}"]
    command += ["-Xptxas=-v", "-cubin", "-o", os.devnull, str(source)]
    parts = [kit.version, target, *_build_cuda.NVCC_FLAGS, source.read_text()]
    root = kernel_sources()
    parts += _build.contents([*root.glob("include/questbench/*.h"), *_build_cuda.headers(root)])
    kept = (
        cache_folder()
        / "budgets"
        / f"{source.stem}-{target}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"
    )
    if not kept.is_file():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompileError(f"{source.name} for {target}:\n{done.stderr}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        half = kept.with_suffix(f".{os.getpid()}")
        half.write_text(done.stdout + done.stderr)
        half.replace(kept)
    found = parse(kept.read_text())
    return dict(sorted(zip(_readable(list(found)), found.values(), strict=True)))


def measure_all(kit: Toolkit) -> dict[str, dict[str, dict[str, Usage] | CompileError]]:
    """Source -> target -> kernel -> usage, or why it does not compile."""

    def one(job: tuple[Path, str]) -> dict[str, Usage] | CompileError:
        try:
            return measure(kit, *job)
        except CompileError as error:
            return error

    jobs = [(source, target) for source in sources() for target in _build_cuda.TARGETS]
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(one, jobs))
    table: dict[str, dict[str, dict[str, Usage] | CompileError]] = {}
    for (source, target), result in zip(jobs, results, strict=True):
        table.setdefault(source.name, {})[target] = result
    return table


def exceeded(measured: dict[str, Usage], budget: dict[str, Usage]) -> list[str]:
    """What is above the budget, not in it, or in it but gone. Less than the budget is fine."""
    problems = [f"{kernel} is not in the budget" for kernel in sorted(measured.keys() - budget.keys())]
    problems += [f"{kernel} is in the budget but not compiled" for kernel in sorted(budget.keys() - measured.keys())]
    for kernel, usage in measured.items():
        if usage["spills"]:
            problems.append(f"{kernel} spills {usage['spills']} bytes")
        for what, amount in usage.items():
            allowed = budget.get(kernel, {}).get(what, amount)
            if amount > allowed and what != "spills":
                problems.append(f"{kernel}: {what} {amount}, budget {allowed}")
    return problems


def committed() -> dict[str, dict[str, dict[str, dict[str, Usage]]]]:
    """Version of nvcc -> source -> target -> kernel -> usage."""
    budgets: dict[str, dict[str, dict[str, dict[str, Usage]]]] = json.loads(FILE.read_text()) if FILE.is_file() else {}
    return budgets


def _readable(names: Sequence[str]) -> list[str]:
    shown = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout.splitlines()
    return [re.sub(r"^void ", "", name).replace("qb::", "") for name in shown] if names else []


def _lines(target: str, kernels: dict[str, Usage]) -> list[str]:
    return [f"  {target:7} {kernel}: " + ", ".join(f"{k} {v}" for k, v in u.items()) for kernel, u in kernels.items()]


def describe(table: dict[str, dict[str, dict[str, Usage] | CompileError]]) -> str:
    """A line per kernel and target."""
    lines = []
    for source, targets in table.items():
        lines.append(source)
        for target, result in targets.items():
            lines += [f"  {target}: {result}"] if isinstance(result, CompileError) else _lines(target, result)
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """See the module's docstring."""
    kit = _build_cuda.toolkit()
    if kit is None:
        sys.stdout.write("error: no nvcc was found.\nnext:  set CUDA_HOME\n")
        return 3
    table = measure_all(kit)
    sys.stdout.write(f"nvcc {kit.version}\n{describe(table)}\n")
    if "--update" in arguments:
        if any(isinstance(result, CompileError) for targets in table.values() for result in targets.values()):
            sys.stdout.write("error: not everything compiles; nothing was written.\n")
            return 1
        FILE.write_text(json.dumps({**committed(), kit.version: table}, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
