"""The command ``haq-env``: searches, what networks cost on which hardware, and what there is."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any, Union

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from haq_env.commands import COMMANDS, Command
from haq_env.errors import InputError
from haq_env.malloc import keep_freed_memory
from haq_env.report.terminal import lenient, silence, write

# The shell's conventions: 128 + the signal's number.
INTERRUPTED, BROKEN_PIPE = 130, 141


def main(argv: list[str] | None = None) -> None:
    """Run ``haq-env``.

    Args:
        argv: arguments without the program's name; those of the process when None.

    Raises:
        SystemExit: 0 after --help, 1 when lint has findings, 2 when the user gave something
            that cannot be used, 130 after Ctrl-C, 141 when nobody reads the output any more.
    """
    argv = sys.argv[1:] if argv is None else argv
    lenient()
    keep_freed_memory()
    usual, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        if argv == ["--version"]:
            from haq_env import __version__

            write(f"haq-env {__version__}\n")
        else:
            _parse(argv).run()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        silence()
        raise SystemExit(BROKEN_PIPE) from None
    finally:
        warnings.formatwarning = usual


def _one_line(message: Warning | str, *_where: object, **_line: object) -> str:
    """Write a warning as errors are written: where in the code it was raised helps nobody."""
    return f"warning: {' '.join(str(message).split())}\n"


def _parse(argv: list[str]) -> Command:
    kinds: Any = tuple(Annotated[kind, subcommand(name)] for name, kind in COMMANDS.items())
    command: Command = tyro.cli(
        Union[kinds],  # noqa: UP007  (built from a list)
        prog="haq-env",
        description="Hardware-aware mixed-precision quantization: search, costs, plots and lists. "
        "haq-env COMMAND --help explains a command; haq-env --version prints the version.",
        args=argv,
        config=(OmitArgPrefixes, OmitSubcommandPrefixes, FlagCreatePairsOff),
    )
    return command
