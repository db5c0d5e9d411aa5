"""The runner that all run verbs share, with an experiment that measures nothing."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from questbench.errors import CellError, PrerequisiteError
from questbench.experiments import kernel as experiment
from questbench.experiments.engine import Unit
from questbench.records import store
from questbench.records.schema import ResultRecord


def record(seq_len: int, status: str = "ok") -> ResultRecord:
    return ResultRecord(
        run="",
        kind="kernel",
        status=status,  # type: ignore[arg-type]
        method="quest",
        method_args={"budget": 2048},
        backend="cpu",
        params={"seq_len": seq_len, "budget": 2048, "stage": "total"},
        metric="latency",
        unit="s",
        value=1e-3 if status == "ok" else None,
        reason=None if status == "ok" else "the test said so",
        samples=[1e-3] if status == "ok" else [],
    )


class Fake:
    """What the experiment does for each length: a status, or an error to raise."""

    def __init__(self) -> None:
        self.does: dict[int, Any] = {}
        self.ran: list[int] = []

    def run(self, config: Any, *, finished: set[str], stored: Any, progress: Any) -> Iterator[Unit]:
        for number, length in enumerate(config.seq_lens):
            if str(length) in finished:
                continue
            act = self.does.get(length, "ok")
            if isinstance(act, BaseException):
                raise act
            self.ran.append(length)
            progress(number, len(config.seq_lens), "now")
            yield Unit(str(length), [record(length, act)], prefills=1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(experiment, "run", fake.run)
    monkeypatch.setattr(experiment, "check", lambda config: None)
    return fake


@pytest.fixture
def kernel(questbench: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    return lambda *arguments: questbench("kernel", "--out", tmp_path, *arguments)


def only_run(folder: Path) -> Path:
    (found,) = store.runs(folder)
    return found


def test_ends_with_a_table_and_the_next_step(fake: Fake, kernel: Callable[..., Any], tmp_path: Path) -> None:
    ended = kernel("--seq-len", "4k,8k")
    assert ended.code == 0
    assert "quest" in ended.out
    assert "4k = 4,096 tokens" in ended.err
    assert f"questbench report {only_run(tmp_path)}" in ended.err
    manifest = store.load_manifest(only_run(tmp_path))
    assert (manifest.exit_code, manifest.prefills) == (0, 2)


def test_json_is_what_is_stored(fake: Fake, kernel: Callable[..., Any], tmp_path: Path) -> None:
    ended = kernel("--seq-len", "4k,8k", "--json")
    assert ended.out == (only_run(tmp_path) / "records.jsonl").read_text()
    assert [json.loads(line)["params"]["seq_len"] for line in ended.out.splitlines()] == [4096, 8192]


def test_what_the_kernels_were_told_is_recorded_and_shown_where_it_is_forced(
    fake: Fake, kernel: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {"source": "measured", "forced": {}, "choice": {"dense_single": {"order": "together"}}}
    monkeypatch.setattr("questbench.kernels.cpu.CpuOps.settings", lambda self: told)
    shown = kernel("--seq-len", "4k").err
    assert store.load_manifest(only_run(tmp_path)).environment["kernels"] == {"cpu": told}
    assert "forced" not in shown
    told["forced"] = {"order": "apart", "ahead": "2"}
    fake.does = {8192: KeyboardInterrupt()}
    ended = kernel("--seq-len", "4k,8k", "--out", tmp_path / "second")
    assert "forced: order=apart, ahead=2" in ended.err
    run = only_run(tmp_path / "second")
    told["forced"] = {}
    fake.does = {}
    assert kernel("--resume", run).code == 0
    manifest = store.load_manifest(run)
    assert manifest.environment["kernels"]["cpu"]["choice"] == told["choice"]
    assert manifest.environment["resumed"][0]["kernels"] == {"cpu": told}


@pytest.mark.parametrize(("status", "code"), [("failed", 4), ("skipped", 3), ("ok", 0)])
def test_all_cells_alike(fake: Fake, kernel: Callable[..., Any], tmp_path: Path, status: str, code: int) -> None:
    fake.does = {4096: status, 8192: status}
    ended = kernel("--seq-len", "4k,8k")
    assert ended.code == code
    assert store.load_manifest(only_run(tmp_path)).exit_code == code
    if code:
        assert "the test said so" in ended.err
        assert "--resume" in ended.err


def test_one_failed_cell_is_one_cell(fake: Fake, kernel: Callable[..., Any]) -> None:
    fake.does = {4096: "failed"}
    assert "error: 1 cell failed;" in kernel("--seq-len", "4k").err


def test_one_skipped_cell_is_fine_and_one_failed_is_not(fake: Fake, kernel: Callable[..., Any]) -> None:
    fake.does = {4096: "skipped"}
    assert kernel("--seq-len", "4k,8k").code == 0
    fake.does = {4096: "failed"}
    assert kernel("--seq-len", "4k,8k").code == 4


def test_what_a_time_limit_left_out_is_said(
    fake: Fake, kernel: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reason = "the time limit of 20 min was reached first (--time-limit)"
    late = dataclasses.replace(record(8192, "skipped"), reason=reason)

    def run(config: Any, **rest: Any) -> Iterator[Unit]:
        yield Unit("4096", [record(4096)])
        yield Unit("8192|not begun", [late])

    monkeypatch.setattr(experiment, "run", run)
    ended = kernel("--seq-len", "4k,8k", "--time-limit", "20m")
    assert ended.code == 0 and "Not everything was measured: the time limit of 20 min was reached" in ended.err
    assert f"questbench kernel --resume {only_run(tmp_path)}" in ended.err


def test_interrupt_keeps_records_and_resumes(fake: Fake, kernel: Callable[..., Any], tmp_path: Path) -> None:
    fake.does = {8192: KeyboardInterrupt()}
    ended = kernel("--seq-len", "4k,8k,16k", "--seed", "3")
    assert ended.code == 130
    run = only_run(tmp_path)
    assert f"questbench kernel --resume {run}" in ended.err
    assert store.load_manifest(run).exit_code == 130
    fake.does = {}
    resumed = kernel("--resume", run, "--json")
    assert resumed.code == 0
    assert fake.ran == [4096, 8192, 16384]
    assert [json.loads(line)["params"]["seq_len"] for line in resumed.out.splitlines()] == [4096, 8192, 16384]
    assert store.load_manifest(run).config["seed"] == 3
    assert kernel("--resume", run).code == 0
    assert fake.ran == [4096, 8192, 16384]


def test_resume_takes_the_flags_again(fake: Fake, kernel: Callable[..., Any], tmp_path: Path) -> None:
    kernel("--seq-len", "4k")
    assert kernel("--resume", only_run(tmp_path), "--seq-len", "4096").code == 0
    ended = kernel("--resume", only_run(tmp_path), "--seq-len", "8k")
    assert ended.code == 2
    assert "seq_lens: [4096] then, [8192] now" in ended.err


def test_failed_cells_run_again(fake: Fake, kernel: Callable[..., Any], tmp_path: Path) -> None:
    fake.does = {8192: "failed"}
    assert kernel("--seq-len", "4k,8k").code == 4
    fake.does = {}
    assert kernel("--resume", only_run(tmp_path)).code == 0
    assert fake.ran == [4096, 8192, 8192]


def test_an_error_before_the_first_cell_leaves_no_run(fake: Fake, kernel: Callable[..., Any], tmp_path: Path) -> None:
    fake.does = {4096: PrerequisiteError("There is no model.", "Get one.")}
    ended = kernel("--seq-len", "4k,8k")
    assert ended.code == 3
    assert ended.err.endswith("error: There is no model.\nnext:  Get one.\n")
    assert not store.runs(tmp_path)


def test_an_error_after_it_keeps_what_there_is(fake: Fake, kernel: Callable[..., Any], tmp_path: Path) -> None:
    fake.does = {8192: CellError("The disk is full.", "Make room.")}
    ended = kernel("--seq-len", "4k,8k")
    assert ended.code == 4
    assert f"--resume {only_run(tmp_path)}" in ended.err
    assert len(store.load([only_run(tmp_path)])) == 1


def test_a_bug_says_so(fake: Fake, kernel: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fake.does = {4096: ZeroDivisionError("by nought")}
    ended = kernel("--seq-len", "4k")
    assert ended.code == 1
    assert "ZeroDivisionError: by nought. This is a bug in questbench." in ended.err
    assert "QUESTBENCH_DEBUG=1" in ended.err
    assert "Traceback" not in ended.err
    monkeypatch.setenv("QUESTBENCH_DEBUG", "1")
    assert "Traceback" in kernel("--seq-len", "4k").err


def test_no_progress_bar_in_a_pipe(fake: Fake, kernel: Callable[..., Any]) -> None:
    ended = kernel("--seq-len", "4k")
    assert "\x1b" not in ended.out + ended.err


def test_a_run_is_resumed_by_its_name(fake: Fake, kernel: Callable[..., Any], tmp_path: Path) -> None:
    fake.does = {8192: KeyboardInterrupt()}
    kernel("--seq-len", "4k,8k")
    fake.does = {}
    assert kernel("--resume", only_run(tmp_path).name).code == 0
    assert fake.ran == [4096, 8192]


def test_an_error_while_the_card_is_made_leaves_no_run(
    fake: Fake, kernel: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def card(config: Any) -> dict[str, str]:
        raise PrerequisiteError("There is no model.", "Get one.")

    monkeypatch.setattr(experiment, "card", card)
    assert kernel("--seq-len", "4k").code == 3
    assert not store.runs(tmp_path)


def test_on_a_full_disk_the_next_step_is_to_resume(
    fake: Fake, kernel: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.write, []

    def full(descriptor: int, data: Any) -> int:
        calls.append(descriptor)
        if len(calls) > 2:  # the first unit has two writes
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        ended = kernel("--seq-len", "4k,8k")
    run = only_run(tmp_path)
    assert ended.code == 3
    assert ended.err.splitlines()[-1] == f"next:  Make room there, then: questbench kernel --resume {run}"
    assert kernel("--resume", run).code == 0
    assert fake.ran == [4096, 8192, 8192]


@pytest.mark.parametrize(("field", "value"), [("seq_lens", "long"), ("seq_lens", [[1]]), ("seed", None), ("shape", 3)])
def test_a_configuration_of_wrong_types_is_refused(
    field: str, value: Any, fake: Fake, kernel: Callable[..., Any], tmp_path: Path
) -> None:
    kernel("--seq-len", "4k")
    file = only_run(tmp_path) / "run.json"
    manifest = json.loads(file.read_text())
    manifest["config"][field] = value
    file.write_text(json.dumps(manifest))
    ended = kernel("--resume", file.parent)
    assert ended.code == 3
    assert f"field 'config.{field}'" in ended.err and "bug" not in ended.err
