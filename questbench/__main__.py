"""``python -m questbench``, and the entry point of the ``questbench`` script.

Little is imported before signals and streams are ready: Ctrl-C while modules load ends with a line, not a traceback.
"""

from __future__ import annotations

from questbench.cli import _signals, _streams


def main() -> None:
    """Run the command line and end the process with its exit code."""
    import os
    import sys

    code = 130
    try:
        _signals.prepare()
        _streams.prepare()
        from questbench.cli.main import invoke

        code = invoke()
    except KeyboardInterrupt:
        os.write(2, b"error: Interrupted.\n")
    finally:
        _signals.finish()
    for stream in (sys.stdout, sys.stderr):
        # A failure at the very end would change the exit code.
        _streams.write(stream, "")
    sys.exit(code)


if __name__ == "__main__":
    main()
