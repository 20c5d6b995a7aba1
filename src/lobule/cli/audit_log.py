"""The verbs on audit logs. Registered by `app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lobule.cli.console import emit
from lobule.cli.options import Json

logs = typer.Typer(help="Check the logs that `serve` and `predict --audit-log` keep.")


@logs.callback()
def _logs() -> None:
    """Keep `verify` a verb of its own, although it is alone."""


@logs.command(epilog="Example: lobule audit-log verify audit-log.jsonl")
def verify(
    log: Annotated[Path, typer.Argument(help="The log, a file of JSON lines.")],
    head: Annotated[
        str | None, typer.Option(help="Hash that an earlier check gave; it must still be there.")
    ] = None,
    json: Json = False,
) -> None:
    """Check that no line was changed, taken out, put in or moved; exit code 3 if one was."""
    from lobule.audit_log import SCHEMA
    from lobule.audit_log import verify as run

    found = run(log, head=head)
    span = "" if found.first is None else f", from {found.first} to {found.last}"
    emit(
        f"the chain holds: {found.records:,} records{span}\nhead: {found.head}",
        {"schema": SCHEMA, "log": str(log), **vars(found)},
        as_json=json,
    )
