"""How fabricctl fails: what, why and the one thing to do, on stderr, with a non-zero status."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fabric import errors
from fabric.cli import places

EXIT_FAILURE = 1
EXIT_INDETERMINATE = 3

_FIXES: dict[type[errors.FabricError], str] = {
    errors.ConfigError: "correct it and run the command again",
    errors.TypeMismatchError: "make both sides use the same version of the message type",
    errors.BusyError: "wait for the other user to finish, or choose another name or socket",
    errors.CapacityError: "free some of what is named above, then run the command again",
    errors.DeadlineExceeded: "see who is there and what is outstanding: fabricctl topology",
    errors.PluginError: "correct the plugin file and load it again: fabricctl plugin load FILE",
    errors.BrokenError: "run the command again; if it repeats, see fabricctl topology",
    errors.InternalError: "this is a defect of fabricd: see the log that fabricctl status names",
}


class Failure(Exception):
    """A failure to be printed; `status` becomes the exit status."""

    def __init__(self, what: str, why: str, fix: str, status: int = EXIT_FAILURE) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        self.status = status

    def render(self) -> str:
        """Return the lines that are printed."""
        why = self.why.replace("\n", "\n       ")
        return f"error: {self.what}\n  why: {why}\n  do:  {self.fix}"


def explain(error: errors.FabricError, what: str, status: int = EXIT_FAILURE) -> Failure:
    """Return the failure of an action `what` (as in "cannot apply f.yaml") by an error."""
    if error.context.get("unreachable"):
        return Failure(what, error.message, _start_one(error), status)
    fix = next(
        (_FIXES[cls] for cls in type(error).__mro__ if cls in _FIXES),
        "see fabricctl status and the log it names",
    )
    return Failure(what, error.message or error.code, fix, status)


def _start_one(error: errors.FabricError) -> str:
    asked = str(error.context.get("socket", "")).removesuffix(".ctl")
    is_default = not asked or asked == places.default_socket()
    return "start one: fabricctl up" + ("" if is_default else f" --socket {asked}")


@contextmanager
def failing(what: str, status: int = EXIT_FAILURE) -> Iterator[None]:
    """Turn a FabricError inside the block into a `Failure` that says what was tried."""
    try:
        yield
    except errors.FabricError as error:
        raise explain(error, what, status) from error


def report(failure: Failure) -> int:
    """Print a failure on stderr and return its exit status."""
    sys.stderr.write(failure.render() + "\n")
    return failure.status
