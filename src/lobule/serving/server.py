"""From a model folder to a server that listens."""

from __future__ import annotations

import ipaddress
import logging
import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import uvicorn

from lobule.audit_log import AuditLog
from lobule.data.images import ImageArray
from lobule.data.manifest import Manifest, complete
from lobule.errors import ImageError, OutputError, UsageError
from lobule.explain.neighbours import Cases, read_cases
from lobule.inference.choice import Running
from lobule.inference.predictor import AS_TRAINED, open_extractor
from lobule.models.bundle import open_model
from lobule.serving.app import make_app
from lobule.serving.guard import Access
from lobule.serving.limits import Limits
from lobule.serving.service import Service

_log = logging.getLogger(__name__)

_CONNECTIONS = 512


@dataclass(frozen=True)
class Address:
    """Where the server listens, and what it is asked with. port: 0 takes any that is free."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()


def serve(
    model: Path,
    address: Address,
    *,
    running: Running = AS_TRAINED,
    limits: Limits | None = None,
    log: Path | None = None,
    cache: Path | None = None,
    ready: Callable[[str], None],
) -> None:
    """Serve a model folder until SIGINT or SIGTERM.

    ready: called with the address, token included, once the socket is bound and the model loaded.
    log: where each answer is noted (`audit_log`). cache: where is remembered what was measured.
    Raises OutputError if the address is taken, UsageError if others could ask without a token.
    """
    limits = limits or Limits()
    check(address)
    opened = open_model(model)
    log_at = None if log is None else AuditLog(log)
    with _listening(address) as bound:
        port = bound.getsockname()[1]
        empty = Manifest(Path(), complete(pd.DataFrame({"path": []})))
        extractor = open_extractor(opened, empty, running, cache=cache)
        cases = read_cases(opened)
        # programs are made for the size of the photographs, before the first of them comes
        extractor.of_views(_usual(cases))
        service = Service(opened, extractor, limits=limits, cases=cases, log=log_at)
        access = Access(_hosts(address, port), address.token, f"lobule_token_{port}")
        config = uvicorn.Config(
            make_app(service, access), log_level="warning", access_log=False, server_header=False,
            ws="none", http="h11", timeout_keep_alive=5, timeout_graceful_shutdown=10,
            limit_concurrency=_CONNECTIONS,
        )  # fmt: skip
        query = "" if address.token is None else f"?token={address.token}"
        name = f"[{address.host}]" if ":" in address.host else address.host
        ready(f"http://{name}:{port}/{query}")
        uvicorn.Server(config).run(sockets=[bound])


def new_token() -> str:
    """Return a token that cannot be guessed."""
    return secrets.token_urlsafe(24)


def check(address: Address) -> None:
    """Raise UsageError if the address would let others ask without a token."""
    if address.token is None and not _loopback(address.host):
        raise UsageError(
            f"without a token, only this machine may ask, and {address.host} is not only it",
            fix="leave out --no-token, or serve on 127.0.0.1",
        )
    # other characters mean something in an address or a cookie
    if address.token is not None and not re.fullmatch(r"[A-Za-z0-9._~-]{16,256}", address.token):
        raise UsageError(
            "the token must be 16 to 256 letters, digits, dots, tildes, hyphens or underscores",
            fix="leave out --token: a new one is made and printed",
        )


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hosts(address: Address, port: int) -> frozenset[str]:
    named = {"127.0.0.1", "localhost", "[::1]"} if _loopback(address.host) else {address.host}
    names = {name.lower() for name in (*named, *address.allowed_hosts)}
    with_port = {f"{name}:{port}" for name in names}
    return frozenset(with_port | (names if port in (80, 443) else set()))


def _listening(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # named as TCP, or asyncio leaves Nagle's algorithm on, and answers wait 40 ms for nothing
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((address.host, address.port))
        # from now on nobody else can listen there, though the model is yet to be loaded
        bound.listen()
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"cannot listen on {address.host}:{address.port}: {reason}",
            fix="choose another --port; 0 takes any that is free",
        ) from error
    return bound


def _usual(cases: Cases | None) -> ImageArray:
    """Return a photograph of the usual size, or a blank one where none is known."""
    if cases is not None and len(cases.table):
        try:
            return cases.read_row(0)
        except ImageError as error:
            _log.warning("%s; similar cases are shown without their photographs", error.what)
    return np.full((460, 700, 3), 255, np.uint8)
