"""``questbench build``: compile the kernels now rather than at their first use."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from questbench import registry
from questbench.cli._output import Output

EXAMPLES = ("questbench build", "questbench build --device cuda --verbose")
DEVICES = ("cpu", "cuda")


def build(
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="Whose kernels: cpu or cuda.")] = "cpu",
    force: Annotated[
        bool, typer.Option("--force", metavar="", help="Compile even if the kernels are in the cache.")
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", metavar="", help="Measure anew which alternatives are the fastest here (cpu).")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", metavar="", help="Show what the compiler says.")] = False,
) -> int:
    """Compile the kernels for this machine and keep them in the cache.

    Those of the CPU need a C++ compiler, those of CUDA need nvcc and a device to compile for. Where machines differ in
    what is fastest, those of the CPU are measured for a few seconds after they were compiled.
    """
    from questbench.kernels import _build, _build_cuda, _choices

    if device not in DEVICES:
        raise registry.unknown("device", device, list(DEVICES))
    output = Output()
    if device == "cpu":
        built = _build.build_cpu(force=force, verbose=verbose)
    else:
        built = _build_cuda.build_cuda(force=force, verbose=verbose)
    found = f"The {device} kernels were in the cache already." if built.cached else f"Done in {built.seconds:.0f} s."
    output.say(found)
    if device == "cpu":
        threads = os.cpu_count() or 1
        if tune or force:
            _choices.path(built.path, threads).unlink(missing_ok=True)
        chosen = _build.cpu(threads)[1]
        several, found = "s" * (threads > 1), _choices.words(chosen.plan, chosen.measured)
        output.say(f"Kernel choice for {threads} thread{several} ({chosen.source}): {found}.")
    output.line(str(built.path))
    return 0
