"""`fabricctl`: where it starts, and the one place where a failure is printed."""

from __future__ import annotations

import os
import signal
import sys

EXIT_INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Run fabricctl and end the process; its exit status says how it went."""
    status = run()
    # All is said and done: an interrupt while the interpreter ends would only print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


def run() -> int:
    """Run fabricctl with the process's arguments; return its exit status."""
    try:
        return _run()
    except KeyboardInterrupt:  # also while modules are being imported
        return EXIT_INTERRUPTED


def _run() -> int:
    from fabric import errors
    from fabric.cli.app import app
    from fabric.cli.failure import Failure, explain, report

    try:
        app()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except Failure as failure:
        return report(failure)
    except errors.FabricError as error:
        return report(explain(error, f"fabricctl {' '.join(sys.argv[1:3])} failed"))
    except BrokenPipeError:  # the reader of our output has left; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


if __name__ == "__main__":
    main()
