"""``questbench build``: compile the CPU kernels now rather than at their first use."""

from __future__ import annotations

from typing import Annotated

import typer

from questbench.cli._output import Output

EXAMPLES = ("questbench build", "questbench build --force --verbose")


def build(
    force: Annotated[bool, typer.Option("--force", help="Compile even if the kernels are in the cache.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what the compiler says.")] = False,
) -> int:
    """Compile the CPU kernels for this machine and keep them in the cache. Needs a C++ compiler."""
    from questbench.kernels import _build

    output = Output()
    output.say("Compiling the CPU kernels for this machine ...")
    built = _build.build_cpu(force=force, verbose=verbose)
    output.say("They were in the cache already." if built.cached else f"Done in {built.seconds:.0f} s.")
    output.line(str(built.path))
    return 0
