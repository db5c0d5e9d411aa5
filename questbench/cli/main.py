"""The ``questbench`` command: finds the verb, and turns every way to end into an exit code and a message.

A verb's module is imported when the verb is used, so that ``questbench --help`` stays fast.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from questbench import __version__
from questbench.cli import _signals, _streams
from questbench.cli._output import Output
from questbench.errors import ExitCode, QuestbenchError, UsageError

VERBS = {
    "kernel": "Time the attention kernels of every method.",
    "e2e": "Time prefill and every token after it, with the whole model.",
    "accuracy": "Score every method on long-context tasks.",
    "report": "Make tables and plots of stored runs, or compare them.",
    "ls": "List methods, tasks, backends, baselines, models, plots and runs.",
    "doctor": "Say what works on this machine, what does not, and why.",
    "build": "Compile the kernels ahead of their first use.",
}
EXAMPLES = ("questbench kernel --seq-len 32k", "questbench accuracy --task passkey --budget 64,256,1k")
COMPLETION = "_QUESTBENCH_COMPLETE"
"""Set by the shell that asks what a word may become."""
_ROOM = "Make room there, or name another folder with --out DIR."
_RIGHTS = "Check who may read and write there, or name another folder with --out DIR."
FILES = {
    errno.ENAMETOOLONG: "Use a shorter name.",
    errno.ELOOP: "Look at the links on the way to it.",
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.EMFILE: "Raise the limit on open files: ulimit -n 4096",
}
"""What a system may refuse that is no fault of ours, and what to do about it."""
BUGS = "Run it again with QUESTBENCH_DEBUG=1 for the traceback, and report it with that."


def examples(*lines: str) -> str:
    """The end of a help text: a line of its own for every example."""
    return "\n\n".join(["Examples:", *(f"$ {line}" for line in lines)])


class Verb(TyperCommand):
    """A verb with its flags."""

    def get_help_option(self, ctx: Any) -> Any:
        """``--help``, which takes no value, whatever the help page would print behind it."""
        option: Any = super().get_help_option(ctx)
        if option is not None:
            option.metavar = ""
        return option


class VerbGroup(TyperGroup):
    """Shows the verbs' summaries without importing them; imports the one that is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs, in the order in which a newcomer meets them."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with the verb's summary."""
        summary = VERBS.get(cmd_name)
        return TyperCommand(cmd_name, help=summary, rich_markup_mode=None) if summary else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb itself.

        Raises:
            UsageError: there is no such verb.
        """
        if args[0] not in VERBS:
            raise _unknown_verb(args[0])
        module = importlib.import_module(f"questbench.cli.{args[0]}")
        verb = typer.Typer(add_completion=False, rich_markup_mode="rich")
        settings = {"help_option_names": ["-h", "--help"]}
        function = getattr(module, args[0])
        # The help page breaks lines by itself; the source's own line breaks would show in the middle of its lines.
        about = "\n\n".join(" ".join(part.split()) for part in (function.__doc__ or "").split("\n\n"))
        end = examples(*module.EXAMPLES)
        verb.command(args[0], cls=Verb, help=about, epilog=end, context_settings=settings)(function)
        return args[0], typer.main.get_command(verb), args[1:]


app = typer.Typer(
    cls=VerbGroup,
    add_completion=True,
    # Plain text here, panels for the verbs: rich would take longer to import than all the rest together.
    rich_markup_mode=None,
    epilog=examples(*EXAMPLES),
    context_settings={
        "help_option_names": ["-h", "--help"],
        # Evaluation tools write --token_budget, command-line tools --token-budget: both are right here.
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False
) -> None:
    """Measure what query-aware KV-cache sparsity really buys: speed, accuracy and memory in one harness."""
    if version:
        Output().line(f"questbench {__version__}")
    elif ctx.invoked_subcommand is None:
        Output().line(ctx.get_help())


def invoke(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; shows errors, never raises them."""
    command = typer.main.get_command(app)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = int(command.main(args=arguments, prog_name="questbench", standalone_mode=False) or ExitCode.OK)
        return _delivered(code)
    except (KeyboardInterrupt, typer.Abort):
        Output().error("Interrupted.")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # nobody reads a help page to its end
        _streams.drop(sys.stdout)
        return ExitCode.OK
    except Exception as error:
        if COMPLETION in os.environ:  # a message would stand in the middle of the line that the user is typing
            return ExitCode.USAGE
        if hasattr(error, "format_message"):  # the parser's own complaints, whichever library they come from
            return _show_parser_error(error)
        _traceback_if_wanted()
        return _show(error)


def _delivered(code: int) -> int:
    """The exit code, or 3 if all went well but stdout could not take the data."""
    error = _streams.lost()
    if error is None:
        return code
    why = error.strerror or str(error)
    Output().error(f"The output could not be written to stdout: {why}.", "Make room there, or write it elsewhere.")
    return code or ExitCode.PREREQUISITE


def _show(error: Exception) -> int:
    """Show an error that ended the command; its exit code."""
    if _signals.asked():  # what a library made of Ctrl-C
        Output().error("Interrupted.")
        return ExitCode.INTERRUPTED
    if isinstance(error, QuestbenchError):
        Output().error(error.message, error.hint)
        return error.exit_code
    if isinstance(error, OSError) and error.errno in FILES:
        named = isinstance(error.filename, (str, bytes))
        what = f"use '{os.fsdecode(error.filename)}'" if named else "read or write"
        Output().error(f"The system does not let questbench {what}: {error.strerror}.", FILES[error.errno])
        return ExitCode.USAGE if error.errno == errno.ENAMETOOLONG else ExitCode.PREREQUISITE
    if isinstance(error, MemoryError):
        Output().error("There is not enough memory for this.", "Ask for less: a shorter text, a smaller batch.")
        return ExitCode.PREREQUISITE
    Output().error(f"{type(error).__name__}: {error}. This is a bug in questbench.", BUGS)
    return ExitCode.UNEXPECTED


def _show_parser_error(error: Any) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "questbench"
    Output().error(error.format_message(), f"See: {path} --help")
    return ExitCode.USAGE


def _unknown_verb(name: str) -> UsageError:
    import difflib

    close = difflib.get_close_matches(name, VERBS, n=1)
    guess = f"Did you mean: questbench {close[0]}? " if close else ""
    return UsageError(f"Unknown command '{name}'. Known: {', '.join(VERBS)}.", f"{guess}See: questbench --help")


def _traceback_if_wanted() -> None:
    if os.environ.get("QUESTBENCH_DEBUG") == "1":
        import traceback

        traceback.print_exc()
