"""Help pages: every verb ends with two examples that parse, and shows the defaults that the experiments have."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import shlex
from collections.abc import Callable
from typing import Any

import pytest
import typer

from questbench import flags
from questbench.cli.main import VERBS, VerbGroup, app

PLANNED = ("analyze", "reproduce")


def verb_command(name: str) -> Any:
    group = typer.main.get_command(app)
    assert isinstance(group, VerbGroup)
    return group.resolve_command(None, [name])[1]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_ends_with_two_examples(verb: str, flag: str, questbench: Callable[..., Any]) -> None:
    ended = questbench(verb, flag)
    assert ended.code == 0
    lines = [line.strip() for line in ended.out.splitlines() if line.strip()]
    assert lines[-3:] == [
        "Examples:",
        *(f"$ {line}" for line in importlib.import_module(f"questbench.cli.{verb}").EXAMPLES),
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_help_can_be_read(verb: str, questbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page = questbench(verb, "--help").out
    assert "<bool>" not in page, "a switch takes no value"
    lines = [line.strip() for line in page.partition("╭")[0].splitlines()]
    for line, following in itertools.pairwise(lines):
        if line and following and not line.startswith("Usage"):
            assert len(line) + 1 + len(following.split()[0]) > 76, f"broken too early: {line!r}"


@pytest.mark.parametrize("verb", VERBS)
def test_examples_parse(verb: str) -> None:
    for example in importlib.import_module(f"questbench.cli.{verb}").EXAMPLES:
        program, name, *arguments = shlex.split(example)
        assert (program, name) == ("questbench", verb)
        verb_command(verb).make_context(verb, arguments)


def test_no_arguments_shows_help(questbench: Callable[..., Any]) -> None:
    ended = questbench()
    assert ended.code == 0
    assert all(verb in ended.out for verb in VERBS)


@pytest.mark.parametrize("verb", PLANNED)
def test_planned_verbs_are_not_advertised(verb: str, questbench: Callable[..., Any]) -> None:
    assert f" {verb} " not in questbench("--help").out
    assert questbench(verb).code == 2


def test_version(questbench: Callable[..., Any]) -> None:
    from questbench import __version__

    assert questbench("--version").out == f"questbench {__version__}\n"


def config_of(verb: str) -> type[Any]:
    experiment = importlib.import_module(f"questbench.experiments.{verb}")
    found: type[Any] = getattr(experiment, {"kernel": "KernelConfig", "e2e": "E2EConfig"}.get(verb, "AccuracyConfig"))
    return found


@pytest.mark.parametrize("verb", ["kernel", "e2e", "accuracy"])
def test_defaults_are_those_of_the_experiment(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "questbench.cli._run.execute", lambda kind, module, cls, given, **_: seen.append(cls(**given)) or 0
    )
    from questbench.cli.main import invoke

    assert invoke([verb, *(["--task", "passkey"] if verb == "accuracy" else [])]) == 0
    required = {"tasks": ["passkey"]} if verb == "accuracy" else {}
    expected = config_of(verb)(**required)
    assert dataclasses.asdict(seen[0]) == dataclasses.asdict(expected)


@pytest.mark.parametrize("verb", ["kernel", "e2e", "accuracy"])
def test_defaults_that_are_shown_are_read_as_the_defaults(verb: str) -> None:
    for name, flag in flags.flags(config_of(verb)).items():
        if flag.shown is not None:
            assert flag.reader is not None
            assert flag.reader(flag.shown, flag.name) == flag.default, name


def test_snake_case_flags_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    from questbench.cli.main import invoke

    seen: list[Any] = []
    monkeypatch.setattr("questbench.cli._run.execute", lambda kind, module, cls, given, **_: seen.append(given) or 0)
    line = "kernel --token_budget 1k,2k --seq_len 4K,4Ki,8k --page_size=32 --kv_heads 8 --max_seconds 3"
    assert invoke([*line.split(), "-M", "quest.select_by=q_head"]) == 0
    assert seen[0]["budgets"] == [1024, 2048]
    assert seen[0]["seq_lens"] == [4096, 8192]
    assert (seen[0]["page_sizes"], seen[0]["kv_heads"], seen[0]["max_seconds"]) == ([32], 8, 3.0)
    assert seen[0]["method_args"] == {"quest.select_by": "q_head"}
