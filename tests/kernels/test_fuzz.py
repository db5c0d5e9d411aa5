"""scripts/kernel_fuzz.py: some hundred random calls, and that it finds what is wrong and runs it again by its name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import valid_lists
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import kernel_fuzz
from _fuzz_cases import OPS, run_case

from questbench import kernels
from questbench.kernels._operators import OPERATORS
from questbench.kernels._paged import Paged
from questbench.kernels.reference import ReferenceOps


def test_random_calls_keep_the_contract() -> None:
    ops = kernels.load("cpu")
    wrong = {name: about for name in (f"test/{n}" for n in range(400)) if (about := run_case(ops, name))}
    assert not wrong


def test_every_op_is_called() -> None:
    assert set(OPS) == set(OPERATORS)


class Wrong(ReferenceOps):
    """Attention that forgets a row's last entry."""

    def attend(self, q: Tensor, paged: Paged, *rest: Any, **options: Any) -> Tensor:
        shorter = torch.where(paged.lengths > 1, paged.lengths - 1, paged.lengths)
        return super().attend(q, paged._replace(lengths=shorter), *rest, **options)


def test_a_wrong_answer_is_found_and_runs_again_by_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "load", lambda name: Wrong())
    assert kernel_fuzz.main(["--calls", "60", "--seed", "7", "--processes", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line.split()[2] for line in lines if line.startswith("differs: --case")]
    assert failed and lines[-1] == f"60 calls, {len(failed)} differ beyond the contract"
    assert kernel_fuzz.main(["--case", failed[0]]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 calls, 1 differ beyond the contract"
    monkeypatch.setattr(kernels, "load", lambda name: ReferenceOps())
    assert kernel_fuzz.main(["--case", failed[0]]) == 0


def test_lists_are_judged() -> None:
    scores, lengths = torch.tensor([[[0.0, 1.0, -torch.inf, 2.0, 3.0]] * 2]), torch.tensor([80], dtype=torch.int32)
    rule = {"width": 3, "force_newest": False, "merge": "sum_softmax", "group": 2, "scale": 1.0}
    for pages, good in (([1, 3, 4], True), ([2, 3, 4], False), ([0, 3, 4], False)):
        lists = torch.tensor([[pages]], dtype=torch.int32), torch.tensor([[3]], dtype=torch.int32)
        assert valid_lists(scores, lengths, 16, lists, **rule) is good  # type: ignore[arg-type]
