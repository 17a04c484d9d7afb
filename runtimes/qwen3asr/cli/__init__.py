"""The command line: ``qwen3asr export | verify | transcribe | align | serve | eval | bench | info``.

Results go to standard output, progress and errors to standard error. Exit codes: 0 all done; 1 some input
failed (the others are done); 2 wrong arguments; 3 a bundle, checkpoint or device cannot be used; 4 the export
differs from its checkpoint; 130 interrupted.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import qwen3asr
from qwen3asr import console
from qwen3asr.cli import benchmarking, evaluate, exporting, recognise, serving
from qwen3asr.cli.common import DIFFERS, INPUT_FAILED, INTERRUPTED, UNUSABLE, USAGE, fail
from qwen3asr.errors import AudioError, Qwen3AsrError, UsageError, VerificationFailed

__all__ = ["DIFFERS", "INPUT_FAILED", "INTERRUPTED", "UNUSABLE", "USAGE", "app", "main"]

app = typer.Typer(
    help="Qwen3-ASR speech recognition and forced alignment without torch.",
    epilog="Exit codes: 0 done, 1 some input failed, 2 wrong arguments, 3 bundle or checkpoint unusable, "
    "4 export differs from its checkpoint, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for _command in (
    recognise.transcribe,
    recognise.align,
    serving.serve,
    evaluate.eval,
    benchmarking.bench,
    exporting.export,
    exporting.verify,
    exporting.info,
):
    app.command()(_command)


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"qwen3asr {qwen3asr.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        fail(USAGE, "name a command; see qwen3asr --help")


def _exit_code(error: Qwen3AsrError | OSError) -> int:
    if isinstance(error, VerificationFailed):
        return DIFFERS
    if isinstance(error, AudioError):
        return INPUT_FAILED
    return USAGE if isinstance(error, UsageError) else UNUSABLE


def _terminate(*_: object) -> NoReturn:
    raise KeyboardInterrupt  # so that SIGTERM cleans up as Ctrl-C does


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the ``qwen3asr`` command; always ends in :class:`SystemExit`."""
    signal.signal(signal.SIGTERM, _terminate)
    logging.getLogger("qwen3asr").handlers = [console.Warnings()]
    try:
        app(args=arguments, prog_name="qwen3asr")
    except (Qwen3AsrError, OSError) as error:
        console.error(str(error))
        sys.exit(_exit_code(error))
    except SystemExit as end:
        if end.code == INTERRUPTED:
            console.error("interrupted")
        raise
    sys.exit(0)
