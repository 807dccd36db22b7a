"""Run the main function of a script in this process: to start Python and torch takes seconds."""

import contextlib
import io
import sys
from collections.abc import Callable
from typing import NamedTuple
from unittest.mock import patch


class Done(NamedTuple):
    """What a finished script leaves."""

    returncode: int
    stdout: str
    stderr: str


def run_main(main: Callable[[], object], *argv: str) -> Done:
    """Run a script's main function as `python script argv` would."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch.object(sys, "argv", [main.__module__, *argv]),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return Done(int(code or 0), out.getvalue(), err.getvalue())
