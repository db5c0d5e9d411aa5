"""Records survive the way to disk and back."""

from __future__ import annotations

import json

import pytest
from records_helpers import record

from questbench.records.schema import ResultRecord


def test_round_trip() -> None:
    original = record(samples=[1.0, 2.5], stats={"p20": 1.0, "dense_fallback": False}, warnings=["noisy"], seed=7)
    assert ResultRecord.from_dict(json.loads(original.to_json())) == original


def test_infinities_become_null() -> None:
    line = record(value=float("inf"), samples=[float("nan")], stats={"p20": float("-inf")}).to_json()
    data = json.loads(line)
    assert (data["value"], data["samples"], data["stats"]) == (None, [None], {"p20": None})


def test_cell_ignores_metric_and_value_and_the_order_of_keys() -> None:
    one, two = record(params={"a": 1, "b": 2}), record(metric="bytes", value=9.0, params={"b": 2, "a": 1})
    assert one.cell() == two.cell()
    assert record(seed=1).cell() != record(seed=2).cell()
    assert record(params={"a": 1}).cell() != record(params={"a": 2}).cell()


@pytest.mark.parametrize("change", [{"colour": "red"}, {"schema": 99}])
def test_unknown_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"unknown|newer"):
        ResultRecord.from_dict(json.loads(record().to_json()) | change)


def test_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="not a result record"):
        ResultRecord.from_dict({"schema": 1})
