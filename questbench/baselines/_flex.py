"""torch's compiled flex_attention as a baseline: compiled within a time limit, or left out with the reason.

A compiler that runs inside this process cannot be stopped. So another process compiles first, which can be, and fills
the cache on disk; what it leaves there this process loads within seconds.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time

import torch
from torch import Tensor

from questbench.baselines._ways import Way

CHILD = """
import sys, torch
from torch.nn.attention.flex_attention import flex_attention
rows, heads, kv_heads, length, dim, threads = map(int, sys.argv[1:7])
dtype, device = getattr(torch, sys.argv[7]), sys.argv[8]
torch.set_num_threads(threads)
q = torch.zeros((rows, heads, 1, dim), dtype=dtype, device=device)
k, v = (torch.zeros((rows, kv_heads, length, dim), dtype=dtype, device=device) for _ in "kv")
for x in (k, v):
    torch._dynamo.mark_dynamic(x, 2)
with torch.no_grad():
    torch.compile(flex_attention)(q, k, v, scale=dim**-0.5, enable_gqa=heads != kv_heads)
"""
LENGTH = 1024
"""Tokens of the trial; the length of the text is left open by the compiled code."""
_too_slow: list[float] = []
"""Limits that a compilation of this process has passed: the next one would too."""


def flex(rows: int, heads: int, kv_heads: int, head_dim: int, q: Tensor, seconds: float) -> tuple[Way | None, str]:
    """The compiled way, or ``None`` and the reason.

    Args:
        q: of the dtype and on the device that it is for.
        seconds: longest time to compile; 0 leaves it out.
    """
    if seconds <= 0:
        return None, "not compiled: --compile-limit is 0"
    if any(limit >= seconds for limit in _too_slow):
        return None, f"compiling took longer than {seconds:g} s (--compile-limit)"
    dtype = str(q.dtype).removeprefix("torch.")
    return _compiled(rows, heads, kv_heads, head_dim, dtype, str(q.device), torch.get_num_threads(), seconds)


@functools.cache
def _compiled(
    rows: int, heads: int, kv_heads: int, head_dim: int, dtype: str, device: str, threads: int, seconds: float
) -> tuple[Way | None, str]:
    arguments = [*map(str, (rows, heads, kv_heads, LENGTH, head_dim, threads)), dtype, device]
    if why := compile_aside([sys.executable, "-P", "-c", CHILD, *arguments], seconds):
        return None, why
    from torch.nn.attention.flex_attention import flex_attention

    made = torch.compile(flex_attention)

    def way(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
        for x in (k, v):
            if not hasattr(x, "_dynamo_dynamic_indices"):  # once per tensor
                torch._dynamo.mark_dynamic(x, 2)
        with torch.no_grad():
            out: Tensor = made(q[:, :, None], k, v, scale=scale, enable_gqa=heads != kv_heads)
        return out[:, :, 0]

    return way, ""


def compile_aside(command: list[str], seconds: float) -> str:
    """Run the compilation in a process that is stopped at the limit, with all that it started.

    Returns:
        Why it did not work; empty where it did.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        try:
            code = _wait(process, seconds)
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code is None:
            _too_slow.append(seconds)
            return f"compiling took longer than {seconds:g} s (--compile-limit)"
        if code == 0:
            return ""
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if "Error" in line or "Exception" in line] or lines or [f"exit code {code}"]
    return f"torch could not compile it here: {errors[-1].strip()[:200]}"


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (code := process.poll()) is not None:
            return code
        time.sleep(0.05)
    return process.poll()
