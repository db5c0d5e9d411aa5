"""What a run will cost: memory that is there, how long it takes, and a limit that ends it with what is measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from questbench import seeding, units
from questbench.errors import CellError, UsageError
from questbench.experiments import costs, e2e
from questbench.experiments.costs import LIBRARY_BYTES, Deadline, Forecast, Model, OutOfTime, need
from questbench.experiments.e2e import E2EConfig
from questbench.experiments.e2e.forecast import predicted
from questbench.measure import memory
from questbench.methods._base import CacheShape
from questbench.methods._make import make


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_page_cache_is_free_memory(tmp_path: Path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 7000 kB\n")
    assert memory._available(meminfo) == 7000 * 1024
    monkeypatch.setattr(memory, "_available", lambda: 7000)
    for allowed, expected in ((None, 7000), (5000, 5000), (9000, 7000)):
        monkeypatch.setattr(memory.cgroup, "memory_left", lambda allowed=allowed: allowed)
        assert memory.free_bytes("cpu") == expected


def test_what_does_not_fit_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(costs, "free_bytes", lambda device: 4 << 30)
    costs.require(3 << 30, "cpu", hint="less")
    with pytest.raises(CellError, match=r"needs about 5\.0 GiB beside the weights and 4\.0 GiB are free"):
        costs.require(5 << 30, "cpu", beside="beside the weights", hint="less")
    with pytest.raises(CellError):
        costs.require(3 << 30, "cpu", hint="less", reserved=2 << 30)


def model(windows: tuple = (None,) * 3, widest: int = 100, page_size: int = 16) -> Model:
    return Model(CacheShape(4, 2, 64, page_size, 2), windows, widest=widest)


METHODS = {name: make(name, 64) for name in ("dense", "quest", "h2o")}


def test_a_step_reads_all_layers_the_sliding_ones_their_windows_and_the_leading_ones_everything():
    shape = model().cache
    entry, quest = shape.entry_bytes, METHODS["quest"]
    assert model((None,)).cache_read(quest, 1000) == quest.bytes_read(1000, shape)
    mixed = dataclasses.replace(model((None, 100, None)), dense_layers=1)
    assert mixed.cache_read(quest, 1000, rows=2) == 2 * (1000 * entry + 100 * entry + quest.bytes_read(1000, shape))


@pytest.mark.parametrize(
    ("seq_len", "budget", "ideal"),
    [(32, 2, 8.0), (32, 4, 16 / 3), (16, 4, 3.2), (8, 4, 16 / 9), (4, 4, 1.0), (1, 4, 1.0)],
)
def test_what_quest_must_read_is_the_load_ratio_of_its_paper(seq_len, budget, ideal):
    """1/S + B/L of dense for pages of S = 16 (section 3 of arXiv 2406.10774); dense where the text fits the budget."""
    one = model((None,))
    read = [one.cache_read(make(name, budget << 10), seq_len << 10) for name in ("dense", "quest")]
    assert read[0] / read[1] == pytest.approx(ideal, rel=1e-3)


def test_the_rule_of_memory_for_methods_that_share_a_prompt():
    size = {"rows": 2, "length": 1000, "room": 24}
    found = need(model(), METHODS, **size)
    entry = model().cache.entry_bytes * 2 * 3
    assert found.shared == entry * 1024 * 17 // 16
    new = 32 + 2 * 16
    assert found.own["dense"] == found.own["quest"] == entry * new * 17 // 16
    gathered = 3 * 2 * 1000 * model().cache.entry_bytes
    kept = METHODS["h2o"].tokens_resident(1024) + 16
    assert found.own["h2o"] == entry * (new + kept) * 17 // 16 + gathered
    slid = 2 * (100 + 1024) * model().cache.entry_bytes
    more = need(model((None, None, None, 100, 4096)), METHODS, loops=3, **size)
    assert more.own["dense"] == found.own["dense"] + slid
    assert more.own["baselines"] == 3 * more.own["dense"] + LIBRARY_BYTES
    assert found.working == 0 < need(model(), METHODS, part=512, **size).working
    assert found.total == found.shared + sum(found.own.values())
    assert found.largest == found.shared + found.own["h2o"]


def test_the_rule_of_memory_for_caches_that_take_turns():
    copies, size = {"dense": 2, "quest": 5, "h2o": 9}, {"rows": 1, "length": 1024, "room": 64}
    one = model((None,))
    kept = one.paged(METHODS["h2o"].tokens_resident(1024) + 16, 1)
    forked = need(one, METHODS, copies=copies, **size)
    assert forked.shared == 5 * one.paged(1024 + 64, 1), "as many as the arm that reads the least needs"
    assert forked.own == {"dense": 5 * one.paged(96, 1), "quest": 5 * one.paged(96, 1), "h2o": 9 * kept}
    apart = need(one, METHODS, copies=copies, forked=False, **size)
    text = one.paged(1024 + 64, 1)
    assert apart.shared == 0 and apart.own == {"dense": 2 * text, "quest": 5 * text, "h2o": 9 * kept}


def test_a_deadline():
    clock = Clock()
    limit, none = Deadline(100, clock), Deadline(None, clock)
    clock.now = 70
    assert limit.within(60) == 30 and none.within(60) == 60
    limit.check()
    clock.now = 101
    assert limit.passed and limit.within(60) == 0 and not none.passed
    with pytest.raises(OutOfTime, match="The time limit of 2 min was reached first"):
        limit.check()


def test_a_forecast_learns_from_what_cells_took():
    clock = Clock()
    forecast = Forecast({"a": 10, "b": 20, "c": 30}, clock=clock)
    assert forecast.seconds() == 60
    clock.now = 20
    forecast.finished("a")
    assert forecast.seconds() == 100, "the first cell took twice as long as predicted"
    clock.now = 30
    assert forecast.seconds() == 90 and forecast.words() == ", about 90 s left".replace("90 s", units.duration(90))
    forecast.skip("b")
    assert forecast.seconds() == 60
    unknown = Forecast({"a": 0, "b": 0}, clock=clock)
    assert unknown.seconds() is None and unknown.words() == ""
    clock.now = 40
    unknown.finished("a")
    assert unknown.seconds() == 10


def test_the_card_says_how_long_it_takes():
    config = E2EConfig(seq_lens=[8192, 32768], budgets=[2048], cache_fill="random")
    seconds = predicted(config, e2e.cells(config))
    assert len(seconds) == 2 and all(value > 5 for value in seconds.values())
    assert e2e.card(config)["duration"].startswith("about ")
    assert "--time-limit" in e2e.card(E2EConfig(model="constructed"))["duration"]
    assert costs.duration([100, 100], 60.0).startswith("60 s at most")


def test_longer_texts_and_more_layers_take_longer(monkeypatch):
    monkeypatch.setattr("questbench.experiments.e2e.forecast._speeds", lambda products: (1e10, 1e11))
    one = E2EConfig(model="shape:llama-2-7b", layers=2, seq_lens=[1024, 65536])
    short, long = predicted(one, e2e.cells(one)).values()
    two = E2EConfig(model="shape:llama-2-7b", layers=8, seq_lens=[1024])
    (more,) = predicted(two, e2e.cells(two)).values()
    assert short < long and short < more


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("20m", 1200), ("1.5h", 5400), ("2 min", 120)])
def test_durations(text, seconds):
    assert units.parse_duration(text) == seconds
    with pytest.raises(UsageError):
        units.parse_duration("soon")
    with pytest.raises(UsageError):
        units.parse_duration("0")


@pytest.mark.parametrize("text", ["9" * 309, "9" * 400 + "k", str((1 << 53) + 1), "9" * 20 + "m"])
def test_counts_that_no_machine_can_hold_are_refused(text):
    with pytest.raises(UsageError, match="too large"):
        units.parse_count(text)


def test_the_largest_count_is_exact():
    assert units.parse_count(str(1 << 53)) == 1 << 53
    assert units.parse_count("0.5k") == 512


@pytest.mark.parametrize("seed", [1 << 63, 1 << 64, -(1 << 63) - 1])
def test_seeds_that_no_generator_takes_are_refused(seed):
    with pytest.raises(UsageError, match="seed"):
        seeding.check(seed)


def test_seeds_that_are_fine():
    for seed in (0, 1, -1, (1 << 63) - 1, -(1 << 63)):
        assert seeding.check(seed) == seed


def test_a_length_that_does_not_fit_is_a_failed_record_and_the_others_run(monkeypatch):
    """Nothing of it is made: not even its text, which alone would take the memory."""
    from accuracy_helpers import random_model, run, use

    use(random_model(), monkeypatch)
    monkeypatch.setattr(costs, "free_bytes", lambda device: 4 << 30)
    settings = {"tasks": ["passkey"], "methods": ["dense", "quest"], "budgets": [64], "samples": 1}
    records, _, units_made = run(seq_lens=[256, 100 << 20], **settings)
    long = [record for record in records if record.params["seq_len"] == 100 << 20]
    assert {record.method for record in long} == {"dense", "quest"}
    assert all(record.status == "failed" and "out of memory: this cell needs about" in record.reason for record in long)
    assert all(record.status == "ok" for record in records if record.params["seq_len"] == 256)
    assert {unit.key for unit in units_made if str(100 << 20) in unit.key} == {
        f"passkey|{100 << 20}|stepwise|summary|1"
    }


def test_kernel_cells_that_the_limit_cuts_off_say_so():
    from questbench.experiments import kernel
    from questbench.experiments.kernel import KernelConfig

    config = KernelConfig(seq_lens=[256, 512], budgets=[64], time_limit=1e-9, methods=["quest"])
    found = list(kernel.run(config))
    assert {unit.key for unit in found}.isdisjoint(cell.key for cell in kernel.cells(config))
    assert all(record.status == "skipped" and "--time-limit" in record.reason for u in found for record in u.records)
    assert kernel.card(config)["duration"].startswith("1 s at most")
