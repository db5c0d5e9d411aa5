"""What the run verbs share: open the run, store every unit of work as it ends, show the tables, say how it went."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from questbench import flags, units
from questbench.cli import _options, _signals
from questbench.cli._output import Output
from questbench.errors import ExitCode, PrerequisiteError, QuestbenchError, UsageError

if TYPE_CHECKING:
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


def command(kind: Kind, experiment: Any, config_class: type[Any], about: str) -> Callable[..., int]:
    """The verb that runs an experiment.

    Args:
        experiment: the module, an :class:`Experiment`.
        config_class: its configuration, whose fields are the verb's flags.
        about: what the help page says above them.
    """

    def run(ctx: typer.Context, *, out: Path, resume: Path | None, json: bool, **values: Any) -> int:
        given = {name: value for name, value in values.items() if _from_user(ctx, name)}
        try:
            known = flags.read(config_class, given)
        except UsageError as error:
            raise UsageError(error.message, error.hint or f"See: {ctx.command_path} --help") from None
        return execute(kind, experiment, config_class, known, out=out, resume=resume, json=json)

    declared = {name: (_option(flag), flag.shown) for name, flag in flags.flags(config_class).items()}
    declared["out"] = (_options.Out, Path("results"))
    declared["resume"] = (_options.Resume, None)
    declared["json"] = (_options.Json, False)
    of_flags = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in declared.items()
    ]
    context = Parameter("ctx", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    run.__doc__ = about
    vars(run)["__signature__"] = Signature([context, *of_flags])
    return run


def _option(flag: flags.Flag) -> Any:
    """What typer makes a flag of: all texts are read by the flag itself."""
    kind: Any = bool if not flag.metavar else list[str] | None if isinstance(flag.default, dict) else str | None
    return Annotated[kind, _options.option(*flag.names, metavar=flag.metavar, help=flag.help, panel=flag.panel)]


def execute(
    kind: Kind,
    experiment: Any,
    config_class: type[Any],
    given: dict[str, Any],
    *,
    out: Path,
    resume: Path | None,
    json: bool,
) -> int:
    """Run an experiment from its settings to its tables.

    Args:
        given: fields of the configuration that the user gave.

    Returns:
        The exit code.
    """
    from questbench.experiments.setup import kernel_settings
    from questbench.records import environment as probes
    from questbench.records import store

    # Libraries' remarks are not ours; what matters of them becomes an error or a warning in a record.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    output = Output(json=json)
    if resume is None:
        config = config_class(**given)
    else:
        resume = store.locate(resume, out)
        config = config_class(**{**_stored_settings(kind, config_class, resume), **given})
    experiment.check(config)
    environment = {**probes.collect(), "kernels": kernel_settings(config)}
    argv = ["questbench", *sys.argv[1:]]
    settings = dataclasses.asdict(config)
    # Not every experiment reads a file.
    inputs = experiment.inputs(config) if hasattr(experiment, "inputs") else {}
    if resume is None:
        writer = store.create_run(out, kind, argv, settings, environment, inputs)
    else:
        free, check = getattr(experiment, "FREE", ()), getattr(experiment, "check_finished", None)
        goes_on = functools.partial(check, config) if check else None
        writer = store.resume(resume, kind, argv, settings, environment, inputs, free, goes_on)
    with writer:
        return _run(
            experiment, config, writer, output, {"machine": probes.machine(environment), **_forced(environment)}
        )


def _forced(environment: dict[str, Any]) -> dict[str, str]:
    """For the card: what the user has the kernels do, whatever is best on this machine."""
    told = {name: value for one in environment["kernels"].values() for name, value in one.get("forced", {}).items()}
    return {"kernels": "forced: " + ", ".join(f"{name}={value}" for name, value in told.items())} if told else {}


def _run(experiment: Experiment, config: Any, writer: RunWriter, output: Output, about: dict[str, str]) -> int:
    from questbench.records import store
    from questbench.report.tables import tables

    fresh = _holds_nothing(writer)
    try:
        facts = {**about, **experiment.card(config), "results": str(writer.path)}
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
    some = units.counted(len(cells), "cell")
    hint = f"Fix the causes, then run the failed cells again: {_again(writer)}"
    output.error(f"{some} {verb}; the reasons are above and in the records.", hint)


def _again(writer: RunWriter) -> str:
    return f"questbench {writer.manifest.kind} --resume {shlex.quote(str(writer.path))}"


def _from_user(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _stored_settings(kind: Kind, config_class: type[Any], path: Path) -> dict[str, Any]:
    """The settings a run was started with; the store compares what the user repeats of them.

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
    settings: dict[str, Any] = {}
    for name, value in manifest.config.items():
        try:
            settings |= flags.read(config_class, {name: value})
        except UsageError:
            message = f"{path / 'run.json'}: field 'config.{name}' does not hold what {kind} takes there."
            raise PrerequisiteError(message, "Start a new run; report reads both.") from None
    return settings
