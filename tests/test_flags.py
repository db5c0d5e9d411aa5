"""Flags declared by the fields of a configuration: what is read from texts, from files and from stored runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest

from questbench import flags
from questbench.errors import QuestbenchError, UsageError
from questbench.experiments.accuracy import AccuracyConfig
from questbench.experiments.e2e import E2EConfig
from questbench.experiments.kernel import KernelConfig

GIVEN = {
    "seq-len": "4k,8k",
    "budget": 512,
    "method": ["dense", "quest"],
    "M": {"quest.select_by": "q_head"},
    "rounds": "3",
    "time_limit": "20m",
    "stages": False,
    "seed": "-7",
    "heads": None,
}


def test_a_mapping_is_read_as_the_command_line_is() -> None:
    config = flags.from_mapping(KernelConfig, GIVEN)
    assert (config.seq_lens, config.budgets, config.methods) == ([4096, 8192], [512], ["dense", "quest"])
    assert config.method_args == {"quest.select_by": "q_head"}
    assert (config.rounds, config.time_limit, config.stages, config.seed, config.heads) == (3, 1200.0, False, -7, None)
    assert config.page_sizes == KernelConfig().page_sizes


@pytest.mark.parametrize(
    "config",
    [
        flags.from_mapping(KernelConfig, {**GIVEN, "time_limit": "0.07h"}),  # 252.00000000000003 seconds
        E2EConfig(threads=[1, 2], max_seconds=0.5),
        E2EConfig(rivals=["static", "dynamic"], tokens=[2, 5]),
        AccuracyConfig(tasks=["passkey"], seq_lens=[99], data={"*": "a=b", "pg19": "x"}, margin=0.5, samples=3),
    ],
)
def test_what_a_run_stores_is_read_back(config: Any) -> None:
    assert flags.from_mapping(type(config), json.loads(json.dumps(asdict(config)))) == config
    flags.check(config)


@pytest.mark.parametrize(
    ("verb", "config_class", "name", "value"),
    [
        ("kernel", KernelConfig, "seq-len", "long"),
        ("kernel", KernelConfig, "seq-len", ",,"),
        ("kernel", KernelConfig, "budget", "0"),
        ("kernel", KernelConfig, "cache", "lukewarm"),
        ("kernel", KernelConfig, "seed", "lucky"),
        ("kernel", KernelConfig, "max-seconds", "nan"),
        ("kernel", KernelConfig, "compile-limit", "-1"),
        ("e2e", E2EConfig, "time-limit", "soon"),
        ("e2e", E2EConfig, "transformers", "paged"),
        ("e2e", E2EConfig, "dense-layers", "-1"),
        ("accuracy", AccuracyConfig, "protocol", "guess"),
        ("accuracy", AccuracyConfig, "margin", "wide"),
    ],
)
def test_a_mapping_is_refused_with_the_words_of_the_command_line(
    verb: str, config_class: type[Any], name: str, value: str, questbench: Callable[..., Any]
) -> None:
    with pytest.raises(UsageError) as error:
        flags.from_mapping(config_class, {name: value})
    assert questbench(verb, f"--{name}={value}").err.startswith(f"error: {error.value.message}\nnext:  ")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sequence": 4}, "Unknown setting 'sequence'"),
        ({"seq_len": "4k", "seq_lens": "8k"}, "--seq-len is given twice"),
        ({"seq_len": [4.5]}, "4.5 is not a value for --seq-len"),
        ({"seq_len": []}, "--seq-len names nothing"),
        ({"budget": True}, "True is not a value for --budget"),
        ({"rounds": None}, "None is not a value for --rounds"),
        ({"shape": 3}, "--shape takes a text"),
        ({"dtype": [16]}, "--dtype takes a text"),
        ({"stages": "no"}, "--stages is true or false"),
        ({"seed": 1.5}, "--seed takes a whole number"),
        ({"max_seconds": True}, "--max-seconds takes a number"),
        ({"M": "quest"}, "-M takes NAME=VALUE"),
        ({"M": ["quest"]}, "-M 'quest' is not name=value"),
        ({"M": {"sinks": 4}}, None),
    ],
)
def test_values_of_the_wrong_kind(given: dict[str, Any], words: str | None) -> None:
    if words is None:
        assert flags.from_mapping(KernelConfig, given).method_args == {"sinks": "4"}
        return
    with pytest.raises(UsageError, match=words):
        flags.from_mapping(KernelConfig, given)


@pytest.mark.parametrize(
    "config", [KernelConfig(batch=[0]), KernelConfig(cache="hot"), E2EConfig(loop="fast"), AccuracyConfig(samples=0)]
)
def test_a_configuration_made_in_python_is_held_to_the_same(config: Any) -> None:
    with pytest.raises(QuestbenchError):
        flags.check(config)


def test_a_field_may_change_the_default_of_the_class_it_derives_from() -> None:
    @dataclass(frozen=True)
    class Longer(KernelConfig):
        seq_lens: list[int] = flags.flag([65536])

    own, base = flags.flags(Longer)["seq_lens"], flags.flags(KernelConfig)["seq_lens"]
    assert (own.shown, Longer().seq_lens) == ("64k", [65536])
    assert replace(own, default=base.default) == base
    assert Longer().seq_lens is not Longer().seq_lens


@pytest.mark.parametrize("config_class", [KernelConfig, E2EConfig, AccuracyConfig])
def test_no_name_stands_for_two_fields(config_class: type[Any]) -> None:
    names = [name for flag in flags.flags(config_class).values() for name in flag.names]
    assert len(names) == len(set(names))
    assert all(flag.help.endswith((".", ")")) for flag in flags.flags(config_class).values())


def test_flags_are_made_once_and_cannot_be_changed() -> None:
    found = flags.flags(KernelConfig)
    assert flags.flags(KernelConfig) is found
    with pytest.raises(TypeError):
        found["seed"] = found["rounds"]  # type: ignore[index]
