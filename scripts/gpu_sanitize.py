"""Race and memory checks of the CUDA kernels on small shapes, by compute-sanitizer.

    python scripts/gpu_sanitize.py                     memcheck and racecheck; exit code 0 if both are clean
    python scripts/gpu_sanitize.py --tool synccheck    another tool of compute-sanitizer
    python scripts/gpu_sanitize.py --here              the calls alone, no sanitizer (--device cpu rehearses them)

Every op runs once per storage type, head size, page size and kind of list, over ragged rows. torch's caching allocator
is switched off, so that each tensor is an allocation of its own and one element beyond it is an error. The tools run
side by side and look at this project's kernels alone: torch's are not the question, and checking them takes minutes.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from _gpu_processes import end_group, start  # noqa: E402

TOOLS = ("memcheck", "racecheck")
SECONDS = 240.0
KERNELS = "kns=_ZN2qb"
"""How the mangled names of this project's kernels begin (``namespace qb``)."""


def main() -> int:
    """Run the tools; 0 if all are clean, 1 if one is not, 3 if there is no compute-sanitizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", action="append", help="of compute-sanitizer; memcheck and racecheck by default")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for the tools, which run side by side")
    parser.add_argument("--here", action="store_true", help="run the calls in this process, without a sanitizer")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.here:
        shapes = exercise(options.device)
        print(f"every op on {options.device}, {shapes} shapes")
        return 0
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        print("error: compute-sanitizer was not found.\nnext:  install the CUDA toolkit and put its bin on PATH")
        return 3
    running = {
        tool: start(command(sanitizer, tool), PYTORCH_NO_CUDA_MEMORY_CACHING="1") for tool in options.tool or TOOLS
    }
    end = time.monotonic() + options.seconds
    return max([_ended(tool, process, end) for tool, process in running.items()])


def command(sanitizer: str, tool: str) -> list[str]:
    """The calls under one tool. Errors of API calls are torch's own business: ours raise."""
    of_tool = ["--report-api-errors", "no"] if tool == "memcheck" else []
    given = ["--tool", tool, *of_tool, "--kernel-regex", KERNELS, "--error-exitcode", "9"]
    return [sanitizer, *given, sys.executable, str(Path(__file__).resolve()), "--here"]


def _ended(tool: str, process: subprocess.Popen[str], end: float) -> int:
    """Wait for one tool; its last lines and whether it was clean: 0 or 1."""
    try:
        text, _ = process.communicate(timeout=max(end - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        text = end_group(process)
        print(f"{tool}: not finished in time")
    else:
        print(f"{tool}: {'clean' if process.returncode == 0 else f'exit code {process.returncode}'}")
    lines = [line for line in text.splitlines() if line.strip()]
    print("\n".join(f"  {line}" for line in lines[-3 if process.returncode == 0 else -40 :]))
    return 0 if process.returncode == 0 else 1


def exercise(device: str) -> int:
    """Call every op over a small grid; the number of shapes."""
    import torch

    from questbench import kernels

    ops = kernels.load(device)
    shapes = 0
    for dtype in (torch.float16, torch.bfloat16):
        for dim, size, group in ((64, 8, 1), (128, 16, 4), (128, 64, 8), (256, 32, 2), (128, 16, 1)):
            for by_channel in (False, True) if group == 1 else (False,):
                _one_shape(ops, device, dtype, dim, size, group, by_channel)
                shapes += 1
    if device != "cpu":
        torch.cuda.synchronize()
    return shapes


def _one_shape(ops: object, device: str, dtype: object, dim: int, size: int, group: int, by_channel: bool) -> None:
    import torch

    from questbench.kernels._bounds import empty_bounds
    from questbench.kernels._codes import empty_codes
    from questbench.kernels._paged import Paged

    generator = torch.Generator().manual_seed(dim + size)
    heads, lengths = 2, [3 * size + 1, 0, 1, size, 400]
    rows, pages = len(lengths), -(-max(lengths) // size) + 1

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    def integers(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    k, v = (torch.zeros((rows * pages, heads, size, dim), dtype=dtype, device=device) for _ in "kv")
    bounds = empty_bounds(rows * pages, heads, dim, dtype, torch.device(device), by_channel=by_channel)
    table = torch.randperm(rows * pages, generator=generator).to(torch.int32).view(rows, pages).to(device)
    held = integers([0] * rows)
    paged = Paged(k, v, table, held, bounds)
    ops.append(draw(rows, heads, 400, dim), draw(rows, heads, 400, dim), paged, integers(lengths))
    ops.append(draw(rows, heads, 1, dim), draw(rows, heads, 1, dim), paged)
    q = draw(rows, heads * group, dim)
    capacity = int(held.max())
    mass = torch.zeros((rows, heads, capacity), device=device)
    visits = torch.zeros((rows, heads, capacity), dtype=torch.int32, device=device)
    scores = ops.score(q, paged, skip_newest=True)
    codes, ranges = empty_codes(rows, heads, capacity, dim, torch.device(device))
    ops.quantize(paged, codes, ranges, capacity)
    ops.quantize(paged, codes, ranges, 3, integers([3, 0, 1, 2, 3]))
    options = {"width": 4, "force_newest": True, "group": group, "scale": dim**-0.5}
    for merge in ("none", "max", "sum_softmax"):
        chosen, counts = ops.select(scores, held, size, 4, merge=merge, **options)
        lists = {"pages": chosen, "counts": counts, "visits": visits}
        ops.attend(q, paged, dim**-0.5, **lists)
        tokens = chosen.clamp(min=0)  # slots as good as any, of rows that have as many entries as pages
        lse = torch.zeros(q.shape[:2], device=device)
        ops.attend(q, paged, dim**-0.5, tokens=tokens, counts=counts, visits=visits, lse=lse)
        logits = ops.estimate(q, codes, ranges, held, size, chosen, counts, dim**-0.5)
        ops.prune(logits, held, size, chosen, counts, 0.9)
        choice = {"count": 4, "width": 4, "force_newest": True, "merge": merge}
        ops.attend_top(q, paged, dim**-0.5, **choice)
    sinks = torch.ones(heads * group, device=device)
    ops.attend(q, paged, dim**-0.5, mass=mass, mass_mode="last", visits=visits)
    ops.attend(q, paged, dim**-0.5, mass=mass, mass_mode="sum", softcap=5.0, sinks=sinks)
    ops.attend(q, paged, dim**-0.5, prefix_q=q.flip(0), prefix=4)
    positions = torch.arange(capacity, dtype=torch.int32, device=device).expand(rows, heads, -1).contiguous()
    for weights, shared in ((mass, True), (mass, False), (None, False)):
        held.fill_(capacity).sub_(integers([0, 1, 0, 0, 0]))
        rule = {"capacity": capacity - 1, "sinks": 2, "recent": 8, "shared": shared}
        ops.evict(paged, positions, weights, **rule)


if __name__ == "__main__":
    sys.exit(main())
