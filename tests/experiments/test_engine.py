"""The engine: shared models, failures, refusals, the time limit and resuming, over cells that take no time."""

import errno
from dataclasses import dataclass

import pytest
import torch

from questbench.errors import CellError, PrerequisiteError, SkipCell, UsageError
from questbench.experiments.costs import Deadline
from questbench.experiments.engine import Experiment
from questbench.experiments.grid import GridConfig, labelled

METHODS = ["dense", "quest"]


@dataclass(frozen=True)
class Cell:
    """Cells of one letter share a model."""

    key: str
    seq_len: int = 1024
    page_size: int = 16
    budget: int = 64


class Toy:
    """An experiment whose cells raise what they are told to."""

    def __init__(self, keys, *, fails=None, opens=None):
        self.keys, self.fails, self.opens = keys, fails or {}, opens or {}
        self.log = []

    def experiment(self):
        return Experiment(
            kind="kernel",
            metric="latency",
            cells=lambda config: [Cell(key, budget=config.budgets[0]) for key in self.keys],
            methods=lambda config, cell: labelled(METHODS, cell.budget, {}),
            params=lambda config, cell: {"device": "cpu", "key": cell.key},
            predicted=lambda config, grid: dict.fromkeys((cell.key for cell in grid), 0.0),
            group=lambda cell: cell.key[0],
            open=self.open,
            measure=self.measure,
        )

    def open(self, config, cell):
        self.log.append(f"open {cell.key[0]}")
        if cell.key[0] in self.opens:
            raise self.opens[cell.key[0]]
        return cell.key[0]

    def measure(self, config, cell, shared, turn):
        assert shared == cell.key[0]
        self.log.append(cell.key)
        if cell.key in self.fails:
            raise self.fails[cell.key]
        return []

    def run(self, finished=(), progress=None, **config):
        settings = GridConfig(**{"budgets": [64], **config})
        return list(self.experiment().run(settings, finished=set(finished), progress=progress))


def told(units):
    """(status, reason) of the first record of every unit."""
    return {unit.key: (unit.records[0].status, unit.records[0].reason) if unit.records else None for unit in units}


def test_cells_of_a_group_share_what_was_opened_once_and_finished_ones_open_nothing():
    toy = Toy(["a1", "a2", "b1", "c1", "c2"])
    seen = []
    toy.run(finished=["b1", "c1"], progress=lambda done, total, text: seen.append((done, total)))
    assert toy.log == ["open a", "a1", "a2", "open c", "c2"]
    assert seen[0] == (0, 5) and seen[-1] == (5, 5)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_running_out_of_memory_fails_the_cell_alone_however_it_is_said(error):
    units = Toy(["a1", "a2"], fails={"a1": error}).run()
    assert [record.method for record in units[0].records] == METHODS
    status, reason = told(units)["a1"]
    assert status == "failed" and reason.startswith("out of memory on cpu") and "--seq-len" in reason
    assert told(units)["a2"] is None


def test_a_fault_of_ours_is_no_record():
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        Toy(["a1"], fails={"a1": RuntimeError("a shape is wrong")}).run()


def test_what_makes_no_sense_is_skipped_and_what_cannot_run_failed():
    units = Toy(["a1", "a2"], fails={"a1": SkipCell("No."), "a2": CellError("Broken.", "Mend it.")}).run()
    assert told(units) == {"a1": ("skipped", "No."), "a2": ("failed", "Broken. Mend it.")}


@pytest.mark.parametrize("kind", [UsageError, PrerequisiteError])
def test_a_model_that_cannot_be_opened_ends_the_run_only_where_it_is_the_only_one(kind):
    error = kind("No such weights.")
    with pytest.raises(kind):
        Toy(["a1", "a2"], opens={"a": error}).run()
    units = Toy(["a1", "b1"], opens={"a": error}).run()
    assert told(units) == {"a1": ("failed", "No such weights."), "b1": None}


def test_a_method_that_a_cell_refuses_is_a_record_beside_the_others():
    (unit,) = Toy(["a1"]).run(budgets=[8])
    assert [(record.method, record.status) for record in unit.records] == [("quest", "failed")]


def test_what_the_time_limit_leaves_has_another_key_so_that_resuming_measures_it(monkeypatch):
    monkeypatch.setattr(Deadline, "passed", property(lambda self: True))
    toy = Toy(["a1", "a2"])
    units = toy.run(time_limit=1.0)
    assert [unit.key for unit in units] == ["a1|not begun", "a2|not begun"] and toy.log == []
    assert {record.status for unit in units for record in unit.records} == {"skipped"}
    assert "--time-limit" in units[0].records[0].reason
