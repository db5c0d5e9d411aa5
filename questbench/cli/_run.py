"""What the run verbs share: open the run, store every unit of work as it ends, show the tables, say how it went."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from questbench.cli import _signals
from questbench.cli._output import Output
from questbench.errors import ExitCode, PrerequisiteError, QuestbenchError, UsageError

if TYPE_CHECKING:
    import typer

    from questbench.experiments.engine import Unit
    from questbench.records.schema import Kind, ResultRecord
    from questbench.records.store import RunWriter


LIMIT = "--time-limit"
"""Stands in the reason of what a time limit left out."""


class Experiment(Protocol):
    """A module of ``questbench.experiments``."""

    def check(self, config: Any) -> None:
        """Refuse what no cell can satisfy."""

    def card(self, config: Any) -> dict[str, str]:
        """What is about to run."""

    def run(self, config: Any, *, finished: set[str], stored: Any, progress: Any) -> Iterator[Unit]:
        """Run what is not finished."""


def execute(
    kind: Kind,
    experiment: Any,
    config_class: type[Any],
    flags: Mapping[str, Any],
    ctx: typer.Context,
    *,
    out: Path,
    resume: Path | None,
    json: bool,
) -> int:
    """Run an experiment from its flags to its tables.

    Args:
        experiment: the module, an :class:`Experiment`.
        config_class: its configuration, a dataclass whose fields are named as the flags' parameters.
        flags: values of all fields.
        ctx: knows which of them the user gave.

    Returns:
        The exit code.
    """
    from questbench.records import environment as probes
    from questbench.records import store

    # Libraries' remarks are not ours; what matters of them becomes an error or a warning in a record.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    output = Output(json=json)
    if resume is None:
        config = config_class(**flags)
    else:
        resume = store.locate(resume, out)
        given = {name for name in flags if _from_user(ctx, name)}
        config = _stored_config(kind, config_class, resume, {name: flags[name] for name in given})
    experiment.check(config)
    environment = probes.collect()
    argv = ["questbench", *sys.argv[1:]]
    settings = dataclasses.asdict(config)
    # Not every experiment reads a file.
    inputs = experiment.inputs(config) if hasattr(experiment, "inputs") else {}
    if resume is None:
        writer = store.create_run(out, kind, argv, settings, environment, inputs)
    else:
        writer = store.resume(resume, kind, argv, settings, environment, inputs)
    with writer:
        return _run(experiment, config, writer, output, probes.machine(environment))


def _run(experiment: Experiment, config: Any, writer: RunWriter, output: Output, machine: str) -> int:
    from questbench.records import store
    from questbench.report.tables import tables

    fresh = _holds_nothing(writer)
    try:
        facts = {"machine": machine, **experiment.card(config), "results": str(writer.path)}
        output.card(f"questbench {writer.manifest.kind}", facts)
        output.records(store.load([writer.path]))
        stored = store.load_samples(writer.path)
        with output.progress() as progress:
            for unit in experiment.run(config, finished=set(writer.finished), stored=stored, progress=progress):
                written = writer.write(unit.records, key=unit.key, samples=unit.samples, prefills=unit.prefills)
                output.records(written)
                fresh = False
        records = store.newest_per_cell(store.load([writer.path]))
        code = exit_code(records)
        writer.finish(exit_code=code)
    except KeyboardInterrupt:
        return _interrupted(writer, output)
    except Exception as error:
        if _signals.asked():  # what a library made of Ctrl-C
            return _interrupted(writer, output)
        _finish(writer, error.exit_code if isinstance(error, QuestbenchError) else ExitCode.UNEXPECTED)
        if fresh:  # nothing was measured: leave no empty run behind
            shutil.rmtree(writer.path, ignore_errors=True)
        else:
            output.say(f"What was finished is kept. To continue: {_again(writer)}")
        raise
    output.tables(tables(records, {writer.name: writer.manifest}))
    _close(records, code, writer, output)
    return code


def _holds_nothing(writer: RunWriter) -> bool:
    """Whether the run folder holds nothing yet."""
    return not writer.finished and not (writer.path / "records.jsonl").stat().st_size


def _interrupted(writer: RunWriter, output: Output) -> int:
    _finish(writer, ExitCode.INTERRUPTED)
    output.error("Interrupted; what was finished is kept.", _again(writer))
    return ExitCode.INTERRUPTED


def _finish(writer: RunWriter, code: ExitCode) -> None:
    """Note how the run ended; on a full disk that fails too, and the first reason is the one to show."""
    with contextlib.suppress(QuestbenchError):
        writer.finish(exit_code=code)


def exit_code(records: Iterable[ResultRecord]) -> ExitCode:
    """0, or 4 if any cell failed, or 3 if all were skipped."""
    states = {record.status for record in records}
    if "failed" in states:
        return ExitCode.CELLS_FAILED
    return ExitCode.PREREQUISITE if states == {"skipped"} else ExitCode.OK


def _close(records: list[ResultRecord], code: ExitCode, writer: RunWriter, output: Output) -> None:
    """The last words: where the records are, and what to do about cells that have no value."""
    if code is ExitCode.OK:
        skipped = [record.reason or "" for record in records if record.status == "skipped"]
        for reason in dict.fromkeys(reason for reason in skipped if LIMIT in reason):
            output.say(f"Not everything was measured: {reason}. What was not begun: {_again(writer)}")
        output.say(f"Records: {writer.path}. Plots and tables: questbench report {writer.path}")
        return
    verb = "failed" if code is ExitCode.CELLS_FAILED else "skipped"
    gone = [record for record in records if record.status == verb]
    why: dict[str, list[str]] = {}
    for record in gone:
        why.setdefault((record.reason or "no reason was given").partition("\n")[0], []).append(record.method)
    for reason, methods in list(why.items())[:5]:
        output.say(f"  {', '.join(dict.fromkeys(methods))}: {reason}")
    cells = {record.cell() for record in gone}
    some = f"{len(cells)} cell{'s' * (len(cells) > 1)}"
    hint = f"Fix the causes, then run the failed cells again: {_again(writer)}"
    output.error(f"{some} {verb}; the reasons are above and in the records.", hint)


def _again(writer: RunWriter) -> str:
    return f"questbench {writer.manifest.kind} --resume {shlex.quote(str(writer.path))}"


def _from_user(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _stored_config(kind: Kind, config_class: type[Any], path: Path, given: Mapping[str, Any]) -> Any:
    """The configuration a run was started with, and what the user repeats of it (the store compares both).

    Raises:
        UsageError: it is a run of another verb.
        PrerequisiteError: there is no run, or another version of questbench made it.
    """
    from questbench.records import store

    manifest = store.load_manifest(path)
    if manifest.kind != kind:
        message = f"'{path}' is a run of '{manifest.kind}', not of '{kind}'."
        raise UsageError(message, f"Use: questbench {manifest.kind} --resume {path}")
    names = {field.name for field in dataclasses.fields(config_class)}
    if set(manifest.config) != names:
        message = f"'{path}' was started by another version of questbench: its configuration has other fields."
        raise PrerequisiteError(message, "Start a new run; report reads both.")
    hints = typing.get_type_hints(config_class)
    for name, value in manifest.config.items():
        if not _fits(value, hints[name]):
            message = f"{path / 'run.json'}: field 'config.{name}' does not hold what {kind} takes there."
            raise PrerequisiteError(message, "Start a new run; report reads both.")
    return config_class(**{**manifest.config, **given})


def _fits(value: Any, hint: Any) -> bool:
    """Whether a stored value is of the type that a field of a configuration has."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(item, arguments[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)
