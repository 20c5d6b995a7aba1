"""The verb that puts a model behind HTTP. Registered by `app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lobule.cli.console import emit, say
from lobule.cli.options import Json, Rounding, RoundingChoice, Runner, RunnerChoice, Views
from lobule.errors import UsageError


def serve(
    model: Annotated[Path, typer.Argument(help="Model folder, RUN/model.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any that is free.")] = 8000,
    token: Annotated[
        str | None, typer.Option(help="What requests must bring; default: a new one.")
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let every program on this machine ask.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Further name that requests may be addressed to; may be repeated."),
    ] = None,
    browse: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    engine: RunnerChoice = Runner.auto,
    precision: RoundingChoice = Rounding.fp32,
    views: Views = 8,
    max_upload: Annotated[int, typer.Option(help="Megabytes of one request at most.")] = 32,
    max_waiting: Annotated[int, typer.Option(help="Images that may wait at most.")] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds for one request at most.")] = 30.0,
    audit_log: Annotated[
        Path | None,
        typer.Option(help="Hash-chained log of all answers; default: in the user's state folder."),
    ] = None,
    no_audit_log: Annotated[
        bool, typer.Option("--no-audit-log", help="Keep no log of answers.")
    ] = False,
    json: Json = False,
) -> None:
    """Answer on a page and over HTTP what `predict` answers; on this machine alone by default.

    The address that is printed holds the token. Research use only. Not for diagnosis.
    """
    from lobule.audit_log import default_audit_log
    from lobule.files import default_cache
    from lobule.inference.choice import Running
    from lobule.serving.limits import Limits
    from lobule.serving.server import Address, new_token
    from lobule.serving.server import serve as run

    if token is not None and no_token:
        raise UsageError("--token and --no-token exclude each other")
    if min(max_upload, max_waiting) < 1 or timeout <= 0:
        raise UsageError("--max-upload, --max-waiting and --timeout must be above 0")
    secret = None if no_token else token or new_token()
    log = None if no_audit_log else audit_log or default_audit_log()

    def ready(url: str) -> None:
        record = {
            "schema": "lobule.serve/1",
            "url": url,
            "audit_log": None if log is None else str(log),
        }
        emit(f"serving on {url}\nstop with Ctrl-C", record, as_json=json)
        if browse:
            typer.launch(url)

    try:
        run(
            model,
            Address(host, port, secret, tuple(allow_host or ())),
            running=Running(engine.value, precision.value, views),
            limits=Limits(upload_bytes=max_upload * 2**20, waiting=max_waiting, request_s=timeout),
            log=log,
            cache=default_cache(),
            ready=ready,
        )
    except KeyboardInterrupt:
        # Ctrl-C is how a server is meant to end
        say("stopped")
