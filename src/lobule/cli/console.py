"""What the command line shows: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from lobule.errors import LobuleError

T = TypeVar("T")

INTERRUPTED = 130
TERMINATED = 143
PARTIAL = 5


class Verbs(TyperGroup):
    """The group of verbs: turns every way a verb can fail into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Run the verb that `ctx` names."""
        try:
            return super().invoke(ctx)
        except LobuleError as error:
            say(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as stop:
            say("interrupted; what was finished is kept, the same `train` command goes on from it")
            # 128 and the signal's number, as a shell has it; Ctrl-C is signal 2
            raise typer.Exit(128 + getattr(stop, "signal", INTERRUPTED - 128)) from None
        except BrokenPipeError:
            # the reader of our output has left, as in `lobule scan DIR | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except MemoryError:
            say("error: out of memory\n  use a smaller --size, or a machine with more memory")
            raise typer.Exit(1) from None
        except Exception as error:
            # the last line of defence: whatever arrives here is a fault of ours, said as one
            if type(error).__module__.startswith("typer") or os.environ.get("LOBULE_DEBUG"):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            say(
                f"internal error: {type(error).__name__}: {error} "
                f"({Path(where.filename).name}:{where.lineno})\n"
                "  this is a fault in Lobule; LOBULE_DEBUG=1 shows where, please report it"
            )
            raise typer.Exit(1) from None


class Said(logging.Handler):
    """Shows what the library logs on standard error, as plain text, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        say(("warning: " if record.levelno >= logging.WARNING else "") + record.getMessage())


def say(text: str) -> None:
    """Write to standard error, as plain text."""
    typer.echo(text, err=True)


def emit(text: str, record: dict[str, Any], *, as_json: bool) -> None:
    """Write the result to standard output: one JSON object, or text for people."""
    typer.echo(json.dumps(record, allow_nan=False, ensure_ascii=False) if as_json else text)


def bar(items: Iterable[T], *, total: int, task: str) -> Iterator[T]:
    """Show a progress bar with the time left on standard error, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal or total == 0:
        yield from items
        return
    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        yield from progress.track(items, total=total, description=task)
