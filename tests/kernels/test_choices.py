"""The choices of the CPU kernels: forced, stored, measured anew, and by one of two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from questbench import _compiling
from questbench.errors import UsageError
from questbench.kernels import _build, _choices, _tune
from questbench.kernels._choices import KINDS, SETTINGS, VARIABLE


class Module:
    """What a library does with its settings; all offered but those that are left out."""

    def __init__(self, without: tuple[str, ...] = ()) -> None:
        self.without = without
        self.now = {(kind, at): next(iter(one.values.values())) for kind in range(4) for at, one in enumerate(SETTINGS)}

    def offers(self, setting: int) -> bool:
        return SETTINGS[setting].name not in self.without

    def choice(self, kind: int, setting: int) -> int:
        return self.now[kind, setting]

    def choose(self, kind: int, setting: int, value: int) -> None:
        self.now[kind, setting] = value


class Measuring:
    """Chooses ``apart`` for dense attention, and counts how often it is asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, library: _choices.Library) -> dict[str, Any]:
        self.times += 1
        default = library.now()
        choice = {kind: {**own, **({"order": "apart"} if "order" in own else {})} for kind, own in default.items()}
        processor = _compiling.processor_name()
        return {"processor": processor, "threads": 2, "seconds": 0.5, "choice": choice, "default": default}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a library would lie."""
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "cpu-1").mkdir()
    return tmp_path / "cpu-1" / "libquestbench_cpu.so"


def test_a_choice_is_measured_once_and_kept_for_each_number_of_threads(library: Path) -> None:
    measure, module = Measuring(), Module()
    first = _choices.settle(library, module, 2, measure)
    assert first.source == "measured" and first.plan["dense_single"]["order"] == "apart"
    assert module.now[0, 0] == module.now[1, 0] == 0, "the library was told"
    again = Module()
    second = _choices.settle(library, again, 2, measure)
    assert (second.plan, again.now, measure.times) == (first.plan, module.now, 1)
    assert second.facts() == first.facts() and second.facts()["threads"] == 2
    _choices.settle(library, Module(), 1, measure)
    assert measure.times == 2


def broken(text: str) -> str:
    return text[: len(text) // 2]


def of_another_processor(text: str) -> str:
    return json.dumps({**json.loads(text), "processor": "another"})


def with_an_unknown_alternative(text: str) -> str:
    return text.replace('"together"', '"sideways"').replace('"apart"', '"sideways"')


def without_a_kind(text: str) -> str:
    found = json.loads(text)
    del found["choice"]["lists_single"]
    return json.dumps(found)


@pytest.mark.parametrize(
    "damage", [broken, of_another_processor, with_an_unknown_alternative, without_a_kind, lambda text: "[" * 100_000]
)
def test_what_does_not_fit_is_measured_anew(library: Path, damage: Any) -> None:
    measure = Measuring()
    first = _choices.settle(library, Module(), 2, measure)
    file = _choices.path(library, 2)
    file.write_text(damage(file.read_text()))
    assert _choices.settle(library, Module(), 2, measure) == first
    assert measure.times == 2
    _choices.settle(library, Module(), 2, measure)
    assert measure.times == 2


def test_a_plan_of_a_library_with_other_settings_is_measured_anew(library: Path) -> None:
    measure = Measuring()
    _choices.settle(library, Module(("fetch",)), 2, measure)
    assert "fetch" in _choices.settle(library, Module(), 2, measure).plan["lists_single"]
    assert measure.times == 2


def test_forced_alternatives_hold_wherever_they_matter(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, module = Measuring(), Module()
    monkeypatch.setenv(VARIABLE, " ahead=8, products=8x1")
    chosen = _choices.settle(library, module, 2, measure)
    assert [chosen.plan[kind]["ahead"] for kind in KINDS] == ["8"] * 4
    assert [chosen.plan[kind].get("products") for kind in KINDS] == [None, "8x1", None, "8x1"]
    assert chosen.plan["dense_grouped"]["order"] == "apart", "the rest is as measured"
    assert chosen.facts()["forced"] == {"ahead": "8", "products": "8x1"}
    assert [module.now[kind, 1] for kind in range(4)] == [8] * 4
    kept = json.loads(_choices.path(library, 2).read_text())["choice"]
    assert [kept[kind]["ahead"] for kind in KINDS] == ["0"] * 4, "what is stored is what was measured"


@pytest.mark.parametrize("text", ["default", ",".join(f"{one.name}={next(iter(one.values))}" for one in SETTINGS)])
def test_nothing_is_measured_where_nothing_is_left_to_choose(
    library: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    measure, module = Measuring(), Module()
    chosen = _choices.settle(library, module, 2, measure)
    assert chosen.source.startswith("default") and module.now == Module().now
    assert measure.times == 0 and not _choices.path(library, 2).exists()


@pytest.mark.parametrize("text", ["order=sideways", "speed=high", "order", "defaults", "ahead=3"])
def test_an_unknown_name_is_one_clear_error(library: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(VARIABLE, f"fetch=l2,{text}")
    with pytest.raises(UsageError, match=f"'{text}' is not known") as caught:
        _choices.settle(library, Module(), 2, Measuring())
    assert VARIABLE in caught.value.message and "order=together|apart" in str(caught.value.hint)


def test_a_setting_that_this_processor_does_not_have_is_refused(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "products=8x1")
    with pytest.raises(UsageError, match="'products'") as caught:
        _choices.settle(library, Module(("products",)), 2, Measuring())
    assert "products" not in str(caught.value.hint) and "order=" in str(caught.value.hint)


def test_where_nothing_can_be_stored_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "file").write_text("")
    measure = Measuring()
    chosen = _choices.settle(tmp_path / "file" / "cpu-1" / "library.so", Module(), 2, measure)
    assert chosen.source.startswith("default: nothing can be stored") and measure.times == 0


def test_of_two_processes_one_measures(library: Path, tmp_path: Path) -> None:
    code = """
import pathlib, sys, time
from test_choices import Measuring, Module
from questbench.kernels import _choices
class Slow(Measuring):
    def __call__(self, library):
        with open(sys.argv[2], "a") as file:
            file.write("once ")
        time.sleep(1)
        return super().__call__(library)
print(_choices.settle(pathlib.Path(sys.argv[1]), Module(), 2, Slow()).plan)
"""
    command = [sys.executable, "-c", code, str(library), str(tmp_path / "count")]
    both = [
        subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0] and "apart" in said[0][0]
    assert (tmp_path / "count").read_text() == "once "


class Clock:
    """Alternatives with known times; the clock of the tuner stands still unless it is moved."""

    def __init__(self, seconds: dict[str, Any]) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self, alternative: dict[str, str]) -> float:
        self.calls += 1
        known = self.seconds[alternative["ahead"]]
        return float(known(self.calls) if callable(known) else known)


def better(seconds: dict[str, Any], deadline: float = float("inf")) -> str:
    first, *others = ({"ahead": name} for name in seconds)
    return _tune.better(first, others, Clock(seconds), deadline, _tune.DENSE)[0]["ahead"]


def test_only_what_is_clearly_faster_takes_the_place_of_the_default() -> None:
    assert better({"1": 1.0, "2": 0.9, "4": 0.8, "8": 1.5}) == "4"
    assert better({"1": 1.0, "2": 0.985}) == "1", "within the margin"
    assert better({"1": 1.0}) == "1"
    # Faster in the median, but in too few of the rounds.
    assert better({"1": 1.0, "2": lambda call: 0.8 if call % 7 < 4 else 1.3}) == "1"
    assert better({"1": 1.0, "2": 0.5}, deadline=0.0) == "1", "no time left"


def test_the_tuner_gives_a_plan_of_this_library_and_leaves_it_as_it_was() -> None:
    """With the real kernels: whatever it measures here, the plan can be stored and told."""
    library = _choices.Library(_build.load_cpu())
    before = library.now()
    found = _tune.measure(library, module=_build.load_cpu(), threads=1)
    assert library.now() == before == found["default"]
    assert library.fits(found["choice"]) and found["threads"] == 1
    assert found["seconds"] < _tune.SECONDS + 5
    assert json.loads(json.dumps(found)) == found
    for kind, told in found["measured"].items():
        assert all(0 < one["seconds"] < 5 and library.fits({**before, kind: settings(one)}) for one in told), kind


def settings(told: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in told.items() if name != "seconds"}


def test_alternatives_are_all_that_differ_and_none_twice() -> None:
    library = _choices.Library(Module())
    default = library.now()["dense_single"]
    found = _tune.alternatives(library, "dense_single", default, ("order", "ahead", "fetch"))
    assert default not in found and len(found) == len({json.dumps(one) for one in found})
    assert {one["order"] for one in found} == {"together", "apart"}
    # 2 orders, 5 distances, 2 caches, without "no fetches into another cache" of either order and the default itself.
    assert len(found) == 2 * 5 * 2 - 2 - 1


def test_the_library_refuses_what_it_does_not_know() -> None:
    module = _build.load_cpu()
    wrong = ((4, 0, 0), (-1, 0, 0), (0, 6, 0), (0, 0, 2), (0, 1, -1), (0, 1, 65), (0, 2, 3), (0, 3, 3), (0, 4, 0))
    for kind, setting, value in wrong:
        with pytest.raises(ValueError, match="setting"):
            module.choose(kind, setting, value)
