"""Mistakes planted in copies of the shipped kernels are found: by results outside of their budget, by results that
depend on the schedule, or by the emulator itself. ``pytest -m slow`` leaves out every barrier, one at a time."""

from __future__ import annotations

from pathlib import Path

import building
import mutations
import pytest
import quick_checks
from mutations import Mutation

from questbench._paths import kernel_sources
from questbench.kernels._operators import OPERATORS

OPS = {
    "append": ["append"],
    "score_pages": ["score"],
    "score_channels": ["score"],
    "select": ["select"],
    "attend": ["attend"],
    "attend_tile": ["attend"],
    "mass": ["attend"],
    "paged": ["attend"],
    "lists": ["select", "prune"],
    "evict": ["evict"],
    "quantize": ["quantize"],
    "estimate": ["estimate"],
    "prune": ["prune"],
}
"""Source -> the ops whose checks exercise it."""

PLANTED = [
    Mutation(
        "off by one: the last tile of a row is left out",
        "cuda/attend.cu",
        r"\(at\.entries \+ kTile - 1\) / kTile",
        "at.entries / kTile",
    ),
    Mutation(
        "missing barrier before the sums of the warps are merged",
        "cuda/attend.cu",
        r"__syncthreads\(\);(\s+const bool alone)",
        r"\1",
    ),
    Mutation("a wait for one copy less", "cuda/attend.cu", r"copy_wait<kStages - 2>", "copy_wait<kStages - 1>"),
    Mutation(
        "wrong page bound: one page too many is scored",
        "cuda/score_pages.cu",
        r"pages_of\(row\) - job\.skip_newest;",
        "pages_of(row) - job.skip_newest + 1;",
    ),
    Mutation(
        "off by one: one entry of a prompt is left out",
        "cuda/append.cu",
        r"min\(start \+ count, \(page \+ 1\) \* size\)",
        "min(start + count, (page + 1) * size - 1)",
    ),
    Mutation("codes of the wrong neighbour", "cuda/quantize.cu", r"own, 4\);", "own, 8);"),
    Mutation(
        "off by one: the last listed entry is left out",
        "cuda/estimate.cu",
        r"at < listed \? logit",
        "at < listed - 1 ? logit",
    ),
    Mutation(
        "missing barrier before the masses of the warps are summed",
        "cuda/prune.cu",
        r"= sum;\n  __syncthreads\(\);",
        "= sum;",
    ),
]
HARMLESS = {
    ("cuda/attend.cu", "__syncwarp();"): "the lanes meet in load_matrix_4 anyway; left for the order of memory",
    ("cuda/attend.cu", "copy_wait<0>"): "the loop has waited for every copy; left for whoever changes the loop",
}
"""Barriers and waits that change no result when they go, with the reason."""
UNSEEN = {
    ("cuda/paged.h", "__syncthreads();"): "no schedule holds one thread of a block back until another block has ended",
}
"""What CUDA needs and the emulator cannot miss, with the reason: these are for ``pytest -m gpu`` and the sanitizer."""


@pytest.fixture(scope="module")
def sound() -> Path:
    """The kernels as they are."""
    if not list((kernel_sources() / "cuda").glob("*.cu")):
        pytest.skip("kernels/cuda is empty")
    return building.build_emulator().path


def sources() -> list[Path]:
    """Kernels and their headers."""
    return sorted(path for kind in ("*.cu", "*.h") for path in (kernel_sources() / "cuda").glob(kind))


def test_every_op_and_every_source_with_a_barrier_is_checked() -> None:
    ops = set(quick_checks.CHECKS)
    assert ops == set(OPERATORS) - {"attend_top"}, "attend_top is three of the others in one call"
    assert {op for those in OPS.values() for op in those} == ops
    assert {file.stem for file in sources() if mutations.sweep(f"cuda/{file.name}")} <= set(OPS)
    assert {file.stem for file in sources() if "QB_KERNEL" in file.read_text()} <= set(OPS)


def test_the_kernels_as_they_are_pass(sound: Path) -> None:
    assert mutations.check(sound, *quick_checks.CHECKS) is None


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_a_planted_mistake_is_found(sound: Path, tmp_path: Path, planted: Mutation) -> None:
    assert mutations.caught(planted, OPS[Path(planted.file).stem], tmp_path) is not None


@pytest.mark.slow
def test_every_barrier_is_needed(sound: Path, tmp_path: Path) -> None:
    survivors = []
    for file in sources():
        for at, planted in enumerate(mutations.sweep(f"cuda/{file.name}")):
            if mutations.caught(planted, OPS[file.stem], tmp_path / f"{file.stem}{at}") is None:
                survivors.append((planted.file, planted.name))
    assert [name for file, name in survivors if (file, name.split(" ", 1)[1]) not in HARMLESS | UNSEEN] == []
